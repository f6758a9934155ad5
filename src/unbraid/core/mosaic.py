"""Many small images as one picture."""

from __future__ import annotations

import numpy as np

SMALLEST, GAP = 48, 2  # pixels of an image's side after enlarging, and between images


def mosaic(images: np.ndarray, gap: int = GAP, smallest: int = SMALLEST) -> np.ndarray:
    """Rows and columns of images as one, small ones enlarged without blur, white between.

    Args:
        images: [rows, columns, C, H, W] with one or three channels.
        gap: pixels between images.
        smallest: side below which images are enlarged by a whole number.

    Returns:
        [height, width, C], of the same type.
    """
    down, across, channels, height, width = images.shape
    times = max(1, -(-smallest // height))
    top = 255 if images.dtype == np.uint8 else 1.0
    tile = np.array([height * times + gap, width * times + gap])
    out = np.full((*(tile * (down, across) - gap), channels), top, images.dtype)
    for i in range(down):
        for j in range(across):
            big = images[i, j].transpose(1, 2, 0).repeat(times, 0).repeat(times, 1)
            y, x = tile * (i, j)
            out[y : y + big.shape[0], x : x + big.shape[1]] = big
    return out
