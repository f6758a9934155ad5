"""Pairs of scenes that differ in exactly one attribute, pairs that agree in one, and lists of prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.data.scenes.grammar import caption
from unbraid.data.scenes.sampling import BACKGROUNDS, HELD_COLOURS, Choice, is_held_out, sample
from unbraid.data.scenes.scene import COLOURS, PLACES, SHAPES, STYLES, TEXTURES, Background, Scene, Thing, among

CHANGES = ("shape", "colour", "texture", "size", "place", "background", "style", "relation")
SHARES = ("content", "style", "composition", "background")
LISTS = ("single", "two", "style", "place", "held_out")
SPOTS = {"left": (0.3, 0.5), "right": (0.7, 0.5), "top": (0.5, 0.3), "bottom": (0.5, 0.7), "middle": (0.5, 0.5)}
ROUNDS = 400


@dataclass(frozen=True)
class Pair:
    """Two scenes and what they have to do with each other.

    Args:
        before: a scene.
        after: the other one.
        attribute: the one in which they differ, or agree.
        captions: everything said about either.
    """

    before: Scene
    after: Scene
    attribute: str
    captions: tuple[str, str]


def pairs(
    n: int,
    seed: int = 0,
    change: str | None = None,
    objects: tuple[int, int] = (1, 1),
    split: str = "train",
    choice: Choice | None = None,
) -> list[Pair]:
    """Scenes that differ in exactly one attribute; everything else, also grain and stars, is the same.

    Args:
        n: how many pairs.
        seed: of the scenes and of what is changed.
        change: one of `CHANGES`; None takes each in turn. All but background, style and relation are changed on the
            first thing; the relation by moving two things.
        objects: as in `sample`; a relation needs two.
        split: as in `sample`, for both scenes.
        choice: as in `sample`, for the scene before.

    Raises:
        UnbraidError: no such attribute, or as in `sample`.
    """
    if change is not None:
        among(change, "change", CHANGES)
    rng = np.random.default_rng([int(seed), 7])
    wanted = [change] if change else [c for c in CHANGES if c != "relation" or objects[0] > 1]
    made: list[Pair] = []
    for scene in _stream(seed, objects if change != "relation" else (2, 2), split, choice):
        if len(made) >= n:
            break
        kind = wanted[len(made) % len(wanted)]
        after = _changed(scene, kind, rng)
        if after is not None and (split == "all" or is_held_out(after) == (split == "held_out")):
            made.append(Pair(scene, after, kind, (caption(scene), caption(after))))
    return made


def twins(
    n: int, seed: int = 0, share: str = "style", objects: tuple[int, int] = (1, 1), split: str = "train"
) -> list[Pair]:
    """Scenes that agree in one respect and differ in the others.

    Args:
        n: how many pairs.
        seed: of the scenes.
        share: ``content`` (shape, colour and texture of every thing), ``style``, ``composition`` (size and place of
            every thing) or ``background``.
        objects: as in `sample`; both scenes have as many.
        split: as in `sample`.

    Raises:
        UnbraidError: nothing such can be shared, or as in `sample`.
    """
    among(share, "share", SHARES)
    made: list[Pair] = []
    before: dict[int, Scene] = {}
    for scene in _stream(seed, objects, split, None):
        if len(made) >= n:
            break
        count = len(scene.things)
        if count not in before:
            before[count] = scene
            continue
        after = _sharing(before[count], scene, share)
        if after is None or (split != "all" and is_held_out(after) != (split == "held_out")):
            continue
        one = before.pop(count)
        made.append(Pair(one, after, share, (caption(one), caption(after))))
    return made


def _stream(seed: int, objects: tuple[int, int], split: str, choice: Choice | None) -> Iterator[Scene]:
    for k in range(ROUNDS):
        yield from sample(64, 10_000 * int(seed) + k, objects, split, choice)
    raise UnbraidError("too few scenes can be changed as asked; allow more colours, shapes or backgrounds.")


def _other(rng: np.random.Generator, words: tuple[str, ...], now: str) -> str:
    left = [word for word in words if word != now]
    return left[int(rng.integers(len(left)))]


def _changed(scene: Scene, kind: str, rng: np.random.Generator) -> Scene | None:
    """A scene that differs in one attribute, or None where that cannot be."""
    made = _CHANGED[kind](scene, rng)
    if made is None or not all(made.background.takes(thing.colour) for thing in made.things):
        return None
    if kind in ("shape", "size", "place") and len(scene.things) > 1 and made.relation() != scene.relation():
        return None
    return made


def _first(scene: Scene, **changed: object) -> Scene:
    return replace(scene, things=(replace(scene.things[0], **changed), *scene.things[1:]))  # type: ignore[arg-type]


def _shape(scene: Scene, rng: np.random.Generator) -> Scene:
    return _first(scene, shape=_other(rng, SHAPES, scene.things[0].shape))


def _colour(scene: Scene, rng: np.random.Generator) -> Scene | None:
    used = {thing.colour for thing in scene.things}
    fit = tuple(c for c in COLOURS if c not in used and scene.background.takes(c))
    return _first(scene, colour=_other(rng, fit, "")) if fit else None


def _texture(scene: Scene, rng: np.random.Generator) -> Scene:
    return _first(scene, texture=_other(rng, TEXTURES, scene.things[0].texture))


def _size(scene: Scene, rng: np.random.Generator) -> Scene | None:
    first = scene.things[0]
    if len(scene.things) > 1 or first.size == "medium":
        return None
    made = _first(scene, size="small" if first.size == "large" else "large")
    return made if made.things[0].size == "small" or min(first.x, first.y, 1 - first.x, 1 - first.y) > 0.3 else None


def _place(scene: Scene, rng: np.random.Generator) -> Scene | None:
    first = scene.things[0]
    if len(scene.things) > 1:
        return None
    spot = _other(rng, tuple(SPOTS), first.spot)
    x, y = SPOTS[spot]
    return _first(scene, x=x, y=y)


def _ground(scene: Scene, rng: np.random.Generator) -> Scene:
    name = _other(rng, BACKGROUNDS, scene.background.name)
    if name in PLACES:
        return replace(scene, background=Background(place=name))
    before = scene.background
    fade = before.fade if name not in ("white", "grey", "black") else ""
    return replace(scene, background=Background(name, before.texture, fade))


def _style(scene: Scene, rng: np.random.Generator) -> Scene:
    return replace(scene, style=_other(rng, STYLES, scene.style))


def _relation(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """Both things change places, or the arrangement is turned by a quarter."""
    if len(scene.things) != 2 or scene.relation() not in ("left of", "right of", "above", "below"):
        return None
    one, other = scene.things
    if rng.random() < 0.5:
        return replace(scene, things=(replace(one, x=other.x, y=other.y), replace(other, x=one.x, y=one.y)))
    return replace(scene, things=(replace(one, x=one.y, y=one.x), replace(other, x=other.y, y=other.x)))


_CHANGED: dict[str, Callable[[Scene, np.random.Generator], Scene | None]] = {
    "shape": _shape,
    "colour": _colour,
    "texture": _texture,
    "size": _size,
    "place": _place,
    "background": _ground,
    "style": _style,
    "relation": _relation,
}


def _sharing(one: Scene, other: Scene, share: str) -> Scene | None:
    """The other scene with one respect of the first, if they then agree in nothing else."""
    both = list(zip(one.things, other.things, strict=True))
    if share == "content":
        made = replace(
            other,
            things=tuple(replace(b, shape=a.shape, colour=a.colour, texture=a.texture) for a, b in both),
        )
    elif share == "composition":
        made = replace(other, things=tuple(replace(b, size=a.size, x=a.x, y=a.y) for a, b in both))
    elif share == "style":
        made = replace(other, style=one.style)
    else:
        made = replace(other, background=one.background)
    both = list(zip(one.things, made.things, strict=True))
    same = {
        "content": any(a.shape == b.shape or a.colour == b.colour for a, b in both),
        "style": one.style == made.style,
        "composition": any((a.size, a.spot) == (b.size, b.spot) for a, b in both),
        "background": one.background.name == made.background.name,
    }
    clear = all(made.background.takes(thing.colour) for thing in made.things)
    return made if clear and [name for name, agree in same.items() if agree] == [share] else None


def prompts(kind: str = "single", n: int | None = None, seed: int = 0) -> list[str]:
    """Prompts to evaluate with; the same ones every time.

    Args:
        kind: ``single`` (each shape in each colour, on backgrounds in turn), ``two`` (two things and how they stand),
            ``style`` (each style with eight things), ``place`` (one thing in each place) or ``held_out`` (one thing
            with a combination that training never shows).
        n: so many of them, spread over the list; None gives all.
        seed: of which scenes ``two`` and ``held_out`` describe.

    Raises:
        UnbraidError: there is no such list.
    """
    among(kind, "kind of prompts", LISTS)
    made = list(dict.fromkeys(caption(scene) for scene in listed(kind, int(seed))))
    if n is None or n >= len(made):
        return made
    if n < 1:
        raise UnbraidError(f"n is {n}; ask for 1 prompt or more.")
    return [made[k] for k in np.linspace(0, len(made) - 1, n).round().astype(int)]


def listed(kind: str, seed: int) -> list[Scene]:
    """The scenes that `prompts(kind, seed=seed)` describes, some with the same caption."""
    simple = Choice(textures=("plain",), styles=("flat",), sizes=("medium",), ground_textures=("plain",), fades=False)
    if kind == "two":
        layouts = ("left of", "right of", "above", "below")
        return sample(64, 900 + seed, (2, 2), "train", replace(simple, layouts=layouts))
    if kind == "held_out":
        return sample(70, 900 + seed, (1, 1), "held_out", simple)
    made: list[Scene] = []
    for j, shape in enumerate(SHAPES):
        for k, colour in enumerate(COLOURS):
            here = [b for b in _backgrounds(kind) if b.takes(colour)]
            if kind == "single":
                made.append(_shown(shape, colour, here[(3 * j + k) % len(here)], "flat"))
            elif kind == "style" and k == j:
                made += [_shown(shape, colour, here[j % len(here)], style) for style in STYLES]
            elif kind == "place" and (k - j) % len(COLOURS) in (0, 3):
                made += [_shown(shape, colour, ground, "flat") for ground in here]
    return [s for s in made if kind != "single" or s.things[0].colour != HELD_COLOURS[s.things[0].shape]]


def _backgrounds(kind: str) -> list[Background]:
    if kind == "place":
        return [Background(place=place) for place in PLACES]
    return [Background(colour) for colour in BACKGROUNDS if colour not in PLACES]


def _shown(shape: str, colour: str, ground: Background, style: str) -> Scene:
    # not quite in the middle, so that its caption says no place
    return Scene((Thing(shape, colour, size="medium", x=0.5, y=0.42),), ground, style)
