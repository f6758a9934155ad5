"""Secondary sinks on long texts: time and memory beyond the plain forward pass of SmolLM2, in one run.

    python -m benchmarks.secondary_sinks                      # 4,096 and 16,384 tokens; writes results/benchmarks/
    python -m benchmarks.secondary_sinks --lengths 512 --repeat 1 --out /tmp/try.json

Variants: the plain pass; the detector without attention scores; the detector with them; and the maps of one layer at a
time that a script needs for the same scores (eager, as the paper's), where they fit. Every cell is a fresh process.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.rounds import Found, command_line

OUT = Path(__file__).resolve().parents[1] / "results" / "benchmarks" / "secondary_sinks.json"
VARIANTS = ("plain", "detector", "detector and scores", "eager maps")
GIB = 2**30


def cell(job: dict[str, Any]) -> dict[str, Any]:
    """One variant at one length, in this process."""
    import torch
    from torch import Tensor

    from benchmarks.attention.measure import Memory, seconds_of
    from unbraid import zoo
    from unbraid.core.blocks import blocks, listening
    from unbraid.core.inputs import lean_inputs
    from unbraid.data.text import stream
    from unbraid.systems.secondary_sinks.system import measure

    torch.set_num_threads(job["threads"])
    loaded = zoo.load("smollm2", progress=False)
    model, ids = loaded.model.eval(), stream(loaded.tokenizer, job["length"])

    def run(x: Tensor) -> Any:
        with torch.no_grad():
            if job["variant"] == "plain":
                return model(**lean_inputs(model, x)).logits
            if job["variant"] == "eager maps":
                half, kept = x.shape[1] // 2, []
                take = {b.attention: lambda m, a, k, y: kept.append(y[1][0, :, half:].mean(1)) for b in blocks(model)}
                with listening(take):
                    model(**lean_inputs(model, x))
                return kept
            return measure(model, x, 3, attention=job["variant"] == "detector and scores")

    if job["variant"] == "eager maps":
        model.set_attn_implementation("eager")
    run(ids[:, :192])
    memory = Memory(ids.device)
    seconds, _ = seconds_of(lambda: run(ids), ids.device)
    return {"seconds": seconds, "bytes": memory.peak()}


def fits(variant: str, length: int) -> bool:
    """Whether eager attention of one layer fits: scores, softmax in float32 and their copies."""
    return variant != "eager maps" or 5 * 9 * length**2 * 4 < 16 * GIB


def rows(found: Found, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Medians of all cells, next to the plain pass of the same length."""
    out = []
    for length in lengths:

        def middle(variant: str, name: str, length: int = length) -> float:
            return float(statistics.median(x[name] for x in found[length, variant]))

        for variant in VARIANTS:
            row: dict[str, Any] = {"tokens": length, "variant": variant}
            if (length, variant) not in found:
                out.append({**row, "note": "would not fit"})
                continue
            took, extra = middle(variant, "seconds"), middle(variant, "bytes")
            out.append(
                {**row, "seconds": took, "x plain": took / middle("plain", "seconds"),
                 "MiB beyond the model": extra / 2**20,
                 "MiB beyond plain": (extra - middle("plain", "bytes")) / 2**20, "note": ""}
            )  # fmt: skip
    return out


if __name__ == "__main__":
    sys.exit(
        command_line(
            "benchmarks.secondary_sinks",
            __doc__,
            "Secondary sinks on SmolLM2",
            OUT,
            VARIANTS,
            (4096, 16384),
            cell,
            rows,
            fits,
        )
    )
