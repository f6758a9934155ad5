"""The table behind data with known factors: its checks, the rows of a grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from unbraid.core.errors import UnbraidError

Render = Callable[[np.ndarray], np.ndarray]


def one_by_one(render: Callable[[int], Any]) -> Render:
    """A function of one index as one of many."""
    return lambda at: np.stack([np.asarray(render(int(i))) for i in at])


def grid_rows(sizes: Sequence[int]) -> np.ndarray:
    """[product of sizes, f] all combinations, the last changing fastest."""
    return np.stack(np.unravel_index(np.arange(int(np.prod(sizes))), sizes), axis=1).astype(np.int64)


def as_factors(factors: Any) -> np.ndarray:
    """[n, f] int64 or float64, or a sentence."""
    array = np.asarray(factors)
    if array.ndim != 2 or array.shape[1] < 1 or array.dtype.kind not in "biuf":
        raise UnbraidError(f"factors must be numbers of shape [n, f], not {array.dtype} of shape {array.shape}.")
    if not np.isfinite(array).all():
        raise UnbraidError("factors hold NaN or infinity; every observation needs its true factors.")
    return array.astype(np.int64) if array.dtype.kind in "biu" else array.astype(np.float64)


def as_sizes(sizes: Sequence[int | None] | None, factors: np.ndarray, names: tuple[str, ...]) -> tuple[int | None, ...]:
    """The sizes of the factors, as given or as their values say, or a sentence."""
    if sizes is None:
        if factors.dtype.kind == "f":
            return (None,) * len(names)
        sizes = [int(column.max(initial=0)) + 1 for column in factors.T]
    if len(sizes) != len(names):
        raise UnbraidError(f"sizes must be {len(names)} numbers, one per factor, not {list(sizes)}.")
    for name, size, column in zip(names, sizes, factors.T, strict=True):
        if size is None:
            continue
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
            raise UnbraidError(f"the size of factor {name!r} is {size!r}; it must be a positive whole number or None.")
        if (column < -1).any() or (column >= size).any() or (column != np.floor(column)).any():
            raise UnbraidError(
                f"factor {name!r} has values from {column.min():g} to {column.max():g}; with size {size} they must be "
                f"whole numbers from 0 to {size - 1}, or -1 where unknown (give size None if it is continuous)."
            )
    return tuple(None if size is None else int(size) for size in sizes)
