"""Disentangled attention a head and some queries at a time: all of a step stays in the processor's cache.

With keys in reversed order the row that a query i and a key j look up is ``where[i + j]``: a view of the vector of rows
with strides (1, 1). So no index of pairs is made, nor anything else that grows with the square of the length. The
backward pass makes each block anew, as fused kernels do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 128  # queries at a time; 64 to 256 were equally fast
KEPT = 512  # up to this length probabilities are kept for the backward pass, beyond they are made again


class _Head:
    """Logits of one head of one text, block by block.

    Args:
        q: queries, [n, d].
        k: keys in reversed order, [m, d].
        c2p: what queries meet, [d, R], or None.
        p2c: what keys meet, [d, R], or None.
        where: [n + m - 1], row of a distance.
        unseen: keys that are padding, [m] of bool in reversed order, or None.
    """

    def __init__(
        self, q: Tensor, k: Tensor, c2p: Tensor | None, p2c: Tensor | None, where: Tensor, unseen: Tensor | None
    ) -> None:
        self.q, self.k, self.where, self.unseen = q, k, where, unseen
        self.c2p, self.p2c = c2p, p2c

    def index(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Rows that queries [count, m] and keys [m, count] look up."""
        m, at = len(self.k), self.where.storage_offset() + start
        return self.where.as_strided((count, m), (1, 1), at), self.where.as_strided((m, count), (1, 1), at)

    def blocks(self, known: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Queries, and their probabilities [count, m]; as they are in ``known`` [n, m], if given."""
        if known is not None:
            yield from ((slice(i, i + BLOCK), known[i : i + BLOCK]) for i in range(0, len(self.q), BLOCK))
            return
        asked = None if self.c2p is None else self.q @ self.c2p
        answered = None if self.p2c is None else self.k @ self.p2c
        if answered is not None and self.unseen is not None:
            answered[self.unseen] = torch.finfo(self.q.dtype).min
        for start in range(0, len(self.q), BLOCK):
            some = slice(start, min(start + BLOCK, len(self.q)))
            forth, back = self.index(start, some.stop - start)
            logits = self.q[some] @ self.k.T
            if asked is not None:
                logits += asked[some].gather(1, forth)
            if answered is not None:
                logits += answered.gather(1, back).T
            elif self.unseen is not None:
                logits[:, self.unseen] = torch.finfo(logits.dtype).min
            yield some, torch.softmax(logits, -1)


class _Blockwise(torch.autograd.Function):
    """Queries, keys, values [B, H, n or m, d], tables [H, R, d], -> [B, H, n, d]."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, c2p: Tensor | None, p2c: Tensor | None, where: Tensor,
        seen: Tensor | None, drop: float, keep: bool,
    ) -> Tensor:  # fmt: skip
        """Saves its inputs, and the probabilities of a short text if asked to."""
        ctx.drop, ctx.chance = drop, torch.empty((), dtype=torch.int64).random_().item() if drop else 0
        known = q.new_empty(*q.shape[:3], k.shape[2], dtype=_wide(q)) if keep else None
        ctx.save_for_backward(q, k, v, c2p, p2c, where, seen, known)
        out = q.new_zeros(*q.shape[:3], v.shape[-1])
        generator = _generator(ctx, q.device)
        for part in _parts(q, k, v, c2p, p2c, where, seen):
            made = out[part.text, part.head, part.rows]
            for some, probs in part.logits.blocks():
                kept = _dropped(probs, drop, generator)
                if known is not None:
                    known[part.text, part.head, part.rows, part.keys][some] = probs
                made[some] = (probs if kept is None else probs * kept) @ part.values
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Any:
        """Block by block again, with the same places dropped."""
        q, k, v, c2p, p2c, where, seen, known = ctx.saved_tensors
        made = [torch.zeros(x.shape, dtype=_wide(x), device=x.device) for x in (q, k, v)]
        tables = [None if x is None else torch.zeros(x.shape, dtype=_wide(x), device=x.device) for x in (c2p, p2c)]
        generator = _generator(ctx, q.device)
        for part in _parts(q, k, v, c2p, p2c, where, seen):
            b, h, head, values = part.text, part.head, part.logits, part.values
            dq, dk, dv = made[0][b, h, part.rows], torch.zeros_like(head.k), torch.zeros_like(values)
            up = slope[b, h, part.rows].to(values.dtype)
            dforth = None if c2p is None else head.q.new_zeros(len(head.q), c2p.shape[1])
            dback = None if p2c is None else head.q.new_zeros(len(head.k), p2c.shape[1])
            for some, probs in head.blocks(None if known is None else known[b, h, part.rows, part.keys]):
                kept = _dropped(probs, ctx.drop, generator)
                dv += (probs if kept is None else probs * kept).T @ up[some]
                down = up[some] @ values.T
                if kept is not None:
                    down *= kept
                down -= (down * probs).sum(-1, keepdim=True)
                down *= probs
                dq[some] += down @ head.k
                dk += down.T @ head.q[some]
                forth, back = head.index(some.start, len(down))
                if dforth is not None:
                    dforth[some].scatter_add_(1, forth, down)
                if dback is not None:
                    dback.scatter_add_(1, back, down.T)
            if dforth is not None:
                dq += dforth @ c2p[h].to(dforth.dtype)
                tables[0][h] += dforth.T @ head.q  # type: ignore[index]
            if dback is not None:
                dk += dback @ p2c[h].to(dback.dtype)
                tables[1][h] += dback.T @ head.k  # type: ignore[index]
            made[1][b, h, part.keys], made[2][b, h, part.keys] = dk.flip(0), dv.flip(0)
        found = [*made, *tables]
        given = (q, k, v, c2p, p2c)
        return (*(None if x is None else x.to(g.dtype) for x, g in zip(found, given, strict=True)), *[None] * 4)


