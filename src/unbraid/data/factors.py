"""Observations with the true factors that made them. Needs numpy only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np

from unbraid.core.errors import UnbraidError

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

Render = Callable[[int], Any]


class FactorData:
    """n observations and their f true factors.

    Args:
        x: [n, ...] observations; or a function index -> observation, called when one is needed.
        factors: [n, f] values: integers from 0 for factors with discrete values, floats for continuous ones.
        names: [f] names of the factors; None: f0, f1, ...
        sizes: [f] how many values a factor has, or None for a continuous one. None: of integers, the greatest value
            plus one; of floats, all continuous. A factor with a size must hold whole numbers below it.

    Raises:
        UnbraidError: lengths differ, a value is not finite or beyond its size, or names are not different.

    Example:
        >>> data = FactorData.grid({"shape": 3, "size": 4}, lambda row: row.astype(float))
        >>> len(data), data.sizes
        (12, (3, 4))
        >>> x, factors = data[5]
        >>> factors.tolist()
        [1, 1]
    """

    def __init__(
        self,
        x: Any,
        factors: Any,
        names: Sequence[str] | None = None,
        sizes: Sequence[int | None] | None = None,
    ) -> None:
        self.factors = _as_factors(factors)
        n, count = self.factors.shape
        self.names = tuple(f"f{i}" for i in range(count)) if names is None else tuple(str(name) for name in names)
        if len(self.names) != count or len(set(self.names)) < count:
            raise UnbraidError(f"names must be {count} different names, one per factor, not {list(self.names)}.")
        self.sizes = _as_sizes(sizes, self.factors, self.names)
        self._render: Render | None = x if callable(x) else None
        self._x = None if callable(x) else np.asarray(x)
        if self._x is not None and (self._x.ndim == 0 or len(self._x) != n or self._x.dtype == object):
            raise UnbraidError(f"x must be an array of {n} observations, as there are factors, not of {self._x.shape}.")
        self._index = np.arange(n)

    @classmethod
    def grid(cls, sizes: Mapping[str, int], render: Callable[[np.ndarray], Any]) -> FactorData:
        """All combinations of factors once, the last factor changing fastest.

        Args:
            sizes: name -> number of values.
            render: [f] factors -> observation.

        Raises:
            UnbraidError: a size is not a positive whole number.
        """
        wrong = [n for n, s in sizes.items() if isinstance(s, bool) or not isinstance(s, int | np.integer) or s < 1]
        if wrong or not sizes:
            raise UnbraidError(
                f"sizes must be name -> positive whole number, for at least one factor, not {dict(sizes)}."
            )
        rows = np.array(list(product(*(range(size) for size in sizes.values()))), dtype=np.int64)
        return cls(lambda i: render(rows[i]), rows, tuple(sizes), tuple(sizes.values()))

    @property
    def x(self) -> np.ndarray:
        """[n, ...] all observations; rendered ones are made anew each time, so keep what is needed again."""
        return self.render(range(len(self)))

    def render(self, indices: Iterable[int]) -> np.ndarray:
        """[k, ...] the observations at these indices."""
        at = self._index[np.asarray(list(indices), dtype=np.int64)]
        if self._x is not None:
            return self._x[at]
        if self._render is None or not len(at):
            raise UnbraidError("no observation was asked for, so there is nothing to render.")
        return np.stack([np.asarray(self._render(int(i))) for i in at])

    def __len__(self) -> int:
        return len(self.factors)

    def __getitem__(self, index: int) -> tuple[Any, np.ndarray]:
        """(observation, [f] factors) of one index, which may count from the end."""
        if not isinstance(index, int | np.integer):
            raise UnbraidError(f"an index is a whole number, not {index!r}; for several at once see subset().")
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} observations")
        at = int(self._index[index])
        x = self._x[at] if self._x is not None else self._render(at)  # type: ignore[misc]
        return x, self.factors[index]

    def __iter__(self) -> Iterator[tuple[Any, np.ndarray]]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}: {size or 'continuous'}" for name, size in zip(self.names, self.sizes, strict=True))
        return f"FactorData({len(self)} observations; {sizes})"

    def column(self, name: str | int) -> int:
        """The column of a factor given by name or number.

        Raises:
            UnbraidError: there is no such factor.
        """
        if isinstance(name, str) and name in self.names:
            return self.names.index(name)
        if isinstance(name, int | np.integer) and not isinstance(name, bool) and 0 <= name < len(self.names):
            return int(name)
        raise UnbraidError(f"there is no factor {name!r}; there are {', '.join(self.names)}.")

    def subset(self, indices: Any) -> FactorData:
        """The observations at these indices (or where a mask is True), in that order; nothing is rendered or copied.

        Raises:
            UnbraidError: an index is beyond the data, or a mask has another length.
        """
        at = np.asarray(indices)
        if at.dtype == bool:
            if at.shape != (len(self),):
                raise UnbraidError(
                    f"a mask for {len(self)} observations must have that length, not the shape {at.shape}."
                )
            at = np.flatnonzero(at)
        if at.ndim != 1 or (at.size and at.dtype.kind not in "iu"):
            raise UnbraidError(
                f"subset needs a flat list of whole numbers or a mask, not an array of {at.dtype}, {at.shape}."
            )
        at = at.astype(np.int64)
        if at.size and (at.min() < -len(self) or at.max() >= len(self)):
            raise UnbraidError(f"subset was asked for index {at.max()} or {at.min()} of {len(self)} observations.")
        made = object.__new__(FactorData)
        made.names, made.sizes, made._render, made._x = self.names, self.sizes, self._render, self._x
        made.factors, made._index = self.factors[at], self._index[at]
        return made

    def sample(self, n: int, seed: int, *, replace: bool = False) -> FactorData:
        """``n`` observations at random.

        Args:
            n: how many.
            seed: the same seed gives the same ones.
            replace: whether one may be drawn more than once.

        Raises:
            UnbraidError: there are fewer than ``n``, and none may be drawn twice.
        """
        if n < 1 or not len(self) or (not replace and n > len(self)):
            raise UnbraidError(f"sample was asked for {n} of {len(self)} observations; ask for 1 to {len(self)}.")
        return self.subset(np.random.default_rng(seed).choice(len(self), n, replace=replace))

    def pairs(self, n: int, share: str | int | Sequence[str | int], seed: int) -> tuple[FactorData, FactorData]:
        """``n`` pairs of two different observations that agree in the shared factors; the others fall as they may.

        The first of a pair is drawn evenly from the observations that have a partner, the second evenly from its
        partners.

        Args:
            n: how many; pairs may repeat.
            share: name, number, or several of them.
            seed: the same seed gives the same pairs.

        Returns:
            The first of each pair and the second of each, both of length n.

        Raises:
            UnbraidError: no two observations share these factors (with continuous ones they hardly ever do).
        """
        listed = [share] if isinstance(share, str | int | np.integer) else list(share)
        columns = [self.column(name) for name in listed]
        if n < 1 or not columns:
            raise UnbraidError(f"pairs needs n of at least 1 and a factor to share, not n={n!r} and share={share!r}.")
        _, group = np.unique(self.factors[:, columns], axis=0, return_inverse=True)
        group = group.reshape(-1)
        order = np.argsort(group, kind="stable")
        sizes = np.bincount(group)
        first_of = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        able = np.flatnonzero(sizes[group] > 1)
        if not able.size:
            raise UnbraidError(
                f"no two observations share {[self.names[c] for c in columns]}; share others, or take more data."
            )
        rng = np.random.default_rng(seed)
        one = rng.choice(able, n)
        # a step of 1 to size - 1 within the group, round its end, reaches every partner equally often and never itself
        size, start = sizes[group[one]], first_of[group[one]]
        other = order[start + (place[one] - start + rng.integers(1, size)) % size]
        return self.subset(one), self.subset(other)

    def split(self, shares: float | Sequence[float], seed: int) -> tuple[FactorData, ...]:
        """Disjoint parts, drawn at random.

        Args:
            shares: the share of the first of two parts, or that of each; shares below 1 in all leave the rest out.
            seed: the same seed gives the same parts.

        Raises:
            UnbraidError: a share is not positive, they exceed 1, or a part would be empty.
        """
        given = (shares, 1 - shares) if isinstance(shares, int | float) else tuple(shares)
        if not given or min(given) <= 0 or sum(given) > 1 + 1e-9:
            raise UnbraidError(f"shares must be positive and at most 1 in all, not {shares!r}.")
        ends = np.round(np.cumsum((0.0, *given)) * len(self)).astype(int)
        if (np.diff(ends) < 1).any():
            raise UnbraidError(f"{len(self)} observations are too few for parts of {given}.")
        order = np.random.default_rng(seed).permutation(len(self))
        return tuple(self.subset(order[a:b]) for a, b in pairwise(ends))

    def loader(self, batch_size: int, seed: int, *, drop_last: bool = True) -> DataLoader:
        """A torch DataLoader of (observations, factors), in an order drawn from the seed; needs torch.

        Raises:
            UnbraidError: there is less than one batch.
        """
        if batch_size < 1 or (drop_last and batch_size > len(self)):
            raise UnbraidError(f"batch_size is {batch_size}; it must be 1 to {len(self)}, the number of observations.")
        import torch
        from torch.utils.data import DataLoader

        generator = torch.Generator().manual_seed(seed)
        return DataLoader(self, batch_size, shuffle=True, drop_last=drop_last, generator=generator)  # type: ignore[arg-type]


def _as_factors(factors: Any) -> np.ndarray:
    array = np.asarray(factors)
    if array.ndim != 2 or array.shape[1] < 1 or array.dtype.kind not in "biuf":
        raise UnbraidError(f"factors must be numbers of shape [n, f], not {array.dtype} of shape {array.shape}.")
    if not np.isfinite(array).all():
        raise UnbraidError("factors hold NaN or infinity; every observation needs its true factors.")
    return array.astype(np.int64) if array.dtype.kind in "biu" else array.astype(np.float64)


def _as_sizes(
    sizes: Sequence[int | None] | None, factors: np.ndarray, names: tuple[str, ...]
) -> tuple[int | None, ...]:
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
        if (column < 0).any() or (column >= size).any() or (column != np.floor(column)).any():
            raise UnbraidError(
                f"factor {name!r} has values from {column.min():g} to {column.max():g}; with size {size} they must be "
                f"whole numbers from 0 to {size - 1} (give size None if it is continuous)."
            )
    return tuple(None if size is None else int(size) for size in sizes)
