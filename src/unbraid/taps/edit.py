"""Edits: what a head writes or where it looks, changed while the model runs. Strength 0 is the identity, to the bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from unbraid.core.calls import AttentionCall, Tap
from unbraid.core.engine import fused
from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadSet
from unbraid.taps.edit_base import Edit, Keys, Phase, first_visible, hidden_only, key_mask

Target = Literal["zero", "mean", "uniform", "first"]
PerSite = Mapping[str, Tensor] | Callable[[AttentionCall], Tensor]


class Ablate(Edit):
    """See `ablate`."""

    def __init__(
        self, heads: HeadSet | None, to: Target, mean: Mapping[str, Tensor] | None, amount: float, phase: Phase
    ) -> None:
        super().__init__(heads, amount, phase)
        if to not in ("zero", "mean", "uniform", "first"):
            raise UnbraidError(f"ablate(to={to!r}) is unknown; choose 'zero', 'mean', 'uniform' or 'first'.")
        if to == "mean" and mean is None:
            raise UnbraidError(
                "ablate(to='mean') needs mean=outputs.mean, from a run with taps.Outputs() on your data."
            )
        self.to, self.mean = to, mean

    def out(self, c: AttentionCall, y: Tensor) -> Tensor:
        """Replaces the output of the heads; no pattern is computed."""
        heads = self.chosen(c)
        if not heads:
            return y
        if self.to == "zero":
            return self.blend(c, y, y.new_zeros(1, 1, 1, 1))
        if self.to == "mean":
            assert self.mean is not None
            if c.site not in self.mean:
                raise UnbraidError(f"ablate(to='mean'): mean= has no entry for {c.site!r}.")
            return self.blend(c, y, self.mean[c.site].to(y.device)[heads][None, :, None])
        part = c.select(heads).replace(softcap=None, sinks=None)
        if self.to == "uniform":
            if part.mask is not None and part.mask.dtype != torch.bool:
                part = part.replace(mask=part.mask > -1e29)
            part = part.replace(query=torch.zeros_like(part.query), key_bias=hidden_only(part.key_bias))
            return self.blend(c, y, fused.attend(part, part.value.to(y.dtype)))
        first = first_visible(part)
        values = part.value.expand(c.batch, -1, -1, -1)
        index = first[..., None].expand(c.batch, len(heads), -1, values.shape[-1])
        return self.blend(c, y, values.gather(2, index.expand(-1, -1, c.queries, -1)))

    def out_as_rows(self, c: AttentionCall, p: Tensor, start: int) -> Tensor:
        """The same in probabilities, for the softmax seam."""
        seen = (p > 0).to(p.dtype)
        if self.to == "zero":
            new = torch.zeros_like(p)
        elif self.to == "uniform":
            new = seen / seen.sum(-1, keepdim=True).clamp(min=1)
        elif self.to == "first":
            new = torch.nn.functional.one_hot(seen.argmax(-1), p.shape[-1]).to(p.dtype)
        else:
            raise UnbraidError(
                "ablate(to='mean') needs head outputs, which the softmax seam does not show; use 'zero'."
            )
        pick = self.chosen(c)
        out = p.clone()
        out[:, pick] = p[:, pick] + self.amount * (new[:, pick] - p[:, pick])
        return out


class Scale(Edit):
    """See `scale`."""

    def __init__(self, heads: HeadSet | None, factor: float, phase: Phase) -> None:
        super().__init__(heads, 1.0 - factor, phase)
        self.factor = float(factor)

    def out(self, c: AttentionCall, y: Tensor) -> Tensor:
        """Multiplies the output of the heads."""
        pick = torch.as_tensor(self.chosen(c), device=y.device, dtype=torch.int64)
        return y.index_copy(1, pick, y.index_select(1, pick) * self.factor)

    def out_as_rows(self, c: AttentionCall, p: Tensor, start: int) -> Tensor:
        """The same in probabilities."""
        factor = torch.ones(c.heads, device=p.device, dtype=p.dtype)
        factor[self.chosen(c)] = self.factor
        return p * factor[None, :, None, None]


class ToIdentity(Edit):
    """See `to_identity`."""

    def out(self, c: AttentionCall, y: Tensor) -> Tensor:
        """(1 - amount) P V + amount V: the identity's output is the value at the query's own place."""
        self._check(c)
        own = c.select(self.chosen(c)).value[:, :, c.offset : c.offset + c.queries]
        return self.blend(c, y, own)

    def out_as_rows(self, c: AttentionCall, p: Tensor, start: int) -> Tensor:
        """The same in probabilities."""
        self._check(c)
        r = torch.arange(p.shape[2], device=p.device)
        eye = torch.zeros_like(p[:, :1])
        eye[:, :, r, c.offset + start + r] = 1.0
        pick, out = self.chosen(c), p.clone()
        out[:, pick] = p[:, pick] + self.amount * (eye - p[:, pick])
        return out

    def _check(self, c: AttentionCall) -> None:
        if c.kind == "cross" or c.offset + c.queries > c.keys:
            raise UnbraidError(
                f"to_identity needs self-attention; {c.site!r} is {c.kind}. Choose other sites or heads."
            )


class KeyBias(Edit):
    """See `bias` and `allow`: a number added to the logits of some keys, the same for every query."""

    def __init__(
        self, keys: Keys, value: float, heads: HeadSet | None, phase: Phase, invert: bool, amount: float
    ) -> None:
        super().__init__(heads, amount, phase)
        self.keys, self.value, self.invert = keys, value, invert

    def call(self, c: AttentionCall) -> AttentionCall:
        """Adds to the call's key bias; memory stays linear."""
        hit = key_mask(self.keys, c)
        hit = ~hit if self.invert else hit
        bias = torch.zeros(hit.shape, device=c.device).masked_fill_(hit, self.value)
        bias = bias.reshape(-1, 1, c.keys) if bias.dim() < 3 else bias
        if self.heads is not None:
            some = torch.zeros(c.heads, device=c.device, dtype=torch.bool)
            some[self.chosen(c)] = True
            bias = torch.where(some[None, :, None], bias, 0.0)
        return c.replace(key_bias=bias if c.key_bias is None else c.key_bias + bias)


