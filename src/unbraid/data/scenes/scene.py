"""What a scene is: things with a shape, colour, texture, size and place, a background, and the style it is drawn in.

Lengths are parts of the image's side, y grows downwards. Later things stand in front of earlier ones.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any

from unbraid.core.errors import UnbraidError

Rgb = tuple[float, float, float]

PALETTE: dict[str, Rgb] = {
    "red": (0.85, 0.10, 0.12),
    "orange": (1.00, 0.55, 0.05),
    "yellow": (0.98, 0.88, 0.15),
    "green": (0.12, 0.62, 0.22),
    "blue": (0.10, 0.35, 0.88),
    "purple": (0.52, 0.16, 0.66),
    "pink": (1.00, 0.58, 0.78),
    "white": (0.97, 0.97, 0.97),
    "grey": (0.55, 0.55, 0.57),
    "black": (0.08, 0.08, 0.09),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "moon")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
TEXTURES = ("plain", "striped", "dotted", "checkered")
SIZES = {"small": 0.15, "medium": 0.2, "large": 0.28}  # radius
GROUNDS = ("white", "grey", "black", "red", "yellow", "green", "blue", "purple")
FADES = ("", "white", "black")
PLACES = ("beach", "meadow", "night sky", "brick wall", "snow")
STYLES = ("flat", "outlined", "sketch", "hatched", "noisy")
RELATIONS = ("left of", "right of", "above", "below", "inside", "in front of", "behind")
# colours that would get lost: samples have no thing of that colour there
LOST = {
    "beach": ("yellow", "blue"),
    "meadow": ("green", "blue"),
    "night sky": ("purple",),
    "brick wall": ("red", "orange"),
    "snow": ("white",),
    "blue": ("purple",),
    "purple": ("blue",),
}
SLOPE = 1.5  # how much longer one distance must be than the other for "left of" or "above"
APART = 0.95  # of the sum of both radii: nearer things overlap
SIDE, MIDDLE = 0.39, 0.07  # things this far from an edge are "on the left", this near to 0.5 "in the middle"
_SUBJECT = re.compile(r"subject-\d+\Z")


def among(value: str, name: str, known: tuple[str, ...]) -> str:
    """The value, if it is one of the known ones.

    Raises:
        UnbraidError: it is not.
    """
    if value not in known:
        raise UnbraidError(f"{name} is {value!r}; it must be one of {', '.join(word or 'nothing' for word in known)}.")
    return value


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    Args:
        shape: one of `SHAPES`, or ``subject-7`` for the new subject 7, whose colours and texture are its own.
        colour: one of `COLOURS`.
        texture: one of `TEXTURES`.
        size: one of `SIZES`.
        x: of its middle, from 0 (left) to 1.
        y: of its middle, from 0 (top) to 1.
        turn: degrees clockwise; things of samples stand upright.
    """

    shape: str = "circle"
    colour: str = "red"
    texture: str = "plain"
    size: str = "medium"
    x: float = 0.5
    y: float = 0.5
    turn: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        if not _SUBJECT.match(str(self.shape)):
            among(self.shape, "shape", SHAPES)
        among(self.colour, "colour", COLOURS)
        among(self.texture, "texture", TEXTURES)
        among(self.size, "size", tuple(SIZES))
        for name, value, most in (("x", self.x, 1.0), ("y", self.y, 1.0), ("turn", self.turn, 360.0)):
            if not -360 <= value <= most or (most == 1.0 and value < 0):
                raise UnbraidError(f"{name} of a thing is {value!r}; places go from 0 to 1, turns from -360 to 360.")

    @property
    def radius(self) -> float:
        """Half of its width, about."""
        return SIZES[self.size]

    @property
    def new(self) -> bool:
        """Whether it is a new subject."""
        return self.shape not in SHAPES

    @property
    def spot(self) -> str:
        """Where it is: ``left``, ``right``, ``top``, ``bottom``, two of them with a blank, ``middle``, or nothing."""
        words = [
            name
            for name, at in (("left", self.x), ("right", 1 - self.x), ("top", self.y), ("bottom", 1 - self.y))
            if at < SIDE
        ]
        if not words and max(abs(self.x - 0.5), abs(self.y - 0.5)) <= MIDDLE:
            return "middle"
        return " ".join(words)


