"""From a trained layer to two numbers a head and back, and what that costs: a causal test of the explanation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError
from unbraid.systems.icl_linear_regression.circuits import Activation, Circuits
from unbraid.systems.icl_linear_regression.reading import read_circuits
from unbraid.systems.icl_linear_regression.reduced import mu_of
from unbraid.systems.icl_linear_regression.sampling import Regression

Level = Literal["diagonal", "scalar", "manifold"]
LEVELS: tuple[Level, ...] = get_args(Level)


@dataclass(frozen=True, eq=False)
class Reduced:
    """The numbers that the paper says are all that matters.

    Attributes:
        omega: [H, d] diagonal of KQ.
        mu: [H, N] label weights.
        activation: of the layer.
        length: of training, for linear attention.
    """

    omega: Tensor
    mu: Tensor
    activation: Activation = "softmax"
    length: int | None = None


def to_reduced(
    layer: nn.Module | Circuits, level: Level = "scalar", task: Regression | None = None, **reading: Any
) -> Reduced:
    """Projects a layer.

    Args:
        layer: circuits, or a layer for `read_circuits`.
        level: diagonal keeps KQ's diagonal and the label's own weight in OV; scalar makes the diagonal constant;
            manifold also makes |omega| the same in all heads and the sums of mu those of the manifold, keeping each
            head's share.
        task: the setting, for manifold.
        reading: further arguments of `read_circuits`.

    Raises:
        UnbraidError: there is no such level; manifold is asked of several tasks, without task, or of heads of one sign.
    """
    if level not in LEVELS:
        raise UnbraidError(f"level is {level!r}; choose from {', '.join(LEVELS)}.")
    c = read_circuits(layer, **reading)
    d, at = c.dimension, torch.arange(c.tasks)
    omega, mu = c.kq.diagonal(dim1=1, dim2=2)[:, :d].clone(), c.ov[:, at, d + at].clone()
    if level == "diagonal":
        return Reduced(omega, mu, c.activation, c.length)
    omega = omega.mean(1, keepdim=True).expand(-1, d).clone()
    if level == "manifold":
        w, m = omega[:, 0], mu[:, 0]
        if task is None or c.tasks > 1 or not ((w > 0).any() and (w < 0).any()):
            raise UnbraidError(
                "the manifold is that of one task with heads of both signs; give task=, or another level."
            )
        gamma = float((w * m).abs() @ w.abs() / (w * m).abs().sum().clamp_min(1e-12))  # dummies hardly count
        goal = float(mu_of(gamma, task))
        omega = (w.sign() * gamma)[:, None].expand(-1, d).clone()
        mu = torch.stack([m[k] / m[w.sign() == w[k].sign()].sum() * goal * w[k].sign() for k in range(c.heads)])[
            :, None
        ]
    return Reduced(omega, mu, c.activation, c.length)


def from_reduced(reduced: Reduced) -> Circuits:
    """Circuits with nothing but these numbers; `attention_of` makes a layer of them.

    Raises:
        UnbraidError: shapes do not fit.
    """
    omega, mu = reduced.omega, reduced.mu
    if omega.dim() != 2 or mu.dim() != 2 or len(omega) != len(mu):
        raise UnbraidError(
            f"omega and mu have shapes {list(omega.shape)} and {list(mu.shape)}; they must be [H, d] and [H, N]."
        )
    (h, d), n = omega.shape, mu.shape[1]
    kq, ov = omega.new_zeros(h, d + n, d + n), omega.new_zeros(h, n, d + n)
    kq[:, torch.arange(d), torch.arange(d)] = omega
    ov[:, torch.arange(n), d + torch.arange(n)] = mu
    return Circuits(kq, ov, reduced.activation, reduced.length)


def projection_cost(
    layer: nn.Module | Circuits, task: Regression, level: Level = "scalar", *, sequences: int = 20_000, seed: int = 0,
    length: int | None = None, **reading: Any,
) -> dict[str, float]:  # fmt: skip
    """Loss of a layer as it is and of its projection, on the same sequences.

    Args:
        layer: circuits, or a layer for `read_circuits`.
        task: draws the sequences.
        level: of the projection.
        sequences: drawn.
        seed: of the draw.
        length: L of the sequences; None: the task's.
        reading: further arguments of `read_circuits`.

    Returns:
        "loss", "projected", "cost" (their difference), "error" (its standard error), "r2" of the projection's
        predictions against the layer's.
    """
    c = read_circuits(layer, **reading)
    other = from_reduced(to_reduced(c, level, task))
    batch = task.sample(sequences, seed, length)
    one, two = c.predict(batch), other.predict(batch)
    losses = [(p - batch.answer).square().sum(-1).double() for p in (one, two)]
    apart = (losses[1] - losses[0]).numpy()
    return {
        "loss": float(losses[0].mean()), "projected": float(losses[1].mean()), "cost": float(apart.mean()),
        "error": float(apart.std() / np.sqrt(len(apart))), "r2": r_squared(two, one),
    }  # fmt: skip


def r_squared(predicted: Tensor, truth: Tensor) -> float:
    """Share of the variance of `truth` that `predicted` explains, as it stands (no fit)."""
    a, b = predicted.double(), truth.double()
    return float(1 - (a - b).square().sum() / (b - b.mean(0)).square().sum())


def remainder(circuits: Circuits) -> Circuits:
    """What the projection leaves out: the circuits less KQ's diagonal and each label's own weight in OV.

    If the explanation holds, a layer of this alone predicts no better than nothing.
    """
    kept = from_reduced(to_reduced(circuits, "diagonal"))
    return Circuits(circuits.kq - kept.kq, circuits.ov - kept.ov, circuits.activation, circuits.length)
