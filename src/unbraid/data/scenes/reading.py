"""The oracle: shape, colour, texture, size and place of every thing, background and style, read off any image.

First the image as a whole (background, style) is read by a small network on distances to every background, spectrum and
a coarse copy. With that known, a second one gives each pixel to the background or to a colour; the outlines of all
shapes and sizes are laid over every place of every colour found (by a transform), and where one fits, a third network
looks at the cut-out and decides. All run in numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.data.scenes import features
from unbraid.data.scenes.damage import resized
from unbraid.data.scenes.features import SIDE, TEMPLATES
from unbraid.data.scenes.nets import nets, softmax
from unbraid.data.scenes.sampling import BACKGROUNDS
from unbraid.data.scenes.scene import COLOURS, FADES, SHAPES, SIZES, STYLES, TEXTURES, Background, Scene, Thing

BATCH = 32
LEAST = 24.0  # pixels that must speak for a thing
OTHERS = 0.35
SHARE, AGAIN = 0.22, 0.60  # of an outline that must be filled; for a second thing of the same colour
SURE = 0.5


@dataclass(frozen=True)
class Found:
    """A place where a thing may be.

    Args:
        colour: number of it in `COLOURS`.
        template: number of shape and size in `features.TEMPLATES`.
        x: of the middle, from 0 to 1.
        y: of the middle.
        score: pixels that speak for it.
    """

    colour: int
    template: int
    x: float
    y: float
    score: float

    @property
    def radius(self) -> float:
        """Of its size."""
        return SIZES[TEMPLATES[self.template][1]]


@dataclass(frozen=True)
class Reading:
    """What the oracle read off images.

    Attributes:
        scenes: one for each image; where everything is right, it equals the true one but for seed and exact place.
        confidence: [n] the least probability among the background's, the style's and those of all attributes of things.
        things: for each image the least probability among the attributes of each thing, in the order of the scene's.
    """

    scenes: list[Scene]
    confidence: np.ndarray
    things: list[list[float]]


def read(images: np.ndarray) -> Reading:
    """Read scenes off images.

    Args:
        images: [n, 3, H, W] or [3, H, W] from 0 to 1, square, 16 pixels or more; larger and smaller ones than 64 are
            resized first.

    Raises:
        UnbraidError: they are not images as described, or hold numbers that are not finite.

    Example:
        >>> read(render(Scene((Thing("star", "yellow"),), Background("blue")))).scenes[0].things[0].shape
        'star'
    """
    given = checked(images)
    scenes: list[Scene] = []
    things: list[list[float]] = []
    confidence: list[float] = []
    for start in range(0, len(given), BATCH):
        for scene, sure, parts in _read(given[start : start + BATCH]):
            scenes.append(scene)
            confidence.append(sure)
            things.append(parts)
    return Reading(scenes, np.array(confidence), things)


def checked(images: np.ndarray) -> np.ndarray:
    """[n, 3, 64, 64] float32 of given images.

    Raises:
        UnbraidError: they are not images.
    """
    given = np.asarray(images)
    given = given[None] if given.ndim == 3 else given
    if given.ndim != 4 or given.shape[1] != 3 or given.shape[2] != given.shape[3] or given.shape[2] < 16:
        raise UnbraidError(
            f"images have the shape {np.shape(images)}; give [n, 3, H, W], square and of 16 pixels or more."
        )
    if not len(given):
        raise UnbraidError("there is no image to read.")
    if given.dtype == np.uint8:
        given = given.astype(np.float32) / 255
    given = given.astype(np.float32)
    if not np.isfinite(given).all():
        raise UnbraidError("the images hold numbers that are not finite; look at what made them.")
    if given.min() < -0.01 or given.max() > 1.01:
        raise UnbraidError(
            f"the images run from {given.min():.2f} to {given.max():.2f}; give them from 0 to 1, or as uint8."
        )
    return resized(given, SIDE) if given.shape[2] != SIDE else given


def wholes(images: np.ndarray) -> dict[str, np.ndarray]:
    """Probabilities of background, its texture and fade, and style for [n, 3, 64, 64] images."""
    return {name: softmax(logits) for name, logits in nets()["whole"](features.whole(images)).items()}


def pixels(images: np.ndarray, answers: dict[str, np.ndarray]) -> np.ndarray:
    """[n, 9, 64, 64] probability that a pixel is background (the first) or belongs to a thing of each colour."""
    net = nets()["pixel"]
    weight, bias = net.layers[0]
    local = features.patches(images)
    ground = features.expected(answers)
    known = features.conditions(answers)
    a, b = local.shape[3], local.shape[3] + 3
    x = local @ weight[:, :a].T
    x += ground @ weight[:, a:b].T
    x += (known @ weight[:, b:].T + bias)[:, None, None]
    np.maximum(x, 0, out=x)
    for weight, bias in net.layers[1:]:
        x = np.maximum(x @ weight.T + bias, 0)
    weight, bias = net.heads["owner"]
    return np.ascontiguousarray(softmax(x @ weight.T + bias).transpose(0, 3, 1, 2))


def proposals(owner: np.ndarray) -> list[Found]:
    """Where things may be, from [9, 64, 64] probabilities of pixels; the best first."""
    outlines, waves = features.templates()
    areas = outlines.sum(axis=(1, 2))
    made: list[Found] = []
    for colour in range(len(COLOURS)):
        mine = owner[colour + 1]
        if mine.sum() < LEAST:
            continue
        # what belongs to another thing speaks a little against this one, which may stand in front or behind
        speaks = (1 + OTHERS) * mine - (1 - OTHERS) * owner[0] - OTHERS
        for attempt in range(2):
            scores = np.fft.irfft2(np.fft.rfft2(speaks)[None] * waves, s=(SIDE, SIDE)).reshape(len(areas), -1)
            scores = np.where(_inside(), scores, -np.inf)
            at = int(scores.argmax())
            kind, place = divmod(at, SIDE * SIDE)
            row, col = divmod(place, SIDE)
            score = float(scores[kind, place])
            if score < max(LEAST, (AGAIN if attempt else SHARE) * float(areas[kind])):
                break
            made.append(Found(colour, kind, col / SIDE, row / SIDE, score))
            covered = np.roll(outlines[kind], (row - SIDE // 2, col - SIDE // 2), axis=(0, 1))
            speaks = np.where(covered > 0.05, np.minimum(speaks, -0.2), speaks)
            if np.maximum(speaks, 0).sum() < LEAST:
                break
    return sorted(made, key=lambda found: -found.score)


_INSIDE: list[np.ndarray] = []


def _inside() -> np.ndarray:
    """[24, 4096] where the middle of each outline may lie."""
    if not _INSIDE:
        at = np.arange(SIDE) / SIDE
        rows = []
        for _, size in TEMPLATES:
            fit = (at >= 0.85 * SIZES[size]) & (at <= 1 - 0.85 * SIZES[size])
            rows.append((fit[:, None] & fit[None, :]).reshape(-1))
        _INSIDE.append(np.stack(rows))
    return _INSIDE[0]


def cutout(image: np.ndarray, owner: np.ndarray, found: Found, known: np.ndarray) -> np.ndarray:
    """[f] what the third network sees of a thing."""
    layers = np.concatenate([owner[found.colour + 1][None], owner[:1], image])
    parts = [features.crop(layers, found.x, found.y, found.radius).reshape(-1)]
    parts += [
        np.eye(len(TEMPLATES), dtype=np.float32)[found.template],
        np.eye(len(COLOURS), dtype=np.float32)[found.colour],
    ]
    return np.concatenate([*parts, known]).astype(np.float32)


def _read(images: np.ndarray) -> Iterator[tuple[Scene, float, list[float]]]:
    answers = wholes(images)
    owners = pixels(images, answers)
    known = features.conditions(answers)
    found = [proposals(owner) for owner in owners]
    rows = [cutout(images[k], owners[k], place, known[k]) for k, places in enumerate(found) for place in places]
    told = {name: softmax(x) for name, x in nets()["thing"](np.stack(rows)).items()} if rows else {}
    start = 0
    for k, places in enumerate(found):
        mine = {name: x[start : start + len(places)] for name, x in told.items()}
        start += len(places)
        yield _settled({name: x[k] for name, x in answers.items()}, places, mine)


def _settled(
    answers: dict[str, np.ndarray], places: Sequence[Found], told: dict[str, np.ndarray]
) -> tuple[Scene, float, list[float]]:
    """The scene that an image's answers amount to, its confidence, and that of each thing."""
    real = [k for k in range(len(places)) if told["real"][k, 1] > SURE]
    real.sort(key=lambda k: -told["covered"][k, 1])  # what is behind others comes first
    style = np.mean([told["style"][k] for k in real], axis=0) if real else answers["style"]
    ground, sure = _ground(answers)
    parts = []
    things = []
    for k in real:
        words = {name: told[name][k] for name in ("shape", "colour", "texture", "size")}
        shape, colour, texture, size = (int(x.argmax()) for x in words.values())
        things.append(
            Thing(SHAPES[shape], COLOURS[colour], TEXTURES[texture], list(SIZES)[size], places[k].x, places[k].y)
        )
        parts.append(float(min(x.max() for x in words.values())))
    scene = Scene(tuple(things), ground, STYLES[int(style.argmax())])
    return scene, min([sure, float(style.max()), *parts]), parts


def _ground(answers: dict[str, np.ndarray]) -> tuple[Background, float]:
    name = BACKGROUNDS[int(answers["background"].argmax())]
    sure = float(answers["background"].max())
    if name not in ("white", "grey", "black") and name in COLOURS:
        fade, texture = FADES[int(answers["fade"].argmax())], TEXTURES[int(answers["texture"].argmax())]
        sure = min(sure, float(answers["texture"].max()), float(answers["fade"].max()))
        return Background(name, texture, fade), sure
    if name in ("white", "grey", "black"):
        return Background(name, TEXTURES[int(answers["texture"].argmax())]), min(sure, float(answers["texture"].max()))
    return Background(place=name), sure
