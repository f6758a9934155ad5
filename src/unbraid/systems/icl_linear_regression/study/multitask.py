"""Several tasks in one layer: with weights b of their own, as in the paper's code, and with shared ones, as it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unbraid.core.pieces import Pieces
from unbraid.core.training.batches import mix
from unbraid.systems.icl_linear_regression.patterns import report
from unbraid.systems.icl_linear_regression.predictors import best_linear, gradient_step, ridge
from unbraid.systems.icl_linear_regression.projection import r_squared
from unbraid.systems.icl_linear_regression.sampling import Regression
from unbraid.systems.icl_linear_regression.study.theory import WORLDS
from unbraid.systems.icl_linear_regression.study.trainings import How, Trained, mse, training, unseen
from unbraid.systems.icl_linear_regression.superposition import computed, least_heads, targets

SETTINGS: dict[str, tuple[int, bool, tuple[int, ...]]] = {
    "two tasks, own b": (2, False, (1, 2, 3, 4)),
    "two tasks, shared b": (2, True, (1, 2, 3, 4)),
    "three tasks, own b": (3, False, (1, 2, 3, 4, 6)),
}


def setting(name: str) -> Regression:
    """d = 6, L = 40, sigma^2 = 0.1 and overlapping coordinates, as in the authors' post."""
    tasks, shared, _ = SETTINGS[name]
    return Regression(6, 40, 0.1, 0.0, WORLDS[tasks], shared)


def optimum(task: Regression, cross: bool, sequences: int = 50_000) -> tuple[Tensor, float]:
    """Steps [N, N, d] of the best linear layer and its loss over all tasks, by least squares."""
    weights, risks = best_linear(task, sequences, mix(0, 19, 0), cross=cross)
    return weights, float(np.sum(risks))


def heads_needed(weights: Tensor) -> int:
    """Heads that compute these steps exactly, by the coordinates' distinct roles: rank + 1."""
    flat = weights.flatten(0, 1)
    values = torch.linalg.svdvals(flat)
    return int((values > 0.05 * values[0]).sum()) + 1  # least squares leave a noise of about 0.01


def multitask(
    store: Pieces,
    names: tuple[str, ...],
    seeds: tuple[int, ...],
    hows: tuple[How, How],
    tick: Callable[[int], None] | None,
) -> tuple[list[dict[str, Any]], dict[str, Trained]]:
    """Trains all settings, the first by the first of the two ways; one row a layer."""
    rows, kept = [], {}
    for name in names:
        task, heads, how = setting(name), SETTINGS[name][2], hows[name != next(iter(SETTINGS))]
        trained = kept[name] = training(store, task, heads, seeds, how, tick=tick)
        best = {cross: optimum(task, cross) for cross in (False, True)}
        for k, seed in enumerate(seeds):
            batch = unseen(task, seed, how.sequences)
            separate = gradient_step(batch, targets(task))
            rows += [{"setting": name, "seed": seed, **_row(trained, h, k, batch, separate, best)} for h in heads]
    return rows, kept


def _row(trained: Trained, h: int, k: int, batch: Any, separate: Tensor, best: dict[bool, Any]) -> dict[str, Any]:
    task, c = trained.task, trained.circuits(h, k)
    own, steps, d = c.predict(batch), computed(c), task.dimension
    labels = c.ov.double()[:, :, d:]
    off = labels.square().sum() - labels.diagonal(dim1=1, dim2=2).square().sum()
    shared = task.masks().sum(0) > 1
    size = c.kq.diagonal(dim1=1, dim2=2)[:, :d].abs().mean(0)
    return {
        "heads": h, "loss": mse(own, batch), "separate "
                                             "steps": mse(separate, batch), "ridge": mse(ridge(batch, task), batch),
        "best linear, own labels": best[False][1], "best linear, all labels": best[True][1],
        "R2 to separate steps": r_squared(own, separate),
        "zero_sum": float(labels.sum(0).abs().max() / labels.abs().max()),
        "residual to own labels": float((steps - best[False][0]).norm() / best[False][0].norm()),
        "residual to all labels": float((steps - best[True][0]).norm() / best[True][0].norm()),
        "share of other tasks' labels": float(off / labels.square().sum()),
        "omega on shared over others": float(size[shared].mean() / size[~shared].mean()),
        "diagonal_share": report(c).diagonal_share, "least heads, own labels": least_heads(targets(task)),
        "least heads, all labels": heads_needed(best[True][0]),
    }  # fmt: skip
