"""Whether a new subject is in an image: its own picture, in several sizes and turns, laid over every place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from unbraid.data.scenes.grounds import axes
from unbraid.data.scenes.reading import checked
from unbraid.data.scenes.scene import SIZES, Thing
from unbraid.data.scenes.subjects import Subject, subject

SIDE = 64
TURNS = (-16.0, -8.0, 0.0, 8.0, 16.0)
FAR = 0.10  # mean squared difference of a picture that has nothing of the subject
RIM = 0.45  # of a radius: how far round the outline its colours must end
ALIKE = 0.02  # squared difference per channel below which a pixel still has the subject's colour


@dataclass(frozen=True)
class Located:
    """Where a subject was found best.

    Attributes:
        score: [n] from 0 (nothing like it) to 1 (its very picture).
        things: for each image the subject as a thing there.
        difference: [n] mean squared difference of its pixels to its own picture.
        spill: [n] share of the pixels just outside its outline that still have its colour.
    """

    score: np.ndarray
    things: list[Thing]
    difference: np.ndarray
    spill: np.ndarray


def identity(images: np.ndarray, subject: int | Subject) -> np.ndarray:
    """How much of a new subject is in images, wherever it stands.

    Args:
        images: [n, 3, H, W] from 0 to 1, as `read` takes them.
        subject: its number, or the subject.

    Returns:
        [n] from 0 to 1: 1 - difference / 0.1 of the pixels within its outline where it fits best, down to 0, times the
        share of pixels just outside that do not continue it (they would where notches are filled). Of photos
        of a subject 99 in 100 reach 0.73, of other subjects 7 in 1,000 reach 0.5 (see ``docs/scenes.md``).

    Raises:
        UnbraidError: they are no images.
    """
    return locate(images, subject).score


def locate(images: np.ndarray, subject: int | Subject) -> Located:
    """As `identity`, and where.

    Args:
        images: [n, 3, H, W] from 0 to 1.
        subject: its number, or the subject.

    Raises:
        UnbraidError: they are no images.
    """
    given = checked(images)
    number = subject if isinstance(subject, int | np.integer) else subject.seed
    poses, covers, coats = _pictures(int(number))
    scores, differences, spills, things = [], [], [], []
    for image in given:
        pose, x, y, _ = _best(image, poses)
        thing = Thing(f"subject-{number}", size=_nearest(covers[pose]), x=x, y=y, turn=coats[pose])
        difference, spill = _compared(image, thing, covers[pose])
        scores.append(max(0.0, 1 - difference / FAR) * (1 - spill))
        differences.append(difference)
        spills.append(spill)
        things.append(thing)
    return Located(np.array(scores), things, np.array(differences), np.array(spills))


def _nearest(radius: float) -> str:
    return min(SIZES, key=lambda size: abs(SIZES[size] - radius))


@lru_cache(maxsize=16)
def _pictures(number: int) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], list[float], list[float]]:
    """Transforms of the subject's cover and picture in every pose, the squares' sums; radii; turns."""
    made = subject(number)
    radii = sorted({*SIZES.values(), *(0.5 * (a + b) for a, b in zip((0.15, 0.2), (0.2, 0.28), strict=True))})
    cover_waves, coat_waves, squares, sizes, turns = [], [], [], [], []
    for radius in radii:
        for turn in TURNS:
            cover, coat = drawn(made, 0.5, 0.5, radius, turn)
            cover = np.where(cover > 0.5, cover, 0) / max(float(cover[cover > 0.5].sum()), 1.0)
            cover_waves.append(np.conj(np.fft.rfft2(np.fft.ifftshift(cover))))
            coat_waves.append(np.conj(np.fft.rfft2(np.fft.ifftshift(cover * coat, axes=(1, 2)))))
            squares.append(float((cover * np.square(coat)).sum()))
            sizes.append(radius)
            turns.append(turn)
    waves = (np.stack(cover_waves).astype(np.complex64), np.stack(coat_waves).astype(np.complex64), np.array(squares))
    return waves, sizes, turns


def drawn(made: Subject, x: float, y: float, radius: float, turn: float) -> tuple[np.ndarray, np.ndarray]:
    """[64, 64] cover and [3, 64, 64] colours of a subject, as if it filled the image."""
    u, v = _local(x, y, radius, turn)
    depth = made.field(u, v) * np.float32(radius * SIDE)
    return np.clip(depth + 0.5, 0, 1), made.coat(u, v, 1 / (radius * SIDE))


def _local(x: float, y: float, radius: float, turn: float) -> tuple[np.ndarray, np.ndarray]:
    px, py = axes(SIDE)
    u, v = np.broadcast_arrays((px - np.float32(x)) / np.float32(radius), (py - np.float32(y)) / np.float32(radius))
    cos, sin = np.float32(np.cos(np.deg2rad(turn))), np.float32(np.sin(np.deg2rad(turn)))
    return u * cos + v * sin, v * cos - u * sin


def _best(image: np.ndarray, poses: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[int, float, float, float]:
    """Pose and place with the least mean squared difference."""
    cover, coat, squares = poses
    power = np.fft.rfft2(np.square(image).sum(axis=0))
    wave = np.fft.rfft2(image)
    both = power * cover - 2 * np.einsum("chw,pchw->phw", wave, coat)
    error = np.fft.irfft2(both, s=(SIDE, SIDE)) + squares[:, None, None]
    edge = SIDE // 8
    inner = error[:, edge : SIDE - edge, edge : SIDE - edge]
    pose, row, col = np.unravel_index(int(inner.argmin()), inner.shape)
    return int(pose), (int(col) + edge) / SIDE, (int(row) + edge) / SIDE, float(inner.min()) / 3


def _compared(image: np.ndarray, thing: Thing, radius: float) -> tuple[float, float]:
    """Mean squared difference within the outline, and the share of the rim that continues the subject."""
    made = subject(int(thing.shape.partition("-")[2]))
    cover, coat = drawn(made, thing.x, thing.y, radius, thing.turn)
    apart = np.square(image - coat).mean(axis=0)
    inside = cover > 0.5
    u, v = _local(thing.x, thing.y, radius, thing.turn)
    depth = made.field(u, v)
    rim = (depth < -0.12) & (depth > -RIM)
    difference = float(apart[inside].mean()) if inside.any() else 1.0
    spill = float((apart[rim] < ALIKE).mean()) if rim.any() else 0.0
    return difference, spill
