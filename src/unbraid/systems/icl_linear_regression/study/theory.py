"""What can be tested without training: the approximate loss, its descent, the theorem, the notebook's table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from unbraid.core.training.batches import mix
from unbraid.systems.icl_linear_regression import predictors as known
from unbraid.systems.icl_linear_regression.patterns import report
from unbraid.systems.icl_linear_regression.projection import Reduced, from_reduced, r_squared
from unbraid.systems.icl_linear_regression.reduced import Flow, descend, manifold_loss, mu_of
from unbraid.systems.icl_linear_regression.sampling import Regression
from unbraid.systems.icl_linear_regression.superposition import conditions, least_heads, solve, targets

GAMMAS = (0.02, 0.05, 0.08, 0.1, 0.13, 0.15, 0.2, 0.3, 0.4)
# XintianPan/ICL_linear, plots.ipynb: 50,000 trials, sigma^2 = 0.1, d = 5, omega = 0.13, mu = 3.45, steps from L = 40
TABLE = {
    10: (0.604, 0.643, 0.614, 0.875, 0.194), 20: (0.367, 0.371, 0.369, 0.586, 0.135),
    40: (0.243, 0.241, 0.243, 0.405, 0.115), 100: (0.164, 0.162, 0.163, 0.284, 0.104),
}  # fmt: skip
NAMES = ("two heads", "GD", "debiased GD", "one head", "ridge")


def approximation(task: Regression, seeds: Sequence[int], sequences: int) -> list[dict[str, Any]]:
    """On the manifold: L~ against the simulated loss, and the distance of predictions from debiased GD."""
    rows, draws = [], known.KernelRisk(task, 20_000, seed=mix(seeds[0], 14, 0))
    longer = Regression(task.dimension, 10 * task.length, task.noise)
    far = (
        manifold_loss(0.02, longer) / known.gradient_risk(longer, 0.04 * float(mu_of(0.02, longer)), debiased=True) - 1
    )
    for gamma in GAMMAS:
        m = float(mu_of(gamma, task))
        pair, weights = torch.tensor([gamma, -gamma]), torch.tensor([m, -m])
        exact, best = draws.risk(pair, weights), draws.best_pair(gamma)[1]
        for seed in seeds:
            b = task.sample(sequences, mix(seed, 15, 0))
            own = known.kernels(b, pair, weights)
            fixed = known.best_step(task, debiased=True)
            near = known.kernels(b, pair, torch.tensor([1.0, -1.0]) * fixed / (2 * gamma))
            apart = (near - known.gradient_step(b, fixed)).abs().flatten()
            simulated = float((own - b.answer).square().mean())
            rows.append(
                {"gamma": gamma, "seed": seed, "mu_gamma": m, "approximate loss": manifold_loss(gamma, task),
                 "simulated": simulated, "exact in all but L + 1 numbers": exact,
                 "exact, best mu": best, "error at 10 L, small gamma": far,
                 "error": manifold_loss(gamma, task) / simulated - 1,
                 "error of the exact": manifold_loss(gamma, task) / exact - 1,
                 "distance from debiased GD": float(apart.mean()), "its 95th percentile": float(apart.quantile(0.95)),
                 "bound without its logarithms": float(np.sqrt(1 + task.noise) * gamma * task.dimension)}
            )  # fmt: skip
    return rows


def dynamics(task: Regression, seeds: Sequence[int], heads: int = 4) -> tuple[Flow, list[dict[str, Any]]]:
    """Descent of the reduced model from many starts, and where each ends."""
    flow = descend(task, heads, seeds=tuple(mix(s, 16, 0) for s in seeds), steps=20_000)
    rows = []
    for k, seed in enumerate(seeds):
        w, m = (torch.from_numpy(a[-1, k]) for a in (flow.omega, flow.mu))
        r = report(from_reduced(Reduced(w[:, None].expand(-1, task.dimension), m[:, None])), task)
        rows.append(
            {"seed": seed, "sign_match": r.sign_match, "zero_sum": r.zero_sum, "homogeneity": r.homogeneity,
             "gamma": r.gamma, "manifold": r.manifold, "dummies": r.dummies,
             "both signs": min(r.omega) < 0 < max(r.omega),
             "approximate loss": float(flow.loss[-1, k]), "loss at the start": float(flow.loss[0, k])}
        )  # fmt: skip
    return flow, rows


def table(seeds: Sequence[int], sequences: int) -> list[dict[str, Any]]:
    """The notebook's table of errors over L, drawn anew."""
    rows, at = [], Regression()
    eta, (w, mu) = 2 * 0.13 * 3.45, known.single_head(at)
    for length, paper in TABLE.items():
        found = []
        for seed in seeds:
            b = at.sample(sequences, mix(seed, 17, length), length)
            each = (
                known.kernels(b, torch.tensor([0.13, -0.13]), torch.tensor([3.45, -3.45])),
                known.gradient_step(b, eta, debiased=False), known.gradient_step(b, eta),
                known.kernels(b, torch.tensor([w]), torch.tensor([mu])), known.ridge(b, at),
            )  # fmt: skip
            found.append([float((p - b.answer).square().mean()) for p in each])
        exact = {"GD": known.gradient_risk(at, eta, length=length), "ridge": known.bayes_risk(at, 20_000, 0, length)}
        exact["debiased GD"] = known.gradient_risk(at, eta, debiased=True, length=length)
        for name, theirs, ours in zip(NAMES, paper, np.transpose(found), strict=True):
            rows.append(
                {"L": length, "predictor": name, "notebook": theirs, "ours": float(ours.mean()),
                 "least": float(ours.min()), "greatest": float(ours.max()), "exact": exact.get(name),
                 "difference": float(ours.mean() / theirs - 1)}
            )  # fmt: skip
    return rows


