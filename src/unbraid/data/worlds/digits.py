"""scikit-learn's handwritten digits as a world: real images, one factor."""

from __future__ import annotations

from typing import Any

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.data.worlds.scene import Factor, Scene
from unbraid.data.worlds.world import World

NATIVE = 8


class _Photographs(Scene):
    title = "scikit-learn's 1,797 handwritten digits: real images, one factor"

    def __init__(self, images: np.ndarray) -> None:
        self.factors = (Factor("digit", "category", tuple(float(k) for k in range(10))),)
        self.kept = images
        self.shape = images.shape[1:]

    def draw(self, rows: np.ndarray) -> np.ndarray:
        """Not by factors alone: see `Digits.images`."""
        raise UnbraidError("digits are photographs; Digits.images draws one of each kind at random.")


class Digits(World):
    """1,797 handwritten digits of scikit-learn, 8x8 grey, enlarged if asked.

    Many images share the one factor, so `images` takes one of the right kind at random (by seed and place in the call),
    and the oracle answers with the digit of the nearest image.

    Args:
        size: pixels of a side; 8 is as they are, more is interpolated.
        seed: of `images`.

    Raises:
        UnbraidError: they would be made smaller.
    """

    def __init__(self, size: int = NATIVE, seed: int = 0) -> None:
        if size < NATIVE:
            raise UnbraidError(f"size is {size}; digits have {NATIVE} pixels a side and are made no smaller.")
        from sklearn.datasets import load_digits

        images, kinds = load_digits(return_X_y=True)
        pixels = images.reshape(-1, 1, NATIVE, NATIVE).astype(np.float32) / 16
        if size > NATIVE:
            from scipy.ndimage import zoom

            by = size / NATIVE
            pixels = zoom(pixels, (1, 1, by, by), order=1, grid_mode=True, mode="nearest")
        self._seed = seed
        super().__init__(_Photographs(np.clip(pixels, 0, 1)), "digits", kinds.astype(np.int64)[:, None])
        self._by_kind = [np.flatnonzero(kinds == k) for k in range(10)]

    def images(self, factors: Any) -> np.ndarray:
        """One photograph at random per row of [n, 1] digits; the same call gives the same ones."""
        rows = self._rows(factors)[:, 0]
        draw = np.random.default_rng(self._seed).random(len(rows))
        at = [self._by_kind[k][int(u * len(self._by_kind[k]))] for k, u in zip(rows, draw, strict=True)]
        return self._draw_at(np.array(at, np.int64))

    def _draw_at(self, at: np.ndarray) -> np.ndarray:
        scene = self.scene
        assert isinstance(scene, _Photographs)
        return scene.kept[at]
