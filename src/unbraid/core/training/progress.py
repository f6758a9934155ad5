"""What a person sees of a run, and what they can say to it: a bar on stderr, and Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class Bar:
    """A progress bar on stderr; nothing where it is not wanted, or where stderr is no terminal."""

    def __init__(self, total: int, done: int, wanted: bool | None, main: bool) -> None:
        self._total, self._done = total, done
        self._wanted = main and (sys.stderr.isatty() if wanted is None else bool(wanted))
        self._bar: Any = None

    def __enter__(self) -> Self:
        if self._wanted:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            text = TextColumn("{task.fields[loss]}")
            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), text)
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total, completed=self._done, loss="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int, loss: float) -> None:
        """Say how far it is."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, loss=f"loss {loss:.4g}")


class Interrupt:
    """Ctrl-C lets the step that is being taken end; a second one does not wait.

    Only the main thread can be told of signals; elsewhere Ctrl-C does what it does without this.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None
        self._installed = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._heard)
            self._installed = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._installed:
            # None: the handler before ours was not set from Python, and cannot be put back from here either
            signal.signal(signal.SIGINT, signal.SIG_DFL if self._before is None else self._before)

    def _heard(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
