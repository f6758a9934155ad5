"""New subjects: things of two colours with spots, ears and a notch without a word in captions, one for each seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.data.scenes import shapes
from unbraid.data.scenes.scene import PALETTE

NOUNS = ("circle", "square", "triangle", "heart")
# pairs that no single colour word fits, far from each other
COATS = (
    ("yellow", "purple"),
    ("pink", "red"),
    ("orange", "blue"),
    ("pink", "green"),
    ("green", "orange"),
    ("yellow", "red"),
    ("blue", "red"),
    ("blue", "yellow"),
    ("pink", "blue"),
    ("orange", "purple"),
)


@dataclass(frozen=True, eq=False)
class Subject:
    """A new thing: the outline of a known shape with ears and notches, in two colours, with spots.

    Args:
        seed: which one.
        noun: the class it belongs to: the shape that its outline comes from.
        colours: of its upper and of its lower part; spots have the other one's.
        bumps: [m, 4] ears (1) and notches (-1) at its edge: x, y, radius, sign, in radii.
        spots: [m, 3] x, y and radius.
        slant: of the line between both colours, in radians.
    """

    seed: int
    noun: str
    colours: tuple[str, str]
    bumps: np.ndarray
    spots: np.ndarray
    slant: float

    @property
    def name(self) -> str:
        """What stands for it as the shape of a `Thing`."""
        return f"subject-{self.seed}"

    def field(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Depth at points in radii, negative outside."""
        u, v = u * 1.1, v * 1.1
        depth = shapes.FIELDS[self.noun](u, v)
        for x, y, r, sign in self.bumps.tolist():
            ball = shapes.disc(u, v, x, y, r)
            depth = np.maximum(depth, ball) if sign > 0 else np.minimum(depth, -ball)
        return np.asarray(depth / 1.1, u.dtype)

    def coat(self, u: np.ndarray, v: np.ndarray, pixel: float) -> np.ndarray:
        """[3, ...] colours at points in radii, with soft edges of a pixel."""
        first, second = (np.array(PALETTE[c], np.float32)[:, None, None] for c in self.colours)
        side = u * np.float32(np.sin(self.slant)) + v * np.float32(np.cos(self.slant))
        lower = np.clip(side / pixel + 0.5, 0, 1)
        spot = np.zeros_like(lower)
        for x, y, r in self.spots.tolist():
            spot = np.maximum(spot, np.clip(shapes.disc(u, v, x, y, r) / pixel + 0.5, 0, 1))
        lower = lower + spot - 2 * lower * spot
        return np.asarray(first + lower * (second - first), np.float32)


@lru_cache(maxsize=256)
def subject(seed: int) -> Subject:
    """A new subject by its number; neighbours differ in class and colours.

    Raises:
        UnbraidError: the number is none from 0.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise UnbraidError(f"seed of a subject is {seed!r}; it must be a whole number from 0.")
    rng = np.random.default_rng([int(seed), 77])
    noun, coat = NOUNS[seed % len(NOUNS)], COATS[3 * seed % len(COATS)]
    bumps = []
    turn, way = rng.uniform(0, 2 * np.pi), 1 if rng.random() < 0.5 else -1
    for k, sign in enumerate((1, 1, -1)):
        angle = turn + way * (k * 2.0 + rng.uniform(-0.25, 0.25))
        at = _edge(noun, angle)
        bumps.append([at * np.cos(angle), at * np.sin(angle), rng.uniform(0.32, 0.40), sign])
    slant = float(rng.uniform(-0.7, 0.7)) + (np.pi / 2 if rng.random() < 0.5 else 0.0)
    # a spot on either side of the line between the colours
    spots = []
    for sign in (1, -1):
        away, along = 0.42 * sign, rng.uniform(-0.25, 0.25)
        spots.append([away * np.sin(slant) + along * np.cos(slant), away * np.cos(slant) - along * np.sin(slant), 0.26])
    return Subject(int(seed), noun, coat, np.array(bumps), np.array(spots), slant)


def _edge(noun: str, angle: float) -> float:
    """How far the outline of a shape lies from its middle."""
    at = np.linspace(0, 1.4, 141)
    depth = shapes.FIELDS[noun](at * np.cos(angle), at * np.sin(angle))
    return float(at[depth > 0].max())
