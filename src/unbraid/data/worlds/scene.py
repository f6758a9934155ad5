"""What a world draws: its factors, what their values mean, and the pictures they make."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from unbraid.core.errors import UnbraidError

if TYPE_CHECKING:
    from unbraid.data.worlds.oracle import Reading

Kind = Literal["ordinal", "cyclic", "category"]


@dataclass(frozen=True)
class Factor:
    """One factor of a world.

    Args:
        name: as in the original data.
        kind: ordinal (values in order), cyclic (the last is next to the first) or category (no order).
        values: [size] what each index means, as numbers or words; for a continuous factor its two ends.
        unit: of the values.
        continuous: it takes every number from 0 to 1 instead of an index.
    """

    name: str
    kind: Kind
    values: tuple[float | str, ...]
    unit: str = ""
    continuous: bool = False

    @property
    def size(self) -> int | None:
        """How many values; None for a continuous factor."""
        return None if self.continuous else len(self.values)


class Scene(ABC):
    """The renderer of a world.

    Attributes:
        factors: all of them, in the order of the original data, also those with one value only.
        shape: (channels, height, width) of an image.
    """

    title: ClassVar[str] = ""
    guided: ClassVar[bool] = False  # whether `starts` knows a way
    together: ClassVar[tuple[str, ...]] = ()  # factors that the oracle changes together, as one alone leads nowhere
    factors: tuple[Factor, ...]
    shape: tuple[int, int, int]

    @abstractmethod
    def draw(self, rows: np.ndarray) -> np.ndarray:
        """[n, channels, height, width] float32 images in [0, 1] of [n, f] factors (indices, or 0..1 if continuous)."""

    def canonical(self, rows: np.ndarray) -> np.ndarray:
        """[n, f] the rows, each replaced by the first of those that make the same image."""
        return rows

    def typical(self) -> Scene:
        """What the oracle compares with: this scene, or where something is drawn at random, one without that."""
        return self

    def starts(self, images: np.ndarray) -> np.ndarray | None:
        """[n, c, f] rows near those that made the images, for the oracle to go on from, where the scene knows a way."""
        return None

    def search(self, images: np.ndarray) -> Reading | None:
        """The nearest of all images of the world, where the scene knows a way faster than looking at each."""
        return None


def sizes_given(
    sizes: Mapping[str, int] | None, defaults: Mapping[str, int], limits: Mapping[str, int] | None = None
) -> dict[str, int]:
    """The sizes of a world's factors, some of them changed.

    Args:
        sizes: name -> number of values, for the factors that should have others than the original.
        defaults: those of the original, in order.
        limits: name -> most values, for factors that cannot have more (shapes, say).

    Raises:
        UnbraidError: a name is none of the world's, or a number is not positive or beyond its limit.
    """
    asked = dict(sizes or {})
    for name, size in asked.items():
        if name not in defaults:
            raise UnbraidError(f"sizes names {name!r}, which is no factor here; there are {', '.join(defaults)}.")
        most = (limits or {}).get(name)
        whole = isinstance(size, int | np.integer) and not isinstance(size, bool)
        if not whole or size < 1 or (most is not None and size > most):
            allowed = "1 or more" if most is None else f"1 to {most}"
            raise UnbraidError(f"factor {name!r} was given {size!r} values; it can have {allowed}.")
    return {name: int(asked.get(name, size)) for name, size in defaults.items()}


def spread(low: float, high: float, size: int, single: float | None = None) -> tuple[float, ...]:
    """``size`` values from low to high with both ends; one value alone is ``single``, or the middle."""
    if size == 1:
        return ((low + high) / 2 if single is None else single,)
    return tuple(np.linspace(low, high, size).tolist())


def period(size: int, turn: float, fold: int) -> int:
    """After how many of ``size`` steps round ``turn`` of a circle a figure with ``fold`` equal sides looks the same.

    Never within ``size`` steps: ``size``.
    """
    if turn == 1.0:
        return size // gcd(size, fold)
    steps = size / turn / fold  # how many steps one side takes
    return min(size, round(steps)) if abs(steps - round(steps)) < 1e-9 else size


def hues(size: int, start: float = 0.0) -> np.ndarray:
    """[size, 3] colours round the circle of hues, full and bright, from red."""
    hue = (start + np.arange(size) / size)[:, None] * 6
    return np.clip(np.abs((hue + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)


def choice(value: str, name: str, allowed: Sequence[str]) -> str:
    """An option with a few words to choose from, or a sentence."""
    if value not in allowed:
        raise UnbraidError(f"{name} is {value!r}; choose from {', '.join(allowed)}.")
    return value


def noise(keys: np.ndarray, count: int, seed: int) -> np.ndarray:
    """[n, count] numbers in [0, 1) that depend on each of [n] keys and the seed only, not on what else is asked for."""
    with np.errstate(over="ignore"):
        x: np.ndarray = keys.astype(np.uint64)[:, None] * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        x = (x ^ (x >> np.uint64(31))) * np.uint64(0xD6E8FEB86659FD93) + np.arange(count, dtype=np.uint64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)
