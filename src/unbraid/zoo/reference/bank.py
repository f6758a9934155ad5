"""Scenes for training: drawn from a seed, rendered when asked for, and, for the diffusion model, encoded beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unbraid.data.scenes import Scene, caption, render, sample
from unbraid.zoo.reference import SIDE

if TYPE_CHECKING:
    import torch

OMIT, EMPTY = 0.15, 0.1  # share of attributes left out of captions, and of captions left out whole
CHUNK = 64


class Bank:
    """So many scenes of the split "train" with their latents.

    Args:
        size: scenes.
        seed: of the scenes.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size, self.seed = size, seed
        self.scenes: list[Scene] = sample(size, seed)

    def images(self, at: Any) -> torch.Tensor:
        """[n, 3, side, side] from -1 to 1."""
        import torch

        return torch.from_numpy(render([self.scenes[int(i)] for i in at], SIDE)) * 2 - 1

    def captions(self, at: Any, seed: int, empty: float = EMPTY) -> list[str]:
        """One sentence of each scene, another one with another seed; some are empty."""
        silent = np.random.default_rng([seed, 7]).random(len(at)) < empty
        return [
            "" if quiet else caption(self.scenes[int(i)], seed, omit=OMIT) for i, quiet in zip(at, silent, strict=True)
        ]

    def latents(self, vae: Any, folder: Path, progress: bool | None = None) -> torch.Tensor:
        """[size, 2, C, h, w] means and log variances in half precision, from the folder or made now."""
        import torch
        from safetensors.torch import load_file, save_file

        from unbraid.core.progress import bar

        path = folder / f"latents-{self.size}-{self.seed}.safetensors"
        if path.is_file():
            return load_file(path)["latents"]
        parts = []
        with bar(progress, "Encoding scenes", -(-self.size // CHUNK)) as tick, torch.no_grad():
            for start in range(0, self.size, CHUNK):
                found = vae.encode(self.images(range(start, min(start + CHUNK, self.size)))).latent_dist
                parts.append(torch.stack([found.mean, found.logvar], 1).half())
                tick()
        made = torch.cat(parts)
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        save_file({"latents": made}, unfinished)
        unfinished.replace(path)
        return made
