"""SCAN's small VAE over labels, tied to a frozen Gaussian posterior (Higgins et al., arXiv 1707.03389)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError
from unbraid.losses.vae import gaussian_kl, kl_between

Likelihood = Literal["bernoulli", "softmax"]
LOGVAR_LIMIT = 10.0


def khot(labels: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """[n, M] float32: a column per value of each factor, 1 where it is named; an unknown label (-1) names none.

    Args:
        labels: [n, K] whole numbers below ``sizes``, or -1.
        sizes: [K] values of each factor; M is their sum.

    Raises:
        UnbraidError: labels of another shape, or beyond their size.
    """
    y = np.asarray(labels)
    if y.ndim != 2 or y.shape[1] != len(sizes) or y.dtype.kind not in "iu":
        raise UnbraidError(f"labels must be whole numbers [n, {len(sizes)}], not {y.dtype} {y.shape}.")
    if ((y < -1) | (y >= np.asarray(sizes))).any():
        raise UnbraidError(f"labels must lie between 0 and their sizes {list(sizes)}, or be -1 where unknown.")
    return np.concatenate([y[:, [k]] == np.arange(size) for k, size in enumerate(sizes)], 1).astype(np.float32)


class ScanHead(nn.Module):
    """q(z_y|y) and p(y|z_y), each with one hidden layer; latents in the order of the observations' VAE.

    Args:
        sizes: [K] values of each factor; a label vector has a column per value.
        latents: J, as those of the VAE.
        hidden: units.
        likelihood: "bernoulli" per column, as SCAN has it, or a "softmax" within each factor.
    """

    def __init__(
        self, sizes: Sequence[int], latents: int, hidden: int = 64, likelihood: Likelihood = "bernoulli"
    ) -> None:
        super().__init__()
        if likelihood not in ("bernoulli", "softmax"):
            raise UnbraidError(f"likelihood is {likelihood!r}; it must be 'bernoulli' or 'softmax'.")
        self.sizes, self.latents, self.likelihood = [int(s) for s in sizes], latents, likelihood
        total = sum(self.sizes)
        self.encoder = nn.Sequential(nn.Linear(total, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latents))
        self.decoder = nn.Sequential(nn.Linear(latents, hidden), nn.ReLU(), nn.Linear(hidden, total))

    def encode(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log variances [B, J] of label vectors [B, M]; zeros throughout a factor: it is not named."""
        mu, logvar = self.encoder(y).chunk(2, dim=-1)
        return mu, logvar.clamp(-LOGVAR_LIMIT, LOGVAR_LIMIT)

    def logits(self, z: Tensor) -> Tensor:
        """[B, M] of codes [B, J]."""
        return self.decoder(z)

    def nll(self, logits: Tensor, y: Tensor) -> Tensor:
        """[B, K] negative log-likelihood per factor, in nats; meaningless where a factor is not named."""
        parts = zip(logits.split(self.sizes, 1), y.split(self.sizes, 1), strict=True)
        if self.likelihood == "softmax":
            return torch.stack([-(t * p.log_softmax(1)).sum(1) for p, t in parts], 1)
        return torch.stack(
            [F.binary_cross_entropy_with_logits(p, t, reduction="none").sum(1) for p, t in parts], 1
        )  # fmt: skip

    def probabilities(self, logits: Tensor) -> list[Tensor]:
        """[B, values] per factor, each row summing to 1; Bernoulli ones are normalised within the factor."""
        if self.likelihood == "softmax":
            return [p.softmax(1) for p in logits.split(self.sizes, 1)]
        # sigmoid(a) / sum sigmoid: in logarithms, so that values far from both do not become 0 / 0
        return [F.logsigmoid(p).softmax(1) for p in logits.split(self.sizes, 1)]


def scan_loss(
    head: ScanHead,
    y: Tensor,
    mu_x: Tensor,
    logvar_x: Tensor,
    *,
    strength: float = 10.0,
    beta_y: float = 1.0,
    weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """-E[log p(y|z_y)] + beta_y KL(q(z_y|y) || N(0, I)) + strength KL(q(z_x|x) || q(z_y|y)), mean over the batch.

    The direction of the last term makes a label's code cover all observations that carry it, so that a latent which
    has nothing to do with the label keeps the prior. No gradient reaches the observations' posterior.

    Args:
        head: of the labels.
        y: [B, M] label vectors; a factor without a 1 is not named and not part of the likelihood.
        mu_x: [B, J] means of the observations that carry these labels.
        logvar_x: [B, J] their log variances.
        strength: lambda.
        beta_y: weight of the prior.
        weights: [M] of each value in the likelihood, for rare ones; None: all 1.

    Returns:
        The loss, and its three parts.
    """
    mu, logvar = head.encode(y)
    z = mu + (0.5 * logvar).exp() * torch.randn_like(mu)
    named = torch.stack([part.sum(1) for part in y.split(head.sizes, 1)], 1)
    if weights is not None:
        named = torch.stack([part.sum(1) for part in (y * weights).split(head.sizes, 1)], 1)
    said = (named * head.nll(head.logits(z), y)).sum(1).mean()
    prior = gaussian_kl(mu, logvar).sum(1).mean()
    apart = kl_between(mu_x.detach(), logvar_x.detach(), mu, logvar).sum(1).mean()
    return said + beta_y * prior + strength * apart, {"label": said, "prior": prior, "apart": apart}
