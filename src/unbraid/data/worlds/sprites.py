"""Sprites: dSprites' factors (shape, scale, orientation, position), drawn from signed distances, anti-aliased."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.data.worlds.scene import Factor, Scene, choice, hues, noise, period, sizes_given, spread

SIZES = {"colour": 1, "shape": 3, "scale": 6, "orientation": 40, "posX": 32, "posY": 32}
SHAPES = ("square", "ellipse", "heart")
FOLDS = (4, 2, 1)  # after how many parts of a turn each looks the same
RADIUS = 0.145  # of the frame, at scale 1: the longest sprite stays inside at every position
REACH = 1.45  # half-width of the table of distances, in radii
VARIANTS = ("plain", "colour", "noisy")


@lru_cache(maxsize=4)
def distances(cells: int) -> np.ndarray:
    """[3, cells, cells] signed distance to the edge of each shape in radii, positive inside; float32."""
    from scipy.ndimage import distance_transform_edt

    fine = 2 * cells
    at = (np.arange(fine) + 0.5) / fine * 2 * REACH - REACH
    u, w = at[None, :], at[:, None]
    a, b = 1.1 * u, -1.15 * w + 0.1
    insides = (
        np.maximum(np.abs(u), np.abs(w)) < 0.9,
        (u / 1.35) ** 2 + (w / 0.75) ** 2 < 1,
        (a**2 + b**2 - 1) ** 3 - a**2 * b**3 < 0,
    )
    step = 2 * REACH / fine
    made = []
    for inside in insides:
        # the edge runs between two cells, half a cell from the centre of either
        signed = np.where(inside, distance_transform_edt(inside) - 0.5, 0.5 - distance_transform_edt(~inside)) * step
        made.append(signed.reshape(cells, 2, cells, 2).mean(axis=(1, 3)))
    return np.stack(made).astype(np.float32)


class Sprites(Scene):
    """White or coloured sprites on black.

    A scale of 1 has the radius 0.145 of the frame, positions run from 0.2 to 0.8 of it. Orientations go round the
    circle without its end (the original has both ends, so two of its 40 are one). One colour is white on one channel;
    more are hues on three.

    Args:
        size: pixels of a side.
        seed: of the random variants.
        sizes: values per factor, where they should differ from the original's.
        turn: the part of a full turn that orientations cover; 0.25 makes them tell apart squares too.
        binary: only black and full, as the original; else anti-aliased.
        variant: "plain"; "colour": each image in a light colour of its own; "noisy": on a background of noise.

    Raises:
        UnbraidError: an option is none of these.
    """

    title = "dSprites' structure: shape, scale, orientation, position"

    def __init__(
        self,
        size: int = 64,
        seed: int = 0,
        sizes: Mapping[str, int] | None = None,
        turn: float = 1.0,
        binary: bool = False,
        variant: str = "plain",
    ) -> None:
        counts = sizes_given(sizes, SIZES, {"shape": 3})
        if isinstance(turn, bool) or not isinstance(turn, int | float) or not 0 < turn <= 1:
            raise UnbraidError(f"turn is {turn!r}; it must be above 0 and at most 1, a full turn.")
        self.variant, self.seed, self.binary, self.turn = (
            choice(variant, "variant", VARIANTS),
            seed,
            binary,
            float(turn),
        )
        if counts["colour"] > 1 and variant == "colour":
            raise UnbraidError(
                "variant 'colour' gives each image a colour of its own, so colour cannot be a factor too."
            )
        colours = counts["colour"]
        self._rgb = hues(colours).astype(np.float32) if colours > 1 else np.ones((1, 3), np.float32)
        angles = tuple((np.arange(counts["orientation"]) / counts["orientation"] * 2 * np.pi * turn).tolist())
        names = tuple(f"hue {k / colours:.2f}" for k in range(colours)) if colours > 1 else ("white",)
        self.factors = (
            Factor("colour", "cyclic" if colours > 2 else "category", names),
            Factor("shape", "category", SHAPES[: counts["shape"]]),
            Factor("scale", "ordinal", spread(0.5, 1.0, counts["scale"], 1.0), "of the largest"),
            Factor("orientation", "cyclic" if turn == 1 else "ordinal", angles, "radians"),
            Factor("posX", "ordinal", spread(0.2, 0.8, counts["posX"]), "of the width"),
            Factor("posY", "ordinal", spread(0.2, 0.8, counts["posY"]), "of the height"),
        )
        self.shape = (1 if colours == 1 and variant == "plain" else 3, size, size)
        self._values = [np.array(f.values[:] if f.unit else range(f.size or 1), np.float32) for f in self.factors]
        self._cells = max(512, 8 * size)
        self._half = int(np.ceil(RADIUS * 1.4 * size)) + 1

    def draw(self, rows: np.ndarray) -> np.ndarray:
        """[n, channels, height, width] images of [n, 6] indices."""
        mask = self._masks(rows)
        if self.shape[0] == 1:
            return mask[:, None]
        if self.variant == "plain":
            return mask[:, None] * self._rgb[rows[:, 0]][:, :, None, None]
        keys = rows @ np.array([7_000_003, 1_000_003, 100_003, 1_009, 61, 1], np.int64)
        if self.variant == "colour":
            return mask[:, None] * (0.5 + 0.5 * noise(keys, 3, self.seed))[:, :, None, None]
        rgb = self._rgb[rows[:, 0]][:, :, None, None]
        ground = noise(keys, int(np.prod(self.shape)), self.seed).reshape(-1, *self.shape)
        return np.minimum(ground + mask[:, None] * rgb, 1.0)

    def _masks(self, rows: np.ndarray) -> np.ndarray:
        """[n, height, width] how much of each pixel the sprite covers."""
        n, side, half = len(rows), self.shape[1], self._half
        scale, angle, x, y = (self._values[k][rows[:, k]] for k in (2, 3, 4, 5))
        radius, x, y = RADIUS * side * scale, x * side, y * side
        left, top = (np.floor(v).astype(np.int64) - half for v in (x, y))
        span = np.arange(2 * half + 1)
        # cells of the table per pixel, so that no division is left in the loop over pixels
        per = self._cells / (2 * REACH) / radius
        dx = (left[:, None] + span + np.float32(0.5) - x[:, None]).astype(np.float32) * per[:, None]
        dy = (top[:, None] + span + np.float32(0.5) - y[:, None]).astype(np.float32) * per[:, None]
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        middle = np.float32(self._cells / 2)
        u = (dx * cos + middle)[:, None, :] + (dy * sin)[:, :, None]
        w = (middle - dx * sin)[:, None, :] + (dy * cos)[:, :, None]
        last = np.float32(self._cells - 1)
        cell = np.clip(w, 0, last, out=w).astype(np.int32)
        cell *= self._cells
        cell += np.clip(u, 0, last, out=u).astype(np.int32)
        cell += (rows[:, 1].astype(np.int32) * self._cells**2)[:, None, None]
        cover = distances(self._cells).reshape(-1).take(cell)
        cover *= radius.astype(np.float32)[:, None, None]
        cover += np.float32(0.5)
        np.clip(cover, 0, 1, out=cover)
        if self.binary:
            cover = (cover >= 0.5).astype(np.float32)
        pad = half + 1
        canvas = np.zeros((n, side + 2 * pad, side + 2 * pad), np.float32)
        place = (
            np.arange(n)[:, None, None],
            (top[:, None] + span + pad)[:, :, None],
            (left[:, None] + span + pad)[:, None],
        )
        canvas[place] = cover
        return canvas[:, pad:-pad, pad:-pad]

    def canonical(self, rows: np.ndarray) -> np.ndarray:
        """Orientations of squares and ellipses within their symmetry."""
        size = self.factors[3].size or 1
        every = np.array([period(size, self.turn, fold) for fold in FOLDS])
        made = rows.copy()
        made[:, 3] %= every[rows[:, 1]]
        return made
