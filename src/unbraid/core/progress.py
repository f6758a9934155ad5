"""The progress bar of studies."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Tick(Protocol):
    """Moves a bar."""

    def __call__(self, steps: int = 1, /) -> None:
        """By so many steps."""


@contextmanager
def bar(progress: bool | None, label: str, total: int) -> Iterator[Tick]:
    """A progress bar on stderr that `tick(steps=1)` moves; None shows it on a terminal."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    shown = sys.stderr.isatty() if progress is None else progress
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as live:
        task = live.add_task(label, total=total)
        yield lambda steps=1, /: live.advance(task, steps)
