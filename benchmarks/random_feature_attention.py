"""Random-feature attention's fit, a block of heads at a time, next to the design matrix held whole.

    python -m benchmarks.random_feature_attention          # writes results/benchmarks/random_feature_attention.json

Tokens uniform on the sphere, d = N = 16, float64, one thread. *whole* makes all features at once in numpy, their inner
products by one product, and solves the ridge; *streaming* is `RandomFeatureAttentionRegressor` with a given penalty,
which also computes the values (a second pass). Both predict 500 further inputs; *difference* is the greatest difference
of these, over their deviation. Every cell is two fresh processes; time is the processor's, the least of the repeats,
memory the high-water mark of resident memory beyond what was there before, in a process that gives freed blocks back at
once (which makes many small blocks twice as slow, and so is not timed). Cells of *whole* that would need more than
--memory-gib are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.attention.report import markdown, provenance, show, write_json, write_text
from benchmarks.deberta import peak
from unbraid.systems.random_feature_attention.features import AttentionFeatures
from unbraid.systems.random_feature_attention.system import RandomFeatureAttentionRegressor
from unbraid.systems.random_feature_attention.targets import directions, sphere_tokens, target

OUT = Path(__file__).resolve().parents[1] / "results" / "benchmarks" / "random_feature_attention.json"
CELLS = [(1_000, 500), (1_000, 2_000), (2_000, 500), (2_000, 2_000), (4_000, 1_000), (10_000, 250)]
D, N, TEST, PENALTY = 16, 16, 500, 1e-3


def whole(x: np.ndarray, y: np.ndarray, test: np.ndarray, heads: int) -> np.ndarray:
    """All features at once."""
    map_ = AttentionFeatures(heads)
    w = torch.cat([map_.weights(k, D + 1) for k in range(-(-heads // map_.BLOCK))]).double().numpy()

    def features(given: np.ndarray) -> np.ndarray:
        tokens = np.concatenate([given, np.ones((*given.shape[:2], 1))], 2)
        projected = np.tensordot(tokens[:, 0], w, (1, 1))
        scores = np.maximum(projected @ tokens[:, 1:].transpose(0, 2, 1), 0)
        return (scores @ tokens[:, 1:] / N).reshape(len(given), -1)

    phi = features(x)
    mean, spread = y.mean(), y.std()
    if len(x) > phi.shape[1]:
        squares = phi.T @ phi
        squares[np.diag_indices_from(squares)] += PENALTY * np.trace(squares) / len(x)
        trained = np.linalg.solve(squares, phi.T @ ((y - mean) / spread))
    else:
        gram = phi @ phi.T
        gram[np.diag_indices_from(gram)] += PENALTY * np.trace(gram) / len(x)
        trained = phi.T @ np.linalg.solve(gram, (y - mean) / spread)
    return features(test) @ trained * spread + mean


def streaming(x: np.ndarray, y: np.ndarray, test: np.ndarray, heads: int) -> np.ndarray:
    """A block at a time."""
    return RandomFeatureAttentionRegressor(heads, penalty=PENALTY, scaling="none").fit(x, y).predict(test)


RUNS = {"whole": whole, "streaming": streaming}


def cell(given: str) -> None:
    """Measures one cell in this process."""
    torch.set_num_threads(1)
    job = json.loads(given)
    x = sphere_tokens(job["n"] + TEST, N, D, 0)
    y = target("power:2")(x, *directions(D, 0))
    run, times = RUNS[job["variant"]], []
    run(x[:40], y[:40], x[:5], 10)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = peak()
    for _ in range(job["repeat"]):
        start = time.process_time()
        found = run(x[: job["n"]], y[: job["n"]], x[job["n"] :], job["heads"])
        times.append(time.process_time() - start)
    answer = {"seconds": min(times), "MiB": (peak() - before) / 1024, "found": found.tolist()}
    write_json(Path(job["answer"]), answer)


def measured(variant: str, n: int, heads: int, repeat: int) -> dict[str, Any]:
    """One cell: time in one fresh process, memory in another."""
    plain = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    timed = _apart(plain, variant, n, heads, repeat)
    return timed | {"MiB": _apart(plain | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}, variant, n, heads, 1)["MiB"]}


def _apart(environment: dict[str, str], variant: str, n: int, heads: int, repeat: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        job = {"variant": variant, "n": n, "heads": heads, "repeat": repeat, "answer": str(answer)}
        line = [sys.executable, "-m", "benchmarks.random_feature_attention", "--cell", json.dumps(job)]
        subprocess.run(line, check=True, env=environment)
        return dict(json.loads(answer.read_text(encoding="utf-8")))


def main() -> int:
    """Runs all cells and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=2, help="times each fit is run (2)")
    parser.add_argument("--memory-gib", type=float, default=4.0, help="leave out what needs more (4)")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cell:
        cell(given.cell)
        return 0
    rows = []
    for n, heads in CELLS:
        numbers = heads * (D + 1)
        row: dict[str, Any] = {"n": n, "heads": heads, "design MiB": 8 * n * numbers / 2**20}
        stream = measured("streaming", n, heads, given.repeat)
        row |= {"s streaming": stream["seconds"], "MiB streaming": stream["MiB"]}
        fits = 8 * (n * numbers + min(n, numbers) ** 2) / 2**30 < given.memory_gib
        plain = measured("whole", n, heads, given.repeat) if fits else None
        row |= {"s whole": plain and plain["seconds"], "MiB whole": plain and plain["MiB"]}
        if plain:
            a, b = np.array(plain["found"]), np.array(stream["found"])
            row |= {"x as fast": plain["seconds"] / stream["seconds"], "x less memory": plain["MiB"] / stream["MiB"]}
            row["difference"] = float(np.abs(a - b).max() / a.std())
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    show("Random-feature attention", rows)
    command = f"python -m benchmarks.random_feature_attention --repeat {given.repeat}"
    write_json(given.out, {"command": command, "rows": rows, "provenance": provenance()})
    write_text(given.out.with_suffix(".md"), f"`{command}`\n\n{markdown(rows)}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
