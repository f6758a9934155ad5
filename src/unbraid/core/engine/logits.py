"""Logits and probabilities of a block of query rows: the one place where masks, biases, caps and sinks are applied."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unbraid.core.calls import AttentionCall

HIDDEN = -1e30  # finite, so that 0 * HIDDEN is 0 and not NaN; below HIDDEN / 10 a row's maximum means "sees no key"
CHUNK = 64  # width of the first level of the two-level maximum; rows are padded to a multiple of it


@dataclass
class Operands:
    """Queries and keys in float32 and grouped, made once per call.

    query: [B, G, rep, Q, D], already scaled; key: [B, G, K, D]; with rep = H / G query heads per key head.
    """

    query: Tensor
    key: Tensor

    @classmethod
    def of(cls, c: AttentionCall) -> Operands:
        """Groups and scales a call's operands; float32 keys are not copied."""
        b, h, q, d = c.query.shape
        groups = c.key.shape[1]
        batch = max(b, c.key.shape[0])
        query = (c.query.float() * c.scale).reshape(b, groups, h // groups, q, d)
        return cls(query.expand(batch, -1, -1, -1, -1), c.key.float().expand(batch, -1, -1, -1))


def grouped(x: Tensor, groups: int, rep: int, b: slice, g: slice) -> Tensor:
    """A tensor [B|1, H|1, ...] as the part [b, g, rep|1, ...] of it that belongs to some batch rows and key heads."""
    x = x[b] if x.shape[0] > 1 else x
    if x.shape[1] == 1:
        return x.unsqueeze(2)
    return x.reshape(x.shape[0], groups, rep, *x.shape[2:])[:, g]


def apply_masks(
    s: Float[Tensor, "b g rep r width"], c: AttentionCall, rows: tuple[int, int], limit: int, b: slice, g: slice
) -> Float[Tensor, "b g rep r width"]:
    """Caps, biases and masks raw logits s = scale * q k of shape [b, g, rep, r, >= limit], in place.

    Columns from `limit` on are hidden. `rows` are the first and last + 1 query index of the block.
    """
    start, stop = rows
    groups, rep = c.heads // s.shape[2], s.shape[2]
    seen = s[..., :limit]
    if c.softcap is not None:
        seen.div_(c.softcap).tanh_().mul_(c.softcap)
    if c.key_bias is not None:
        bias = grouped(c.key_bias.float(), groups, rep, b, g)[..., None, :limit]
        seen.add_(bias.clamp(min=HIDDEN))
    if c.mask is not None:
        mask = c.mask
        while mask.dim() < 4:
            mask = mask.unsqueeze(0)
        mask = mask[:, :, start:stop] if mask.shape[2] > 1 else mask
        mask = mask[..., :limit] if mask.shape[3] > 1 else mask
        part = grouped(mask, groups, rep, b, g)
        if mask.dtype == torch.bool:
            seen.masked_fill_(~part, HIDDEN)
        else:
            seen.add_(part.float().clamp(min=HIDDEN))
    if c.causal and limit > start:
        future = torch.ones(stop - start, limit - start, dtype=torch.bool, device=s.device).triu_(1)
        seen[..., start:].masked_fill_(future, HIDDEN)
    s[..., limit:] = HIDDEN
    return s


def two_level_max(s: Float[Tensor, "*rows width"]) -> tuple[Float[Tensor, "*rows"], Float[Tensor, "*rows chunks"]]:
    """Row maxima and the maxima of each chunk of 64 columns; s is [..., width], width a multiple of 64.

    One vectorised pass instead of torch's maximum-with-index, which is four times slower on CPU.
    """
    chunks = s.unflatten(-1, (-1, CHUNK)).amax(-1)
    return chunks.amax(-1), chunks


def top_of(s: Float[Tensor, "*rows width"], chunks: Float[Tensor, "*rows chunks"], k: int) -> Int[Tensor, "*rows k"]:
    """Key indices [..., k] of the k largest logits per row, largest first; for k = 1 the lowest index among ties.

    The k largest values of a row lie in the k chunks with the largest maxima, so only these are sorted.
    """
    if k == 1:
        chunk = chunks.argmax(-1, keepdim=True)
        inside = s.unflatten(-1, (-1, CHUNK)).gather(-2, chunk[..., None].expand(*chunk.shape, CHUNK))
        return chunk * CHUNK + inside.squeeze(-2).argmax(-1, keepdim=True)
    wanted = chunks.topk(min(k, chunks.shape[-1]), -1).indices
    spread = wanted[..., None].expand(*wanted.shape, CHUNK)
    inside = s.unflatten(-1, (-1, CHUNK)).gather(-2, spread)
    best = inside.flatten(-2).topk(k, -1).indices
    return wanted.gather(-1, best // CHUNK) * CHUNK + best % CHUNK


def dense(c: AttentionCall, dtype: torch.dtype = torch.float32) -> Float[Tensor, "B H Q K"]:
    """P [B, H, Q, K] of a (small) call, differentiable: the definition that everything else is tested on.

    Rows that may see no key are zero. With sink logits the rows sum to less than one, as in the model.
    """
    if c.logits is not None:
        p = c.logits.to(dtype).clamp(min=HIDDEN)
    else:
        p = (c.query.to(dtype) * c.scale) @ c.expand(c.key).to(dtype).transpose(-1, -2)
    if c.softcap is not None:
        p = c.softcap * torch.tanh(p / c.softcap)
    if c.key_bias is not None:
        p = p + c.key_bias.to(dtype).clamp(min=HIDDEN)[..., None, :]
    if c.mask is not None:
        p = p.masked_fill(~c.mask, HIDDEN) if c.mask.dtype == torch.bool else p + c.mask.to(dtype).clamp(min=HIDDEN)
    if c.causal:
        future = torch.ones(c.queries, c.keys, dtype=torch.bool, device=p.device).triu_(1)
        p = p.masked_fill(future, HIDDEN)
    alive = p.amax(-1, keepdim=True) > HIDDEN / 10
    if c.sinks is not None:
        sink = c.sinks.to(dtype).reshape(1, -1, 1, 1).expand(*p.shape[:3], 1)
        p = torch.softmax(torch.cat([p, sink], -1), -1)[..., :-1]
    else:
        p = torch.softmax(p, -1)
    return torch.where(alive, p, 0.0)
