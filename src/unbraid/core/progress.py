"""The progress bar of studies."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(progress: bool | None, label: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr that `tick` moves; None shows it on a terminal."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    shown = sys.stderr.isatty() if progress is None else progress
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as live:
        task = live.add_task(label, total=total)
        yield lambda: live.advance(task)
