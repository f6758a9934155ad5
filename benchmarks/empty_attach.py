"""What an attach without taps costs: plain and attached passes of SmolLM2 in turn, in one process.

    python -m benchmarks.empty_attach                  # writes results/benchmarks/empty_attach.json

Fresh processes differ from one another by more than what is looked for here (up to a tenth at 512 tokens), so each pair
of passes runs back to back in the same process, in alternating order; the ratio is taken within pairs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.attention.report import markdown, provenance, show, write_json, write_text
from unbraid import attach, zoo
from unbraid.core.inputs import lean_inputs
from unbraid.data.text import stream

OUT = Path(__file__).resolve().parents[1] / "results" / "benchmarks" / "empty_attach.json"
BAR = 1.03


def pair(model: Any, inputs: dict[str, Any], attached_first: bool) -> tuple[float, float]:
    """Seconds of one plain and one attached pass."""

    def plain() -> float:
        start = time.perf_counter()
        model(**inputs)
        return time.perf_counter() - start

    def empty() -> float:
        start = time.perf_counter()
        with attach(model):
            model(**inputs)
        return time.perf_counter() - start

    if attached_first:
        second = empty()
        return plain(), second
    first = plain()
    return first, empty()


def main() -> int:
    """Runs all lengths and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 1024, 2048])
    parser.add_argument("--seconds", type=float, default=40.0, help="per length, at least five pairs (40)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    loaded = zoo.load("smollm2", progress=False)
    model, rows = loaded.model.eval(), []
    with torch.inference_mode():
        for length in given.lengths:
            inputs = lean_inputs(model, stream(loaded.tokenizer, length))
            pair(model, inputs, False)
            start, pairs = time.perf_counter(), []
            while len(pairs) < 5 or time.perf_counter() - start < given.seconds:
                pairs.append(pair(model, inputs, len(pairs) % 2 == 1))
            ratios = np.array([b / a for a, b in pairs])
            draws = np.random.default_rng(0).integers(0, len(ratios), (999, len(ratios)))
            low, high = np.quantile(np.median(ratios[draws], axis=1), [0.025, 0.975])
            ratio = float(np.median(ratios))
            rows.append(
                {"tokens": length, "pairs": len(pairs), "plain, s": statistics.median(a for a, _ in pairs),
                 "ratio": ratio, "low": float(low), "high": float(high), "bar": BAR, "met": bool(ratio <= BAR)}
            )  # fmt: skip
            print(f"{length} tokens: {ratio:.3f} [{low:.3f}, {high:.3f}]", file=sys.stderr)
    show("An attach without taps", rows)
    command = f"python -m benchmarks.empty_attach --threads {given.threads} --seconds {given.seconds:g}"
    write_json(given.out, {"command": command, "rows": rows, "provenance": provenance()})
    write_text(given.out.with_suffix(".md"), f"`{command}`\n\n{markdown(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
