"""Masks: checked partitions, from maps, given by hand; resized so that nothing gets lost, filled, with soft rims."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from unbraid.core.errors import UnbraidError
from unbraid.diffusion.photos import load


def partition(masks: Tensor, rest: bool = True) -> Tensor:
    """Which mask each pixel belongs to, [H, W]; where several claim a pixel the last one has it.

    Args:
        masks: [n, H, W] from 0 to 1; a pixel is claimed from 0.5 on.
        rest: pixels that none claims are a last region n; without it they fall to the nearest one.

    Raises:
        UnbraidError: no masks, or one that claims nothing.
    """
    if masks.dim() != 3 or not len(masks):
        raise UnbraidError(f"masks are {tuple(masks.shape)}; give [regions, height, width].")
    claimed = masks >= 0.5
    empty = [k for k in range(len(masks)) if not claimed[k].any()]
    if empty:
        raise UnbraidError(f"mask {empty[0]} claims no pixel.")
    owner = torch.full(masks.shape[1:], len(masks), dtype=torch.long)
    for k, mask in enumerate(claimed):
        owner[mask] = k
    return owner if rest else fill(owner, owner == len(masks))


def fill(owner: Tensor, empty: Tensor) -> Tensor:
    """Gives empty pixels to the region of the nearest pixel that is not, in memory linear in the pixels.

    Args:
        owner: [H, W] whole numbers.
        empty: [H, W] bools.

    Raises:
        UnbraidError: all pixels are empty.
    """
    if empty.all():
        raise UnbraidError("all pixels are empty; nothing is near to anything.")
    rows, columns = ndimage.distance_transform_edt(empty.numpy(), return_distances=False, return_indices=True)
    return owner[torch.from_numpy(rows), torch.from_numpy(columns)]


def owners(owner: Tensor, size: tuple[int, int]) -> Tensor:
    """A partition [H, W] at another size: each pixel goes to the region with most of its area, but none gets lost.

    A region too small to win a pixel gets the one that holds most of it, the smallest region first.
    """
    regions = torch.unique(owner)
    layers = torch.stack([(owner == k).float() for k in regions])[:, None]
    area = functional.interpolate(layers, size, mode="area")[:, 0]
    found = area.argmax(0)
    for k in sorted(range(len(regions)), key=lambda k: float(layers[k].sum()), reverse=True):
        if not (found == k).any():
            at = int(area[k].argmax())
            found.view(-1)[at] = k
    return regions[found]


def soft(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks [n, H, W] at another size, as shares of area."""
    return functional.interpolate(masks[:, None].float(), size, mode="area")[:, 0]


def ring(mask: Tensor, thickness: int) -> Tensor:
    """[H, W] bools: pixels at most so many pixels, in eight directions, outside of a mask [H, W] of bools."""
    if thickness < 1:
        raise UnbraidError(f"thickness is {thickness}; it must be at least 1.")
    grown = functional.max_pool2d(mask[None, None].float(), 2 * thickness + 1, 1, thickness)[0, 0] > 0.5
    return grown & ~mask.bool()


def normed(maps: Tensor) -> Tensor:
    """Each map [..., h, w] from 0 to 1."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low).clamp(min=1e-8)


def spread(maps: Tensor, between: Tensor, power: float = 1.0, times: int = 1) -> Tensor:
    """Word maps passed on along self-attention: pixels that look at one another share what they mean.

    Args:
        maps: [words, h, w].
        between: [h * w, h * w], rows sum to 1: attention of each pixel to the others.
        power: of the maps beforehand; higher ones keep to the peaks.
        times: passes.

    Raises:
        UnbraidError: sizes do not fit.
    """
    words, height, width = maps.shape
    if between.shape != (height * width, height * width):
        raise UnbraidError(
            f"self-attention is {tuple(between.shape)}; maps of {height} x {width} need {height * width}."
        )
    found = normed(maps).flatten(1).pow(power)
    for _ in range(times):
        found = found @ between.T
    return found.view(words, height, width)


def from_maps(maps: Tensor, size: tuple[int, int] | None = None, threshold: float | None = None) -> Tensor:
    """Masks [words, H, W] of bools that do not overlap: a pixel is the word's whose map is highest, where high enough.

    Args:
        maps: [words, h, w], such as `WordMaps.mean()[0]`.
        size: of the masks; None: of the maps.
        threshold: of a map brought to 0 to 1; None: Otsu's, for each map its own.

    Raises:
        UnbraidError: maps of another shape.
    """
    if maps.dim() != 3:
        raise UnbraidError(f"maps are {tuple(maps.shape)}; give [words, height, width].")
    scaled = functional.interpolate(maps[:, None].float(), size or tuple(maps.shape[1:]), mode="bilinear")[:, 0]
    levels = normed(scaled.detach())
    cuts = [otsu(one.numpy()) if threshold is None else threshold for one in levels.cpu()]
    high = torch.stack([one >= cut for one, cut in zip(levels, cuts, strict=True)])
    best = levels.argmax(0)
    return high & (torch.arange(len(maps), device=maps.device)[:, None, None] == best)


def otsu(values: np.ndarray, bins: int = 128) -> float:
    """The level that parts numbers from 0 to 1 into two classes with the least variance within them (Otsu, 1979)."""
    counts, edges = np.histogram(values, bins, (0, 1))
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    lower = np.cumsum(counts * middles)
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = lower / below - (lower[-1] - lower) / above
        between = np.where((below > 0) & (above > 0), below * above * gap**2, -1.0)
    best = np.flatnonzero(between == between.max())
    return float(edges[1:][int(best[len(best) // 2])])


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of masks [..., H, W] of bools; 1 where both are empty."""
    both, either = (one & other).sum((-2, -1)), (one | other).sum((-2, -1))
    return torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(both, dtype=torch.float32))


def read_masks(names: Sequence[str], size: tuple[int, int]) -> Tensor:
    """Masks [n, H, W] from image files: white belongs to the region.

    Raises:
        UnbraidError: a file that cannot be read.
    """
    if not names:
        raise UnbraidError("there are no mask files; give one per region.")
    return torch.cat([soft(load(Path(name), "L"), size) for name in names])
