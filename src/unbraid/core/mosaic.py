"""Many small images as one picture."""

from __future__ import annotations

import numpy as np

from unbraid.core.errors import UnbraidError

SMALLEST, GAP = 48, 2  # pixels of an image's side after enlarging, and between images


def mosaic(images: np.ndarray, across: int | None = None) -> np.ndarray:
    """Images side by side as one, small ones enlarged without blur, white between.

    Args:
        images: [rows, columns, C, H, W], or [n, C, H, W] with ``across`` in a row; one or three channels, uint8 or
            from 0 to 1.
        across: images in a row, where they stand in one list; the last row may be short.

    Returns:
        [height, width, C], of the same type.

    Raises:
        UnbraidError: another shape.
    """
    if images.ndim == 5 and across is None:
        across, images = images.shape[1], images.reshape(-1, *images.shape[2:])
    if images.ndim != 4 or not across or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise UnbraidError(
            f"mosaic takes images [rows, columns, C, H, W], or [n, C, H, W] and across, with 1 or 3 channels, not "
            f"{images.shape} and across={across}."
        )
    times = max(1, -(-SMALLEST // images.shape[2]))
    big = images.repeat(times, axis=2).repeat(times, axis=3).transpose(0, 2, 3, 1)
    n, height, width, channels = big.shape
    white = 255 if images.dtype == np.uint8 else 1.0
    down = -(-n // across)
    out = np.full((down * (height + GAP) - GAP, across * (width + GAP) - GAP, channels), white, images.dtype)
    for i, tile in enumerate(big):
        y, x = (i // across) * (height + GAP), (i % across) * (width + GAP)
        out[y : y + height, x : x + width] = tile
    return out
