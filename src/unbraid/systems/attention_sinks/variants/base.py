"""What all variants share: the shapes, the mask, plain attention through the fused kernel, and rows in blocks.

Symbols: B batch, H query heads, G key/value heads, Q queries, K keys, D head width, N width of the layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

BLOCK = 256  # query rows whose weights are alive at once
CHECKPOINT_FROM = 1024  # keys from which training recomputes a block's weights rather than keep them


@dataclass(frozen=True)
class Sizes:
    """Of one attention: query heads, key/value heads, head width, layer width."""

    heads: int
    key_heads: int
    width: int
    hidden: int


class Variant(nn.Module):
    """One attention's replacement for softmax attention.

    A subclass says either how weights follow from logits (`weights`; computed in blocks of rows), or how the fused
    kernel gives the same (`attend`), and may do both: then `weights` is for looking, and a test holds them together.

    Attributes:
        sizes: of the attention it stands in.
        source: [B, Q, N] the layer's input, kept for gates by a hook while the layer runs.
        record: while a list, weights [B, H, Q, K] of every call are appended, detached.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.source: Tensor | None = None
        self.record: list[Tensor] | None = None

    def weights(self, z: Tensor, visible: Tensor) -> Tensor:
        """Weights [B, H, Q, K] from logits z; `visible` [B|1, 1, Q, K] says which keys a query may see.

        Rows may sum to less than one (what a sink column took), or to more (unnormalised variants).
        """
        return torch.nan_to_num(torch.softmax(z.masked_fill(~visible, -torch.inf), -1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float) -> Tensor:
        """[B, H, Q, D]; by default from `weights`, in blocks of rows."""
        return by_rows(self, q, k, v, mask, scale, dropout)

    def values(self, v: Tensor) -> Tensor:
        """What becomes of the values [B, H, K, D] before they are mixed."""
        return v

    def finish(self, y: Tensor) -> Tensor:
        """What becomes of the output [B, H, Q, D]."""
        return y

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float = 0.0
    ) -> Tensor:
        """Attention of q [B, H, Q, D] over k, v [B, G, K, D].

        Args:
            q: queries, rotated.
            k: keys, rotated.
            v: values.
            mask: None (causal when there are several queries), bool (True is seen) or added to the logits.
            scale: factor on the products.
            dropout: probability on the weights.
        """
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        v = self.values(v)
        if self.record is not None:
            with torch.no_grad():
                z, visible = logits(q, k, mask, scale, 0, q.shape[2])
                self.record.append(self.weights(z, visible).detach())
        return self.finish(self.attend(q, k, v, mask, scale, dropout))


def logits(q: Tensor, k: Tensor, mask: Tensor | None, scale: float, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Logits of some rows in float32 or wider, and which keys they may see."""
    kind = torch.promote_types(q.dtype, torch.float32)
    z = scale * (q[:, :, start:stop].to(kind) @ k.to(kind).transpose(-1, -2))
    if mask is None:
        # queries are the last of the keys, as with a cache
        at = torch.arange(start, stop, device=q.device) + k.shape[2] - q.shape[2]
        visible = torch.arange(k.shape[2], device=q.device) <= at[:, None]
        if q.shape[2] == 1:
            visible = torch.ones_like(visible)
        return z, visible[None, None]
    part = mask[..., start:stop, :] if mask.shape[-2] > 1 else mask
    if part.dtype == torch.bool:
        return z, part.expand(part.shape[0], part.shape[1], stop - start, k.shape[2])
    visible = part > torch.finfo(part.dtype).min / 2
    return z + torch.where(visible, part.to(kind), 0.0), visible


def by_rows(
    variant: Variant, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float
) -> Tensor:
    """Attention with any weights, a block of rows at a time; memory grows linearly with the keys, also in training."""

    def block(q: Tensor, k: Tensor, v: Tensor, start: int, stop: int) -> Tensor:
        z, visible = logits(q, k, mask, scale, start, stop)
        w = functional.dropout(variant.weights(z, visible), dropout)
        return (w.to(v.dtype) @ v).to(q.dtype)

    parts = []
    remember = torch.is_grad_enabled() and k.shape[2] >= CHECKPOINT_FROM
    for start in range(0, q.shape[2], BLOCK):
        stop = min(q.shape[2], start + BLOCK)
        if remember:
            parts.append(checkpoint(block, q, k, v, start, stop, use_reentrant=False))
        else:
            parts.append(block(q, k, v, start, stop))
    return torch.cat(parts, 2)


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float) -> Tensor:
    """Plain attention through torch's fused kernel; without a mask causal, queries being the last of the keys."""
    if mask is None and q.shape[2] not in (1, k.shape[2]):
        at = torch.arange(q.shape[2], device=q.device) + k.shape[2] - q.shape[2]
        mask = torch.arange(k.shape[2], device=q.device) <= at[:, None]
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None and q.shape[2] > 1, scale=scale
    )


def with_column(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float,
    key: Tensor, value: Tensor, logit: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Plain attention with one more key per head that every query sees, through the fused kernel.

    Args:
        q: [B, H, Q, D]; k, v [B, H, K, D].
        key: [H, D] of the extra column.
        value: [H, D] of the extra column.
        logit: [H] added to the column's logit; carried by one more feature, which is 1 in queries and 0 in other keys.
    """
    b, h, n, d = q.shape
    column, more = key.to(k.dtype).expand(b, h, d)[:, :, None], value.to(v.dtype).expand(b, h, d)[:, :, None]
    if logit is not None:
        q = torch.cat([q, q.new_ones(b, h, n, 1)], -1)
        k = torch.cat([k, k.new_zeros(b, h, k.shape[2], 1)], -1)
        carried = (logit.to(k.dtype) / scale).expand(b, h)[:, :, None, None]
        column = torch.cat([column, carried], -1)
        # values as wide as keys: the CPU's fused kernel takes no others
        v, more = functional.pad(v, (0, 1)), functional.pad(more, (0, 1))
    k, v = torch.cat([column, k], 2), torch.cat([more, v], 2)
    if mask is None and n > 1 and n + 1 == k.shape[2]:
        # a dummy query before the others keeps the kernel's own causality aligned
        q = torch.cat([torch.zeros_like(q[:, :, :1]), q], 2)
        y = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scale)[:, :, 1:]
    else:
        y = fused(q, k, v, _wider(mask, n, k.shape[2], q.device), scale, dropout)
    return y[..., :d]


def _wider(mask: Tensor | None, queries: int, keys: int, device: Any) -> Tensor | None:
    """The mask with one more column in front that everybody sees."""
    if mask is None:
        if queries == 1:
            return None
        at = torch.arange(queries, device=device) + keys - 1 - queries
        mask = torch.arange(keys - 1, device=device) <= at[:, None]
    return functional.pad(mask, (1, 0), value=True if mask.dtype == torch.bool else 0.0)
