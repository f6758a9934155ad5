"""StreamingLLM next to transformers' own caches: tokens per second and memory after long contexts, in one run.

    python -m benchmarks.streaming                            # 1,024 to 16,384 tokens; writes results/benchmarks/
    python -m benchmarks.streaming --lengths 1024 --repeat 1 --out /tmp/try.json

Each cache is filled with a context of random keys and values (the time of a step does not depend on them), then SmolLM2
makes tokens one by one. Caches: transformers' DynamicCache, StaticCache and a window of 1,024 (its own layers);
StreamingCache with 4 sinks and 1,020 tokens, by default and inside `indexed`. Every cell is a fresh process.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks.rounds import Found, command_line

OUT = Path(__file__).resolve().parents[1] / "results" / "benchmarks" / "streaming.json"
VARIANTS = (
    "transformers, dynamic", "transformers, static", "transformers, sliding window", "StreamingCache",
    "StreamingCache, indexed",
)  # fmt: skip
SINKS, WINDOW, WARM = 4, 1_020, 3


def make(model: Any, variant: str, length: int, steps: int) -> Any:
    """An empty cache."""
    from transformers import Cache, DynamicCache, StaticCache
    from transformers.cache_utils import DynamicSlidingWindowLayer

    from unbraid.systems.attention_sinks import StreamingCache

    if variant.endswith("dynamic"):
        return DynamicCache(config=model.config)
    if variant.endswith("static"):
        return StaticCache(config=model.config, max_cache_len=length + steps + WARM)
    if variant.endswith("window"):
        layers = model.config.num_hidden_layers
        return Cache(layers=[DynamicSlidingWindowLayer(sliding_window=SINKS + WINDOW) for _ in range(layers)])
    return StreamingCache(model, SINKS, WINDOW)


def cell(job: dict[str, Any]) -> dict[str, Any]:
    """One cache after one context, in this process."""
    import torch

    from benchmarks.attention.measure import Memory, seconds_of
    from unbraid import zoo
    from unbraid.systems.attention_sinks import cache_bytes

    torch.set_num_threads(job["threads"])
    model = zoo.load("smollm2", progress=False).model.eval()
    shape = (1, model.config.num_key_value_heads, job["length"], model.config.head_dim)
    token = torch.tensor([[500]])
    generator = torch.Generator().manual_seed(0)
    indexed = job["variant"].endswith("indexed")
    with torch.no_grad():
        model(input_ids=token)
        memory = Memory(token.device)
        cache = make(model, job["variant"], job["length"], job["steps"])
        for layer in range(model.config.num_hidden_layers):
            if indexed:
                cache.layers[layer].incoming = job["length"]
            cache.update(torch.randn(shape, generator=generator), torch.randn(shape, generator=generator), layer)
            if indexed:
                cache.layers[layer].incoming = 0

        def steps(count: int) -> None:
            for _ in range(count):
                model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)

        with cache.indexed(model) if indexed else nullcontext():
            steps(WARM)
            seconds, _ = seconds_of(lambda: steps(job["steps"]), token.device)
    return {"seconds": seconds / job["steps"], "cache": cache_bytes(cache), "peak": memory.peak()}


def row(found: Found, length: int, variant: str) -> dict[str, Any]:
    """Medians of a cell, next to the dynamic cache after the same context."""

    def middle(which: str, name: str) -> float:
        return float(statistics.median(x[name] for x in found[length, which]))

    speed, base = 1 / middle(variant, "seconds"), 1 / middle(VARIANTS[0], "seconds")
    times = [1 / x["seconds"] for x in found[length, variant]]
    return {
        "context": length, "cache": variant, "tokens per second": speed, "slowest": min(times), "fastest": max(times),
        "x dynamic": speed / base, "cache MiB": middle(variant, "cache") / 2**20,
        "peak MiB beyond the model": middle(variant, "peak") / 2**20,
    }  # fmt: skip


def rows(found: Found, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """All cells."""
    return [row(found, length, variant) for length in lengths for variant in VARIANTS]


if __name__ == "__main__":
    sys.exit(
        command_line(
            "benchmarks.streaming",
            __doc__,
            "StreamingLLM on SmolLM2",
            OUT,
            VARIANTS,
            (1024, 4096, 16384),
            cell,
            rows,
            steps=24,
        )
    )
