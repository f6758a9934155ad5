"""The statistics that every variant makes, read off an attention map: what people write today. Needs torch only."""

from __future__ import annotations

import torch
from torch import Tensor

GROUPS = {"first": [0], "span": slice(100, 164)}
NAMES = ("entropy", "mass", "received", "argmax")


class Kept:
    """Mass on two groups of keys, entropy, received attention and arg-max, layer by layer."""

    def __init__(self) -> None:
        self.layers: list[dict[str, Tensor]] = []

    def add(self, p: Tensor) -> None:
        """Takes the map of a layer, [B, H, Q, K]; keeps nothing of its size."""
        mass = [p[..., keys].sum(-1) for keys in GROUPS.values()]
        self.layers.append(
            {
                "entropy": torch.special.entr(p).sum(-1),
                "mass": torch.stack(mass, -1),
                "received": p.sum(2),
                "argmax": p.argmax(-1),
            }
        )

    def stacked(self) -> dict[str, Tensor]:
        """All layers, on the CPU: entropy [L, H, Q], mass [L, H, Q, 2], received [L, H, K], argmax [L, H, Q]."""
        return {n: torch.cat([layer[n] for layer in self.layers]).cpu() for n in NAMES} if self.layers else {}
