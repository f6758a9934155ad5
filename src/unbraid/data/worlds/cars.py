"""Cars on white ground: Cars3D's factors (elevation, azimuth, identity), by analytic ray casting.

A car is a body and a cabin (outlines drawn out sideways), four wheels and lamps. An identity is one of twelve bodies in
one of sixteen paints. Paint changes no geometry, so a view of a body is cast once and kept as four maps.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from unbraid.data.worlds import rays
from unbraid.data.worlds.scene import Factor, Scene, sizes_given, spread

SIZES = {"elevation": 4, "azimuth": 24, "identity": 183}
LENGTHS = (1.65, 1.95, 2.25)
# where the cabin's foot and roof begin and end as shares of the length from the tail, and its height: saloon,
# hatchback, van, pick-up
STYLES = (
    ("saloon", (0.14, 0.74), (0.28, 0.58), 0.42),
    ("hatchback", (0.02, 0.72), (0.1, 0.52), 0.46),
    ("van", (0.01, 0.93), (0.03, 0.74), 0.72),
    ("pick-up", (0.42, 0.78), (0.44, 0.64), 0.48),
)
BODIES = len(LENGTHS) * len(STYLES)
PAINTS = np.array(
    [
        (0.85, 0.08, 0.08), (0.1, 0.3, 0.9), (0.95, 0.8, 0.1), (0.1, 0.6, 0.2), (0.15, 0.15, 0.17), (0.65, 0.65, 0.68),
        (0.95, 0.5, 0.1), (0.5, 0.12, 0.65), (0.1, 0.75, 0.8), (0.95, 0.45, 0.65), (0.45, 0.05, 0.1), (0.05, 0.1, 0.4),
        (0.5, 0.85, 0.2), (0.5, 0.32, 0.15), (0.05, 0.32, 0.2), (0.62, 0.68, 0.95),
    ],
    np.float32,
)  # fmt: skip
GLASS, TYRE, HUB, LAMP, TAIL, SHADOW = (
    (0.2, 0.27, 0.33), (0.07, 0.07, 0.07), (0.6, 0.6, 0.6), (1.0, 0.97, 0.75), (0.75, 0.0, 0.0), (0.72, 0.72, 0.72),
)  # fmt: skip
BOTTOM, BELT, HALF, WHEEL = 0.16, 0.52, 0.42, 0.19


class Views:
    """The maps of all views of one resolution, each cast when it is first asked for.

    Args:
        side: pixels.
        elevations: of the camera, degrees.
        azimuths: of the camera, degrees.
    """

    def __init__(self, side: int, elevations: tuple[float, ...], azimuths: tuple[float, ...]) -> None:
        self.side, self.elevations, self.azimuths = side, elevations, azimuths
        self.sizes = (len(elevations), len(azimuths), BODIES)
        self.there = np.zeros(int(np.prod(self.sizes)), bool)
        self.maps = np.zeros((len(self.there), 4, side, side), np.float32)

    def get(self, at: np.ndarray) -> np.ndarray:
        """[n, 4, side, side]: red, green and blue of all but the paint, and how much paint there is and how bright."""
        for view in np.unique(at[~self.there[at]]):
            elevation, azimuth, body = np.unravel_index(view, self.sizes)
            self.maps[view] = cast(self.side, self.elevations[elevation], self.azimuths[azimuth], int(body))
            self.there[view] = True
        return self.maps[at]


@lru_cache(maxsize=4)
def views(side: int, elevations: tuple[float, ...], azimuths: tuple[float, ...]) -> Views:
    """The same views for all worlds of cars of one resolution."""
    return Views(side, elevations, azimuths)


def cast(side: int, elevation: float, azimuth: float, body: int) -> np.ndarray:
    """[4, side, side] the maps of one body seen from one place (angles in degrees)."""
    by = rays.samples(side)
    up, turn = np.radians(elevation), np.radians(azimuth)
    eye = 4.6 * np.array([np.cos(up) * np.sin(turn), np.sin(up), np.cos(up) * np.cos(turn)]) + (0.0, 0.4, 0.0)
    d = rays.view(tuple(eye), (0.0, 0.4, 0.0), 33.0, side * by)
    o = eye.astype(np.float32)[:, None, None]
    length = LENGTHS[body % len(LENGTHS)]
    _, foot, roof, rise = STYLES[body // len(LENGTHS)]
    maps = np.concatenate(_ground(o, d, length))
    half = length / 2
    rows, columns = rays.window(
        tuple(eye), (0.0, 0.4, 0.0), 33.0, side * by, (-half, 0, -HALF - 0.02), (half, BELT + rise, HALF + 0.02)
    )
    part = maps[:, rows, columns]  # nothing of the car lies outside
    part[:3], part[3] = _car(o, d[:, rows, columns], part[:3], length, (foot, roof, rise))
    return rays.averaged(maps, by)


def _car(
    o: np.ndarray, d: np.ndarray, colour: np.ndarray, length: float, cabin: tuple[tuple, tuple, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Colour of all but the paint, and paint, of the window that holds the car."""
    foot, roof, rise = cabin
    paint = np.zeros(colour.shape[1:], np.float32)
    nearest = np.full(paint.shape, rays.FAR)
    for hit, kind in _parts(o, d, length, foot, roof, rise):
        t, normal = hit
        front = t < nearest
        nearest = np.where(front, t, nearest)
        bright = rays.lambert(normal)
        point = o + np.where(front, t, 0) * d
        tint, painted = _surface(kind, point, normal, length, rise)
        colour = np.where(front, tint * bright, colour)
        paint = np.where(front, painted * bright, paint)
    return colour, paint


