"""What a study found: claims, tables, figures and arrays, as a page, as files for other programs, and on the console.

Importing this module needs numpy and no torch; pandas, matplotlib and pyarrow are imported where they are asked for.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from unbraid.core.claim import Claim, Table
from unbraid.core.errors import UnbraidError
from unbraid.core.figures import Audio, Bars, Figure, HeadMap, HtmlText, Image, Lines, Scatter, figure_from_dict
from unbraid.core.heatmap import HeatMap
from unbraid.core.plain import plain, text
from unbraid.core.provenance import provenance
from unbraid.core.series import Series

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as PlotFigure
    from rich.console import Console

__all__ = [
    "Audio",
    "Bars",
    "Claim",
    "Figure",
    "HeadMap",
    "HeatMap",
    "HtmlText",
    "Image",
    "Lines",
    "Result",
    "Scatter",
    "Series",
    "Table",
]

FORMAT = "unbraid.result/1"
PAGE_BUDGET = 4_000_000


class Result:
    """What a study found.

    Two results are equal if all they hold is equal (arrays bit for bit, NaN being equal to NaN).

    Args:
        slug: of the system, as in ``unbraid run SLUG``.
        title: one line for people.
        params: the study's parameters; plain values, arrays and paths are taken.
        claims: what the paper states and what came out; names must differ.
        tables: name -> `Table` or list of dicts; the first is the main one.
        figures: in the order in which a reader should see them.
        arrays: name -> numbers or booleans of any shape, kept exactly.
        notes: paragraphs that a reader needs: limits, deviations from the paper, what was cut.
        lead: what the page begins with, "claims" or "figures".
        meta: ``seed``, ``seconds``, ``command`` and whatever else; time, versions and machine are filled in.

    Raises:
        UnbraidError: an argument has another form.

    Example:
        >>> heads = [{"head": "L3H5", "score": 0.41}, {"head": "L0H1", "score": 0.08}]
        >>> result = Result("retrieval_heads", "Which heads copy", tables={"heads": heads}, meta={"seed": 0})
        >>> len(result.tables["heads"])
        2
    """

    def __init__(
        self,
        slug: str,
        title: str,
        *,
        params: Mapping[str, Any] | None = None,
        claims: Iterable[Claim] = (),
        tables: Mapping[str, Table | Sequence[Mapping[str, Any]]] | None = None,
        figures: Iterable[Figure] = (),
        arrays: Mapping[str, Any] | None = None,
        notes: Iterable[str] = (),
        lead: Literal["claims", "figures"] = "claims",
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        self.slug = text(slug, "Result.slug", needed=True)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", slug):
            raise UnbraidError(f"Result.slug is {slug!r}; it may hold letters, digits, '_', '-' and '.' only.")
        self.title = text(title, "Result.title", needed=True)
        self.params: dict[str, Any] = plain(dict(params or {}), "params")
        self.claims = list(claims)
        self.tables = {str(k): v if isinstance(v, Table) else Table.from_records(v) for k, v in (tables or {}).items()}
        self.figures = list(figures)
        self.arrays = {str(name): _array(value, str(name)) for name, value in (arrays or {}).items()}
        if isinstance(notes, str):
            raise UnbraidError("Result.notes must be a list of paragraphs, not one string: put it in brackets.")
        self.notes = [text(note, "a note") for note in notes]
        if lead not in ("claims", "figures"):
            raise UnbraidError(f"Result.lead is {lead!r}; a page begins with 'claims' or 'figures'.")
        self.lead = lead
        self.meta: dict[str, Any] = provenance(**plain(dict(meta or {}), "meta"))
        self._check()

    def _check(self) -> None:
        for items, kind in ((self.claims, Claim), (self.figures, Figure)):
            for item in items:
                if not isinstance(item, kind):
                    raise UnbraidError(f"Result takes {kind.__name__} objects there, not {item!r}.")
        names = [claim.name for claim in self.claims]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UnbraidError(f"two claims have the name {twice[0]!r}; give each its own.")

    def __repr__(self) -> str:
        parts = [f"{len(self.claims)} claims", f"tables {list(self.tables)}", f"{len(self.figures)} figures"]
        return f"Result({self.slug!r}: {', '.join(parts)}, arrays {list(self.arrays)})"

    def __eq__(self, other: object) -> bool:
        if (
            not isinstance(other, Result)
            or self.to_dict() != other.to_dict()
            or list(self.arrays) != list(other.arrays)
        ):
            return False
        return all(_same(mine, other.arrays[name]) for name, mine in self.arrays.items())

    __hash__ = None  # type: ignore[assignment]

    def frame(self, table: str | None = None) -> pd.DataFrame:
        """A table as a pandas frame.

        Args:
            table: its name; "claims" for the claims; None for the first table (the claims where there is no table).

        Raises:
            UnbraidError: there is no such table, or pandas is not installed.
        """
        name = next(iter(self.tables), "claims") if table is None else table
        if name in self.tables:
            return self.tables[name].frame()
        if name != "claims":
            raise UnbraidError(f"this result has no table {name!r}; it has {', '.join([*self.tables, 'claims'])}.")
        return self.claims_table().frame()

    def claims_table(self) -> Table:
        """The claims as a table."""
        columns = (
            "claim",
            "holds",
            "paper",
            "measured",
            "low",
            "high",
            "n",
            "comparator",
            "statement",
            "source",
            "note",
        )
        rows = []
        for c in self.claims:
            low, high = c.interval or (None, None)
            rows.append(
                (c.name, c.verdict, c.paper, c.measured, low, high, c.n, c.comparator, c.statement, c.source, c.note)
            )
        return Table(columns, rows)

    def plot(self) -> PlotFigure:
        """All figures (but texts) on one matplotlib figure; one figure alone: ``result.figures[i].plot(ax)``.

        Raises:
            UnbraidError: there is nothing to draw, or matplotlib is not installed.
        """
        from unbraid.core.plotting import draw_all

        return draw_all(self.figures)

    def to_html(self, path: str | Path | None = None, *, budget: int = PAGE_BUDGET) -> str:
        """One self-contained page: no network, light and dark, sortable tables, pictures with descriptions.

        Args:
            path: where to write it too; an existing file there is replaced.
            budget: upper bound of the page in bytes. Where the data are larger the page shows part of them (fewer
                rows, points or cells) and says so beside each.

        Returns:
            The page's text.

        Raises:
            UnbraidError: the budget is below 100,000 bytes.
        """
        from unbraid.core.encoding import write_bytes
        from unbraid.core.page import render

        page = render(self, budget)
        if path is not None:
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(target, page.encode("utf-8"))
        return page

    def _repr_html_(self) -> str:
        """The page in a notebook, in a frame of its own so that neither's styles and scripts touch the other's."""
        page = html.escape(self.to_html(), quote=True)
        return f'<iframe srcdoc="{page}" sandbox="allow-scripts" style="width:100%;height:600px;border:0"></iframe>'

    def summary(self, console: Console | None = None, *, rows: int = 10) -> None:
        """Print claims and the first rows of each table.

        Args:
            console: a rich console; None: standard output.
            rows: of each table.
        """
        from unbraid.core.console import print_summary

        print_summary(self, console, rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data: everything but the arrays' numbers."""
        return {
            "format": FORMAT,
            "slug": self.slug,
            "title": self.title,
            "params": self.params,
            "claims": [claim.to_dict() for claim in self.claims],
            "tables": {name: table.to_dict() for name, table in self.tables.items()},
            "figures": [figure.to_dict() for figure in self.figures],
            "arrays": {name: {"shape": list(a.shape), "dtype": str(a.dtype)} for name, a in self.arrays.items()},
            "notes": self.notes,
            "lead": self.lead,
            "meta": self.meta,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> Result:
        """The inverse of `to_dict`; ``arrays`` gives the numbers.

        Raises:
            UnbraidError: these are not the data of a result, or of one that a later version wrote.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, Mapping) else type(data).__name__
            raise UnbraidError(f"these data have the format {found!r}; this version reads {FORMAT!r}: update Unbraid.")
        try:
            result = cls(
                data["slug"],
                data["title"],
                params=data["params"],
                claims=[Claim.from_dict(item) for item in data["claims"]],
                tables={name: Table.from_dict(item) for name, item in data["tables"].items()},
                figures=[figure_from_dict(item) for item in data["figures"]],
                arrays={name: (arrays or {})[name] for name in data["arrays"]},
                notes=data["notes"],
                lead=data.get("lead", "claims"),  # not in what earlier versions wrote
            )
            result.meta = plain(data["meta"], "meta")  # as it was recorded, not of the machine that reads it
        except (KeyError, TypeError, AttributeError) as error:
            raise UnbraidError(f"these data are no complete result ({type(error).__name__}: {error}).") from None
        return result

    def save(self, folder: str | Path) -> Path:
        """Write ``result.json``, ``index.html``, ``arrays.safetensors`` and, with pyarrow, ``tables/*.parquet``.

        All appear together: the folder is written beside its place and moved there.

        Args:
            folder: new, or without any of these files.

        Returns:
            The folder.

        Raises:
            UnbraidError: a result is there already; it is never overwritten.
        """
        from unbraid.core.store import save

        return save(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> Result:
        """Read what `save` wrote.

        Args:
            folder: or the ``result.json`` in it.

        Raises:
            UnbraidError: there is no result, or its files do not belong together.
        """
        from unbraid.core.store import load

        return load(Path(folder))


def _array(value: Any, name: str) -> np.ndarray:
    try:
        array = np.array(value, order="C")  # a copy: what the caller changes later does not change the result
    except (TypeError, ValueError, RuntimeError) as error:
        raise UnbraidError(f"array {name!r} cannot be read as numbers ({error}); give a numpy array.") from None
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise UnbraidError(
            f"array {name!r} has dtype {array.dtype}; accepted are booleans, integers and floats up to 64 bit."
        )
    if name == "__metadata__" or not name:
        raise UnbraidError(f"an array cannot be called {name!r}, which the file format keeps for itself.")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))