class Allow(Edit):
    """See `allow`, for masks that differ by query."""

    def __init__(self, mask: Tensor, heads: HeadSet | None, amount: float, phase: Phase) -> None:
        super().__init__(heads, amount, phase)
        self.mask = mask

    def call(self, c: AttentionCall) -> AttentionCall:
        """Joins the mask to the call's own."""
        mask = self.mask.to(c.device)
        while mask.dim() < 4:
            mask = mask.unsqueeze(0)
        if mask.shape[-2:] != (c.queries, c.keys):
            raise UnbraidError(
                f"allow(mask) is {mask.shape[-2]} x {mask.shape[-1]}, but the attention of {c.site!r} is {c.queries} x "
                f"{c.keys}."
            )
        if self.heads is not None:
            some = torch.zeros(c.heads, device=c.device, dtype=torch.bool)
            some[self.chosen(c)] = True
            mask = mask | ~some[None, :, None, None]
        old = c.mask
        if self.amount == 1 and (old is None or old.dtype == torch.bool):
            return c.replace(mask=mask if old is None else old & mask)
        strength = math.log1p(-self.amount) if self.amount < 1 else torch.finfo(torch.float32).min
        dtype = torch.float32 if c.query is None else c.query.dtype
        added = torch.zeros(mask.shape, device=c.device, dtype=dtype).masked_fill_(
            ~mask, max(strength, torch.finfo(dtype).min)
        )
        if old is None:
            return c.replace(mask=added)
        if old.dtype == torch.bool:
            return c.replace(mask=added.masked_fill(~old, torch.finfo(dtype).min))
        return c.replace(mask=(old + added).clamp(min=torch.finfo(dtype).min))


class Patch(Edit):
    """See `patch`."""

    def __init__(
        self, outputs: PerSite, heads: HeadSet | None, positions: Iterable[int] | None, amount: float, phase: Phase
    ) -> None:
        super().__init__(heads, amount, phase)
        self.outputs = outputs
        self.positions = None if positions is None else list(positions)

    def out(self, c: AttentionCall, y: Tensor) -> Tensor | None:
        """Puts given outputs in the place of the heads' own."""
        if callable(self.outputs):
            new = self.outputs(c)
        elif c.site in self.outputs:
            new = self.outputs[c.site]
        else:
            return None
        new = new.to(y)
        if new.shape[1:] != y.shape[1:] or new.shape[0] not in (1, y.shape[0]):
            raise UnbraidError(
                f"patch: outputs for {c.site!r} are {tuple(new.shape)}, but the model makes {tuple(y.shape)} "
                "(batch, heads, queries, width)."
            )
        out = self.blend(c, y, new[:, self.chosen(c)])
        if self.positions is None:
            return out
        keep = y.clone()
        keep[:, :, self.positions] = out[:, :, self.positions]
        return keep


class Extra(Edit):
    """See `extra`."""

    def __init__(self, key: PerSite, value: PerSite, weight: float, heads: HeadSet | None, phase: Phase) -> None:
        super().__init__(heads, weight, phase)
        self.key, self.value = key, value

    def out(self, c: AttentionCall, y: Tensor) -> Tensor | None:
        """y + weight * softmax(scale q k') v'."""
        key, value = (x(c) if callable(x) else x.get(c.site) for x in (self.key, self.value))
        if key is None or value is None:
            return None
        if key.dim() != 4 or key.shape[-1] != c.query.shape[-1] or key.shape[2] != value.shape[2]:
            raise UnbraidError(
                f"extra: keys {tuple(key.shape)} and values {tuple(value.shape)} do not fit {c.site!r}, with heads "
                f"{c.query.shape[-1]} wide; give [batch, heads, tokens, width] each."
            )
        more = c.replace(
            key=key.to(c.query), value=value.to(c.query), mask=None, causal=False, key_bias=None, sinks=None
        )
        added = fused.attend(more.replace(softcap=None), more.value)
        pick = torch.as_tensor(self.chosen(c), device=y.device)
        return y.index_add(1, pick, added.index_select(1, pick).to(y.dtype), alpha=self.amount)