def attend(
    query: Tensor, key: Tensor, value: Tensor, c2p: Tensor | None, p2c: Tensor | None, where: Tensor,
    seen: Tensor | None, drop: float = 0.0,
) -> Tensor:  # fmt: skip
    """Attention with both terms of position, exact, its memory linear in the length.

    Args:
        query: scaled, [B, H, n, d].
        key: [B, H, m, d].
        value: [B, H, m, d].
        c2p: positions that queries meet, [H, R, d], or None.
        p2c: positions that keys meet, scaled, [H, R, d], or None.
        where: [n + m - 1] on the same device, row of `c2p` and `p2c` for each distance from -(m - 1).
        seen: keys that are not padding, [B, m] of bool; None: all.
        drop: share of probabilities that are dropped; drawn from torch's generator.

    Returns:
        [B, H, n, d]. Texts without any key get the mean of their values.
    """
    with torch.autocast(query.device.type, enabled=False):
        slopes = torch.is_grad_enabled() and any(
            x is not None and x.requires_grad for x in (query, key, value, c2p, p2c)
        )
        keep = slopes and query.shape[2] * key.shape[2] <= KEPT**2
        return _Blockwise.apply(query, key, value, c2p, p2c, where, seen, drop, keep)


def _wide(x: Tensor) -> torch.dtype:
    """Half precision is computed in single."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


@dataclass
class _Part:
    """One head of one text, without its padding where that is at its ends.

    Attributes:
        text: its number.
        head: its number.
        rows: queries that are computed.
        keys: keys that are computed.
        logits: what makes them.
        values: in reversed order, [m, d].
    """

    text: int
    head: int
    rows: slice
    keys: slice
    logits: _Head
    values: Tensor


def _parts(
    q: Tensor, k: Tensor, v: Tensor, c2p: Tensor | None, p2c: Tensor | None, where: Tensor, seen: Tensor | None
) -> Iterator[_Part]:
    """All heads of all texts; a head's tables stay in the cache for all texts."""
    n, m = q.shape[2], k.shape[2]
    spans = [_span(None if seen is None else seen[b], n, m) for b in range(len(q))]
    for h in range(q.shape[1]):
        tables = [None if x is None else x[h].to(_wide(q)).T.contiguous() for x in (c2p, p2c)]
        for b, (rows, keys, unseen) in enumerate(spans):
            here = where[m - _size(keys) :]  # distances from -(keys - 1)
            one = q[b, h, rows].to(_wide(q))
            two, values = (x[b, h, keys].to(_wide(q)).flip(0) for x in (k, v))
            yield _Part(b, h, rows, keys, _Head(one, two, tables[0], tables[1], here, unseen), values)


def _size(some: slice) -> int:
    return int(some.stop - some.start)


def _span(seen: Tensor | None, n: int, m: int) -> tuple[slice, slice, Tensor | None]:
    """Queries and keys to compute, and which of these keys are padding, in reversed order."""
    if seen is None or bool(seen.all()) or not bool(seen.any()):
        return slice(0, n), slice(0, m), None
    places = seen.nonzero()[:, 0]
    first, last = int(places[0]), int(places[-1]) + 1
    if n != m:
        return slice(0, n), slice(0, m), (~seen).flip(0)
    some = slice(first, last)
    return some, some, None if len(places) == last - first else (~seen[some]).flip(0)


def _generator(ctx: Any, device: torch.device) -> torch.Generator | None:
    return torch.Generator(device).manual_seed(ctx.chance) if ctx.drop else None


def _dropped(like: Tensor, drop: float, generator: torch.Generator | None) -> Tensor | None:
    if generator is None:
        return None
    # four draws of 16 bits from each random number: torch's own dropout takes longer than all else here
    words = torch.empty((like.numel() + 3) // 4, dtype=torch.int64, device=like.device)
    words.random_(-(2**63), None, generator=generator)
    kept = words.view(torch.int16)[: like.numel()].view_as(like) >= round(drop * 2**16) - 2**15
    return kept.to(like.dtype).mul_(1 / (1 - drop))
