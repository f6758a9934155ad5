"""What every metric is given: codes and factors as checked arrays, and the arguments that all metrics share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict

import numpy as np

from unbraid.core.errors import UnbraidError

Representation = Literal["mean", "sampled"]
LARGEST = 1e100
REPRESENTATIONS = ("mean", "sampled")


class Shared(TypedDict, total=False):
    """Keyword arguments that every metric on codes and factors takes.

    Attributes:
        representation: whether the codes are the encoder's means ("mean") or draws from its posterior ("sampled"). It
            is recorded, as numbers of the two must not be compared.
        active_mask: [J] True for codes that count; None: all of them. `active_codes` makes one.
        blocks: codes that belong together, as (start, stop) with stop excluded, or lists of columns; None: each alone.
        names: [K] names of the factors; None: f0, f1, ...
        continuous: names or columns of factors that are continuous; None: those with values that are no whole numbers.
        factor_bins: into how many classes of equal count a continuous factor is cut where classes are needed.
        bootstrap: resamples for the interval; 0: none.
        seed: of everything random.
    """

    representation: Representation
    active_mask: Any
    blocks: Sequence[Any] | None
    names: Sequence[str] | None
    continuous: Sequence[str | int] | None
    factor_bins: int
    bootstrap: int
    seed: int


class Score(dict[str, Any]):
    """What a metric answers: a dict with at least these keys, which are attributes too.

    Attributes:
        score: the number; NaN where the definition says 0/0.
        interval: (low, high) at 95 %, or None.
        matrix: the table [codes or blocks, factors] behind it, or None.
        active: [J] mask of the codes that counted.
        estimator: which of the metric's forms this is, such as ``dci_d[gbt]``.
        representation: "mean" or "sampled", as the caller said.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"this score has no {name!r}; it has {', '.join(self)}.") from None

    def __float__(self) -> float:
        return float(self["score"])


@dataclass(frozen=True)
class Observed:
    """Checked codes and factors.

    Attributes:
        z: [N, A] the active codes.
        values: [N, K] factors as given.
        classes: [N, K] the same as classes 0..n-1; continuous ones in bins of equal count.
        sizes: [K] numbers of classes that occur.
        continuous: [K] mask.
        names: [K] of the factors.
        blocks: columns of ``z`` per block; single columns unless blocks were given.
        labels: names of the blocks, by the columns that the caller knows.
        active: [J] mask over the codes as given.
        representation: "mean" or "sampled".
        bootstrap: resamples.
        seed: of everything random.
    """

    z: np.ndarray
    values: np.ndarray
    classes: np.ndarray
    sizes: np.ndarray
    continuous: np.ndarray
    names: tuple[str, ...]
    blocks: tuple[np.ndarray, ...]
    labels: tuple[str, ...]
    active: np.ndarray
    representation: str
    bootstrap: int
    seed: int

    @property
    def single(self) -> bool:
        """Whether every block is one code."""
        return all(len(block) == 1 for block in self.blocks)

    @property
    def varying(self) -> np.ndarray:
        """[K] mask of the factors with more than one value; the others say nothing and are left out of means."""
        return self.sizes > 1

    def rows(self, at: np.ndarray) -> Observed:
        """The same with these rows only; classes keep their numbers."""
        return replace(self, z=self.z[at], values=self.values[at], classes=self.classes[at])

    def answer(self, score: float, estimator: str, matrix: np.ndarray | None = None, **more: Any) -> Score:
        """A `Score` of these data."""
        said: dict[str, Any] = {"score": float(score), "interval": None, "matrix": matrix, "active": self.active}
        said |= {"estimator": estimator, "representation": self.representation, "codes": list(self.labels)}
        return Score(**said, factors=list(self.names), **more)


def as_array(given: Any, what: str) -> np.ndarray:
    """A numpy array of a numpy array, list, pandas frame or torch tensor on any device."""
    if any(kind.__module__.split(".")[0] == "torch" for kind in type(given).__mro__):
        given = given.detach().cpu().numpy()
    try:
        array = np.asarray(given)
    except ValueError:
        raise UnbraidError(f"{what} must be a table of numbers; its rows have different lengths.") from None
    if array.dtype.kind not in "biuf":
        raise UnbraidError(f"{what} must hold numbers, not {array.dtype}; turn text into class numbers first.")
    return array


