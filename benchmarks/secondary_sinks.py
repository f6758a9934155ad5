"""Secondary sinks on long texts: time and memory beyond the plain forward pass of SmolLM2, in one run.

    python -m benchmarks.secondary_sinks                      # 4,096 and 16,384 tokens; writes results/benchmarks/
    python -m benchmarks.secondary_sinks --lengths 512 --repeat 1 --out /tmp/try.json

Variants: the plain pass; the detector without attention scores; the detector with them; and the maps of one layer at a
time that a script needs for the same scores (eager, as the paper's), where they fit. Every cell is a fresh process.
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
                for variant in VARIANTS:
                    if not fits(variant, length):
                        continue
                    path = Path(folder) / f"{length}-{number}-{variant.replace(' ', '-')}.json"
                    job = {"variant": variant, "length": length, "threads": given.threads, "answer": str(path)}
                    command = [sys.executable, "-m", "benchmarks.secondary_sinks", "--cell", json.dumps(job)]
                    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                    found.setdefault((length, variant), []).append(json.loads(path.read_text(encoding="utf-8")))
                    print(f"{length} tokens, {variant}, {number + 1} of {given.repeat}", file=sys.stderr)
    rows = []
    for length in given.lengths:
        plain = found[length, "plain"]
        second = statistics.median(x["seconds"] for x in plain)
        memory = statistics.median(x["bytes"] for x in plain)
        for variant in VARIANTS:
            mine = found.get((length, variant))
            row: dict[str, Any] = {"tokens": length, "variant": variant}
            if mine is None:
                rows.append({**row, "note": "would not fit"})
                continue
            took = statistics.median(x["seconds"] for x in mine)
            extra = statistics.median(x["bytes"] for x in mine)
            rows.append(
                {**row, "seconds": took, "x plain": took / second, "MiB beyond the model": extra / 2**20,
                 "MiB beyond plain": (extra - memory) / 2**20, "note": ""}
            )  # fmt: skip
    show("Secondary sinks on SmolLM2", rows)
    command = f"python -m benchmarks.secondary_sinks --repeat {given.repeat} --threads {given.threads}"
    write_json(given.out, {"command": command, "rows": rows, "provenance": provenance()})
    write_text(given.out.with_suffix(".md"), f"`{command}`\n\n{markdown(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
