"""Several processes: the command line starts itself again through accelerate, once per process."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import typer

_FOLDER_VARIABLE = "UNBRAID_RUN_FOLDER"  # tells a started process where to write, and that it was started by us


@dataclass(frozen=True)
class Worker:
    """One of several processes: where it writes, its number from 0, and how many there are."""

    folder: Path
    rank: int
    count: int


def as_worker() -> Worker | None:
    """Who this process is among those started by `start`; None in a process that a person started."""
    folder = os.environ.get(_FOLDER_VARIABLE)
    if not folder:
        return None
    return Worker(Path(folder), int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def start(processes: int, words: list[str], folder: Path, *, cpu: bool = False) -> None:
    """Start ``processes`` copies of ``unbraid WORDS`` and wait for them.

    Args:
        processes: how many.
        words: the command line after ``unbraid``.
        folder: where the first of them writes.
        cpu: use no GPU, even where there is one.

    Raises:
        typer.Exit: a process failed; 130 when interrupted, 2 for bad input, else 1.
    """
    import torch

    cpu = cpu or not torch.cuda.is_available()
    threads = max(1, (os.cpu_count() or 1) // processes)
    line = [sys.executable, "-m", "unbraid.cli.launcher", "--num_machines", "1", "--mixed_precision", "no"]
    line += ["--num_processes", str(processes), "--dynamo_backend", "no", "--main_process_port", "0"]
    line += ["--num_cpu_threads_per_process", str(threads)]
    # the flag means "several processes on this machine"; its --cpu starts a single one
    line += ["--multi_gpu", "--module", "unbraid.cli", *words]
    environment = os.environ | {_FOLDER_VARIABLE: str(folder)}
    environment |= {"ACCELERATE_USE_CPU": "true"} if cpu else {}
    code = subprocess.run(line, env=environment, check=False).returncode
    if code:
        raise typer.Exit({-2: 130, 130: 130, 2: 2}.get(code, 1))