@dataclass(frozen=True)
class Background:
    """What things stand on: a colour, which may have a texture or fade downwards, or a place.

    Args:
        colour: one of `GROUNDS`; of no effect at a place.
        texture: one of `TEXTURES`.
        fade: the colour at the bottom: ``white``, ``black`` or nothing.
        place: one of `PLACES`, or nothing.
    """

    colour: str = "white"
    texture: str = "plain"
    fade: str = ""
    place: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        among(self.colour, "colour of a background", GROUNDS)
        among(self.texture, "texture of a background", TEXTURES)
        among(self.fade, "fade", FADES)
        among(self.place, "place", ("", *PLACES))
        if self.fade and self.colour in ("white", "grey", "black"):
            raise UnbraidError(f"a {self.colour} background cannot fade; give a colour such as blue.")
        if self.place and (self.fade or self.texture != "plain"):
            raise UnbraidError(f"the background is the place {self.place!r}, which has no texture and no fade.")

    @property
    def name(self) -> str:
        """The place, or the colour."""
        return self.place or self.colour

    @property
    def dark(self) -> bool:
        """Whether ink cannot be seen on it."""
        return self.name in ("black", "night sky")

    def takes(self, colour: str) -> bool:
        """Whether a thing of this colour can be told from it."""
        own = () if self.place else (self.colour, self.fade)
        return colour not in (*own, *LOST.get(self.name, ()))


@dataclass(frozen=True)
class Scene:
    """A picture to be drawn.

    Args:
        things: what is in it, the backmost first.
        background: what they stand on.
        style: one of `STYLES`.
        seed: of all that has no word: slight shifts of colour, the grain of noise, the waver of a sketch, stars.
    """

    things: tuple[Thing, ...]
    background: Background = Background()
    style: str = "flat"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        among(self.style, "style", STYLES)
        if not isinstance(self.things, tuple) or not all(isinstance(t, Thing) for t in self.things):
            raise UnbraidError(f"things of a scene are a tuple of Thing, not {type(self.things).__name__}.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise UnbraidError(f"the seed of a scene is {self.seed!r}; it must be a whole number from 0.")

    def relation(self, i: int = 0, j: int = 1) -> str:
        """How thing ``i`` stands to thing ``j``: one of `RELATIONS`, or nothing where no word is clearly true."""
        return relation(self.things[i], self.things[j], i > j)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON; `from_dict` reads it."""
        return asdict(self)

    @staticmethod
    def from_dict(given: dict[str, Any]) -> Scene:
        """The scene that `to_dict` wrote.

        Raises:
            UnbraidError: it is none.
        """
        try:
            things = tuple(Thing(**thing) for thing in given["things"])
            return Scene(things, Background(**given["background"]), given["style"], given["seed"])
        except (KeyError, TypeError) as error:
            raise UnbraidError(f"this is not a scene as `to_dict` writes it ({error}).") from None


def relation(one: Thing, other: Thing, in_front: bool) -> str:
    """How one thing stands to another: one of `RELATIONS`, or nothing where no word is clearly true.

    Args:
        one: the thing that the word is about.
        other: what it is compared with.
        in_front: whether ``one`` is drawn later.
    """
    dx, dy = one.x - other.x, one.y - other.y
    far = math.hypot(dx, dy)
    if far < APART * (one.radius + other.radius):
        if in_front and far + one.radius <= 0.95 * other.radius:
            return "inside"
        return "in front of" if in_front else ("" if far + other.radius <= 0.95 * one.radius else "behind")
    if abs(dx) >= SLOPE * abs(dy):
        return "left of" if dx < 0 else "right of"
    if abs(dy) >= SLOPE * abs(dx):
        return "above" if dy < 0 else "below"
    return ""
