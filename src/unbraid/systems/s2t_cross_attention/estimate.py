"""From runs to maps: the mean of SPES with its standard error, and regression with KernelSHAP's weights.

All sums are kept per segment and spread over bins at the end, so their size does not depend on the spectrogram.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from unbraid.systems.s2t_cross_attention.perturb import Runs

ALPHAS = tuple(10.0**k for k in range(-3, 5))
ANCHOR_WEIGHT = 100.0  # KernelSHAP pins the sum of all effects to the effect of occluding everything


def occluded(runs: Runs, which: int) -> tuple[np.ndarray, np.ndarray]:
    """Segments occluded [m, S] and scores [m, I] of the runs of one granularity."""
    masks, batch = runs.masks, runs.masks.batch
    z, s = [], []
    for number in range(which, -(-len(runs.scores) // batch), len(masks.labels)):
        part = runs.scores[number * batch : (number + 1) * batch]
        z.append(~masks.draw(number)[: len(part)])
        s.append(part)
    if not z:
        return np.zeros((0, masks.segments(which)), bool), np.zeros((0, runs.scores.shape[1]), np.float32)
    return np.concatenate(z), np.concatenate(s)


def mean_map(runs: Runs) -> tuple[np.ndarray, np.ndarray]:
    """The estimator of SPES: per bin, the mean score over runs in which it was occluded; 0 where it never was.

    Reference: arXiv 2411.01710: num[i] += s_i (1 - K), den += 1 - K over all granularities, SM[i] = num[i] / den.

    Returns:
        Maps and their standard errors, [I, ...] with the shape of the labels.
    """
    shape = runs.masks.labels[0].shape
    tokens = runs.scores.shape[1]
    num, square = np.zeros((tokens, *shape)), np.zeros((tokens, *shape))
    den = np.zeros(shape)
    for which, labels in enumerate(runs.masks.labels):
        z, s = occluded(runs, which)
        hidden = z.astype(np.float64)
        num += (s.T.astype(np.float64) @ hidden)[:, labels]
        square += ((s.T.astype(np.float64) ** 2) @ hidden)[:, labels]
        den += hidden.sum(0)[labels]
    seen = np.maximum(den, 1)
    mean = num / seen
    spread = np.maximum(square / seen - mean**2, 0) * seen / np.maximum(seen - 1, 1)
    return mean, np.where(den > 1, np.sqrt(spread / seen), np.inf)


def regression_map(runs: Runs, half: int | None = None) -> np.ndarray:
    """Effects of segments by ridge regression of the scores on what was occluded, spread over their bins.

    With masks whose sizes follow the Shapley kernel (`Masks(sizes="shapley")`) plain least squares is KernelSHAP's
    weighted one (arXiv 1705.07874); the run with everything occluded pins the sum of the effects. The strength of the
    ridge is chosen by generalised cross-validation. Values are effects per bin, so granularities can be averaged.

    Args:
        runs: at least two.
        half: 0 or 1 takes every second pair of runs only, for `relative_error`.

    Returns:
        [I, ...] with the shape of the labels.
    """
    from sklearn.linear_model import RidgeCV

    shape = runs.masks.labels[0].shape
    total, used = np.zeros((runs.scores.shape[1], *shape)), 0
    for which, labels in enumerate(runs.masks.labels):
        z, s = occluded(runs, which)
        if half is not None:
            chosen = (np.arange(len(z)) // 2) % 2 == half
            z, s = z[chosen], s[chosen]
        if len(z) < 2:
            continue
        x = np.concatenate([z, np.ones((1, z.shape[1]), bool)]).astype(np.float64)
        y = np.concatenate([s, runs.anchor[None]]).astype(np.float64)
        weight = np.ones(len(x))
        weight[-1] = ANCHOR_WEIGHT
        fitted = RidgeCV(alphas=ALPHAS, fit_intercept=False).fit(x, y, sample_weight=weight)
        effects = np.atleast_2d(fitted.coef_).reshape(y.shape[1], -1)
        area = np.bincount(labels.ravel(), minlength=z.shape[1])
        total += (effects / np.maximum(area, 1))[:, labels]
        used += 1
    return total / max(used, 1)


def relative_error(runs: Runs, estimator: str = "mean") -> float:
    """Standard error of the maps as a share of their spread over bins, the mean over tokens; inf with too few runs.

    Args:
        runs: so far.
        estimator: "mean" uses the standard error of each bin, "regression" half the difference of two half-sized fits.
    """
    if len(runs.scores) < 4 * len(runs.masks.labels):
        return float("inf")
    if estimator == "mean":
        values, error = mean_map(runs)
    else:
        values = regression_map(runs)
        error = np.abs(regression_map(runs, 0) - regression_map(runs, 1)) / 2
    values, error = values.reshape(len(values), -1), error.reshape(len(values), -1)
    if not np.isfinite(error).all():
        return float("inf")
    spread = values.std(1)
    alive = spread > 0
    if not alive.any():
        return float("inf")
    return float((np.sqrt((error**2).mean(1))[alive] / spread[alive]).mean())


def reliability(runs: Runs, estimator: str = "mean") -> float:
    """Correlation to be expected between this map and one from as many other runs (halves, stepped up by
    Spearman-Brown): no map can agree with the true one better than the root of it.
    """
    a, b = (half_map(runs, h, estimator).reshape(runs.scores.shape[1], -1) for h in (0, 1))
    r = [np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True) if x.std() > 0 and y.std() > 0]
    if not r:
        return float("nan")
    half = float(np.mean(r))
    return 2 * half / (1 + half) if half > -1 else float("nan")


def half_map(runs: Runs, half: int, estimator: str) -> np.ndarray:
    """The map of every second pair of runs."""
    if estimator == "regression":
        return regression_map(runs, half)
    shape = runs.masks.labels[0].shape
    num, den = np.zeros((runs.scores.shape[1], *shape)), np.zeros(shape)
    for which, labels in enumerate(runs.masks.labels):
        z, s = occluded(runs, which)
        chosen = (np.arange(len(z)) // 2) % 2 == half
        hidden = z[chosen].astype(np.float64)
        num += (s[chosen].T.astype(np.float64) @ hidden)[:, labels]
        den += hidden.sum(0)[labels]
    return num / np.maximum(den, 1)


def token_map(runs: Runs, prefix: int) -> np.ndarray | None:
    """Saliency of previous tokens: mean score over runs in which a decoder input was zeroed, causal.

    Args:
        runs: made with `decoder_probability` above 0.
        prefix: tokens before the text; row i predicts token i from the prefix and the tokens before i.

    Returns:
        [I, n] over decoder inputs (0 for inputs that come later and for the start token), or None.
    """
    if runs.tokens is None:
        return None
    hidden = (~runs.tokens).astype(np.float64)
    num = runs.scores.T.astype(np.float64) @ hidden
    found = num / np.maximum(hidden.sum(0), 1)
    rows, inputs = np.arange(found.shape[0])[:, None], np.arange(found.shape[1])[None, :]
    return np.where(inputs <= rows + prefix - 1, found, 0.0)


def estimate(runs: Runs, estimator: str) -> np.ndarray:
    """The map of an estimator by name."""
    return mean_map(runs)[0] if estimator == "mean" else regression_map(runs)
