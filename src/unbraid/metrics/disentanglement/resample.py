"""Intervals at 95 %: bootstrap of rows, half-samples where rows must not repeat, bootstrap of votes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

LEVEL = 0.95
Bounds = tuple[float, float]


def around(score: float, draws: np.ndarray, bounds: Bounds = (0.0, 1.0)) -> Bounds | None:
    """The spread of resampled scores, laid around the score itself.

    Plug-in information rises when rows repeat, so resampled scores are shifted as a whole; only their spread says how
    much the score would change with other rows.

    Args:
        score: of the data.
        draws: [B] of resamples; what is not finite is left out.
        bounds: of the metric.

    Returns:
        (low, high), or None with fewer than two draws.
    """
    there = np.asarray(draws, dtype=np.float64)
    there = there[np.isfinite(there)]
    if len(there) < 2 or not np.isfinite(score):
        return None
    shifted = there - there.mean() + score
    if len(there) < 40:  # too few for quantiles at 2.5 %
        from scipy.stats import t

        half = float(there.std(ddof=1) * t.ppf(0.5 + LEVEL / 2, len(there) - 1))
        low, high = score - half, score + half
    else:
        low, high = (float(q) for q in np.quantile(shifted, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return float(np.clip(min(low, score), *bounds)), float(np.clip(max(high, score), *bounds))


def row_weights(rows: int, seed: int) -> Callable[[], np.ndarray]:
    """Draws how often each row occurs in a bootstrap sample: [N] floats that sum to N."""
    rng = np.random.default_rng([seed, 0xB007])
    return lambda: np.bincount(rng.integers(rows, size=rows), minlength=rows).astype(np.float64)


def halves(rows: int, count: int, seed: int) -> list[np.ndarray]:
    """Random halves of the rows, none twice in a half.

    For learners and nearest neighbours, which repeated rows would fool. A score of n/2 rows varies about the score
    of all n as the latter varies about its expectation, so no rescaling is needed.
    """
    rng = np.random.default_rng([seed, 0x4A1F])
    return [np.sort(rng.permutation(rows)[: max(2, rows // 2)]) for _ in range(count)]
