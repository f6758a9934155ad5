"""Sample sheets: pictures in rows and columns with what was asked for beside them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np

from unbraid.core.errors import UnbraidError

LINE, LETTER, MARGIN = 13, 6, 4  # pixels of the labels' lines, letters and margins


def grid(images: np.ndarray, rows: Sequence[str] = (), columns: Sequence[str] = (), side: int = 128) -> np.ndarray:
    """Pixels [height, width, 3] of a sheet.

    Args:
        images: [rows, columns, 3, H, W] from 0 to 1; NaN leaves a cell empty.
        rows: labels at the left.
        columns: labels at the top, broken into lines.
        side: width of a cell in pixels; whole multiples of the pictures' own are sharp.

    Raises:
        UnbraidError: images of another shape, or labels of another number.
    """
    if images.ndim != 5 or images.shape[2] != 3:
        raise UnbraidError(f"a grid takes [rows, columns, 3, height, width], not {images.shape}.")
    for name, labels, count in (("rows", rows, images.shape[0]), ("columns", columns, images.shape[1])):
        if len(labels) not in (0, count):
            raise UnbraidError(f"there are {count} {name} and {len(labels)} labels for them; give one each, or none.")
    from PIL import Image, ImageDraw

    high, wide = images.shape[3:]
    height = max(1, round(side * high / wide))
    lines = [textwrap.wrap(one, max(1, (side - MARGIN) // LETTER)) for one in columns]
    top = LINE * max((len(one) for one in lines), default=0) + (2 * MARGIN if columns else 0)
    asides = [textwrap.wrap(one, 18) for one in rows]
    left = LETTER * max((len(line) for one in asides for line in one), default=0) + (2 * MARGIN if rows else 0)
    size = (left + images.shape[1] * (side + 2), top + images.shape[0] * (height + 2))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for j, one in enumerate(lines):
        pen.multiline_text((left + j * (side + 2) + 2, MARGIN), "\n".join(one), "black", spacing=2)
    for i, row in enumerate(images):
        y = top + i * (height + 2)
        if asides:
            pen.multiline_text((MARGIN, y + MARGIN), "\n".join(asides[i]), "black", spacing=2)
        for j, one in enumerate(row):
            if np.isnan(one).any():
                continue
            pixels = (np.clip(one.transpose(1, 2, 0), 0, 1) * 255 + 0.5).astype(np.uint8)
            smooth = Image.Resampling.NEAREST if side % wide == 0 else Image.Resampling.LANCZOS
            sheet.paste(Image.fromarray(pixels).resize((side, height), smooth), (left + j * (side + 2), y))
    return np.asarray(sheet)
