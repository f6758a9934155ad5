"""From findings to a page: curves and maps first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from unbraid.core.figures import Bars, Lines
from unbraid.core.heatmap import HeatMap
from unbraid.core.result import Result, Table
from unbraid.core.series import Series
from unbraid.metrics.intervals import over
from unbraid.systems.random_feature_attention import CARD
from unbraid.systems.random_feature_attention.claims import measure
from unbraid.systems.random_feature_attention.complexity import slope
from unbraid.systems.random_feature_attention.study import Findings
from unbraid.systems.random_feature_attention.targets import target

FLOOR = 1e-12


def make_result(f: Findings, params: dict[str, Any], seconds: float) -> Result:
    """The page."""
    tables: dict[str, Any] = {}
    if f.rows:
        tables["curves"] = Table.from_records(curves(f.rows), "MSE over the variance of the tested labels, over seeds.")
        tables["slopes"] = Table.from_records(slopes(f.rows), "Slope of log error over log n; the bound has -0.5.")
    if f.mixing:
        tables["mixing"] = Table.from_records(curves(f.mixing), "<x0, S xi>^p; S moves from the identity to random.")
    if f.needed:
        tables["samples needed"] = Table.from_records(f.needed, "For half the variance of a quadratic target.")
    if f.degrees:
        rows = [{"target": t, **row} for t, found in f.degrees.items() for row in found.table().records]
        tables["degrees"] = Table.from_records([r for r in rows if r["present"]], "Shares that stand out of the noise.")
    if f.kernel:
        tables["kernels"] = Table.from_records(f.kernel, "Gram matrix of M heads against the closed form.")
        tables["symmetries"] = Table.from_records(f.symmetry, "Changes of predictions over their deviation.")
    if f.frozen:
        tables["frozen layers"] = Table.from_records(f.frozen, "A layer of tiny-clip; queries and keys frozen or not.")
    return Result(
        CARD.slug, "What one attention layer with frozen queries and keys learns, and from how many samples",
        params=params, claims=measure(f), tables=tables, figures=figures(f), notes=notes(f, params), lead="figures",
        meta={"seed": params["seed"], "seconds": round(seconds, 1), "pieces_read_back": f.read_back},
    )  # fmt: skip


def groups(rows: Sequence[dict[str, Any]], *names: str) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Rows by what they share, in the order in which it first occurs."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def curves(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per target, model, heads and size: mean error and interval over seeds."""
    made = []
    for (name, model, heads, n), own in groups(rows, "target", "model", "heads", "n").items():
        mean, bounds = over([r["error"] for r in own])
        low, high = bounds or (None, None)
        row = {"target": name, "model": model, "heads": heads, "n": n, "error": mean, "low": low, "high": high,
               "seeds": len(own), "penalty (median)": float(np.median([r["penalty"] for r in own]))}  # fmt: skip
        if "cosine" in own[0]:
            row["cosine of estimate and S"] = float(np.mean([r["cosine"] for r in own]))
        made.append(row)
    return made


