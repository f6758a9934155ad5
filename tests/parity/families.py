"""Tiny models of every family that must give the numbers of its own eager attention, with inputs and the reference.

Each builder returns a `Family`: a model with random weights, keyword inputs (batch 2, padded where the family pads),
and a function that runs the model's own eager code and returns site -> probabilities [B, H, Q, K].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Reference = Callable[[], dict[str, Tensor]]


@dataclass
class Family:
    model: nn.Module
    inputs: dict
    reference: Reference
    kinds: dict[str, str]
    rows: Tensor | None = None  # [B, n] bool: query tokens that are compared (padded ones are undefined)

    def run(self):
        return self.model(**self.inputs)


def logits_of(output) -> Tensor:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple):
        return output[0]
    for name in ("logits", "last_hidden_state", "sample"):
        if output.get(name) is not None:
            return output[name]
    raise AssertionError(type(output))


def eager(model: nn.Module, inputs: dict, sites: Callable[[object], dict[str, Tensor]]) -> Reference:
    """Reference from `output_attentions=True` of the model's own eager functions."""

    def run() -> dict[str, Tensor]:
        before = model.config._attn_implementation
        model.set_attn_implementation("eager")
        try:
            with torch.no_grad():
                return sites(model(**inputs, output_attentions=True))
        finally:
            model.set_attn_implementation(before)

    return run


def text(vocab: int = 99, n: int = 21, pad: str | None = "left", seed: int = 1) -> tuple[dict, Tensor]:
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocab, (2, n), generator=g)
    mask = torch.ones_like(ids)
    if pad == "left":
        mask[0, :5] = 0
    elif pad == "right":
        mask[0, -5:] = 0
    return {"input_ids": ids, **({"attention_mask": mask} if pad else {})}, mask.bool()


def build(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for p in model.parameters():
        if p.dim() > 1:
            nn.init.normal_(p, std=0.15)  # large enough that attention is not uniform
    return model.eval()


def decoder(config_name: str, model_name: str, pattern: str, pad: str | None = "left", **config) -> Family:
    import transformers

    base = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "vocab_size": 99, "max_position_embeddings": 128,
    }  # fmt: skip
    cfg = getattr(transformers, config_name)(**{**base, **config})
    model = build(getattr(transformers, model_name)(cfg))
    inputs, rows = text(pad=pad)

    def sites(out) -> dict[str, Tensor]:
        return {pattern.format(i): a for i, a in enumerate(out.attentions)}

    return Family(
        model,
        inputs,
        eager(model, inputs, sites),
        {pattern.format(i): "self" for i in range(cfg.num_hidden_layers)},
        rows,
    )


def t5(pad: str | None = "right") -> Family:
    from transformers import T5Config, T5ForConditionalGeneration

    model = build(
        T5ForConditionalGeneration(
            T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=99, decoder_start_token_id=0)
        )
    )
    inputs, _ = text(pad=pad)
    inputs["decoder_input_ids"] = torch.randint(3, 99, (2, 7), generator=torch.Generator().manual_seed(2))
    names = {}
    for i in range(2):
        names[f"encoder.block.{i}.layer.0.SelfAttention"] = "self"
        names[f"decoder.block.{i}.layer.0.SelfAttention"] = "self"
        names[f"decoder.block.{i}.layer.1.EncDecAttention"] = "cross"

    def sites(out) -> dict[str, Tensor]:
        found = {}
        for i in range(2):
            found[f"encoder.block.{i}.layer.0.SelfAttention"] = out.encoder_attentions[i]
            found[f"decoder.block.{i}.layer.0.SelfAttention"] = out.decoder_attentions[i]
            found[f"decoder.block.{i}.layer.1.EncDecAttention"] = out.cross_attentions[i]
        return found

    return Family(model, inputs, eager(model, inputs, sites), names)


def whisper() -> Family:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    cfg = WhisperConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=99, num_mel_bins=8, max_source_positions=25,
        max_target_positions=32, decoder_start_token_id=1, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = build(WhisperForConditionalGeneration(cfg))
    g = torch.Generator().manual_seed(3)
    inputs = {
        "input_features": torch.randn(2, 8, 50, generator=g),
        "decoder_input_ids": torch.randint(3, 99, (2, 7), generator=g),
    }
    kinds = {}
    for i in range(2):
        kinds[f"model.encoder.layers.{i}.self_attn"] = "self"
        kinds[f"model.decoder.layers.{i}.self_attn"] = "self"
        kinds[f"model.decoder.layers.{i}.encoder_attn"] = "cross"

    def sites(out) -> dict[str, Tensor]:
        found = {}
        for i in range(2):
            found[f"model.encoder.layers.{i}.self_attn"] = out.encoder_attentions[i]
            found[f"model.decoder.layers.{i}.self_attn"] = out.decoder_attentions[i]
            found[f"model.decoder.layers.{i}.encoder_attn"] = out.cross_attentions[i]
        return found

    return Family(model, inputs, eager(model, inputs, sites), kinds)


