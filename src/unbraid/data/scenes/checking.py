"""How well the oracle reads: each attribute against the truth, for scenes of which everything is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from unbraid.data.scenes.reading import Reading
from unbraid.data.scenes.scene import Scene

THINGS = ("shape", "colour", "texture", "size", "place")
WHOLES = ("background", "background texture", "fade", "style")
ATTRIBUTES = ("count", *THINGS, "relation", *WHOLES)
NEAR = 0.06  # of the side: how far a place may be off


@dataclass
class Tally:
    """How often each attribute was right."""

    right: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ATTRIBUTES, 0))
    asked: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ATTRIBUTES, 0))

    def add(self, name: str, right: bool) -> None:
        """Count one answer."""
        self.right[name] += bool(right)
        self.asked[name] += 1

    def shares(self) -> dict[str, float]:
        """Attribute -> share of right answers; attributes that were never asked for are left out."""
        return {name: self.right[name] / n for name, n in self.asked.items() if n}


def accuracy(reading: Reading, truth: Sequence[Scene]) -> dict[str, float]:
    """Share of right answers for each attribute.

    A thing is looked up at its true place: the thing read within 0.5 of a radius of it; a thing that is not found is
    wrong in all attributes. ``place`` asks for less than 0.06 of the side. ``relation`` is asked of the first two
    things where a word is true, ``fade`` and texture of backgrounds with a colour.

    Args:
        reading: what the oracle said.
        truth: the scenes that were drawn.
    """
    tally = Tally()
    for read, scene in zip(reading.scenes, truth, strict=True):
        tally.add("count", len(read.things) == len(scene.things))
        found = paired(read, scene)
        for k, thing in enumerate(scene.things):
            at = found[k]
            seen = None if at is None else read.things[at]
            for name in THINGS[:-1]:
                tally.add(name, seen is not None and vars(seen)[name] == vars(thing)[name])
            near = seen is not None and float(np.hypot(seen.x - thing.x, seen.y - thing.y)) < NEAR
            tally.add("place", near)
        words = [(i, j) for i, j in ((0, 1), (1, 0)) if len(scene.things) > 1 and scene.relation(i, j)]
        for i, j in words[:1]:
            a, b = found[i], found[j]
            tally.add("relation", a is not None and b is not None and read.relation(a, b) == scene.relation(i, j))
        tally.add("background", read.background.name == scene.background.name)
        tally.add("style", read.style == scene.style)
        if not scene.background.place:
            tally.add("background texture", read.background.texture == scene.background.texture)
            tally.add("fade", read.background.fade == scene.background.fade)
    return tally.shares()


def paired(read: Scene, truth: Scene) -> list[int | None]:
    """For each true thing the number of the one read there, each one once; of several the most alike."""
    made: list[int | None] = [None] * len(truth.things)
    options = []
    for k, thing in enumerate(truth.things):
        for j, seen in enumerate(read.things):
            far = float(np.hypot(seen.x - thing.x, seen.y - thing.y)) / thing.radius
            if far < 0.5:
                unlike = sum(vars(seen)[name] != vars(thing)[name] for name in ("shape", "colour", "size"))
                options.append((far + unlike, k, j))
    for _, k, j in sorted(options):
        if made[k] is None and j not in made:
            made[k] = j
    return made
