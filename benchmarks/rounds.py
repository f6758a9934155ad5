"""Cells of a benchmark in fresh processes: lengths by variants, round after round, one command line for all of them."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.attention.report import markdown, provenance, show, write_json, write_text

Found = dict[tuple[int, str], list[dict[str, Any]]]


def command_line(
    module: str,
    about: str | None,
    title: str,
    out: Path,
    variants: Sequence[str],
    lengths: Sequence[int],
    cell: Callable[[dict[str, Any]], dict[str, Any]],
    rows: Callable[[Found, Sequence[int]], list[dict[str, Any]]],
    fits: Callable[[str, int], bool] = lambda variant, length: True,
    steps: int | None = None,
) -> int:
    """Runs a cell when it is the fresh process, else all of them, and writes the table.

    Args:
        module: as in `python -m module`.
        about: help text.
        title: of the table on the terminal.
        out: where the table goes unless told otherwise.
        variants: names.
        lengths: in tokens, unless told otherwise.
        cell: measures one job (variant, length, threads and, if asked for, steps) in this process.
        rows: the table from the answers of all cells.
        fits: which cells fit into memory; others are left out.
        steps: default of an option `--steps`; None: there is none.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(lengths))
    parser.add_argument("--repeat", type=int, default=2, help="fresh processes per cell; medians are taken (2)")
    parser.add_argument("--threads", type=int, default=2)
    if steps is not None:
        parser.add_argument("--steps", type=int, default=steps, help=f"tokens made per cell ({steps})")
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cell:
        job = json.loads(given.cell)
        write_json(Path(job["answer"]), cell(job))
        return 0
    shared = {"threads": given.threads} | ({} if steps is None else {"steps": given.steps})
    found: Found = {}
    with tempfile.TemporaryDirectory() as folder:
        for length in given.lengths:
            for number in range(given.repeat):
                for variant in [v for v in variants if fits(v, length)]:
                    answer = Path(folder) / f"{length}-{number}-{variants.index(variant)}.json"
                    job = {"variant": variant, "length": length, **shared, "answer": str(answer)}
                    line = [sys.executable, "-m", module, "--cell", json.dumps(job)]
                    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
                    found.setdefault((length, variant), []).append(json.loads(answer.read_text(encoding="utf-8")))
                    print(f"{length} tokens, {variant}, {number + 1} of {given.repeat}", file=sys.stderr)
    table = rows(found, given.lengths)
    show(title, table)
    options = {"lengths": " ".join(map(str, given.lengths)), "repeat": given.repeat, **shared}
    command = " ".join([f"python -m {module}", *(f"--{k} {v}" for k, v in options.items())])
    write_json(given.out, {"command": command, "rows": table, "provenance": provenance()})
    write_text(given.out.with_suffix(".md"), f"`{command}`\n\n{markdown(table)}")
    return 0
