"""Maps side by side: pooling to encoder states, normalising, aggregating heads, correlating, sinks, overlap.

Reference: arXiv 2509.18010. Averages of correlations are taken of Fisher's z; intervals are bootstrapped over
utterances. numpy and scipy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from scipy import stats

from unbraid.core.errors import UnbraidError

Pool = Literal["max", "mean"]
Normaliser = Literal["mean_std", "minmax", "sum", "none"]
SINK = 5.0  # times the uniform share, given by the median token


def pool(x: np.ndarray, states: int, how: Pool = "max") -> np.ndarray:
    """[I, T, F] or [I, T] reduced over frequency and pooled in time to [I, states].

    Args:
        x: a map over frames.
        states: encoder states that these frames become; the paper's ablation prefers "max" over "mean".
        how: "max" or "mean", over frequency and time alike.
    """
    if how not in ("max", "mean"):
        raise UnbraidError(f"pool={how!r} is unknown; choose 'max' or 'mean'.")
    reduce = np.max if how == "max" else np.mean
    flat = reduce(x, axis=2) if x.ndim == 3 else x
    frames = flat.shape[1]
    edges = np.round(np.linspace(0, frames, states + 1)).astype(int)
    columns = [reduce(flat[:, a : max(b, a + 1)], axis=1) for a, b in pairwise(edges)]
    return np.stack(columns, 1)


def spread_out(x: np.ndarray, frames: int) -> np.ndarray:
    """[..., T'] repeated to [..., frames]: attention at the resolution of the input."""
    at = np.minimum(np.arange(frames) * x.shape[-1] // frames, x.shape[-1] - 1)
    return x[..., at]


def normalise(x: np.ndarray, how: Normaliser = "mean_std") -> np.ndarray:
    """Each row (token) of [I, ...] by itself.

    Args:
        x: a map.
        how: "mean_std" (mean 0, sample standard deviation 1), "minmax" (0 to 1), "sum" (minimum taken off, sums to 1:
            a divergence is never negative and has a floor), or "none".
    """
    rows = x.reshape(len(x), -1).astype(np.float64)
    if how == "mean_std":
        deviation = rows.std(1, ddof=1, keepdims=True) if rows.shape[1] > 1 else np.zeros((len(rows), 1))
        rows = np.where(deviation > 0, (rows - rows.mean(1, keepdims=True)) / np.where(deviation > 0, deviation, 1), 0)
    elif how == "minmax":
        low, span = rows.min(1, keepdims=True), np.ptp(rows, axis=1, keepdims=True)
        rows = (rows - low) / np.where(span > 0, span, 1)
    elif how == "sum":
        rows = rows - rows.min(1, keepdims=True)
        rows = rows / np.maximum(rows.sum(1, keepdims=True), 1e-30)
    elif how != "none":
        raise UnbraidError(f"normalise={how!r} is unknown; choose 'mean_std', 'minmax', 'sum' or 'none'.")
    return rows.reshape(x.shape)


def paired_min_max(x: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Input map [I, T, F] and token map [I, n] scaled together, per token, to 0..1 (the released code's last step)."""
    both = np.concatenate([x.reshape(len(x), -1), tokens], 1)
    low, span = both.min(1), np.ptp(both, axis=1)
    span = np.where(span > 0, span, 1)
    wide = (len(x),) + (1,) * (x.ndim - 1)
    return (x - low.reshape(wide)) / span.reshape(wide), (tokens - low[:, None]) / span[:, None]


def aggregate(maps: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Attention [L, H, I, T'] averaged over a set of heads to [I, T']; NaN heads count for nothing.

    Args:
        maps: attention.
        weights: [L, H] weight per head; None weighs all alike. A set of heads is a 0/1 array.
    """
    there = np.isfinite(maps[:, :, 0, 0])
    w = there.astype(np.float64) if weights is None else np.where(there, weights, 0.0)
    if w.sum() == 0:
        raise UnbraidError("No head is left to average: give at least one head a weight.")
    return np.einsum("lhit,lh->it", np.nan_to_num(maps), w / w.sum())


def correlation(a: np.ndarray, b: np.ndarray, kind: str = "pearson", normaliser: Normaliser = "mean_std") -> float:
    """Correlation of two maps [I, T'] over all entries, each token normalised first; NaN where one is constant."""
    x, y = normalise(a, normaliser).ravel(), normalise(b, normaliser).ravel()
    if x.shape != y.shape:
        raise UnbraidError(f"Maps to be correlated need one shape, not {a.shape} and {b.shape}.")
    if len(x) < 3 or x.std() == 0 or y.std() == 0:
        return float("nan")
    if kind == "spearman":
        x, y = stats.rankdata(x), stats.rankdata(y)
    elif kind != "pearson":
        raise UnbraidError(f"kind={kind!r} is unknown; choose 'pearson' or 'spearman'.")
    return float(np.corrcoef(x, y)[0, 1])


def by_token(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[I] Pearson correlation of each token's rows: where in the text attention can be trusted."""
    x, y = normalise(a), normalise(b)
    n = max(x.shape[1] - 1, 1)
    return (x * y).sum(1) / n


def levels(maps: np.ndarray, saliency: np.ndarray, kind: str = "pearson") -> dict[str, Any]:
    """Correlations with a saliency map at every level.

    Args:
        maps: [L, H, I, T'] attention.
        saliency: [I, T'].
        kind: "pearson" or "spearman".

    Returns:
        head [L, H]; layer [L] (heads averaged); column [H] (layers averaged, head by head); all, a number.
    """
    there = np.isfinite(maps[:, :, 0, 0])
    head = np.full(there.shape, np.nan)
    for layer, h in zip(*np.nonzero(there), strict=True):
        head[layer, h] = correlation(maps[layer, h], saliency, kind)
    layer_means = [np.nanmean(m, axis=0) for m in maps]
    column_means = [np.nanmean(maps[:, h], axis=0) for h in range(maps.shape[1])]
    return {
        "head": head,
        "layer": np.array([correlation(m, saliency, kind) for m in layer_means]),
        "column": np.array([correlation(m, saliency, kind) for m in column_means]),
        "all": correlation(aggregate(maps), saliency, kind),
    }


def fisher_mean(values: Sequence[float] | np.ndarray, axis: int | None = None) -> Any:
    """Mean of correlations through Fisher's z; NaN are left out."""
    z = np.arctanh(np.clip(np.asarray(values, dtype=np.float64), -0.999999, 0.999999))
    if np.isnan(z).all():
        return float("nan") if axis is None else np.full(np.delete(z.shape, axis), np.nan)
    return np.tanh(np.nanmean(z, axis=axis))


def bootstrap(values: Sequence[float] | np.ndarray, seed: int = 0, fisher: bool = True) -> tuple[float, float, float]:
    """Mean over utterances and its 95 % percentile interval (999 resamples).

    Args:
        values: [n], one per utterance; NaN are left out.
        seed: of the resamples.
        fisher: average Fisher's z (for correlations).
    """
    x = np.asarray(values, dtype=np.float64)
    x = x[np.isfinite(x)]
    if not len(x):
        return (float("nan"),) * 3
    z = np.arctanh(np.clip(x, -0.999999, 0.999999)) if fisher else x
    rng = np.random.default_rng(seed)
    draws = z[rng.integers(len(z), size=(999, len(z)))].mean(1)
    found = np.array([z.mean(), *np.quantile(draws, [0.025, 0.975])])
    mean, low, high = np.tanh(found) if fisher else found
    return float(mean), float(low), float(high)


def sink_columns(attention: np.ndarray) -> np.ndarray:
    """[T'] True where the median token gives a state more than five times its uniform share.

    A state that tells where one word was heard is looked at by a few tokens; one that most tokens look at, whatever
    they say, carries no alignment.
    """
    return np.median(attention, axis=0) > SINK / attention.shape[1]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Share of the relevance in `b` that lies where `a` puts its own: sum of minima of the rows as distributions."""
    return float(np.minimum(normalise(a, "sum"), normalise(b, "sum")).sum(1).mean())
