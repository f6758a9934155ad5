"""Captions: sentences that are true of a scene, in a small grammar, and what a sentence of it asks for.

[a sketch of] a small striped green square to the left of a yellow star, on a blue background [, as a sketch]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.data.scenes.scene import COLOURS, GROUNDS, SHAPES, SIZES, STYLES, TEXTURES, Scene, Thing

ANYTHING = "thing"  # the noun that says no shape
RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "left of": ("to the left of", "left of"),
    "right of": ("to the right of", "right of"),
    "above": ("above",),
    "below": ("below",),
    "inside": ("inside",),
    "in front of": ("in front of",),
    "behind": ("behind",),
}
INVERSE = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "in front of": "behind",
    "behind": "in front of",
}
PLACE_WORDS: dict[str, tuple[str, ...]] = {
    "beach": ("at the beach",),
    "meadow": ("in a meadow", "on grass"),
    "night sky": ("in the night sky",),
    "brick wall": ("against a brick wall",),
    "snow": ("in the snow",),
}
SPOT_WORDS = {
    "top": "at the top",
    "bottom": "at the bottom",
    "left": "on the left",
    "right": "on the right",
    "middle": "in the middle",
}
STYLE_NAMES = {style: "a sketch" if style == "sketch" else f"a {style} picture" for style in STYLES} | {
    "outlined": "an outlined picture"
}
SPOKEN_SIZES = tuple(size for size in SIZES if size != "medium")
SELDOM = 1 / 3  # shape and colour are left out this much more seldom than the rest


def vocabulary() -> list[str]:
    """Every word that captions use, and the comma, in alphabetical order."""
    phrases = [
        *(phrase for words in (*RELATION_WORDS.values(), *PLACE_WORDS.values()) for phrase in words),
        *SPOT_WORDS.values(),
        *STYLE_NAMES.values(),
        *SHAPES,
        *COLOURS,
        *GROUNDS,
        *TEXTURES,
        *SPOKEN_SIZES,
        f"{ANYTHING} , a an picture of as on background fading to and with",
    ]
    return sorted({word for phrase in phrases for word in phrase.split()})


def caption(
    scene: Scene, seed: int | None = None, *, omit: float = 0.15, concepts: Sequence[str] = (), noun: bool = True
) -> str:
    """A sentence about a scene.

    Args:
        scene: what it is about.
        seed: of the choice of words and of what is left out; None says everything in the plainest way.
        omit: how often each attribute is left out (a shape or a colour a third as often); of no effect without a seed.
        concepts: words for the new subjects among the things, in order, as ``("<mug>",)``.
        noun: name the class of a new subject after its word, as in ``a <mug> circle``.

    Raises:
        UnbraidError: a new subject has no word, or ``omit`` is no share.

    Example:
        >>> caption(Scene((Thing("star", "yellow", size="small", x=0.2),), Background("blue"), "sketch"))
        'a sketch of a small yellow star on the left, on a blue background'
    """
    if not 0 <= omit <= 1:
        raise UnbraidError(f"omit is {omit!r}; it is a share from 0 to 1.")
    rng = None if seed is None else np.random.default_rng([seed, scene.seed])
    said = _Speaker(rng, omit)
    order = list(range(len(scene.things)))
    link = scene.relation(0, 1) if len(order) > 1 else ""
    turned = scene.relation(1, 0) if len(order) > 1 else ""
    if link == "" or (turned in INVERSE and said.chance(0.5)):
        order[:2], link = order[:2][::-1], turned
    words = _concepts(scene, concepts)
    named = [_noun_phrase(scene.things[k], said, words.get(k, ""), noun) for k in order]
    if not named:
        body = ""
    elif len(named) == 1:
        spot = scene.things[0].spot
        body = named[0] + (f" {_spot(spot)}" if spot and said.says() else "")
    elif link and said.says():
        body = f"{named[0]} {said.one_of(RELATION_WORDS[link])} {named[1]}" + (
            f", with {named[2]}" if len(named) > 2 else ""
        )
    else:
        body = ", ".join(named[:-1]) + f" and {named[-1]}"
    ground = _ground(scene, said) if said.says() else ""
    plain = len(named) == 1 and " on the " not in body and " at the " not in body and " in the " not in body
    text = body + (f"{' ' if plain else ', '}{ground}" if ground and body else ground)
    return _styled(text, scene.style, said)


def captions(scene: Scene, n: int = 3, seed: int = 0, *, omit: float = 0.15) -> list[str]:
    """Several different sentences about a scene, as many as can be found, at most n; the first says everything.

    Args:
        scene: what they are about.
        n: how many.
        seed: of the choice of words.
        omit: how often each attribute is left out.

    Raises:
        UnbraidError: the scene has a new subject (`caption` takes its word), or fewer than one is asked for.
    """
    if n < 1:
        raise UnbraidError(f"n is {n}; ask for 1 caption or more.")
    made = [caption(scene)]
    for k in range(4 * n):
        if len(made) >= n:
            break
        words = caption(scene, 1000 * seed + k, omit=omit)
        if words not in made:
            made.append(words)
    return made


class _Speaker:
    """Chooses words: with a generator at random, without it the first, and everything is said."""

    def __init__(self, rng: np.random.Generator | None, omit: float) -> None:
        self.rng, self.omit = rng, omit

    def says(self, seldom: float = 1.0) -> bool:
        return self.rng is None or bool(self.rng.random() >= self.omit * seldom)

    def chance(self, often: float) -> bool:
        return self.rng is not None and bool(self.rng.random() < often)

    def one_of(self, words: Sequence[str]) -> str:
        return words[0] if self.rng is None else words[int(self.rng.integers(len(words)))]


def _concepts(scene: Scene, concepts: Sequence[str]) -> dict[int, str]:
    new = [k for k, thing in enumerate(scene.things) if thing.new]
    if len(concepts) < len(new):
        raise UnbraidError(
            f"the scene has {len(new)} new subject(s), for which captions have no word; give concepts=('<mug>',)."
        )
    return dict(zip(new, concepts, strict=False))


def _noun_phrase(thing: Thing, said: _Speaker, concept: str, noun: bool) -> str:
    size = [thing.size] if thing.size in SPOKEN_SIZES and said.says() else []
    if thing.new:
        from unbraid.data.scenes.subjects import subject

        words = [*size, concept, *([subject(int(thing.shape.partition("-")[2])).noun] if noun else [])]
        return _with_article(words)
    texture = [thing.texture] if (thing.texture != "plain" or said.chance(0.15)) and said.says() else []
    colour = [thing.colour] if said.says(SELDOM) else []
    return _with_article([*size, *texture, *colour, thing.shape if said.says(SELDOM) else ANYTHING])


def _with_article(words: list[str]) -> str:
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"


def _spot(spot: str) -> str:
    # "at the top on the left": up and down first
    return " ".join(SPOT_WORDS[word] for word in sorted(spot.split(), key=list(SPOT_WORDS).index))


def _ground(scene: Scene, said: _Speaker) -> str:
    ground = scene.background
    if ground.place:
        return said.one_of(PLACE_WORDS[ground.place])
    words = [ground.colour, "background"]
    if (ground.texture != "plain" or said.chance(0.15)) and said.says():
        words = [ground.texture, *words] if ground.texture != "plain" or not ground.fade else words
    return "on " + _with_article(words) + (f" fading to {ground.fade}" if ground.fade and said.says() else "")


def _styled(text: str, style: str, said: _Speaker) -> str:
    if style == "flat" and not said.chance(0.25):
        return f"a picture of {text}" if said.chance(0.15) else text
    if not said.says():
        return text
    if said.chance(0.5):
        return f"{text}, as {STYLE_NAMES[style]}"
    return f"{STYLE_NAMES[style]} of {text}"


def words_of(scene: Scene) -> dict[str, Any]:
    """Every attribute of a scene in words, one entry each, for tables: ``shape 1``, ``colour 1``, ... ``style``."""
    made: dict[str, Any] = {}
    for k, thing in enumerate(scene.things, 1):
        made |= {f"shape {k}": thing.shape, f"colour {k}": thing.colour, f"texture {k}": thing.texture}
        made |= {f"size {k}": thing.size, f"place {k}": thing.spot}
    if len(scene.things) > 1:
        made["relation"] = scene.relation(0, 1)
    ground = scene.background
    made |= {"background": ground.name, "background texture": ground.texture, "fade": ground.fade}
    return made | {"style": scene.style}
