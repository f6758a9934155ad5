"""What training many small layers at once saves: one ensemble by vmap against a loop of single trainings.

    python -m benchmarks.icl_linear_regression         # writes results/benchmarks/icl_linear_regression.json

All variants take the same steps on the same batches. *separate layers* is what a user would write: one layer with K,
Q, V and O, its fused attention and an Adam of its own for each seed and head count. *separate ensembles* trains each
member by our own code, circuits only. *together* is one ensemble. Times are the processor's, drawing of batches
included, on one thread; ratios are taken within rounds, low and high are their quartiles.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.attention.report import markdown, provenance, show, write_json, write_text
from unbraid.core.training.batches import mix
from unbraid.systems.icl_linear_regression.ensemble import Ensemble
from unbraid.systems.icl_linear_regression.layer import Attention
from unbraid.systems.icl_linear_regression.sampling import Regression, training_batches

OUT = Path(__file__).resolve().parents[1] / "results" / "benchmarks" / "icl_linear_regression.json"
BATCH = 256


def ensemble(task: Regression, heads: tuple[int, ...], seeds: tuple[int, ...], steps: int) -> None:
    """Steps of one ensemble."""
    model, draw = Ensemble(task, heads, seeds), training_batches(task, BATCH, seeds)
    optimizer, generator = torch.optim.Adam(model.parameters(), lr=1e-3), torch.Generator()
    for step in range(steps):
        optimizer.zero_grad()
        model.losses(draw(step, generator)).sum().backward()
        optimizer.step()


def separately(task: Regression, heads: tuple[int, ...], seeds: tuple[int, ...], steps: int) -> None:
    """The same members one after the other, each an ensemble of one."""
    for seed in seeds:
        for h in heads:
            ensemble(task, (h,), (seed,), steps)


def layers(task: Regression, heads: tuple[int, ...], seeds: tuple[int, ...], steps: int) -> None:
    """The same members as layers with linear projections."""
    for seed in seeds:
        for h in heads:
            layer = Attention(task.dimension, h, task.tasks)
            optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
            for step in range(steps):
                b = task.sample(BATCH, mix(seed, 11, step))
                optimizer.zero_grad()
                (layer.predict(b) - b.answer).square().sum(-1).mean().backward()
                optimizer.step()


def timed(run: Callable[[], Any]) -> float:
    """Seconds of processor time: on a machine that others use too, the clock on the wall says little."""
    start = time.process_time()
    run()
    return time.process_time() - start


def measure(heads: tuple[int, ...], seeds: tuple[int, ...], steps: int, rounds: int) -> list[dict[str, Any]]:
    """One row a variant."""
    task = Regression()
    variants = {"together": ensemble, "separate ensembles": separately, "separate layers": layers}
    found: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():
        run(task, heads, seeds, 2)
    for number in range(rounds):
        for name in list(variants)[:: 1 if number % 2 else -1]:
            found[name].append(timed(lambda run=variants[name]: run(task, heads, seeds, steps)))
    rows = []
    for name, times in found.items():
        each = [a / b for a, b in zip(times, found["together"], strict=True)]
        low, middle, high = statistics.quantiles(each, n=4)
        rows.append(
            {"heads": " ".join(map(str, heads)), "seeds": len(seeds), "variant": name,
             "ms a step of "
             "all": statistics.median(times) / steps * 1e3, "by together": middle, "low": low, "high": high}
        )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for heads, seeds in (((2,), range(5)), ((1, 2, 3, 4, 8), range(1)), ((1, 2, 3, 4, 8), range(5))):
        rows += measure(heads, tuple(seeds), given.steps, given.rounds)
    data = {**provenance(), "batch": BATCH, "steps": given.steps, "rounds": given.rounds, "rows": rows}
    write_json(given.out, data)
    write_text(
        given.out.with_suffix(".md"), f"`python -m benchmarks.icl_linear_regression`, one thread\n\n{markdown(rows)}"
    )
    show("Many small layers at once", rows)


if __name__ == "__main__":
    main()
