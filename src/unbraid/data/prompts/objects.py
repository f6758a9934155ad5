"""Coloured Objects: three coloured things, what colour is one of them (arXiv 2310.08744, after BIG-bench)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.data.prompts.pairs import PromptPair, PromptSet
from unbraid.data.prompts.tokens import Encoder, Piece, Slots, check_count, need, pair

COLOURS = ("red", "yellow", "green", "blue", "black", "white", "brown", "purple")
OBJECTS = (
    "pen", "pencil", "cup", "plate", "ball", "book", "ring", "box", "bag", "lamp", "clock", "key", "knife", "bowl",
    "hat", "bottle", "mug",
)  # fmt: skip
SURFACES = ("table", "desk", "floor")
VIEWS = ("there is", "you see", "I see")


def coloured_objects(
    tokenizer: Any,
    count: int = 100,
    seed: int = 0,
    shots: int = 1,
    colours: Sequence[str] = COLOURS,
    objects: Sequence[str] = OBJECTS,
) -> PromptSet:
    """Prompts that end in "Q: On the desk, I see a red pen, a blue cup, and a black key. What color is the cup?\\nA:".

    The twin asks for another thing of the same scene. Places: "colour" (of the thing asked for), "wrong" (the two other
    colours), "twin colour", "object", "question" (the thing in the question), "end".

    Args:
        tokenizer: a fast tokenizer.
        count: how many prompts.
        seed: of everything drawn; the same seed gives the same prompts.
        shots: solved examples of the same form before each prompt; the paper has one.
        colours: those that are not single tokens after a space, small and with a capital, are left out.
        objects: those that are not single tokens after a space are left out.

    Raises:
        UnbraidError: too few colours or objects are single tokens.
    """
    check_count(count, shots)
    encoder = Encoder(tokenizer)
    capital = set(encoder.whole_words([c.capitalize() for c in colours]))
    good = [c for c in encoder.whole_words(colours) if c.capitalize() in capital]
    things = encoder.whole_words(objects)
    need(good, 3, "colours", len(colours))
    need(things, 3, "objects", len(objects))
    rng = np.random.default_rng([seed, 2])
    found: list[PromptPair] = []
    for _ in range(20 * count):
        made = _make(encoder, rng, good, things, shots)
        if made is not None:
            found.append(made)
        if len(found) == count:
            return PromptSet("coloured_objects", tuple(found), {"shots": shots, "seed": seed})
    raise UnbraidError(
        "This tokenizer melts colours into the colon before them, so no prompt has a token as its answer."
    )


def _make(
    encoder: Encoder, rng: np.random.Generator, colours: list[str], things: list[str], shots: int
) -> PromptPair | None:
    before = ""
    for _ in range(shots):
        scene, asked, _ = _scene(rng, colours, things)
        before += Slots(_pieces(scene, asked)).text + f" {scene[2][asked].capitalize()}\n\n"
    scene, asked, other = _scene(rng, colours, things)
    clean, corrupt = (Slots([before, *_pieces(scene, which)]) for which in (asked, other))
    words = [f" {c.capitalize()}" for c in scene[2]]
    made = pair(encoder, clean, corrupt, [words[asked]], [words[other]], words, source=("question",))
    if made is None:
        return None
    places = made.places
    every = [places.pop(f"colour {i}") for i in range(3)]
    objects = [places.pop(f"object {i}") for i in range(3)]
    places |= {
        "colour": every[asked], "twin colour": every[other], "object": objects[asked],
        "wrong": tuple(p for i, at in enumerate(every) if i != asked for p in at),
    }  # fmt: skip
    return made


Scene = tuple[str, str, list[str], list[str]]  # surface, view, colours, things


def _scene(rng: np.random.Generator, colours: list[str], things: list[str]) -> tuple[Scene, int, int]:
    """A scene, and the numbers of two of its things."""
    what = [str(x) for x in rng.choice(colours, 3, replace=False)]
    which = [str(x) for x in rng.choice(things, 3, replace=False)]
    asked, other = (int(i) for i in rng.choice(3, 2, replace=False))
    return (str(rng.choice(SURFACES)), str(rng.choice(VIEWS)), what, which), asked, other


def _pieces(scene: Scene, asked: int) -> list[Piece]:
    surface, view, colours, things = scene
    out: list[Piece] = [f"Q: On the {surface}, {view}"]
    for i, (colour, thing) in enumerate(zip(colours, things, strict=True)):
        joint = (" a", " a", " and a")[i]
        out += [joint, (f" {colour}", f"colour {i}"), (f" {thing}", f"object {i}"), "," if i < 2 else "."]
    return [*out, " What color is the", (f" {things[asked]}", "question"), "?\nA:"]
