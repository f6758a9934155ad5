"""What the oracle compares images with: small copies, blurred copies, and a coarse grid of a large world."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from unbraid.data.tables import grid_rows

if TYPE_CHECKING:
    from unbraid.data.worlds.world import World

WHOLE = 20_000  # images of a world that are compared one and all; rows of the coarse grid of a larger one
SIDE = 16  # pixels of a side while comparing small copies
LEVELS = (0.0, 0.012, 0.025, 0.05)  # blurs that are told from shape, as shares of the width


def blocks(n: int, length: int = 256) -> list[np.ndarray]:
    """Indices 0 to n - 1 in blocks."""
    return [np.arange(a, min(a + length, n)) for a in range(0, n, length)]


def mean_square(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[n] mean squared difference."""
    gap = (one - other).reshape(len(one), -1)
    return np.asarray(np.einsum("ij,ij->i", gap, gap) / gap.shape[1])


def reduced(images: np.ndarray, side: int = SIDE) -> np.ndarray:
    """[n, d] images made small by averaging, to ``side`` pixels or a little more, as rows."""
    n, c, h, w = images.shape
    by = max(1, min(h, w) // side)
    if by > 1:
        h, w = h // by, w // by
        images = images[:, :, : h * by, : w * by].reshape(n, c, h, by, w * by).mean(axis=3)
        images = images.reshape(n, c, h, w, by).mean(axis=4)
    return np.ascontiguousarray(images.reshape(n, -1), np.float32)


@lru_cache(maxsize=32)
def _spread(side: int, sigma: float) -> np.ndarray:
    at = np.arange(side)
    weight = np.exp(-((at[:, None] - at) ** 2) / (2 * sigma**2))
    return (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)


def blurred(images: np.ndarray, level: float) -> np.ndarray:
    """[n, c, h, w] images under a Gaussian whose width is this share of theirs; 0 leaves them."""
    h, w = images.shape[2:]
    if level * w < 0.1:
        return images
    return np.matmul(np.matmul(_spread(h, level * w), images), _spread(w, level * w).T)


def coarse(sizes: list[int], world: World) -> np.ndarray:
    """[m, f] a grid within the grid, at most 20,000 rows.

    The finest factors are thinned first, and those without order last: no neighbour leads to their other values.
    """
    counts = list(sizes)
    patience = [1 if f.kind == "category" else 2 for f in world.details]
    while int(np.prod(counts)) > WHOLE:
        most = max((k for k in range(len(counts)) if counts[k] > 1), key=lambda k: counts[k] * patience[k])
        counts[most] -= 1
    places = [
        np.unique(np.round((np.arange(c) + 0.5) * s / c - 0.5).astype(int)) for c, s in zip(counts, sizes, strict=True)
    ]
    at = grid_rows([len(p) for p in places])
    return np.stack([p[at[:, k]] for k, p in enumerate(places)], axis=1)


def reach(sizes: list[int], rows: np.ndarray) -> list[int]:
    """How far the nearest value of the coarse grid may lie, per factor, and one step more."""
    pairs = zip(sizes, rows.T, strict=True)
    return [max(1, int(np.ceil(size / len(np.unique(column)) / 2)) + 1) for size, column in pairs]
