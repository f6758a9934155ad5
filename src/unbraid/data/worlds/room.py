"""A room with an object: Shapes3D's factors, by analytic ray casting.

Hues change no geometry, so a view (scale, shape, orientation; 480 of them) is cast once and kept as three maps: how
much of each pixel floor, walls and object cover, times how bright they are. Any image is then three colours times three
maps.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from unbraid.data.worlds import rays
from unbraid.data.worlds.compare import LEVELS, blurred, mean_square
from unbraid.data.worlds.oracle import Reading
from unbraid.data.worlds.scene import Factor, Scene, hues, sizes_given, spread

SIZES = {"floor hue": 10, "wall hue": 10, "object hue": 10, "scale": 8, "shape": 4, "orientation": 15}
SHAPES = ("cube", "cylinder", "sphere", "capsule")
WALL, DISTANCE, HEIGHT, LOOK, DEGREES = 2.6, 5.2, 2.0, 0.55, 52.0
NEAREST = 8  # views that are compared at full size


class Views:
    """The maps of all views of one resolution, each cast when it is first asked for.

    Args:
        side: pixels.
        scales: of the object.
        shapes: how many of the four.
        angles: of the camera, in degrees.
    """

    def __init__(self, side: int, scales: tuple[float, ...], shapes: int, angles: tuple[float, ...]) -> None:
        self.side, self.sizes = side, (len(scales), shapes, len(angles))
        self.scales, self.angles = scales, angles
        self.there = np.zeros(int(np.prod(self.sizes)), bool)
        self.maps = np.zeros((len(self.there), 3, side, side), np.float32)

    def get(self, at: np.ndarray) -> np.ndarray:
        """[n, 3, side, side] the maps of these views."""
        for view in np.unique(at[~self.there[at]]):
            scale, shape, angle = np.unravel_index(view, self.sizes)
            self.maps[view] = cast(self.side, SHAPES[shape], self.scales[scale], self.angles[angle])
            self.there[view] = True
        return self.maps[at]


@lru_cache(maxsize=4)
def views(side: int, scales: tuple[float, ...], shapes: int, angles: tuple[float, ...]) -> Views:
    """The same views for all rooms of one resolution."""
    return Views(side, scales, shapes, angles)


def cast(side: int, shape: str, scale: float, degrees: float) -> np.ndarray:
    """[3, side, side] how much of each pixel floor, walls and object cover, times their brightness."""
    by = rays.samples(side)
    turn = np.radians(degrees)
    # at 30 degrees the camera stands in the wall's plane: a hair's breadth inside, no ray starts on it
    reach = DISTANCE - 1e-3
    eye = (reach * np.sin(turn), HEIGHT, reach * np.cos(turn))
    d = rays.view(eye, (0.0, LOOK, 0.0), DEGREES, side * by)
    o = np.array(eye, np.float32)[:, None, None]
    t, normal, region = _room(o, d)
    bright = rays.lambert(normal)
    rows, columns = rays.window(
        eye,
        (0.0, LOOK, 0.0),
        DEGREES,
        side * by,
        (-0.72 * scale, 0, -0.72 * scale),
        (0.72 * scale, 1.62 * scale, 0.72 * scale),
    )
    hit, facing = _object(o, d[:, rows, columns], shape, scale)
    front = hit < t[rows, columns]
    bright[rows, columns] = np.where(front, rays.lambert(facing), bright[rows, columns])
    region[rows, columns] = np.where(front, 2, region[rows, columns])
    return rays.averaged(np.stack([np.where(region == r, bright, 0) for r in range(3)]), by)


def _room(o: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance, normal and region (0 floor, 1 wall) of what lies behind the object."""
    tiny = np.float32(1e-9)
    floor = np.where(d[1] < -tiny, -o[1] / np.minimum(d[1], -tiny), rays.FAR)
    back = np.where(d[2] < -tiny, (-WALL - o[2]) / np.minimum(d[2], -tiny), rays.FAR)
    side = (np.copysign(np.float32(WALL), d[0]) - o[0]) / np.where(np.abs(d[0]) < tiny, tiny, d[0])
    t = np.minimum(np.minimum(floor, back), side).astype(np.float32)
    normal = np.zeros((3, *t.shape), np.float32)
    normal[1], normal[2] = t == floor, (t == back) & (t != floor)
    normal[0] = np.where((t == side) & (t != floor) & (t != back), -np.sign(d[0]), 0)
    return t, normal, np.where(t == floor, 0, 1)


def _object(o: np.ndarray, d: np.ndarray, shape: str, s: float) -> rays.Hit:
    if shape == "cube":
        h = 0.62 * s
        return rays.convex(o - np.array([0, h, 0], np.float32)[:, None, None], d, box(h, h, h))
    if shape == "cylinder":
        return rays.cylinder(o, d, 0.6 * s, 0.0, 1.3 * s)
    if shape == "sphere":
        return rays.sphere(o, d, 0.7 * s, 0.7 * s)
    return rays.capsule(o, d, 0.45 * s, 0.45 * s, 1.15 * s)


def box(x: float, y: float, z: float) -> np.ndarray:
    """[6, 4] planes of a box with these half sides."""
    return np.array([[1, 0, 0, x], [-1, 0, 0, x], [0, 1, 0, y], [0, -1, 0, y], [0, 0, 1, z], [0, 0, -1, z]], float)


