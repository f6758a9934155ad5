"""Several tasks in few heads: the linear conditions on (omega, mu), how few heads can meet them, and who does.

For small omega task n predicts sum_l y_nl x_l' diag(sum_h mu_hn omega_h) x_q / L less the mean of x, so heads H with
M [H, N] and W [H, d] compute N separate gradient steps T [N, d] exactly when M'W = T and the columns of M sum to zero.
The columns of M then lie in a space of H - 1 dimensions: there are such heads if and only if H >= rank(T) + 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unbraid.core.errors import UnbraidError
from unbraid.systems.icl_linear_regression.circuits import SLOPES, Circuits
from unbraid.systems.icl_linear_regression.projection import Reduced
from unbraid.systems.icl_linear_regression.sampling import Regression, whole


def targets(task: Regression) -> Tensor:
    """T [N, d], double: on each task's coordinates the step of least exact risk that reads this task's labels only."""
    masks, d = task.masks(), task.dimension
    own = masks.sum(1, keepdim=True)
    return masks * task.length / (task.length + own + d * task.noise)  # (L - 1) + 1 + ...: the mean costs a degree


def least_heads(steps: Tensor) -> int:
    """The fewest heads that can compute steps T [N, d] of several tasks exactly: rank + 1."""
    return int(torch.linalg.matrix_rank(steps)) + 1


def solve(steps: Tensor, heads: int, scale: float = 0.1) -> Reduced:
    """Heads that compute T, or come as near as so many heads can (in squares).

    Args:
        steps: T [N, d].
        heads: H.
        scale: greatest |omega|; the smaller, the more exact, as mu grows in return.

    Returns:
        The numbers, double.

    Raises:
        UnbraidError: T is no matrix, heads is below 2, or scale is not positive.
    """
    if steps.dim() != 2 or not torch.isfinite(steps).all() or not bool(steps.any()):
        raise UnbraidError(f"steps has shape {list(steps.shape)}; give finite [tasks, d] that are not all zero.")
    if whole("heads", heads, 2) and not scale > 0:
        raise UnbraidError(f"scale is {scale}; it must be positive.")
    u, s, v = torch.linalg.svd(steps.double(), full_matrices=False)
    rank = min(heads - 1, int((s > s[0] * 1e-12).sum()))
    basis = _zero_sum_basis(heads)[:, :rank]  # [H, rank], orthonormal, each column sums to zero
    mu, omega = basis @ (u[:, :rank] * s[:rank]).T, basis @ v[:rank]
    factor = scale / float(omega.abs().max())
    return Reduced(omega * factor, mu / factor)


def _zero_sum_basis(heads: int) -> Tensor:
    """[H, H - 1] orthonormal columns that sum to zero (Helmert's)."""
    made = torch.zeros(heads, heads - 1, dtype=torch.float64)
    for k in range(1, heads):
        made[:k, k - 1], made[k, k - 1] = 1.0, -float(k)
        made[:, k - 1] /= (k * (k + 1)) ** 0.5
    return made


def conditions(omega: Tensor, mu: Tensor, steps: Tensor) -> dict[str, float]:
    """How far given heads meet the conditions.

    Args:
        omega: [H, d].
        mu: [H, N].
        steps: T [N, d].

    Returns:
        "zero_sum": |sum_h mu_hn| by max_h |mu_hn| of the worst task; "on": mean of (M'W) / T on the tasks' coordinates;
        "off": greatest |M'W| elsewhere by the greatest of T; "residual": |M'W - T| / |T|.
    """
    omega, mu, goal = omega.double(), mu.double(), steps.double()
    got, inside = mu.T @ omega, goal != 0
    outside = got[~inside].abs()
    return {
        "zero_sum": float((mu.sum(0).abs() / mu.abs().max(0).values.clamp_min(1e-12)).max()),
        "on": float((got[inside] / goal[inside]).mean()),
        "off": float(outside.max() / goal.abs().max()) if outside.numel() else 0.0,
        "residual": float((got - goal).norm() / goal.norm()),
    }  # fmt: skip


def computed(circuits: Circuits) -> Tensor:
    """The steps that a layer computes, [N (of prediction), N (of labels), d]: sum of OV times KQ's diagonal."""
    d, scale = circuits.dimension, SLOPES.get(circuits.activation, 1.0)
    diagonal = circuits.kq.double().diagonal(dim1=1, dim2=2)[:, :d]
    return scale * torch.einsum("hnm,hj->nmj", circuits.ov.double()[:, :, d:], diagonal)
