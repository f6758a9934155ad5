"""Perplexity over long streams: full cache, plain sliding window, sinks and window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from unbraid.core.pieces import Pieces
from unbraid.data import text
from unbraid.systems.attention_sinks.caches.exact import stream_losses

BINS = 16


def label(sinks: int | None, cache: int) -> str:
    """What a condition is called."""
    if sinks is None:
        return "full cache"
    return f"window {cache}, no sinks" if sinks == 0 else f"{sinks} sinks + window {cache - sinks}"


def stream_study(
    model: Any,
    tokenizer: Any,
    *,
    tokens: int,
    streams: int,
    cache: int,
    sinks: Sequence[int],
    full: int,
    chunk: int,
    store: Pieces,
    step: Callable[[int], None],
) -> dict[str, list[list[float]]]:
    """Losses of every token, condition -> stream -> [tokens - 1].

    Args:
        model: a decoder language model.
        tokenizer: its tokenizer.
        tokens: length of a stream.
        streams: how many, of different text.
        cache: tokens kept, sinks included, the same for all conditions but the full cache.
        sinks: numbers of sinks to compare.
        full: on how many of the streams the full cache is run (its time grows with the square of the length).
        chunk: tokens per pass.
        store: finished pieces.
        step: called with the number of tokens of each pass.
    """
    found: dict[str, list[list[float]]] = {}
    for number in range(streams):
        ids = text.stream(tokenizer, tokens, skip=number * tokens).to(next(model.parameters()).device)
        conditions: list[int | None] = [*sinks, *([None] if number < full else [])]
        for count in conditions:
            window = None if count is None else cache - count

            def losses(count: int | None = count, window: int | None = window, ids: Any = ids) -> list[float]:
                made = stream_losses(model, ids, sinks=count or 0, window=window, chunk=chunk, step=step)
                return [round(x, 5) for x in made[0].tolist()]

            key = {"tokens": tokens, "stream": number, "sinks": count, "cache": cache}
            found.setdefault(label(count, cache), []).append(store.get("stream", key, losses))
    return found


def after_eviction(losses: list[float], cache: int) -> float:
    """Mean loss of the tokens that come once something was evicted (of all where nothing was)."""
    late = losses[cache:] or losses
    return float(np.mean(late))


def curve(rows: list[list[float]]) -> tuple[list[float], list[float], list[float], list[float]]:
    """(places, perplexity, least and most over streams) in equal parts of a stream."""
    table = np.asarray(rows)
    parts = np.array_split(np.arange(table.shape[1]), min(BINS, table.shape[1]))
    at = [float(p.mean()) for p in parts]
    each = np.exp([[row[p].mean() for p in parts] for row in table])
    return at, np.exp([table[:, p].mean() for p in parts]).tolist(), each.min(0).tolist(), each.max(0).tolist()


def bootstrap(values: Sequence[float], seed: int = 0) -> tuple[float, float] | None:
    """95 % interval of a mean by resampling units; None for fewer than two."""
    x = np.asarray(values, dtype=float)
    if len(x) < 2:
        return None
    draws = np.random.default_rng(seed).integers(len(x), size=(1_999, len(x)))
    means = x[draws].mean(1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))
