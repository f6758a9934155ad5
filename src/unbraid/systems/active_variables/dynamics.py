"""Watching latents during training: when each becomes passive, and when correlations of its mean appear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from unbraid.core.errors import UnbraidError
from unbraid.data.observations import Observations
from unbraid.systems.active_variables.adapters import Output, evaluating, home, posterior
from unbraid.systems.active_variables.labels import check_bounds, classify
from unbraid.systems.active_variables.statistics import Moments, correlation


class Dynamics:
    """A callback for `train_vae` or `fit_loop` that measures all latents every so many steps.

    Args:
        data: observations to measure on; a few hundred are enough.
        every: steps between measurements; the first step is always measured.
        points: observations taken from the data.
        tau: bound of the variance of the variances.
        delta: bound of their mean's distance from 0 or 1.
        warm: steps before a collapse counts: every training begins with all latents passive.
        stop: whether to end the training when all latents have collapsed.
        output: of encoders that return (mu, second); see `posterior`.
        seed: of the draw of observations.

    Attributes:
        steps: at which was measured.
        kl: one [J] per measurement, nats.
        variance: one [J] per measurement, mean of sigma^2.
        labels: one [J] per measurement.
        mean_correlation: one [J, J] per measurement, of the means.
        alarms: sentences, one for each time that all latents were found passive after the warm-up.
    """

    def __init__(
        self,
        data: Any,
        every: int = 100,
        points: int = 1_000,
        tau: float = 0.1,
        delta: float = 0.1,
        warm: int = 500,
        stop: bool = False,
        output: Output = "logvar",
        seed: int = 0,
    ) -> None:
        check_bounds(tau, delta)
        if every < 1 or points < 2:
            raise UnbraidError(f"every={every} must be at least 1 and points={points} at least 2.")
        source = Observations(data, held=0)
        at = np.random.default_rng(seed).choice(len(source), min(points, len(source)), replace=False)
        self._x = torch.from_numpy(source.take(at))
        self.every, self.tau, self.delta, self.warm, self.stop, self.output = every, tau, delta, warm, stop, output
        self.steps: list[int] = []
        self.kl: list[np.ndarray] = []
        self.variance: list[np.ndarray] = []
        self.labels: list[list[str]] = []
        self.mean_correlation: list[np.ndarray] = []
        self.alarms: list[str] = []

    def __call__(self, step: int, model: Any, numbers: Mapping[str, float]) -> bool:
        """Measure, where it is time; True asks for the training to end."""
        if step != 1 and step % self.every:
            return False
        with evaluating(model):
            mu, var = posterior(model, self.output)(self._x.to(home(model)))
        if var is None:
            raise UnbraidError("Dynamics needs an encoder with variances; this one returns means only.")
        found = Moments.of(mu.reshape(-1, mu.shape[-1]), var.reshape(-1, var.shape[-1]))
        labels = classify(found.var_mean, found.var_var, self.tau, self.delta)
        self.steps.append(step)
        self.kl.append(found.kl)
        self.variance.append(found.var_mean)
        self.labels.append(labels)
        self.mean_correlation.append(correlation(found.mu_cov))
        collapsed = step > self.warm and all(label == "passive" for label in labels)
        if collapsed:
            self.alarms.append(
                f"Step {step}: all {len(labels)} latents are passive (KL {found.kl.sum():.3g} nats in all): the "
                "decoder ignores the code. Lower the regularisation, or anneal it."
            )
        return collapsed and self.stop

    def counts(self) -> dict[str, list[int]]:
        """Label -> how many latents have it at each measurement."""
        return {kind: [labels.count(kind) for labels in self.labels] for kind in ("active", "mixed", "passive")}

    def settled(self) -> list[int]:
        """[J] the step from which on each latent kept the label that it has at the end."""
        found = []
        for course in zip(*self.labels, strict=True):
            last = len(course) - 1
            while last and course[last - 1] == course[-1]:
                last -= 1
            found.append(self.steps[last])
        return found
