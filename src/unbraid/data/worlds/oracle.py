"""The oracle: the true factors of any image, read off the nearest image that its world can make.

Small worlds are compared whole, in one matrix product over pictures made small. In large ones the same product over a
coarse grid gives places to begin, and each factor in turn is then set to its best value at full size until none
changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.data.tables import grid_rows

if TYPE_CHECKING:
    from unbraid.data.worlds.world import World

WHOLE = 20_000  # images of a world that are compared one and all
SIDE = 16  # pixels of a side while comparing
BEGIN = 6  # nearest images of the coarse grid to go on from
FINAL = 16  # nearest small images that are compared at full size
SWEEPS = 12


@dataclass(frozen=True)
class Reading:
    """What an oracle read off images.

    Attributes:
        factors: [n, f] of the nearest image of the world.
        distance: [n] root mean square difference to it, per pixel; 0 for an image of the world itself.
        second: [n] the same to the nearest image with other factors among those that were compared.
    """

    factors: np.ndarray
    distance: np.ndarray
    second: np.ndarray

    @property
    def confidence(self) -> np.ndarray:
        """[n] from 0 (the second is as near) to 1 (an exact hit): 1 - distance / second."""
        with np.errstate(divide="ignore", invalid="ignore"):
            made = 1 - self.distance / self.second
        return np.where(self.second > 0, np.clip(made, 0, 1), 0.0)


class Oracle:
    """Reads factors off images of one world; what it compares with is drawn at the first reading and kept.

    Args:
        world: whose images they are.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        sizes = [size or 10 for size in world.sizes]
        self.continuous = None in world.sizes
        self.whole = world.strides is not None and len(world) <= WHOLE
        if world.strides is None and not self.continuous:
            self.rows, self.whole = world.factors, True  # real images: their own table
        elif self.whole:
            self.rows = world.factors
        else:
            self.rows = coarse(sizes, world)
        self.values = (self.rows + 0.5) / 10 if self.continuous else self.rows
        self.steps = [1] * len(sizes) if self.whole else strides_within(sizes, self.rows)
        self.small = np.concatenate([reduced(self._images(at)) for at in blocks(len(self.rows))])
        self.norms = np.square(self.small).sum(axis=1)

    def read(self, images: np.ndarray) -> Reading:
        """Factors, distance and second distance of [n, channels, height, width] images."""
        if not len(images):
            raise UnbraidError("there is no image to read factors from.")
        parts = [self._read(images[at]) for at in blocks(len(images), 64)]
        return Reading(
            *(np.concatenate([getattr(p, name) for p in parts]) for name in ("factors", "distance", "second"))
        )

    def _read(self, images: np.ndarray) -> Reading:
        found = self.world.scene.search(images)
        if found is not None:
            return found
        small = reduced(images)
        score = self.norms - 2 * small @ self.small.T
        count = min(FINAL if self.whole else BEGIN, score.shape[1])
        near = np.argpartition(score, count - 1, axis=1)[:, :count]
        n, f = len(images), self.rows.shape[1]
        starts = self.values[near]  # [n, count, f]
        target = np.repeat(images, count, axis=0)
        if self.whole:
            drawn = (
                np.stack([self._images(row) for row in near]) if self._own else self.world.images(starts.reshape(-1, f))
            )
            cost = mean_square(drawn.reshape(target.shape), target).reshape(n, count)
            rows, best = starts, cost
        else:
            flat, cost = self._improve(starts.reshape(-1, f), target)
            rows, best = flat.reshape(n, count, f), cost.reshape(n, count)
        return self._settled(rows, best)

    @property
    def _own(self) -> bool:
        return self.world.strides is None and not self.continuous

    def _images(self, at: np.ndarray) -> np.ndarray:
        return self.world.render(at) if self._own else self.world.images(self.values[at])

    def _settled(self, rows: np.ndarray, cost: np.ndarray) -> Reading:
        """The best of [n, c, f] rows with [n, c] costs, and the best of those that differ from it."""
        n, c, f = rows.shape
        rows = rows if self.continuous else self.world.canonical(rows.reshape(-1, f)).reshape(n, c, f)
        first = cost.argmin(axis=1)
        best = rows[np.arange(n), first]
        other = np.where((rows != best[:, None]).any(axis=2), cost, np.inf).min(axis=1)
        distance = np.sqrt(cost[np.arange(n), first])
        second = np.sqrt(np.where(np.isfinite(other), other, np.maximum(cost.max(axis=1), cost[np.arange(n), first])))
        return Reading(best, distance, second)

    def _improve(self, rows: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Set one factor after the other to its best value, until none of a row changes."""
        rows = rows.copy()
        cost = np.full(len(rows), np.inf)
        for at in blocks(len(rows)):
            cost[at] = mean_square(self.world.images(rows[at]), target[at])
        live = np.arange(len(rows))
        reach = 0.1
        for _ in range(SWEEPS):
            before = cost[live].copy()
            for k in range(rows.shape[1]):
                self._best_value(rows, cost, target, live, k, reach)
            if self.continuous:
                reach /= 2  # every row goes on: the steps get finer
                continue
            live = live[cost[live] < before]
            if not live.size:
                break
        return rows, cost

    def _best_value(
        self, rows: np.ndarray, cost: np.ndarray, target: np.ndarray, live: np.ndarray, k: int, reach: float
    ) -> None:
        kind, size = self.world.details[k].kind, self.world.sizes[k]
        if size is None:
            moves = np.clip(rows[live, k][:, None] + reach * np.array([-1, -0.5, 0.5, 1]), 0, 1)
        elif kind == "category" or size <= 6:
            moves = np.broadcast_to(np.arange(size), (len(live), size))
        else:
            step = self.steps[k]
            moves = rows[live, k][:, None] + np.array([d for d in range(-step, step + 1) if d])
            moves = moves % size if kind == "cyclic" else np.clip(moves, 0, size - 1)
        m = moves.shape[1]
        for at in blocks(len(live), max(1, 256 // m)):
            who = live[at]
            tried = np.repeat(rows[who], m, axis=0)
            tried[:, k] = moves[at].reshape(-1)
            found = mean_square(self.world.images(tried), np.repeat(target[who], m, axis=0)).reshape(-1, m)
            j = found.argmin(axis=1)
            least = found[np.arange(len(who)), j]
            better = least < cost[who]
            rows[who[better], k] = moves[at][np.arange(len(who)), j][better]
            cost[who[better]] = least[better]


def coarse(sizes: list[int], world: World) -> np.ndarray:
    """[m, f] a grid within the grid, at most 20,000 rows: the finest factors are thinned first."""
    counts = list(sizes)
    while int(np.prod(counts)) > WHOLE:
        most = max((k for k in range(len(counts)) if counts[k] > 1), key=lambda k: counts[k] * (2 - _loose(world, k)))
        counts[most] -= 1
    places = [
        np.unique(np.round((np.arange(c) + 0.5) * s / c - 0.5).astype(int)) for c, s in zip(counts, sizes, strict=True)
    ]
    at = grid_rows([len(p) for p in places])
    return np.stack([p[at[:, k]] for k, p in enumerate(places)], axis=1)


def _loose(world: World, k: int) -> float:
    """A factor without order cannot be found by going from neighbour to neighbour: it is thinned last."""
    return 1.0 if world.details[k].kind == "category" else 0.0


def strides_within(sizes: list[int], rows: np.ndarray) -> list[int]:
    """How far the nearest value of the coarse grid may lie, per factor."""
    return [
        max(1, int(np.ceil(size / len(np.unique(column)) / 2)) + 1) for size, column in zip(sizes, rows.T, strict=True)
    ]


def blocks(n: int, length: int = 256) -> list[np.ndarray]:
    """Indices 0 to n - 1 in blocks."""
    return [np.arange(a, min(a + length, n)) for a in range(0, n, length)]


def mean_square(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[n] mean squared difference."""
    n = len(one)
    gap = (one - other).reshape(n, -1)
    return np.einsum("ij,ij->i", gap, gap) / gap.shape[1]


def reduced(images: np.ndarray) -> np.ndarray:
    """[n, d] images made small by averaging, as rows."""
    n, c, h, w = images.shape
    by = max(1, min(h, w) // SIDE)
    if by > 1:
        h, w = h // by, w // by
        images = images[:, :, : h * by, : w * by].reshape(n, c, h, by, w * by).mean(axis=3)
        images = images.reshape(n, c, h, w, by).mean(axis=4)
    return np.ascontiguousarray(images.reshape(n, -1), np.float32)
