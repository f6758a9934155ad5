"""What redistribution is made of, without the matrix: mass on keys m_i = sum A_is and writes o_S,i = sum A_is v_s."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from unbraid.core.calls import Ask, AttentionCall
from unbraid.core.engine import fused
from unbraid.core.engine.rows import budget, sweep
from unbraid.core.errors import UnbraidError
from unbraid.systems.attention_sinks.detection.collect import sink_writes
from unbraid.systems.attention_sinks.detection.layout import one_hot_columns
from unbraid.taps.edit_base import Keys, key_mask

FLOOR = 1e-3  # least mass that may be divided by; rows with less are left as they are


def first_tokens(attention_mask: Tensor, count: int = 1) -> Callable[[AttentionCall], Tensor]:
    """The first tokens of left-padded texts as keys for any tap: of each row, its first `count` real tokens.

    Args:
        attention_mask: [B, n] of the prompt; what is generated afterwards is no padding.
        count: how many.

    Example:
        >>> scale_sinks(0.5, first_tokens(inputs["attention_mask"]))
    """
    real = attention_mask.bool()
    if not bool(real.any(-1).all()):
        raise UnbraidError("a text of the batch has no token (its attention_mask is all 0); leave it out.")
    at = real.to(torch.uint8).argmax(-1)

    def marks(c: AttentionCall) -> Tensor:
        slots = torch.arange(c.keys, device=c.device)
        first = at.to(c.device)[:, None]
        return (slots >= first) & (slots < first + count)

    return marks


def marked(keys: Keys, c: AttentionCall) -> Tensor:
    """[B, K] bool of some keys of a call."""
    found = key_mask(keys, c)
    return (found[None] if found.dim() == 1 else found).expand(c.batch, -1)


def under(c: AttentionCall, values: Tensor) -> Tensor:
    """P @ values, [B, H, Q, g] in float32, by a fused kernel where the call allows one, else by row blocks.

    Args:
        c: a call with queries and keys.
        values: [B|1, 1|G|H, K, g].
    """
    heads = values if values.shape[1] != 1 else values.expand(-1, c.key.shape[1], -1, -1)
    if fused.can_fuse(c):
        return fused.attend(c, heads.float())
    answer, _, _ = sweep(c, Ask(), [c.expand(heads.float())], budget(c.device))
    assert answer.moments is not None
    return answer.moments


def mass_and_write(c: AttentionCall, marks: Tensor) -> tuple[Tensor, Tensor]:
    """(mass [B, H, Q], write [B, H, Q, V]) of marked keys [B, K]; a column per key where they are few.

    Args:
        c: a call with queries, keys and values.
        marks: [B, K] bool.
    """
    if int(marks.sum(-1).max()) <= c.value.shape[-1]:
        columns, index, real = one_hot_columns(marks)
        p = under(c, columns)
        return p.sum(-1), sink_writes(c, p, index, real)
    return mass_and_write_of(c, marks[:, None])


def mass_and_write_of(c: AttentionCall, marks: Tensor) -> tuple[Tensor, Tensor]:
    """The same for keys that may differ by head, [B, 1 or H, K] bool."""
    values = c.value.expand(c.batch, -1, -1, -1).float()
    if marks.shape[1] > 1:
        values = c.expand(values)
    weight = marks.to(values)[..., None]
    both = under(c, torch.cat([values * weight, weight.expand(*values.shape[:-1], 1)], -1))
    return both[..., -1], both[..., :-1]


def total_mass(c: AttentionCall, like: Tensor) -> Tensor:
    """Mass of each row [B, H, Q]: 1, or less where a sink logit takes some."""
    if c.sinks is None:
        return torch.ones_like(like)
    return under(c, torch.ones(1, 1, c.keys, 1, device=c.device))[..., 0]


def uniform_over(c: AttentionCall, marks: Tensor) -> tuple[Tensor, Tensor]:
    """(mean value of the marked keys that each query may see [B, H, Q, V], whether it sees any [B, H, Q] bool)."""
    mask = c.mask if c.mask is None or c.mask.dtype == torch.bool else c.mask > -1e29
    bias = torch.zeros(marks.shape, device=c.device).masked_fill_(~marks, -torch.inf)[:, None]
    flat = c.replace(query=torch.zeros_like(c.query), mask=mask, sinks=None, softcap=None, key_bias=bias)
    values = c.value.expand(c.batch, -1, -1, -1).float()
    both = under(flat, torch.cat([values, torch.ones_like(values[..., :1])], -1))
    return both[..., :-1], both[..., -1] > 0.5
