"""Checkpoints of training: complete or absent, never half; safetensors and JSON, nothing pickled.

A checkpoint is a folder ``step-00000040`` with ``weights.safetensors`` (by the names of ``state_dict``),
``state.json`` and ``state.safetensors`` (optimizer, scheduler, history, position in the data) and, for each process,
its random states. It is written beside its place and moved there in one step.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.core.encoding import decode, encode, read_arrays, write_arrays, write_json
from unbraid.core.errors import UnbraidError

WEIGHTS_FILE = "weights.safetensors"
FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})")


def folder_of(root: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return root / f"step-{step:08d}"


def steps_in(root: Path) -> list[int]:
    """Steps of the complete checkpoints, rising."""
    if not root.is_dir():
        return []
    return sorted(int(m.group(1)) for p in root.iterdir() if (m := _NAME.fullmatch(p.name)) and p.is_dir())


class Frozen:
    """Knows which weights training leaves alone, so that a checkpoint need not hold them.

    Being frozen does not mean being constant (a moving average is updated without a gradient): every frozen weight is
    compared by checksum with what it was at the start, and is saved once it differs.
    """

    def __init__(self, module: nn.Module) -> None:
        trained = {id(p) for p in module.parameters() if p.requires_grad}
        named = {name: p for name, p in module.named_parameters(remove_duplicate=False) if id(p) not in trained}
        self.sums = {name: checksum(p) for name, p in named.items()}

    def changed(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of ``weights`` that are not frozen or no longer what they were."""
        return {n: t for n, t in weights.items() if n not in self.sums or checksum(t) != self.sums[n]}


def checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's bytes."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return zlib.crc32(flat.numpy().data)


def split_state(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A module's tensors, and the other things that it keeps in its ``state_dict``."""
    state = module.state_dict()
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in state.items() if name not in tensors}


def write_state(folder: Path, name: str, value: Any) -> None:
    """Write plain data with tensors as ``name.json`` and ``name.safetensors``.

    Raises:
        UnbraidError: a part of it is neither.
    """
    arrays: dict[str, Any] = {}
    node = encode(value, arrays, name)
    if arrays:
        write_arrays(arrays, folder / f"{name}.safetensors")
    write_json(folder / f"{name}.json", node)


def read_state(folder: Path, name: str) -> Any:
    """Read what `write_state` wrote."""
    node = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    file = folder / f"{name}.safetensors"
    return decode(node, read_arrays(file, node) if file.is_file() else {})


def begin(root: Path, step: int) -> Path:
    """Make the empty folder in which a checkpoint is put together; what interrupted ones left behind is removed."""
    root.mkdir(parents=True, exist_ok=True)
    for stale in root.glob(".step-*.part"):
        shutil.rmtree(stale, ignore_errors=True)
    part = part_of(root, step)
    part.mkdir()
    return part


def part_of(root: Path, step: int) -> Path:
    """Where the checkpoint of a step is put together."""
    return root / f".{folder_of(root, step).name}.part"


def finish(root: Path, step: int, keep: int) -> Path:
    """Move a checkpoint to its place, and remove all but the newest ``keep``."""
    part, target = part_of(root, step), folder_of(root, step)
    for file in part.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())  # the data before the name: a name without data is worse than nothing
    if target.exists():  # an interruption right after a checkpoint was due: it is there already, of the same step
        shutil.rmtree(part)
    else:
        os.rename(part, target)
    for old in steps_in(root)[:-keep]:
        shutil.rmtree(folder_of(root, old), ignore_errors=True)
    return target


def load_weights(folder: Path, module: nn.Module, frozen: Frozen, state: Mapping[str, Any]) -> None:
    """Put a checkpoint's weights into ``module``.

    Raises:
        UnbraidError: they are those of another module, or its frozen weights are not those of the checkpointed run.
    """
    from safetensors.torch import load_file

    saved = load_file(folder / WEIGHTS_FILE)
    tensors, _ = split_state(module)
    unknown = sorted(set(saved) - set(tensors))
    missing = sorted(set(tensors) - set(saved) - set(state["frozen"]))
    other = [n for n in saved if n in tensors and saved[n].shape != tensors[n].shape]
    if unknown or missing or other:
        name = (unknown or missing or other)[0]
        raise UnbraidError(
            f"{folder} is a checkpoint of another module: they differ in {name!r}; give the folder of this one, or an "
            "empty one."
        )
    for name, expected in state["frozen"].items():
        if name not in saved and frozen.sums.get(name) != expected:
            raise UnbraidError(
                f"the frozen weight {name!r} is not what it was when {folder} was written; load the same base model, "
                "or give an empty folder."
            )
    module.load_state_dict({**tensors, **saved, **state["module"]})
