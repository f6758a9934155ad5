"""Observations in a memory-mapped file: rendered once, read by every later run. Nothing is pickled."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.core.progress import bar

if TYPE_CHECKING:
    from unbraid.data.factors import FactorData

ROWS = 256
PROBES = 16


def digest(data: FactorData) -> str:
    """A digest of all factors and of some observations: other data, or other pixels of the same world, differ in it."""
    made = hashlib.sha256(repr((data.names, data.sizes, len(data))).encode())
    made.update(np.ascontiguousarray(data.factors).tobytes())
    probes = data.render(np.unique(np.linspace(0, len(data) - 1, PROBES).astype(np.int64)))
    made.update(repr((probes.dtype.str, probes.shape)).encode())
    made.update(np.ascontiguousarray(probes).tobytes())
    return made.hexdigest()[:16]


def stored(data: FactorData, folder: str | Path, *, levels: bool = False, progress: bool | None = None) -> np.ndarray:
    """[n, ...] all observations of ``data`` in a memory-mapped ``.npy`` file of ``folder``, made if it is not there.

    Args:
        data: what to keep.
        folder: made if needed.
        levels: keep numbers from 0 to 1 as 256 levels, a quarter of the room.
        progress: None shows a bar on a terminal.

    Raises:
        UnbraidError: there is nothing to keep, no room, or the folder cannot be written to.
    """
    if not len(data):
        raise UnbraidError("there is no observation to keep in a file.")
    first = data.render([0])
    dtype = np.dtype(np.uint8) if levels else first.dtype
    shape = (len(data), *first.shape[1:])
    place = Path(folder)
    file = place / f"observations-{digest(data)}{'-levels' if levels else ''}.npy"
    found = opened(file, shape, dtype)
    if found is not None:
        return found
    need = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    draft = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        place.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(place).free
        if need > free:
            raise UnbraidError(f"{need / 1e9:.1f} GB are needed in {place}, and {free / 1e9:.1f} GB are free.")
        kept = np.lib.format.open_memmap(draft, mode="w+", dtype=dtype, shape=shape)
        with bar(progress, f"writing {file.name}", len(data)) as tick:
            for start in range(0, len(data), ROWS):
                rows = data.render(range(start, min(start + ROWS, len(data))))
                kept[start : start + len(rows)] = to_levels(rows) if levels else rows
                tick(len(rows))
        kept.flush()
        del kept
        os.replace(draft, file)
    except OSError as error:
        raise UnbraidError(f"{place} cannot be used ({error.strerror or error}); give a folder of yours.") from None
    finally:
        draft.unlink(missing_ok=True)
    again = opened(file, shape, dtype)
    assert again is not None, "it has just been written"
    return again


def opened(file: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
    """The array of a file if it is there, whole and of this form, else None."""
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if isinstance(found, np.ndarray) and found.shape == shape and found.dtype == dtype else None


def to_levels(images: np.ndarray) -> np.ndarray:
    """Numbers from 0 to 1 as whole numbers from 0 to 255, rounded."""
    return (np.clip(images, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)
