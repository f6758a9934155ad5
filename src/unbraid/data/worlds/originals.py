"""The original files of dSprites, Shapes3D, Cars3D and MPI3D, for those who have them. Nothing is unpickled."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.data.tables import grid_rows
from unbraid.data.worlds.scene import Factor, Kind, Scene
from unbraid.data.worlds.world import World, strides_of

TABLES: dict[str, dict[str, int]] = {
    "sprites": {"colour": 1, "shape": 3, "scale": 6, "orientation": 40, "posX": 32, "posY": 32},
    "shapes3d": {"floor hue": 10, "wall hue": 10, "object hue": 10, "scale": 8, "shape": 4, "orientation": 15},
    "cars3d": {"elevation": 4, "azimuth": 24, "identity": 183},
    "mpi3d": {"colour": 6, "shape": 6, "size": 2, "camera height": 3, "background": 3, "dof1": 40, "dof2": 40},
    # disentanglement_lib declares this table for MPI3D's toy and realistic files too, whose length says otherwise
    "mpi3d complex": {"colour": 4, "shape": 4, "size": 2, "camera height": 3, "background": 3, "dof1": 40, "dof2": 40},
}
IMAGES = ("imgs", "images", "x")
LABELS = ("latents_classes",)
CATEGORIES = ("shape", "colour", "identity", "background", "size")
CYCLES = ("floor hue", "wall hue", "object hue", "azimuth")


class Original(Scene):
    """Images out of a file, looked up by their factors.

    Args:
        pixels: [n, height, width(, channels)] array, memory map or HDF5 data set.
        name: which data set.
        order: the factors' names in the order in which the file counts, the last one fastest.
    """

    def __init__(self, pixels: Any, name: str, order: Sequence[str]) -> None:
        table = TABLES[name]
        self.pixels, self.name = pixels, name
        file = dict(zip(order, strides_of([table[n] for n in order]).tolist(), strict=True))
        self._strides = np.array([file[n] for n in table], np.int64)
        self.factors = tuple(Factor(n, _kind(n), tuple(float(k) for k in range(size))) for n, size in table.items())
        height, width = pixels.shape[1:3]
        self.shape = (pixels.shape[3] if len(pixels.shape) == 4 else 1, height, width)
        some = np.asarray(pixels[: min(64, len(pixels))])
        # dSprites is 0 and 1, the others are 0 to 255
        self._full = np.float32(255 if some.dtype.kind in "iu" and some.max(initial=0) > 1 else 1)

    def draw(self, rows: np.ndarray) -> np.ndarray:
        """[n, channels, height, width] images of [n, f] indices."""
        at, back = np.unique(rows @ self._strides, return_inverse=True)  # HDF5 wants them rising and once
        found = np.asarray(self.pixels[at])[back.reshape(-1)]
        found = found[..., None] if found.ndim == 3 else found
        return np.ascontiguousarray(found.transpose(0, 3, 1, 2), np.float32) / self._full

    def canonical(self, rows: np.ndarray) -> np.ndarray:
        """dSprites' orientations 0 and 39 are the same angle."""
        if self.name != "sprites":
            return rows
        made = rows.copy()
        made[:, 3] %= 39
        return made


def original(
    path: str | Path,
    name: str | None = None,
    *,
    keep: str | Path | None = None,
    order: Sequence[str] | None = None,
    constants: bool = False,
) -> World:
    """The world in an original file: the same interface as the look-alike, with the real pixels.

    Args:
        path: ``.npz``, ``.npy`` or ``.h5`` (that needs h5py) of dSprites, Shapes3D, Cars3D or MPI3D.
        name: "sprites", "shapes3d", "cars3d", "mpi3d" or "mpi3d complex"; None: told from the number of images.
        keep: a folder for the unpacked images, read from there as a memory map; None reads an ``.npz`` into memory.
        order: names of the factors as the file counts them, the last fastest, where that is not disentanglement_lib's
            order (Cars3D files elsewhere often have the identity first).
        constants: keep dSprites' constant colour, its first column, in the table.

    Raises:
        UnbraidError: the file cannot be read, holds other things, or its length is none of the tables'.
    """
    file = Path(path)
    if not file.is_file():
        raise UnbraidError(f"{file} is no file; give the .npz, .npy or .h5 of dSprites, Shapes3D, Cars3D or MPI3D.")
    pixels, labels = _open(file, None if keep is None else Path(keep))
    if len(pixels.shape) not in (3, 4) or np.dtype(pixels.dtype).kind not in "biuf":
        raise UnbraidError(
            f"{file} holds {pixels.dtype} of shape {tuple(pixels.shape)}, not images [n, height, width]."
        )
    found = _table(file, len(pixels), name)
    table = TABLES[found]
    listed = list(table) if order is None else list(order)
    if sorted(listed) != sorted(table):
        raise UnbraidError(f"order must name each of {', '.join(table)} once, not {', '.join(map(str, listed))}.")
    if labels is not None:
        _check_labels(file, labels, list(table.values()))
    return World(Original(pixels, found, listed), found, constants=constants)


