"""Puts the figures of results/benchmarks/numerics.json into docs/numerics.md, so that no figure there is typed by hand.

    python -m benchmarks.numerics_page     # after python -m benchmarks.numerics; a test checks that it was done

A block `<!-- figures: NAME -->` ... `<!-- /figures -->` holds the table NAME of below.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.attention.report import markdown, write_text

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]
Tables = dict[str, list[Row]]


def pick(*names: str) -> Callable[[list[Row]], list[Row]]:
    """Some columns of a table, in this order."""

    def chosen(rows: list[Row]) -> list[Row]:
        return [{n: row.get(n) for n in names} for row in rows]

    return chosen


def families(rows: list[Row]) -> list[Row]:
    """The worst family of each statistic, by recipe."""
    *each, largest = rows
    out = []
    for name in ("P", "largest P", "mass", "entropy", "received"):
        row: Row = {"statistic": name}
        for recipe in ("rows", "fused"):
            column = f"{name}, {recipe}"
            row[recipe] = largest.get(column)
            worst = max((r for r in each if column in r), key=lambda r: r[column], default=None)
            row[f"worst family, {recipe}"] = worst["family"] if worst else None
        out.append(row)
    return out


def each_family(rows: list[Row]) -> list[Row]:
    """A line per family: the largest error of anything, and what tapping does to the output."""
    out = []
    for row in rows[:-1]:
        found = [v for k, v in row.items() if k.endswith((", rows", ", fused")) and not k.startswith("received")]
        line: Row = {"family": row["family"], "P, masses, entropy": max(found)}
        line["spot check"] = row["spot check"]
        line["output changed by looking"] = row["output, tapped"]
        line["output made from P, relative"] = row["output from rows / largest output"]
        out.append(line)
    return out


TABLES: dict[str, tuple[str, Callable[[list[Row]], list[Row]]]] = {
    "statistics": ("families", families),
    "families": ("families", each_family),
    "half": (
        "half",
        pick(
            "family", "dtype", "how", "P, to fp32", "entropy, to fp32", "P, to its eager",
            "to float64 of the same operands", "output unchanged",
        ),
    ),
    "cancellation": (
        "cancellation",
        pick(
            "largest logit", "mean entropy", "P, dense fp32", "entropy, dense fp32", "entropy, rows", "entropy, fused"
        ),
    ),
    "sums": (
        "long_sums",
        pick(
            "recipe", "received, relative", "mean distance, centred (tokens)", "rms distance (tokens)",
            "rms distance where > 64", "entropy",
        ),
    ),
    "masses": ("indicator_masses", pick("float32 statistics", "bfloat16 kernel")),
    "width": ("width_trap", pick("value width", "kernel, MiB", "engine, MiB")),
    "bias": ("key_bias", pick("bias", "output", "as a mask")),
    "hidden": ("hidden_rows", pick("who", "row sum", "largest P", "largest output")),
    "fast-path": ("torch_fast_path", pick("empty attach", "tapped", "fast path off, no tap")),
    "real": (
        "real_weights",
        pick(
            "run", "rows checked", "largest error", "logits moved", "entropy moved", "next tokens that differ"
        ),
    ),
}  # fmt: skip


def fill(page: str, measured: dict[str, Any]) -> str:
    """The page with every block of figures written anew."""

    def block(found: re.Match[str]) -> str:
        table, shown = TABLES[found[1]]
        return f"<!-- figures: {found[1]} -->\n{markdown(shown(measured['tables'][table]))}<!-- /figures -->"

    return re.sub(r"<!-- figures: ([\w-]+) -->\n.*?<!-- /figures -->", block, page, flags=re.DOTALL)


def main() -> None:
    path = ROOT / "docs" / "numerics.md"
    measured = json.loads((ROOT / "results" / "benchmarks" / "numerics.json").read_text(encoding="utf-8"))
    write_text(path, fill(path.read_text(encoding="utf-8"), measured))
    print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
