"""What all edits share: which heads, how strongly, in which phase; and what keys and masks mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor

from unbraid.core.calls import AttentionCall, Tap
from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadSet

Phase = Literal["all", "prefill", "decode"]
Keys = Iterable[int] | slice | Tensor | Callable[[AttentionCall], Tensor]


class Edit(Tap):
    """What all edits share: which heads, how strongly, and in which phase of generation.

    Args:
        heads: the heads to edit, None for all heads of the attached sites.
        amount: strength; 0 leaves the model as it is, bit for bit.
        phase: "decode" (a single query over several keys: a step of generation, cross-attention included), "prefill"
            (everything else), or "all".
    """

    def __init__(self, heads: HeadSet | None, amount: float, phase: Phase = "all") -> None:
        if heads is not None and not isinstance(heads, HeadSet):
            heads = HeadSet(heads)
        if phase not in ("all", "prefill", "decode"):
            raise UnbraidError(f"phase={phase!r} is unknown; choose 'all', 'prefill' or 'decode'.")
        if not math.isfinite(amount):
            raise UnbraidError(f"amount must be a finite number, not {amount}.")
        self.heads, self.amount, self.phase = heads, float(amount), phase

    def wants(self, c: AttentionCall) -> bool:
        """Also whether this is the right phase and there is anything to do."""
        decode = c.queries == 1 and c.keys > 1
        right = self.phase == "all" or (self.phase == "decode") == decode
        return self.amount != 0 and right and super().wants(c)

    def chosen(self, c: AttentionCall) -> list[int]:
        """Head numbers to edit at this site."""
        some = self.heads_at(c)
        return list(range(c.heads)) if some is None else some

    def blend(self, c: AttentionCall, y: Tensor, new: Tensor) -> Tensor:
        """y with the chosen heads moved towards `new` [B|1, chosen, Q, V] by `amount`."""
        pick = torch.as_tensor(self.chosen(c), device=y.device)
        old = y.index_select(1, pick)
        new = new.to(y.dtype).expand_as(old)
        mixed = new if self.amount == 1 else old + self.amount * (new - old)
        return y.index_copy(1, pick, mixed)


def hidden_only(bias: Tensor | None) -> Tensor | None:
    """Of a key bias, only what it hides."""
    return None if bias is None else torch.where(bias <= -1e19, bias, 0.0)


def first_visible(c: AttentionCall) -> Tensor:
    """[B|1, H|1, Q or 1] index of the first key that each query may see."""
    if c.mask is None:
        return torch.zeros(1, 1, 1, dtype=torch.int64, device=c.device)
    mask = c.mask if c.mask.dtype == torch.bool else c.mask > -1e29
    while mask.dim() < 4:
        mask = mask.unsqueeze(0)
    return mask.expand(*mask.shape[:3], c.keys).to(torch.uint8).argmax(-1)


def key_mask(keys: Keys, c: AttentionCall) -> Tensor:
    """[K] or [B, K] bool from positions (negative from the end), a slice, a bool vector or a function of the call."""
    if callable(keys):
        keys = keys(c)
    if isinstance(keys, Tensor) and keys.dtype == torch.bool:
        if keys.shape[-1] != c.keys:
            raise UnbraidError(f"The key mask has {keys.shape[-1]} entries, but {c.site!r} has {c.keys} keys.")
        return keys.to(c.device)
    hit = torch.zeros(c.keys, dtype=torch.bool, device=c.device)
    if isinstance(keys, slice):
        hit[keys] = True
        return hit
    for k in keys.tolist() if isinstance(keys, Tensor) else keys:
        if not -c.keys <= int(k) < c.keys:
            raise UnbraidError(f"Key {int(k)} does not exist at {c.site!r}, which has keys 0 to {c.keys - 1}.")
        hit[int(k)] = True
    return hit
