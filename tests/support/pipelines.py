"""Small pipelines of every family, of diffusers' own classes, with random weights and the words of the scenes."""

from __future__ import annotations

from typing import Any

import torch

from unbraid.zoo.reference import parts
from unbraid.zoo.reference.words import tokenizer

FAMILIES = ("sd", "sdxl", "sd3", "flux")


def small(family: str, prediction: str = "v_prediction") -> Any:
    """A pipeline of a family, in evaluation mode; "sd" has the shape of tiny-sd."""
    torch.manual_seed(0)
    made = {"sd": _sd, "sdxl": _sdxl, "sd3": _sd3, "flux": _flux}[family]()
    if family in ("sd", "sdxl"):
        made.scheduler.register_to_config(prediction_type=prediction)
    else:
        made.vae.register_to_config(shift_factor=0.05)
    for part in made.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    made.set_progress_bar_config(disable=True)
    return made


def _texts() -> tuple[Any, Any]:
    words = tokenizer()
    return words, parts.text_encoder(len(words), words.eos_token_id)


def _projected(words: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    plain = parts.text_encoder(len(words), words.eos_token_id).config.to_dict()
    return CLIPTextModelWithProjection(CLIPTextConfig(**{**plain, "projection_dim": 128}))


def _sd() -> Any:
    from diffusers import StableDiffusionPipeline

    words, text = _texts()
    return StableDiffusionPipeline(
        vae=parts.vae(), text_encoder=text, tokenizer=words, unet=parts.unet(), scheduler=parts.scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _sdxl() -> Any:
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

    words, text = _texts()
    config = {key: value for key, value in parts.unet().config.items() if not key.startswith("_")}
    config |= {
        "cross_attention_dim": 256, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 128,
    }  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=parts.vae(), text_encoder=text, text_encoder_2=_projected(words), tokenizer=words, tokenizer_2=words,
        unet=UNet2DConditionModel(**config), scheduler=parts.scheduler(), add_watermarker=False,
    )  # fmt: skip


def _sd3() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    words = tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=4,
        joint_attention_dim=256, caption_projection_dim=64, pooled_projection_dim=256, out_channels=4,
        pos_embed_max_size=16,
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=parts.vae(),
        text_encoder=_projected(words), tokenizer=words, text_encoder_2=_projected(words), tokenizer_2=words,
        text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip


def _flux() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    words, text = _texts()
    t5 = T5EncoderModel(T5Config(vocab_size=len(words), d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=4))
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=4,
        joint_attention_dim=64, pooled_projection_dim=128, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    made = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=parts.vae(), text_encoder=text, tokenizer=words,
        text_encoder_2=t5, tokenizer_2=words, transformer=transformer,
    )  # fmt: skip
    made.default_sample_size = 16
    return made
