"""Statistics of every head of SmolLM2, next to the plain forward pass and to what people use today.

    python -m benchmarks.attention_statistics                                   # the whole table, hours
    python -m benchmarks.attention_statistics --lengths 512 --repeat 1 --threads 1 --out /tmp/try.json
    python -m benchmarks.peers.build                                            # once, for the lines (d)

Asked for: mass on two groups of keys, entropy, received attention and arg-max of all 270 heads. Each cell runs in fresh
processes, one for its memory and --repeat for its time; a round of repeats meets all variants before the next begins,
so that slow minutes of a machine meet them all. Finished cells stay in runs/benchmarks/ and are not run again, except
with --fresh or when code, versions or machine changed. Use the machine for nothing else meanwhile.

`--device cuda` (lengths up to 131,072) is untested: no machine with a GPU was at hand when this was written.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.attention.cells import (
    GIB,
    PEERS,
    ROOT,
    VARIANTS,
    Bench,
    Variant,
    code_digest,
    free_bytes,
    predicted_bytes,
)
from benchmarks.attention.report import markdown, provenance, show, write_json, write_text
from benchmarks.attention.summary import Seen, agreement, arithmetic, bars, table

LENGTHS = {"cpu": [512, 1024, 2048, 4096, 8192], "cuda": [2048, 8192, 32768, 65536, 131072]}
OUT = ROOT / "results" / "benchmarks" / "attention_statistics.json"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", help="contexts in tokens (512 1024 2048 4096 8192)")
    parser.add_argument(
        "--repeat", type=int, default=3, help="fresh processes per cell, of which the median is taken (3)"
    )
    parser.add_argument("--threads", type=int, help="of each process (the cores that this one may use)")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help=f"of {', '.join(v.name for v in VARIANTS)}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="float32 on cpu, bfloat16 on cuda")
    parser.add_argument("--memory-gib", type=float, help="skip what is predicted to need more (20 on cpu, 70 on cuda)")
    parser.add_argument("--seconds", type=float, default=3.0, help="run short texts at least this long per process (3)")
    parser.add_argument("--random-weights", action="store_true", help="SmolLM2's shape without its weights")
    parser.add_argument("--seed", type=int, default=0, help="of random weights and random text")
    parser.add_argument("--fresh", action="store_true", help="measure everything anew")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON; a Markdown table goes beside it")
    given = parser.parse_args()
    given.lengths = sorted(set(given.lengths or LENGTHS[given.device]))
    given.threads = given.threads or len(os.sched_getaffinity(0))
    given.dtype = given.dtype or {"cpu": "float32", "cuda": "bfloat16"}[given.device]
    given.memory_gib = given.memory_gib or {"cpu": 20.0, "cuda": 70.0}[given.device]
    unknown = set(given.only or ()) - {v.name for v in VARIANTS}
    if unknown:
        parser.error(f"--only {unknown.pop()}: choose from {', '.join(v.name for v in VARIANTS)}")
    if min(given.lengths) < 192 or given.repeat < 1 or given.threads < 1:
        parser.error("--lengths must be at least 192 tokens, --repeat and --threads at least 1")
    return given


def peers() -> tuple[dict[str, str] | None, str]:
    """Versions of the peers, or None and the reason why they are left out."""
    if not PEERS.exists():
        return None, "no .venv-peers (python -m benchmarks.peers.build)"
    done = subprocess.run(
        [str(PEERS), "-m", "benchmarks.peers.worker", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return None, f"the peers do not load: {(done.stderr.strip().splitlines() or ['?'])[-1][:200]}"
    return json.loads(done.stdout.splitlines()[-1]), ""


def why_not(variant: Variant, length: int, given: argparse.Namespace, no_peers: str) -> str | None:
    """Why a cell is left out, or None."""
    if given.only and variant.name not in (*given.only, "plain"):
        return "not asked for"
    if variant.peer and no_peers:
        return f"skipped: {no_peers}"
    if variant.name.startswith("transformerlens") and given.random_weights:
        return "skipped: TransformerLens boots from a model folder, not from random weights"
    needed = predicted_bytes(variant, length, 4 if given.dtype == "float32" else 2) / GIB
    if variant.maps and needed > given.memory_gib:
        return f"skipped: predicted to need {needed:,.0f} GiB, the limit is {given.memory_gib:g}"
    free = free_bytes() if given.device == "cpu" else None
    if variant.maps and free is not None and needed > free / GIB - 1:
        return f"skipped: predicted to need {needed:.1f} GiB, {free / GIB:.1f} are free"
    return None


def opened(given: argparse.Namespace, versions: dict[str, str] | None) -> tuple[Bench, str]:
    """The cells of these circumstances, with the model fetched and the text tokenised."""
    about = provenance()
    identity = {
        "code": code_digest(), "versions": about["versions"], "peers": versions,
        "processor": about["machine"]["processor"],
        "threads": given.threads, "device": given.device, "dtype": given.dtype, "seed": given.seed,
        "weights": "random" if given.random_weights else "smollm2", "seconds": given.seconds,
    }  # fmt: skip
    kind = "random" if given.random_weights else "smollm2"
    folder = ROOT / "runs" / "benchmarks" / f"{kind}-{given.device}-{given.dtype}-{given.threads}"
    common = {
        "device": given.device, "dtype": given.dtype, "threads": given.threads, "seed": given.seed,
        "at_least": given.seconds, "most": 9, "tokens": str(folder / "tokens.json"), "random": given.random_weights,
        "text": str(ROOT / "LICENSE"),
    }  # fmt: skip
    bench = Bench(folder, identity, common)
    said = bench.open(given.fresh)
    bench.cells.pop("prepare", None)  # the cache of models may have moved since
    ready = bench.run("prepare", {"variant": "prepare"})
    if "failed" in ready:
        raise SystemExit(f"The model could not be prepared: {ready['failed']}")
    bench.common["model"] = ready["model"]
    return bench, said


class Run:
    """Runs cells with a bar and gathers what they report."""

    def __init__(self, bench: Bench, given: argparse.Namespace, no_peers: str) -> None:
        self.bench, self.given, self.no_peers, self.seen = bench, given, no_peers, Seen()
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), console=Console(stderr=True),
        )  # fmt: skip
        cells = given.repeat + len(given.lengths) * len(VARIANTS) * (1 + given.repeat)
        self.task = self.bar.add_task("", total=cells)

    def all(self) -> Seen:
        """The rates of the machine, then length by length: memory of every variant, then times, round by round."""
        with self.bar:
            for repeat in range(self.given.repeat):
                found = self.cell(f"arithmetic|{repeat}", "arithmetic of the machine", {"variant": "arithmetic"})
                self.seen.machine += [] if "failed" in found else [found]
            for length in self.given.lengths:
                for variant in VARIANTS:
                    self.memory(variant, length)
                for repeat in range(self.given.repeat):
                    turn = repeat % len(VARIANTS)  # nobody always follows the same neighbour
                    for variant in VARIANTS[turn:] + VARIANTS[:turn]:
                        self.time(variant, length, repeat)
        return self.seen

    def cell(self, key: str, doing: str, job: dict[str, Any], peer: bool = False) -> dict[str, Any]:
        """One cell, from what is kept or run now."""
        self.bar.update(self.task, description=doing)
        if not self.bar.console.is_terminal and key not in self.bench.cells:
            self.bar.console.print(doing, markup=False)
        found = self.bench.run(key, job, peer)
        if "failed" in found:
            self.bar.console.print(f"{doing} failed: {found['failed']}", markup=False)
        self.bar.advance(self.task)
        return found

    def memory(self, variant: Variant, length: int) -> None:
        """Memory and statistics of a variant, or why it is left out."""
        where, key = (variant.name, length), f"{variant.name}|{length}|memory"
        reason = why_not(variant, length, self.given, self.no_peers)
        if reason is not None and key not in self.bench.cells:
            self.seen.skipped[where] = reason
            self.bar.advance(self.task)
            return
        path = self.bench.statistics_at(*where)
        job = {"variant": variant.name, "length": length, "memory": True, "statistics": str(path)}
        found = self.cell(key, f"{length} tokens, memory, {variant.name}", job, variant.peer)
        if "failed" in found:
            self.seen.skipped[where] = f"failed: {found['failed']}"
        else:
            self.seen.memory[where], self.seen.paths[where] = found, path

    def time(self, variant: Variant, length: int, repeat: int) -> None:
        """The time of a variant that ran for its memory."""
        where = (variant.name, length)
        if where in self.seen.skipped:
            self.bar.advance(self.task)
            return
        job = {"variant": variant.name, "length": length, "memory": False}
        doing = f"{length} tokens, time {repeat + 1}/{self.given.repeat}, {variant.name}"
        found = self.cell(f"{variant.name}|{length}|{repeat}", doing, job, variant.peer)
        if "failed" not in found:
            self.seen.times.setdefault(where, []).append(found)


def page(result: dict[str, Any]) -> str:
    """The Markdown table."""
    about = result["machine"]
    lines = [
        "# Attention statistics of every head, SmolLM2-135M", "",
        f"{about['processor']}, threads used: {result['identity']['threads']}, {about['memory_gib']} GiB; "
        f"{', '.join(f'{k} {v}' for k, v in result['versions'].items())}; {result['identity']['device']}, "
        f"{result['identity']['dtype']}, {result['identity']['weights']} weights, seed {result['identity']['seed']}; "
        f"median of {result['arguments']['repeat']} fresh processes. Command: `{result['arguments']['command']}`.", "",
        "s: median, fastest and slowest process. MiB: most resident memory beyond the loaded model.", "",
    ]  # fmt: skip
    for title, rows in result["tables"].items():
        if rows:
            lines += [f"## {title}", "", markdown(rows)]
    return "\n".join(lines)


def main() -> None:
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the child ends with us
    versions, no_peers = peers()
    bench, said = opened(given, versions)
    for line in (said, no_peers and f"Left out: TransformerLens and nnsight: {no_peers}"):
        if line:
            print(line, file=sys.stderr)
    try:
        seen = Run(bench, given, no_peers).all()
    except KeyboardInterrupt:
        raise SystemExit(
            f"Interrupted. {len(bench.cells)} finished cells are kept; the same command goes on."
        ) from None
    tables = {
        "Time and memory": table(seen, given.lengths),
        "What was wanted": bars(seen, given.lengths),
        "Agreement (largest differences)": agreement(seen.paths, given.lengths),
        "Distance from the arithmetic": arithmetic(seen, given.lengths),
    }
    for title, rows in tables.items():
        if rows:
            show(title, rows)
    asked = {
        "lengths": given.lengths,
        "repeat": given.repeat,
        "command": " ".join(["python -m benchmarks.attention_statistics", *sys.argv[1:]]),
    }
    result = {**provenance(), "arguments": asked, "identity": bench.identity, "peers": versions, "tables": tables}
    result |= {"arithmetic": seen.machine, "cells": {k: v for k, v in bench.cells.items() if k != "prepare"}}
    write_json(given.out, result)
    write_text(given.out.with_suffix(".md"), page(result))
    print(f"written: {given.out} and {given.out.with_suffix('.md').name}", file=sys.stderr)


if __name__ == "__main__":
    main()
