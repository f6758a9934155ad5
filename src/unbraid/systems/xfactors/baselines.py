"""What a user would try instead: a plain beta-VAE, Ada-GVAE on pairs that share factors, a VAE with classifier heads.

The first two see no labels in training; their latents are given to factors afterwards by mutual information.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unbraid.core.train import fit_loop
from unbraid.data.factors import FactorData
from unbraid.data.observations import Observations
from unbraid.layers.nets import Kind
from unbraid.layers.vae import Activation, GaussianVAE, Likelihood, encode_all, image_vae, seeded
from unbraid.losses.vae import gaussian_kl, kl_between, vae_reconstruction

POOL = 4_096  # pairs drawn per factor that changes


class PairLoss(nn.Module):
    """Ada-GVAE (Locatello et al. 2020, arXiv 2002.02886): latents that two images share are averaged.

    A latent is shared where the divergence between the two posteriors lies below the middle of the least and the
    greatest of the pair.

    Args:
        vae: a `GaussianVAE`.
        beta: of the divergence from the prior.
        adaptive: False trains a plain beta-VAE on the same images.
    """

    def __init__(self, vae: Any, beta: float, adaptive: bool = True) -> None:
        super().__init__()
        self.vae, self.beta, self.adaptive = vae, beta, adaptive

    def forward(self, one: Tensor, other: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss of both images of each pair."""
        (mu, logvar), (mu_2, logvar_2) = self.vae.encode(one), self.vae.encode(other)
        if self.adaptive:
            apart = kl_between(mu, logvar, mu_2, logvar_2)
            middle = 0.5 * (apart.amax(1, keepdim=True) + apart.amin(1, keepdim=True))
            same = (apart < middle).detach()
            mean, spread = 0.5 * (mu + mu_2), (0.5 * (logvar.exp() + logvar_2.exp())).log()
            mu, mu_2 = torch.where(same, mean, mu), torch.where(same, mean, mu_2)
            logvar, logvar_2 = torch.where(same, spread, logvar), torch.where(same, spread, logvar_2)
        loss, kl = one.new_zeros(()), one.new_zeros(())
        for x, m, s in ((one, mu, logvar), (other, mu_2, logvar_2)):
            error = vae_reconstruction(self.vae, x, self.vae.logits(self.vae.sample(m, s)))
            kl = kl + gaussian_kl(m, s).sum(1).mean() / 2
            loss = loss + error / 2
        return loss + self.beta * kl, {"kl": kl}


def train_on_pairs(
    data: FactorData,
    latents: int,
    beta: float,
    adaptive: bool,
    steps: int,
    batch: int,
    kind: Kind,
    width: int,
    seed: int,
    progress: bool | None = False,
) -> GaussianVAE:
    """A VAE trained on pairs of images that differ in one factor (which one is not told).

    Args:
        data: images and factors; the latter choose the pairs only.
        latents: of the code.
        beta: of the divergence.
        adaptive: Ada-GVAE; False: a beta-VAE on the same images.
        steps: of training.
        batch: images per step, half as many pairs.
        kind: of network, see `image_encoder`.
        width: of that network.
        seed: of weights, pairs and draws.
        progress: show a bar.
    """
    source = Observations(data, unit=True)
    likelihood: Likelihood = "bernoulli"
    activation: Activation = "sigmoid"
    vae = image_vae(
        source.shape[0], source.shape[1], latents, kind=kind, width=width, norm="batch", likelihood=likelihood,
        activation=activation, seed=seed,
    )  # fmt: skip
    numbered = FactorData(np.arange(len(data)), data.factors, data.names, data.sizes)
    sides = []
    for name in data.names:
        share = [n for n in data.names if n != name]
        one, other = numbered.pairs(POOL, share, seed)
        sides.append(np.stack([one.x, other.x], 1))
    pool = torch.from_numpy(np.concatenate(sides))
    with seeded(seed):
        loss = PairLoss(vae, beta, adaptive)

    def draw(number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        at = pool[torch.randint(len(pool), (max(2, batch // 2),), generator=generator)]
        return torch.from_numpy(source.take(at[:, 0].numpy())), torch.from_numpy(source.take(at[:, 1].numpy()))

    fit_loop(loss, lambda m, b: m(*b), draw, steps=steps, seed=seed, lr=1e-3, progress=progress)
    return vae.eval()


def assigned(vae: Any, data: FactorData, targets: Sequence[str], dim: int) -> dict[str, list[int]]:
    """The latents that tell most about each target, none twice; "S" is the rest. The strongest pairs come first.

    Args:
        vae: a trained VAE.
        data: images and factors.
        targets: factors that get latents.
        dim: latents of each.
    """
    from unbraid.metrics.disentanglement import mutual_information

    columns = [data.column(n) for n in targets]
    mu = encode_all(vae, data)[0]
    told = np.array(mutual_information(mu, data.factors[:, columns])["matrix"])
    members: dict[str, list[int]] = {n: [] for n in targets}
    for flat in np.argsort(-told, axis=None):
        j, i = np.unravel_index(flat, told.shape)
        name = targets[int(i)]
        if len(members[name]) < dim and not any(int(j) in m for m in members.values()):
            members[name].append(int(j))
    taken = {j for m in members.values() for j in m}
    return {"S": [j for j in range(mu.shape[1]) if j not in taken], **members}