def ratios(dimension: int = 60) -> list[dict[str, Any]]:
    """Risk of the best step over Bayes risk, in the limit and at a finite d, against the theorem's bound."""
    rows = []
    for noise in (0.1, 0.25, 0.5, 1.0):
        for xi in (0.125, 0.25, 0.5, 1.0, 2.0):
            if noise + 1 / xi <= 1:
                continue
            task = Regression(dimension, round(dimension / xi), noise)
            step = known.best_step(task)
            finite = known.gradient_risk(task, step) / known.bayes_risk(task, 300, 0)
            limit = known.limiting_step_risk(noise, xi) / known.limiting_bayes_risk(noise, xi)
            rows.append(
                {"sigma^2": noise, "d/L": xi, "ratio in the limit": limit, f"ratio at d = {dimension}": finite,
                 "bound": known.bayes_ratio_bound(noise, xi)}
            )  # fmt: skip
    return rows


WORLDS: dict[int, tuple[tuple[int, ...], ...]] = {
    2: ((0, 1, 2, 3), (2, 3, 4, 5)), 3: ((0, 1, 2), (2, 3, 4), (4, 5, 0)), 4: ((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4,
    5)),
    5: ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5)),
}  # fmt: skip


def solved(seed: int, sequences: int) -> list[dict[str, Any]]:
    """The superposition solver for 2 to 5 tasks: one head too few, the least number, twice as many heads as tasks."""
    rows = []
    for n, supports in WORLDS.items():
        task = Regression(6, supports=supports, shared=False)
        goal, b = targets(task), task.sample(sequences, mix(seed, 18, n))
        reference = known.gradient_step(b, goal)
        least = least_heads(goal)
        for heads in sorted({least - 1, least, 2 * n}):
            if heads < 2:
                continue
            found = solve(goal, heads, scale=0.05)
            own = known.kernels(b, found.omega, found.mu)
            rows.append(
                {"tasks": n, "heads": heads, "least heads": least, **conditions(found.omega, found.mu, goal),
                 "R2 to separate steps": r_squared(own, reference),
                 "loss": float((own - b.answer).square().sum(-1).mean()),
                 "loss of separate steps": float((reference - b.answer).square().sum(-1).mean())}
            )  # fmt: skip
    return rows
