"""Putting a variant into a transformers model: it trains, saves and loads like any other part of the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from unbraid.core.blocks import blocks, heads_of
from unbraid.core.errors import UnbraidError
from unbraid.systems.attention_sinks.variants.base import Sizes, Variant
from unbraid.systems.attention_sinks.variants.catalogue import LOSSLESS, REGISTERS, make_variant
from unbraid.systems.attention_sinks.variants.registers import Registers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "unbraid_variant"
SETTING = "unbraid_attention"
UNKNOWN = ("softcap", "s_aux", "position_bias")


def convert(model: PreTrainedModel, name: str, *, lossless: bool = False, **options: Any) -> PreTrainedModel:
    """Replaces the softmax attention of every block, in place.

    Args:
        model: a transformers language model whose attention goes through `AttentionInterface` (Llama, Qwen, Mistral,
            GPT-2, ...), pretrained or not.
        name: of the variant, see `describe_variants`.
        lossless: start so that the outputs do not change, where the variant can.
        options: of the variant.

    Returns:
        The same model. New parameters are part of its `state_dict`; `config.unbraid_attention` remembers name and
        options, so that `load_converted` reads what `save_pretrained` wrote.

    Raises:
        UnbraidError: unknown variant or option, a model that has been converted, or one whose attention cannot be
            replaced.
    """
    if SETTING in vars(model.config):
        raise UnbraidError(
            f"This model has been converted to {vars(model.config)[SETTING]['name']!r} already; load it anew."
        )
    if model.get_output_embeddings() is None or model.config.is_encoder_decoder:
        raise UnbraidError(f"{type(model).__name__} is no causal language model; only decoders can be converted.")
    if lossless:
        if name not in LOSSLESS:
            raise UnbraidError(f"{name} has no lossless start; choose from {', '.join(LOSSLESS)}, then fine-tune.")
        options = {**LOSSLESS[name], **options}
    if name == REGISTERS:
        _registers(model, options)
    else:
        _replace(model, name, options)
    vars(model.config)[SETTING] = {"name": name, "options": options}
    return model


def _replace(model: PreTrainedModel, name: str, options: dict[str, Any]) -> None:
    stack, shapes = blocks(model), heads_of(model)
    hidden = int(_embedding(model).shape[1])
    kind = next(model.parameters())
    made = [make_variant(name, Sizes(s.heads, s.key_heads, s.width, hidden), **options) for s in shapes]
    _register()
    try:
        model.set_attn_implementation(NAME)
    except ValueError as error:
        raise UnbraidError(
            f"{type(model).__name__} does not take its attention from transformers' AttentionInterface, so it cannot "
            f"be replaced ({error})."
        ) from None
    for block, variant in zip(stack, made, strict=True):
        block.attention.add_module("variant", variant.to(device=kind.device, dtype=kind.dtype))
        block.attention.register_forward_pre_hook(_keep_source, with_kwargs=True)


def _registers(model: PreTrainedModel, options: dict[str, Any]) -> None:
    body = model.get_decoder() if model.get_decoder() is not None else model.base_model
    weight = _embedding(model)
    wrong = [o for o in options if o not in ("count", "std")]
    if wrong:
        raise UnbraidError(f"registers has no option {wrong[0]!r}; it has count, std.")
    Registers(weight.shape[1], **options).to(device=weight.device, dtype=weight.dtype).install(body)


def _embedding(model: PreTrainedModel) -> Tensor:
    return dict(model.get_input_embeddings().named_parameters())["weight"]


def load_converted(folder: str | Path, **options: Any) -> PreTrainedModel:
    """Reads a converted model that `save_pretrained` wrote.

    Args:
        folder: where it is.
        options: for the model class' `from_config` (dtype).

    Raises:
        UnbraidError: the folder holds no converted model.
    """
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    setting = vars(config).pop(SETTING, None)
    path = Path(folder) / "model.safetensors"
    if setting is None or not path.is_file():
        raise UnbraidError(
            f"{folder} holds no converted model (config.{SETTING} and model.safetensors are looked for)."
        )
    vars(config)["_attn_implementation_internal"] = None
    model = convert(AutoModelForCausalLM.from_config(config, **options), setting["name"], **setting["options"])
    model.load_state_dict(load_file(path), strict=False)
    model.tie_weights()
    return model.eval()


def variants_of(model: nn.Module) -> list[Variant]:
    """The variants in a converted model, in order of depth."""
    return [m for m in model.modules() if isinstance(m, Variant)]


@contextmanager
def recording(model: nn.Module) -> Iterator[list[list[Tensor]]]:
    """Keeps the weights [B, H, Q, K] of every call while open: small texts only, as these are whole maps.

    Yields:
        A list per block, to which a tensor is added by every call.

    Raises:
        UnbraidError: the model has no variant in it.
    """
    found = variants_of(model)
    if not found:
        raise UnbraidError(
            "This model has no variant in it; convert it first (convert(model, 'softmax') changes nothing)."
        )
    kept: list[list[Tensor]] = [[] for _ in found]
    for variant, store in zip(found, kept, strict=True):
        variant.record = store
    try:
        yield kept
    finally:
        for variant in found:
            variant.record = None


def _keep_source(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    variant = dict(module.named_children())["variant"]
    assert isinstance(variant, Variant)
    variant.source = args[0] if args else kwargs["hidden_states"]


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    # without a mask function of the same name transformers drops the padding mask in silence
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, **rest: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    odd = [k for k in UNKNOWN if rest.get(k) is not None]
    if odd:
        raise UnbraidError(f"{type(module).__name__} hands over {odd[0]}, which no variant of attention takes.")
    variant = dict(module.named_children())["variant"]
    assert isinstance(variant, Variant)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    y = variant(query, key, value, attention_mask, scale, dropout if module.training else 0.0)
    variant.source = None
    return y.transpose(1, 2).contiguous(), None
