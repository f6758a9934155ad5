"""A paper's statement put to the test, and a table of rows: the two kinds of text that a result is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from unbraid.core.errors import UnbraidError
from unbraid.core.plain import Scalar, numbers_of, scalar, text

if TYPE_CHECKING:
    import pandas as pd

HOLDS = {True: "holds", False: "does not hold", None: "not tested"}


@dataclass(frozen=True)
class Claim:
    """What a paper states, what was measured here, against what, and whether it holds.

    A claim that does not hold is reported as such; it is never loosened or left out.

    Args:
        name: short.
        statement: what the paper says, in our own words.
        source: where: arXiv id, section, table or figure.
        paper: the paper's figure, a number or text; None where it gives none.
        measured: what came out here, a number or text; None where it was not measured (NaN counts as that).
        comparator: what the measurement is compared with, and its figure in the same run.
        holds: True, False, or None where it was not tested.
        note: what a reader must know about the measurement.
        interval: lower and upper bound of ``measured``.
        n: number of seeds, draws or samples behind it.

    Raises:
        UnbraidError: an argument has another form, or ``holds`` is said of something that was not measured or not
            compared with anything.
    """

    name: str
    statement: str
    source: str
    paper: Scalar
    measured: Scalar
    comparator: Scalar
    holds: bool | None
    note: str = ""
    interval: Sequence[float] | None = None
    n: int | None = None

    def __post_init__(self) -> None:
        where = f"claim {self.name!r}"
        for name, needed in (("name", True), ("statement", True), ("source", True), ("note", False)):
            text(getattr(self, name), f"{name} of {where}", needed=needed)
        holds = scalar(self.holds, f"holds of {where}")
        if holds is not None and not isinstance(holds, bool):
            raise UnbraidError(f"holds of {where} must be True, False or None (not tested), not {self.holds!r}.")
        values = {
            name: scalar(getattr(self, name), f"{name} of {where}") for name in ("paper", "measured", "comparator")
        }
        for name in ("measured", "comparator"):
            if holds is not None and values[name] in (None, ""):
                raise UnbraidError(
                    f"{where} says that it {HOLDS[holds]}, but {name} is {getattr(self, name)!r}: give what was "
                    f"{'measured' if name == 'measured' else 'compared with'}, or holds=None (not tested)."
                )
        for name, value in {**values, "holds": holds, "interval": self._bounds(where), "n": self._count(where)}.items():
            object.__setattr__(self, name, value)

    def _bounds(self, where: str) -> tuple[float, float] | None:
        if self.interval is None:
            return None
        bounds = numbers_of(self.interval, f"interval of {where}")
        if all(b is None for b in bounds):  # an interval of NaN: nothing was measured
            return None
        if len(bounds) != 2 or bounds[0] is None or bounds[1] is None or bounds[0] > bounds[1]:
            raise UnbraidError(f"interval of {where} must be (lower, upper), not {self.interval!r}.")
        return bounds[0], bounds[1]

    def _count(self, where: str) -> int | None:
        count = scalar(self.n, f"n of {where}")
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise UnbraidError(f"n of {where} must be a positive whole number or None, not {self.n!r}.")
        return count

    @property
    def verdict(self) -> str:
        """ "holds", "does not hold" or "not tested"."""
        return HOLDS[self.holds]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        data = asdict(self)
        return {**data, "interval": None if self.interval is None else list(self.interval)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Claim:
        """The inverse of `to_dict`."""
        return cls(**data)


@dataclass(frozen=True)
class Table:
    """Rows of text, numbers, booleans and None, under named columns.

    Args:
        columns: their names, in order.
        rows: each as long as ``columns``.
        caption: what to see in it.

    Raises:
        UnbraidError: two columns have one name, a row has another length, or a cell is of another type.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Scalar]]
    caption: str = ""

    def __post_init__(self) -> None:
        columns = tuple(str(name) for name in self.columns)
        if not columns or len(set(columns)) < len(columns):
            raise UnbraidError(f"a Table needs at least one column, and different names; given are {list(columns)}.")
        rows = []
        for i, row in enumerate(self.rows):
            cells = tuple(scalar(cell, f"a cell of row {i}") for cell in row)
            if len(cells) != len(columns):
                raise UnbraidError(f"row {i} of a Table has {len(cells)} cells; its columns are {list(columns)}.")
            rows.append(cells)
        object.__setattr__(self, "columns", columns)
        object.__setattr__(self, "rows", tuple(rows))
        text(self.caption, "Table.caption")

    @classmethod
    def from_records(cls, records: Iterable[Mapping[str, Any]], caption: str = "") -> Table:
        """A table from dicts; columns stand in the order in which they first occur, a missing cell is None.

        Raises:
            UnbraidError: there is no record, or a record is no dict.
        """
        listed = []
        for record in records:
            if not isinstance(record, Mapping):
                raise UnbraidError(f"a table needs dicts as rows, not {record!r}.")
            listed.append({str(key): value for key, value in record.items()})
        columns = list(dict.fromkeys(key for record in listed for key in record))
        if not columns:
            raise UnbraidError("a table needs at least one row, or say its columns: Table(['name', ...], []).")
        return cls(columns, [[record.get(name) for name in columns] for record in listed], caption)

    @property
    def records(self) -> list[dict[str, Scalar]]:
        """The rows as dicts."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def frame(self) -> pd.DataFrame:
        """A pandas frame; needs pandas.

        Raises:
            UnbraidError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise UnbraidError('frame() needs pandas: pip install "unbraid[frames]".') from None
        return pd.DataFrame(list(self.rows), columns=list(self.columns))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {"columns": list(self.columns), "rows": [list(row) for row in self.rows], "caption": self.caption}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Table:
        """The inverse of `to_dict`."""
        return cls(data["columns"], data["rows"], data.get("caption", ""))
