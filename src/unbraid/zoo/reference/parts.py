"""The parts of the reference pipelines, without weights."""

from __future__ import annotations

from typing import Any

from unbraid.zoo.reference import LATENTS, LENGTH, SIDE

JOINT = 192  # of tiny-sd3's transformer
WIDTH = 128  # of words, and of tiny-clip's common space: an image's embedding can be added to a prompt's


def vae() -> Any:
    """An `AutoencoderKL` from 3 x 64 x 64 to 4 x 16 x 16, half a million weights."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 48),
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=8,
        sample_size=SIDE,
    )


def text_encoder(tokens: int, end: int) -> Any:
    """A `CLIPTextModel`.

    Args:
        tokens: of the tokenizer.
        end: number of its end token.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(**_text(tokens, end)))


def unet() -> Any:
    """A `UNet2DConditionModel` on latents of 16 x 16, with cross-attention at 16, 8 and 4, in 4 heads."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=SIDE // 4,
        in_channels=LATENTS,
        out_channels=LATENTS,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(48, 96, 128),
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # diffusers' old word for the number of heads
    )


def scheduler() -> Any:
    """DDIM with Stable Diffusion's noise, v-prediction as in 2.1."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def projected_text(tokens: int, end: int) -> Any:
    """A `CLIPTextModelWithProjection`, the first of tiny-sd3's text encoders.

    Args:
        tokens: of the tokenizer.
        end: number of its end token.
    """
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(CLIPTextConfig(**_text(tokens, end)))


def text_of(model: Any) -> Any:
    """The words' half of a `CLIPModel` as a `CLIPTextModelWithProjection`, with copies of its weights."""
    from transformers import CLIPTextModelWithProjection

    made = CLIPTextModelWithProjection(model.config.text_config).to(model.dtype)
    known = model.state_dict()
    made.load_state_dict({key: known[key] for key in made.state_dict()})
    return made.eval()


def silent(tokens: int) -> Any:
    """A `T5EncoderModel` whose every output is zero: what tiny-sd3 has in the place of T5.

    A `StableDiffusion3Pipeline` without T5 hears zeros too, but then `from_pretrained(folder)` asks for what is not
    there; with this one it needs no further words.

    Args:
        tokens: of its tokenizer.
    """
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=tokens, d_model=2 * WIDTH, d_kv=8, num_heads=1, d_ff=8, num_layers=1)
    made = T5EncoderModel(config).eval()
    for weight in made.parameters():  # all of them, so that what is packed twice is the same file twice
        weight.data.zero_()
    return made


def joint() -> Any:
    """An `SD3Transformer2DModel`: joint attention over words and the 8 x 8 patches of latents, in 4 heads.

    Each block begins as nothing (adaLN-zero, arXiv 2212.09748), which diffusers leaves to who trains.
    """
    from diffusers import SD3Transformer2DModel

    made: Any = SD3Transformer2DModel(
        sample_size=SIDE // 4,
        patch_size=2,
        in_channels=LATENTS,
        out_channels=LATENTS,
        num_layers=6,
        num_attention_heads=4,
        attention_head_dim=JOINT // 4,
        caption_projection_dim=JOINT,
        joint_attention_dim=2 * WIDTH,  # words of both encoders side by side
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=SIDE // 8,
        qk_norm="rms_norm",
    )
    quiet = [made.norm_out.linear, made.proj_out]
    for block in made.transformer_blocks:
        quiet += [block.norm1.linear, block.norm1_context.linear]
    for layer in quiet:
        for weight in layer.parameters():
            weight.data.zero_()
    return made


def flow() -> Any:
    """Straight paths from noise to images, in Euler's steps."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)


def clip(tokens: int, end: int) -> Any:
    """A `CLIPModel`: 3 layers for words, 4 for patches of 8 x 8.

    Args:
        tokens: of the tokenizer.
        end: number of its end token.
    """
    from transformers import CLIPConfig, CLIPModel

    vision = {
        "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 4, "num_attention_heads": 4,
        "image_size": SIDE, "patch_size": 8, "projection_dim": WIDTH,
    }  # fmt: skip
    config = CLIPConfig(text_config=_text(tokens, end), vision_config=vision, projection_dim=WIDTH)
    return CLIPModel(config)


def _text(tokens: int, end: int) -> dict[str, Any]:
    return {
        "vocab_size": tokens, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": LENGTH, "projection_dim": WIDTH,
        "bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end,
    }  # fmt: skip
