"""The attention of transformers' DeBERTa classes, computed otherwise: the same weights, outputs and gradients."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers.models.deberta.modeling_deberta import DisentangledSelfAttention as FirstAttention
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention as SecondAttention

from unbraid.systems.deberta import bias as terms
from unbraid.systems.deberta import blockwise
from unbraid.systems.deberta.caching import Cache
from unbraid.systems.deberta.positions import rows

Backend = Literal["auto", "crop", "skew", "blocks", "flex"]


def choose(batch: int, queries: int, keys: int, device: str) -> Backend:
    """The quickest as measured by `benchmarks.deberta` on a CPU; FlexAttention for long inputs on GPUs."""
    longest = max(queries, keys)
    if device != "cpu":
        return "flex" if longest > 512 else "skew"
    return "blocks" if longest > 128 or (longest > 64 and batch > 2) else "skew"


class Quick:
    """What both versions share; mixed into transformers' own classes, so that names of weights stay.

    Attributes:
        quick: backend, long_range and cache, as `accelerate` gave them.
    """

    quick: dict[str, Any]

    def _split(self, x: Tensor) -> Tensor:
        heads: Any = self
        return x.view(*x.shape[:2], heads.num_attention_heads, -1).transpose(1, 2)

    def _parts(self, hidden: Tensor, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, H, n or m, d]."""
        raise NotImplementedError

    def _positions(self, embeddings: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What queries meet and what keys meet, [H, R, d] each, of rows of the table [R, D]."""
        raise NotImplementedError

    def _reach(self) -> tuple[int, int, int]:
        """Half of the table's rows, buckets, longest distance."""
        raise NotImplementedError

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        rel_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """As transformers' own: context [B, n, H d] and, if asked for, probabilities [B, H, n, m]."""
        me: Any = self
        query, key, value = self._parts(hidden_states, hidden_states if query_states is None else query_states)
        n, m = query.shape[2], key.shape[2]
        scale = 1 / math.sqrt(query.shape[-1] * (1 + sum(one in me.pos_att_type for one in ("c2p", "p2c"))))
        query, mask = silenced(query * scale, attention_mask), attention_mask
        drop = me.dropout.p if me.training else 0.0
        backend = self.quick["backend"]
        if backend == "auto":
            backend = choose(len(query), n, m, query.device.type)
        if not me.relative_attention or rel_embeddings is None:
            found: Tensor | None = None
        elif relative_pos is not None:
            found = self._given(query, key * scale, relative_pos, rel_embeddings)
        else:
            span, buckets, longest = self._reach()
            where = rows(n, m, span, buckets, longest, self.quick["long_range"])
            low, high = int(where.min()), int(where.max())
            c2p, p2c = self._reached(rel_embeddings, span, low, high)
            where = (where - low).to(query.device)
            if not output_attentions:  # what these cannot do, views along diagonals can
                if backend == "flex" and not drop and (query.is_cuda or not torch.is_grad_enabled()):
                    return _joined(_flex(query, key, value, key * scale, c2p, p2c, where, mask), value, mask), None
                if backend == "blocks" and _of_keys(mask) is not None:
                    p2c = None if p2c is None else p2c * scale
                    return _joined(_blocks(query, key, value, c2p, p2c, where, mask, drop), value, mask), None
            if backend == "crop":
                found = terms.gathered(query, key * scale, c2p, p2c, terms.pairs(where, n, m))
            else:
                found = terms.skew(query, key * scale, c2p, p2c, where)
        found = masked(found, pairwise(mask, 0, n), query)
        if not output_attentions:
            return _joined(sdpa(query, key, value, found, drop, scale=1.0), value, mask), None
        probs = me.dropout((query @ key.transpose(-1, -2) + found).softmax(-1))
        return joined(probs @ value), probs

    def _reached(self, embeddings: Tensor, span: int, low: int, high: int) -> tuple[Tensor | None, Tensor | None]:
        me: Any = self
        cache: Cache = self.quick["cache"]
        if cache.may(me, embeddings):
            c2p, p2c = cache.get(me, embeddings, lambda: self._positions(embeddings[: 2 * span]))
            c2p, p2c = (None if one is None else one[:, low : high + 1] for one in (c2p, p2c))
            return c2p, p2c
        return self._positions(me.pos_dropout(embeddings[low : high + 1]))

    def _given(self, query: Tensor, key: Tensor, relative: Tensor, embeddings: Tensor) -> Tensor | None:
        me: Any = self
        span, _, _ = self._reach()
        relative = relative.to(query.device, torch.long)
        relative = relative.reshape(*relative.shape[-3:]) if relative.dim() == 4 else relative
        c2p, p2c = self._positions(me.pos_dropout(embeddings[: 2 * span]))
        forth = (relative + span).clamp(0, 2 * span - 1)
        # where each query is a key too, transformers reads the negative of the distance that stands at (key, query)
        square = relative.shape[-1] == relative.shape[-2]
        back = (span - relative.transpose(-1, -2)).clamp(0, 2 * span - 1) if p2c is not None and square else None
        return terms.gathered(query, key, c2p, p2c, forth, back)


class QuickSecond(Quick, SecondAttention):
    """DeBERTa v2 and v3."""

    def _parts(self, hidden: Tensor, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.query_proj(queries), self.key_proj(hidden), self.value_proj(hidden)
        return self._split(query), self._split(key), self._split(value)

    def _positions(self, embeddings: Tensor) -> tuple[Tensor | None, Tensor | None]:
        key, query = ("key_proj", "query_proj") if self.share_att_key else ("pos_key_proj", "pos_query_proj")
        made = [
            self._split(getattr(self, name)(embeddings)[None])[0] if kind in self.pos_att_type else None
            for kind, name in (("c2p", key), ("p2c", query))
        ]
        return made[0], made[1]

    def _reach(self) -> tuple[int, int, int]:
        return self.pos_ebd_size, self.position_buckets, self.max_relative_positions


class QuickFirst(Quick, FirstAttention):
    """DeBERTa v1."""

    def _parts(self, hidden: Tensor, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        made = self._split(self.in_proj(hidden))
        query, key, value = made.chunk(3, dim=-1)
        if queries is not hidden:
            query = self._split(self.in_proj(queries)).chunk(3, dim=-1)[0]
        return query + self._split(self.q_bias[None, None]), key, value + self._split(self.v_bias[None, None])

    def _positions(self, embeddings: Tensor) -> tuple[Tensor | None, Tensor | None]:
        made = [
            self._split(getattr(self, name)(embeddings)[None])[0] if kind in self.pos_att_type else None
            for kind, name in (("c2p", "pos_proj"), ("p2c", "pos_q_proj"))
        ]
        return made[0], made[1]

    def _reach(self) -> tuple[int, int, int]:
        return self.max_relative_positions, 0, self.max_relative_positions


def pairwise(mask: Tensor, start: int, stop: int) -> Tensor:
    """Any of transformers' masks -> pairs [B, 1, n or 1, m] of some queries, true where one may look."""
    if mask.dim() == 2:
        mask = mask.bool()
        return mask[:, None, None] & mask[:, None, start:stop, None]
    mask = mask[:, None] if mask.dim() == 3 else mask
    return (mask if mask.shape[2] == 1 else mask[:, :, start:stop]).bool()


def silenced(query: Tensor, mask: Tensor) -> Tensor:
    """Queries that may look nowhere become zero: their rows are uniform and carry no gradient to queries and keys."""
    seen = mask.bool()[:, None] if mask.dim() == 2 else pairwise(mask, 0, query.shape[2]).any(-1)
    return query.masked_fill(~seen[..., None], 0.0)


def masked(found: Tensor | None, mask: Tensor, like: Tensor) -> Tensor:
    """Bias with the lowest number where one may not look; zeros without a bias."""
    lowest = torch.finfo(like.dtype).min
    rows = mask.any(-1, keepdim=True)
    mask = mask | ~rows
    if found is None:
        return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(~mask, lowest)
    found = found.to(like.dtype).masked_fill(~mask, lowest)
    # a row without keys is uniform, as in transformers: all zero, since kernels lose the sum of a row of lowest numbers
    return found.masked_fill(~rows, 0.0) if found.is_cuda or not bool(rows.all()) else found


def _joined(context: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """`joined`, and queries that may look nowhere get the mean of all values, as in transformers."""
    seen = mask.bool()[:, None] if mask.dim() == 2 else pairwise(mask, 0, context.shape[2]).any(-1)
    if not bool(seen.all()):
        context = torch.where(seen[..., None], context, value.mean(2, keepdim=True))
    return joined(context)


def joined(context: Tensor) -> Tensor:
    """[B, H, n, d] -> [B, n, H d]."""
    return context.transpose(1, 2).flatten(2)


def _of_keys(mask: Tensor) -> Tensor | None:
    """Keys that are not padding, [B, m], if the mask says no more than that; else None."""
    if mask.dim() == 2:
        return mask.bool()
    return mask[:, 0, 0].bool() if mask.dim() == 4 and mask.shape[1] == mask.shape[2] == 1 else None


def _blocks(
    query: Tensor, key: Tensor, value: Tensor, c2p: Tensor | None, p2c: Tensor | None, where: Tensor, mask: Tensor,
    drop: float,
) -> Tensor:  # fmt: skip
    seen = _of_keys(mask)
    whole = seen is None or bool(seen.all())
    return blockwise.attend(query, key, value, c2p, p2c, where, None if whole else seen, drop)


def _flex(
    query: Tensor, key: Tensor, value: Tensor, scaled: Tensor, c2p: Tensor | None, p2c: Tensor | None, where: Tensor,
    mask: Tensor,
) -> Tensor:  # fmt: skip
    """FlexAttention; it has no dropout, and no gradients on a CPU."""
    from torch.nn.attention.flex_attention import flex_attention

    m, lowest = key.shape[2], torch.finfo(query.dtype).min
    forth = None if c2p is None else terms.table(query, c2p)
    back = None if p2c is None else terms.table(scaled, p2c)
    known = mask.bool() if mask.dim() == 2 else pairwise(mask, 0, query.shape[2])
    wide = known.dim() == 4 and known.shape[2] > 1
    rows_ = known if known.dim() == 2 else known[:, 0].any(-1)

    def change(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        at = where[i - j + m - 1]
        if forth is not None:
            score = score + forth[h, b, i, at]
        if back is not None:
            score = score + back[h, b, j, at]
        seen = known[b, i] & known[b, j] if known.dim() == 2 else known[b, 0, i if wide else 0, j]
        return torch.where(rows_[b, i if wide or known.dim() == 2 else 0], torch.where(seen, score, lowest), 0.0)

    if query.is_cuda:
        compiled: Any = torch.compile(flex_attention, dynamic=False)
        return compiled(query, key, value, score_mod=change, scale=1.0)
    with warnings.catch_warnings():  # on a CPU it is not fused: good for a check, slow and quadratic
        warnings.simplefilter("ignore", UserWarning)
        return flex_attention(query, key, value, score_mod=change, scale=1.0)


def attentions(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and modules of DeBERTa's attention, replaced or not."""
    return [(name, m) for name, m in model.named_modules() if isinstance(m, FirstAttention | SecondAttention)]
