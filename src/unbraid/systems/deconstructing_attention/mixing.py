"""The two forms of mixing that need no matrix of pairs: a polynomial of the logits, and pooling by keys alone.

Both go through the text in blocks and carry a sum from block to block, so memory grows with length, not its square.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from unbraid.core.errors import UnbraidError

BLOCK = 128
Form = Callable[[Tensor], Tensor]


def taylor(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor | None = None, *, joint: bool = True, block: int = BLOCK
) -> Tensor:
    """Causal attention with the exponential's polynomial of second order, 1 + u + u²/2 with u = q·k / √d.

    Args:
        query: [B, H, N, D].
        key: [B, H, N, D].
        value: [B, H, N, E].
        keys: [B, N], False where a key is padding; None: all count.
        joint: one sum of weights under all three orders, never below half the number of keys. False: each order under
            its own, as the paper prints; the first order's sum can be zero or negative there.
        block: queries and keys that meet as pairs; what lies before comes as a sum over D² features.

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
    if joint:
        sums = [_summed(q, k, with_count, lambda u: 1 + u + u * u / 2, _all_orders, block)]
    else:
        orders: list[tuple[Form, Form]] = [
            (torch.ones_like, lambda x: torch.ones_like(x[..., :1])),
            (lambda u: u, lambda x: x),
            (torch.square, _pairs),
        ]  # fmt: skip
        sums = [_summed(q, k, with_count, weight, features, block) for weight, features in orders]
    parts = []
    for one in sums:
        above, below = one[..., :-1], one[..., -1:]
        parts.append(torch.where(below == 0, 0.0, above / torch.where(below == 0, 1.0, below)))
    return torch.stack(parts).sum(0).to(value.dtype)


def _pairs(x: Tensor) -> Tensor:
    return (x[..., :, None] * x[..., None, :]).flatten(-2)


def _all_orders(x: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(x[..., :1]), x, _pairs(x) / 2**0.5], -1)


def _summed(q: Tensor, k: Tensor, v: Tensor, weight: Form, features: Form, block: int) -> Tensor:
    """Sum over j up to i of weight(q_i·k_j) v_j, where weight(q·k) = features(q)·features(k)."""
    outputs, carried = [], None
    for start in range(0, q.shape[2], block):
        a, b, c = (x[:, :, start : start + block] for x in (q, k, v))
        here = weight(a @ b.transpose(-1, -2)).tril() @ c
        if carried is not None:
            here = here + features(a) @ carried
        outputs.append(here)
        if start + block < q.shape[2]:
            more = features(b).transpose(-1, -2) @ c
            carried = more if carried is None else carried + more
    return torch.cat(outputs, 2)


def pooled(score: Tensor, value: Tensor, keys: Tensor | None = None, *, block: int = BLOCK) -> Tensor:
    """Mean of all values so far, weighed by a score that a key has by itself: softmax of scores up to each place.

    The greatest score so far is taken off before the exponential, so scores of thousands do no harm.

    Args:
        score: [B, H, N].
        value: [B, H, N, E].
        keys: [B, N], False where a key is padding; None: all count.
        block: places that meet as pairs.

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
    top = s.detach().cummax(-1).values
    with_count = torch.cat([value.float(), torch.ones_like(value[..., :1], dtype=torch.float32)], -1)
    if keys is not None:
        with_count = with_count * keys[:, None, :, None].to(with_count.dtype)
    outputs, carried, at = [], None, None
    for start in range(0, s.shape[2], block):
        part = slice(start, start + block)
        a, peak, c = s[:, :, part], top[:, :, part], with_count[:, :, part]
        # above the diagonal a later key may exceed the peak: cut before the exponential, which would overflow
        here = (a[:, :, None] - peak[..., None]).clamp(max=0.0).exp().tril() @ c
        if carried is not None and at is not None:
            here = here + (at - peak).exp()[..., None] * carried[:, :, None]
        outputs.append(here)
        carried, at = here[:, :, -1], peak[:, :, -1:]
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
