"""One line, set of bars or cloud of points, as data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from unbraid.core.errors import UnbraidError
from unbraid.core.plain import numbers_of, text


@dataclass(frozen=True)
class Series:
    """One line, one set of bars or one cloud of points.

    Args:
        name: shown in the legend.
        x: [n] positions; for bars, labels.
        y: [n] values.
        low: [n] lower bounds of the interval at each point, or None.
        high: [n] upper bounds, or None.
        labels: [n] names of the points, for a scatter, or None.

    Raises:
        UnbraidError: lengths differ, a value is no number, or only one of ``low`` and ``high`` is given.
    """

    name: str
    x: Sequence[Any]
    y: Sequence[Any]
    low: Sequence[Any] | None = None
    high: Sequence[Any] | None = None
    labels: Sequence[str] | None = None

    def __post_init__(self) -> None:
        where = f"series {self.name!r}"
        text(self.name, "Series.name")
        as_text = any(isinstance(item, str) for item in self.x)
        values: dict[str, Any] = {"x": tuple(map(str, self.x)) if as_text else numbers_of(self.x, f"x of {where}")}
        values["y"] = numbers_of(self.y, f"y of {where}")
        for name in ("low", "high"):
            bound = getattr(self, name)
            values[name] = None if bound is None else numbers_of(bound, f"{name} of {where}")
        values["labels"] = None if self.labels is None else tuple(map(str, self.labels))
        lengths = {key: len(value) for key, value in values.items() if value is not None}
        if len(set(lengths.values())) > 1:
            raise UnbraidError(f"{where} needs sequences of one length; these have {lengths}.")
        if (values["low"] is None) != (values["high"] is None):
            raise UnbraidError(f"{where} has only one bound; give both low and high, or neither.")
        for key, value in values.items():
            object.__setattr__(self, key, value)


def make_series(value: Any, where: str, *, labels: bool) -> tuple[Series, ...]:
    """Several series of one kind of x, from `Series` or their plain data; x become labels where these are wanted.

    Raises:
        UnbraidError: there is none, or x are labels where numbers are needed.
    """
    listed = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    made = [item if isinstance(item, Series) else _series_from(item, where) for item in listed]
    if not made:
        raise UnbraidError(f"{where} needs at least one Series.")
    for i, item in enumerate(made):
        if labels:
            made[i] = replace(item, x=tuple(x if isinstance(x, str) else "" if x is None else f"{x:g}" for x in item.x))
        elif any(isinstance(x, str) for x in item.x):
            raise UnbraidError(f"{where} needs numbers as x of series {item.name!r}, not {item.x[0]!r}.")
    return tuple(made)


def _series_from(item: Any, where: str) -> Series:
    if not isinstance(item, Mapping):
        raise UnbraidError(f"{where} needs a list of Series, not {item!r}.")
    return Series(**item)
