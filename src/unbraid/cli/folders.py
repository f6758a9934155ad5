"""Folders for output: made new for each run, never written over."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import typer

from unbraid.core.errors import UnbraidError

RUNS = Path("runs")


def claim_folder(slug: str, out: Path | None = None) -> Path:
    """Make the folder that a run may write to.

    Args:
        slug: what runs.
        out: the folder the user wants; None makes ``runs/SLUG/TIME`` under the working directory, with a number
            behind the time when two runs begin in the same second.

    Raises:
        UnbraidError: ``out`` is a file or holds something, or no folder can be made there.
    """
    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            if any(out.iterdir()):
                raise UnbraidError(f"{out} already holds files, and nothing is ever written over; give a new folder.")
            return out
        parent = RUNS / slug
        parent.mkdir(parents=True, exist_ok=True)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for number in range(1, 10_000):
            folder = parent / (stamp if number == 1 else f"{stamp}-{number}")
            try:
                folder.mkdir()  # fails when another run has just made it: the name is ours or nobody's
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise UnbraidError(
            f"no folder can be made at {out or RUNS / slug} ({error.strerror}); give another --out."
        ) from None
    raise UnbraidError(f"{parent} is full of runs of this second; wait a moment.")


def contents(folder: Path) -> list[str]:
    """Names of what lies in a folder, sorted; none when it does not exist."""
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[Path]:
    """Work in a folder: on an interruption say what it holds and leave with 130; remove it when nothing was written."""
    try:
        yield folder
    except KeyboardInterrupt:
        written = contents(folder)
        what = f"{folder} holds {', '.join(written)}" if written else "nothing was written"
        typer.echo(f"unbraid: interrupted; {what}.", err=True)
        raise typer.Exit(130) from None
    finally:
        discard_if_empty(folder)


def discard_if_empty(folder: Path) -> None:
    """Remove a folder that nothing was written to."""
    with contextlib.suppress(OSError):  # it holds something, or is gone: both are as they should be
        folder.rmdir()
