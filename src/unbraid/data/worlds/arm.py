"""A robot arm that holds an object: MPI3D's factors.

The room and the stand are cast once per camera height; the arm is a tapering line with soft edges; the object is cast
anew for each image, in the window that it can cover.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from unbraid.core.progress import bar
from unbraid.data.worlds import rays
from unbraid.data.worlds.compare import reduced
from unbraid.data.worlds.room import box
from unbraid.data.worlds.scene import Factor, Scene, sizes_given, spread

SIZES = {"colour": 6, "shape": 6, "size": 2, "camera height": 3, "background": 3, "dof1": 40, "dof2": 40}
COLOURS = {"white": (0.95, 0.95, 0.95), "green": (0.1, 0.75, 0.15), "red": (0.9, 0.1, 0.1), "blue": (0.1, 0.25, 0.95),
           "brown": (0.5, 0.3, 0.1), "olive": (0.65, 0.7, 0.1)}  # fmt: skip
GROUNDS = {"purple": (0.5, 0.25, 0.6), "sea green": (0.2, 0.6, 0.5), "salmon": (0.95, 0.55, 0.45)}
SHAPES = ("cone", "cube", "cylinder", "hexagonal prism", "pyramid", "sphere")
RADII = {"small": 0.24, "large": 0.36}
SHOULDER, LENGTH, DISTANCE, TARGET, DEGREES = 0.75, 1.05, 4.6, (0.0, 1.0, 0.0), 42.0
THICK = (0.1, 0.065)  # the arm at the shoulder and at the hand
METAL = np.array([0.3, 0.31, 0.34], np.float32)


def _solid(shape: str, o: np.ndarray, d: np.ndarray) -> rays.Hit:
    """The object at unit size round the origin."""
    if shape == "sphere":
        return rays.sphere(o, d, 0.0, 0.85)
    if shape == "cube":
        return rays.convex(o, d, box(0.7, 0.7, 0.7))
    if shape == "cylinder":
        return rays.cylinder(o, d, 0.55, -0.85, 0.85)
    if shape == "cone":
        return rays.cone(o, d, 0.85, -0.75, 0.9)
    if shape == "pyramid":
        lean = np.array([1.65, 0.9]) / np.hypot(1.65, 0.9)  # sides from a base of +-0.9 at -0.75 to the tip at 0.9
        sides = [(lean[0], 0.0), (-lean[0], 0.0), (0.0, lean[0]), (0.0, -lean[0])]
        return rays.convex(o, d, np.array([*[[x, lean[1], z, 0.9 * lean[1]] for x, z in sides], [0, -1, 0, 0.75]]))
    turns = np.arange(6) * np.pi / 3
    around = np.stack([np.cos(turns), 0 * turns, np.sin(turns), 0 * turns + 0.78], axis=1)
    return rays.convex(o, d, np.concatenate([around, [[0, 1, 0, 0.42], [0, -1, 0, 0.42]]]))


class Arm(Scene):
    """A robot arm with an object in its hand, before a coloured wall.

    The first degree of freedom turns the arm from -65 to 65 degrees, the second lifts it from -10 to 65.

    Args:
        size: pixels of a side.
        sizes: values per factor, where they should differ from the original's.

    Raises:
        UnbraidError: a size is none.
    """

    title = "MPI3D's structure: colour, shape, size, camera height, background, two joints"
    guided = True
    together = ("dof1", "dof2")

    def __init__(self, size: int = 64, sizes: Mapping[str, int] | None = None) -> None:
        counts = sizes_given(sizes, SIZES, {"colour": 6, "shape": 6, "size": 2, "background": 3})
        heights = spread(0.5, 2.1, counts["camera height"])
        turns, lifts = spread(-65.0, 65.0, counts["dof1"]), spread(-10.0, 65.0, counts["dof2"])
        self.factors = (
            Factor("colour", "category", tuple(COLOURS)[: counts["colour"]]),
            Factor("shape", "category", SHAPES[: counts["shape"]]),
            Factor("size", "category", tuple(RADII)[: counts["size"]]),
            Factor("camera height", "category" if len(heights) < 5 else "ordinal", heights),
            Factor("background", "category", tuple(GROUNDS)[: counts["background"]]),
            Factor("dof1", "ordinal", turns, "degrees"),
            Factor("dof2", "ordinal", lifts, "degrees"),
        )
        self.shape = (3, size, size)
        self._eyes = [(0.0, height, DISTANCE) for height in heights]
        self._axes = np.stack([rays.axes(eye, TARGET) for eye in self._eyes])
        self._turns, self._lifts = np.radians(turns), np.radians(lifts)
        self._rooms: dict[int, np.ndarray] = {}
        self._focus = size / 2 / np.tan(np.radians(DEGREES) / 2)  # pixels per unit at distance 1
        self._by = 2 if size >= 32 else 3
        self._poses: tuple[np.ndarray, np.ndarray] | None = None

    def draw(self, rows: np.ndarray) -> np.ndarray:
        """[n, 3, height, width] images of [n, 7] indices."""
        out = self._ground(rows)
        reach, radius = self._reach(rows)
        shoulder = np.broadcast_to([0.0, SHOULDER, 0.0], reach.shape)
        hand = shoulder + LENGTH * reach
        self._draw_arm(out, rows[:, 3], shoulder, hand)
        self._draw_object(out, rows, hand + reach * radius[:, None], radius)
        return out

    def starts(self, images: np.ndarray) -> np.ndarray:
        """[n, c, 7] rows to go on from: the room by its walls, the pose by what stands out, the colour at the hand."""
        counts = [f.size or 1 for f in self.factors]
        rooms = np.zeros((counts[3] * counts[4], 7), np.int64)
        rooms[:, 3:5] = np.stack(np.unravel_index(np.arange(len(rooms)), counts[3:5]), axis=1)
        grounds = self._ground(rooms)
        # differences count up to a bound: the arm must not outvote the wall
        off = np.stack([np.minimum(np.abs(images - g), 0.3).mean(axis=(1, 2, 3)) for g in grounds], axis=1)
        room = off.argmin(axis=1)
        outstanding = _outstanding(images - grounds[room], min(32, self.shape[1]))
        poses, masks = self._standing_out()
        score = outstanding @ masks.T
        score[poses[None, :, 3] != rooms[room, 3][:, None]] = -np.inf
        # the best pose of each shape; where there are few shapes, the best again
        kinds = [np.flatnonzero(poses[:, 1] == kind) for kind in range(counts[1])]
        near = np.stack([mine[score[:, mine].argmax(axis=1)] for mine in kinds], axis=1)
        made = poses[near]
        made[:, :, 4] = rooms[room, 4][:, None]
        flat = made.reshape(-1, 7)
        flat[:, 0] = self._tint_at(np.repeat(images, counts[1], axis=0), flat)
        return made

    def _standing_out(self) -> tuple[np.ndarray, np.ndarray]:
        """Every second pose of every shape at every camera height, and what of its image is not the room."""
        if self._poses is None:
            counts = [f.size or 1 for f in self.factors]
            grids = [
                range(counts[1]),
                range(counts[2]),
                range(counts[3]),
                range(0, counts[5], 2),
                range(0, counts[6], 2),
            ]
            rows = np.zeros((int(np.prod([len(g) for g in grids])), 7), np.int64)
            rows[:, [1, 2, 3, 5, 6]] = np.stack([v.reshape(-1) for v in np.meshgrid(*grids, indexing="ij")], axis=1)
            # a smaller picture tells as much after it is made small, and is drawn sooner
            small = self if self.shape[1] <= 32 else Arm(32, dict(zip(SIZES, counts, strict=True)))
            masks = []
            with bar(None, "drawing poses of the arm", len(rows)) as tick:
                for start in range(0, len(rows), 64):
                    part = rows[start : start + 64]
                    masks.append(_outstanding(small.draw(part) - small._ground(part), small.shape[1]))
                    tick(len(part))
            self._poses = rows, np.concatenate(masks)
        return self._poses

    def _tint_at(self, images: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """[n] the index of the colour that an image has where the object of a row would be."""
        reach, radius = self._reach(rows)
        x, y, depth = self._project(rows[:, 3], reach * (LENGTH + radius)[:, None] + (0.0, SHOULDER, 0.0))
        at = np.arange(self.shape[1]) + 0.5
        wide = np.maximum(0.6 * self._focus * radius / depth, 1.0)
        disc = (at - x[:, None])[:, None] ** 2 + ((at - y[:, None]) ** 2)[:, :, None] <= (wide**2)[:, None, None]
        mean = np.einsum("nchw,nhw->nc", images, disc) / np.maximum(disc.sum(axis=(1, 2)), 1)[:, None]
        tints = np.array(list(COLOURS.values()))[: self.factors[0].size]
        mean = mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-6)
        return np.asarray((mean @ (tints / np.linalg.norm(tints, axis=1, keepdims=True)).T).argmax(axis=1))

    def _reach(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[n, 3] where the arm points, and [n] the object's radius."""
        turn, lift = self._turns[rows[:, 5]], self._lifts[rows[:, 6]]
        reach = np.stack([np.cos(lift) * np.sin(turn), np.sin(lift), np.cos(lift) * np.cos(turn)], axis=1)
        return reach, np.array(list(RADII.values()))[rows[:, 2]]

    def _ground(self, rows: np.ndarray) -> np.ndarray:
        """[n, 3, height, width] wall, floor and stand."""
        for height in np.unique(rows[:, 3]):
            if int(height) not in self._rooms:
                self._rooms[int(height)] = self._cast_room(int(height))
        maps = np.stack([self._rooms[int(h)] for h in rows[:, 3]])
        tint = np.array(list(GROUNDS.values()), np.float32)[rows[:, 4]]
        return maps[:, :1] * tint[:, :, None, None] + maps[:, 1:] * METAL[:, None, None]

    def _cast_room(self, height: int) -> np.ndarray:
        """[2, height, width] brightness of the coloured ground, and of the stand."""
        by = rays.samples(self.shape[1])
        d = rays.view(self._eyes[height], TARGET, DEGREES, self.shape[1] * by)
        o = np.array(self._eyes[height], np.float32)[:, None, None]
        floor = np.where(d[1] < -1e-6, -o[1] / np.minimum(d[1], -1e-6), rays.FAR)
        wall = (-1.8 - o[2]) / np.minimum(d[2], -1e-6)
        t, normal = rays.cylinder(o, d, 0.16, 0.0, SHOULDER + 0.08)
        stand = t < np.minimum(floor, wall)
        ground = np.where(floor < wall, 0.75, 1.0) * ~stand
        return rays.averaged(np.stack([ground, rays.lambert(normal) * stand]).astype(np.float32), by)

    def _project(self, height: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Column, row and depth of [n, 3] points as pixels."""
        eyes = np.array(self._eyes)[height]
        right, up, depth = np.einsum("nij,ni->jn", self._axes[height], points - eyes)
        middle = self.shape[1] / 2
        return middle + self._focus * right / depth, middle - self._focus * up / depth, depth

    def _draw_arm(self, out: np.ndarray, height: np.ndarray, shoulder: np.ndarray, hand: np.ndarray) -> None:
        (x0, y0, z0), (x1, y1, z1) = (self._project(height, p) for p in (shoulder, hand))
        wide0, wide1 = self._focus * THICK[0] / z0, self._focus * THICK[1] / z1
        at = np.arange(self.shape[1], dtype=np.float32) + np.float32(0.5)
        vx, vy = (x1 - x0), (y1 - y0)
        over = 1 / np.maximum(vx**2 + vy**2, 1e-6)

        def column(v: np.ndarray) -> np.ndarray:
            return v.astype(np.float32)[:, None, None]

        px, py = at[None, None, :] - column(x0), at[None, :, None] - column(y0)
        share = np.clip(px * column(vx * over) + py * column(vy * over), 0, 1)
        px = px - share * column(vx)
        py = py - share * column(vy)
        distance = np.sqrt(px * px + py * py)
        wide = column(wide0) + share * column(wide1 - wide0)
        cover = np.clip(wide - distance + np.float32(0.5), 0, 1)[:, None]
        shade = (1.25 - 0.5 * np.minimum(distance / wide, 1))[:, None]
        out *= 1 - cover
        out += (cover * shade) * METAL[:, None, None]

    def _draw_object(self, out: np.ndarray, rows: np.ndarray, centre: np.ndarray, radius: np.ndarray) -> None:
        turn, lift = self._turns[rows[:, 5]], self._lifts[rows[:, 6]]
        x, y, depth = self._project(rows[:, 3], centre)
        side, by = self.shape[1], self._by
        half = int(np.ceil(1.25 * self._focus * radius.max() / depth.min())) + 1
        left, top = (np.floor(v).astype(np.int64) - half for v in (x, y))
        span = np.arange(2 * half)
        fine = (np.arange(2 * half * by) + 0.5) / by
        u = ((left[:, None] + fine - side / 2) / self._focus)[:, None, :]
        v = ((side / 2 - top[:, None] - fine) / self._focus)[:, :, None]
        # rays of the window, turned into the object's own frame: camera, then the arm's turn and lift
        frame = _turned(turn, lift) / radius[:, None, None]
        to_own = np.einsum("nij,njk->nik", frame, self._axes[rows[:, 3]]).astype(np.float32)
        own_eye = np.einsum("nij,nj->in", frame, np.array(self._eyes)[rows[:, 3]] - centre).astype(np.float32)
        u, v = u.astype(np.float32), v.astype(np.float32)
        tint = np.array(list(COLOURS.values()), np.float32)[rows[:, 0]]
        light = np.einsum("nij,j->ni", _turned(turn, lift), rays.LIGHT).astype(np.float32)
        pad = half + 2
        canvas = np.zeros((2, len(rows), side + 2 * pad, side + 2 * pad), np.float32)
        for kind in np.unique(rows[:, 1]):
            who = np.flatnonzero(rows[:, 1] == kind)
            m = to_own[who]
            d = np.stack([m[:, i, 0, None, None] * u[who] + m[:, i, 1, None, None] * v[who] + m[:, i, 2, None, None]
                          for i in range(3)])  # fmt: skip
            t, normal = _solid(SHAPES[kind], own_eye[:, who, None, None], d)
            met = t < rays.FAR
            facing = sum(normal[i] * light[who, i, None, None] for i in range(3))
            bright = np.where(met, np.float32(0.55) + np.float32(0.45) * np.maximum(facing, 0), 0)
            rows_at = np.clip(top[who, None] + span + pad, 0, side + 2 * pad - 1)[:, :, None]
            columns_at = np.clip(left[who, None] + span + pad, 0, side + 2 * pad - 1)[:, None]
            canvas[0, who[:, None, None], rows_at, columns_at] = rays.averaged(met.astype(np.float32), by)
            canvas[1, who[:, None, None], rows_at, columns_at] = rays.averaged(bright, by)
        cover, bright = canvas[:, :, None, pad:-pad, pad:-pad]
        out *= 1 - cover
        out += bright * tint[:, :, None, None]


def _turned(turn: np.ndarray, lift: np.ndarray) -> np.ndarray:
    """[n, 3, 3] from the world's axes to those of the hand: turned round the upright, then half as much tilted."""
    c, s, zero, one = np.cos(turn), np.sin(turn), 0 * turn, 0 * turn + 1
    a, b = np.cos(lift / 2), np.sin(lift / 2)
    round_y = np.stack([c, zero, -s, zero, one, zero, s, zero, c], axis=1).reshape(-1, 3, 3)
    round_x = np.stack([one, zero, zero, zero, a, -b, zero, b, a], axis=1).reshape(-1, 3, 3)
    return np.einsum("nij,njk->nik", round_x, round_y)


def _outstanding(difference: np.ndarray, side: int) -> np.ndarray:
    """[n, d] where images [n, 3, h, w] differ from their room, in a small copy of unit length."""
    n, _, h, _ = difference.shape
    places = np.minimum(np.arange(side + 1) * h // side, h)
    if h % side:  # no whole number of pixels becomes one: rows and columns are averaged in uneven groups
        difference = np.add.reduceat(difference, places[:-1], axis=2) / np.diff(places)[:, None]
        difference = np.add.reduceat(difference, places[:-1], axis=3) / np.diff(places)
    pixels = reduced(difference, side).reshape(n, 3, -1)
    over = np.clip(np.sqrt(np.square(pixels).sum(axis=1)) - 0.08, 0, 0.25)
    return np.asarray(over / np.maximum(np.linalg.norm(over, axis=1, keepdims=True), 1e-6))
