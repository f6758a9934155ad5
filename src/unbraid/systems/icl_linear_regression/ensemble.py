"""Many layers trained at once: all seeds by `vmap`, all head counts of a seed on the same batches.

Adam moves each number by its own gradient alone, so the sum of the members' losses trains each as if it were alone.
Predictions come from the circuits; keys, values and logits of tokens nobody asks about are never made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError
from unbraid.core.train import fit_loop
from unbraid.core.training.batches import mix
from unbraid.systems.icl_linear_regression.circuits import ACTIVATIONS, Activation, Circuits, attend
from unbraid.systems.icl_linear_regression.sampling import Batch, Regression, training_batches, whole


class Ensemble(nn.Module):
    """Layers of every seed and head count, their K, Q, V and O stacked.

    A member's first weights depend on its seed and head count only, and are those of `torch.nn.Linear`.

    Args:
        task: the setting.
        heads: head counts, one model each.
        seeds: of the weights.
        activation: of all.
        records: how often the training is looked at.

    Raises:
        UnbraidError: an argument is out of range, or a head count or seed stands there twice.
    """

    def __init__(
        self, task: Regression, heads: Sequence[int] = (2,), seeds: Sequence[int] = (0,),
        activation: Activation = "softmax", records: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        for name, given in {"heads": heads, "seeds": seeds}.items():
            if not given or len(set(given)) < len(given):
                raise UnbraidError(f"{name} is {list(given)}; give at least one, each once.")
        for h in heads:
            whole("heads", h)
        if activation not in ACTIVATIONS:
            raise UnbraidError(f"activation is {activation!r}; choose from {', '.join(ACTIVATIONS)}.")
        self.task, self.counts, self.seeds, self.activation = task, tuple(heads), tuple(seeds), activation
        made = [[_first(h, task, s) for h in heads] for s in seeds]
        for i, name in enumerate(("w_q", "w_k", "w_v", "w_o")):
            stacked = torch.stack([torch.cat([member[i] for member in row]) for row in made])
            self.register_parameter(name, nn.Parameter(stacked))
        belongs = torch.block_diag(*[torch.ones(1, h) for h in heads])
        self.register_buffer("belongs", belongs, persistent=False)
        s, h = len(seeds), sum(heads)
        # kept with the weights, so that a resumed run has its whole course
        self.register_buffer("seen_loss", torch.zeros(records, s, len(heads)))
        self.register_buffer("seen_omega", torch.zeros(records, s, h, task.dimension))
        self.register_buffer("seen_mu", torch.zeros(records, s, h, task.tasks))
        self.register_buffer("running", torch.zeros(s, len(heads)))

    def stacked(self) -> tuple[Tensor, Tensor]:
        """KQ [S, sum of H, D, D] and OV [S, sum of H, N, D]."""
        weights = dict(self.named_parameters())
        scale = self.task.width**-0.5
        return scale * weights["w_k"].transpose(-1, -2) @ weights["w_q"], weights["w_o"] @ weights["w_v"]

    def forward(self, batch: Batch) -> Tensor:
        """Predictions [S, B, models, N] for batches [S, B, ...]."""
        kq, ov = self.stacked()
        length, activation = self.task.length, self.activation

        def one(kq: Tensor, ov: Tensor, tokens: Tensor, query: Tensor) -> Tensor:
            return attend(kq, ov, tokens, query, activation, length)

        each = torch.func.vmap(one)(kq, ov, batch.tokens, batch.query)
        return torch.einsum("mh,sbhn->sbmn", self.get_buffer("belongs"), each)

    def losses(self, batch: Batch) -> Tensor:
        """[S, models]: mean squared errors, summed over tasks."""
        return (self(batch) - batch.answer[:, :, None]).square().sum(-1).mean(1)

    def circuits(self, heads: int, member: int = 0) -> Circuits:
        """The circuits of one trained layer.

        Args:
            heads: its head count.
            member: number of the seed, from 0.
        """
        at = self.counts.index(heads)
        start = sum(self.counts[:at])
        kq, ov = (w[member, start : start + heads].detach().clone() for w in self.stacked())
        return Circuits(kq, ov, self.activation, self.task.length)


def _first(heads: int, task: Regression, seed: int) -> list[Tensor]:
    """Weights as `torch.nn.Linear` draws them, U(-1, 1) / sqrt(inputs): q, k, v [H, D, D] and o [H, N, D]."""
    generator = torch.Generator().manual_seed(mix(seed, 12, heads))
    d = task.width
    made = [(2 * torch.rand(heads, d, d, generator=generator) - 1) / math.sqrt(d) for _ in range(3)]
    return [*made, (2 * torch.rand(heads, task.tasks, d, generator=generator) - 1) / math.sqrt(heads * d)]


def train(
    task: Regression, heads: Sequence[int] = (2,), seeds: Sequence[int] = (0,), *, steps: int = 8_000,
    activation: Activation = "softmax", lr: float = 1e-3, batch: int = 256, records: int = 100,
    device: str | None = None, checkpoint_dir: Path | None = None, tick: Callable[[int], None] | None = None,
    progress: bool | None = False,
) -> tuple[Ensemble, dict[str, Any]]:  # fmt: skip
    """Trains every seed and head count at once: Adam on fresh batches.

    Args:
        task: the setting.
        heads: head counts.
        seeds: of weights and batches.
        steps: of Adam.
        activation: of the attention.
        lr: learning rate.
        batch: sequences per step and seed.
        records: how many times losses and circuits are recorded.
        device: where; None: where accelerate says.
        checkpoint_dir: an interrupted training goes on from there.
        tick: called with the steps taken since the last record.
        progress: fit_loop's own bar.

    Returns:
        The ensemble, and its course: "steps" [T], "loss" [T, S, models] (mean over the steps since the last record),
        "omega" [T, S, sum of H, d], "mu" [T, S, sum of H, N] as numpy arrays.

    Raises:
        UnbraidError: an argument is out of range, or the training diverges.
    """
    for name, value in {"steps": steps, "batch": batch, "records": records}.items():
        whole(name, value)
    if not lr > 0:
        raise UnbraidError(f"lr is {lr}; it must be positive.")
    at = sorted({round(steps * (k + 1) / records) for k in range(records)} - {0})
    model = Ensemble(task, heads, seeds, activation, records=len(at))
    d, own = task.dimension, torch.arange(task.tasks)

    def loss(module: Any, drawn: Batch) -> Tensor:
        each = module.losses(drawn)
        module.running += each.detach()
        return each.sum()

    def look(step: int, module: Any, numbers: Any) -> None:
        if step not in index:
            return
        k = index[step]
        since = step - (at[k - 1] if k else 0)
        kq, ov = (w.detach() for w in module.stacked())
        module.seen_loss[k] = module.running / since
        module.seen_omega[k] = kq.diagonal(dim1=-2, dim2=-1)[..., :d]
        module.seen_mu[k] = ov[..., own, d + own]
        module.running.zero_()
        if tick is not None:
            tick(since)

    index = {step: k for k, step in enumerate(at)}
    fit_loop(
        model, loss, training_batches(task, batch, seeds), steps=steps, optimizer=lambda p: torch.optim.Adam(p, lr=lr),
        callbacks=[look], device=device, checkpoint_dir=checkpoint_dir, progress=progress,
    )  # fmt: skip
    model.cpu()
    seen = {name: model.get_buffer(f"seen_{name}").numpy() for name in ("loss", "omega", "mu")}
    return model, {"steps": at, **seen}