def _table(file: Path, count: int, name: str | None) -> str:
    """Which data set has so many images."""
    lengths = {key: int(np.prod(list(table.values()))) for key, table in TABLES.items()}
    if name is not None and name not in TABLES:
        raise UnbraidError(f"there is no original data set {name!r} here; there are {', '.join(TABLES)}.")
    fits = [key for key, length in lengths.items() if length == count and (name is None or key.split()[0] == name)]
    fits = fits or ([name] if name is not None and lengths[name] == count else [])
    if not fits:
        known = ", ".join(f"{key} {length:,}" for key, length in lengths.items())
        asked = f", and {name} has {lengths[name]:,}" if name else ""
        raise UnbraidError(f"{file} holds {count:,} images{asked}; whole data sets have: {known}.")
    return fits[0]


def _check_labels(file: Path, labels: np.ndarray, sizes: list[int]) -> None:
    """The labels must count as the table does. dSprites' have six columns, the first of which is constant."""
    want = grid_rows(sizes)
    if labels.shape == (len(want), len(sizes) - 1):
        want = want[:, 1:]  # written by someone who left the constant colour out
    if labels.shape != want.shape or not np.array_equal(labels, want):
        raise UnbraidError(
            f"{file}: its labels {labels.shape} do not count through {sizes} with the last factor fastest; its images "
            "are in another order than the original's."
        )


def _open(file: Path, keep: Path | None) -> tuple[Any, np.ndarray | None]:
    """The images, and the labels where the file has them."""
    try:
        if file.suffix == ".npz":
            return _open_npz(file, keep)
        if file.suffix == ".npy":
            return np.load(file, mmap_mode="r", allow_pickle=False), None
        if file.suffix in (".h5", ".hdf5"):
            return _open_h5(file), None
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UnbraidError(f"{file} cannot be read ({error}); get it again.") from None
    raise UnbraidError(f"{file.name} ends in {file.suffix or 'nothing'}; .npz, .npy and .h5 can be read.")


def _open_npz(file: Path, keep: Path | None) -> tuple[Any, np.ndarray | None]:
    with zipfile.ZipFile(file) as packed:
        members = {name.removesuffix(".npy"): packed.getinfo(name) for name in packed.namelist()}
    key = next((k for k in IMAGES if k in members), None)
    if key is None:
        raise UnbraidError(f"{file} holds {', '.join(members) or 'nothing'}; images are looked for as {IMAGES}.")
    # one member at a time: dSprites' metadata are pickled, and never touched
    with np.load(file, allow_pickle=False) as arrays:
        label = next((k for k in LABELS if k in members), None)
        labels = None if label is None else arrays[label]
        if keep is None:
            return arrays[key], labels
    keep.mkdir(parents=True, exist_ok=True)
    unpacked = keep / f"{file.stem}-{members[key].CRC:08x}.npy"
    if not unpacked.is_file():
        draft = unpacked.with_name(f".{unpacked.name}.{os.getpid()}.tmp")
        try:
            with zipfile.ZipFile(file) as packed, packed.open(members[key]) as source, draft.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 22)  # an .npz holds .npy files as they are
            os.replace(draft, unpacked)
        finally:
            draft.unlink(missing_ok=True)
    return np.load(unpacked, mmap_mode="r", allow_pickle=False), labels


def _open_h5(file: Path) -> Any:
    try:
        h5py = import_module("h5py")
    except ImportError:
        raise UnbraidError(f"{file.name} needs h5py: pip install h5py.") from None
    opened = h5py.File(file, "r")
    key = next((k for k in IMAGES if k in opened), None)
    if key is None:
        raise UnbraidError(f"{file} holds {', '.join(opened) or 'nothing'}; images are looked for as {IMAGES}.")
    return opened[key]


def _kind(name: str) -> Kind:
    return "category" if name in CATEGORIES else "cyclic" if name in CYCLES else "ordinal"
