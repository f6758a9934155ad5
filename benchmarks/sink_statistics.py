"""Attention sinks on long texts: all ten metrics next to the plain forward pass and to eager maps, in one run.

    python -m benchmarks.sink_statistics                      # 4,096 and 16,384 tokens; writes results/benchmarks/
    python -m benchmarks.sink_statistics --lengths 512 --repeat 1 --out /tmp/try.json

Variants: the plain pass of SmolLM2; `report` with all ten metrics; and two of the ten (sink metric, first-token share)
from eager attention, reduced layer by layer in a hook, where one layer's maps fit. Every cell is a fresh process.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.rounds import Found, command_line

OUT = Path(__file__).resolve().parents[1] / "results" / "benchmarks" / "sink_statistics.json"
VARIANTS = ("plain", "report, ten metrics", "eager, two metrics")
HEADS, GIB = 9, 2**30


def cell(job: dict[str, Any]) -> dict[str, Any]:
    """One variant at one length, in this process."""
    import torch
    from torch import Tensor

    from benchmarks.attention.measure import Memory, seconds_of
    from unbraid import zoo
    from unbraid.core.blocks import blocks, listening
    from unbraid.core.inputs import lean_inputs
    from unbraid.data.text import stream
    from unbraid.systems.attention_sinks import report

    torch.set_num_threads(job["threads"])
    loaded = zoo.load("smollm2", progress=False)
    model, ids = loaded.model.eval(), stream(loaded.tokenizer, job["length"])
    eager = job["variant"].startswith("eager")
    if eager:
        model.set_attn_implementation("eager")

    def maps(x: Tensor) -> list[float]:
        kept: list[Tensor] = []

        def reduce(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            received = output[1][0].sum(1)
            watched = torch.arange(x.shape[1], 0, -1)
            kept.append(torch.stack([(received / watched)[:, 0], received[:, 0] / x.shape[1]]))

        with torch.no_grad(), listening({block.attention: reduce for block in blocks(model)}):
            model(**lean_inputs(model, x))
        both = torch.stack(kept)
        return [float((both[:, 0] > 0.3).float().mean()), float(both[:, 1].mean())]

    def run(x: Tensor) -> list[float]:
        if eager:
            return maps(x)
        if job["variant"] == "plain":
            with torch.no_grad():
                model(**lean_inputs(model, x))
            return []
        found = report(model, {"input_ids": x})
        return [found.sink_rate(0.3), found.first_token_share]

    run(ids[:, :192])
    memory = Memory(ids.device)
    seconds, answer = seconds_of(lambda: run(ids), ids.device)
    return {"seconds": seconds, "bytes": memory.peak(), "answer": answer}


def fits(variant: str, length: int) -> bool:
    """Whether eager attention of one layer fits: scores, softmax in float32 and their copies."""
    return not variant.startswith("eager") or 5 * HEADS * length**2 * 4 < 16 * GIB


def row(found: Found, length: int, variant: str) -> dict[str, Any]:
    """Medians of a cell, next to the plain pass of the same length."""
    mine, plain = found.get((length, variant)), found[length, "plain"]
    if mine is None:
        return {"tokens": length, "variant": variant, "note": "would not fit: one layer's maps"}

    def middle(cells: list[dict[str, Any]], name: str) -> float:
        return float(statistics.median(x[name] for x in cells))

    rate, share = mine[0]["answer"] or (None, None)
    return {
        "tokens": length, "variant": variant, "seconds": middle(mine, "seconds"),
        "x plain": middle(mine, "seconds") / middle(plain, "seconds"),
        "MiB beyond the model": middle(mine, "bytes") / 2**20, "sink rate": rate, "first-token share": share,
        "note": "",
    }  # fmt: skip


def rows(found: Found, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """All cells."""
    return [row(found, length, variant) for length in lengths for variant in VARIANTS]


if __name__ == "__main__":
    sys.exit(
        command_line(
            "benchmarks.sink_statistics",
            __doc__,
            "Attention sinks of SmolLM2",
            OUT,
            VARIANTS,
            (4096, 16384),
            cell,
            rows,
            fits,
        )
    )
