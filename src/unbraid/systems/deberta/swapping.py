"""Replacing the attention of a loaded DeBERTa in place, and putting it back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

from torch import Tensor, nn
from transformers.models.deberta.modeling_deberta import DebertaEncoder
from transformers.models.deberta.modeling_deberta import DisentangledSelfAttention as FirstAttention
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Encoder
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention as SecondAttention

from unbraid.core.errors import UnbraidError
from unbraid.systems.deberta.attention import Backend, Quick, QuickFirst, QuickSecond
from unbraid.systems.deberta.caching import Cache
from unbraid.systems.deberta.positions import LongRange


class _Light:
    """An encoder that makes neither an index for each pair nor a mask of all pairs: the attention knows both."""

    def get_rel_pos(
        self, hidden_states: Tensor, query_states: Tensor | None = None, relative_pos: Tensor | None = None
    ) -> Tensor | None:
        """What the caller gave."""
        return relative_pos

    def get_attention_mask(self, attention_mask: Tensor) -> Tensor:
        """The same."""
        return attention_mask


class LightFirst(_Light, DebertaEncoder):
    """Of v1."""


class LightSecond(_Light, DebertaV2Encoder):
    """Of v2 and v3."""


_QUICK: dict[type, type] = {
    FirstAttention: QuickFirst, SecondAttention: QuickSecond, DebertaEncoder: LightFirst, DebertaV2Encoder: LightSecond,
}  # fmt: skip
_PLAIN = {quick: plain for plain, quick in _QUICK.items()}


def accelerate(model: nn.Module, backend: Backend = "auto", long_range: LongRange = "hf", cache: bool = True) -> Any:
    """Compute the attention of DeBERTa v1, v2 or v3 faster, in place; outputs, gradients and names of weights stay.

    Args:
        model: one of transformers' classes, or anything that holds one (a peft model, a sentence encoder).
        backend: "crop" looks up the rows in reach, "skew" reads diagonals, "blocks" never holds all pairs, "flex" is
            FlexAttention, "auto" the one that was measured to be fastest for the length.
        long_range: beyond the longest trained distance: "hf" is equal to transformers, "official" to Microsoft's code,
            which never uses rows that were not trained; the same up to that distance.
        cache: keep projected positions in evaluation.

    Returns:
        The model itself; `restore` undoes it.

    Raises:
        UnbraidError: there is no DeBERTa in it, it has talking heads, or a setting is unknown.
    """
    for name, value, known in (("backend", backend, Backend), ("long_range", long_range, LongRange)):
        if value not in get_args(known):
            raise UnbraidError(f"{name} is {value!r}; give one of {', '.join(get_args(known))}.")
    found = [m for m in model.modules() if isinstance(m, FirstAttention | SecondAttention)]
    if not found:
        raise UnbraidError(
            f"{type(model).__name__} has no DeBERTa attention; give a model of transformers' deberta or deberta-v2."
        )
    if any(getattr(m, "talking_head", False) for m in found):
        raise UnbraidError("talking heads mix the logits of all heads, which the faster attention never holds.")
    for module in model.modules():
        if type(module) in _QUICK:
            module.__class__ = _QUICK[type(module)]
        if isinstance(module, Quick):
            module.quick = {"backend": backend, "long_range": long_range, "cache": Cache(cache)}
    return model


def restore(model: nn.Module) -> Any:
    """The model with transformers' own attention again."""
    for module in model.modules():
        if type(module) in _PLAIN:
            module.__class__ = _PLAIN[type(module)]
            module.__dict__.pop("quick", None)
    return model


@contextmanager
def accelerated(model: nn.Module, **settings: Any) -> Iterator[Any]:
    """`accelerate` for a while; a model that was accelerated before has its own settings back."""
    before = [(m, type(m), vars(m).get("quick")) for m in model.modules() if type(m) in _QUICK or type(m) in _PLAIN]
    try:
        yield accelerate(model, **settings)
    finally:
        restore(model)
        for module, kind, quick in before:
            module.__class__ = kind
            if quick is not None:
                module.quick = quick