def as_codes(z: Any, what: str = "z") -> np.ndarray:
    """[N, J] float64 codes, checked.

    Raises:
        UnbraidError: another shape, fewer than two rows, or values that are not finite.
    """
    array = as_array(z, what)
    if array.ndim != 2 or array.shape[0] < 2 or array.shape[1] < 1:
        raise UnbraidError(
            f"{what} must be codes of shape [observations, codes] with at least 2 rows, not {array.shape}."
        )
    array = array.astype(np.float64, copy=False)  # never written to
    if not np.isfinite(array).all():
        bad = ~np.isfinite(array)
        row, column = (int(i) for i in np.argwhere(bad)[0])
        raise UnbraidError(
            f"{what} holds {int(bad.sum())} values that are not finite, the first in row {row}, code {column}; "
            "drop these rows or mend the encoder (NaN images give NaN codes)."
        )
    if np.abs(array).max() > LARGEST:
        raise UnbraidError(f"{what} holds values beyond {LARGEST:g}, whose squares overflow; the encoder has diverged.")
    return array


def observe(z: Any, factors: Any, shared: Mapping[str, Any]) -> Observed:
    """Check codes, factors and shared arguments.

    Raises:
        UnbraidError: something has another form; the sentence says what.
    """
    known = Shared.__annotations__
    unknown = [name for name in shared if name not in known]
    if unknown:
        raise UnbraidError(f"there is no argument {unknown[0]!r}; all metrics take {', '.join(known)}.")
    codes, values = as_codes(z), as_array(factors, "factors")
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or len(values) != len(codes) or not values.shape[1]:
        raise UnbraidError(
            f"factors must be [observations, factors] with as many rows as z ({len(codes)}), not {values.shape}."
        )
    names = factor_names(shared.get("names"), values.shape[1])
    if not np.isfinite(values).all():
        column = int(np.argwhere(~np.isfinite(values))[0, 1])
        raise UnbraidError(f"factor {names[column]!r} holds NaN or infinity; drop these rows.")
    said = shared.get("representation", "mean")
    if said not in REPRESENTATIONS:
        raise UnbraidError(f"representation is {said!r}; it must be 'mean' or 'sampled'.")
    active = as_mask(shared.get("active_mask"), codes.shape[1])
    continuous = _continuous(shared.get("continuous"), values, names)
    classes, sizes = _classes(values, continuous, names, _count(shared, "factor_bins", 10, 2))
    if not (sizes > 1).any():
        raise UnbraidError("every factor is constant in these data, so nothing can be measured; give varied data.")
    blocks, labels = make_blocks(shared.get("blocks"), active)
    return Observed(
        z=codes if active.all() else codes[:, active],
        values=values.astype(np.float64),
        classes=classes,
        sizes=sizes,
        continuous=continuous,
        names=names,
        blocks=blocks,
        labels=labels,
        active=active,
        representation=said,
        bootstrap=_count(shared, "bootstrap", 0, 0),
        seed=_count(shared, "seed", 0, 0),
    )


