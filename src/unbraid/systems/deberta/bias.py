"""The two terms of position in DeBERTa's logits, without an index tensor per head or a copy per sequence.

Shapes: ``B`` sequences, ``H`` heads of width ``d``, ``n`` queries, ``m`` keys, ``R`` rows of the table in reach.
Queries and keys are [B, H, n or m, d], already scaled; positions are [H, R, d]; a bias is [B, H, n, m].
"""

from __future__ import annotations

import torch
from torch import Tensor


def table(x: Tensor, positions: Tensor) -> Tensor:
    """Every token against every position, [B, H, n, d] and [H, R, d] -> [H, B, n, R]; one copy of the positions."""
    batch, heads, length, width = x.shape
    flat = x.transpose(0, 1).reshape(heads, batch * length, width)
    return torch.bmm(flat, positions.transpose(1, 2)).view(heads, batch, length, -1)


def skewed(found: Tensor, keys: int) -> Tensor:
    """[..., n, n + keys - 1] with columns ordered by (column less row) -> its [..., n, keys] band, a view."""
    *front, n, wide = found.shape
    found = found.contiguous()
    strides = [*found.stride()[:-2], wide - 1, 1]
    return found.as_strided([*front, n, keys], strides, found.storage_offset() + n - 1)


def skew(
    query: Tensor, key: Tensor, c2p: Tensor | None, p2c: Tensor | None, where: Tensor
) -> Tensor | None:  # fmt: skip
    """The bias by views: one column per distance is computed and then read along diagonals.

    Args:
        query: [B, H, n, d].
        key: [B, H, m, d].
        c2p: positions that queries meet, [H, R, d], or None.
        p2c: positions that keys meet, [H, R, d], or None.
        where: [n + m - 1], row of `c2p` and `p2c` for each distance from -(m - 1).

    Returns:
        [B, H, n, m], or None without either term.
    """
    n, m = query.shape[2], key.shape[2]
    found = None
    if c2p is not None:
        found = skewed(table(query, c2p.index_select(1, where.flip(0))), m).transpose(0, 1)
    if p2c is not None:
        other = skewed(table(key, p2c.index_select(1, where)), n).permute(1, 0, 3, 2)
        found = other if found is None else found + other
    return found


def gathered(
    query: Tensor, key: Tensor, c2p: Tensor | None, p2c: Tensor | None, rows: Tensor, columns: Tensor | None = None
) -> Tensor | None:
    """The bias by looking up: tokens meet the rows in reach, and each pair takes its own.

    Args:
        query: [B, H, n, d].
        key: [B, H, m, d].
        c2p: [H, R, d], or None.
        p2c: [H, R, d], or None.
        rows: [n, m] or [B, n, m], row of `c2p` of each pair.
        columns: the same of `p2c`; None: as `rows`.
    """
    found = None
    if c2p is not None:
        met = table(query, c2p)
        found = met.gather(-1, rows.expand(*met.shape[:2], *rows.shape[-2:])).transpose(0, 1)
    if p2c is not None:
        back = (rows if columns is None else columns).transpose(-1, -2)
        met = table(key, p2c)
        other = met.gather(-1, back.expand(*met.shape[:2], *back.shape[-2:])).permute(1, 0, 3, 2)
        found = other if found is None else found + other
    return found


def pairs(where: Tensor, n: int, m: int) -> Tensor:
    """Row for each distance, [n + m - 1] -> for each pair, [n, m]."""
    distance = torch.arange(n, device=where.device)[:, None] - torch.arange(m, device=where.device)
    return where[distance + m - 1]
