"""Two small flat worlds: a square on a field (XY), and grey discs with continuous factors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.data.worlds.scene import Factor, Scene, hues, sizes_given, spread

XY_SIZES = {"x": 16, "y": 16, "scale": 5, "colour": 4}
DISC_NAMES = ("x", "y", "radius", "intensity")


class Squares(Scene):
    """A coloured square on black at a place; the simplest test that anything works.

    Args:
        size: pixels of a side.
        sizes: values per factor, where they should differ.

    Raises:
        UnbraidError: a size is none.
    """

    title = "a square: place, scale, colour"

    def __init__(self, size: int = 64, sizes: Mapping[str, int] | None = None) -> None:
        counts = sizes_given(sizes, XY_SIZES)
        colours = counts["colour"]
        self.factors = (
            Factor("x", "ordinal", spread(0.15, 0.85, counts["x"]), "of the width"),
            Factor("y", "ordinal", spread(0.15, 0.85, counts["y"]), "of the height"),
            Factor("scale", "ordinal", spread(0.1, 0.28, counts["scale"]), "side, of the width"),
            Factor(
                "colour",
                "cyclic" if colours > 2 else "category",
                tuple(f"hue {k / colours:.2f}" for k in range(colours)),
            ),
        )
        self._rgb = hues(colours).astype(np.float32)
        self.shape = (3, size, size)
        self._values = [np.array(f.values, np.float32) * size for f in self.factors[:3]]

    def draw(self, rows: np.ndarray) -> np.ndarray:
        """[n, 3, height, width] images of [n, 4] indices; a pixel's value is the exact share that is covered."""
        x, y, half = (v[rows[:, k]] for k, v in enumerate(self._values))
        half = half / 2
        edges = np.arange(self.shape[1], dtype=np.float32)
        across, down = (
            np.clip(np.minimum(edges + 1, (c + half)[:, None]) - np.maximum(edges, (c - half)[:, None]), 0, 1)
            for c in (x, y)
        )
        mask = down[:, :, None] * across[:, None, :]
        return mask[:, None] * self._rgb[rows[:, 3]][:, :, None, None]


class Discs(Scene):
    """Grey discs: place, radius and brightness, each any number from 0 to 1.

    Centre at 0.2 + 0.6 (x, y) of the frame, radius 0.08 + 0.17 r of it, brightness 0.3 + 0.7 i, and a sigmoid edge
    half a pixel wide.

    Args:
        size: pixels of a side.
        sizes: values per factor; a factor without is continuous.

    Raises:
        UnbraidError: a size is none.
    """

    title = "grey discs: place, radius and intensity, all continuous"

    def __init__(self, size: int = 16, sizes: Mapping[str, int] | None = None) -> None:
        asked = sizes_given(sizes, dict.fromkeys(DISC_NAMES, 1)) if sizes else {}
        self.given = {name: asked[name] for name in (sizes or {})}
        if self.given and len(self.given) < len(DISC_NAMES):
            raise UnbraidError(f"discs take sizes for all of {', '.join(DISC_NAMES)} (a grid) or none (continuous).")
        self.factors = tuple(
            Factor(name, "ordinal", spread(0, 1, self.given.get(name, 2)), "", continuous=not self.given)
            for name in DISC_NAMES
        )
        self.shape = (1, size, size)

    def draw(self, rows: np.ndarray) -> np.ndarray:
        """[n, 1, height, width] images of [n, 4] numbers from 0 to 1, or indices where sizes were given."""
        if self.given:
            values = [np.array(f.values)[rows[:, k]] for k, f in enumerate(self.factors)]
        else:
            values = list(rows.T)
        x, y, r, i = (v.astype(np.float32) for v in values)
        side = self.shape[1]
        at = np.arange(side, dtype=np.float32) + np.float32(0.5)
        dx, dy = (at - ((0.2 + 0.6 * v) * side)[:, None] for v in (x, y))
        distance = np.sqrt((dy**2)[:, :, None] + (dx**2)[:, None, :])
        inside = ((0.08 + 0.17 * r) * side)[:, None, None] - distance
        cover = 1 / (1 + np.exp(np.clip(-2 * inside, -60, 60)))
        return (cover * (0.3 + 0.7 * i)[:, None, None])[:, None].astype(np.float32)
