"""DuoAttention (arXiv 2410.10819): some heads keep everything, the others only sinks and recent tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unbraid.core.attach import attach
from unbraid.core.calls import AttentionCall, Tap
from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores
from unbraid.systems.attention_sinks.caches.kept import KeptCache, KeptLayer, ends, left_padding
from unbraid.systems.attention_sinks.caches.scored import check_budget


class DuoLayer(KeptLayer):
    """Two stores: all tokens for some key heads, sinks and recent tokens for the others.

    What is handed to the attention is as long as the text for all heads, for the length of one call; the places that a
    streaming head no longer has are hidden from it by `hidden`.

    Args:
        full: [G] bool, key heads that keep everything.
        sinks: first tokens that the others keep.
        recent: last tokens that the others keep.
        padding: [B] left padding, or None.
    """

    shared = ("full",)

    def __init__(self, full: Tensor, sinks: int, recent: int, padding: Tensor | None) -> None:
        super().__init__(padding)
        self.full, self.sinks, self.recent = full, sinks, recent
        self.whole_keys: Tensor | None = None
        self.whole_values: Tensor | None = None
        self.places: Tensor | None = None
        self.hidden: Tensor | None = None

    def staying(self, n: int) -> int:
        """For the mask, everything that was seen."""
        return self.cumulative_length

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends to both stores; returns them side by side."""
        n = self._new(key_states, value_states)
        if key_states.shape[1] != len(self.full):
            raise UnbraidError(f"The pattern has {len(self.full)} key heads, but the layer has {key_states.shape[1]}.")
        full = self.full.to(key_states.device)
        total = self.cumulative_length + n
        new = torch.arange(total - n, total, device=key_states.device).expand(key_states.shape[0], -1)
        if self.whole_keys is None or self.whole_values is None or self.places is None:
            self.whole_keys, self.whole_values = key_states[:, full], value_states[:, full]
            self.keys, self.values = key_states[:, ~full], value_states[:, ~full]
            self.places = new
        else:
            self.whole_keys = torch.cat([self.whole_keys, key_states[:, full]], 2)
            self.whole_values = torch.cat([self.whole_values, value_states[:, full]], 2)
            self.keys = torch.cat([self.keys, key_states[:, ~full]], 2)
            self.values = torch.cat([self.values, value_states[:, ~full]], 2)
            self.places = torch.cat([self.places, new], 1)
        self.cumulative_length = total
        keys = self._side_by_side(self.whole_keys, self.keys, full, total)
        values = self._side_by_side(self.whole_values, self.values, full, total)
        self.hidden = torch.ones(keys.shape[0], total, dtype=torch.bool, device=keys.device)
        self.hidden.scatter_(1, self.places, False)
        most = self.sinks + self.recent
        if self.kept > most:
            index = ends(self.kept, most, self.sinks, self.pads())
            self.take(index[:, None])
            self.places = self.places.gather(1, index)
        return keys, values

    def pads(self) -> Tensor:
        """[B] padding slots of the streaming heads' store."""
        assert self.places is not None
        if self.padding is None:
            return torch.zeros(len(self.places), dtype=torch.int64, device=self.places.device)
        return (self.places < self.padding[:, None]).sum(-1)

    def _side_by_side(self, whole: Tensor, part: Tensor, full: Tensor, total: int) -> Tensor:
        assert self.places is not None
        out = whole.new_zeros(whole.shape[0], len(full), total, whole.shape[-1])
        out[:, full] = whole
        at = self.places[:, None, :, None].expand(-1, part.shape[1], -1, part.shape[-1])
        out[:, ~full] = part.new_zeros(*part.shape[:2], total, part.shape[-1]).scatter_(2, at, part)
        return out

    def reset(self) -> None:
        """Forgets everything."""
        super().reset()
        self.whole_keys = self.whole_values = self.places = self.hidden = None


