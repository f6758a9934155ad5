"""Tables on the console, JSON and Markdown on disk: what both benchmarks share."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Writes to a temporary name first, so that an interrupted run leaves the old file whole."""
    write_text(path, json.dumps(data, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """The same for text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def provenance() -> dict[str, Any]:
    """Time, versions, machine and threads, without names of hosts or folders."""
    from unbraid.core import provenance as house

    return house.provenance()


def said(value: Any) -> str:
    """A cell as people read it."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """A table on standard output."""
    from rich.console import Console
    from rich.table import Table

    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table()
    for name in names:
        table.add_column(
            name, justify="left" if isinstance(rows[0].get(name), str) else "right", no_wrap=name == names[0]
        )
    for row in rows:
        table.add_row(*(said(row.get(name)) for name in names))
    console = Console(width=170, highlight=False)
    console.print(f"\n{title}")
    console.print(table)


def markdown(rows: list[dict[str, Any]]) -> str:
    """The same table for a page."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(said(row.get(name)) for name in names) + " |" for row in rows]
    return "\n".join(lines) + "\n"
