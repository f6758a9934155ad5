"""Fine-tuning a pipeline on photos: what is trained, what a step sees, and the run itself, on `fit_loop`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError
from unbraid.core.train import fit_loop
from unbraid.core.training.history import History
from unbraid.diffusion.parts import Context, Parts
from unbraid.diffusion.photos import Album, Crop
from unbraid.diffusion.step import DiffusionStep
from unbraid.diffusion.tokens import NewTokens

Schedule = Literal["constant", "linear", "cosine"]
Loss = Callable[["Tuner", Any], tuple[Tensor, dict[str, Any]]]


@contextmanager
def held(parts: Parts) -> Iterator[None]:
    """All of a pipeline frozen and in evaluation mode; afterwards every weight and module is as it was."""
    modules = [part for part in parts.pipe.components.values() if isinstance(part, nn.Module)]
    asked = {p: p.requires_grad for module in modules for p in module.parameters()}
    modes = {m: m.training for module in modules for m in module.modules()}
    for module in modules:
        module.eval().requires_grad_(False)
    try:
        yield
    finally:
        for weight, before in asked.items():
            weight.requires_grad_(before)
        for one, mode in modes.items():
            one.training = mode


class Views:
    """What steps see of an album: squares and their latents, encoded once where crops are always the same.

    Args:
        parts: of the pipeline.
        album: photos; their size is the training size.
        crop: "centre", or "random" along the longer side.
    """

    def __init__(self, parts: Parts, album: Album, crop: Crop = "centre") -> None:
        self.parts, self.album, self.crop = parts, album, crop
        fixed = crop == "centre" or all(min(i.shape[1:]) == max(i.shape[1:]) == album.size for i in album.images)
        self._known = self._encode(album.crop(range(len(album)))) if fixed else None

    def _encode(self, squares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            found = [self.parts.posterior(part[:, :3]) for part in squares.split(8)]
        return squares, torch.cat([mean for mean, _ in found]), torch.cat([spread for _, spread in found])

    def draw(self, at: Sequence[int], generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Some photos as squares [n, 3, size, size], latents [n, C, h, w] and masks [n, 1, h, w] of the latents."""
        if self._known is None:
            squares, mean, spread = self._encode(self.album.crop(at, self.crop, generator))
        else:
            squares, mean, spread = (one[list(at)] for one in self._known)
        latents = mean + spread * torch.randn(mean.shape, generator=generator).to(mean)
        if squares.shape[1] == 3:
            return squares, latents, None
        height, width = latents.shape[-2:]
        area = nn.functional.adaptive_avg_pool2d(squares[:, 3:], (height, width))
        return squares[:, :3], latents, area.to(latents)


