"""A result on the console: claims and the first rows of each table, safe for any text that a model produced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unbraid.core.show import SYMBOLS, clean, is_numeric, measured, show

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from unbraid.core.claim import Table
    from unbraid.core.result import Result

_STYLES = {True: "green", False: "red", None: "dim"}


def print_summary(result: Result, console: Console | None, rows: int) -> None:
    """Print ``result``; see `Result.summary`."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid

    out = console or Console()
    out.print(_text(f"{result.title} ({result.slug})", "bold"))
    if result.claims:
        grid = Grid(
            "",
            "claim",
            "paper says",
            "measured",
            "compared with",
            title="Claims",
            title_justify="left",
            box=box.SIMPLE_HEAD,
        )
        for claim in result.claims:
            cells = (claim.name, show(claim.paper), measured(claim), show(claim.comparator))
            verdict = _text(f"{SYMBOLS[claim.holds]} {claim.verdict}", _STYLES[claim.holds])
            grid.add_row(verdict, *(_text(cell) for cell in cells))
        out.print(grid)
    for name, table in result.tables.items():
        out.print(_grid(name, table, rows))
    for note in result.notes:
        out.print(_text(f"Note: {note}", "dim"))


def _grid(name: str, table: Table, rows: int) -> object:
    from rich import box
    from rich.table import Table as Grid

    shown = min(rows, len(table))
    title = name if shown == len(table) else f"{name}: {shown} of {len(table):,} rows"
    grid = Grid(title=_text(title), title_justify="left", box=box.SIMPLE_HEAD)
    for j, column in enumerate(table.columns):
        grid.add_column(_text(column), justify="right" if is_numeric([row[j] for row in table.rows]) else "left")
    for row in table.rows[:rows]:
        grid.add_row(*(_text(show(cell)) for cell in row))
    return grid


def _text(value: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(clean(value), style=style)  # Text, not markup: "[bold]" in a token is shown as it is
