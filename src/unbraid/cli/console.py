"""Where output goes: results to stdout, everything else to stderr; wide enough when no terminal says how wide."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from rich.console import Console
from rich.table import Table


def out() -> Console:
    """The console for results."""
    return _console(stderr=False)


def err() -> Console:
    """The console for progress and messages."""
    return _console(stderr=True)


def _console(stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    # into a pipe or file there is no width to fit: long cells must not be cut off
    width = None if stream.isatty() or "COLUMNS" in os.environ else 200
    return Console(stderr=stderr, width=width, highlight=False, emoji=False, markup=False)


def table(title: str, *columns: str) -> Table:
    """An empty table in the style of the house."""
    made = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        made.add_column(name, no_wrap=index == 0, overflow="fold")
    return made


def print_json(value: Any) -> None:
    """Print JSON and nothing else to stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
