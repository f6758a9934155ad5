"""Rays and what they meet: solids whose points of entry have a closed form. Vectors are [3, ...] arrays of float32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FAR = np.float32(1e9)
LIGHT = np.array([0.4, 0.8, 0.45]) / np.linalg.norm([0.4, 0.8, 0.45])
Hit = tuple[np.ndarray, np.ndarray]  # distances [...] along the rays, FAR where missed; normals [3, ...]


def axes(eye: Sequence[float], target: Sequence[float]) -> np.ndarray:
    """[3, 3] a camera's right, up and forward as columns."""
    forward = np.subtract(target, eye).astype(np.float64)
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(right, forward), forward], axis=1)


def view(eye: Sequence[float], target: Sequence[float], degrees: float, side: int) -> np.ndarray:
    """[3, side, side] directions of the rays through the centres of a square picture's pixels, not of unit length.

    Args:
        eye: where the camera is.
        target: the point in the middle of the picture.
        degrees: the angle that the picture spans.
        side: pixels of a side.
    """
    at = ((np.arange(side) + 0.5) / side * 2 - 1) * np.tan(np.radians(degrees) / 2)
    flat = np.stack([*np.meshgrid(at, -at), np.ones((side, side))])
    return np.einsum("ij,jhw->ihw", axes(eye, target), flat).astype(np.float32)


def window(
    eye: Sequence[float],
    target: Sequence[float],
    degrees: float,
    side: int,
    low: Sequence[float],
    high: Sequence[float],
) -> tuple[slice, slice]:
    """Rows and columns of a picture (as in `view`) that hold all of the box from ``low`` to ``high``."""
    corners = np.array([[(low, high)[i >> k & 1][k] for k in range(3)] for i in range(8)]) - np.array(eye)
    right, up, depth = (corners @ axes(eye, target)).T
    scale = side / 2 / np.tan(np.radians(degrees) / 2) / np.maximum(depth, 1e-3)
    columns, rows = side / 2 + right * scale, side / 2 - up * scale

    def span(v: np.ndarray) -> slice:
        first = int(np.clip(np.floor(v.min()), 0, side - 1))
        return slice(first, int(np.clip(np.ceil(v.max()), first + 1, side)))

    return span(rows), span(columns)


def samples(side: int) -> int:
    """How many rays go through a pixel along each of its sides."""
    return 3 if side <= 128 else 2


