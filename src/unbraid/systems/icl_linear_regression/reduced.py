"""The model with two numbers a head: its approximate loss, gradients, dynamics and the manifold of its solutions.

Reference: arXiv 2503.12734; L~(omega, mu) = 1 + s - 2 mu'omega + mu'(omega omega' + (1 + s)/L exp(d omega omega')) mu
with s = sigma^2 and exp of each entry. Everything takes leading dimensions in front of [H].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unbraid.core.errors import UnbraidError
from unbraid.systems.icl_linear_regression.sampling import Regression, whole


def bracket(omega: Tensor, task: Regression) -> Tensor:
    """[..., H, H]: omega omega' + (1 + sigma^2)/L exp(d omega omega')."""
    outer = omega[..., :, None] * omega[..., None, :]
    return outer + (1 + task.noise) / task.length * torch.exp(task.dimension * outer)


def approximate_loss(omega: Tensor, mu: Tensor, task: Regression) -> Tensor:
    """[...] L~; valid for d > log L and |omega| up to about sqrt(log L / d)."""
    return (
        1 + task.noise - 2 * (mu * omega).sum(-1) + torch.einsum("...h,...hk,...k->...", mu, bracket(omega, task), mu)
    )


def taylor_loss(omega: Tensor, mu: Tensor, task: Regression, terms: int = 8) -> Tensor:
    """[...] L~ with the exponential's first `terms` powers: the form in which its parts can be read."""
    per = (1 + task.noise) / task.length
    found = task.noise + (1 - (mu * omega).sum(-1)).square() + per * mu.sum(-1).square()
    for k in range(1, terms + 1):
        found = found + per * task.dimension**k / math.factorial(k) * (mu * omega**k).sum(-1).square()
    return found


def gradients(omega: Tensor, mu: Tensor, task: Regression) -> tuple[Tensor, Tensor]:
    """Gradients of L~ / 2 in omega and in mu, [..., H] each."""
    per, d = (1 + task.noise) / task.length, task.dimension
    power = torch.exp(d * omega[..., :, None] * omega[..., None, :])
    product = (mu * omega).sum(-1, keepdim=True)
    in_mu = -omega + product * omega + per * torch.einsum("...hk,...k->...h", power, mu)
    weighted = power * mu[..., :, None] * mu[..., None, :]
    return -mu + product * mu + d * per * torch.einsum("...hk,...k->...h", weighted, omega), in_mu


def best_mu(omega: Tensor, task: Regression) -> Tensor:
    """[..., H]: the mu that minimises L~ for these omega (the least one where several do)."""
    a = bracket(omega, task)
    return torch.einsum("...hk,...k->...h", torch.linalg.pinv(a, hermitian=True), omega)


def mu_of(gamma: float | np.ndarray, task: Regression) -> np.ndarray:
    """mu_gamma, the sum of mu over each group of heads on the manifold: (g/2) / (g^2 + (1 + s)/L sinh(d g^2))."""
    g = np.asarray(gamma, dtype=float)
    return (g / 2) / (g**2 + (1 + task.noise) / task.length * np.sinh(task.dimension * g**2))


def manifold_loss(gamma: float, task: Regression) -> float:
    """L~ on the manifold at gamma; least as gamma -> 0."""
    pair = torch.tensor([gamma, -gamma], dtype=torch.float64)
    m = float(mu_of(gamma, task))
    return float(approximate_loss(pair, torch.tensor([m, -m], dtype=torch.float64), task))


@dataclass(frozen=True, eq=False)
class Flow:
    """Descent of the reduced model.

    Attributes:
        steps: [T] at which it was looked at.
        omega: [T, S, H].
        mu: [T, S, H].
        loss: [T, S] of L~.
    """

    steps: np.ndarray
    omega: np.ndarray
    mu: np.ndarray
    loss: np.ndarray


def descend(
    task: Regression, heads: int = 4, *, seeds: tuple[int, ...] = (0,), steps: int = 20_000, lr: float = 0.02,
    start: float = 0.05, looks: int = 200,
) -> Flow:  # fmt: skip
    """Gradient descent on L~ / 2 in the 2 H numbers, from small random ones; all seeds at once.

    Args:
        task: the setting.
        heads: H.
        seeds: of the starts.
        steps: of descent.
        lr: step length.
        start: standard deviation of omega and mu at the start.
        looks: at how many steps, spaced evenly in their logarithm, it is recorded.

    Raises:
        UnbraidError: a number is out of range, or the descent diverges.
    """
    for name, value in {"heads": heads, "steps": steps, "looks": looks}.items():
        whole(name, value)
    if not lr > 0 or not start > 0 or not seeds:
        raise UnbraidError(f"lr {lr} and start {start} must be positive, and there must be a seed.")
    drawn = [
        torch.randn(2, heads, generator=torch.Generator().manual_seed(s), dtype=torch.float64) * start for s in seeds
    ]
    omega, mu = torch.stack(drawn).unbind(1)
    at = sorted({0, steps, *np.unique(np.geomspace(1, steps, looks).round().astype(int)).tolist()})
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    for step in range(steps + 1):
        if step == at[len(kept)]:
            kept.append((omega, mu, approximate_loss(omega, mu, task)))
        in_omega, in_mu = gradients(omega, mu, task)
        omega, mu = omega - lr * in_omega, mu - lr * in_mu
    if not torch.isfinite(mu).all():
        raise UnbraidError(f"the descent with lr {lr} diverges; take a smaller lr.")
    return Flow(np.array(at), *(torch.stack(parts).numpy() for parts in zip(*kept, strict=True)))
