"""Row blocks: every statistic in one sweep over blocks of query rows, at most a few megabytes of probabilities alive.

On two CPU cores the sweep that answers entropy, arg-max, received attention and masses costs less than one more fused
attention call (figures: results/benchmarks): grouped heads are stacked into one product, the maximum is taken in two
levels, and softmax runs inside the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from unbraid.core.calls import Answer, Ask, AttentionCall
from unbraid.core.engine.logits import CHUNK, HIDDEN, Operands, apply_masks, top_of, two_level_max

BLOCK_ELEMENTS = {"cpu": 1 << 21}  # logits alive per block; measured from 512 to 4,096 tokens
BLOCK_ELEMENTS_GPU = 1 << 26
MAX_ROWS = 256


@dataclass
class Block:
    """One rectangle of the sweep: batch rows b, key heads g, query rows start..stop-1, keys 0..limit-1."""

    b: slice
    g: slice
    start: int
    stop: int
    limit: int


def budget(device: torch.device, memory: int | None = None) -> int:
    """Logits that may be alive in one block, from a byte budget (two float32 buffers) or the device's default."""
    if memory is not None:
        return max(CHUNK, memory // 8)
    return BLOCK_ELEMENTS.get(device.type, BLOCK_ELEMENTS_GPU)


def pad(width: int) -> int:
    """The next multiple of the chunk width."""
    return -(-width // CHUNK) * CHUNK


def blocks(c: AttentionCall, groups: int, elements: int) -> Iterator[Block]:
    """Cuts a call into blocks of at most `elements` logits (one row of one key head at least)."""
    batch, heads, rows = block_shape(c.batch, groups, c.heads // groups, c.queries, c.keys, elements)
    for b in range(0, c.batch, batch):
        for g in range(0, groups, heads):
            for start in range(0, c.queries, rows):
                stop = min(c.queries, start + rows)
                limit = min(c.keys, stop) if c.causal else c.keys
                yield Block(slice(b, min(c.batch, b + batch)), slice(g, min(groups, g + heads)), start, stop, limit)


def block_shape(batch: int, groups: int, rep: int, queries: int, keys: int, elements: int) -> tuple[int, int, int]:
    """(batch rows, key heads, query rows) of a block of at most `elements` logits; a small call is a single block."""
    per_row = rep * pad(keys)
    if batch * groups * per_row * queries <= elements:
        return batch, groups, queries
    rows = min(queries, MAX_ROWS, max(1, elements // per_row))
    rows = rows if rows < 64 else rows // 64 * 64
    return 1, max(1, min(groups, elements // (per_row * rows))), rows


class Buffers:
    """Two reusable float32 buffers for logits and probabilities, as large as the largest block."""

    def __init__(self, device: torch.device, size: int) -> None:
        self._store = {name: torch.empty(size, device=device) for name in ("s", "p")}

    def get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A contiguous view of the buffer; what it held before is lost."""
        return self._store[name][: torch.Size(shape).numel()].view(shape)


def block_logits(c: AttentionCall, operands: Operands | None, block: Block, buffers: Buffers) -> Tensor:
    """Masked logits of a block, [b, g, rep, r, width], width a multiple of 64, hidden entries at HIDDEN."""
    r, width = block.stop - block.start, pad(block.limit)
    if operands is None:  # softmax seam: the model made the logits itself
        part = c.logits[block.b, block.g, block.start : block.stop]  # type: ignore[index]
        s = buffers.get("s", (part.shape[0], part.shape[1], 1, r, width))
        s[..., : block.limit] = part.float().clamp(min=HIDDEN)[:, :, None]
        s[..., block.limit :] = HIDDEN
        return s
    q = operands.query[block.b, block.g, :, block.start : block.stop]
    k = operands.key[block.b, block.g, : block.limit]
    nb, ng, rep, _, d = q.shape
    s = buffers.get("s", (nb, ng, rep, r, width))
    flat = s.view(nb * ng, rep * r, width)
    torch.bmm(
        q.reshape(nb * ng, rep * r, d),
        k.reshape(nb * ng, block.limit, d).transpose(1, 2),
        out=flat[..., : block.limit],
    )
    return apply_masks(s, c, (block.start, block.stop), block.limit, block.b, block.g)


@dataclass
class Columns:
    """Values E of all asks together, sorted by how cheaply P @ E can be had.

    spans: (column, start, stop) where the column is the indicator of consecutive keys; shared: other columns that all
    heads share, as rows [g, K padded]; own: columns per batch row and head [B|1, H|1, K, g].
    """

    total: int
    spans: list[tuple[int, int, int]] = field(default_factory=list)
    shared_at: list[int] = field(default_factory=list)
    shared: Tensor | None = None
    own: list[tuple[int, Tensor]] = field(default_factory=list)

    @classmethod
    def of(cls, asked: list[Tensor], keys: int) -> Columns:
        """Sorts the columns of every ask; the answer keeps the order of the asks."""
        out, shared = cls(total=0), []
        for e in asked:
            if e.dim() == 2:
                for j in range(e.shape[1]):
                    column = e[:, j].float()
                    span = _span(column)
                    if span is not None:
                        out.spans.append((out.total + j, *span))
                    else:
                        out.shared_at.append(out.total + j)
                        shared.append(column)
            else:
                out.own.append((out.total, e.float()))
            out.total += e.shape[-1]
        if shared:
            out.shared = torch.nn.functional.pad(torch.stack(shared), (0, pad(keys) - keys))
        return out

    def fill(self, into: Tensor, p: Tensor, block: Block, groups: int) -> None:
        """Writes P @ E of one block into `into` [b, g, rep, r, total]; p is [b, g, rep, r, width]."""
        width, limit = p.shape[-1], block.limit
        for column, start, stop in self.spans:
            into[..., column] = p[..., start : min(stop, limit)].sum(-1) if start < limit else 0.0
        if self.shared is not None:
            part = torch.nn.functional.linear(p, self.shared[:, :width].contiguous())
            into[..., self.shared_at] = part
        for at, e in self.own:
            e = e[block.b] if e.shape[0] > 1 else e
            if e.shape[1] > 1:
                rep = e.shape[1] // groups
                e = e.reshape(e.shape[0], groups, rep, *e.shape[2:])[:, block.g]
            else:
                e = e.unsqueeze(2)
            into[..., at : at + e.shape[-1]] = p[..., :limit] @ e[..., :limit, :]


def _span(column: Tensor) -> tuple[int, int] | None:
    """(start, stop) when the column is 1 on consecutive keys and 0 elsewhere."""
    hit = column.nonzero().flatten()
    if not len(hit):
        return 0, 0
    start, stop = int(hit[0]), int(hit[-1]) + 1
    return (start, stop) if stop - start == len(hit) and bool((column[hit] == 1).all()) else None


class Sweep:
    """Accumulates the answers to one merged `Ask` while blocks pass by (no gradients)."""

    def __init__(self, c: AttentionCall, ask: Ask, columns: Columns | None, groups: int) -> None:
        self.c, self.ask, self.columns, self.groups = c, ask, columns, groups
        lead = (c.batch, groups, c.heads // groups)

        def zeros(*size: int) -> Tensor:
            return torch.zeros(*lead, *size, device=c.device)

        self.entropy = zeros(c.queries) if ask.entropy else None
        self.lse = zeros(c.queries) if ask.lse else None
        self.moments = zeros(c.queries, columns.total) if columns else None
        self.weights = None
        if ask.weights is not None:
            self.weights = zeros(ask.weights.shape[-1], pad(c.keys))
        self.values = self.indices = None
        if ask.top:
            k = min(ask.top, c.keys)
            self.values = zeros(c.queries, k)
            self.indices = torch.full((*lead, c.queries, k), -1, device=c.device, dtype=torch.int64)
        self.maybe_blind = c.mask is not None or c.key_bias is not None or c.logits is not None

    def probabilities(self, s: Tensor, block: Block, buffers: Buffers) -> Tensor:
        """Takes what can be taken from logits, turns them into probabilities and takes the rest; destroys s.

        Returns P [b, g, rep, r, width], already scaled by sinks and zero on rows that see nothing.
        """
        c, ask = self.c, self.ask
        where = (block.b, block.g, slice(None), slice(block.start, block.stop))
        need_max = ask.top or ask.entropy or ask.lse or c.sinks is not None or self.maybe_blind
        top = chunks = None
        if need_max:
            top, chunks = two_level_max(s)
        indices = top_of(s, chunks, min(ask.top, block.limit)) if ask.top and chunks is not None else None
        if indices is not None and indices.shape[-1] > 1:  # fewer keys in sight than asked for
            indices = indices.masked_fill(s.gather(-1, indices) <= HIDDEN / 10, -1)
        p = torch.softmax(s, -1, out=buffers.get("p", tuple(s.shape)))
        factor = None
        if top is not None and (ask.entropy or ask.lse or c.sinks is not None):
            log_z = -p.amax(-1).log()
            lse = top + log_z
            if c.sinks is not None:
                sink = c.sinks.float().view(self.groups, -1)[block.g][None, :, :, None]
                factor = torch.sigmoid(lse - sink)
            if ask.entropy:
                plain = log_z - s.sub_(top[..., None]).mul_(p).sum(-1)
                self.entropy[where] = plain if factor is None else factor * (plain - factor.log())  # type: ignore[index]
            if ask.lse:
                self.lse[where] = lse  # type: ignore[index]
        if self.maybe_blind and top is not None:
            alive = top > HIDDEN / 10
            if not bool(alive.all()):
                factor = alive.float() if factor is None else factor * alive
                self._blank(where, alive, indices)
        if factor is not None:
            p.mul_(factor[..., None])
        if indices is not None:
            self._keep_top(where, p, indices)
        return p

    def _blank(self, where: tuple, alive: Tensor, indices: Tensor | None) -> None:
        if self.entropy is not None:
            self.entropy[where] = torch.where(alive, self.entropy[where], 0.0)
        if self.lse is not None:
            self.lse[where] = torch.where(alive, self.lse[where], -torch.inf)
        if indices is not None:
            indices.masked_fill_(~alive[..., None], -1)

    def _keep_top(self, where: tuple, p: Tensor, indices: Tensor) -> None:
        assert self.values is not None
        assert self.indices is not None
        k = indices.shape[-1]
        self.values[where][..., :k] = p.gather(-1, indices.clamp(min=0)).masked_fill_(indices < 0, 0.0)
        self.indices[where][..., :k] = indices

    def collect(self, p: Tensor, block: Block) -> None:
        """Takes moments and weights from the probabilities of a block."""
        where = (block.b, block.g, slice(None), slice(block.start, block.stop))
        if self.columns is not None and self.moments is not None:
            self.columns.fill(self.moments[where], p, block, self.groups)
        if self.weights is not None and self.ask.weights is not None:
            w = self.ask.weights.float()
            rep, r, width = p.shape[2:]
            while w.dim() < 4:
                w = w.unsqueeze(0)
            w = w[:, :, block.start : block.stop]
            w = w[block.b] if w.shape[0] > 1 else w
            w = w.reshape(w.shape[0], self.groups, rep, *w.shape[2:])[:, block.g] if w.shape[1] > 1 else w.unsqueeze(2)
            w = w.transpose(-1, -2).expand(*p.shape[:3], -1, r).reshape(-1, w.shape[-1], r)
            part = torch.bmm(w, p.reshape(-1, r, width))
            self.weights[block.b, block.g, :, :, :width] += part.view(*p.shape[:3], -1, width)

    def answer(self) -> Answer:
        """The finished answer, heads ungrouped."""
        c = self.c

        def flat(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.flatten(1, 2)

        weights = None if self.weights is None else self.weights[..., : c.keys].flatten(1, 2).transpose(-1, -2)
        top = None if self.values is None else (flat(self.values), flat(self.indices))
        return Answer(
            moments=flat(self.moments),
            weights=weights,
            entropy=flat(self.entropy),
            lse=flat(self.lse),
            top=top,  # type: ignore[arg-type]
        )


def sweep(
    c: AttentionCall, ask: Ask, moments: list[Tensor], elements: int, output: bool = False
) -> tuple[Answer, Tensor | None, int]:
    """Answers everything in one sweep, without gradients.

    Args:
        c: the call, operands of any dtype; statistics are computed in float32.
        ask: the merged ask; its `moments` are given separately:
        moments: values E of the single asks, answered side by side in this order.
        elements: logits that may be alive at once.
        output: also make the attention output from the same blocks.

    Returns:
        The answer, the output [B, H, Q, V] in float32 or None, and the number of blocks.
    """
    groups = c.heads if c.logits is not None else c.key.shape[1]
    operands = None if c.logits is not None else Operands.of(c)
    columns = Columns.of(moments, c.keys) if moments else None
    largest = prod(block_shape(c.batch, groups, c.heads // groups, c.queries, c.keys, elements))
    buffers = Buffers(c.device, largest * (c.heads // groups) * pad(c.keys))
    state, count = Sweep(c, ask, columns, groups), 0
    y = None
    if output:
        y = torch.zeros(c.batch, groups, c.heads // groups, c.queries, c.value.shape[-1], device=c.device)
    for block in blocks(c, groups, elements):
        count += 1
        p = state.probabilities(block_logits(c, operands, block, buffers), block, buffers)
        state.collect(p, block)
        if y is not None:
            nb, ng, rep, r, _ = p.shape
            v = c.value[block.b, block.g, : block.limit].float()
            v = v if v.shape[0] == nb else v.expand(nb, -1, -1, -1)
            part = torch.bmm(p.view(nb * ng, rep * r, -1)[..., : block.limit], v.reshape(nb * ng, block.limit, -1))
            y[block.b, block.g, :, block.start : block.stop] = part.view(nb, ng, rep, r, -1)
    return state.answer(), None if y is None else y.flatten(1, 2), count