def averaged(values: np.ndarray, by: int) -> np.ndarray:
    """[..., h, w] means over squares of ``by`` x ``by``."""
    *rest, h, w = values.shape
    return values.reshape(*rest, h // by, by, w // by, by).mean(axis=(-3, -1), dtype=np.float32)


def lambert(normal: np.ndarray) -> np.ndarray:
    """[...] how bright a surface is: 0.55 in the shade to 1 in full light."""
    cosine = sum(normal[i] * np.float32(LIGHT[i]) for i in range(3))
    return np.float32(0.55) + np.float32(0.45) * np.maximum(cosine, 0)


def convex(o: np.ndarray, d: np.ndarray, planes: np.ndarray) -> Hit:
    """A convex body: the points with normal . x <= offset for all planes [k, 4] (normal, offset)."""
    shape = np.broadcast_shapes(o.shape, d.shape)[1:]
    face = np.zeros(shape, np.int64)
    near, out = np.full(shape, -FAR), np.full(shape, FAR)
    for k, (a, b, c, offset) in enumerate(planes.astype(np.float32)):
        slope = a * d[0] + b * d[1] + c * d[2]
        room = offset - (a * o[0] + b * o[1] + c * o[2])
        slope = np.where(np.abs(slope) < 1e-9, np.float32(-1e-9), slope)
        t = room / slope
        entering = slope < 0
        later = entering & (t > near)
        face = np.where(later, k, face)
        near = np.where(later, t, near)
        out = np.where(entering, out, np.minimum(out, t))
    met = (near < out) & (near > 0)
    normals = planes[:, :3].astype(np.float32)
    return np.where(met, near, FAR), np.moveaxis(normals[face], -1, 0)


def sphere(o: np.ndarray, d: np.ndarray, height: float, radius: float) -> Hit:
    """A ball round (0, height, 0)."""
    oy = o[1] - np.float32(height)
    t = _root(
        d[0] ** 2 + d[1] ** 2 + d[2] ** 2,
        o[0] * d[0] + oy * d[1] + o[2] * d[2],
        o[0] ** 2 + oy**2 + o[2] ** 2 - np.float32(radius**2),
    )
    with np.errstate(over="ignore", invalid="ignore"):
        normal = np.stack(np.broadcast_arrays(o[0] + t * d[0], oy + t * d[1], o[2] + t * d[2])) / np.float32(radius)
    return t, normal


def cylinder(o: np.ndarray, d: np.ndarray, radius: float, low: float, high: float, caps: bool = True) -> Hit:
    """An upright cylinder round the y axis, from ``low`` to ``high``."""
    t = _root(
        d[0] ** 2 + d[2] ** 2,
        o[0] * d[0] + o[2] * d[2],
        o[0] ** 2 + o[2] ** 2 - np.float32(radius**2),
    )
    y = o[1] + t * d[1]
    t = np.where((y >= low) & (y <= high), t, FAR)
    normal = np.stack(np.broadcast_arrays((o[0] + t * d[0]) / radius, 0 * t, (o[2] + t * d[2]) / radius))
    for level, sign in ((high, 1.0), (low, -1.0)) if caps else ():
        t, normal = _nearer((t, normal), _cap(o, d, level, radius, sign))
    return t, normal


def capsule(o: np.ndarray, d: np.ndarray, radius: float, low: float, high: float) -> Hit:
    """A cylinder with half balls on both ends, whose centres are at ``low`` and ``high``."""
    hit = cylinder(o, d, radius, low, high, caps=False)
    return _nearer(_nearer(hit, sphere(o, d, low, radius)), sphere(o, d, high, radius))


def cone(o: np.ndarray, d: np.ndarray, radius: float, low: float, high: float) -> Hit:
    """An upright cone round the y axis: its base at ``low``, its tip at ``high``."""
    k = np.float32((radius / (high - low)) ** 2)
    oy = o[1] - np.float32(high)
    a = d[0] ** 2 + d[2] ** 2 - k * d[1] ** 2
    b = o[0] * d[0] + o[2] * d[2] - k * oy * d[1]
    c = o[0] ** 2 + o[2] ** 2 - k * oy**2
    root = np.sqrt(np.maximum(b * b - a * c, 0))
    real = b * b >= a * c
    a = np.where(np.abs(a) < 1e-9, np.float32(1e-9), a)
    t = np.full(real.shape, FAR)
    for way in (-1, 1):  # the double cone has two roots in either order; only the one on this half counts
        tried = (-b + way * root) / a
        y = o[1] + tried * d[1]
        fits = real & (tried > 0) & (y >= low) & (y <= high)
        t = np.where(fits & (tried < t), tried, t)
    with np.errstate(over="ignore", invalid="ignore"):
        raw = np.stack(np.broadcast_arrays(o[0] + t * d[0], -k * (oy + t * d[1]), o[2] + t * d[2]))
        normal = raw / np.maximum(np.sqrt((raw**2).sum(axis=0)), np.float32(1e-9))
    return _nearer((t, normal), _cap(o, d, low, radius, -1.0))


def prism(outline: Sequence[tuple[float, float]], depth: float) -> np.ndarray:
    """[k, 4] planes of a convex outline (x, y), anticlockwise, drawn out along z to -depth and depth."""
    made = []
    for (x0, y0), (x1, y1) in zip(outline, [*outline[1:], outline[0]], strict=True):
        normal = np.array([y1 - y0, x0 - x1])
        normal = normal / np.linalg.norm(normal)
        made.append([normal[0], normal[1], 0.0, float(normal @ (x0, y0))])
    return np.array([*made, [0, 0, 1, depth], [0, 0, -1, depth]])


def _root(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """The smaller positive t with a t^2 + 2 b t + c = 0, or FAR."""
    inner = b * b - a * c
    t = (-b - np.sqrt(np.maximum(inner, 0))) / np.maximum(a, np.float32(1e-12))
    return np.where((inner > 0) & (t > 0), t, FAR)


def _cap(o: np.ndarray, d: np.ndarray, level: float, radius: float, sign: float) -> Hit:
    slope = np.where(np.abs(d[1]) < 1e-9, np.float32(1e-9), d[1])
    t = (np.float32(level) - o[1]) / slope
    inside = (o[0] + t * d[0]) ** 2 + (o[2] + t * d[2]) ** 2 <= radius**2
    normal = np.zeros((3, *t.shape), np.float32)
    normal[1] = sign
    return np.where(inside & (t > 0), t, FAR), normal


def _nearer(one: Hit, other: Hit) -> Hit:
    first = one[0] <= other[0]
    return np.where(first, one[0], other[0]), np.where(first, one[1], other[1])
