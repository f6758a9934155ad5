"""Progress on standard error, for everything that takes longer than about two seconds."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]


@contextmanager
def bar(show: bool, what: str, total: int, *, label: str = "", done: int = 0, bytes_: bool = True) -> Iterator[Advance]:
    """Show a bar while the body runs; the body calls the yielded function with the total done so far.

    Args:
        show: False draws nothing. Where standard error is no terminal, one line is written at the start instead.
        what: What is done, as a line of its own where there is no terminal.
        label: Text before the bar; by default `what`.
        total: Amount at 100 %.
        done: Amount done already.
        bytes_: Count bytes (with a rate) rather than steps.
    """
    if not show:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        print(f"{what} ({total / 1e6:,.1f} MB)" if bytes_ else what, file=sys.stderr, flush=True)
        yield lambda _: None
        return
    amount = [DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(compact=True)]
    steps = [TextColumn("{task.percentage:>3.0f} %"), SpinnerColumn()]
    columns = [TextColumn("{task.description}", markup=False), BarColumn(20), *(amount if bytes_ else steps)]
    with Progress(*columns, console=console, transient=False) as progress:
        task = progress.add_task(label or what, total=total, completed=done)
        yield lambda amount_done: progress.update(task, completed=amount_done)


def say(show: bool, text: str) -> None:
    """Write one line to standard error, unless `show` is False."""
    if show:
        print(text, file=sys.stderr, flush=True)
