"""The paper's figures, drawn from what was measured: trajectories and heat maps first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from unbraid.core.figures import Bars, Figure, Lines, Scatter
from unbraid.core.heatmap import HeatMap
from unbraid.core.series import Series
from unbraid.metrics.intervals import over
from unbraid.systems.icl_linear_regression.predictors import preconditioner
from unbraid.systems.icl_linear_regression.reduced import mu_of
from unbraid.systems.icl_linear_regression.superposition import computed

if TYPE_CHECKING:
    from unbraid.systems.icl_linear_regression.study.study import Findings
    from unbraid.systems.icl_linear_regression.study.trainings import Trained

Rows = list[dict[str, Any]]


def make_figures(found: Findings) -> list[Figure]:
    """All figures of what was run, in the order in which a reader should see them."""
    figures: list[Figure] = []
    if "softmax" in found.trained:
        trained = found.trained["softmax"]
        figures += [losses(trained, found.rows["heads"]), *trajectories(trained), *circuits(trained)]
    if "lengths" in found.rows:
        figures.append(lengths(found.rows["lengths"]))
    if "softmax" in found.trained and any(h > 1 for h in found.trained["softmax"].heads):
        figures.append(manifold(found.trained["softmax"]))
    if "anisotropic" in found.trained:
        figures.append(anisotropic(found.trained["anisotropic"]))
    if "multitask" in found.rows:
        figures += multitask(found)
    if "activations" in found.rows:
        figures.append(activations(found))
    if "flow" in found.extra:
        figures += flow(found)
    return figures


def _banded(name: str, x: Any, values: np.ndarray) -> Series:
    """A line of means over seeds [T, S], with their intervals."""
    made = [over(v) for v in values]
    if values.shape[1] < 2:
        return Series(name, x, [m for m, _ in made])
    ends = [i or (m, m) for m, i in made]
    return Series(name, x, [m for m, _ in made], [e[0] for e in ends], [e[1] for e in ends])


def _heads(h: int) -> str:
    return "1 head" if h == 1 else f"{h} heads"


def losses(trained: Trained, rows: Rows) -> Lines:
    """Loss over steps of every head count."""
    series = [
        _banded(_heads(h), trained.arrays["steps"], trained.arrays["loss"][:, :, i])
        for i, h in enumerate(trained.heads)
    ]
    known = {n: float(np.mean([r[n] for r in rows])) for n in ("one head, exact", "debiased GD", "ridge")}
    return Lines(
        "Loss while training", series, "step of Adam", "mean squared error",
        f"Means over {len(trained.seeds)} seeds with 95 % intervals. Two heads and more leave the plateau of a single "
        "head when they split into a positive and a negative group.", y_scale="log", references=known,
    )  # fmt: skip


def trajectories(trained: Trained) -> list[Figure]:
    """omega and mu of every head over the steps, first seed, of two heads and of the most up to four."""
    figures: list[Figure] = []
    several = [h for h in trained.heads if 1 < h <= 4] or list(trained.heads)
    steps = trained.arrays["steps"].tolist()
    for h in sorted({several[0], several[-1]}):
        part = trained.part(h)
        omega = trained.arrays["omega"][:, 0, part].mean(-1)
        order = np.argsort(-omega[-1])
        for name, values in (("omega", omega), ("mu", trained.arrays["mu"][:, 0, part, 0])):
            said = "mean of KQ's diagonal" if name == "omega" else "label weight in OV"
            series = [Series(f"head {k + 1}", steps, values[:, j].tolist()) for k, j in enumerate(order)]
            figures.append(
                Lines(f"{name} of {_heads(h)}", series, "step of Adam", name, f"{said}, seed {trained.seeds[0]}.")
            )
    return figures


def circuits(trained: Trained) -> list[Figure]:
    """KQ and OV of the first seed's layers."""
    names = [f"x{j + 1}" for j in range(trained.task.dimension)] + ["y"]
    h = 2 if 2 in trained.heads else trained.heads[-1]
    c = trained.circuits(h, 0)
    live = c.kq[:, :, : c.dimension].numpy()
    rows = [f"head {k + 1}, {name}" for k in range(h) for name in names]
    maps: list[Figure] = [
        HeatMap(f"KQ of {_heads(h)}", live.reshape(-1, c.dimension).tolist(), rows, names[:-1], "query", "token",
                "A multiple of the identity in each head, zero in the rows of the label; the query's label is always "
                "0, so its column does nothing.", scale="diverging")
    ]  # fmt: skip
    every = [(k, trained.circuits(k, 0)) for k in trained.heads]
    rows = [f"H = {k}, head {i + 1}" for k, _ in every for i in range(k)]
    values = torch.cat([c.ov[:, 0] for _, c in every]).tolist()
    maps.append(
        HeatMap("OV of every head count", values, rows, names, "token", "head", "Only the label is read; the weights "
                "of a layer with several heads sum to zero.", scale="diverging")
    )  # fmt: skip
    return maps