def slopes(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per target, model and heads: slope of log error over log n, over seeds."""
    made = []
    for (name, model, heads), own in groups(rows, "target", "model", "heads").items():
        each = []
        for mine in groups(own, "seed").values():
            ordered = sorted(mine, key=lambda r: r["n"])
            each.append(slope([r["n"] for r in ordered], [r["error"] for r in ordered]))
        mean, bounds = over(each)
        low, high = bounds or (None, None)
        made.append(
            {"target": name, "model": model, "heads": heads, "slope": mean, "low": low, "high": high,
             "seeds": len(each), "sizes": len({r["n"] for r in own})}
        )  # fmt: skip
    return made


def line(name: str, rows: Sequence[dict[str, Any]], x: str, y: str = "error") -> Series:
    """A line over ``x``, with intervals over seeds where there are several."""
    at, mean, low, high = [], [], [], []
    for (value,), own in sorted(groups(rows, x).items()):
        middle, bounds = over([r[y] for r in own])
        at.append(value)
        mean.append(middle)
        low.append(max(bounds[0], min(middle, 1.0) / 100, FLOOR) if bounds else middle)
        high.append(bounds[1] if bounds else middle)
    return Series(name, at, mean, low, high)


def figures(f: Findings) -> list[Any]:
    """Curves of each target, the map of models by targets, then what explains them."""
    made: list[Any] = []
    heads = sorted({r["heads"] for r in f.rows if r["heads"]})
    few = [r for r in f.rows if r["heads"] in (heads[:1] or [None]) or r["heads"] is None]
    for (name,), own in groups(few, "target").items():
        series = [line(model, mine, "n") for (model,), mine in groups(own, "model").items()]
        made.append(
            Lines(f"Error over samples: {target(name).formula}", series, "training inputs", "MSE / variance",
                  f"Average over keys; {heads[0] if heads else 'infinitely many'} heads. Bands: 95 % over seeds.",
                  x_scale="log", y_scale="log", references={"mean of the labels": 1.0})
        )  # fmt: skip
    if few:
        made.append(_map(few))
    if len(heads) > 1:
        most = max(r["n"] for r in f.rows)
        for (name,), own in groups([r for r in f.rows if r["n"] == most and r["heads"]], "target").items():
            series = [line(model, mine, "heads") for (model,), mine in groups(own, "model").items()]
            made.append(
                Lines(f"Error over heads at n = {most:,}: {target(name).formula}", series, "heads", "MSE / variance",
                      x_scale="log", y_scale="log")
            )  # fmt: skip
    return made + _keys(f) + _mixing(f) + _rest(f)


def _map(rows: Sequence[dict[str, Any]]) -> HeatMap:
    most = max(r["n"] for r in rows)
    last = [r for r in rows if r["n"] == most]
    names, models = list(dict.fromkeys(r["target"] for r in last)), list(dict.fromkeys(r["model"] for r in last))
    table = [[float(np.mean([r["error"] for r in last if (r["target"], r["model"]) == (t, m)])) for m in models]
             for t in names]  # fmt: skip
    return HeatMap(
        f"Error at n = {most:,}", table, [target(t).formula for t in names], models, "model", "target",
        "MSE over the variance of the labels; 1: nothing learned.", scale="sequential", limits=(0, 1),
    )  # fmt: skip


def _keys(f: Findings) -> list[Any]:
    ended = [r for r in f.needed if r["samples"] is not None]
    if not ended:
        return []
    series = [line(model, own, "keys", "samples") for (model,), own in groups(ended, "model").items()]
    caption = "Samples for half the variance of the average of <b,xi>^2; trials without an end are left out."
    return [
        Lines("Samples needed over keys", series, "keys N", "training inputs", caption, x_scale="log", y_scale="log")
    ]


def _mixing(f: Findings) -> list[Any]:
    made = []
    for p in sorted({r["target"].split(":")[2] for r in f.mixing}):
        rows = [{**r, "gamma": target(r["target"]).gamma} for r in f.mixing if r["target"].split(":")[2] == p]
        series = [line(model, own, "gamma") for (model,), own in groups(rows, "model").items()]
        made.append(
            Lines(f"From the identity to a random matrix: power {p} of <x0,S xi>", series, "gamma", "MSE / variance",
                  f"n = {rows[0]['n']}. Biased by the identity, by a matrix estimated from the same samples, or not.")
        )  # fmt: skip
    return made


def _rest(f: Findings) -> list[Any]:
    made: list[Any] = []
    if f.degrees:
        at = sorted({rs for found in f.degrees.values() for rs in found.present})
        table = [[found.shares[rs] if rs in found.present else np.nan for rs in at] for found in f.degrees.values()]
        if at:
            made.append(
                HeatMap("What the targets are made of", table, [target(t).formula for t in f.degrees],
                        [f"({r}, {s})" for r, s in at], "degree in (query, key)", "target",
                        "Share of the variance by kernel alignment; empty: not told from noise.", scale="sequential",
                        limits=(0, 1))
            )  # fmt: skip
    if f.kernel:
        series = [line(model, own, "heads") for (model,), own in groups(f.kernel, "model").items()]
        made.append(
            Lines("Heads against the closed form", series, "heads", "relative error of the Gram matrix",
                  x_scale="log", y_scale="log")
        )  # fmt: skip
    if f.frozen:
        made.append(_frozen(f))
    return made


def _frozen(f: Findings) -> Bars:
    names = list(dict.fromkeys(r["target"] for r in f.frozen))
    series = []
    for (arm,), own in groups(f.frozen, "arm").items():
        found = [over([r["error"] for r in own if r["target"] == t]) for t in names]
        bounds = [b or (m, m) for m, b in found]
        series.append(Series(arm, names, [m for m, _ in found], [b[0] for b in bounds], [b[1] for b in bounds]))
    return Bars(
        "A layer of tiny-clip with frozen queries and keys", series, "target", "MSE / variance",
        "Values, output and readout are trained in all; queries and keys drawn anew, as pre-trained, or trained.",
    )  # fmt: skip


def notes(f: Findings, params: dict[str, Any]) -> list[str]:
    """What a reader must know."""
    said = [
        "Of the paper only the abstract could be read: model, families and settings follow the method sheet, whose "
        "figures are from memory or its own measurements; no figure of the paper is compared with.",
        "Labels are noiseless, tokens uniform on the sphere. The last fifth of the training inputs chooses the ridge "
        "penalty, then all are used; test inputs are drawn apart. An error of 1 is that of the labels' mean; above it, "
        "a model fits what it cannot tell.",
        "All targets of a seed share inputs and weights, so their errors are not independent of one another.",
    ]
    if f.needed and any(r["samples"] is None for r in f.needed):
        open_ = sorted({(r["model"], r["keys"]) for r in f.needed if r["samples"] is None})
        said.append(
            f"With at most {params['most']:,} samples some did not come to half the variance: "
            + ", ".join(f"{model} with {keys} keys" for model, keys in open_) + "."
        )  # fmt: skip
    for name, found in f.degrees.items():
        said.append(f"{target(name).formula}: {found.statement()}")
    return said
