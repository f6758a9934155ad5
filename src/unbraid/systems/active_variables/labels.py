"""Active, mixed, passive: the paper's labels, how sure they are, and other people's criteria beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.systems.active_variables.statistics import Moments

KINDS = ("active", "mixed", "passive")
AU = 0.01  # Var(mu) above it: an "active unit" (Burda et al., arXiv 1509.00519)
KL_FLOOR = 0.01  # nats above it: kept by the unsupervised disentanglement ranking (arXiv 1905.12614)


def classify(var_mean: np.ndarray, var_var: np.ndarray, tau: float = 0.1, delta: float = 0.1) -> list[str]:
    """The paper's labels from the mean and the variance of the posterior variances.

    Passive: var < tau and |mean - 1| <= delta. Active: var < tau and mean <= delta. Mixed: everything else, which
    includes a latent that is merely noisy (mean 0.15, hardly any variance): look at the numbers beside the label.

    Args:
        var_mean: [J] means of sigma^2 over the data.
        var_var: [J] variances of sigma^2 over the data.
        tau: bound of the variance.
        delta: bound of the mean's distance from 0 or 1.

    Returns:
        [J] of "active", "mixed", "passive".

    Raises:
        UnbraidError: a bound that makes no sense, or tables of other shapes or with values that are not finite.
    """
    check_bounds(tau, delta)
    mean, var = np.asarray(var_mean, np.float64), np.asarray(var_var, np.float64)
    if mean.ndim != 1 or mean.shape != var.shape or not (np.isfinite(mean).all() and np.isfinite(var).all()):
        raise UnbraidError(
            f"means and variances of the posterior variances must be [J] finite numbers each, not {mean.shape} and "
            f"{var.shape}{'' if mean.shape != var.shape or mean.ndim != 1 else ' with NaN or infinity'}."
        )
    calm = var < tau
    passive = calm & (np.abs(mean - 1) <= delta)
    active = calm & (mean <= delta)
    return [KINDS[0] if a else KINDS[2] if p else KINDS[1] for a, p in zip(active, passive, strict=True)]


def check_bounds(tau: float, delta: float) -> None:
    """Refuse thresholds that make no sense.

    Raises:
        UnbraidError: tau is not positive, or delta not between 0 and one half.
    """
    if not tau > 0 or not 0 < delta < 0.5:
        raise UnbraidError(f"tau={tau} must be positive and delta={delta} between 0 and 0.5.")


class Bootstrap:
    """Shares of bootstrap draws in which a latent has each label, in the same single pass as the moments.

    Every point gets a Poisson(1) weight per draw, so nothing is kept. Points of one observation (the positions of a
    feature map) share their weight, as they are not independent.

    Args:
        latents: J.
        draws: bootstrap draws; 0 for none.
        seed: of the weights.
    """

    def __init__(self, latents: int, draws: int, seed: int) -> None:
        self.draws = draws
        self._rng = np.random.default_rng(seed)
        self._weight = np.zeros(draws)
        self._sum, self._square = np.zeros((draws, latents)), np.zeros((draws, latents))
        self._shift: np.ndarray | None = None

    def update(self, var: np.ndarray, points: int = 1) -> None:
        """Take in variances [n, J], of which each ``points`` rows in turn are of one observation."""
        if not self.draws or not len(var):
            return
        if self._shift is None:
            self._shift = var.mean(0)  # near the mean, so that squares lose no digits
        rows = (var - self._shift).reshape(-1, points, var.shape[1])
        weights = self._rng.poisson(1.0, (self.draws, len(rows))).astype(np.float64)
        self._weight += points * weights.sum(1)
        self._sum += weights @ rows.sum(1)
        self._square += weights @ (rows**2).sum(1)

    def shares(self, tau: float, delta: float) -> np.ndarray | None:
        """[J, 3] shares of the draws per label, in the order of `KINDS`; None without draws."""
        if not self.draws or self._shift is None or not (self._weight > 0).all():
            return None
        mean = self._sum / self._weight[:, None]
        var = np.maximum(self._square / self._weight[:, None] - mean**2, 0)
        found = np.array([classify(m + self._shift, v, tau, delta) for m, v in zip(mean, var, strict=True)])
        return np.stack([(found == kind).mean(0) for kind in KINDS], axis=1)


def entropy(codes: np.ndarray, bins: int = 20) -> np.ndarray:
    """[J] differential entropy of the means in nats by a histogram over their range; -inf for constant ones.

    The follow-up (arXiv 2605.15965) tells passive latents from the others by the entropy of the mean; its estimator is
    not known to us, this is a plain one. A passive latent's mean varies by hundredths, so its entropy is far below 0.
    """
    found = []
    for column in np.asarray(codes, np.float64).T:
        spread = column.max() - column.min()
        if spread <= 1e-12 * max(1.0, abs(column).max()):
            found.append(-np.inf)
            continue
        p = np.histogram(column, bins)[0] / len(column)
        p = p[p > 0]
        found.append(float(-(p * np.log(p)).sum() + np.log(spread / bins)))
    return np.array(found)


def criteria(
    moments: Moments, labels: Iterable[str], soft: np.ndarray | None = None, codes: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """One row per latent: its label, how sure it is, and the numbers behind it and behind other criteria.

    Args:
        moments: of the posteriors.
        labels: [J].
        soft: [J, 3] shares of bootstrap draws per label, or None.
        codes: [N, J] means, for their entropy, or None.
    """
    entropies = None if codes is None else entropy(codes)
    rows = []
    for j, label in enumerate(labels):
        row: dict[str, Any] = {"latent": f"z{j}", "label": label}
        if soft is not None:
            row["sure"] = float(soft[j, KINDS.index(label)])
        row |= {
            "mean of variance": float(moments.var_mean[j]),
            "variance of variance": float(moments.var_var[j]),
            "KL (nats)": float(moments.kl[j]),
            "signal fraction": float(moments.signal[j]),
            "variance of mean": float(moments.mu_var[j]),
            "active unit (Var mu > 0.01)": bool(moments.mu_var[j] > AU),
            "KL > 0.01": bool(moments.kl[j] > KL_FLOOR),
        }
        if entropies is not None:
            row["entropy of mean (nats)"] = float(entropies[j])
        rows.append(row)
    return rows


def agreement(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many latents of each label the other criteria call informative."""
    listed = list(rows)
    tests: dict[str, Callable[[dict[str, Any]], bool]] = {
        "Var mu > 0.01": lambda r: r["active unit (Var mu > 0.01)"],
        "KL > 0.01": lambda r: r["KL > 0.01"],
        "signal fraction > 0.5": lambda r: r["signal fraction"] > 0.5,
        "entropy of mean > 0": lambda r: r.get("entropy of mean (nats)", -np.inf) > 0,
    }
    return [
        {"label": kind, "latents": sum(r["label"] == kind for r in listed)}
        | {name: sum(test(r) for r in listed if r["label"] == kind) for name, test in tests.items()}
        for kind in KINDS
    ]
