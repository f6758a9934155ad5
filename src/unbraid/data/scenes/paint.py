"""From scenes to pixels: anti-aliased at any resolution, the same for the same scene and seed, and masks of things."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.data.scenes import grounds
from unbraid.data.scenes.scene import PALETTE, Scene, Thing
from unbraid.data.scenes.shapes import field

LEAST, MOST = 16, 1024
PERIOD = 0.14  # of a thing's texture
DARK = 0.42  # a texture's second tone, of the first
OUTLINE = 0.025
PENCIL = 0.011
WAVER = 0.009
INK, CHALK, LEAD = (0.06, 0.06, 0.08), (0.95, 0.95, 0.93), (0.22, 0.22, 0.25)
PAPER = np.array([0.98, 0.97, 0.94], np.float32)[:, None, None]
GRAIN, GRAINS = 0.09, 26  # of the noisy style: standard deviation, cells along a side
HATCH = 0.11


class Part(NamedTuple):
    """A thing in its window of the image: rows, columns, coordinates in radii, cover, depth in pixels."""

    rows: slice
    cols: slice
    u: np.ndarray
    v: np.ndarray
    cover: np.ndarray
    depth: np.ndarray


def render(scenes: Sequence[Scene] | Scene, size: int = 64, seed: int = 0) -> np.ndarray:
    """Draw scenes.

    Args:
        scenes: one or several.
        size: pixels of a side, 16 to 1,024.
        seed: another one draws the same scenes with other grain, waver, shifts of colour and stars.

    Returns:
        [n, 3, size, size] float32 from 0 to 1.

    Raises:
        UnbraidError: no scene, or a size beyond what is possible.

    Example:
        >>> render(Scene((Thing("star", "yellow"),))).shape
        (1, 3, 64, 64)
    """
    listed = as_list(scenes, size)
    made = np.empty((len(listed), 3, size, size), np.float32)
    for k, scene in enumerate(listed):
        draw(scene, size, seed, made[k])
    return made


def masks(scenes: Sequence[Scene] | Scene, size: int = 64, seed: int = 0) -> np.ndarray:
    """How much of each pixel each thing covers where it is seen: things behind others lose what is hidden.

    Args:
        scenes: one or several.
        size: pixels of a side.
        seed: as given to `render`; it matters to sketches only, whose lines waver.

    Returns:
        [n, things, size, size] float32 from 0 to 1, as many things as the fullest scene has; the rest is 0.

    Raises:
        UnbraidError: no scene, or a size beyond what is possible.
    """
    listed = as_list(scenes, size)
    most = max(len(scene.things) for scene in listed)
    made = np.zeros((len(listed), most, size, size), np.float32)
    for k, scene in enumerate(listed):
        for j, thing in enumerate(scene.things):
            part = placed(thing, size, _waver(scene, seed, j))
            made[k, :j, part.rows, part.cols] *= 1 - part.cover
            made[k, j, part.rows, part.cols] = part.cover
    return made


def as_list(scenes: Sequence[Scene] | Scene, size: int) -> list[Scene]:
    """Scenes as a list, checked.

    Raises:
        UnbraidError: no scene, or a size beyond what is possible.
    """
    listed = [scenes] if isinstance(scenes, Scene) else list(scenes)
    if not listed or not all(isinstance(scene, Scene) for scene in listed):
        raise UnbraidError("there is no scene to draw; give a Scene or a list of them, as `sample` makes.")
    whole = isinstance(size, int | np.integer) and not isinstance(size, bool)
    if not whole or not LEAST <= size <= MOST:
        raise UnbraidError(f"size is {size!r}; give the pixels of a side, {LEAST} to {MOST}.")
    return listed


def draw(scene: Scene, size: int, seed: int, into: np.ndarray) -> None:
    """Draw one scene into [3, size, size]."""
    into[:] = grounds.paint(scene.background, size, _stream(scene, seed, 0))
    if scene.style == "sketch":
        into += 0.25 * (PAPER - into)
    for k, thing in enumerate(scene.things):
        _lay(scene, thing, k, size, seed, into)
    if scene.style == "hatched":
        _hatch(into)
    elif scene.style in ("noisy", "sketch"):
        rng = _stream(scene, seed, 1)
        into += _grain(size, rng) if scene.style == "noisy" else _strokes(size, rng)
    np.clip(into, 0, 1, out=into)


def placed(thing: Thing, size: int, waver: np.ndarray | None = None) -> Part:
    """A thing in its window of an image."""
    reach = 1.3 * thing.radius + 2 / size + 2 * WAVER
    left, right = (int(np.clip(np.floor((thing.x + s * reach) * size), 0, size)) for s in (-1, 1))
    top, bottom = (int(np.clip(np.floor((thing.y + s * reach) * size), 0, size)) for s in (-1, 1))
    rows, cols = slice(top, bottom + 1), slice(left, right + 1)
    x, y = grounds.axes(size)
    u, v = np.broadcast_arrays(*_local(thing, x[:, cols], y[rows], waver))
    depth = field(thing.shape)(u, v) * np.float32(thing.radius * size)
    return Part(rows, cols, u, v, np.clip(depth + 0.5, 0, 1), depth)


def _local(thing: Thing, x: np.ndarray, y: np.ndarray, waver: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    if waver is not None:
        a, b, c, d = waver
        x, y = x + WAVER * np.sin(21 * y + a + 9 * x + b), y + WAVER * np.sin(19 * x + c + 11 * y + d)
    u, v = (x - np.float32(thing.x)) / np.float32(thing.radius), (y - np.float32(thing.y)) / np.float32(thing.radius)
    if thing.turn:
        cos, sin = (np.float32(f(np.deg2rad(thing.turn))) for f in (np.cos, np.sin))
        u, v = u * cos + v * sin, v * cos - u * sin
    return u, v


def _lay(scene: Scene, thing: Thing, k: int, size: int, seed: int, into: np.ndarray) -> None:
    """Draw a thing over what is there."""
    part = placed(thing, size, _waver(scene, seed, k))
    rgb = _coat(thing, part, size, _stream(scene, seed, 2 + k))
    if scene.style == "sketch":
        rgb = rgb + 0.2 * (PAPER - rgb)
    if scene.style == "outlined":
        band = np.clip(max(1.2, OUTLINE * size) - part.depth + 0.5, 0, 1)
        ink = np.array(CHALK if scene.background.dark else INK, np.float32)[:, None, None]
        rgb = rgb + band * (ink - rgb)
    seen = into[:, part.rows, part.cols]
    seen += part.cover * (rgb - seen)
    if scene.style == "sketch":
        width = max(0.7, PENCIL * size)
        again = placed(thing, size, _waver(scene, seed, k, 1))
        for line in (part, again):
            grounds.blend(seen, 0.8 * np.clip(width - np.abs(line.depth) + 0.2, 0, 1), LEAD)


def _coat(thing: Thing, part: Part, size: int, rng: np.random.Generator) -> np.ndarray:
    """[3, h, w] the colours of a thing, as if it filled its window."""
    if thing.new:
        from unbraid.data.scenes.subjects import subject

        return subject(int(thing.shape.partition("-")[2])).coat(part.u, part.v, 1 / (thing.radius * size))
    rgb = grounds.shifted(PALETTE[thing.colour], rng)[:, None, None]
    if thing.texture == "plain":
        return np.broadcast_to(rgb, (3, *part.u.shape))
    x, y = part.u * np.float32(thing.radius), part.v * np.float32(thing.radius)
    second = grounds.pattern(thing.texture, x, y, PERIOD, 1 / size)
    return np.asarray(rgb * (1 - (1 - DARK) * second))


def _hatch(image: np.ndarray) -> None:
    """Thin slanted lines over everything, light where it is dark."""
    x, y = grounds.axes(image.shape[1])
    away = np.abs((x + y) / HATCH - np.round((x + y) / HATCH)) * HATCH / np.sqrt(2)
    line = 0.45 * np.clip((0.0095 - away) * image.shape[1] + 0.5, 0, 1)
    light = np.clip((0.30 - image.mean(axis=0)) / 0.1, 0, 1)
    image += line * (0.05 + 0.65 * light - image)


def _grain(size: int, rng: np.random.Generator) -> np.ndarray:
    """[1, size, size] coarse grain of grey."""
    weights = _smooth(size, GRAINS)
    made = weights @ rng.standard_normal((GRAINS, GRAINS), np.float32) @ weights.T
    return GRAIN * made[None]


def _strokes(size: int, rng: np.random.Generator) -> np.ndarray:
    """[1, size, size] slanted streaks of a pencil, light ones."""
    x, y = grounds.axes(size)
    a, b = rng.uniform(0, 6.28, 2).astype(np.float32)
    wave = np.sin(120 * (x - 0.55 * y) + 3 * np.sin(5 * y + a)) * np.sin(9 * (x + y) + b)
    return np.asarray(0.05 * wave)[None]


@lru_cache(maxsize=8)
def _smooth(size: int, cells: int) -> np.ndarray:
    """[size, cells] weights that spread values of cells over pixels, each pixel's variance being that of a cell."""
    at = (np.arange(size) + 0.5) / size * cells - 0.5
    far = np.abs(at[:, None] - np.arange(cells))
    made = np.clip(1 - far, 0, 1)
    return np.asarray(made / np.sqrt(np.square(made).sum(axis=1, keepdims=True)), np.float32)


def _waver(scene: Scene, seed: int, k: int, again: int = 0) -> np.ndarray | None:
    """[4] phases of a sketch's waver."""
    if scene.style != "sketch":
        return None
    rng = _stream(scene, seed, 100 + 10 * k + again)
    return np.asarray(rng.uniform(0, 6.28, 4), np.float32)


def _stream(scene: Scene, seed: int, part: int) -> np.random.Generator:
    """Each part of a scene draws from a stream of its own, so that a change in one leaves the others as they are."""
    return np.random.Generator(np.random.PCG64([scene.seed, seed, part]))