def lengths(rows: Rows) -> Lines:
    """Error over the length of the context."""
    x = list(dict.fromkeys(r["L"] for r in rows))

    def table(field: str, **where: Any) -> np.ndarray:
        fit = [r for r in rows if all(r[k] == v for k, v in where.items())]
        return np.array([[r[field] for r in fit if r["L"] == length] for length in x])

    soft = list(dict.fromkeys(r["heads"] for r in rows if r["setting"] == "softmax"))
    series = [_banded(f"softmax, {_heads(h)}", x, table("loss", setting="softmax", heads=h)) for h in soft]
    series.append(_banded("linear, 1 head", x, table("loss", setting="linear", heads=1)))
    free = table("loss with 1/L of the sequence", setting="linear", heads=1)
    series.append(_banded("linear, 1/L of the sequence", x, free))
    series += [_banded(n, x, table(n, setting="softmax", heads=soft[0])) for n in ("debiased GD", "ridge")]
    return Lines("Contexts of other lengths", series, "pairs in context", "mean squared error",
                 "All are trained, or have their step chosen, at 40 pairs.", x_scale="log", y_scale="log")  # fmt: skip


def manifold(trained: Trained) -> Scatter:
    """gamma against the sum of mu over each group, with the curve of solutions and the way of one layer to it."""
    grid = np.linspace(0.08, 0.5, 40)
    series = [Series("mu_gamma", grid.tolist(), mu_of(grid, trained.task).tolist())]
    if 2 in trained.heads:
        part = trained.part(2)
        omega = trained.arrays["omega"][:, 0, part].mean(-1)
        split = omega.min(1) * omega.max(1) < 0
        path = np.abs(omega).mean(1)[split], np.abs(trained.arrays["mu"][:, 0, part, 0]).mean(1)[split]
        if split.any():
            series.append(Series(f"2 heads while training, seed {trained.seeds[0]}", *(p.tolist() for p in path)))
    for h in (h for h in trained.heads if h > 1):
        points = []
        for k in range(len(trained.seeds)):
            c = trained.circuits(h, k)
            w = c.kq.diagonal(dim1=1, dim2=2)[:, : c.dimension].mean(1).double()
            m = c.ov[:, 0, -1].double()
            gamma = float((w * m).abs() @ w.abs() / (w * m).abs().sum())
            points += [(gamma, float(m[w > 0].sum())), (gamma, float(-m[w < 0].sum()))]
        series.append(Series(_heads(h), [p[0] for p in points], [p[1] for p in points]))
    return Scatter("The manifold of solutions", series, "gamma = |omega|", "sum of |mu| in a group",
                   "Two points a trained layer, its positive and its negative heads; mu_gamma is the theory's curve. "
                   "Once split, layers move to the left along it.")  # fmt: skip


def anisotropic(trained: Trained) -> HeatMap:
    """KQ of two heads beside the best preconditioner."""
    d, c = trained.task.dimension, trained.circuits(2, 0)
    blocks = {
        "head 1": c.kq[0, :d, :d], "-head 2": -c.kq[1, :d, :d], "Omega*": preconditioner(trained.task).float(),
        "identity": torch.eye(d),
    }  # fmt: skip
    rows = [f"{name}, x{j + 1}" for name in blocks for j in range(d)]
    values = torch.cat([b / b.norm() for b in blocks.values()]).tolist()
    return HeatMap("KQ with correlated covariates", values, rows, [f"x{j + 1}" for j in range(d)], "query", "token",
                   "Each block scaled to norm 1; covariance "
                   f"{trained.task.rho:g}^|i-j|.", scale="diverging")  # fmt: skip


