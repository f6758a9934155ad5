"""Codes of chosen factors: from a grid, from a function, or from whatever rows share a value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.metrics.disentanglement.inputs import Observed, as_array, as_codes, as_mask, at_least, observe

Encode = Callable[[np.ndarray], Any]
WHOLE_GRID = 1_000_000


class Sampler(Protocol):
    """Draws codes under interventions.

    Attributes:
        count: factors that may be chosen.
        width: codes.
        name: "grid", "encode" or "buckets".
        factors: [count] numbers of the factors among the caller's.
    """

    count: int
    width: int
    name: str
    factors: np.ndarray

    def observe(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """[n, J] codes of random observations."""

    def fixed(self, which: np.ndarray, batch: int, rng: np.random.Generator) -> np.ndarray:
        """[M, B, J]: within each of M batches all observations have one (random) value of factor ``which[m]``."""

    def pairs(self, which: np.ndarray, batch: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Twice [M, B, J]: the two of a pair share the value of factor ``which[m]``, other pairs have their own."""

    def varied(self, which: np.ndarray, batch: int, rng: np.random.Generator) -> np.ndarray:
        """[M, B, J]: within each batch only factor ``which[m]`` varies."""


class GridSampler:
    """Codes of a complete grid: every intervention is indexing.

    Args:
        grid: [prod sizes, J] codes; the last factor changes fastest.
        sizes: [K] numbers of values; factors with one value are never chosen.
    """

    name = "grid"

    def __init__(self, grid: np.ndarray, sizes: Sequence[int]) -> None:
        self.grid, self.sizes = grid, np.asarray(sizes, dtype=np.int64)
        self.strides = np.concatenate([np.cumprod(self.sizes[::-1])[-2::-1], [1]]).astype(np.int64)
        self.factors = np.flatnonzero(self.sizes > 1)
        self.count, self.width = len(self.factors), grid.shape[1]

    def codes(self, index: np.ndarray) -> np.ndarray:
        """[..., J] codes at flat indices."""
        return np.take(self.grid, index, axis=0)

    def observe(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """See `Sampler`."""
        return self.codes(rng.integers(len(self), size=n))

    def __len__(self) -> int:
        return int(self.sizes.prod())

    def _replace(self, index: np.ndarray, which: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Flat indices [M, B] with factor ``which`` [M] set to ``value`` [M, 1] or [M, B]."""
        k = self.factors[which]
        stride, size = self.strides[k][:, None], self.sizes[k][:, None]
        return index + (value - index // stride % size) * stride

    def _values(self, which: np.ndarray, batch: int, rng: np.random.Generator) -> np.ndarray:
        size = self.sizes[self.factors[which]][:, None]
        return (rng.random((len(which), batch)) * size).astype(np.int64)

    def fixed(self, which: np.ndarray, batch: int, rng: np.random.Generator) -> np.ndarray:
        """See `Sampler`."""
        index = rng.integers(len(self), size=(len(which), batch))
        return self.codes(self._replace(index, which, self._values(which, 1, rng)))

    def pairs(self, which: np.ndarray, batch: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """See `Sampler`."""
        one, two = (rng.integers(len(self), size=(len(which), batch)) for _ in range(2))
        value = one // self.strides[self.factors[which]][:, None] % self.sizes[self.factors[which]][:, None]
        return self.codes(one), self.codes(self._replace(two, which, value))

    def varied(self, which: np.ndarray, batch: int, rng: np.random.Generator) -> np.ndarray:
        """See `Sampler`."""
        index = np.repeat(rng.integers(len(self), size=(len(which), 1)), batch, axis=1)
        return self.codes(self._replace(index, which, self._values(which, batch, rng)))


class EncodeSampler(GridSampler):
    """Codes from a function of factors, called anew for each batch: for encoders that draw, or grids too large.

    Args:
        encode: [n, K] whole numbers -> [n, J] codes.
        sizes: [K] numbers of values.
    """

    name = "encode"

    def __init__(self, encode: Encode, sizes: Sequence[int]) -> None:
        self.encode = encode
        probe = as_codes(encode(np.zeros((2, len(sizes)), dtype=np.int64)), "what encode(factors) returns")
        super().__init__(probe, sizes)

    def codes(self, index: np.ndarray) -> np.ndarray:
        """[..., J] codes at flat indices."""
        flat = index.reshape(-1)
        rows = flat[:, None] // self.strides % self.sizes
        found = as_codes(self.encode(rows), "what encode(factors) returns")
        if found.shape != (len(rows), self.width):
            raise UnbraidError(
                f"encode(factors) returned shape {found.shape} for {len(rows)} rows of factors; "
                f"it must return [{len(rows)}, {self.width}]."
            )
        return found.reshape(*index.shape, self.width)


class BucketSampler:
    """Rows that happen to share a value: what is left when factors cannot be chosen.

    Another estimator than the others: the factors that are not fixed keep whatever dependence they have in the data,
    and a bucket smaller than a batch is drawn from with repetition. A factor with a bucket of a single row is left
    out, as all its variances would be 0.

    Args:
        seen: codes and factors.
    """

    name = "buckets"

    def __init__(self, seen: Observed) -> None:
        self.z = seen.z
        self.width = seen.z.shape[1]
        usable = [k for k in np.flatnonzero(seen.varying) if (np.bincount(seen.classes[:, k]) > 1).sum() > 1]
        if not usable:
            raise UnbraidError("no factor has two values with two rows each, so nothing can be held fixed.")
        self.factors = np.array(usable)
        self.count = len(usable)
        self.rows, self.starts, self.lengths, self.chance = [], [], [], []
        for k in usable:
            counts = np.bincount(seen.classes[:, k], minlength=int(seen.sizes[k]))
            self.rows.append(np.argsort(seen.classes[:, k], kind="stable"))
            self.starts.append(np.concatenate([[0], np.cumsum(counts)[:-1]]))
            self.lengths.append(counts)
            self.chance.append(np.flatnonzero(counts > 1))
        self.classes = seen.classes[:, self.factors]

    def observe(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """See `Sampler`."""
        return self.z[rng.integers(len(self.z), size=n)]

    def _draw(self, k: int, value: np.ndarray, batch: int, rng: np.random.Generator) -> np.ndarray:
        """[M, B] rows with the values [M] of factor ``k``, each once where there are enough."""
        out = np.empty((len(value), batch), dtype=np.int64)
        for m, a in enumerate(value):
            length, start = int(self.lengths[k][a]), int(self.starts[k][a])
            inside = rng.integers(length, size=batch) if length < batch else rng.permutation(length)[:batch]
            out[m] = self.rows[k][start + inside]
        return out

    def fixed(self, which: np.ndarray, batch: int, rng: np.random.Generator) -> np.ndarray:
        """See `Sampler`."""
        out = np.empty((len(which), batch), dtype=np.int64)
        for k in range(self.count):
            mine = np.flatnonzero(which == k)
            out[mine] = self._draw(k, rng.choice(self.chance[k], len(mine)), batch, rng)
        return self.z[out]

    def pairs(self, which: np.ndarray, batch: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """See `Sampler`."""
        one = np.empty((len(which), batch), dtype=np.int64)
        two = np.empty_like(one)
        for k in range(self.count):
            mine = np.flatnonzero(which == k)
            value = rng.choice(self.chance[k], (len(mine), batch))
            for out in (one, two):
                inside = (rng.random(value.shape) * self.lengths[k][value]).astype(np.int64)
                out[mine] = self.rows[k][self.starts[k][value] + inside]
        return self.z[one], self.z[two]

    def varied(self, which: np.ndarray, batch: int, rng: np.random.Generator) -> np.ndarray:
        """Rows that agree in all factors but one; needs a table in which such rows exist.

        Raises:
            UnbraidError: there are too few of them.
        """
        out = np.empty((len(which), batch), dtype=np.int64)
        for k in range(self.count):
            mine = np.flatnonzero(which == k)
            others = np.delete(self.classes, k, axis=1)
            group = np.unique(others, axis=0, return_inverse=True)[1].reshape(-1)
            counts = np.bincount(group)
            able = np.flatnonzero(counts > 1)
            if not len(able):
                raise UnbraidError(
                    "no two rows differ in one factor only, which this metric needs; give encode= or grid=."
                )
            order = np.argsort(group, kind="stable")
            starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
            chosen = rng.choice(able, len(mine))
            inside = (rng.random((len(mine), batch)) * counts[chosen][:, None]).astype(np.int64)
            out[mine] = order[starts[chosen][:, None] + inside]
        return self.z[out]


def make_sampler(
    z: Any, factors: Any, grid: Any, encode: Encode | None, sizes: Sequence[int] | None, shared: dict[str, Any]
) -> tuple[Sampler, np.ndarray]:
    """The sampler that the arguments allow, and the mask over the caller's codes.

    Raises:
        UnbraidError: none or several sources were given, or they do not fit together.
    """
    given = [name for name, source in (("z", z), ("grid", grid), ("encode", encode)) if source is not None]
    if len(given) != 1:
        raise UnbraidError(
            f"give one source: z with factors, grid with sizes, or encode with sizes; given: {given or 'none'}."
        )
    if z is not None:
        if factors is None:
            raise UnbraidError("z was given without factors; give both.")
        seen = observe(z, factors, shared)
        return _of_table(seen), seen.active
    counts = _sizes(sizes)
    if grid is not None:
        codes = as_codes(grid, "grid")
        if len(codes) != np.prod(counts):
            raise UnbraidError(
                f"grid has {len(codes)} rows; sizes {counts} need {int(np.prod(counts))}, the last factor fastest."
            )
        made: Sampler = GridSampler(codes, counts)
    else:
        made = EncodeSampler(encode, counts)  # type: ignore[arg-type]
    mask = as_mask(shared.get("active_mask"), made.width)
    return made, mask


def encode_grid(encode: Encode, sizes: Sequence[int], batch: int = 4_096) -> np.ndarray:
    """[prod sizes, J] codes of the complete grid, the last factor changing fastest.

    Args:
        encode: [n, K] whole numbers -> [n, J] codes; must not draw at random.
        sizes: [K] numbers of values.
        batch: rows per call.

    Raises:
        UnbraidError: the grid has more than a million rows, or encode returns another shape.
    """
    counts = _sizes(sizes)
    if np.prod(counts) > WHOLE_GRID:
        raise UnbraidError(f"the grid has {int(np.prod(counts)):,} rows; hand encode= to the metrics instead.")
    sampler = EncodeSampler(encode, counts)
    parts = np.array_split(np.arange(len(sampler)), max(1, -(-len(sampler) // at_least(batch, 2, "batch"))))
    return np.concatenate([sampler.codes(part) for part in parts])


def _sizes(sizes: Sequence[int] | None) -> list[int]:
    listed = [] if sizes is None else as_array(sizes, "sizes").tolist()
    if not listed or any(not isinstance(n, int) or n < 1 for n in listed) or max(listed) < 2:
        raise UnbraidError(f"sizes must be the factors' numbers of values, one of them above 1, not {sizes!r}.")
    return listed


def _of_table(seen: Observed) -> Sampler:
    """Indexing where the rows are a complete grid, in whatever order; buckets where not."""
    whole = int(np.prod(seen.sizes.astype(object)))
    if whole == len(seen.z) and not seen.continuous.any():
        strides = np.concatenate([np.cumprod(seen.sizes[::-1])[-2::-1], [1]])
        place = seen.classes @ strides
        if len(np.unique(place)) == whole:
            return GridSampler(seen.z[np.argsort(place)], seen.sizes.tolist())
    return BucketSampler(seen)
