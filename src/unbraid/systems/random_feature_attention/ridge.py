"""Ridge regression on a Gram matrix or on normal equations, and its penalty, chosen without test data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unbraid.core.errors import UnbraidError

PENALTIES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


def check_penalties(penalty: Any, penalties: Any, validation: Any) -> None:
    """Refuse penalties that cannot be.

    Raises:
        UnbraidError: one is not a positive number, there is none, or the share held out is none.
    """
    tried = penalties if penalty is None else (penalty,)
    if isinstance(tried, str | bytes) or not isinstance(tried, Sequence | np.ndarray) or not len(tried):
        raise UnbraidError(f"penalties are {penalties!r}; give positive numbers, such as {PENALTIES}.")
    for value in tried:
        real = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not real or not np.isfinite(value) or value <= 0:
            raise UnbraidError(f"a penalty is {value!r}; it must be a positive number (a share of the kernel's mean).")
    if validation is not None:
        real = isinstance(validation, int | float | np.number) and not isinstance(validation, bool)
        if not real or not 0 < validation < 1:
            raise UnbraidError(f"validation is {validation!r}; it must be a share between 0 and 1, or None for LOO.")


def factor(matrix: Tensor, mu: float) -> Tensor | None:
    """Lower Cholesky factor of matrix + mu I; None where rounding makes that indefinite."""
    shifted = matrix.clone()
    shifted.diagonal().add_(mu)
    lower, failed = torch.linalg.cholesky_ex(shifted)
    return None if int(failed) else lower


@dataclass(frozen=True, eq=False)
class Chosen:
    """A penalty for each output.

    Attributes:
        at: [outputs] index of the penalty.
        errors: [penalties, outputs] mean squared errors that decided; infinite where rounding forbids one.
    """

    at: np.ndarray
    errors: np.ndarray

    @classmethod
    def of(cls, errors: Sequence[Tensor]) -> Chosen:
        """The least error of each output.

        Raises:
            UnbraidError: no penalty can be used.
        """
        table = torch.stack(list(errors)).cpu().numpy()
        if not np.isfinite(table).any(0).all():
            raise UnbraidError("rounding makes the kernel indefinite at every penalty; add larger ones, or float64.")
        return cls(table.argmin(0), table)


def leave_one_out(matrix: Tensor, y: Tensor, penalties: Sequence[float]) -> tuple[Chosen, Tensor]:
    """The penalty of the least leave-one-out error, exact and without refitting: e_i = alpha_i / (K + mu I)^-1_ii.

    Args:
        matrix: [n, n] float64 Gram matrix.
        y: [n, outputs] centred targets.
        penalties: in units of the mean diagonal.

    Returns:
        The choice, and [n, outputs] dual coefficients.
    """
    scale = float(matrix.diagonal().mean())
    errors, duals = [], []
    for penalty in penalties:
        lower = factor(matrix, penalty * scale)
        if lower is None:
            errors.append(torch.full_like(y[0], torch.inf))
            duals.append(torch.zeros_like(y))
            continue
        dual = torch.cholesky_solve(y, lower)
        errors.append(((dual / torch.cholesky_inverse(lower).diagonal()[:, None]) ** 2).mean(0))
        duals.append(dual)
    chosen = Chosen.of(errors)
    return chosen, torch.stack([duals[at][:, k] for k, at in enumerate(chosen.at)], 1)


def held_out(matrix: Tensor, y: Tensor, penalties: Sequence[float], share: float) -> tuple[Chosen, Tensor]:
    """The penalty of the least error on the last inputs, then a fit on all.

    Args:
        matrix: [n, n] float64 Gram matrix.
        y: [n, outputs] centred targets.
        penalties: in units of the mean diagonal.
        share: of the inputs that decide, which are the last ones.

    Returns:
        The choice, and [n, outputs] dual coefficients.
    """
    n = len(y)
    kept = n - held(n, share)
    scale = float(matrix.diagonal().mean())

    def error(penalty: float) -> Tensor:
        lower = factor(matrix[:kept, :kept], penalty * scale)
        if lower is None:
            return torch.full_like(y[0], torch.inf)
        return ((matrix[kept:, :kept] @ torch.cholesky_solve(y[:kept], lower) - y[kept:]) ** 2).mean(0)

    chosen = Chosen.of([error(penalty) for penalty in penalties])
    return chosen, refit(lambda mu: factor(matrix, mu * scale), y, penalties, chosen)


def held(n: int, share: float) -> int:
    """How many of n inputs are held out: at least one, and at least one is not.

    Raises:
        UnbraidError: there are fewer than two.
    """
    if n < 2:
        raise UnbraidError("choosing a penalty needs two inputs at least (n_samples=1); give more, or penalty=.")
    return min(n - 1, max(1, round(n * share)))


def refit(
    decompose: Callable[[float], Tensor | None], right: Tensor, penalties: Sequence[float], chosen: Chosen
) -> Tensor:
    """Coefficients of the chosen penalties, one decomposition for each penalty in use.

    Raises:
        UnbraidError: rounding makes the matrix indefinite.
    """
    found = torch.empty_like(right)
    for at in np.unique(chosen.at):
        lower = decompose(penalties[at])
        if lower is None:
            raise UnbraidError(f"rounding makes the kernel indefinite at the penalty {penalties[at]:g}; take a larger.")
        columns = torch.from_numpy(np.flatnonzero(chosen.at == at)).to(right.device)
        found[:, columns] = torch.cholesky_solve(right[:, columns], lower)
    return found


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises:
        UnbraidError: torch does not know or find it.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        raise UnbraidError(
            f"there is no device {device!r} here; give cpu, or what torch finds, such as cuda."
        ) from None
