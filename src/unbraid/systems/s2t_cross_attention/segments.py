"""What is occluded together, and which runs occlude what: superpixels, grids, windows of states, and masks over them.

Reference: SPES, arXiv 2411.01710. Segment counts follow its released code: n * min(T, 750) / 500 for T frames.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unbraid.core.errors import UnbraidError

Segments = Literal["auto", "slic", "grid"]
Sizes = Literal["bernoulli", "shapley"]
FRAMES_MOST, FRAMES_REFERENCE = 750, 500
SIGMA, COMPACTNESS = 1.0, 0.1


def segment_count(wanted: int, frames: int) -> int:
    """Segments for an utterance of so many frames; `wanted` is for 500 frames."""
    return max(1, round(wanted * min(frames, FRAMES_MOST) / FRAMES_REFERENCE))


def has_slic() -> bool:
    """Whether scikit-image is installed."""
    return importlib.util.find_spec("skimage") is not None


def segment(grid: np.ndarray, count: int, how: Segments = "auto") -> np.ndarray:
    """Labels [T, F] from 0 of about `count` segments.

    Args:
        grid: [T, F] spectrogram.
        count: segments wanted; SLIC and grids give about as many.
        how: "slic" superpixels (scikit-image), "grid" of equal rectangles, or "auto": SLIC where installed.

    Raises:
        UnbraidError: SLIC without scikit-image, or an unknown way.
    """
    if how not in ("auto", "slic", "grid"):
        raise UnbraidError(f"segments={how!r} is unknown; choose 'slic', 'grid' or 'auto'.")
    if how == "slic" and not has_slic():
        raise UnbraidError("segments='slic' needs scikit-image: pip install scikit-image; or choose segments='grid'.")
    if how == "grid" or not has_slic() or count >= grid.size:
        return rectangles(grid.shape[0], grid.shape[1], count)
    from skimage.segmentation import slic

    span = float(np.ptp(grid)) or 1.0
    image = (grid - grid.min()) / span
    labels = slic(image, n_segments=count, sigma=SIGMA, compactness=COMPACTNESS, channel_axis=None, start_label=0)
    return np.unique(labels, return_inverse=True)[1].reshape(grid.shape)


def rectangles(frames: int, bins: int, count: int) -> np.ndarray:
    """Labels [T, F] of a grid of about `count` equal cells, as square as can be."""
    count = max(1, min(count, frames * bins))
    side = (frames * bins / count) ** 0.5
    across = min(bins, max(1, round(bins / side)))
    along = min(frames, max(1, round(count / across)))
    t = np.arange(frames) * along // frames
    f = np.arange(bins) * across // bins
    return t[:, None] * across + f[None, :]


def windows(states: int, width: int) -> np.ndarray:
    """Labels [T'] of contiguous windows of `width` encoder states."""
    if width < 1:
        raise UnbraidError(f"A window of encoder states must be 1 or wider, not {width}.")
    return np.arange(states) // width


@dataclass(frozen=True)
class Masks:
    """Which segments each run keeps, drawn batch by batch so that a resumed run draws the same ones.

    Attributes:
        labels: one array of segment labels per granularity; batch b uses granularity b modulo their number.
        probability: that a segment is occluded.
        antithetic: every second run is the complement of the one before.
        sizes: "bernoulli" occludes each segment by itself; "shapley" draws how many segments are occluded with the
            probability of the Shapley kernel, (S - 1) / (m (S - m)), so that plain least squares is KernelSHAP's.
        batch: runs per batch.
        seed: of all masks.
    """

    labels: Sequence[np.ndarray]
    probability: float = 0.5
    antithetic: bool = False
    sizes: Sizes = "bernoulli"
    batch: int = 16
    seed: int = 0

    def check(self) -> None:
        """Refuses options that make no masks.

        Raises:
            UnbraidError: which one, and what is accepted.
        """
        if not 0 < self.probability < 1:
            raise UnbraidError(f"probability is {self.probability}; the share occluded must lie between 0 and 1.")
        if self.batch < 1:
            raise UnbraidError(f"batch_size must be 1 or more, not {self.batch}.")
        if self.sizes not in ("bernoulli", "shapley"):
            raise UnbraidError(f"sizes={self.sizes!r} is unknown; choose 'bernoulli' or 'shapley'.")

    def granularity(self, number: int) -> int:
        """Which segmentation batch `number` uses."""
        return number % len(self.labels)

    def segments(self, which: int) -> int:
        """How many segments a granularity has."""
        return int(self.labels[which].max()) + 1

    def draw(self, number: int) -> np.ndarray:
        """[batch, segments] True where kept, of batch `number`."""
        which = self.granularity(number)
        s = self.segments(which)
        rng = np.random.default_rng([self.seed, which, number, 3])
        n = -(-self.batch // 2) if self.antithetic else self.batch
        if self.sizes == "bernoulli" or s < 3:
            u = rng.random((n, s))
            kept = u >= self.probability
            other = (1 - u) >= self.probability
        else:
            kept = kernel_subsets(n, s, rng)
            other = ~kept
        if not self.antithetic:
            return kept
        return np.stack([kept, other], 1).reshape(2 * n, s)[: self.batch]


def kernel_subsets(count: int, segments: int, rng: np.random.Generator) -> np.ndarray:
    """[count, segments] subsets with sizes drawn from the Shapley kernel."""
    sizes = np.arange(1, segments)
    weight = 1.0 / (sizes * (segments - sizes))
    chosen = rng.choice(sizes, size=count, p=weight / weight.sum())
    order = rng.random((count, segments)).argsort(1).argsort(1)
    return order >= chosen[:, None]