def factor_names(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """``count`` different names, made where none are given.

    Raises:
        UnbraidError: another number of names, or one twice.
    """
    made = tuple(f"f{i}" for i in range(count)) if names is None else tuple(str(name) for name in names)
    if len(made) != count or len(set(made)) < count:
        raise UnbraidError(f"names must be {count} different names, one per factor, not {list(made)}.")
    return made


def as_mask(mask: Any, count: int) -> np.ndarray:
    """[J] booleans, at least one of them True.

    Raises:
        UnbraidError: another length or type, or no code is left.
    """
    if mask is None:
        return np.ones(count, dtype=bool)
    array = as_array(mask, "active_mask")
    if array.shape != (count,) or array.dtype != bool:
        raise UnbraidError(f"active_mask must be {count} booleans, one per code, not {array.dtype} {array.shape}.")
    if not array.any():
        raise UnbraidError("active_mask leaves no code; all are passive, so there is nothing to measure.")
    return array


def at_least(value: Any, least: int, what: str) -> int:
    """A whole number of at least ``least``.

    Raises:
        UnbraidError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise UnbraidError(f"{what} is {value!r}; it must be a whole number of at least {least}.")
    return int(value)


def one_of(value: Any, accepted: Sequence[str], what: str) -> str:
    """A word that is accepted.

    Raises:
        UnbraidError: it is not.
    """
    if value not in accepted:
        raise UnbraidError(f"{what} is {value!r}; accepted are {', '.join(accepted)}.")
    return str(value)


def _count(shared: Mapping[str, Any], name: str, default: int, least: int) -> int:
    return at_least(shared.get(name, default), least, name)


def _continuous(given: Sequence[str | int] | None, values: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    if given is None:
        if values.dtype.kind != "f":
            return np.zeros(values.shape[1], dtype=bool)
        return np.array([bool((column != np.floor(column)).any()) for column in values.T])
    mask = np.zeros(len(names), dtype=bool)
    for item in given:
        if isinstance(item, str) and item in names:
            mask[names.index(item)] = True
        elif isinstance(item, int | np.integer) and 0 <= item < len(names):
            mask[item] = True
        else:
            raise UnbraidError(f"continuous names a factor {item!r}; there are {', '.join(names)}.")
    return mask


def _classes(
    values: np.ndarray, continuous: np.ndarray, names: tuple[str, ...], bins: int
) -> tuple[np.ndarray, np.ndarray]:
    classes = np.empty(values.shape, dtype=np.int64)
    for k, column in enumerate(np.ascontiguousarray(values.T)):
        if continuous[k]:
            edges = np.unique(np.quantile(column, np.linspace(0, 1, bins + 1)[1:-1]))
            column = np.searchsorted(edges, column, side="right")
        elif column.min() == -1:
            raise UnbraidError(f"factor {names[k]!r} holds -1, which marks a missing label; drop these rows.")
        classes[:, k] = _numbered(column)
    return classes, classes.max(axis=0) + 1


def _numbered(column: np.ndarray) -> np.ndarray:
    """Values as 0, 1, ... in their order; whole numbers of a small range without sorting."""
    if column.dtype.kind in "iu" and (low := int(column.min())) >= 0 and int(column.max()) - low < 4 * len(column):
        there = np.bincount(column - low) > 0
        return np.asarray((np.cumsum(there) - 1)[column - low])
    return np.unique(column, return_inverse=True)[1]


def make_blocks(given: Sequence[Any] | None, active: np.ndarray) -> tuple[tuple[np.ndarray, ...], tuple[str, ...]]:
    """Blocks as columns among the active codes, and their names by the caller's columns.

    Raises:
        UnbraidError: a block has another form, or two share a code.
    """
    place = np.cumsum(active) - 1  # from the caller's column to the column among active codes
    if given is None:
        columns = np.flatnonzero(active)
        return tuple(place[[c]] for c in columns), tuple(f"z{c}" for c in columns)
    blocks, labels, seen = [], [], np.zeros(len(active), dtype=bool)
    for item in given:
        members = _members(item, len(active))
        if seen[members].any():
            raise UnbraidError(f"code {int(members[seen[members]][0])} is in two blocks; each may be in one only.")
        seen[members] = True
        left = members[active[members]]
        if len(left):
            blocks.append(place[left])
            alone = len(members) == 1
            labels.append(f"z{members[0]}" if alone else f"z{members[0]}-{members[-1]}")
    if not blocks:
        raise UnbraidError("blocks leave no active code; give at least one block with active codes.")
    return tuple(blocks), tuple(labels)


def _members(item: Any, count: int) -> np.ndarray:
    listed = np.asarray(item)
    whole = listed.ndim == 1 and listed.size > 0 and listed.dtype.kind in "iu"
    if isinstance(item, tuple) and whole and len(item) == 2 and 0 <= item[0] < item[1] <= count:
        return np.arange(item[0], item[1])
    if isinstance(item, list | np.ndarray) and whole and listed.min() >= 0 and listed.max() < count:
        return listed.astype(np.int64)
    raise UnbraidError(
        f"a block is {item!r}; give tuples (start, stop) with 0 <= start < stop <= {count}, or lists of columns."
    )