class Room(Scene):
    """An object in a coloured room, seen from -30 to 30 degrees.

    Args:
        size: pixels of a side.
        sizes: values per factor, where they should differ from the original's.

    Raises:
        UnbraidError: a size is none.
    """

    title = "Shapes3D's structure: three hues, scale, shape, orientation"

    def __init__(self, size: int = 64, sizes: Mapping[str, int] | None = None) -> None:
        counts = sizes_given(sizes, SIZES, {"shape": len(SHAPES)})
        coloured = [
            Factor(name, "cyclic", tuple(k / counts[name] for k in range(counts[name])), "of the circle of hues")
            for name in list(SIZES)[:3]
        ]
        scales = spread(0.75, 1.25, counts["scale"], 1.0)
        angles = spread(-30.0, 30.0, counts["orientation"], 0.0)
        self.factors = (
            *coloured,
            Factor("scale", "ordinal", scales),
            Factor("shape", "category", SHAPES[: counts["shape"]]),
            Factor("orientation", "ordinal", angles, "degrees"),
        )
        self.shape = (3, size, size)
        self._views = views(size, scales, counts["shape"], angles)
        self._hues = [hues(counts[f.name]).astype(np.float32) for f in coloured]
        self._small: tuple[np.ndarray, np.ndarray] | None = None

    def draw(self, rows: np.ndarray) -> np.ndarray:
        """[n, 3, height, width] images of [n, 6] indices."""
        maps = self._views.get(np.ravel_multi_index(tuple(rows[:, 3:].T), self._views.sizes))
        colours = np.stack([table[rows[:, k]] for k, table in enumerate(self._hues)], axis=2)  # [n, rgb, region]
        return np.matmul(colours, maps.reshape(len(rows), 3, -1)).reshape(-1, *self.shape)

    def search(self, images: np.ndarray) -> Reading:
        """The nearest of all images: every view with every triple of hues, by one matrix product over the maps."""
        parts = [self._search(images[a : a + 16]) for a in range(0, len(images), 16)]
        return Reading(*(np.concatenate([vars(p)[name] for p in parts]) for name in ("factors", "distance", "second")))

    def _search(self, images: np.ndarray) -> Reading:
        small, gram = self._prototypes()
        n, count = len(images), len(gram)
        by = max(1, self.shape[1] // 32)
        x = rays.averaged(images[:, :, : by * (self.shape[1] // by), : by * (self.shape[1] // by)], by)
        # what each region of each view would like its colour to be: [n, rgb, view, region]
        pull = (x.reshape(n * 3, -1) @ small.T).reshape(n, 3, count, 3)
        near = np.empty((n, count), np.float32)
        which = np.empty((n, count), np.int64)
        for i in range(n):
            linear = [np.einsum("cv,hc->vh", pull[i, :, :, r], self._hues[r]) for r in range(3)]
            own = [gram[:, r, r, None] * np.square(self._hues[r]).sum(axis=1) - 2 * linear[r] for r in range(3)]
            cross = {(a, b): 2 * gram[:, a, b, None, None] * (self._hues[a] @ self._hues[b].T) for a, b in _PAIRS}
            floor_wall = own[0][:, :, None] + own[1][:, None, :] + cross[0, 1]
            rest = floor_wall[:, :, :, None] + (cross[0, 2][:, :, None, :] + own[2][:, None, None, :])
            rest += cross[1, 2][:, None, :, :]
            flat = rest.reshape(count, -1)
            which[i] = flat.argmin(axis=1)
            near[i] = flat[np.arange(count), which[i]]
        return self._finish(images, near, which)

    def _finish(self, images: np.ndarray, near: np.ndarray, which: np.ndarray) -> Reading:
        """Compare the nearest views at full size."""
        n, count = near.shape
        top = min(NEAREST, count)
        best = np.argpartition(near, top - 1, axis=1)[:, :top]
        colours = np.stack(np.unravel_index(np.take_along_axis(which, best, 1), [len(h) for h in self._hues]), axis=2)
        shapes = np.stack(np.unravel_index(best, self._views.sizes), axis=2)
        rows = np.concatenate([colours, shapes], axis=2)
        drawn, target = self.draw(rows.reshape(n * top, -1)), np.repeat(images, top, axis=0)
        costs = [mean_square(drawn, target).reshape(n, top)]
        if np.sqrt(costs[0].min(axis=1)).max() > 1e-3:  # not images of the world: perhaps blurred ones
            costs += [mean_square(blurred(drawn, level), target).reshape(n, top) for level in LEVELS[1:]]
        each = np.stack(costs, axis=1)  # [n, levels, top]
        cost = each[np.arange(n), each.min(axis=2).argmin(axis=1)]
        order = np.argsort(cost, axis=1)
        least = np.sqrt(np.take_along_axis(cost, order, 1))
        return Reading(rows[np.arange(n), order[:, 0]], least[:, 0], least[:, min(1, top - 1)])

    def _prototypes(self) -> tuple[np.ndarray, np.ndarray]:
        """[views * 3, pixels] the maps made small, and [views, 3, 3] their products with one another."""
        if self._small is None:
            maps = self._views.get(np.arange(len(self._views.there)))
            by = max(1, self.shape[1] // 32)
            side = by * (self.shape[1] // by)
            small = rays.averaged(maps[:, :, :side, :side], by).reshape(len(maps), 3, -1)
            self._small = small.reshape(len(maps) * 3, -1), np.matmul(small, small.transpose(0, 2, 1))
        return self._small


_PAIRS = ((0, 1), (0, 2), (1, 2))
