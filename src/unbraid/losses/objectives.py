"""Objectives of disentangling VAEs: beta, annealed capacity, beta-TC, FactorVAE, DIP-VAE I and II.

Each is a module called with (vae, x, step) that returns the loss and numbers worth recording. Defaults are those of
disentanglement_lib (arXiv 1811.12359), whose zoo the studies of this project follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from unbraid.core.errors import UnbraidError
from unbraid.losses.vae import (
    Estimator,
    batch_total_correlation,
    capacity,
    dip_penalty,
    gaussian_kl,
    permute_dims,
    vae_reconstruction,
)

ObjectiveName = Literal["beta", "annealed", "beta_tc", "factor", "dip_i", "dip_ii"]
# The zoo's six strengths of each objective's own hyper-parameter, from weak to strong regularisation.
STRENGTHS: dict[ObjectiveName, tuple[float, ...]] = {
    "beta": (1, 2, 4, 6, 8, 16),
    "annealed": (100, 75, 50, 25, 10, 5),  # a small capacity is a strong regulariser
    "beta_tc": (1, 2, 4, 6, 8, 10),
    "factor": (10, 20, 30, 40, 50, 100),
    "dip_i": (1, 2, 5, 10, 20, 50),
    "dip_ii": (1, 2, 5, 10, 20, 50),
}


class Objective(nn.Module):
    """Reconstruction plus what `regulariser` says."""

    def regulariser(self, z: Tensor, mu: Tensor, logvar: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The rest of the loss, a scalar, and numbers to record."""
        raise NotImplementedError

    def forward(self, vae: Any, x: Tensor, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss on a batch.

        Args:
            vae: a `GaussianVAE`.
            x: [B, *shape].
            step: optimizer steps before this one, for schedules.

        Returns:
            The loss and further numbers: "reconstruction" and "kl" (nats), and the objective's own.
        """
        mu, logvar, z, logits = vae(x)
        error = vae_reconstruction(vae, x, logits)
        rest, numbers = self.regulariser(z, mu, logvar, step)
        kl = gaussian_kl(mu, logvar).sum(1).mean()
        return error + rest, {"reconstruction": error.detach(), "kl": kl.detach(), **numbers}

    def groups(self, vae: nn.Module, lr: float) -> list[dict[str, Any]]:
        """Parameter groups for Adam."""
        return [{"params": list(vae.parameters()), "lr": lr}]


class BetaVAE(Objective):
    """L = reconstruction + beta KL (Higgins 2017); beta 1 is the plain VAE.

    Args:
        beta: weight of the KL term.
    """

    def __init__(self, beta: float = 4.0) -> None:
        super().__init__()
        self.beta = _positive("beta", beta, zero=True)

    def regulariser(self, z: Tensor, mu: Tensor, logvar: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """beta KL."""
        return self.beta * gaussian_kl(mu, logvar).sum(1).mean(), {}


class AnnealedVAE(Objective):
    """L = reconstruction + gamma |KL - C|, where the capacity C grows linearly (arXiv 1804.03599).

    Args:
        c_max: capacity at the end, in nats.
        gamma: weight.
        steps: over which C grows.
    """

    def __init__(self, c_max: float = 25.0, gamma: float = 1000.0, steps: int = 100_000) -> None:
        super().__init__()
        self.c_max, self.gamma, self.steps = _positive("c_max", c_max), _positive("gamma", gamma), steps
        capacity(0, c_max, steps)

    def regulariser(self, z: Tensor, mu: Tensor, logvar: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """gamma |KL - C|."""
        goal = capacity(step, self.c_max, self.steps)
        kl = gaussian_kl(mu, logvar).sum(1).mean()
        return self.gamma * (kl - goal).abs(), {"capacity": kl.new_tensor(goal)}


class BetaTCVAE(Objective):
    """L = reconstruction + KL + (beta - 1) TC, TC from the batch (arXiv 1802.04942).

    Args:
        data_size: number of observations in all.
        beta: weight of the total correlation.
        estimator: "mws" (the paper's main one, and disentanglement_lib's) or "mss".
    """

    def __init__(self, data_size: int, beta: float = 6.0, estimator: Estimator = "mws") -> None:
        super().__init__()
        self.data_size, self.beta, self.estimator = data_size, _positive("beta", beta, zero=True), estimator

    def regulariser(self, z: Tensor, mu: Tensor, logvar: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """KL + (beta - 1) TC."""
        tc = batch_total_correlation(z, mu, logvar, self.data_size, self.estimator)
        return gaussian_kl(mu, logvar).sum(1).mean() + (self.beta - 1) * tc, {"tc": tc.detach()}


class Discriminator(nn.Sequential):
    """FactorVAE's: six hidden layers of 1,000 with LeakyReLU 0.2, two logits: [0] real codes, [1] permuted ones.

    Args:
        latents: J.
        width: of hidden layers.
        depth: number of hidden layers.
    """

    def __init__(self, latents: int, width: int = 1000, depth: int = 6) -> None:
        if min(latents, width, depth) < 1:
            raise UnbraidError(f"a discriminator needs positive sizes, not latents={latents}, {width=}, {depth=}.")
        sizes = [latents, *[width] * depth]
        parts: list[nn.Module] = []
        for a, b in pairwise(sizes):
            parts += [nn.Linear(a, b), nn.LeakyReLU(0.2)]
        super().__init__(*parts, nn.Linear(width, 2))


class FactorVAE(Objective):
    """L = reconstruction + KL + gamma TC, TC by density ratio from a discriminator (arXiv 1802.05983).

    The discriminator learns in the same step, from the same batch (as in disentanglement_lib): it must tell codes from
    codes permuted over the batch in each dimension. Its gradient never reaches the VAE, nor the TC term's the
    discriminator, so one optimizer with a group for each does both.

    Args:
        latents: J.
        gamma: weight of the total correlation.
        width: of the discriminator's hidden layers.
        depth: number of the discriminator's hidden layers.
        lr: of the discriminator.
    """

    def __init__(self, latents: int, gamma: float = 10.0, width: int = 1000, depth: int = 6, lr: float = 1e-4) -> None:
        super().__init__()
        self.gamma, self.lr = _positive("gamma", gamma, zero=True), _positive("lr", lr)
        self.discriminator = Discriminator(latents, width, depth)

    def regulariser(self, z: Tensor, mu: Tensor, logvar: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """KL + gamma TC, and the discriminator's own cross-entropy."""
        fixed = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        judged: Tensor = torch.func.functional_call(self.discriminator, fixed, (z,))
        tc = (judged[:, 0] - judged[:, 1]).mean()
        real, fake = self.discriminator(z.detach()), self.discriminator(permute_dims(z.detach()))
        label = torch.zeros(len(z), dtype=torch.long, device=z.device)
        learn = 0.5 * (F.cross_entropy(real, label) + F.cross_entropy(fake, label + 1))
        kl = gaussian_kl(mu, logvar).sum(1).mean()
        return kl + self.gamma * tc + learn, {"tc": tc.detach(), "discriminator": learn.detach()}

    def groups(self, vae: nn.Module, lr: float) -> list[dict[str, Any]]:
        """The VAE's group and the discriminator's (Adam with betas 0.5 and 0.9)."""
        own = {"params": list(self.discriminator.parameters()), "lr": self.lr, "betas": (0.5, 0.9)}
        return [*super().groups(vae, lr), own]


class DIPVAE(Objective):
    """L = reconstruction + KL + penalty on the codes' covariance (arXiv 1711.00848).

    Args:
        kind: "i" (covariance of means) or "ii" (covariance of samples).
        off: weight beside the diagonal.
        factor: weight of the diagonal as a multiple of ``off``; None: 10 for "i", 1 for "ii".
    """

    def __init__(self, kind: Literal["i", "ii"] = "ii", off: float = 10.0, factor: float | None = None) -> None:
        super().__init__()
        self.kind, self.off = kind, _positive("off", off, zero=True)
        self.factor = (10.0 if kind == "i" else 1.0) if factor is None else factor

    def regulariser(self, z: Tensor, mu: Tensor, logvar: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """KL and the penalty."""
        penalty = dip_penalty(mu, logvar, self.kind, self.off, self.factor * self.off)
        return gaussian_kl(mu, logvar).sum(1).mean() + penalty, {"penalty": penalty.detach()}


def make_objective(
    name: ObjectiveName,
    strength: float | None = None,
    *,
    latents: int,
    data_size: int,
    steps: int = 100_000,
    options: Mapping[str, Any] | None = None,
) -> Objective:
    """An objective by name.

    Args:
        name: "beta", "annealed", "beta_tc", "factor", "dip_i" or "dip_ii".
        strength: its own hyper-parameter: beta, c_max, beta, gamma, off (twice); None: the class's default.
        latents: J.
        data_size: number of observations.
        steps: over which the annealed VAE's capacity grows.
        options: further arguments of the class.

    Raises:
        UnbraidError: an unknown name, option or an impossible value.
    """
    made: dict[str, tuple[Callable[..., Objective], str, dict[str, Any]]] = {
        "beta": (BetaVAE, "beta", {}),
        "annealed": (AnnealedVAE, "c_max", {"steps": steps}),
        "beta_tc": (BetaTCVAE, "beta", {"data_size": data_size}),
        "factor": (FactorVAE, "gamma", {"latents": latents}),
        "dip_i": (DIPVAE, "off", {"kind": "i"}),
        "dip_ii": (DIPVAE, "off", {"kind": "ii"}),
    }
    if name not in made:
        raise UnbraidError(f"there is no objective {name!r}; choose from {', '.join(made)}.")
    maker, key, given = made[name]
    values = {**given, **({} if strength is None else {key: strength}), **(options or {})}
    try:
        return maker(**values)
    except TypeError as error:
        raise UnbraidError(f"objective {name!r} does not take {dict(options or {})} ({error}).") from None


class Trained(nn.Module):
    """A VAE and its objective as one module, for `fit_loop`."""

    def __init__(self, vae: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.vae, self.objective = vae, objective

    def optimizer(self, lr: float) -> Callable[[list[Parameter]], torch.optim.Optimizer]:
        """What `fit_loop` takes as ``optimizer``: Adam with the objective's parameter groups."""
        return lambda _: torch.optim.Adam(self.objective.groups(self.vae, lr), lr=lr)


def _positive(name: str, value: float, *, zero: bool = False) -> float:
    fine = isinstance(value, int | float) and not isinstance(value, bool)
    if not fine or not (value > 0 or (zero and value == 0)) or value == float("inf"):
        raise UnbraidError(
            f"{name} is {value!r}; it must be a {'number of at least 0' if zero else 'positive number'}."
        )
    return float(value)
