"""Backgrounds: colours with a texture or a fade, and places made of a few cues."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from unbraid.data.scenes.scene import PALETTE, Background

PERIOD = 0.25  # of a background's texture
STARS, FLOWERS, FLAKES = 26, 16, 22


@lru_cache(maxsize=8)
def axes(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x [1, size] and y [size, 1] of the pixels' centres."""
    at = ((np.arange(size) + 0.5) / size).astype(np.float32)
    return at[None, :], at[:, None]


def stripes(at: np.ndarray, period: float, pixel: float) -> np.ndarray:
    """Cover of bands, half of each period, with soft edges of a pixel."""
    phase = np.abs(at / period - np.round(at / period)) * period  # distance to the middle of a band
    return np.clip((period / 4 - phase) / pixel + 0.5, 0, 1)


def dots(x: np.ndarray, y: np.ndarray, period: float, radius: float, pixel: float) -> np.ndarray:
    """Cover of discs in rows."""
    p = x - period * np.round(x / period)
    q = y - period * np.round(y / period)
    return np.clip((radius - np.sqrt(p**2 + q**2)) / pixel + 0.5, 0, 1)


def checks(x: np.ndarray, y: np.ndarray, period: float, pixel: float) -> np.ndarray:
    """Cover of a checkerboard."""
    p, q = stripes(x, period, pixel), stripes(y, period, pixel)
    return p + q - 2 * p * q


def pattern(texture: str, x: np.ndarray, y: np.ndarray, period: float, pixel: float) -> np.ndarray:
    """How much of each pixel has a texture's second tone; bands lie across ``y``."""
    if texture == "striped":
        return stripes(y, period, pixel) + 0 * x
    if texture == "dotted":
        return dots(x, y, period, 0.29 * period, pixel)
    return checks(x, y, period, pixel)


def paint(ground: Background, size: int, rng: np.random.Generator) -> np.ndarray:
    """[3, size, size] a background."""
    if ground.place:
        made = _PLACES[ground.place](size, rng)
        return made * (1 + rng.uniform(-0.03, 0.03, 3).astype(np.float32))[:, None, None]
    rgb = shifted(PALETTE[ground.colour], rng)
    made = np.empty((3, size, size), np.float32)
    made[:] = rgb[:, None, None]
    x, y = axes(size)
    if ground.fade:
        much = np.clip((y - 0.1) / 0.8, 0, 1)
        end = np.array(PALETTE[ground.fade], np.float32)
        made += much * (end[:, None, None] - made)
    if ground.texture != "plain":
        light = ground.colour == "black"
        cover = 0.30 * pattern(ground.texture, y - 0.125, x - 0.125, PERIOD, 1 / size)
        made += cover * ((1.0 if light else 0.0) - made)
    return made


def shifted(rgb: tuple[float, float, float], rng: np.random.Generator) -> np.ndarray:
    """[3] a colour a little off, as no two paints are the same."""
    return np.clip(np.array(rgb) + rng.uniform(-0.025, 0.025, 3), 0, 1).astype(np.float32)


def blend(image: np.ndarray, cover: np.ndarray, rgb: tuple[float, float, float]) -> None:
    """Lay a colour over [3, h, w] pixels."""
    image += cover * (np.array(rgb, np.float32)[:, None, None] - image)


def _bands(size: int, edges: tuple[float, ...], colours: tuple[tuple[float, float, float], ...]) -> np.ndarray:
    _, y = axes(size)
    made = np.empty((3, size, size), np.float32)
    made[:] = np.array(colours[0], np.float32)[:, None, None]
    for edge, rgb in zip(edges, colours[1:], strict=True):
        blend(made, np.clip((y - edge) * size + 0.5, 0, 1), rgb)
    return made


def _sprinkle(image: np.ndarray, at: np.ndarray, radius: float, rgb: tuple[float, float, float]) -> None:
    """Small discs at [m, 2] places."""
    size = image.shape[1]
    half = int(np.ceil(radius * size)) + 1
    for x, y in at:
        j, i = int(x * size), int(y * size)
        rows = slice(max(i - half, 0), min(i + half + 1, size))
        cols = slice(max(j - half, 0), min(j + half + 1, size))
        px, py = axes(size)
        away = np.sqrt((px[:, cols] - x) ** 2 + (py[rows] - y) ** 2)
        blend(image[:, rows, cols], np.clip((radius - away) * size + 0.5, 0, 1), rgb)


def _scattered(rng: np.random.Generator, count: int, top: float, bottom: float) -> np.ndarray:
    """[count, 2] places, spread evenly along x."""
    x = (np.arange(count) + rng.random(count)) / count
    return np.stack([x, rng.uniform(top, bottom, count)], axis=1)


def beach(size: int, rng: np.random.Generator) -> np.ndarray:
    """Sky, a band of sea with a line of foam, sand."""
    sea, sand = 0.30 + rng.uniform(-0.03, 0.03), 0.56 + rng.uniform(-0.03, 0.03)
    colours = ((0.76, 0.91, 0.98), (0.10, 0.58, 0.70), (0.96, 0.98, 0.98), (0.90, 0.80, 0.58))
    return _bands(size, (sea, sand - 0.035, sand), colours)


def meadow(size: int, rng: np.random.Generator) -> np.ndarray:
    """Sky and grass with flowers."""
    made = _bands(size, (0.36 + rng.uniform(-0.03, 0.03),), ((0.70, 0.88, 0.98), (0.48, 0.75, 0.30)))
    _sprinkle(made, _scattered(rng, FLOWERS, 0.46, 0.97), 0.016, (0.98, 0.95, 0.55))
    return made


def night_sky(size: int, rng: np.random.Generator) -> np.ndarray:
    """Dark blue with small stars."""
    made = _bands(size, (), ((0.07, 0.08, 0.26),))
    _sprinkle(made, _scattered(rng, STARS, 0.03, 0.97), 0.013, (0.95, 0.94, 0.80))
    return made


def brick_wall(size: int, rng: np.random.Generator) -> np.ndarray:
    """Bricks in rows, each second row shifted by half a brick."""
    x, y = axes(size)
    high, long, joint = 1 / 8, 1 / 4, 0.02
    shift, rise = rng.uniform(0, long), rng.uniform(0, high)
    row = np.floor((y + rise) / high)
    p = np.abs((y + rise) / high - row - 0.5) * high
    q = (x + shift) / long + 0.5 * (row % 2)
    q = np.abs(q - np.floor(q) - 0.5) * long
    inside = np.minimum(high / 2 - joint / 2 - p, long / 2 - joint / 2 - q)
    made = _bands(size, (), ((0.80, 0.76, 0.70),))
    blend(made, np.clip(inside * size + 0.5, 0, 1), (0.60, 0.32, 0.25))
    return made


def snow(size: int, rng: np.random.Generator) -> np.ndarray:
    """A grey sky with flakes, white ground."""
    made = _bands(size, (0.60 + rng.uniform(-0.03, 0.03),), ((0.62, 0.70, 0.80), (0.94, 0.96, 0.99)))
    _sprinkle(made, _scattered(rng, FLAKES, 0.02, 0.60), 0.016, (0.97, 0.98, 1.0))
    return made


_PLACES = {"beach": beach, "meadow": meadow, "night sky": night_sky, "brick wall": brick_wall, "snow": snow}