def multitask(found: Findings) -> list[Figure]:
    """Losses of several tasks over head counts, and which task reads which coordinate with which sign."""
    figures: list[Figure] = []
    for name in dict.fromkeys(r["setting"] for r in found.rows["multitask"]):
        rows = [r for r in found.rows["multitask"] if r["setting"] == name]
        heads = list(dict.fromkeys(r["heads"] for r in rows))
        each = np.array([[r["loss"] for r in rows if r["heads"] == h] for h in heads])
        known = {f"best step, {n} labels": rows[0][f"best linear, {n} labels"] for n in ("own", "all")}
        figures.append(
            Bars(f"Loss, {name}", [_banded("layers", [_heads(h) for h in heads], each)], "layer", "squared error, "
                                                                                                  "all tasks",
                 f"Exact steps need {rows[0]['least heads, own labels']} heads on own labels, "
                 f"{rows[0]['least heads, all labels']} on all.", horizontal=True, references=known)
        )  # fmt: skip
        trained = found.trained[name]
        d, n = trained.task.dimension, trained.task.tasks
        shown = [(h, trained.circuits(h, 0)) for h in heads if h <= 4]
        columns = [f"x{j + 1}" for j in range(d)]
        omega = torch.cat([c.kq.diagonal(dim1=1, dim2=2)[:, :d] for _, c in shown])
        rows_of = [f"H = {h}, head {k + 1}" for h, _ in shown for k in range(h)]
        figures.append(
            HeatMap(f"KQ's diagonals, {name}", omega.tolist(), rows_of, columns, "coordinate", "head",
                    f"Seed {trained.seeds[0]}.", scale="diverging")
        )  # fmt: skip
        steps = torch.cat([computed(c).flatten(0, 1) for _, c in shown])
        labels = [f"H = {h}, y{i + 1} by y{m + 1}" for h, _ in shown for i in range(n) for m in range(n)]
        figures.append(
            HeatMap(f"Steps computed, {name}", steps.tolist(), labels, [f"x{j + 1}" for j in range(d)], "coordinate",
                    "prediction from label", "Sum over heads of label weight times omega: where a task reads its own "
                    "coordinates only, heads that serve both tasks cancel elsewhere.", scale="diverging")
        )  # fmt: skip
    return figures


def activations(found: Findings) -> Lines:
    """Loss over steps of every activation."""
    names = list(dict.fromkeys(r["setting"] for r in found.rows["activations"]))
    series = [_banded(n, found.trained[n].arrays["steps"], found.trained[n].arrays["loss"][:, :, 0]) for n in names]
    soft = found.trained.get("softmax")
    if soft is not None and 2 in soft.heads:
        series.append(_banded("softmax", soft.arrays["steps"], soft.arrays["loss"][:, :, soft.heads.index(2)]))
    return Lines("Loss while training, other activations", series, "step of Adam", "mean squared error",
                 "Two heads; affine 1 + x, square (1 + x)^2, tanh 1 + tanh x, each divided by its "
                 "sum.", y_scale="log")  # fmt: skip


def flow(found: Findings) -> list[Figure]:
    """Descent of the reduced model, and the approximations."""
    made, figures = found.extra["flow"], []
    for name, values in (("omega", made.omega), ("mu", made.mu)):
        series = [
            Series(f"head {k + 1}", made.steps[1:].tolist(), values[1:, 0, k].tolist()) for k in range(values.shape[2])
        ]
        figures.append(
            Lines(f"{name} of the reduced model", series, "step of descent", name, "Four heads, first start: signs "
                  "match, then sizes become equal.", x_scale="log")
        )  # fmt: skip
    rows = found.rows["approximation"]
    gammas = list(dict.fromkeys(r["gamma"] for r in rows))

    def by(field: str) -> np.ndarray:
        return np.array([[r[field] for r in rows if r["gamma"] == g] for g in gammas])

    series = [
        Series("approximate loss", gammas, by("approximate "
                                              "loss")[:, 0].tolist()), _banded("simulated", gammas, by("simulated")),
        Series("exact in all but L + 1 numbers", gammas, by("exact in all but L + 1 numbers")[:, 0].tolist()),
    ]  # fmt: skip
    figures.append(Lines("Loss on the manifold", series, "gamma", "mean squared error"))
    series = [
        _banded("mean", gammas, by("distance from debiased GD")), _banded("95th percentile", gammas, by("its 95th "
            "percentile")),
        Series("sqrt(1 + sigma^2) gamma d", gammas, by("bound without its logarithms")[:, 0].tolist()),
    ]  # fmt: skip
    figures.append(
        Lines("Distance from debiased gradient descent", series, "gamma", "|difference of predictions|",
              "Two heads with the same step eta at every gamma.", x_scale="log", y_scale="log")
    )  # fmt: skip
    return list(figures)
