"""Which rows of a table of factors a sample takes: pairs, correlated draws, interventions, missing labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unbraid.core.errors import UnbraidError

UNKNOWN = -1


def codes(columns: np.ndarray) -> np.ndarray:
    """[n] one whole number per row of [n, c], equal where all columns are equal, in the order of the rows' values."""
    code = np.zeros(len(columns), np.int64)
    for column in columns.T:
        if column.dtype.kind in "iu" and column.size and column.min() >= 0 and column.max() < 1 << 20:
            value, base = column.astype(np.int64), int(column.max()) + 1  # already ranks: sorting is not needed
        else:
            value = np.unique(column, return_inverse=True)[1].reshape(-1)
            base = int(value.max(initial=0)) + 1
        if code.max(initial=0) > np.iinfo(np.int64).max // max(base, 1) - 1:
            code = np.unique(code, return_inverse=True)[1].reshape(-1)
        code = code * base + value
    return code


def unknown(values: np.ndarray, size: int | None) -> np.ndarray:
    """Where labels of one factor are hidden: -1 of a factor with a size, NaN of a continuous one."""
    return np.isnan(values) if size is None and values.dtype.kind == "f" else (values < 0) & (size is not None)


def partners(columns: np.ndarray, able: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """``n`` pairs of different rows that agree in all columns; two empty arrays where there is no such pair.

    Args:
        columns: [rows, c] what they must agree in.
        able: [rows] which rows may be taken.
        n: how many.
        rng: draws them.
    """
    at = np.flatnonzero(able)
    _, group = np.unique(codes(columns[at]), return_inverse=True)
    group = group.reshape(-1)
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group, minlength=1)
    first_of = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    paired = np.flatnonzero(sizes[group] > 1)
    if not paired.size:
        return paired, paired
    one = rng.choice(paired, n)
    # a step of 1 to size - 1 within the group, round its end, reaches every partner equally often and never itself
    size, start = sizes[group[one]], first_of[group[one]]
    other = order[start + (place[one] - start + rng.integers(1, size)) % size]
    return at[one], at[other]


def correlated(
    factors: np.ndarray, pairs: Sequence[tuple[int, int]], sigma: float, n: int, rng: np.random.Generator
) -> np.ndarray:
    """``n`` rows, with repeats, drawn in proportion to the product over pairs of exp(-(u - v)^2 / (2 sigma^2)).

    u and v are the two factors brought to 0..1 (Träuble et al. 2021, arXiv 2006.07886, equation 1).
    """
    scaled = factors.astype(np.float64)
    low, span = scaled.min(axis=0), np.ptp(scaled, axis=0)
    log = np.zeros(len(factors))
    for first, second in pairs:
        u, v = ((scaled[:, c] - low[c]) / (span[c] or 1.0) for c in (first, second))
        log -= (u - v) ** 2 / (2 * sigma**2)
    weight = np.cumsum(np.exp(log - log.max()))
    return np.searchsorted(weight, rng.random(n) * weight[-1], side="right").clip(0, len(factors) - 1)


def counterparts(table: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """[n] the row of ``table`` [rows, f] that equals each row of ``wanted`` [n, f]; -1 where there is none."""
    if not len(wanted):
        return np.zeros(0, np.int64)
    both = codes(np.concatenate([table, wanted]))
    have, want = both[: len(table)], both[len(table) :]
    order = np.argsort(have, kind="stable")
    place = np.searchsorted(have[order], want).clip(0, len(table) - 1)
    found = order[place]
    return np.where(have[found] == want, found, -1)


def hidden(n: int, columns: Sequence[int], share: float, rng: np.random.Generator, together: bool) -> np.ndarray:
    """[n, c] True where a label is taken away: the same share of each column, exactly (rounded).

    Args:
        n: rows.
        columns: of the factors.
        share: 0 to 1.
        rng: draws them.
        together: the same rows in all columns.
    """
    count = round(share * n)
    mask = np.zeros((n, len(columns)), bool)
    rows = rng.permutation(n)[:count]
    for j in range(len(columns)):
        mask[rows if together else rng.permutation(n)[:count], j] = True
    return mask


def shares_checked(share: float, name: str) -> float:
    """A share of 0 to 1, or a sentence."""
    if isinstance(share, bool) or not isinstance(share, int | float | np.floating) or not 0 <= share <= 1:
        raise UnbraidError(f"{name} is {share!r}; it must be a number from 0 to 1.")
    return float(share)
