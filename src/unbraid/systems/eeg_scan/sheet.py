"""The method sheet's small-scale check, and our figures beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from unbraid.systems.eeg_scan.study import Findings

COLUMNS = ("beta 1", "beta 4", "beta 4 at noise 0.6")
# quantity -> the sheet's figure per column (one seed each), and where ours is: a column of the rows, or features with
# factor and "average" or "trial"
SHEET: dict[str, tuple[tuple[float, float, float], Any]] = {
    "latents above 0.01 nats": ((10, 6, 5), "active latents"),
    "correlation with truth: trial": ((0.342, 0.342, 0.512), "trial"),
    "correlation with truth: reconstruction": ((0.471, 0.657, 0.849), "reconstruction"),
    "correlation with truth: average of 30 trials": ((0.893, 0.893, 0.956), "average of trials"),
    "correlation with truth: average of 30 reconstructions": ((0.901, 0.924, 0.947), "average of reconstructions"),
    "depression, average: LPP score": ((0.88, 0.88, 0.90), ("LPP score", "depression", "average")),
    "depression, average: codes": ((0.94, 0.89, 0.89), ("codes", "depression", "average")),
    "depression, average: SCAN": ((0.77, 0.60, 0.84), ("SCAN", "depression", "average")),
    "depression, trial: LPP score": ((0.633, 0.633, 0.705), ("LPP score", "depression", "trial")),
    "depression, trial: codes": ((0.681, 0.645, 0.738), ("codes", "depression", "trial")),
    "depression, trial: raw signal": ((0.689, 0.689, 0.768), ("raw signal", "depression", "trial")),
    "depression, trial: SCAN": ((0.671, 0.619, 0.730), ("SCAN", "depression", "trial")),
    "sex, average: LPP score": ((0.56, 0.56, 0.54), ("LPP score", "sex", "average")),
    "sex, average: codes": ((0.80, 0.68, 0.81), ("codes", "sex", "average")),
    "sex, average: SCAN": ((0.71, 0.60, 0.71), ("SCAN", "sex", "average")),
    "age, average: codes": ((0.55, 0.53, 0.56), ("codes", "age", "average")),
    "age, trial: raw signal": ((0.80, 0.80, 0.91), ("raw signal", "age", "trial")),
    "largest contrast for depression": ((0.53, 0.49, 0.96), "depression: contrast"),
    "|r| of the best latent with the true LPP, trials": ((0.32, 0.39, 0.65), "depression: |r|, trials"),
}


def beside_the_sheet(f: Findings) -> list[dict[str, Any]]:
    """A row per quantity: the sheet's figure and ours for each of its columns that was measured."""
    rows = []
    for quantity, (theirs, where) in SHEET.items():
        row: dict[str, Any] = {"quantity": quantity}
        for column, figure in zip(COLUMNS, theirs, strict=True):
            row |= {f"{column}: sheet": figure, f"{column}: here": _said(_found(f, column, where))}
        rows.append(row)
    return rows


def _found(f: Findings, column: str, where: Any) -> list[float]:
    if isinstance(where, str):
        return [float(r[where]) for r in f.rows if r["model"] == column]
    features, factor, what = where
    quiet = column.partition(" at ")[2]
    name = f"{features}, {column}" if features in ("codes", "SCAN") else f"{features} at {quiet}" if quiet else features
    return [r[what] for r in f.accuracies if r["features"] == name and r["factor"] == factor]


def _said(values: list[float]) -> str:
    if not values:
        return "not measured"
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.2f}"
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return f"{mean:.2f} ± {half:.2f}"
