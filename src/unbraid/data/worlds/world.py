"""A world: all images that a scene can make, as data with known factors, drawn when they are needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.data.factors import FactorData
from unbraid.data.tables import grid_rows
from unbraid.data.worlds.oracle import Oracle, Reading
from unbraid.data.worlds.scene import Factor, Scene

CHUNK = 64  # images whose intermediate arrays stay in the processor's cache
ROOM = 8 << 30


class World(FactorData):
    """Every image of a scene and the factors that made it; the last factor changes fastest.

    Factors with one value only are left out of the table (metrics cannot use them, and training on a constant label is
    the classic mistake with dSprites' first column); they stand in ``constants``.

    Args:
        scene: what draws.
        name: of the world.
        rows: [n, f] the factors of its observations; None: all combinations.
        constants: keep factors with one value.

    Attributes:
        kept: which of the scene's factors stand in the table.
        strides: [f] a row's index is ``factors @ strides``; None where the observations are no whole grid.
        constants: name -> value of the factors that were left out.
    """

    def __init__(self, scene: Scene, name: str, rows: np.ndarray | None = None, constants: bool = False) -> None:
        self.scene, self.name = scene, name
        self.kept = [k for k, f in enumerate(scene.factors) if constants or f.size != 1]
        if not self.kept:
            raise UnbraidError("every factor of this world has one value only; give some of them more.")
        kept = [scene.factors[k] for k in self.kept]
        self.constants = {f.name: f.values[0] for k, f in enumerate(scene.factors) if k not in self.kept}
        sizes = [f.size for f in kept]
        self.strides = None if rows is not None else strides_of([s or 1 for s in sizes])
        table = grid_rows([s or 1 for s in sizes]) if rows is None else rows
        super().__init__(self._draw_at, table, [f.name for f in kept], sizes, batched=True)
        self._oracle: Oracle | None = None
        self._levels: np.ndarray | None = None

    def __repr__(self) -> str:
        return f"World({self.name!r}, {'x'.join(map(str, self.shape))}; {super().__repr__()[11:]}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        return self.scene.shape

    @property
    def details(self) -> tuple[Factor, ...]:
        """The factors with their kind, and what their values mean."""
        return tuple(self.scene.factors[k] for k in self.kept)

    @property
    def x(self) -> np.ndarray:
        """[n, channels, height, width] all images; made anew each time.

        Raises:
            UnbraidError: they are more than 8 GiB.
        """
        need = 4 * len(self) * int(np.prod(self.shape))
        if need > ROOM:
            raise UnbraidError(
                f"all {len(self):,} images take {need / 1e9:.0f} GB; take sample(n, seed).x, loader(...) or "
                "cached(folder)."
            )
        return self.render(range(len(self)))

    def images(self, factors: Any) -> np.ndarray:
        """The images of any factors.

        Args:
            factors: [n, f] indices (0..1 where a factor is continuous), or [f] of one image.

        Returns:
            [n, channels, height, width] float32 from 0 to 1.

        Raises:
            UnbraidError: the shape is another, or a value is none of its factor's.
        """
        rows = self._rows(factors)
        if self._levels is not None:
            return self._from_levels(self.index(rows))
        return self._draw(rows)

    def index(self, factors: Any) -> np.ndarray:
        """[n] where the images of these factors stand in the world.

        Raises:
            UnbraidError: the world is no grid, or a value is none of its factor's.
        """
        if self.strides is None:
            raise UnbraidError(f"{self.name} is no grid of all combinations here; give every factor a size.")
        return self._rows(factors).astype(np.int64) @ self.strides

    def canonical(self, factors: Any) -> np.ndarray:
        """[n, f] the same factors where an image has one reading; where it has several, the first of them."""
        return self.scene.canonical(self.full(self._rows(factors)))[:, self.kept]

    def same(self, one: Any, other: Any) -> np.ndarray:
        """[n, f] whether factors agree, up to what no image can tell (the four sides of a square)."""
        return self.canonical(one) == self.canonical(other)

    def oracle(self, images: Any) -> np.ndarray:
        """[n, f] the factors that made the nearest image of the world; see `read`."""
        return self.read(images).factors

    def read(self, images: Any) -> Reading:
        """Read the factors back from any images: rendered, blurred, noisy, or decoded by a model.

        Args:
            images: [n, channels, height, width] or one of them; numpy or torch, mostly from 0 to 1.

        Returns:
            Factors (the canonical ones), the distance to the nearest image of the world, and how far the second is.

        Raises:
            UnbraidError: the shape is another, or a pixel is not finite.
        """
        if self._oracle is None:
            self._oracle = Oracle(self)
        return self._oracle.read(self._as_images(images))

    def cached(self, folder: str | Path, *, progress: bool | None = None) -> World:
        """The same world, its images read from a memory-mapped file with 256 levels, which is written once.

        Args:
            folder: where; several worlds may share one.
            progress: None shows a bar on a terminal.

        Raises:
            UnbraidError: the folder cannot be written to, or has too little room.
        """
        from unbraid.data.cache import stored

        kept = stored(self, folder, levels=True, progress=progress)
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        made._levels, made._render, made._oracle = kept, made._from_levels, None
        return made

    def _draw_at(self, at: np.ndarray) -> np.ndarray:
        return self._draw(self._table[at])

    def _from_levels(self, at: np.ndarray) -> np.ndarray:
        assert self._levels is not None
        return self._levels[at].astype(np.float32) / np.float32(255)

    def _draw(self, rows: np.ndarray) -> np.ndarray:
        full = self.full(rows)
        out = np.empty((len(full), *self.shape), np.float32)
        for start in range(0, len(full), CHUNK):
            out[start : start + CHUNK] = self.scene.draw(full[start : start + CHUNK])
        return out

    def full(self, rows: np.ndarray) -> np.ndarray:
        """[n, all factors of the scene] the rows of the table with the constant factors put back."""
        if len(self.kept) == len(self.scene.factors):
            return rows
        full = np.zeros((len(rows), len(self.scene.factors)), rows.dtype)
        full[:, self.kept] = rows
        return full

    def _rows(self, factors: Any) -> np.ndarray:
        rows = np.asarray(plain(factors))
        rows = rows[None] if rows.ndim == 1 else rows
        if rows.ndim != 2 or rows.shape[1] != len(self.names) or rows.dtype.kind not in "biuf":
            raise UnbraidError(
                f"factors must be numbers of shape [n, {len(self.names)}] ({', '.join(self.names)}), not "
                f"{rows.dtype} of shape {rows.shape}."
            )
        for name, size, column in zip(self.names, self.sizes, rows.T, strict=True):
            top = 1 if size is None else size - 1
            wrong = ~((column >= 0) & (column <= top))
            if size is not None:
                wrong |= column != np.floor(column)
            if wrong.any():
                kind = "numbers" if size is None else "whole numbers"
                raise UnbraidError(f"factor {name!r} takes {kind} from 0 to {top}, not {column[wrong][0]}.")
        return rows.astype(np.float64 if None in self.sizes else np.int64)

    def _as_images(self, images: Any) -> np.ndarray:
        given = np.asarray(plain(images))
        given = given[None] if given.shape == self.shape else given
        if given.ndim != 4 or given.shape[1:] != self.shape or given.dtype.kind not in "biuf":
            raise UnbraidError(
                f"images must be numbers of shape [n, {', '.join(map(str, self.shape))}], not {given.dtype} of shape "
                f"{given.shape}; make the world with size={given.shape[-1] if given.ndim == 4 else '...'} if it fits."
            )
        if given.dtype == np.uint8:
            return given.astype(np.float32) / np.float32(255)
        bad = ~np.isfinite(given).all(axis=(1, 2, 3))
        if bad.any():
            raise UnbraidError(
                f"{int(bad.sum())} of {len(given)} images hold NaN or infinity, the first of them image "
                f"{int(np.flatnonzero(bad)[0])}; no factors can be read from these."
            )
        return np.ascontiguousarray(given, np.float32)


def strides_of(sizes: list[int]) -> np.ndarray:
    """[f] how far apart in a grid two rows are that differ by one in a factor."""
    return np.concatenate([np.cumprod(np.array(sizes[::-1]))[::-1][1:], [1]]).astype(np.int64)


def plain(values: Any) -> Any:
    """A torch tensor as numpy; anything else as it is (torch is not imported for that)."""
    return values.detach().cpu().numpy() if type(values).__module__.startswith("torch") else values
