"""What a joint transformer is told while it learns to draw: which shape a patch belongs to, where in it, and its size.

Words that name a shape change little of the error in squares, and patches have to agree where a shape's middle is
before any of them can draw its outline; a small transformer takes long to find either. Asking a layer half way up for
what the scene is known to hold, with a small head that is thrown away afterwards, gives both a gradient of their own,
as representation alignment does with another model's features (arXiv 2410.06940).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from unbraid.data.scenes import SHAPES, Scene

REACH = 1.15  # of a shape, in its radii
NONE = len(SHAPES)
PLACE = 8.0  # weight of places beside that of kinds
USUAL, STRETCH = 0.2, 2.0  # radii are told as logarithms over the usual one, stretched to about one


def belonging(scenes: Sequence[Scene], side: int) -> tuple[Tensor, Tensor]:
    """Which shape each cell of a grid lies in the reach of, the front one where there are several.

    Args:
        scenes: n of them, without new subjects.
        side: cells along a side.

    Returns:
        Shapes [n, side * side], `NONE` for the background; places [n, side * side, 3]: two from the shape's middle, in
        its radii, and the logarithm of the radius.
    """
    at = (np.arange(side) + 0.5) / side
    kinds = np.full((len(scenes), side, side), NONE)
    places = np.zeros((len(scenes), side, side, 3), np.float32)
    for k, scene in enumerate(scenes):
        for thing in scene.things:
            u, v = np.meshgrid((at - thing.x) / thing.radius, (at - thing.y) / thing.radius)
            near = np.maximum(abs(u), abs(v)) < REACH
            kinds[k][near] = SHAPES.index(thing.shape)
            size = STRETCH * np.log(thing.radius / USUAL)
            places[k][near] = np.stack([u, v, np.full_like(u, size)], -1)[near]
    return torch.from_numpy(kinds).flatten(1), torch.from_numpy(places).flatten(1, 2)


class Hints(nn.Module):
    """A head on image patches of one block.

    Args:
        width: of the block's patches.
        block: whose output is asked, as diffusers' joint blocks give it: words, then patches.
    """

    def __init__(self, width: int, block: nn.Module) -> None:
        super().__init__()
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, NONE + 4)
        )
        self.seen: Tensor | None = None
        block.register_forward_hook(self._keep)

    def _keep(self, block: nn.Module, given: Any, made: Any) -> None:
        self.seen = made[1]

    def forward(self, kinds: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """The loss for what `belonging` says of the batch that just went through, and the share of patches right."""
        found = self.head(self.seen).float()
        self.seen = None
        kind = functional.cross_entropy(found[..., : NONE + 1].flatten(0, 1), kinds.flatten())
        inside = kinds != NONE
        place = (found[..., NONE + 1 :] - places).square().sum(-1)[inside].mean()
        right = (found[..., : NONE + 1].argmax(-1) == kinds)[inside].float().mean()
        return kind + PLACE * place, right
