"""Sprites: dSprites' factors (shape, scale, orientation, position), drawn from signed distances, anti-aliased."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from functools import lru_cache

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.data.worlds.scene import Factor, Scene, choice, hues, noise, period, sizes_given, spread

SIZES = {"colour": 1, "shape": 3, "scale": 6, "orientation": 40, "posX": 32, "posY": 32}
SHAPES = ("square", "ellipse", "heart")
FOLDS = (4, 2, 1)  # after how many parts of a turn each looks the same
RADIUS = 0.145  # of the frame, at scale 1: the longest sprite stays inside at every position
LONGEST = 1.35  # the ellipse's half-length, in radii
VARIANTS = ("plain", "colour", "noisy")


@lru_cache(maxsize=4)
def distances(cells: int, reach: float) -> np.ndarray:
    """[3, cells, cells] signed distance to the edge of each shape, positive inside; from -reach to reach, in radii."""
    from scipy.ndimage import distance_transform_edt

    fine = 2 * cells
    at = (np.arange(fine) + 0.5) / fine * 2 * reach - reach
    u, w = at[None, :], at[:, None]
    a, b = 1.1 * u, -1.15 * w + 0.1
    insides = (
        np.maximum(np.abs(u), np.abs(w)) < 0.9,
        (u / 1.35) ** 2 + (w / 0.75) ** 2 < 1,
        (a**2 + b**2 - 1) ** 3 - a**2 * b**3 < 0,
    )
    step = 2 * reach / fine
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
    guided = True

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
        # beyond the table lies its edge, which must be half a pixel outside the smallest sprite
        self._reach = LONGEST + 0.6 / (RADIUS * 0.5 * size)
        self._half = int(np.ceil(RADIUS * 1.4 * size)) + 1
        self._mean = False
        self._cuts: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None = None

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
        if self._mean:
            return np.asarray(0.5 + mask[:, None] * rgb * (1 - 0.5 * mask[:, None] * rgb))  # over all noises
        ground = noise(keys, int(np.prod(self.shape)), self.seed).reshape(-1, *self.shape)
        return np.minimum(ground + mask[:, None] * rgb, 1.0)

    def typical(self) -> Scene:
        """Images on noise are compared with the mean over all noises, as the noise of each is its own."""
        if self.variant != "noisy":
            return self
        made = copy(self)
        made._mean = True
        return made

    def _masks(self, rows: np.ndarray) -> np.ndarray:
        """[n, height, width] how much of each pixel the sprite covers."""
        n, side, half = len(rows), self.shape[1], self._half
        scale, angle, x, y = (self._values[k][rows[:, k]] for k in (2, 3, 4, 5))
        radius, x, y = RADIUS * side * scale, x * side, y * side
        left, top = (np.floor(v).astype(np.int64) - half for v in (x, y))
        span = np.arange(2 * half + 1)
        # cells of the table per pixel, so that no division is left in the loop over pixels
        per = self._cells / (2 * self._reach) / radius
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
        cover = distances(self._cells, self._reach).reshape(-1).take(cell)
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

    def starts(self, images: np.ndarray) -> np.ndarray:
        """[n, 6, 6] rows to go on from: the sprite is cut out round its centre of mass and compared with all shapes."""
        grey, colour = self._grey(images)
        templates, offsets, norms, rows = self._templates()
        n, side, half = len(images), self.shape[1], self._half
        x, y = _centre(grey, 1.3 * half)
        left, top = x - half - 0.5, y - half - 0.5  # of the window whose middle pixel has its centre at (x, y)
        cut = _cut(grey, left, top, 2 * half + 1).reshape(n, -1)
        score = norms - 2 * cut @ templates.T
        made = np.zeros((n, 6, 6), np.int64)
        kinds = [np.flatnonzero(rows[:, 0] == kind) for kind in np.unique(rows[:, 0])]
        near = np.argpartition(score, min(5, score.shape[1] - 1), axis=1)[:, :6]
        near = np.pad(near, ((0, 0), (0, 6 - near.shape[1])), mode="edge")
        for j, mine in enumerate(kinds):  # the nearest of each shape, in place of some of the nearest of all
            near[:, j] = mine[score[:, mine].argmin(axis=1)]
        made[:, :, 0] = colour[:, None]
        made[:, :, 1:4] = rows[near]
        for axis, at in ((4, x[:, None] - offsets[near, 0]), (5, y[:, None] - offsets[near, 1])):
            grid = self._values[axis] * side
            made[:, :, axis] = np.abs(at[:, :, None] - grid).argmin(axis=2)
        return made

    def _grey(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[n, height, width] sprites without colour and ground, and [n] the index of the colour."""
        ground = np.median(images, axis=(2, 3), keepdims=True)
        over = images - ground
        total = np.maximum(over, 0).sum(axis=(2, 3))
        rgb = self._rgb if self.shape[0] == 3 else np.ones((1, 1), np.float32)
        unit = rgb / np.linalg.norm(rgb, axis=1, keepdims=True)
        colour = (total @ unit.T).argmax(axis=1)
        own = total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-9)
        grey = np.einsum("nc,nchw->nhw", own if self.variant == "colour" else unit[colour], over)
        peak = np.quantile(grey.reshape(len(grey), -1), 0.995, axis=1)
        return (grey / np.maximum(peak, 1e-6)[:, None, None]).astype(np.float32), colour

    def _templates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """All shapes, scales and turns cut out round their centres of mass: pixels, offsets, norms, factors."""
        if self._cuts is None:
            counts = [f.size or 1 for f in self.factors]
            rows = np.zeros((counts[1] * counts[2] * counts[3], 6), np.int64)
            rows[:, 1:4] = np.stack(np.unravel_index(np.arange(len(rows)), counts[1:4]), axis=1)
            rows[:, 4:] = [counts[4] // 2, counts[5] // 2]
            masks, half = self._masks(rows), self._half
            x, y = _centre(masks, 3.0 * half)
            middle = np.array([self._values[k][counts[k] // 2] * self.shape[1] for k in (4, 5)])
            cuts = _cut(masks, x - half - 0.5, y - half - 0.5, 2 * half + 1).reshape(len(rows), -1)
            self._cuts = cuts, np.stack([x, y], axis=1) - middle, np.square(cuts).sum(axis=1), rows[:, 1:4]
        return self._cuts

    def canonical(self, rows: np.ndarray) -> np.ndarray:
        """Orientations of squares and ellipses within their symmetry."""
        size = self.factors[3].size or 1
        every = np.array([period(size, self.turn, fold) for fold in FOLDS])
        made = rows.copy()
        made[:, 3] %= every[rows[:, 1]]
        return made


def _centre(grey: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """[n] column and row of the centre of mass of [n, height, width], within ``reach`` of where it is heaviest."""
    from scipy.ndimage import uniform_filter

    n, h, w = grey.shape
    heavy = uniform_filter(grey, (0, max(3, h // 5), max(3, w // 5)), mode="constant").reshape(n, -1).argmax(axis=1)
    y, x = heavy // w + 0.5, heavy % w + 0.5
    rows, columns = np.arange(h) + 0.5, np.arange(w) + 0.5
    mass = np.clip(grey - 0.15, 0, 1.2)  # what is left of noise beside the sprite weighs little
    for _ in range(4):
        near = mass * (np.abs(rows - y[:, None]) < reach)[:, :, None] * (np.abs(columns - x[:, None]) < reach)[:, None]
        total = np.maximum(near.sum(axis=(1, 2)), 1e-6)
        x = (near.sum(axis=1) * columns).sum(axis=1) / total
        y = (near.sum(axis=2) * rows).sum(axis=1) / total
    return x, y


def _cut(grey: np.ndarray, left: np.ndarray, top: np.ndarray, width: int) -> np.ndarray:
    """[n, width, width] windows of [n, height, width] from (left, top) on, between pixels where need be."""
    n, h, w = grey.shape
    pad = width
    wide = np.pad(grey, ((0, 0), (pad, pad), (pad, pad)))
    x0, y0 = np.floor(left).astype(np.int64), np.floor(top).astype(np.int64)
    fx, fy = ((left - x0)[:, None, None]).astype(np.float32), ((top - y0)[:, None, None]).astype(np.float32)
    at = np.arange(width + 1)
    rows = np.clip(y0[:, None] + at + pad, 0, h + 2 * pad - 1)[:, :, None]
    columns = np.clip(x0[:, None] + at + pad, 0, w + 2 * pad - 1)[:, None]
    part = wide[np.arange(n)[:, None, None], rows, columns]
    part = part[:, :-1] * (1 - fy) + part[:, 1:] * fy
    return np.asarray(part[:, :, :-1] * (1 - fx) + part[:, :, 1:] * fx)
