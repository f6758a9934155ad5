"""How the reference pipelines are trained: each part with `fit_loop`, so that it goes on where it was cut off."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from unbraid.core.train import fit_loop
from unbraid.data.scenes import render, sample
from unbraid.zoo.reference import SIDE, parts
from unbraid.zoo.reference.bank import Bank
from unbraid.zoo.reference.words import tokenizer

KL, EDGES = 5e-4, 1.0
GAMMA = 5.0  # min-SNR (arXiv 2303.09556)
DECAY = 0.9995  # of the running mean of weights, which is what ships
WARM, FALL = 500, 0.2


def schedule(steps: int, warm: int = WARM, fall: float = FALL) -> Callable[[Any], Any]:
    """Warm-up, a plateau, and over the last fifth 1 - sqrt down to a hundredth (arXiv 2405.18392).

    Up to the fall the number of steps does not matter, so a run can be given more of them later on.
    """
    turn = steps * (1 - fall)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        if step < turn:
            return 1.0
        return max(0.01, 1 - math.sqrt(min(1.0, (step - turn) / max(1.0, steps - turn))))

    return lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbours along both axes."""
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def vae_loss(vae: Any, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Absolute error of pixels and of their differences, and a little of the divergence from the prior."""
    code = vae.encode(x).latent_dist
    mean, logvar = code.mean, code.logvar
    made = vae.decode(mean + (0.5 * logvar).exp() * torch.randn_like(mean)).sample
    error = (made - x).abs().mean()
    sharp = sum(((a - b).abs().mean() for a, b in zip(edges(made), edges(x), strict=True)), x.new_zeros(()))
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return error + EDGES * sharp + KL * kl, {"error": error, "edges": sharp, "kl": kl}


def train_vae(keep: Path, steps: int = 8_000, batch: int = 16, lr: float = 1e-3, progress: bool | None = None) -> Any:
    """The autoencoder; its latents are scaled to unit variance in the end.

    Args:
        keep: folder for checkpoints and, at the end, for the model.
        steps: of training.
        batch: scenes per step, each of them new.
        lr: highest learning rate.
        progress: show a bar.
    """
    torch.manual_seed(0)
    vae = parts.vae()

    def draw(number: int, generator: torch.Generator) -> Tensor:
        return torch.from_numpy(render(sample(batch, 1_000_000 + number), SIDE)) * 2 - 1

    fit_loop(
        vae, vae_loss, draw, steps=steps, lr=lr, scheduler=schedule(steps), grad_clip=1.0, checkpoint_dir=keep / "vae",
        checkpoint_every=500, progress=progress,
    )  # fmt: skip
    vae.eval()
    with torch.no_grad():
        found = torch.cat([vae.encode(draw(10_000_000 + i, torch.Generator())).latent_dist.mean for i in range(32)])
    vae.register_to_config(scaling_factor=float(1 / found.std()))
    vae.save_pretrained(keep / "vae_final")
    return vae


class Averaged(nn.Module):
    """A module and the running mean of its weights, both of which checkpoints have."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.mean = copy.deepcopy(module).requires_grad_(False)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After a step; early on the mean forgets faster."""
        decay = min(DECAY, (1 + step) / (10 + step))
        for kept, new in zip(self.mean.parameters(), self.module.parameters(), strict=True):
            kept.lerp_(new, 1 - decay)


def average(step: int, module: nn.Module, numbers: Any) -> None:
    """A callback of `fit_loop` for modules with `Averaged` inside."""
    for part in module.modules():
        if isinstance(part, Averaged):
            part.update(step)


class Denoiser(nn.Module):
    """Words and UNet together; the loss is the v-prediction's with min-SNR weights."""

    signal: Tensor

    def __init__(self, text: nn.Module, unet: nn.Module, scheduler: Any) -> None:
        super().__init__()
        self.both = Averaged(nn.ModuleDict({"text": text, "unet": unet}))
        self.register_buffer("signal", scheduler.alphas_cumprod.clone(), persistent=False)

    def forward(self, clean: Tensor, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of scaled latents [B, C, h, w] under prompts [B, length]."""
        model: Any = self.both.module
        t = torch.randint(0, len(self.signal), (len(clean),), device=clean.device)
        noise = torch.randn_like(clean)
        a = self.signal[t].view(-1, 1, 1, 1)
        noisy, target = a.sqrt() * clean + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * clean
        words = model["text"](ids).last_hidden_state
        made = model["unet"](noisy, t, words).sample
        error = (made - target).square().mean((1, 2, 3))
        snr = (a / (1 - a)).flatten()
        weight = snr.clamp(max=GAMMA) / (snr + 1)
        return (weight * error).mean(), {"error": error.mean()}


def train_sd(
    keep: Path, steps: int = 12_000, size: int = 60_000, batch: int = 32, lr: float = 8e-4, progress: bool | None = None
) -> None:
    """Text encoder and UNet on latents of the trained autoencoder.

    Args:
        keep: folder with the autoencoder; checkpoints go there too.
        steps: of training.
        size: scenes; captions are worded anew at each step.
        batch: scenes per step.
        lr: highest learning rate.
        progress: show bars.
    """
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(keep / "vae_final").eval()
    bank, words = Bank(size), tokenizer()
    latents = bank.latents(vae, keep, progress)
    torch.manual_seed(0)
    model = Denoiser(parts.text_encoder(len(words), words.eos_token_id), parts.unet(), parts.scheduler())
    scale = float(vae.config.scaling_factor)

    def draw(number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        at = torch.randint(size, (batch,), generator=generator)
        mean, logvar = latents[at].float().unbind(1)
        noise = torch.randn(mean.shape, generator=generator)
        said = bank.captions(at.tolist(), number)
        return (mean + (0.5 * logvar).exp() * noise) * scale, encode(words, said)

    fit_loop(
        model, lambda m, b: m(*b), draw, steps=steps, lr=lr, scheduler=schedule(steps), grad_clip=1.0,
        checkpoint_dir=keep / "sd", checkpoint_every=500, progress=progress, callbacks=average,
    )  # fmt: skip
    final: Any = model.both.mean
    final["text"].save_pretrained(keep / "text_final")
    final["unet"].save_pretrained(keep / "unet_final")
    words.save_pretrained(keep / "tokenizer_final")


class Contrast(nn.Module):
    """A `CLIPModel` with its own loss."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = Averaged(clip)

    def forward(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The symmetric contrast of images [B, 3, side, side] and prompts [B, length]; equal prompts are no rivals."""
        found: Any = self.clip.module(input_ids=ids, pixel_values=pixels)
        logits = found.logits_per_text
        same = (ids[:, None] == ids[None]).all(-1) & ~torch.eye(len(ids), dtype=torch.bool, device=ids.device)
        logits = logits.masked_fill(same, -1e4)
        at = torch.arange(len(ids), device=ids.device)
        loss = 0.5 * (functional.cross_entropy(logits, at) + functional.cross_entropy(logits.T, at))
        return loss, {"hits": (logits.argmax(1) == at).float().mean()}


def train_clip(
    keep: Path, steps: int = 6_000, size: int = 60_000, batch: int = 128, lr: float = 1e-3, progress: bool | None = None
) -> None:
    """Images and words in one space.

    Args:
        keep: folder for checkpoints and, at the end, for the model.
        steps: of training.
        size: scenes; captions are worded anew at each step.
        batch: pairs per step.
        lr: highest learning rate.
        progress: show a bar.
    """
    bank, words = Bank(size), tokenizer()
    torch.manual_seed(0)
    model = Contrast(parts.clip(len(words), words.eos_token_id))

    def draw(number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        at = torch.randint(size, (batch,), generator=generator).tolist()
        return bank.images(at), encode(words, bank.captions(at, number, empty=0.0))

    fit_loop(
        model, lambda m, b: m(*b), draw, steps=steps, lr=lr, scheduler=schedule(steps), grad_clip=1.0,
        checkpoint_dir=keep / "clip", checkpoint_every=250, progress=progress, callbacks=average,
    )  # fmt: skip
    final: Any = model.clip.mean
    final.save_pretrained(keep / "clip_final")
    words.save_pretrained(keep / "clip_final")


def encode(words: Any, said: list[str]) -> Tensor:
    """[n, length] token numbers, padded and cut as pipelines do."""
    found = words(said, padding="max_length", truncation=True, max_length=words.model_max_length, return_tensors="pt")
    return found.input_ids