def vision(kind: str) -> Family:
    from transformers import CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTModel

    size = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    model = build(CLIPVisionModel(CLIPVisionConfig(**size)) if kind == "clip" else ViTModel(ViTConfig(**size)))
    inputs = {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))}
    names = [
        n for n, m in model.named_modules() if type(m).__name__ in ("CLIPAttention", "ViTAttention", "ViTSelfAttention")
    ]
    names = [n for n in names if not any(o != n and o.startswith(n + ".") for o in names)]

    def sites(out) -> dict[str, Tensor]:
        return dict(zip(names, out.attentions, strict=True))

    return Family(model, inputs, eager(model, inputs, sites), dict.fromkeys(names, "self"))


def bert() -> Family:
    from transformers import BertConfig, BertModel

    model = build(
        BertModel(
            BertConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=99)
        )
    )
    inputs, rows = text(pad="right")
    names = [n for n, m in model.named_modules() if type(m).__name__ == "BertSelfAttention"]

    def sites(out) -> dict[str, Tensor]:
        return dict(zip(names, out.attentions, strict=True))

    return Family(model, inputs, eager(model, inputs, sites), dict.fromkeys(names, "self"), rows)


def llava() -> Family:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    cfg = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=32,
            patch_size=8,
        ),
        text_config=LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=99,
        ),
        image_token_index=98, image_seq_length=16, vision_feature_layer=-1,
    )  # fmt: skip
    model = build(LlavaForConditionalGeneration(cfg))
    g = torch.Generator().manual_seed(5)
    ids = torch.cat([torch.full((2, 16), 98), torch.randint(3, 90, (2, 6), generator=g)], 1)
    inputs = {"input_ids": ids, "pixel_values": torch.randn(2, 3, 32, 32, generator=g)}
    names = [n for n, m in model.named_modules() if type(m).__name__ == "LlamaAttention"]
    eyes = [n for n, m in model.named_modules() if type(m).__name__ == "CLIPAttention"]

    def sites(out) -> dict[str, Tensor]:
        return dict(zip(names, out.attentions, strict=True))

    return Family(model, inputs, eager(model, inputs, sites), dict.fromkeys(names + eyes, "self"))


def deberta() -> Family:
    from transformers import DebertaV2Config, DebertaV2Model

    cfg = DebertaV2Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=99,
        relative_attention=True, pos_att_type=["c2p", "p2c"], position_biased_input=False, max_relative_positions=16,
    )  # fmt: skip
    model = build(DebertaV2Model(cfg))
    inputs, rows = text(pad="right")
    names = [n for n, m in model.named_modules() if type(m).__name__ == "DisentangledSelfAttention"]

    def run() -> dict[str, Tensor]:
        with torch.no_grad():
            return dict(zip(names, model(**inputs, output_attentions=True).attentions, strict=True))

    return Family(model, inputs, run, dict.fromkeys(names, "self"), rows)


def by_recording(model: nn.Module, inputs: dict, kinds: dict[str, str]) -> Family:
    """For models without an eager path: what they pass to torch's fused function, computed densely in float64."""

    def run() -> dict[str, Tensor]:
        seen: list[Tensor] = []
        plain = F.scaled_dot_product_attention

        def record(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
            q, k, v = query, key, value
            s = q.double() @ k.double().transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
            if attn_mask is not None:
                s = s.masked_fill(~attn_mask, -1e300) if attn_mask.dtype == torch.bool else s + attn_mask.double()
            if is_causal:
                s = s.masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool).triu(1), -1e300)
            seen.append(s.softmax(-1).float())
            return plain(q, k, v, attn_mask, dropout_p, is_causal, scale=scale)

        F.scaled_dot_product_attention = record
        try:
            with torch.no_grad():
                model(**inputs)
        finally:
            F.scaled_dot_product_attention = plain
        return dict(zip(kinds, seen, strict=True))

    return Family(model, inputs, run, kinds)


def unet() -> Family:
    from diffusers import UNet2DConditionModel

    model = build(
        UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=24, attention_head_dim=8, norm_num_groups=8,
        )
    )  # fmt: skip
    g = torch.Generator().manual_seed(6)
    inputs = {
        "sample": torch.randn(2, 4, 8, 8, generator=g),
        "timestep": torch.tensor(3),
        "encoder_hidden_states": torch.randn(2, 5, 24, generator=g),
    }
    order = {}
    for block in (
        "down_blocks.1.attentions.0",
        "mid_block.attentions.0",
        "up_blocks.0.attentions.0",
        "up_blocks.0.attentions.1",
    ):
        order[f"{block}.transformer_blocks.0.attn1"] = "self"
        order[f"{block}.transformer_blocks.0.attn2"] = "cross"
    return by_recording(model, inputs, order)


