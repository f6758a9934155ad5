"""Perplexity over long streams in long passes, with the numbers of token-by-token streaming.

In one pass every token must see the sinks and its own last W tokens, and the sinks must stand right behind its own
window: at another place for every query. So instead of the sinks the queries are moved: the logits of the S sink
columns are made from queries turned back to cache index S + W - 1, and ride into the fused kernel in spare channels.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from unbraid.core.attach import attach
from unbraid.core.calls import AttentionCall, Tap
from unbraid.core.errors import UnbraidError
from unbraid.systems.attention_sinks.caches.kept import KeptCache, decoder
from unbraid.systems.attention_sinks.caches.streaming import StreamingLayer, check_sizes, keys_of


class ExactLayer(StreamingLayer):
    """Sinks where they first stood, and the last W - 1 tokens, however many new ones come."""

    def staying(self, n: int) -> int:
        """Sinks and W - 1 tokens."""
        return min(self.kept, self.sinks + self.window - 1)

    def _front(self, start: int) -> Tensor | None:
        return self.home


class ExactStream(Tap):
    """Lets each query of a long pass see the sinks and its own window, as if it had come alone."""

    def __init__(self, cache: KeptCache) -> None:
        self.cache = cache

    def wants(self, c: AttentionCall) -> bool:
        """Only layers with full attention."""
        return isinstance(self.cache.current, ExactLayer)

    def call(self, c: AttentionCall) -> AttentionCall:
        """Widens queries and keys by the sinks' logits, and bands the mask."""
        layer = self.cache.current
        assert isinstance(layer, ExactLayer)
        if c.query is None or c.softcap is not None or (c.mask is not None and c.mask.dtype != torch.bool):
            raise UnbraidError(
                f"{c.site!r} adds a bias or a cap to its logits, which long passes cannot move: where it is only the "
                'implementation, call model.set_attn_implementation("sdpa"), else stream by token with StreamingCache.'
            )
        sinks, window, n = min(layer.sinks, c.keys), layer.window, c.queries
        end = layer.cumulative_length
        place = torch.arange(end - n, end, device=c.device)
        slots = torch.arange(c.keys, device=c.device)
        stands = torch.where(slots < sinks, slots, slots + end - c.keys)
        sees = (stands <= place[:, None]) & ((slots < sinks) | (stands > place[:, None] - window))
        if not sinks:
            return c.replace(mask=sees[None, None], causal=False)
        index = place.clamp(max=layer.sinks + window - 1)
        turned = c.query if layer.rotation is None else layer.rotation.turn(c.query, place, index)
        logits = turned @ c.expand(c.key[:, :, :sinks]).transpose(-1, -2)
        spare = -(-layer.sinks // 8) * 8
        query = torch.cat([c.query, torch.nn.functional.pad(logits, (0, spare - sinks))], -1)
        mark = torch.eye(sinks, spare, device=c.device, dtype=c.key.dtype).expand(*c.key.shape[:2], -1, -1)
        key = torch.nn.functional.pad(c.key, (0, spare))
        key[:, :, :sinks] = torch.cat([torch.zeros_like(c.key[:, :, :sinks]), mark], -1)
        value = torch.nn.functional.pad(c.value, (0, spare))
        return c.replace(query=query, key=key, value=value, mask=sees[None, None], causal=False)

    def out(self, c: AttentionCall, y: Tensor) -> Tensor:
        """Cuts the spare channels off again."""
        layer = self.cache.current
        assert isinstance(layer, ExactLayer)
        spare = -(-layer.sinks // 8) * 8
        return y[..., : y.shape[-1] - spare] if spare else y


def stream_losses(
    model: Any,
    ids: Tensor,
    *,
    sinks: int = 4,
    window: int | None = 1020,
    chunk: int = 512,
    step: Callable[[int], None] | None = None,
) -> Tensor:
    """Loss of every next token of long texts under StreamingLLM, [B, n - 1], in nats.

    The numbers are those of feeding one token at a time to `StreamingCache`; they come hundreds of times faster.

    Args:
        model: a decoder language model with rotary positions or none.
        ids: [B, n].
        sinks: S; 0 for a plain sliding window.
        window: W; None for the full cache.
        chunk: tokens per pass; any number gives the same losses.
        step: called with the number of tokens of each pass, for a progress bar.

    Raises:
        UnbraidError: there is no text, a size is too small, or the model's positions cannot be moved.
    """
    from transformers import DynamicCache

    found = decoder(model, "stream_losses")
    if window is None:
        return cache_losses(found, ids, DynamicCache(config=found.config), chunk, step=step)
    check_sizes(sinks, window)
    turned = keys_of(found)
    cache = KeptCache(found, lambda i: ExactLayer(sinks, window, turned[i]))
    return cache_losses(found, ids, cache, chunk, attach(found, ExactStream(cache)), step)


@torch.no_grad()
def cache_losses(
    model: Any,
    ids: Tensor,
    cache: Any,
    chunk: int,
    inside: AbstractContextManager[Any] | None = None,
    step: Callable[[int], None] | None = None,
) -> Tensor:
    """Loss of every next token [B, n - 1] when texts are read in passes of `chunk` tokens through any cache.

    Args:
        model: a decoder language model.
        ids: [B, n].
        cache: a transformers cache; it is filled.
        chunk: tokens per pass. What a cache evicts it evicts between passes, so for caches that choose by attention
            the losses depend on it.
        inside: context in which the model is run, such as `cache.watching(model)`.
        step: called with the number of tokens of each pass.

    Raises:
        UnbraidError: fewer than two tokens, or a chunk below 1.
    """
    if ids.dim() != 2 or ids.shape[1] < 2:
        raise UnbraidError(f"a loss needs [batch, tokens] with at least 2 tokens, not {tuple(ids.shape)}.")
    if chunk < 1:
        raise UnbraidError(f"chunk is {chunk}; it must be 1 or more.")
    parts = []
    with inside or nullcontext():
        for start in range(0, ids.shape[1], chunk):
            piece = ids[:, start : start + chunk]
            logits = model(input_ids=piece, past_key_values=cache, use_cache=True).logits
            gold = ids[:, start + 1 : start + 1 + piece.shape[1]]
            known = logits[:, : gold.shape[1]].float().flatten(0, 1)
            parts.append(torch.nn.functional.cross_entropy(known, gold.flatten(), reduction="none").view(gold.shape))
            if step is not None:
                step(piece.shape[1])
    return torch.cat(parts, 1)
