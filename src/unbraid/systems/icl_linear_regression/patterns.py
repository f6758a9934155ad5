"""How far a layer has the paper's pattern, from its circuits alone: scores that do not depend on the order of heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unbraid.core.claim import Table
from unbraid.core.errors import UnbraidError
from unbraid.metrics.intervals import over
from unbraid.systems.icl_linear_regression.circuits import Circuits
from unbraid.systems.icl_linear_regression.reading import read_circuits
from unbraid.systems.icl_linear_regression.reduced import mu_of
from unbraid.systems.icl_linear_regression.sampling import Regression


@dataclass(frozen=True)
class PatternReport:
    """Scores of a layer. Shares are of squared norms, over heads that are no dummies; None: not defined.

    Attributes:
        heads: H.
        dummies: heads whose omega and mu are both below a tenth of the greatest.
        omega: mean of KQ's diagonal over the covariates, of each head, largest first.
        mu: label weight of each head, of the first task, in the same order.
        diagonal_share: of KQ (all rows, the columns of the covariates) that lies on the diagonal.
        diagonal_spread: greatest standard deviation of a head's diagonal, by its mean.
        label_row_share: of KQ that lies in the rows of the labels, where the pattern has zeros.
        label_share: of OV that lies at its own label ("last entry").
        identity_cosine: least |cosine| of a head's KQ block with the identity.
        preconditioner_cosine: least |cosine| with the matrix that was given.
        sign_match: share of heads with sign(omega) = sign(mu).
        zero_sum: |sum of mu| by the greatest |mu|; of the worst task.
        homogeneity: (greatest less least |omega|) by their mean.
        gamma: mean |omega|.
        mu_gamma: mu that the manifold has at this gamma.
        manifold: greatest distance of the groups' sums of mu from mu_gamma and -mu_gamma, by mu_gamma; a group
            without heads has the sum 0.
        step: sum of mu omega, the step eta of the descent that the layer computes.
    """

    heads: int
    dummies: int
    omega: tuple[float, ...]
    mu: tuple[float, ...]
    diagonal_share: float
    diagonal_spread: float
    label_row_share: float
    label_share: float
    identity_cosine: float
    preconditioner_cosine: float | None
    sign_match: float | None
    zero_sum: float
    homogeneity: float
    gamma: float
    mu_gamma: float | None
    manifold: float | None
    step: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def report(
    layer: nn.Module | Circuits, task: Regression | None = None, *, target: Tensor | None = None, dummy: float = 0.1,
    **reading: Any,
) -> PatternReport:  # fmt: skip
    """Scores of any attention layer.

    Args:
        layer: circuits, or a layer for `read_circuits`.
        task: the setting, for the manifold; None leaves it out.
        target: [d, d] to compare KQ with, such as `preconditioner(task)`.
        dummy: share of the greatest |omega| and |mu| below which a head is a dummy.
        reading: further arguments of `read_circuits`.

    Raises:
        UnbraidError: the layer cannot be read, or the task or the target has another dimension.
    """
    found = read_circuits(layer, **reading)
    c, d = Circuits(found.kq.double(), found.ov.double(), found.activation, found.length).sorted(), found.dimension
    for name, size in {"task": task and task.dimension, "target": None if target is None else target.shape[-1]}.items():
        if size is not None and size != d:
            raise UnbraidError(f"the {name} has dimension {size}; the layer reads {d} covariates and {c.tasks} labels.")
    diagonal = c.kq.diagonal(dim1=1, dim2=2)[:, :d]
    own = c.ov[:, torch.arange(c.tasks), torch.arange(d, d + c.tasks)]  # [H, N]
    omega, mu = diagonal.mean(1), own[:, 0]
    size, weight = diagonal.norm(dim=1), own.norm(dim=1)
    live = (size > dummy * size.max()) | (weight > dummy * weight.max())
    kq, ov = c.kq[live][:, :, :d], c.ov[live]
    w, m = omega[live], mu[live]
    plus, minus = float(m[w > 0].sum()), float(m[w < 0].sum())
    gamma = float(w.abs().mean())
    curve = None if task is None or c.tasks > 1 else float(mu_of(gamma, task))
    spread = diagonal[live].std(1, correction=0) / diagonal[live].mean(1).abs().clamp_min(1e-12)
    return PatternReport(
        heads=c.heads, dummies=int((~live).sum()), omega=tuple(omega.tolist()), mu=tuple(mu.tolist()),
        diagonal_share=_share(diagonal[live], kq), diagonal_spread=float(spread.max()),
        label_row_share=_share(kq[:, d:], kq), label_share=_share(own[live], ov),
        identity_cosine=_cosine(kq[:, :d], torch.eye(d, dtype=kq.dtype)),
        preconditioner_cosine=None if target is None else _cosine(kq[:, :d], target.to(kq)),
        sign_match=float((w.sign() == m.sign()).double().mean()) if c.tasks == 1 else None,
        zero_sum=float((own[live].sum(0).abs() / own[live].abs().max(0).values.clamp_min(1e-12)).max()),
        homogeneity=float((w.abs().max() - w.abs().min()) / max(gamma, 1e-12)), gamma=gamma, mu_gamma=curve,
        manifold=max(abs(plus - curve), abs(minus + curve)) / curve if curve else None,
        step=float((w * m).sum()),
    )  # fmt: skip


def _share(part: Tensor, whole: Tensor) -> float:
    return float(part.square().sum() / whole.square().sum().clamp_min(1e-24))


def _cosine(blocks: Tensor, target: Tensor) -> float:
    inner = (blocks * target).sum((1, 2))
    return float((inner / (blocks.flatten(1).norm(dim=1) * target.norm()).clamp_min(1e-24)).abs().min())


def bands(reports: Sequence[PatternReport]) -> Table:
    """Each score over several trainings: mean, 95 % interval by Student's t, least and greatest.

    Raises:
        UnbraidError: there is no report.
    """
    if not reports:
        raise UnbraidError("bands needs at least one report.")
    rows = []
    for name in reports[0].to_dict():
        values = [v for v in (getattr(r, name) for r in reports) if v is not None]
        if not values or isinstance(values[0], tuple):
            continue
        mean, interval = over(values)
        low, high = interval or (None, None)
        rows.append(
            {"score": name, "mean": mean, "low": low, "high": high, "least": float(np.min(values)),
             "greatest": float(np.max(values)), "n": len(values)}
        )  # fmt: skip
    return Table.from_records(rows)
