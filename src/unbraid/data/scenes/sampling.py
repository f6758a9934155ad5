"""Scenes at random: training and held-out combinations.

Held out are, each by a fixed table that depends on nothing: one colour for each shape, one background for each shape,
one style other than flat for each second shape. A scene of the split "train" has none of these combinations; each of
the split "held_out" has at least one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.data.scenes.scene import (
    COLOURS,
    GROUNDS,
    PLACES,
    SHAPES,
    SIZES,
    STYLES,
    TEXTURES,
    Background,
    Scene,
    Thing,
    among,
)

SPLITS = ("train", "held_out", "all")
BACKGROUNDS = (*GROUNDS, *PLACES)
HELD_COLOURS = {shape: COLOURS[(3 * k + 1) % len(COLOURS)] for k, shape in enumerate(SHAPES)}
HELD_BACKGROUNDS = {shape: BACKGROUNDS[(5 * k + 3) % len(BACKGROUNDS)] for k, shape in enumerate(SHAPES)}
HELD_STYLES = {shape: STYLES[1 + k] for k, shape in enumerate(SHAPES[::2])}
COMMON = 0.4  # of scenes are flat
GROUND_KINDS, GROUND_SHARES = ("plain", "texture", "fade", "place"), (0.45, 0.12, 0.13, 0.30)
THING_TEXTURES = (0.55, 0.15, 0.15, 0.15)
LAYOUTS = ("left of", "right of", "above", "below", "inside", "in front of")
LAYOUT_SHARES = (0.22, 0.22, 0.20, 0.20, 0.06, 0.10)
ROUND = ("circle", "square")  # a small thing fits inside a large one of these
SOLID = ("circle", "square", "triangle", "heart")  # told even when a part is hidden
NEAR = 0.72  # distance of a thing in front of another, in the sum of radii
EDGE = 0.03
CLEAR = 2.0  # of three things, the first two stand clearly beside or above one another
TRIES = 200


def is_held_out(scene: Scene) -> bool:
    """Whether a scene has a combination that the split "train" never shows."""
    return any(
        thing.colour == HELD_COLOURS.get(thing.shape)
        or scene.background.name == HELD_BACKGROUNDS.get(thing.shape)
        or scene.style == HELD_STYLES.get(thing.shape)
        for thing in scene.things
    )


@dataclass(frozen=True)
class Choice:
    """What `sample` may draw from.

    Args:
        shapes: of things.
        colours: of things.
        textures: of things.
        sizes: of things that stand alone; among others they are small or medium.
        styles: of the drawing; flat is drawn more often than each other.
        backgrounds: colours and places.
        ground_textures: of backgrounds with a colour.
        fades: whether backgrounds may fade.
        layouts: of two things, see `RELATIONS` (``behind`` is ``in front of`` from the other side).
    """

    shapes: Sequence[str] = SHAPES
    colours: Sequence[str] = COLOURS
    textures: Sequence[str] = TEXTURES
    sizes: Sequence[str] = tuple(SIZES)
    styles: Sequence[str] = STYLES
    backgrounds: Sequence[str] = BACKGROUNDS
    ground_textures: Sequence[str] = TEXTURES
    fades: bool = True
    layouts: Sequence[str] = LAYOUTS

    def check(self) -> None:
        """Refuse what is unknown.

        Raises:
            UnbraidError: a word is none of the known ones, or there is none.
        """
        known: dict[str, tuple[str, ...]] = {
            "shapes": SHAPES, "colours": COLOURS, "textures": TEXTURES, "sizes": tuple(SIZES), "styles": STYLES,
            "backgrounds": BACKGROUNDS, "ground_textures": TEXTURES, "layouts": LAYOUTS,
        }  # fmt: skip
        for name, words in known.items():
            given = vars(self)[name]
            if isinstance(given, str) or not given:
                raise UnbraidError(f"{name} is {given!r}; give a list of some of {', '.join(words)}.")
            for word in given:
                among(word, f"one of {name}", words)


def sample(
    n: int, seed: int = 0, objects: tuple[int, int] = (1, 3), split: str = "train", choice: Choice | None = None
) -> list[Scene]:
    """Scenes at random.

    Args:
        n: how many.
        seed: the same one gives the same scenes; their own seeds follow from it.
        objects: the least and the greatest number of things, from 1 to 3.
        split: ``train`` without held-out combinations, ``held_out`` with at least one in each scene, or ``all``.
        choice: what to draw from, where that is not everything.

    Raises:
        UnbraidError: a number or word is beyond what is possible, or what is asked for contradicts itself.
    """
    least, most = _range(objects)
    among(split, "split", SPLITS)
    choice = choice or Choice()
    choice.check()
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 0:
        raise UnbraidError(f"n is {n!r}; give how many scenes there should be.")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise UnbraidError(f"seed is {seed!r}; it must be a whole number from 0.")
    rng = np.random.default_rng([int(seed), SPLITS.index(split), least, most])
    shares = np.array([0.5, 0.35, 0.15])[least - 1 : most]
    made: list[Scene] = []
    failed = 0
    while len(made) < n:
        count = least + int(rng.choice(len(shares), p=shares / shares.sum()))
        scene = _draw(rng, count, choice)
        if scene is None or (split != "all" and is_held_out(scene) != (split == "held_out")):
            failed += 1
            if failed > TRIES * (len(made) + 5):
                raise UnbraidError(
                    f"no scene of the split {split!r} has what is asked for; allow more colours, shapes or backgrounds."
                )
            continue
        made.append(scene)
    return made


def _range(objects: tuple[int, int]) -> tuple[int, int]:
    try:
        least, most = objects
    except (TypeError, ValueError):
        least = most = -1
    if not 1 <= least <= most <= 3:
        raise UnbraidError(f"objects is {objects!r}; give the least and the greatest number of things, 1 to 3: (1, 2).")
    return int(least), int(most)


def _pick(rng: np.random.Generator, words: Sequence[str], shares: dict[str, float] | None = None) -> str:
    if shares is None:
        return words[int(rng.integers(len(words)))]
    weights = np.array([shares.get(word, 0.0) for word in words])
    return words[int(np.searchsorted(np.cumsum(weights / weights.sum()), rng.random(), side="right"))]


def _draw(rng: np.random.Generator, count: int, choice: Choice) -> Scene | None:
    """One scene, or None where it did not come out."""
    ground = _ground(rng, choice)
    fit = [colour for colour in choice.colours if ground.takes(colour)]
    if len(fit) < count:
        return None
    colours = [fit[k] for k in rng.permutation(len(fit))[:count]]
    others = (1 - COMMON) / (len(STYLES) - 1)
    style = _pick(rng, choice.styles, {word: COMMON if word == "flat" else others for word in STYLES})
    shares = dict(zip(TEXTURES, THING_TEXTURES, strict=True))
    things = [Thing(_pick(rng, choice.shapes), colour, _pick(rng, choice.textures, shares)) for colour in colours]
    placed = (_alone, _two, _three)[count - 1](rng, things, choice)
    return None if placed is None else Scene(tuple(placed), ground, style, int(rng.integers(1 << 31)))


def _ground(rng: np.random.Generator, choice: Choice) -> Background:
    colours = [word for word in choice.backgrounds if word in GROUNDS]
    places = [word for word in choice.backgrounds if word in PLACES]
    textures = [word for word in choice.ground_textures if word != "plain"]
    fading = [word for word in colours if word not in ("white", "grey", "black")] if choice.fades else []
    can = {
        "plain": bool(colours) and "plain" in choice.ground_textures,
        "texture": bool(colours and textures),
        "fade": bool(fading),
        "place": bool(places),
    }
    kinds = [kind for kind in GROUND_KINDS if can[kind]]
    kind = _pick(rng, kinds, dict(zip(GROUND_KINDS, GROUND_SHARES, strict=True)))
    if kind == "place":
        return Background(place=_pick(rng, places))
    if kind == "fade":
        return Background(_pick(rng, fading), fade=_pick(rng, ("white", "black")))
    return Background(_pick(rng, colours), _pick(rng, textures) if kind == "texture" else "plain")


def _spot(rng: np.random.Generator, radius: float) -> tuple[float, float]:
    """A place whose word is clear: near an edge or in the middle, along each axis."""

    def along() -> float:
        at = float(rng.uniform(0.44, 0.56))
        low = float(rng.uniform(radius + EDGE, max(0.34, radius + EDGE + 0.02)))
        return (at, low, 1 - low)[int(rng.integers(3))]

    if rng.random() < 0.4:
        return float(rng.uniform(0.44, 0.56)), float(rng.uniform(0.44, 0.56))
    return along(), along()


def _alone(rng: np.random.Generator, things: list[Thing], choice: Choice) -> list[Thing]:
    size = _pick(rng, choice.sizes, {"small": 0.25, "medium": 0.35, "large": 0.4})
    x, y = _spot(rng, SIZES[size])
    return [replace(things[0], size=size, x=round(x, 4), y=round(y, 4))]


def _two(rng: np.random.Generator, things: list[Thing], choice: Choice) -> list[Thing] | None:
    layout = _pick(rng, choice.layouts, dict(zip(LAYOUTS, LAYOUT_SHARES, strict=True)))
    if layout in ("inside", "in front of"):
        return _overlapping(rng, things, layout, choice)
    sizes = [_pick(rng, ("small", "medium")) for _ in things]
    radii = [SIZES[size] for size in sizes]
    apart = float(rng.uniform(1.12, 1.12 + 0.9 * (1 - 2 * EDGE - 2.12 * sum(radii))) * sum(radii))
    slip = float(rng.uniform(-0.45, 0.45)) * apart
    along = np.array([apart, slip]) * (1 if layout in ("right of", "below") else -1)
    step = along if layout in ("left of", "right of") else along[::-1]
    middle = rng.uniform(0, 1, 2)
    low = np.max([radii[k] + EDGE - s * step / 2 for k, s in ((0, 1), (1, -1))], axis=0)
    high = np.min([1 - radii[k] - EDGE - s * step / 2 for k, s in ((0, 1), (1, -1))], axis=0)
    if (low > high).any():
        return None
    middle = low + (high - low) * (0.25 + 0.5 * middle)
    at = [middle + step / 2, middle - step / 2]
    made = [
        replace(t, size=s, x=round(float(p[0]), 4), y=round(float(p[1]), 4))
        for t, s, p in zip(things, sizes, at, strict=True)
    ]
    return made if rng.random() < 0.5 else made[::-1]


def _overlapping(rng: np.random.Generator, things: list[Thing], layout: str, choice: Choice) -> list[Thing] | None:
    back, front = things
    fit = [shape for shape in (ROUND if layout == "inside" else SOLID) if shape in choice.shapes]
    if not fit:
        return None
    x, y = (round(float(at), 4) for at in rng.uniform(0.42, 0.58, 2))
    back = replace(back, shape=back.shape if back.shape in fit else _pick(rng, fit), size="large", x=x, y=y)
    small = "small" if layout == "inside" or rng.random() < 0.5 else "medium"
    angle = float(rng.uniform(0, 2 * np.pi))
    far = 0.06 * float(rng.random()) if layout == "inside" else NEAR * (back.radius + SIZES[small])
    low = SIZES[small] + EDGE
    x, y = (float(np.clip(m + far * f(angle), low, 1 - low)) for m, f in ((back.x, np.cos), (back.y, np.sin)))
    front = replace(front, size=small, x=round(x, 4), y=round(y, 4))
    if layout == "in front of" and np.hypot(front.x - back.x, front.y - back.y) < 0.95 * far:
        return None
    return [back, front]


def _three(rng: np.random.Generator, things: list[Thing], choice: Choice) -> list[Thing] | None:
    made: list[Thing] = []
    for thing in things:
        size = "small" if rng.random() < 0.6 else "medium"
        low = SIZES[size] + EDGE
        for _ in range(30):
            x, y = rng.uniform(low, 1 - low, 2)
            if all(np.hypot(x - t.x, y - t.y) >= 1.1 * (SIZES[size] + t.radius) for t in made):
                made.append(replace(thing, size=size, x=round(float(x), 4), y=round(float(y), 4)))
                break
        else:
            return None
    dx, dy = abs(made[0].x - made[1].x), abs(made[0].y - made[1].y)
    return None if max(dx, dy) < CLEAR * min(dx, dy) else made
