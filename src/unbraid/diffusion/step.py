"""One step of training a denoiser: noise of any objective, several contexts in one forward pass, masked errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unbraid.core.errors import UnbraidError
from unbraid.diffusion.parts import Context, Parts

Reduction = Literal["mean", "valid", "mask"]
Density = Literal["uniform", "logit_normal"]


@dataclass(frozen=True, eq=False)
class Noised:
    """Latents with noise and what the denoiser should say of them.

    Attributes:
        noisy: [B, C, h, w].
        t: timesteps [B], 0 to 1000.
        target: [B, C, h, w].
        weight: [B], of each error.
    """

    noisy: Tensor
    t: Tensor
    target: Tensor
    weight: Tensor


class DiffusionStep:
    """Draws noise for a pipeline's objective and measures errors.

    Args:
        parts: of the pipeline.
        snr_gamma: min-SNR weights (arXiv 2303.09556) with this bound, None for equal weights; not for flows.
        times: from which to which share of the timesteps to draw, 0 clean to 1 noise.
        density: of a flow's timesteps; "logit_normal" is Stable Diffusion 3's.

    Raises:
        UnbraidError: `times` is no range within 0 to 1, or `snr_gamma` not positive.
    """

    def __init__(
        self,
        parts: Parts,
        snr_gamma: float | None = None,
        times: tuple[float, float] = (0.0, 1.0),
        density: Density = "logit_normal",
    ) -> None:
        if not 0 <= times[0] < times[1] <= 1:
            raise UnbraidError(f"times are {times}; give a range within 0 to 1, such as (0.0, 1.0).")
        if snr_gamma is not None and snr_gamma <= 0:
            raise UnbraidError(f"snr_gamma is {snr_gamma}; it must be positive, or None.")
        self.parts, self.snr_gamma, self.times, self.density = parts, snr_gamma, times, density

    def draw(self, latents: Tensor, generator: torch.Generator | None = None) -> Noised:
        """Latents [B, C, h, w] with fresh noise at random timesteps; `generator` None takes torch's own."""
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        if self.parts.objective == "flow":
            return self.flow(latents, noise, self._shares(len(latents), generator).to(latents))
        total = int(self.parts.scheduler.config.num_train_timesteps)
        low, high = int(self.times[0] * total), max(int(self.times[1] * total), int(self.times[0] * total) + 1)
        t = torch.randint(low, high, (len(latents),), generator=generator)
        return self.diffusion(latents, noise, t.to(latents.device))

    def diffusion(self, latents: Tensor, noise: Tensor, t: Tensor) -> Noised:
        """Of chosen noise and timesteps [B], for noise, velocity and sample objectives."""
        kept = self.parts.scheduler.alphas_cumprod.to(latents)[t]
        a = kept.view(-1, 1, 1, 1)
        noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
        objective = self.parts.objective
        if objective == "v_prediction":
            target = a.sqrt() * noise - (1 - a).sqrt() * latents
        else:
            target = latents if objective == "sample" else noise
        weight = torch.ones_like(kept)
        if self.snr_gamma is not None:
            snr = kept / (1 - kept)
            bounded = snr.clamp(max=self.snr_gamma)
            weight = {"epsilon": bounded / snr, "v_prediction": bounded / (snr + 1), "sample": bounded}[objective]
        return Noised(noisy, t, target, weight)

    def flow(self, latents: Tensor, noise: Tensor, share: Tensor) -> Noised:
        """Of chosen noise and its share [B], 0 to 1: straight lines between picture and noise."""
        s = share.view(-1, 1, 1, 1)
        return Noised((1 - s) * latents + s * noise, share * 1000, noise - latents, torch.ones_like(share))

    def _shares(self, batch: int, generator: torch.Generator | None) -> Tensor:
        if self.density == "logit_normal":
            found = torch.randn(batch, generator=generator).sigmoid()
        else:
            found = torch.rand(batch, generator=generator)
        shift = float(self.parts.scheduler.config.get("shift") or 1.0)
        found = shift * found / (1 + (shift - 1) * found)
        return self.times[0] + (self.times[1] - self.times[0]) * found

    def predict(self, noised: Noised, contexts: Sequence[Context], guidance: float = 1.0) -> list[Tensor]:
        """What the denoiser says under each of several contexts, in one forward pass of as many times B rows."""
        many = len(contexts)
        made = self.parts.predict(
            noised.noisy.repeat(many, 1, 1, 1), noised.t.repeat(many), Context.cat(contexts), guidance
        )
        return list(made.chunk(many))

    def error(self, made: Tensor, noised: Noised, mask: Tensor | None = None, reduction: Reduction = "valid") -> Tensor:
        """Weighted mean squared error of each row, [B]; within a mask [B, 1, h, w] from 0 to 1 where one is given.

        Args:
            made: [B, C, h, w], the denoiser's word.
            noised: what it was about.
            mask: share of each latent pixel that counts.
            reduction: divide the sum of squares by the mask's area times channels ("valid"), by its area alone
                ("mask", as AttenCraft's code does), or by all pixels times channels ("mean").
        """
        squares = (made.float() - noised.target.float()).square()
        if mask is None:
            return noised.weight * squares.mean((1, 2, 3))
        summed = (squares * mask).sum((1, 2, 3))
        area = mask.sum((1, 2, 3)).clamp(min=1e-6)
        channels, pixels = made.shape[1], made.shape[2] * made.shape[3]
        whole = {"valid": area * channels, "mask": area, "mean": summed.new_tensor(float(channels * pixels))}[reduction]
        return noised.weight * summed / whole
