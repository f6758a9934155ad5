"""Shapes as signed distances: how deep inside a point lies, in radii, negative outside.

Distances to polygons and circles are exact; where shapes are joined they are bounds, exact at the edge.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

TRIANGLE = np.array([[0.0, -1.02], [1.08, 0.82], [-1.08, 0.82]], np.float32)

Field = Callable[[np.ndarray, np.ndarray], np.ndarray]


def disc(u: np.ndarray, v: np.ndarray, x: float = 0.0, y: float = 0.0, r: float = 1.0) -> np.ndarray:
    """Depth in a disc of radius r round (x, y)."""
    return r - np.sqrt((u - x) ** 2 + (v - y) ** 2)


def box(u: np.ndarray, v: np.ndarray, a: float, b: float) -> np.ndarray:
    """Depth in a rectangle of half sides a and b."""
    p, q = np.abs(u) - a, np.abs(v) - b
    return -(np.sqrt(np.maximum(p, 0) ** 2 + np.maximum(q, 0) ** 2) + np.minimum(np.maximum(p, q), 0))


def polygon(u: np.ndarray, v: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Depth in a polygon [m, 2] whose corners go round once."""
    best = np.full(u.shape, np.inf, u.dtype)
    inside = np.zeros(u.shape, bool)
    for (x, y), (p, q) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        ex, ey = p - x, q - y
        wx, wy = u - x, v - y
        t = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
        np.minimum(best, (wx - t * ex) ** 2 + (wy - t * ey) ** 2, out=best)
        if ey != 0:
            inside ^= ((v < y) != (v < q)) & (wx < wy * (ex / ey))
    return np.where(inside, np.sqrt(best), -np.sqrt(best))


def circle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A disc."""
    return disc(u, v, r=0.97)


def square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A square on its side."""
    return box(u, v, 0.87, 0.87)


def triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A triangle on its base."""
    return polygon(u, v, TRIANGLE)


def star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A star of five points, one of them up."""
    turn = 2 * np.pi / 5
    angle = np.arctan2(u, -v - 0.05)
    radius = np.sqrt(u**2 + (v + 0.05) ** 2)
    angle = np.abs(angle - turn * np.round(angle / turn))  # all points folded on half of one
    return _tip(radius * np.sin(angle), -radius * np.cos(angle))


def _tip(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    tip, notch = np.array([0.0, -1.12]), 0.5 * np.array([np.sin(np.pi / 5), -np.cos(np.pi / 5)])
    edge = notch - tip
    wx, wy = u - tip[0], v - tip[1]
    t = np.clip((wx * edge[0] + wy * edge[1]) / (edge @ edge), 0, 1)
    away = np.sqrt((wx - t * edge[0]) ** 2 + (wy - t * edge[1]) ** 2)
    return np.where(edge[0] * wy - edge[1] * wx > 0, away, -away)


def heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A heart: a square on its corner with two half discs."""
    x, y = np.abs(u) / 1.52, (0.98 - v) / 1.52  # the unit heart has its tip at the origin and is 1.2 wide
    top = np.sqrt((x - 0.25) ** 2 + (y - 0.75) ** 2) - np.sqrt(2) / 4
    m = 0.5 * np.maximum(x + y, 0)
    low = np.sqrt(np.minimum(x**2 + (y - 1) ** 2, (x - m) ** 2 + (y - m) ** 2)) * np.sign(x - y)
    return -1.52 * np.where(x + y > 1, top, low)


def cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A plus sign."""
    return np.maximum(box(u, v, 0.98, 0.36), box(u, v, 0.36, 0.98))


def ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A ring, through which one sees."""
    return 0.27 - np.abs(np.sqrt(u**2 + v**2) - 0.72)


def moon(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A crescent open to the right."""
    return np.minimum(disc(u, v, 0.12, 0.0, 1.0), -disc(u, v, 0.62, 0.0, 0.84))


FIELDS: dict[str, Field] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
    "heart": heart,
    "cross": cross,
    "ring": ring,
    "moon": moon,
}


@cache
def field(shape: str) -> Field:
    """The signed distance of a shape or of a new subject."""
    if shape in FIELDS:
        return FIELDS[shape]
    from unbraid.data.scenes.subjects import subject

    return subject(int(shape.partition("-")[2])).field
