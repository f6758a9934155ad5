"""Attention sinks on long texts: all ten metrics next to the plain forward pass and to eager maps, in one run.

    python -m benchmarks.sink_statistics                      # 4,096 and 16,384 tokens; writes results/benchmarks/
    python -m benchmarks.sink_statistics --lengths 512 --repeat 1 --out /tmp/try.json

Variants: the plain pass of SmolLM2; `report` with all ten metrics; and two of the ten (sink metric, first-token share)
from eager attention, reduced layer by layer in a hook, where one layer's maps fit. Every cell is a fresh process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.attention.report import markdown, provenance, show, write_json, write_text

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


def main() -> int:
    """Runs all cells and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--repeat", type=int, default=2, help="fresh processes per cell; medians are taken (2)")
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
        for length in given.lengths:
            for number in range(given.repeat):
                for variant in [v for v in VARIANTS if fits(v, length)]:
                    path = Path(folder) / f"{length}-{number}-{VARIANTS.index(variant)}.json"
                    job = {"variant": variant, "length": length, "threads": given.threads, "answer": str(path)}
                    command = [sys.executable, "-m", "benchmarks.sink_statistics", "--cell", json.dumps(job)]
                    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                    found.setdefault((length, variant), []).append(json.loads(path.read_text(encoding="utf-8")))
                    print(f"{length} tokens, {variant}, {number + 1} of {given.repeat}", file=sys.stderr)
    rows = [row(found, length, variant) for length in given.lengths for variant in VARIANTS]
    show("Attention sinks of SmolLM2", rows)
    command = f"python -m benchmarks.sink_statistics --repeat {given.repeat} --threads {given.threads}"
    write_json(given.out, {"command": command, "rows": rows, "provenance": provenance()})
    write_text(given.out.with_suffix(".md"), f"`{command}`\n\n{markdown(rows)}")
    return 0


def row(found: dict[tuple[int, str], list[dict[str, Any]]], length: int, variant: str) -> dict[str, Any]:
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


if __name__ == "__main__":
    sys.exit(main())
