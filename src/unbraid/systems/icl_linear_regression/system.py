"""The system: trains layers, predicts, scores patterns, projects on two numbers a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unbraid.core.claim import Table
from unbraid.core.errors import UnbraidError
from unbraid.core.system import System
from unbraid.systems.icl_linear_regression import CARD
from unbraid.systems.icl_linear_regression.circuits import Activation, Circuits
from unbraid.systems.icl_linear_regression.ensemble import train
from unbraid.systems.icl_linear_regression.patterns import PatternReport, bands, report
from unbraid.systems.icl_linear_regression.predictors import gradient_step, preconditioner, ridge, single_head
from unbraid.systems.icl_linear_regression.projection import Level, Reduced, projection_cost, to_reduced
from unbraid.systems.icl_linear_regression.sampling import Regression, check_sequences, whole


class InContextRegression(System):
    """A layer of multi-head attention trained to regress in context, and what it has learned.

    Args:
        heads: H.
        dimension: d of x.
        length: L, pairs in context.
        noise: variance of the labels' noise.
        rho: covariance rho^|i-j| of x.
        supports: coordinates of each of several tasks, from 0.
        activation: softmax, affine, square, tanh, linear or linear mean.
        steps: of Adam.
        lr: its learning rate.
        batch: sequences per step.
        seeds: layers trained at once, each from its own seed.
        seed: the first of them.

    Attributes:
        kq_: [seeds, H, D, D], after `fit`.
        ov_: [seeds, H, N, D].
        losses_: [records, seeds] over the training.
        omega_: [records, seeds, H, d] diagonals of KQ over the training.
        mu_: [records, seeds, H, N] label weights.
    """

    card = CARD

    def __init__(
        self,
        heads: int = 2,
        dimension: int = 5,
        length: int = 40,
        noise: float = 0.1,
        rho: float = 0.0,
        supports: tuple[tuple[int, ...], ...] | None = None,
        activation: Activation = "softmax",
        steps: int = 8_000,
        lr: float = 1e-3,
        batch: int = 256,
        seeds: int = 1,
        seed: int = 0,
    ) -> None:
        self.heads = heads
        self.dimension = dimension
        self.length = length
        self.noise = noise
        self.rho = rho
        self.supports = supports
        self.activation = activation
        self.steps = steps
        self.lr = lr
        self.batch = batch
        self.seeds = seeds
        self.seed = seed

    @property
    def task(self) -> Regression:
        """The setting, checked."""
        return Regression(self.dimension, self.length, self.noise, self.rho, self.supports)

    def fit(self, *, device: str | None = None, progress: bool | None = None) -> InContextRegression:
        """Trains the layers on fresh sequences.

        Args:
            device: where; None: where accelerate says.
            progress: a bar on stderr; None: if that is a terminal.

        Returns:
            Itself.

        Raises:
            UnbraidError: an argument is out of range, or the training diverges.
        """
        task, count = self.task, whole("seeds", self.seeds)
        numbers = range(self.seed, self.seed + count)
        model, course = train(
            task, (self.heads,), tuple(numbers), steps=self.steps, activation=self.activation, lr=self.lr,
            batch=self.batch, device=device, progress=progress,
        )  # fmt: skip
        self.kq_, self.ov_ = (w.detach() for w in model.stacked())
        self.steps_ = list(course["steps"])
        self.losses_, self.omega_, self.mu_ = course["loss"][:, :, 0], course["omega"], course["mu"]
        return self

    def circuits(self, member: int = 0) -> Circuits:
        """Of one of the trained layers.

        Args:
            member: its number, from 0.

        Raises:
            UnbraidError: nothing is trained yet, there is no such layer, or what was loaded is of another setting.
        """
        if "kq_" not in vars(self):
            raise UnbraidError("nothing is trained yet; call fit() first, or use read_circuits on a layer of yours.")
        task = self.task
        shape = [self.seeds, self.heads, task.width, task.width]
        if list(self.kq_.shape) != shape or list(self.ov_.shape) != [*shape[:2], task.tasks, task.width]:
            raise UnbraidError(
                f"the trained circuits have shapes {list(self.kq_.shape)} and {list(self.ov_.shape)}, but the "
                f"configuration says {shape}: they are of another architecture; set the arguments they were trained "
                "with, or fit again."
            )
        if not 0 <= member < self.seeds:
            raise UnbraidError(f"member is {member}; there are {self.seeds} trained layers, from 0.")
        return Circuits(self.kq_[member], self.ov_[member], self.activation, self.length)

    def predict(self, x: Tensor, y: Tensor, query: Tensor, member: int = 0) -> Tensor:
        """Predictions [B, N] from contexts x [B, L, d], y [B, L] or [B, L, N] (any L) and queries [B, d].

        Raises:
            UnbraidError: a shape does not fit, or a number is not finite.
        """
        found = self.circuits(member)
        return found.predict(check_sequences(x, y, query, self.dimension, self.task.tasks))

    def explained(self, x: Tensor, y: Tensor, query: Tensor) -> dict[str, Tensor]:
        """Predictions [B, N] of what the layer is compared with, on the same sequences.

        "ridge" (Bayes), "gradient step" and "debiased gradient step" with the best (preconditioned) step at the length
        of training, and for one isotropic task "single head".

        Raises:
            UnbraidError: a shape does not fit, or a number is not finite.
        """
        task = self.task
        b = check_sequences(x, y, query, self.dimension, task.tasks)
        found = {"ridge": ridge(b, task)}
        from unbraid.systems.icl_linear_regression.predictors import kernels
        from unbraid.systems.icl_linear_regression.superposition import targets

        for name, debiased in (("gradient step", False), ("debiased gradient step", True)):
            step = preconditioner(task, debiased=debiased) if task.tasks == 1 else targets(task)
            found[name] = gradient_step(b, step, debiased=debiased)
        if task.tasks == 1 and not task.rho:
            omega, mu = single_head(task)
            found["single head"] = kernels(b, torch.tensor([omega]), torch.tensor([mu]))
        return found

    def reports(self) -> list[PatternReport]:
        """Pattern scores of every trained layer."""
        task = self.task
        target = preconditioner(task) if task.rho and task.tasks == 1 else None
        return [report(self.circuits(k), task, target=target) for k in range(self.seeds)]

    def bands(self) -> Table:
        """Pattern scores over seeds, with intervals."""
        return bands(self.reports())

    def to_reduced(self, member: int = 0, level: Level = "scalar") -> Reduced:
        """One layer as two numbers a head; see `projection.to_reduced`."""
        return to_reduced(self.circuits(member), level, self.task)

    def projection_costs(
        self, levels: Sequence[Level] = ("diagonal", "scalar"), sequences: int = 20_000
    ) -> list[dict[str, Any]]:
        """What projecting each layer costs, on sequences that it was not trained on."""
        rows = []
        for k in range(self.seeds):
            for level in levels:
                cost = projection_cost(self.circuits(k), self.task, level, sequences=sequences, seed=10_000 + self.seed)
                rows.append({"seed": self.seed + k, "level": level, **cost})
        return rows