class Replace(Edit):
    """See `replace`."""

    def __init__(
        self, function: Callable[[AttentionCall], Tensor], heads: HeadSet | None, amount: float, phase: Phase
    ) -> None:
        super().__init__(heads, amount, phase)
        self.function = function

    def out(self, c: AttentionCall, y: Tensor) -> Tensor:
        """The function's output in the place of the heads' own."""
        new = self.function(c)
        if new.shape != y.shape:
            raise UnbraidError(
                f"replace: the function returned {tuple(new.shape)} at {c.site!r}, not {tuple(y.shape)} "
                "(batch, heads, queries, width)."
            )
        return self.blend(c, y, new[:, self.chosen(c)])


def ablate(
    heads: HeadSet | None,
    to: Target = "zero",
    *,
    mean: Mapping[str, Tensor] | None = None,
    amount: float = 1.0,
    phase: Phase = "all",
) -> Tap:
    """Takes away what heads write; the replacement for transformers' removed `head_mask` and `prune_heads`.

    Args:
        heads: which heads; None for every head of the attached sites.
        to: "zero", "mean" (of a data set, from `Outputs().mean`), "uniform" (the mean of all values in sight), or
            "first" (the value of the first key in sight: the attention sink).
        mean: site -> [H, V], for to="mean".
        amount: 1 replaces, smaller ones blend.
        phase: "all", "prefill" or "decode".
    """
    return Ablate(heads, to, mean, amount, phase)


def scale(heads: HeadSet | None, factor: float, *, phase: Phase = "all") -> Tap:
    """Multiplies what heads write by a factor; 1 is the identity."""
    return Scale(heads, factor, phase)


def to_identity(heads: HeadSet | None = None, amount: float = 1.0, *, phase: Phase = "all") -> Tap:
    """Moves attention towards the identity map: P becomes (1 - amount) P + amount I (perturbed-attention guidance)."""
    return ToIdentity(heads, amount, phase)


def bias(keys: Keys, amount: float, heads: HeadSet | None = None, *, phase: Phase = "all") -> Tap:
    """Adds `amount` to the logits of keys: positive ones draw attention, in nats. Memory stays linear."""
    return KeyBias(keys, amount, heads, phase, False, amount)


def allow(
    mask: Tensor | Iterable[int] | slice, heads: HeadSet | None = None, amount: float = 1.0, *, phase: Phase = "all"
) -> Tap:
    """Lets queries see allowed keys only.

    Args:
        mask: key positions, a slice or bool [K] (linear memory), or bool [..., Q, K] that differs by query.
        heads: which heads; None for all.
        amount: 1 hides the rest, a smaller one multiplies its weight by (1 - amount) before normalising.
        phase: "all", "prefill" or "decode".
    """
    if not 0 <= amount <= 1:
        raise UnbraidError(f"allow(amount={amount}) must lie between 0 and 1.")
    if isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.dim() >= 2:
        return Allow(mask, heads, amount, phase)
    hidden = math.log1p(-amount) if amount < 1 else -math.inf
    return KeyBias(mask, hidden, heads, phase, True, amount)


def patch(
    outputs: PerSite,
    heads: HeadSet | None = None,
    *,
    positions: Iterable[int] | None = None,
    amount: float = 1.0,
    phase: Phase = "all",
) -> Tap:
    """Puts outputs of another run in the place of heads' own (activation patching).

    Args:
        outputs: site -> [B|1, H, Q, V] (as `Outputs(keep="last")` keeps them), or a function of the call.
        heads: which heads; None for all.
        positions: query positions to patch; None for all.
        amount: 1 replaces, smaller ones blend.
        phase: "all", "prefill" or "decode".
    """
    return Patch(outputs, heads, positions, amount, phase)


def extra(key: PerSite, value: PerSite, weight: float, heads: HeadSet | None = None, *, phase: Phase = "all") -> Tap:
    """Adds weight times the attention to further keys and values (decoupled attention, as image prompts use it).

    Args:
        key: site -> [B|1, G or H, m, D], or a function of the call.
        value: site -> [B|1, G or H, m, V], or a function of the call.
        weight: factor of the added output.
        heads: which heads; None for all.
        phase: "all", "prefill" or "decode".
    """
    return Extra(key, value, weight, heads, phase)


def replace(
    function: Callable[[AttentionCall], Tensor],
    heads: HeadSet | None = None,
    amount: float = 1.0,
    *,
    phase: Phase = "all",
) -> Tap:
    """Replaces the whole mechanism: `function(call)` returns the output [B, H, Q, V]."""
    return Replace(function, heads, amount, phase)
