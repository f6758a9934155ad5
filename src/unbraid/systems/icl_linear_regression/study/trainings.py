"""Trainings of the study: all seeds and head counts of a setting at once, kept on disk, and what they are worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unbraid.core.pieces import Pieces
from unbraid.core.training.batches import mix
from unbraid.systems.icl_linear_regression.circuits import SLOPES, Activation, Circuits
from unbraid.systems.icl_linear_regression.ensemble import Ensemble, train
from unbraid.systems.icl_linear_regression.patterns import report
from unbraid.systems.icl_linear_regression.predictors import (
    KernelRisk,
    gradient_step,
    kernels,
    preconditioner,
    ridge,
    single_head,
)
from unbraid.systems.icl_linear_regression.projection import projection_cost, r_squared, remainder
from unbraid.systems.icl_linear_regression.sampling import Batch, Regression

GROUP = 5  # seeds trained together; more are no faster a seed


@dataclass(frozen=True)
class How:
    """How all trainings of a study are made.

    Attributes:
        steps: of Adam.
        lr: its rate.
        batch: sequences a step.
        device: where.
        records: looks at each training.
        sequences: for each test.
    """

    steps: int
    lr: float = 1e-3
    batch: int = 256
    device: str | None = None
    records: int = 100
    sequences: int = 20_000


@dataclass(eq=False)
class Trained:
    """Trained layers of one setting, and their course.

    Attributes:
        task: the setting.
        heads: head counts.
        seeds: numbers.
        activation: of the attention.
        arrays: "steps" [T], "loss" [T, S, models], "omega" [T, S, sum of H, d], "mu" [T, S, sum of H, N], "kq" and "ov"
            of the end.
    """

    task: Regression
    heads: tuple[int, ...]
    seeds: tuple[int, ...]
    activation: Activation
    arrays: dict[str, np.ndarray]

    def part(self, heads: int) -> slice:
        """Where the heads of a model stand."""
        start = sum(self.heads[: self.heads.index(heads)])
        return slice(start, start + heads)

    def circuits(self, heads: int, member: int) -> Circuits:
        """Of one layer, heads from the largest omega down."""
        kq, ov = (torch.from_numpy(self.arrays[n][member, self.part(heads)].copy()) for n in ("kq", "ov"))
        return Circuits(kq, ov, self.activation, self.task.length).sorted()

    def first(self, heads: int, member: int) -> Circuits:
        """The same layer before it was trained."""
        return Ensemble(self.task, (heads,), (self.seeds[member],), self.activation).circuits(heads).sorted()


def training(
    store: Pieces, task: Regression, heads: Sequence[int], seeds: Sequence[int], how: How,
    activation: Activation = "softmax", tick: Callable[[int], None] | None = None,
) -> Trained:  # fmt: skip
    """Trains, or reads back, all head counts and seeds of a setting."""
    parts = []
    for k in range(0, len(seeds), GROUP):
        group = tuple(seeds[k : k + GROUP])
        key = {
            "task": asdict(task), "heads": list(heads), "seeds": list(group), "activation": activation,
            "steps": how.steps, "lr": how.lr, "batch": how.batch, "records": how.records,
        }  # fmt: skip
        found = store.load_arrays("training", key)
        if found is None:
            folder: Path | None = None if store.folder is None else store.path("course", key, "")
            model, course = train(
                task, heads, group, steps=how.steps, activation=activation, lr=how.lr, batch=how.batch,
                records=how.records, device=how.device, checkpoint_dir=folder, tick=tick,
            )  # fmt: skip
            kq, ov = (w.detach().numpy() for w in model.stacked())
            found = {**course, "steps": np.asarray(course["steps"]), "kq": kq, "ov": ov}
            store.save_arrays("training", key, found)
        elif tick is not None:
            tick(how.steps)
        parts.append(found)
    axis = {"steps": None, "kq": 0, "ov": 0}
    whole = {
        name: parts[0][name]
        if axis.get(name, 1) is None
        else np.concatenate([p[name] for p in parts], axis.get(name, 1))
        for name in parts[0]
    }
    return Trained(task, tuple(heads), tuple(seeds), activation, whole)


def unseen(task: Regression, seed: int, sequences: int, length: int | None = None) -> Batch:
    """Sequences that no training sees; the same for all models of a seed."""
    return task.sample(sequences, mix(seed, 13, length or 0), length)


def mse(predicted: Tensor, batch: Batch) -> float:
    """Mean squared error, summed over tasks."""
    return float((predicted - batch.answer).square().sum(-1).double().mean())


def baselines(task: Regression, batch: Batch, best: tuple[float, float, float] | None = None) -> dict[str, Tensor]:
    """Predictions of what a layer for one task is compared with; steps are those that are best at the training's L."""
    found = {
        "ridge": ridge(batch, task),
        "GD": gradient_step(batch, preconditioner(task), debiased=False),
        "debiased GD": gradient_step(batch, preconditioner(task, debiased=True)),
    }
    if not task.rho:
        for name, (w, m) in {
            "one head, closed form": single_head(task),
            "one head, exact": (best or (0, 0))[:2],
        }.items():
            if w:
                found[name] = kernels(batch, torch.tensor([w]), torch.tensor([m]))
    return found


