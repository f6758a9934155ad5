"""The two forms of mixing that need no matrix of pairs: a polynomial of the logits, and pooling by keys alone.

Both go through the text in blocks, so memory grows with length, not its square: pooling carries a sum from block to
block; so does the polynomial for long texts, while for short ones a block of queries meets all keys before it, which is
less work. With gradients, what a block of the polynomial makes is made again on the way back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from unbraid.core.errors import UnbraidError

BLOCK = 128
# times D² tokens: a query meets half of N keys, 2 D products each, or writes and reads D²/2 features of D columns
EVEN = 1
Form = Callable[[Tensor], Tensor]


def taylor(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor | None = None, *, joint: bool = True, block: int = BLOCK,
    carry: bool | None = None, state: list[Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """Causal attention with the exponential's polynomial of second order, 1 + u + u²/2 with u = q·k / √d.

    Args:
        query: [B, H, N, D].
        key: [B, H, N, D].
        value: [B, H, N, E].
        keys: [B, N], False where a key is padding; None: all count.
        joint: one sum of weights under all three orders, never below half the number of keys. False: each order under
            its own, as the paper prints; the first order's sum can be zero or negative there.
        block: of queries that are taken at once.
        carry: keys before the block come as one sum over D²/2 features, else each by itself; None: what is less work,
            the sum beyond D² tokens.
        state: sums of earlier tokens, empty before the first; changed in place. Its size does not depend on how many.

    Returns:
        [B, H, N, E]; zero for a query without a key.

    Raises:
        UnbraidError: block is below 1, or shapes do not fit.

    Reference:
        arXiv 2510.11602, "Approximate", Eqs. 14-17; joint weights as in Based (Arora et al. 2024).
    """
    _check(query, key, value, keys, block)
    scale = query.shape[-1] ** -0.25
    q, k = query.float() * scale, key.float() * scale
    with_count = torch.cat([value.float(), torch.ones_like(value[..., :1], dtype=torch.float32)], -1)
    if keys is not None:
        with_count = with_count * keys[:, None, :, None].to(with_count.dtype)
    if carry is None or state is not None:
        carry = state is not None or q.shape[2] > EVEN * q.shape[-1] ** 2
    if joint:
        orders: list[tuple[Form, Form]] = [(lambda u: 1 + u + u * u / 2, _all_orders)]
    else:
        orders = [
            (torch.ones_like, lambda x: torch.ones_like(x[..., :1]).mT),
            (lambda u: u, lambda x: x.mT),
            (torch.square, _pairs),
        ]  # fmt: skip
    parts, before = [], [None for _ in orders] if not state else list(state)
    if state is not None:
        state.clear()
    for (weight, features), carried in zip(orders, before, strict=True):
        one, carried = _summed(q, k, with_count, weight, features if carry else None, block, carried, state is not None)
        if state is not None and carried is not None:
            state.append(carried)
        above, below = one[..., :-1], one[..., -1:]
        parts.append(torch.where(below == 0, 0.0, above / torch.where(below == 0, 1.0, below)))
    return torch.stack(parts).sum(0).to(value.dtype)


def _pairs(x: Tensor) -> Tensor:
    """[..., n, D] to [..., D (D + 1) / 2, n], whose inner products are the squares of those of x."""
    return _products(x * 2**0.25, 0.5**0.5)


def _all_orders(x: Tensor) -> Tensor:
    """[..., n, D] to [..., (D + 1)(D + 2) / 2, n], whose inner products are 1 + u + u² / 2, u those of x."""
    return _products(torch.cat([torch.ones_like(x[..., :1]), x], -1), 1.0)


def _products(x: Tensor, first: float) -> Tensor:
    """All products of two entries, each pair once, those of an entry with itself over √2, but the first's by `first`.

    One row for each: whole rows are gathered ten times as fast as single numbers.
    """
    rows = x.mT.contiguous()
    left, right = torch.triu_indices(x.shape[-1], x.shape[-1], device=x.device)
    weight = torch.where(left == right, 0.5**0.5, 1.0).to(x.dtype)
    weight[0] = first
    return rows.index_select(-2, left) * rows.index_select(-2, right).mul_(weight[:, None])


def _summed(
    q: Tensor, k: Tensor, v: Tensor, weight: Form, features: Form | None, block: int, carried: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Sum over j up to i of weight(q_i·k_j) v_j, and the sum carried on; features(q)·features(k) = weight(q·k)."""
    outputs = []
    for start in range(0, q.shape[2], block):
        end = start + block
        first = 0 if features is None else start
        given = (q[:, :, start:end], k[:, :, first:end], v[:, :, first:end])
        here = _again(_pairwise, weight, start - first, *given)
        if features is not None:
            if carried is not None:
                here = here + _again(_read, features, given[0], carried)
            if keep or end < q.shape[2]:
                carried = _carry(features, carried, *given[1:])
        outputs.append(here)
    return torch.cat(outputs, 2), carried


