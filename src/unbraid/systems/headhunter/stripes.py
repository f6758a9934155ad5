"""A world small enough to search in seconds: images of 8 x 8 with one of four stripes, made by a tiny SD3 transformer.

The model is diffusers' own `SD3Transformer2DModel`, 4 blocks of 4 heads, trained by flow matching for a few hundred
steps only, so that its samples leave something to steer. With `plant`, all heads but some are cut off: they alone can
do anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unbraid.core.heads import HeadSet
from unbraid.core.train import fit_loop
from unbraid.systems.headhunter.evaluating import Painter
from unbraid.systems.headhunter.guiding import guide
from unbraid.systems.headhunter.objectives import Score

SIDE, BLOCKS, HEADS, WIDTH, WORDS = 8, 4, 4, 12, 2
STEPS = 16  # of the sampler


def templates() -> Tensor:
    """[4, 1, 8, 8] of -1 and 1: horizontal, vertical and two diagonal stripes."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    phases = torch.stack([y, x, y + x, y - x])
    return torch.where((phases % 4) < 2, 1.0, -1.0)[:, None]


def transformer(seed: int) -> Any:
    """The model before training; adaptive norms and the output begin at zero, as SD3's do."""
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(seed)
    made: Any = SD3Transformer2DModel(
        sample_size=SIDE, patch_size=2, in_channels=1, out_channels=1, num_layers=BLOCKS, attention_head_dim=WIDTH,
        num_attention_heads=HEADS, joint_attention_dim=16, caption_projection_dim=HEADS * WIDTH,
        pooled_projection_dim=16, pos_embed_max_size=SIDE // 2,
    )  # fmt: skip
    zero = [
        m for n, m in made.named_modules() if n.endswith(("norm1.linear", "norm1_context.linear", "norm_out.linear"))
    ]
    for layer in [*zero, made.proj_out]:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return made


def velocity(model: Any, x: Tensor, t: Tensor) -> Tensor:
    """The model's prediction of noise minus image, at times t [B] from 0 (image) to 1 (noise)."""
    n = len(x)
    silent = {"encoder_hidden_states": x.new_zeros(n, WORDS, 16), "pooled_projections": x.new_zeros(n, 16)}
    found: Tensor = model(hidden_states=x, timestep=t * 1000, return_dict=False, **silent)[0]
    return found


def train(seed: int = 0, steps: int = 450, batch: int = 64, lr: float = 3e-3, progress: bool | None = False) -> Any:
    """A trained model.

    Args:
        seed: of weights and data.
        steps: of training; few, so that samples are imperfect.
        batch: images a step.
        lr: highest learning rate of one cycle.
        progress: show a bar.
    """
    model, stock = transformer(seed), templates()

    def draw(number: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        clean = stock[torch.randint(0, len(stock), (batch,), generator=generator)]
        t = torch.sigmoid(torch.randn(batch, generator=generator))
        return clean, torch.randn(clean.shape, generator=generator), t

    def loss(module: Any, given: Any) -> Tensor:
        clean, noise, t = given
        at = t.view(-1, 1, 1, 1)
        return (velocity(module, (1 - at) * clean + at * noise, t) - (noise - clean)).square().mean()

    def cycle(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1)

    fit_loop(model, loss, draw, steps=steps, lr=lr, scheduler=cycle, seed=seed, progress=progress)
    return model.eval()


def plant(model: Any, heads: HeadSet) -> None:
    """Cuts off what all other heads write, in place."""
    for name, module in model.named_modules():
        if not name.endswith(".attn"):
            continue
        keep = set(heads.by_site().get(name, []))
        columns = [c for h in range(HEADS) if h not in keep for c in range(h * WIDTH, (h + 1) * WIDTH)]
        outs = [module.to_out[0]] + ([module.to_add_out] if "to_add_out" in dict(module.named_children()) else [])
        with torch.no_grad():
            for layer in outs:
                layer.weight[:, columns] = 0


def painter(model: Any, strength: float, weight: float) -> Painter:
    """Samples with a set of heads each; prompts say nothing here."""

    @torch.no_grad()
    def make(sets: Sequence[HeadSet], prompts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        noise = [torch.randn(1, SIDE, SIDE, generator=torch.Generator().manual_seed(int(s))) for s in seeds]
        x = torch.stack(noise)
        same = all(one == sets[0] for one in sets)
        with guide(model, sets[0] if same else list(sets), strength, weight):
            for step in range(STEPS):
                t = torch.full((len(x),), 1 - step / STEPS)
                x = x - velocity(model, x, t) / STEPS
        return x.numpy()

    return make


def correlation(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """Of each image with the first template."""
    flat = images.reshape(len(images), -1)
    flat = flat - flat.mean(1, keepdims=True)
    one = templates()[0].flatten().numpy()
    return np.asarray(flat @ one / (np.linalg.norm(flat, axis=1) * np.linalg.norm(one) + 1e-9))


def contrast(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """Standard deviation within each image."""
    return np.asarray(images.reshape(len(images), -1).std(1))


def quality(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """Minus the root-mean-square distance to the nearest template."""
    flat, stock = images.reshape(len(images), 1, -1), templates().flatten(1).numpy()[None]
    return np.asarray(-np.sqrt(((flat - stock) ** 2).mean(2)).min(1))


OBJECTIVES: dict[str, Score] = {"correlation": correlation, "contrast": contrast, "quality": quality}


def change(model: Any, seeds: Sequence[int], weight: float = 1.0, strength: float = 1.0) -> Any:
    """An evaluator for `hunt`: mean squared change of samples against no guidance, for planted heads."""
    paint = painter(model, strength, weight)
    plain = paint([HeadSet()] * len(seeds), [""] * len(seeds), seeds)

    def evaluate(sets: Sequence[HeadSet], items: Sequence[int]) -> np.ndarray:
        out = []
        for one in sets:
            made = paint([one] * len(items), [""] * len(items), [seeds[i] for i in items])
            out.append(((made - plain[list(items)]) ** 2).mean((1, 2, 3)))
        return np.array(out)

    return evaluate


def load_or_train(folder: Path | None, seed: int, steps: int, progress: bool | None) -> Any:
    """The model of a seed, from a folder of an earlier run where it is there."""
    from safetensors.torch import load_file, save_file

    path = None if folder is None else folder / f"stripes-{seed}-{steps}.safetensors"
    if path is not None and path.is_file():
        model = transformer(seed)
        model.load_state_dict(load_file(path))
        return model.eval()
    model = train(seed, steps, progress=progress)
    if path is not None:
        unfinished = path.with_suffix(".part")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, unfinished)
        unfinished.replace(path)
    return model
