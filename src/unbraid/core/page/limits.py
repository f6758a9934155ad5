"""How much of a result a page shows, and the sentence that says so where it is not all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Limits:
    """Upper bounds for one page; `scaled` makes them smaller where the page would be too large.

    Attributes:
        rows: of a table.
        points: of one series.
        cells: of a head map.
        spans: of a text.
        characters: of one piece of text.
        image: bytes of one picture.
        sound: bytes of one sound.
    """

    rows: int = 500
    points: int = 1_000
    cells: int = 20_000
    spans: int = 20_000
    characters: int = 4_000
    image: int = 1_500_000
    sound: int = 1_000_000

    def scaled(self, factor: float) -> Limits:
        """All bounds times ``factor``, at least 4."""
        return Limits(*(max(4, int(value * factor)) for value in vars(self).values()))


def clip(text: str, limits: Limits) -> str:
    """A text's beginning, with a mark where it was cut."""
    return text if len(text) <= limits.characters else text[: limits.characters] + " … (cut)"


def keep_extremes(y: Sequence[float | int | None], count: int) -> list[int]:
    """Indices of at most ``count`` points (at least 4): of each stretch, the least and the greatest, and both ends.

    A peak or a dip of a single point therefore stays visible, which it would not with every k-th point.
    """
    n = len(y)
    if n <= count:
        return list(range(n))
    values = np.array([np.nan if v is None else float(v) for v in y])
    kept = {0, n - 1}
    for stretch in np.array_split(np.arange(n), max(1, (count - 2) // 2)):
        part = values[stretch]
        if np.isfinite(part).any():
            kept |= {int(stretch[np.nanargmin(part)]), int(stretch[np.nanargmax(part)])}
        else:
            kept.add(int(stretch[0]))  # a gap stays a gap
    return sorted(kept)


def keep_some(n: int, count: int) -> list[int]:
    """Indices of at most ``count`` points drawn at random, always the same ones, in order."""
    if n <= count:
        return list(range(n))
    return sorted(np.random.default_rng(0).choice(n, count, replace=False).tolist())