class Tuner(nn.Module):
    """Everything that a run trains, in one module for `fit_loop`: a denoiser with adapters, new words, networks.

    Args:
        parts: of the pipeline.
        step: how noise is drawn.
        words: new words whose rows are trained; the text encoders then run in every step.
        networks: further modules to train.

    Attributes:
        parts: the same.
        step: the same.
    """

    def __init__(
        self,
        parts: Parts,
        step: DiffusionStep | None = None,
        words: NewTokens | None = None,
        networks: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.denoiser, self.words, self.networks = parts.denoiser, words, networks
        self.__dict__["parts"], self.__dict__["step"] = parts, step or DiffusionStep(parts)
        self._told: dict[str, Context] = {}
        self.means = nn.ParameterList()

    def told(self, prompts: Sequence[str]) -> Context:
        """What the denoiser is told by prompts; with no words to train each is encoded once and kept."""
        parts: Parts = self.__dict__["parts"]
        if self.words is not None:
            return parts.encode(prompts)
        new = [one for one in dict.fromkeys(prompts) if one not in self._told]
        with torch.no_grad():
            for one in new:
                self._told[one] = parts.encode([one])
        return Context.cat([self._told[one] for one in prompts])

    def trained(self) -> list[nn.Parameter]:
        """Weights that ask for a gradient."""
        return [p for p in self.parameters() if p.requires_grad]


def tune(
    tuner: Tuner,
    loss: Loss,
    draw: Callable[[int, torch.Generator], Any],
    *,
    steps: int,
    lr: float = 1e-4,
    decay: float = 1e-2,
    schedule: Schedule = "constant",
    warmup: int = 0,
    mean_decay: float | None = None,
    clip: float | None = 1.0,
    accumulate: int = 1,
    gradient_checkpointing: bool = False,
    precision: str = "no",
    seed: int = 0,
    keep: str | Path | None = None,
    every: int | None = None,
    progress: bool | None = None,
    callbacks: Sequence[Callable[..., Any]] = (),
) -> History:
    """A run; interrupted it goes on from its last checkpoint where `keep` is a folder.

    Args:
        tuner: what is trained.
        loss: (tuner, batch) -> (scalar, numbers to record).
        draw: (number of the batch, generator) -> batch.
        steps: of training.
        lr: learning rate.
        decay: weight decay of AdamW; rows of new words have none.
        schedule: of the learning rate, as diffusers names them.
        warmup: steps.
        mean_decay: of a running mean of the weights, which the tuner has in the end; None: none is kept.
        clip: norm of the gradient, all trained weights together.
        accumulate: batches per step.
        gradient_checkpointing: less memory, more time.
        precision: "no", "bf16" or "fp16".
        seed: of everything random.
        keep: folder for checkpoints.
        every: steps between checkpoints.
        progress: show a bar with the time left.
        callbacks: called as (step, tuner, numbers) after each step.

    Raises:
        UnbraidError: nothing to train, or out of memory.
    """
    from diffusers.optimization import get_scheduler

    tuner.means = nn.ParameterList()
    if mean_decay is not None:
        tuner.means = nn.ParameterList(nn.Parameter(p.detach().clone(), False) for p in tuner.trained())
        callbacks = [_averager(mean_decay), *callbacks]

    def optimizer(parameters: list[nn.Parameter]) -> Any:
        rows = set(tuner.words.rows) if tuner.words is not None else set()
        groups = [([p for p in parameters if p not in rows], decay), ([p for p in parameters if p in rows], 0.0)]
        return torch.optim.AdamW([{"params": some, "weight_decay": d} for some, d in groups if some], lr=lr)

    def scheduler(optimizer: Any) -> Any:
        return get_scheduler(schedule, optimizer, num_warmup_steps=warmup, num_training_steps=steps)

    with _checkpointed(tuner.denoiser) if gradient_checkpointing else nullcontext():
        try:
            history = fit_loop(
                tuner, loss, draw, steps=steps, lr=lr, optimizer=optimizer,
                scheduler=scheduler, grad_clip=clip, accumulate=accumulate,
                mixed_precision=precision, seed=seed, checkpoint_dir=keep, checkpoint_every=every, progress=progress,
                callbacks=list(callbacks),
            )  # fmt: skip
        except torch.OutOfMemoryError as error:
            raise UnbraidError(
                "out of memory while tuning; lower the batch or the size, or turn on gradient_checkpointing or "
                "precision bf16."
            ) from error
    with torch.no_grad():
        for weight, mean in zip(tuner.trained(), tuner.means, strict=False):
            weight.copy_(mean)
    tuner.means = nn.ParameterList()
    return history


def _averager(decay: float) -> Callable[..., None]:
    @torch.no_grad()
    def update(step: int, tuner: Any, numbers: Any) -> None:
        keep = min(decay, (1 + step) / (10 + step))  # early on the mean forgets faster
        for mean, weight in zip(tuner.means, tuner.trained(), strict=True):
            mean.lerp_(weight, 1 - keep)

    return update


@contextmanager
def _checkpointed(denoiser: Any) -> Iterator[None]:
    """Activations are computed again in the backward pass; diffusers does that in training mode only."""
    modes, was = {m: m.training for m in denoiser.modules()}, bool(denoiser.is_gradient_checkpointing)
    denoiser.enable_gradient_checkpointing()
    denoiser.train()
    try:
        yield
    finally:
        if not was:
            denoiser.disable_gradient_checkpointing()
        for module, mode in modes.items():
            module.training = mode