def _ground(o: np.ndarray, d: np.ndarray, length: float) -> tuple[np.ndarray, np.ndarray]:
    """White, with a soft shadow under the car; and no paint."""
    t = -o[1] / np.minimum(d[1], np.float32(-1e-6))
    x, z = o[0] + t * d[0], o[2] + t * d[2]
    off = (np.abs(x) / (length / 2 + 0.02)) ** 4 + (np.abs(z) / (HALF + 0.02)) ** 4
    dark = np.clip(1.6 - 1.3 * off, 0, 1) * (d[1] < 0)
    white = np.ones((3, *t.shape), np.float32)
    return white - dark * (1 - np.array(SHADOW, np.float32))[:, None, None], np.zeros((1, *t.shape), np.float32)


def _parts(
    o: np.ndarray, d: np.ndarray, length: float, foot: tuple[float, float], roof: tuple[float, float], rise: float
) -> list[tuple[rays.Hit, str]]:
    """What the rays meet of each part, the car's front being at x = length / 2."""

    def x(share: float) -> float:
        return (share - 0.5) * length

    low, high = BELT, BELT + rise
    outline = [(x(0.0), BOTTOM), (x(1.0), BOTTOM), (x(1.0), 0.4), (x(0.76), low), (x(0.02), low), (x(0.0), 0.46)]
    cabin = rays.prism(
        [(x(foot[0]), low - 0.02), (x(foot[1]), low - 0.02), (x(roof[1]), high), (x(roof[0]), high)], 9.0
    )
    lean = 0.28  # the cabin's sides lean inwards
    norm = np.hypot(1, lean)
    sides = [[0, lean / norm, s / norm, (HALF - 0.03 + lean * low) / norm] for s in (1, -1)]
    parts = [
        (rays.convex(o, d, rays.prism(outline, HALF)), "body"),
        (rays.convex(o, d, np.concatenate([cabin[:-2], sides])), "cabin"),
    ]
    wheels = [(x(share), side * (HALF - 0.06)) for share in (0.2, 0.8) for side in (-1, 1)]
    return parts + [(_wheel(o, d, *place), "wheel") for place in wheels]


def _wheel(o: np.ndarray, d: np.ndarray, x: float, z: float) -> rays.Hit:
    """A cylinder whose axis lies along z: the y and z axes change places."""
    place = np.array([x, WHEEL, z], np.float32)[:, None, None]
    t, normal = rays.cylinder((o - place)[[0, 2, 1]], d[[0, 2, 1]], WHEEL, -0.075, 0.075)
    return t, normal[[0, 2, 1]]


def _surface(
    kind: str, point: np.ndarray, normal: np.ndarray, length: float, rise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Colour [3, ...] of what is not painted, and 1 where it is paint."""
    x, y, z = point
    if kind == "wheel":
        place = np.where(x > 0, 0.3, -0.3) * length
        hub = (np.abs(normal[2]) > 0.9) & ((x - place) ** 2 + (y - WHEEL) ** 2 < (0.55 * WHEEL) ** 2)
        return _where(hub, HUB, TYRE), np.zeros(x.shape, np.float32)
    if kind == "cabin":
        top = (normal[1] > 0.9) | (y > BELT + rise - 0.05) | (y < BELT + 0.03)
        return _where(top, (0, 0, 0), GLASS), top.astype(np.float32)
    near_side = (np.abs(z) > 0.5 * HALF) & (y > 0.26) & (y < 0.42)
    lamp, tail = near_side & (x > length / 2 - 0.06), near_side & (x < 0.06 - length / 2)
    other = lamp | tail
    return _where(other, (0, 0, 0), (0, 0, 0)) + _where(lamp, LAMP, (0, 0, 0)) + _where(tail, TAIL, (0, 0, 0)), (
        ~other
    ).astype(np.float32)


def _where(mask: np.ndarray, yes: tuple[float, ...], no: tuple[float, ...]) -> np.ndarray:
    a, b = (np.array(v, np.float32).reshape(3, *[1] * mask.ndim) for v in (yes, no))
    return np.where(mask, a, b)


class Cars(Scene):
    """Cars on white, from all sides.

    The order of factors is disentanglement_lib's; some libraries put the identity first.

    Args:
        size: pixels of a side.
        sizes: values per factor, where they should differ from the original's; at most 183 identities.

    Raises:
        UnbraidError: a size is none.
    """

    title = "Cars3D's structure: elevation, azimuth, identity"

    def __init__(self, size: int = 64, sizes: Mapping[str, int] | None = None) -> None:
        counts = sizes_given(sizes, SIZES, {"identity": 183})
        elevations = spread(8.0, 41.0, counts["elevation"])
        azimuths = tuple((np.arange(counts["azimuth"]) * 360.0 / counts["azimuth"]).tolist())
        whats = tuple(f"{_name(k % BODIES)}, paint {k // BODIES}" for k in range(counts["identity"]))
        self.factors = (
            Factor("elevation", "ordinal", elevations, "degrees"),
            Factor("azimuth", "cyclic", azimuths, "degrees"),
            Factor("identity", "category", whats),
        )
        self.shape = (3, size, size)
        self._views = views(size, elevations, azimuths)

    def draw(self, rows: np.ndarray) -> np.ndarray:
        """[n, 3, height, width] images of [n, 3] indices."""
        at = np.ravel_multi_index((rows[:, 0], rows[:, 1], rows[:, 2] % BODIES), self._views.sizes)
        maps = self._views.get(at)
        return maps[:, :3] + PAINTS[rows[:, 2] // BODIES][:, :, None, None] * maps[:, 3:]


def _name(body: int) -> str:
    return f"{('short', 'middle', 'long')[body % len(LENGTHS)]} {STYLES[body // len(LENGTHS)][0]}"