def _pairwise(weight: Form, offset: int, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return weight(a @ b.transpose(-1, -2)).tril(offset) @ c


def _read(features: Form, a: Tensor, carried: Tensor) -> Tensor:
    return features(a).mT @ carried


def _carry(features: Form, carried: Tensor | None, b: Tensor, c: Tensor) -> Tensor:
    """The sum with some keys more: in place where no gradient needs it as it was, as it is most of what is touched."""
    if carried is None or torch.is_grad_enabled():
        more = _again(_written, features, b, c)
        return more if carried is None else carried + more
    # a view, never a copy; under autocast products have another dtype than what they are made of
    added = (x.flatten(0, 1).to(carried.dtype) for x in (features(b), c))
    carried.view(-1, *carried.shape[2:]).baddbmm_(*added)
    return carried


def _written(features: Form, b: Tensor, c: Tensor) -> Tensor:
    return features(b) @ c


def _again(form: Callable[..., Tensor], *given: Any) -> Tensor:
    """A result whose intermediate tensors are not kept for the way back."""
    if not torch.is_grad_enabled():
        return form(*given)
    return cast("Tensor", checkpoint(form, *given, use_reentrant=False, preserve_rng_state=False))


def pooled(
    score: Tensor, value: Tensor, keys: Tensor | None = None, *, block: int = BLOCK, state: list[Tensor] | None = None
) -> Tensor:
    """Mean of all values so far, weighed by a score that a key has by itself: softmax of scores up to each place.

    The greatest score so far is taken off before the exponential, so scores of thousands do no harm.

    Args:
        score: [B, H, N].
        value: [B, H, N, E].
        keys: [B, N], False where a key is padding; None: all count.
        block: places that meet as pairs.
        state: sum of earlier tokens and their greatest score, empty before the first; changed in place.

    Returns:
        [B, H, N, E]; zero for a place without a key.

    Raises:
        UnbraidError: block is below 1, or shapes do not fit.

    Reference:
        arXiv 2510.11602, "Non-approximate", Eqs. 7 and 18.
    """
    _check(score[..., None], score[..., None], value, keys, block)
    low = torch.finfo(torch.float32).min / 2
    s = score.float()
    if keys is not None:
        s = s.masked_fill(~keys[:, None].bool(), low)
    carried, at = state if state else (None, None)
    top = s.detach().cummax(-1).values
    if at is not None:
        top = torch.maximum(top, at)
    with_count = torch.cat([value.float(), torch.ones_like(value[..., :1], dtype=torch.float32)], -1)
    if keys is not None:
        with_count = with_count * keys[:, None, :, None].to(with_count.dtype)
    outputs = []
    for start in range(0, s.shape[2], block):
        part = slice(start, start + block)
        a, peak, c = s[:, :, part], top[:, :, part], with_count[:, :, part]
        # above the diagonal a later key may exceed the peak: cut before the exponential, which would overflow
        here = (a[:, :, None] - peak[..., None]).clamp(max=0.0).exp().tril() @ c
        if carried is not None and at is not None:
            here = here + (at - peak).exp()[..., None] * carried[:, :, None]
        outputs.append(here)
        carried, at = here[:, :, -1], peak[:, :, -1:]
    if state is not None and carried is not None and at is not None:
        state[:] = [carried, at]
    total = torch.cat(outputs, 2)
    below = total[..., -1:]
    return torch.where(below == 0, 0.0, total[..., :-1] / torch.where(below == 0, 1.0, below)).to(value.dtype)


def _check(query: Tensor, key: Tensor, value: Tensor, keys: Tensor | None, block: int) -> None:
    if block < 1:
        raise UnbraidError(f"block is {block}; it must be at least 1.")
    if query.ndim != 4 or query.shape != key.shape or value.ndim != 4 or value.shape[:3] != query.shape[:3]:
        raise UnbraidError(
            f"queries {list(query.shape)}, keys {list(key.shape)} and values {list(value.shape)} do not fit: give "
            "[B, H, N, D] twice (a score: [B, H, N]) and [B, H, N, E]."
        )
    if keys is not None and keys.shape != (query.shape[0], query.shape[2]):
        raise UnbraidError(f"keys has shape {list(keys.shape)}; it must be {[query.shape[0], query.shape[2]]}.")
