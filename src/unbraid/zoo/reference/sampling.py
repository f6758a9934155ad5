"""Samples of a packed pipeline for scoring; each picture has a seed of its own and does not depend on its batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unbraid.core.progress import Tick


def opened(folder: Path) -> Any:
    """The pipeline of a folder, in full precision and silent."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pictures(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    batch: int = 16,
    tick: Tick | None = None,
) -> np.ndarray:
    """Samples.

    Args:
        pipe: a pipeline.
        prompts: one for each picture.
        seeds: as many.
        steps: of the sampler.
        guidance: scale of classifier-free guidance.
        batch: pictures at a time.
        tick: called with the number of pictures after each batch.

    Returns:
        [n, 3, H, W] from 0 to 1.
    """
    made = []
    for start in range(0, len(prompts), batch):
        some = list(prompts[start : start + batch])
        chance = [torch.Generator().manual_seed(int(seed)) for seed in seeds[start : start + batch]]
        found = pipe(
            some, num_inference_steps=steps, guidance_scale=guidance, generator=chance, output_type="np"
        ).images
        made.append(np.asarray(found, np.float32).transpose(0, 3, 1, 2))
        if tick:
            tick(len(some))
    return np.concatenate(made)


@torch.no_grad()
def rebuilt(vae: Any, images: np.ndarray, batch: int = 64) -> np.ndarray:
    """Images [n, 3, H, W] from 0 to 1, there and back through the autoencoder, by the mean of their code."""
    made = []
    for start in range(0, len(images), batch):
        x = torch.from_numpy(images[start : start + batch]) * 2 - 1
        made.append((vae.decode(vae.encode(x).latent_dist.mean).sample / 2 + 0.5).clamp(0, 1).numpy())
    return np.concatenate(made)