def best_single(task: Regression) -> tuple[float, float, float]:
    """omega, mu and risk of the best single head at this L."""
    return KernelRisk(task, 10_000).best_single()


def rows_of(trained: Trained, how: How) -> list[dict[str, Any]]:
    """One row a layer: losses beside those of the same sequences, pattern scores, what projections cost."""
    task, rows = trained.task, []
    best = None if task.rho else best_single(task)
    target = preconditioner(task) if task.rho else None
    for k, seed in enumerate(trained.seeds):
        batch = unseen(task, seed, how.sequences)
        known = baselines(task, batch, best)
        losses = {name: mse(p, batch) for name, p in known.items()}
        for heads in trained.heads:
            c = trained.circuits(heads, k)
            own = c.predict(batch)
            scores = report(c, task, target=target)
            row = {"setting": _name(trained), "heads": heads, "seed": seed, "loss": mse(own, batch), **losses}
            row |= {f"R2 to {name}": r_squared(own, p) for name, p in known.items()}
            row |= {n: v for n, v in scores.to_dict().items() if not isinstance(v, tuple) and n != "heads"}
            row["effective step"] = scores.step * SLOPES.get(trained.activation, float("nan"))
            if trained.activation in SLOPES and not task.rho:
                cost = projection_cost(c, task, sequences=how.sequences, seed=mix(seed, 13, 0))
                row |= {"projected": cost["projected"], "without the pattern": mse(remainder(c).predict(batch), batch)}
            rows.append(row)
    return rows


def _name(trained: Trained) -> str:
    return trained.activation + (f", rho {trained.task.rho:g}" if trained.task.rho else "")


def over_lengths(trained: Trained, lengths: Sequence[int], sequences: int) -> list[dict[str, Any]]:
    """Mean squared error at other lengths, layers and baselines as they are at the length of training."""
    task, rows = trained.task, []
    best = best_single(task)
    for k, seed in enumerate(trained.seeds):
        for length in lengths:
            batch = unseen(task, seed, sequences, length)
            known = {n: mse(p, batch) for n, p in baselines(task, batch, best).items()}
            for heads in trained.heads:
                c = trained.circuits(heads, k)
                row: dict[str, Any] = {"setting": trained.activation, "heads": heads, "seed": seed, "L": length}
                row |= {"loss": mse(c.predict(batch), batch), **known}
                if c.activation == "linear":
                    free = Circuits(c.kq, c.ov, "linear mean")
                    row["loss with 1/L of the sequence"] = mse(free.predict(batch), batch)
                rows.append(row)
    return rows
