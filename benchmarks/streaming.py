"""StreamingLLM next to transformers' own caches: tokens per second and memory after long contexts, in one run.

    python -m benchmarks.streaming                            # 1,024 to 16,384 tokens; writes results/benchmarks/
    python -m benchmarks.streaming --lengths 1024 --repeat 1 --out /tmp/try.json

Each cache is filled with a context of random keys and values (the time of a step does not depend on them), then SmolLM2
makes tokens one by one. Caches: transformers' DynamicCache, StaticCache and a window of 1,024 (its own layers);
StreamingCache with 4 sinks and 1,020 tokens, by default and inside `indexed`. Every cell is a fresh process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks.attention.report import markdown, provenance, show, write_json, write_text

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


def main() -> int:
    """Runs all cells and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--steps", type=int, default=24, help="tokens made per cell (24)")
    parser.add_argument("--repeat", type=int, default=3, help="fresh processes per cell; medians are taken (3)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cell:
        job = json.loads(given.cell)
        write_json(Path(job["answer"]), cell(job))
        return 0
    found: dict[tuple[int, str], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(given.repeat):
            for length in given.lengths:
                for variant in VARIANTS:
                    path = Path(folder) / f"{length}-{number}-{VARIANTS.index(variant)}.json"
                    job = {
                        "variant": variant, "length": length, "threads": given.threads, "steps": given.steps,
                        "answer": str(path),
                    }  # fmt: skip
                    command = [sys.executable, "-m", "benchmarks.streaming", "--cell", json.dumps(job)]
                    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                    found.setdefault((length, variant), []).append(json.loads(path.read_text(encoding="utf-8")))
                    print(f"{length} tokens, {variant}, {number + 1} of {given.repeat}", file=sys.stderr)
    rows = [row(found, length, variant) for length in given.lengths for variant in VARIANTS]
    show("StreamingLLM on SmolLM2", rows)
    command = f"python -m benchmarks.streaming --repeat {given.repeat} --steps {given.steps} --threads {given.threads}"
    write_json(given.out, {"command": command, "rows": rows, "provenance": provenance()})
    write_text(given.out.with_suffix(".md"), f"`{command}`\n\n{markdown(rows)}")
    return 0


def row(found: dict[tuple[int, str], list[dict[str, Any]]], length: int, variant: str) -> dict[str, Any]:
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


if __name__ == "__main__":
    sys.exit(main())
