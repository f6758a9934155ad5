"""When to stop, and when photos cannot be told apart: both by how alike images are to the image encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from unbraid.core.pieces import Pieces
from unbraid.diffusion.clip import ImageText
from unbraid.diffusion.painting import paint
from unbraid.diffusion.tuning import Tuner

ALIKE = 0.85  # mean cosine of photos in one place; tiny-clip, seeds 100 to 115: 15 of 16 are above, 0 of 32 others


def between(encoder: ImageText, squares: torch.Tensor) -> tuple[float, float]:
    """Mean cosine of all pairs of photos [n, 3, H, W], and the mean of each photo's nearest; NaN for one photo."""
    if len(squares) < 2:
        return float("nan"), float("nan")
    like = encoder.likeness(squares, squares)
    others = ~np.eye(len(like), dtype=bool)
    nearest = np.where(others, like, -np.inf).max(1)
    return float(like[others].mean()), float(nearest.mean())


class Watch:
    """Ends a training once pictures of the subject are nearer to single photos than these are to one another.

    Args:
        pipe: being tuned.
        encoder: compares.
        squares: the photos, [n, 3, size, size].
        prompt: of the pictures, without the image branch.
        every: steps between looks.
        pictures: per look.
        stop: whether to end the training, or only to take notes.
        keep: folder for these notes, which a training that goes on reads.
        paint_options: for `paint`.

    Attributes:
        bound: what the pictures' likeness is compared with.
        seen: per look the step, and the mean over pictures of their likeness to the nearest photo.
    """

    def __init__(
        self,
        pipe: Any,
        encoder: ImageText,
        squares: torch.Tensor,
        prompt: str,
        every: int,
        pictures: int = 4,
        stop: bool = True,
        keep: Path | None = None,
        **paint_options: Any,
    ) -> None:
        self.pipe, self.encoder, self.squares, self.prompt = pipe, encoder, squares, prompt
        self.every, self.pictures, self.stop, self.options = every, pictures, stop, paint_options
        self.bound = between(encoder, squares)[1]
        self.notes = Pieces(keep)
        self.seen: list[dict[str, float]] = self.notes.load("stop", "looks") or []

    def __call__(self, step: int, tuner: Tuner, numbers: Any) -> bool:
        """A callback of `fit_loop`."""
        if step % self.every or np.isnan(self.bound):
            return False
        made = paint(self.pipe, [self.prompt] * self.pictures, range(self.pictures), progress=False, **self.options)
        nearest = float(self.encoder.likeness(made, self.squares).max(1).mean())
        self.seen = [one for one in self.seen if one["step"] < step] + [{"step": step, "likeness": nearest}]
        self.notes.save("stop", "looks", self.seen)
        return self.stop and nearest > self.bound
