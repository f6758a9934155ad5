"""What is minimised: reconstruction, the rate of both parts, and a term per labelled factor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unbraid.losses.contrastive import Form, info_nce
from unbraid.losses.dependence import label_cka
from unbraid.losses.vae import gaussian_kl

Supervision = Literal["contrast", "classifier", "none"]
RATE, SMOOTH = 0.02, 0.95  # of the controller of beta_s, and of the running mean it looks at
BETA_RANGE = (1e-2, 1e6)


@dataclass(frozen=True)
class Weights:
    """Settings of `BlockLoss`; see `XFactors` for what they mean."""

    kl: float = 1e-6
    beta_s: float = 100.0
    beta_t: float = 1.0
    contrast: float = 0.1
    tau: float = 0.03
    form: Form = "inside"
    supervision: Supervision = "contrast"
    capacity: float | None = None
    leakage: float = 0.0
    covariance: float = 0.0
    exchange: float = 0.0


class BlockLoss(nn.Module):
    """A VAE with the loss of XFactors around it.

    Args:
        vae: a `GaussianVAE` whose code begins with S.
        blocks: (first, last + 1) of each factor's block in the code.
        classes: classes of each factor, for heads of a classifier.
        bandwidths: of each factor's contrast, None for classes.
        periods: of cyclic factors.
        weights: of the terms.
    """

    beta: Tensor
    rate: Tensor

    def __init__(
        self,
        vae: Any,
        blocks: Sequence[tuple[int, int]],
        classes: Sequence[int],
        bandwidths: Sequence[float | None],
        periods: Sequence[float | None],
        weights: Weights,
    ) -> None:
        super().__init__()
        self.vae, self.blocks, self.weights = vae, list(blocks), weights
        self.bandwidths, self.periods = list(bandwidths), list(periods)
        self.rest = blocks[0][0]
        heads = zip(blocks, classes, strict=True) if weights.supervision == "classifier" else ()
        self.heads = nn.ModuleList(nn.Linear(b - a, n) for (a, b), n in heads)
        # buffers, so that a checkpoint has them
        self.register_buffer("beta", torch.tensor(float(weights.beta_s)))
        self.register_buffer("rate", torch.tensor(math.nan))

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of images [B, C, H, W] with labels [B, factors] (negative: unknown), and its parts."""
        w = self.weights
        mu, logvar = self.vae.encode(x)
        z = self.vae.sample(mu, logvar)
        logits = self.vae.logits(self._exchanged(z, labels) if w.exchange else z)
        error = (self.vae.activate(logits) - x).square().mean()
        kl = gaussian_kl(mu, logvar).mean(0)
        kl_s, kl_t = kl[: self.rest].sum(), kl[self.rest :].sum()
        self._steer(kl_s)
        loss = error + w.kl * (self.beta * kl_s + w.beta_t * kl_t)
        told = {"mse": error, "kl_s": kl_s, "kl_t": kl_t, "beta_s": self.beta}
        term, anchored = self._supervision(z, labels)
        told |= {"supervision": term, "with a positive": anchored}
        loss = loss + w.contrast / len(self.blocks) * term
        if w.leakage:
            told["leakage"] = sum((label_cka(mu[:, : self.rest], y).clamp(min=0) for y in labels.T), z.new_zeros(()))
            loss = loss + w.leakage * told["leakage"]
        if w.covariance:
            told["correlation"] = correlation(mu[:, : self.rest], mu[:, self.rest :])
            loss = loss + w.covariance * told["correlation"].clamp(max=1)
        return loss, told

    def _exchanged(self, z: Tensor, labels: Tensor) -> Tensor:
        """Codes whose blocks come, each with the probability asked, from another image of the batch with that label."""
        mixed = z.clone()
        for i, (a, b) in enumerate(self.blocks):
            other = partners(labels[:, i])
            taken = torch.rand(len(z), 1, device=z.device) < self.weights.exchange
            mixed[:, a:b] = torch.where(taken, z[other, a:b], z[:, a:b])
        return mixed

    def _supervision(self, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        term, anchored = z.new_zeros(()), z.new_zeros(())
        if self.weights.supervision == "none":
            return term, anchored
        for i, (a, b) in enumerate(self.blocks):
            y = labels[:, i]
            if self.heads:
                term = term + nn.functional.cross_entropy(self.heads[i](z[:, a:b]), y.long(), ignore_index=-1)
                continue
            w = self.weights
            made = info_nce(z[:, a:b], y, w.tau, w.form, self.bandwidths[i], self.periods[i])
            term, anchored = term + made.loss, anchored + made.anchored / len(self.blocks)
        return term, anchored

    @torch.no_grad()
    def _steer(self, kl_s: Tensor) -> None:
        """With a capacity: beta_s grows while the residual carries more than that, else it shrinks."""
        target = self.weights.capacity
        if target is None or not self.training:
            return
        kl_s = kl_s.detach()
        self.rate.copy_(kl_s if bool(self.rate.isnan()) else SMOOTH * self.rate + (1 - SMOOTH) * kl_s)
        off = ((self.rate - target) / target).clamp(-1, 1)
        self.beta.mul_((RATE * off).exp()).clamp_(*BETA_RANGE)


def partners(labels: Tensor) -> Tensor:
    """[B] for each sample another one, drawn without replacement, of the same label; itself where that is unknown."""
    ranks = labels.unique(return_inverse=True)[1]
    one, other = ((ranks + 0.5 * torch.rand(len(ranks), device=labels.device)).argsort() for _ in range(2))
    found = torch.empty_like(one)
    found[one] = other
    return torch.where(labels < 0, torch.arange(len(labels), device=labels.device), found)


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """Frobenius norm of the correlations between two sets of codes [B, ...] over the batch."""
    one, other = ((c - c.mean(0)) / c.std(0).clamp(min=1e-6) for c in (one, other))
    return (one.T @ other / len(one)).norm()