class DuoTap(Tap):
    """Hides from streaming heads the places that they no longer have."""

    def __init__(self, cache: KeptCache) -> None:
        self.cache = cache

    def wants(self, c: AttentionCall) -> bool:
        """Only layers with two stores."""
        return isinstance(self.cache.current, DuoLayer)

    def call(self, c: AttentionCall) -> AttentionCall:
        """A key bias for these heads and places; memory stays linear."""
        layer = self.cache.current
        assert isinstance(layer, DuoLayer)
        assert layer.hidden is not None
        if not bool(layer.hidden.any()):
            return c
        streaming = (~layer.full).to(c.device).repeat_interleave(c.heads // len(layer.full))
        hit = layer.hidden[:, None] & streaming[None, :, None]
        bias = torch.zeros(hit.shape, device=c.device).masked_fill_(hit, -torch.inf)
        return c.replace(key_bias=bias if c.key_bias is None else c.key_bias + bias)


class DuoCache(KeptCache):
    """DuoAttention for `generate()`: retrieval heads keep the whole text, streaming heads sinks and recent tokens.

    A prompt is read with full attention by all heads; from then on streaming heads see what they have kept.

    Args:
        model: a decoder language model.
        scores: importance per head: `HeadScores` of query heads (as the retrieval-head detector gives them), or an
            array [layers, key heads] in the layout of DuoAttention and kvpress. A key head counts as its best query
            head.
        share: share of key heads that keep everything, the best ones of the whole model.
        sinks: first tokens that the other heads keep.
        recent: last tokens that the other heads keep.
        attention_mask: [B, n] of a prompt that is padded on the left.

    Raises:
        UnbraidError: the scores do not fit the model, or a size is out of range.

    Example:
        >>> cache = DuoCache(model, scores, share=0.5)
        >>> with cache.watching(model):
        ...     model.generate(**inputs, past_key_values=cache)
    """

    def __init__(
        self,
        model: Any,
        scores: HeadScores | np.ndarray | Tensor,
        share: float = 0.5,
        sinks: int = 128,
        recent: int = 256,
        attention_mask: Tensor | None = None,
    ) -> None:
        check_budget("sinks", sinks, 0)
        check_budget("recent", recent, 1)
        if not 0 <= share <= 1:
            raise UnbraidError(f"share is {share}; it must lie between 0 (all stream) and 1 (all keep everything).")
        padding = left_padding(attention_mask)
        super().__init__(model, lambda _: DuoLayer(torch.empty(0, dtype=torch.bool), sinks, recent, padding))
        whole = full_heads(model, scores, share, len(self.layers))
        for i in self.ours:
            layer = self.layers[i]
            assert isinstance(layer, DuoLayer)
            layer.full = whole[i]

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Hides from streaming heads what they have dropped, for the length of the block."""
        with attach(model, DuoTap(self), strict=False):
            yield


def full_heads(model: Any, scores: HeadScores | np.ndarray | Tensor, share: float, layers: int) -> Tensor:
    """[layers, key heads] bool: which keep everything."""
    shape = model.config.get_text_config(decoder=True).to_dict()
    heads = int(shape["num_attention_heads"])
    groups = int(shape.get("num_key_value_heads") or heads)
    table = torch.as_tensor(np.asarray(scores.array if isinstance(scores, HeadScores) else scores, dtype=np.float64))
    if table.shape == (layers, heads):
        table = table.unflatten(1, (groups, -1)).amax(-1)
    if table.shape != (layers, groups):
        raise UnbraidError(
            f"scores are {tuple(table.shape)}; {type(model).__name__} has {layers} layers of {heads} heads ({groups} "
            "key heads), and needs a number for each of either."
        )
    keep = round(share * table.numel())
    chosen = torch.zeros(table.numel(), dtype=torch.bool)
    chosen[table.flatten().nan_to_num(nan=-torch.inf).argsort(descending=True, stable=True)[:keep]] = True
    return chosen.view(table.shape)
