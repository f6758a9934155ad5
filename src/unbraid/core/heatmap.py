"""A table of numbers as a coloured grid with named rows and columns: latents by factors, models by models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.core.figures import KINDS, Figure
from unbraid.core.plain import numbers_of, text


@dataclass(frozen=True, eq=False)
class HeatMap(Figure):
    """Numbers of rows and columns that have names; for attention heads see `HeadMap`.

    Args:
        title: of the figure.
        values: [R, C] numbers; what is not finite is an empty cell.
        rows: [R] names.
        columns: [C] names.
        x_label: what the columns are.
        y_label: what the rows are.
        caption: what to see in it.
        alt: description for people who cannot see it; empty: written from the data.
        scale: "sequential", "diverging" (zero in the middle) or "auto": diverging if there are both signs.
        limits: values of the two ends of the colour scale, or None for those of the data.

    Raises:
        UnbraidError: there is no cell, names do not fit, or an argument has another form.
    """

    kind: ClassVar[str] = "heat_map"
    title: str
    values: Any
    rows: Sequence[str]
    columns: Sequence[str]
    x_label: str = ""
    y_label: str = ""
    caption: str = ""
    alt: str = ""
    scale: str = "auto"
    limits: Any = None

    def __post_init__(self) -> None:
        self._check_texts()
        for name in ("x_label", "y_label"):
            text(getattr(self, name), f"HeatMap.{name}")
        if self.scale not in ("auto", "sequential", "diverging"):
            raise UnbraidError(f"HeatMap.scale is {self.scale!r}; it must be 'auto', 'sequential' or 'diverging'.")
        values = tuple(numbers_of(row, "a row of HeatMap.values") for row in self.values)
        rows, columns = tuple(map(str, self.rows)), tuple(map(str, self.columns))
        if not rows or not columns or len(values) != len(rows) or any(len(row) != len(columns) for row in values):
            sizes = f"{len(values)} rows for {len(rows)} names of rows and {len(columns)} of columns"
            raise UnbraidError(f"HeatMap.values must be [rows, columns] with a name each; given are {sizes}.")
        limits = None if self.limits is None else numbers_of(self.limits, "HeatMap.limits")
        if limits is not None and (len(limits) != 2 or None in limits or limits[0] >= limits[1]):  # type: ignore[operator]
            raise UnbraidError(f"HeatMap.limits must be two rising numbers, not {self.limits!r}.")
        self._set(values=values, rows=rows, columns=columns, limits=limits)

    @property
    def array(self) -> np.ndarray:
        """[R, C] float64, NaN for empty cells."""
        return np.array([[np.nan if v is None else float(v) for v in row] for row in self.values])

    @property
    def range(self) -> tuple[float, float, bool]:
        """Values at the two ends of the colour scale, and whether zero lies in its middle."""
        return colour_range(self.array, self.scale, self.limits)


def colour_range(values: np.ndarray, scale: str, limits: Any) -> tuple[float, float, bool]:
    """Values at the two ends of a colour scale, and whether zero lies in its middle.

    Args:
        values: of the cells, NaN for empty ones.
        scale: "sequential", "diverging" or "auto".
        limits: the two ends, or None for those of the values.
    """
    there = values[np.isfinite(values)]
    low, high = (float(there.min()), float(there.max())) if there.size else (0.0, 1.0)
    diverging = scale == "diverging" or (scale == "auto" and low < 0 < high)
    if limits is not None:
        low, high = limits
    elif diverging:
        high = max(abs(low), abs(high)) or 1.0
        low = -high
    elif 0 < low < 0.35 * high:
        low = 0.0
    return (low, high, diverging) if low < high else (low, low + (abs(low) or 1.0), diverging)


KINDS[HeatMap.kind] = HeatMap  # here and not in figures.py, which has no room left
