"""Observations with the true factors that made them. Needs numpy only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.data import draws
from unbraid.data.tables import Render, as_factors, as_sizes, grid_rows, one_by_one

if TYPE_CHECKING:
    from pathlib import Path

    from torch.utils.data import DataLoader


class FactorData:
    """n observations and their f true factors.

    Args:
        x: [n, ...] observations; or a function index -> observation, called when one is needed.
        factors: [n, f] values: integers from 0 for factors with discrete values, floats for continuous ones.
        names: [f] names of the factors; None: f0, f1, ...
        sizes: [f] how many values a factor has, or None for a continuous one. None: of integers, the greatest value
            plus one; of floats, all continuous. A factor with a size must hold whole numbers below it, or -1
            where a label is unknown.
        batched: a function ``x`` takes [k] indices and returns [k, ...] observations at once.

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
        *,
        batched: bool = False,
    ) -> None:
        self.factors = as_factors(factors)
        n, count = self.factors.shape
        self.names = tuple(f"f{i}" for i in range(count)) if names is None else tuple(str(name) for name in names)
        if len(self.names) != count or len(set(self.names)) < count:
            raise UnbraidError(f"names must be {count} different names, one per factor, not {list(self.names)}.")
        self.sizes = as_sizes(sizes, self.factors, self.names)
        self._render: Render | None = (x if batched else one_by_one(x)) if callable(x) else None
        self._x = None if callable(x) else np.asarray(x)
        if self._x is not None and (self._x.ndim == 0 or len(self._x) != n or self._x.dtype == object):
            raise UnbraidError(f"x must be an array of {n} observations, as there are factors, not of {self._x.shape}.")
        self._index = np.arange(n)
        self._table = self.factors  # of all observations, known ones: what an intervention looks in

    @classmethod
    def grid(
        cls, sizes: Mapping[str, int], render: Callable[[np.ndarray], Any], *, batched: bool = False
    ) -> FactorData:
        """All combinations of factors once, the last factor changing fastest.

        Args:
            sizes: name -> number of values.
            render: [f] factors -> observation; or, batched, [k, f] factors -> [k, ...] observations.
            batched: what ``render`` takes.

        Raises:
            UnbraidError: a size is not a positive whole number.
        """
        wrong = [n for n, s in sizes.items() if isinstance(s, bool) or not isinstance(s, int | np.integer) or s < 1]
        if wrong or not sizes:
            raise UnbraidError(
                f"sizes must be name -> positive whole number, for at least one factor, not {dict(sizes)}."
            )
        rows = grid_rows(tuple(int(size) for size in sizes.values()))
        return FactorData(lambda i: render(rows[i]), rows, tuple(sizes), tuple(sizes.values()), batched=batched)

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
        return self._render(at)

    def __len__(self) -> int:
        return len(self.factors)

    def __getitem__(self, index: int) -> tuple[Any, np.ndarray]:
        """(observation, [f] factors) of one index, which may count from the end."""
        if not isinstance(index, int | np.integer):
            raise UnbraidError(f"an index is a whole number, not {index!r}; for several at once see subset().")
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} observations")
        at = int(self._index[index])
        x = self._x[at] if self._x is not None else self._render(np.array([at]))[0]  # type: ignore[misc]
        return x, self.factors[index]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, np.ndarray]]:
        """What torch's DataLoader asks for a batch: all of it rendered at once."""
        return list(zip(self.render(indices), self.factors[np.asarray(indices, np.int64)], strict=True))

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
        return self._with(self.factors[at], self._index[at])

    def _with(self, factors: np.ndarray, index: np.ndarray) -> FactorData:
        made = object.__new__(FactorData)
        made.names, made.sizes, made._render, made._x = self.names, self.sizes, self._render, self._x
        made.factors, made._index, made._table = factors, index, self._table
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
        columns = self._columns(share)
        if n < 1 or not columns:
            raise UnbraidError(f"pairs needs n of at least 1 and a factor to share, not n={n!r} and share={share!r}.")
        rng = np.random.default_rng(seed)
        one, other = draws.partners(self.factors[:, columns], np.asarray(self.known[:, columns].all(axis=1)), n, rng)
        if not one.size:
            raise UnbraidError(
                f"no two observations share {[self.names[c] for c in columns]}; share others, or take more data."
            )
        return self.subset(one), self.subset(other)

    def counterfactuals(self, n: int, change: str | int | Sequence[str | int], seed: int) -> tuple[FactorData, ...]:
        """``n`` pairs that agree in all factors but the named ones: the same thing before and after a change.

        Args:
            n: how many; pairs may repeat.
            change: name, number, or several of them: at least one of these differs, all others are equal.
            seed: the same seed gives the same pairs.

        Returns:
            Before and after, both of length n.

        Raises:
            UnbraidError: no two observations differ in these factors alone.
        """
        columns = self._columns(change)
        rest = [c for c in range(len(self.names)) if c not in columns]
        if not columns or not rest:
            raise UnbraidError(f"change must name some of {', '.join(self.names)}, not none or all: {change!r}.")
        return self.pairs(n, rest, seed)

    def correlated(
        self, n: int, pairs: Sequence[Any], seed: int, *, sigma: float = 0.2, opposed: bool = False
    ) -> FactorData:
        """``n`` observations, with repeats, in which pairs of factors go together as they do not in the whole.

        A row's weight is the product over pairs of exp(-(u - v)^2 / (2 sigma^2)), u and v being the two factors brought
        to 0..1 (arXiv 2006.07886).

        Args:
            n: how many.
            pairs: two names or numbers, or a list of such pairs.
            seed: the same seed gives the same ones.
            sigma: 0.1 binds strongly, 0.7 hardly; the authors use 0.2, 0.4 and 0.7.
            opposed: high values of one go with low values of the other.

        Raises:
            UnbraidError: a pair is no pair of different factors, their labels are hidden, or sigma is not positive.
        """
        two = len(pairs) == 2 and not any(isinstance(item, list | tuple) for item in pairs)
        listed = [tuple(self.column(name) for name in pair) for pair in ([pairs] if two else pairs)]
        if (
            n < 1
            or not len(self)
            or not sigma > 0
            or not listed
            or any(len(set(p)) != 2 or len(p) != 2 for p in listed)
        ):
            raise UnbraidError(
                f"correlated needs n of at least 1, pairs of two different factors and a positive sigma, not n={n!r}, "
                f"pairs={pairs!r}, sigma={sigma!r}."
            )
        factors = self.factors.astype(np.float64)
        self._need_known(sorted({c for pair in listed for c in pair}))
        if opposed:
            flipped = {second for _, second in listed}
            factors[:, list(flipped)] *= -1
        at = draws.correlated(factors, listed, sigma, n, np.random.default_rng(seed))  # type: ignore[arg-type]
        return self.subset(at)

    def intervene(self, factor: str | int, value: float) -> FactorData:
        """The same observations with one factor set to a value and all others left alone: do(factor = value).

        They are looked up in the data that this was taken from, so a sample of a whole grid has all of them.

        Args:
            factor: name or number.
            value: what it is set to.

        Raises:
            UnbraidError: labels are hidden, or an observation with these factors does not exist.
        """
        column = self.column(factor)
        self._need_known(range(len(self.names)))
        if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not np.isfinite(value):
            raise UnbraidError(f"a factor is set to a number, not to {value!r}.")
        wanted = self.factors.copy()
        wanted[:, column] = value
        at = draws.counterparts(self._table, wanted)
        missing = at < 0
        if missing.any() or (wanted[:, column] != value).any():
            raise UnbraidError(
                f"{int(missing.sum()) or len(self)} of {len(self)} observations have no counterpart with "
                f"{self.names[column]} = {value}: it has "
                + (f"values 0 to {(self.sizes[column] or 1) - 1}" if self.sizes[column] else "continuous values")
                + ", and the data must hold all others alike (a whole grid does)."
            )
        return self._with(wanted, at)

    def hide(
        self, share: float, seed: int, factors: str | int | Sequence[str | int] | None = None, *, rows: bool = False
    ) -> FactorData:
        """The same observations with labels missing: -1 (NaN where a factor is continuous).

        Args:
            share: of the labels of each of these factors, 0 to 1; so many are taken away exactly, rounded.
            seed: the same seed hides the same ones.
            factors: name, number or several; None: all.
            rows: hide all these labels of an observation or none, instead of each factor on its own.

        Raises:
            UnbraidError: the share is none.
        """
        columns = list(range(len(self.names))) if factors is None else self._columns(factors)
        mask = draws.hidden(len(self), columns, draws.shares_checked(share, "share"), np.random.default_rng(seed), rows)
        table = self.factors.copy()
        for j, column in enumerate(columns):
            table[mask[:, j], column] = draws.UNKNOWN if self.sizes[column] is not None else np.nan
        return self._with(table, self._index)

    @property
    def known(self) -> np.ndarray:
        """[n, f] True where a label is there, False where `hide` took it away."""
        hidden = [draws.unknown(c, size) for c, size in zip(self.factors.T, self.sizes, strict=True)]
        return ~np.stack(hidden, axis=1)

    def cached(self, folder: str | Path, *, progress: bool | None = None) -> FactorData:
        """The same data with all observations in a memory-mapped file, written once and found again.

        Args:
            folder: where; the file's name holds a digest of what the data are, so several may share a folder.
            progress: None shows a bar on a terminal.

        Raises:
            UnbraidError: the folder cannot be written to, or has too little room.
        """
        from unbraid.data.cache import stored

        kept = stored(self, folder, progress=progress)
        made = self._with(self.factors, np.arange(len(self)))
        made._x, made._render, made._table = kept, None, self.factors
        return made

    def _columns(self, given: str | int | Sequence[str | int]) -> list[int]:
        listed = [given] if isinstance(given, str | int | np.integer) else list(given)
        return [self.column(name) for name in listed]

    def _need_known(self, columns: Iterable[int]) -> None:
        lost = [self.names[c] for c in columns if not self.known[:, c].all()]
        if lost:
            raise UnbraidError(f"labels of {', '.join(lost)} are hidden; draw first and hide afterwards.")

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