def sd3() -> Family:
    from diffusers import SD3Transformer2DModel

    model = build(
        SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
            joint_attention_dim=24, caption_projection_dim=32, pooled_projection_dim=16, out_channels=4,
        )
    )  # fmt: skip
    g = torch.Generator().manual_seed(7)
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8, generator=g),
        "encoder_hidden_states": torch.randn(2, 5, 24, generator=g),
        "pooled_projections": torch.randn(2, 16, generator=g),
        "timestep": torch.tensor([3.0, 3.0]),
    }
    return by_recording(model, inputs, {f"transformer_blocks.{i}.attn": "joint" for i in range(2)})


def flux() -> Family:
    from diffusers import FluxTransformer2DModel

    model = build(
        FluxTransformer2DModel(
            patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8),
        )
    )  # fmt: skip
    g = torch.Generator().manual_seed(8)
    inputs = {
        "hidden_states": torch.randn(2, 16, 4, generator=g),
        "encoder_hidden_states": torch.randn(2, 5, 24, generator=g),
        "pooled_projections": torch.randn(2, 16, generator=g),
        "timestep": torch.tensor([0.3, 0.3]),
        "img_ids": torch.randn(16, 3, generator=g),
        "txt_ids": torch.zeros(5, 3),
    }
    return by_recording(
        model, inputs, {"transformer_blocks.0.attn": "joint", "single_transformer_blocks.0.attn": "joint"}
    )


class TorchBlock(nn.Module):
    """A user's own encoder-decoder of PyTorch's layers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
        self.cross = nn.MultiheadAttention(32, 4, batch_first=True, kdim=24, vdim=24)

    def forward(self, x: Tensor, memory: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        x = self.encoder(x, src_key_padding_mask=key_padding_mask)
        return x + self.cross(x, memory, memory, need_weights=True)[0]


def mha() -> Family:
    torch.manual_seed(0)
    model = TorchBlock().eval()
    g = torch.Generator().manual_seed(9)
    pad = torch.zeros(2, 11, dtype=torch.bool)
    pad[0, -3:] = True
    inputs = {
        "x": torch.randn(2, 11, 32, generator=g),
        "memory": torch.randn(2, 6, 24, generator=g),
        "key_padding_mask": pad,
    }

    def run() -> dict[str, Tensor]:
        with torch.no_grad():
            x, m = inputs["x"], inputs["memory"]
            _, first = model.encoder.self_attn(
                x, x, x, key_padding_mask=pad, need_weights=True, average_attn_weights=False
            )
            torch.backends.mha.set_fastpath_enabled(False)
            try:
                h = model.encoder(x, src_key_padding_mask=pad)
            finally:
                torch.backends.mha.set_fastpath_enabled(True)
            _, second = model.cross(h, m, m, need_weights=True, average_attn_weights=False)
        return {"encoder.self_attn": first, "cross": second}

    return Family(model, inputs, run, {"encoder.self_attn": "self", "cross": "cross"})


LLAMA = "model.layers.{}.self_attn"
FAMILIES: dict[str, Callable[[], Family]] = {
    "llama-mha": lambda: decoder("LlamaConfig", "LlamaForCausalLM", LLAMA),
    "llama-gqa": lambda: decoder("LlamaConfig", "LlamaForCausalLM", LLAMA, num_key_value_heads=2),
    "llama-nopad": lambda: decoder("LlamaConfig", "LlamaForCausalLM", LLAMA, pad=None, num_key_value_heads=2),
    "llama-right": lambda: decoder("LlamaConfig", "LlamaForCausalLM", LLAMA, pad="right", num_key_value_heads=1),
    "gpt2": lambda: decoder(
        "GPT2Config", "GPT2LMHeadModel", "transformer.h.{}.attn", n_embd=64, n_layer=2, n_head=4, n_positions=64
    ),
    "mistral-window": lambda: decoder(
        "MistralConfig", "MistralForCausalLM", LLAMA, num_key_value_heads=2, sliding_window=6, head_dim=16
    ),
    "gemma2-softcap": lambda: decoder(
        "Gemma2Config", "Gemma2ForCausalLM", LLAMA, num_key_value_heads=2, head_dim=16, sliding_window=6,
        attn_logit_softcapping=2.0, attn_implementation="eager",
    ),
    "gemma3": lambda: decoder(
        "Gemma3TextConfig", "Gemma3ForCausalLM", LLAMA, num_key_value_heads=1, head_dim=16, sliding_window=6
    ),
    "gpt-oss": lambda: decoder(
        "GptOssConfig", "GptOssForCausalLM", LLAMA, num_key_value_heads=2, head_dim=16, num_local_experts=2,
        num_experts_per_tok=1, sliding_window=6, attn_implementation="eager",
    ),
    "bert": bert,
    "t5": t5,
    "whisper": whisper,
    "clip-vision": lambda: vision("clip"),
    "vit": lambda: vision("vit"),
    "llava": llava,
    "deberta-v2": deberta,
    "unet": unet,
    "sd3": sd3,
    "flux": flux,
    "torch-mha": mha,
}  # fmt: skip
