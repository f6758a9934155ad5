"""Codes as bins: equal width (the literature's), equal count, or a count per code that follows the data."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

from unbraid.metrics.disentanglement.inputs import as_codes, at_least, one_of

Discretiser = Literal["width", "quantile", "adaptive"]


def discretise(z: Any, bins: int = 20, discretiser: Discretiser = "width") -> tuple[np.ndarray, np.ndarray]:
    """Put codes into bins.

    Args:
        z: [N, J] codes.
        bins: how many; for "adaptive" the most.
        discretiser: "width": equal width between a code's least and greatest value, as in disentanglement_lib (a few
            outliers leave most bins empty); "quantile": equal count (equal values stay together); "adaptive": equal
            width, as many bins per code as Freedman and Diaconis' rule says, from 2 to ``bins``.

    Returns:
        [N, J] bins from 0, and [J] how many there are. A constant code has one.

    Raises:
        UnbraidError: ``z`` or an option has another form.
    """
    codes = as_codes(z)
    at_least(bins, 2, "bins")
    one_of(discretiser, get_args(Discretiser), "discretiser")
    low, high = codes.min(axis=0), codes.max(axis=0)
    if discretiser == "quantile":
        return _by_count(codes, bins)
    counts = np.full(codes.shape[1], bins) if discretiser == "width" else _adaptive(codes, high - low, bins)
    counts = np.where(high > low, counts, 1)
    return _by_width(codes, low, high, counts), counts


def _by_width(codes: np.ndarray, low: np.ndarray, high: np.ndarray, counts: np.ndarray) -> np.ndarray:
    placed = np.zeros(codes.shape, dtype=np.int64)
    for j in np.flatnonzero(high > low):
        column, count = codes[:, j], int(counts[j])
        edges = np.linspace(low[j], high[j], count + 1)
        at = ((column - low[j]) * (count / (high[j] - low[j]))).astype(np.int64)
        np.minimum(at, count - 1, out=at)
        # the division may be off by one rounding at an edge, which decides for codes that lie on a lattice
        at -= column < edges[at]
        at += (column >= edges[at + 1]) & (at < count - 1)
        placed[:, j] = at
    return placed


def _by_count(codes: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    cuts = np.quantile(codes, np.linspace(0, 1, bins + 1)[1:-1], axis=0)
    placed = np.empty(codes.shape, dtype=np.int64)
    counts = np.empty(codes.shape[1], dtype=np.int64)
    for j in range(codes.shape[1]):
        found = np.searchsorted(np.unique(cuts[:, j]), codes[:, j], side="right")
        used = np.unique(found)
        placed[:, j], counts[j] = np.searchsorted(used, found), len(used)
    return placed, counts


def _adaptive(codes: np.ndarray, spread: np.ndarray, bins: int) -> np.ndarray:
    upper, lower = np.quantile(codes, [0.75, 0.25], axis=0)
    width = 2 * (upper - lower) / len(codes) ** (1 / 3)
    wanted = np.divide(spread, width, out=np.full(len(width), float(bins)), where=width > 0)
    return np.clip(np.ceil(wanted), 2, bins).astype(np.int64)
