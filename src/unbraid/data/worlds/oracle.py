"""The oracle: the true factors of any image, read off the nearest image that its world can make.

Small worlds are compared whole, by a matrix product over small copies and then at full size. In large ones the product
over a coarse grid gives places to begin, and each factor in turn is set to its best value at full size until none
changes. Images of a model are blurred, and a blurred large thing looks like a sharp small one; so the nearest images
are also compared under a few blurs, and where one fits better, the search goes on under that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.data.worlds.compare import LEVELS, WHOLE, blocks, blurred, coarse, mean_square, reach, reduced

if TYPE_CHECKING:
    from unbraid.data.worlds.world import World

BEGIN = 6  # images of the coarse grid to go on from
FINAL = 16  # nearest small copies that are compared at full size, and as many under blur
SWEEPS = 12
HOPE = 1.5  # a row this many times worse than the best of its image is given up
TENTHS = 10  # of a continuous factor's range, in the coarse grid
HIT = (0.6 / 255) ** 2  # mean squared difference that rounding to 256 levels makes


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
        self.world, self.scene = world, world.scene.typical()
        sizes = [size or TENTHS for size in world.sizes]
        self.continuous = None in world.sizes
        self.photographs = world.strides is None and not self.continuous
        self.whole = self.photographs or (not self.continuous and len(world) <= WHOLE)
        self.guided = world.scene.guided and not self.whole
        rows = world.factors if self.whole else coarse(sizes, world)
        self.values = (rows + 0.5) / TENTHS if self.continuous else rows
        # place and size first: the kind of a thing is not to be told while it is sought in the wrong place
        self.order = in_order(world)
        self.steps = [2] * len(sizes) if self.guided else reach(sizes, rows)
        # two sets of small copies, sharp and most blurred: a heavy blur must not push the true one off the list
        levels = (LEVELS[0], LEVELS[-1]) if self.whole else LEVELS[:1]
        self.small = (
            []
            if self.guided
            else [
                np.concatenate([reduced(blurred(self._at(at), level)) for at in blocks(len(rows))]) for level in levels
            ]
        )
        self.norms = [np.square(small).sum(axis=1) for small in self.small]

    def read(self, images: np.ndarray) -> Reading:
        """Factors, distance and second distance of [n, channels, height, width] images.

        Raises:
            UnbraidError: there is no image.
        """
        if not len(images):
            raise UnbraidError("there is no image to read factors from.")
        parts = [self._read(images[at]) for at in blocks(len(images), 64)]
        return Reading(*(np.concatenate([vars(p)[name] for p in parts]) for name in ("factors", "distance", "second")))

    def _read(self, images: np.ndarray) -> Reading:
        found = self.world.scene.search(images)
        if found is not None:
            return Reading(found.factors[:, self.world.kept], found.distance, found.second)
        if self.whole:
            scores = self._scores(images)
            count = min(FINAL, scores[0].shape[1])
            return self._compare(np.concatenate([nearest(score, count) for score in scores], axis=1), images)
        rows = self._begin(images)
        n, count = rows.shape[:2]
        rows, cost = self._improve(rows.reshape(n * count, -1), images, np.zeros(n), count)
        rows, cost = rows.reshape(n, count, -1), cost.reshape(n, count)
        order = np.argsort(cost, axis=1)[:, :2]
        blurs = self._blur(np.take_along_axis(rows, order[:, :, None], 1), images, cost.min(axis=1))
        open_ = np.flatnonzero(blurs > 0)
        if open_.size:  # once more under the blur that fits
            better, paid = self._improve(
                rows[open_].reshape(len(open_) * count, -1), images[open_], blurs[open_], count
            )
            rows[open_], cost[open_] = better.reshape(len(open_), count, -1), paid.reshape(len(open_), count)
        return self._settled(rows, cost)

    def _scores(self, images: np.ndarray) -> list[np.ndarray]:
        small = reduced(images)
        return [norms - 2 * small @ copies.T for copies, norms in zip(self.small, self.norms, strict=True)]

    def _begin(self, images: np.ndarray) -> np.ndarray:
        """[n, c, f] rows to go on from: what the scene says, or the nearest of the coarse grid."""
        guided = self.world.scene.starts(images) if self.guided else None
        if guided is not None:
            return guided[:, :, self.world.kept]
        score = self._scores(images)[0]
        return self.values[nearest(score, min(BEGIN, score.shape[1]))]

    def _compare(self, near: np.ndarray, images: np.ndarray) -> Reading:
        """The nearest of [n, c] listed images of the world at full size, sharp or under the blur that fits best."""
        n, count = near.shape
        drawn = self._at(near.reshape(-1))
        target = np.repeat(images, count, axis=0)
        cost = mean_square(drawn, target).reshape(n, count)
        order = np.argsort(cost, axis=1)[:, [0, min(1, count - 1)]]
        # of the most blurred list too, as the sharp one may hold only wrong ones
        order = np.concatenate([order, near.shape[1] // 2 + np.zeros((n, 1), int)], axis=1)
        blurs = self._blur(self.values[np.take_along_axis(near, order, 1)], images, cost.min(axis=1), near, order)
        for level in np.unique(blurs[blurs > 0]):
            who = np.flatnonzero(blurs == level)
            mine = drawn.reshape(n, count, *images.shape[1:])[who].reshape(-1, *images.shape[1:])
            cost[who] = mean_square(blurred(mine, level), np.repeat(images[who], count, axis=0)).reshape(-1, count)
        return self._settled(self.values[near], cost)

    def _blur(
        self,
        rows: np.ndarray,
        images: np.ndarray,
        least: np.ndarray,
        near: np.ndarray | None = None,
        order: np.ndarray | None = None,
    ) -> np.ndarray:
        """[n] the level of blur under which one of [n, c, f] rows comes nearest; 0 where sharp is as good."""
        n, c, f = rows.shape
        made = np.zeros(n)
        who = np.flatnonzero(least > HIT)
        if not who.size:
            return made
        if near is None or order is None:
            drawn = self._typical(rows[who].reshape(-1, f))
        else:
            drawn = self._at(np.take_along_axis(near, order, 1)[who].reshape(-1))
        target = np.repeat(images[who], c, axis=0)
        costs = np.stack([mean_square(blurred(drawn, level), target).reshape(-1, c).min(axis=1) for level in LEVELS])
        made[who] = np.array(LEVELS)[costs.argmin(axis=0)]
        return made

    def _at(self, at: np.ndarray) -> np.ndarray:
        return self.world.render(at) if self.photographs else self._typical(self.values[at])

    def _typical(self, rows: np.ndarray) -> np.ndarray:
        if self.scene is self.world.scene:
            return self.world.images(rows)
        return np.concatenate([self.scene.draw(self.world.full(rows[at])) for at in blocks(len(rows), 64)])

    def _settled(self, rows: np.ndarray, cost: np.ndarray) -> Reading:
        """The best of [n, c, f] rows with [n, c] costs, and the best of those that differ from it."""
        n, c, f = rows.shape
        if not self.continuous:
            rows = self.world.canonical(rows.reshape(-1, f)).reshape(n, c, f)
        first = cost.argmin(axis=1)
        best = rows[np.arange(n), first]
        other = np.where((rows != best[:, None]).any(axis=2), cost, np.inf).min(axis=1)
        least = cost[np.arange(n), first]
        other = np.where(np.isfinite(other), other, cost.max(axis=1))
        return Reading(best, np.sqrt(least), np.sqrt(other))

    def _improve(
        self, rows: np.ndarray, images: np.ndarray, blurs: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Set one factor after the other to its best value, until none of a row changes.

        Args:
            rows: [n * count, f] where to begin, ``count`` for each image.
            images: [n, channels, height, width].
            blurs: [n] the blur under which the world's images are compared.
            count: rows of an image.

        Returns:
            The rows and their mean squared differences.
        """
        rows, target, level = rows.copy(), np.repeat(images, count, axis=0), np.repeat(blurs, count)
        cost = np.full(len(rows), np.inf)
        for at in blocks(len(rows)):
            cost[at] = mean_square(self._drawn(rows[at], level[at]), target[at])
        least = np.repeat(cost.reshape(-1, count).min(axis=1), count)
        live, far = np.flatnonzero((cost <= 2 * HOPE * least) & (least > (0.0 if self.continuous else HIT))), 0.1
        for _ in range(SWEEPS if live.size else 0):
            before = cost[live].copy()
            for columns in self.order:
                self._take_best(rows, cost, target, level, live, self._tried(rows[live], columns, far))
            least = np.repeat(cost.reshape(-1, count).min(axis=1), count)[live]
            going = (least > HIT) & (cost[live] <= HOPE * least)
            if self.continuous:
                far /= 2  # every row goes on: the steps get finer
                live = live[going]
            else:
                live = live[going & (cost[live] < before)]
            if not live.size:
                break
        return rows, cost

    def _tried(self, rows: np.ndarray, columns: list[int], far: float) -> np.ndarray:
        """[n, m, f] rows [n, f] with other values in some columns: all of their moves with one another."""
        tried = rows[:, None]
        for k in columns:
            # a factor that moves with others may also stay where it is
            moves = self._moves(rows[:, k], k, far)
            moves = np.concatenate([rows[:, k, None], moves], axis=1) if len(columns) > 1 else moves
            n, m = len(rows), tried.shape[1]
            tried = np.repeat(tried, moves.shape[1], axis=1)
            tried[:, :, k] = np.broadcast_to(moves[:, None], (n, m, moves.shape[1])).reshape(n, -1)
        return tried

    def _moves(self, now: np.ndarray, k: int, far: float) -> np.ndarray:
        """[n, m] values to try for one factor."""
        kind, size = self.world.details[k].kind, self.world.sizes[k]
        if size is None:
            return np.clip(now[:, None] + far * np.array([-1, -0.5, 0.5, 1]), 0, 1)
        if kind == "category" or size <= 6:
            return np.broadcast_to(np.arange(size), (len(now), size))
        step = self.steps[k]
        moves = now[:, None] + np.array([d for d in range(-step, step + 1) if d])
        return moves % size if kind == "cyclic" else np.clip(moves, 0, size - 1)

    def _take_best(
        self,
        rows: np.ndarray,
        cost: np.ndarray,
        target: np.ndarray,
        level: np.ndarray,
        live: np.ndarray,
        tried: np.ndarray,
    ) -> None:
        """Replace each live row by the best of [live, m, f] tried ones, if that is better."""
        m, f = tried.shape[1:]
        for at in blocks(len(live), max(1, 256 // m)):
            who = live[at]
            drawn = self._drawn(tried[at].reshape(-1, f), np.repeat(level[who], m))
            found = mean_square(drawn, np.repeat(target[who], m, axis=0)).reshape(-1, m)
            j = found.argmin(axis=1)
            least = found[np.arange(len(who)), j]
            better = least < cost[who]
            rows[who[better]] = tried[at][np.arange(len(who)), j][better]
            cost[who[better]] = least[better]

    def _drawn(self, rows: np.ndarray, level: np.ndarray) -> np.ndarray:
        images = self._typical(rows)
        for blur in np.unique(level[level > 0]):
            who = level == blur
            images[who] = blurred(images[who], float(blur))
        return images


def in_order(world: World) -> list[list[int]]:
    """Columns in the order in which they are set to their best values, some of them together."""
    pair = [k for k, name in enumerate(world.names) if name in world.scene.together]
    alone = [k for k in range(len(world.names)) if k not in pair]
    kinds = [k for k in alone if world.details[k].kind == "category"]
    return ([pair] if pair else []) + [[k] for k in alone if k not in kinds] + [[k] for k in kinds]


def nearest(score: np.ndarray, count: int) -> np.ndarray:
    """[n, count] columns with the least scores, the least first."""
    some = np.argpartition(score, count - 1, axis=1)[:, :count]
    return np.take_along_axis(some, np.argsort(np.take_along_axis(score, some, 1), axis=1), 1)
