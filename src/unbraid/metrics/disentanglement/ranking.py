"""UDR: which of several trained models is disentangled, without any label (Duan et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.metrics.disentanglement.inputs import Score, as_array, as_codes, one_of

KL_THRESHOLD = 0.01
STD_THRESHOLD = 0.05


def udr(
    codes: Sequence[Any],
    *,
    kl: Sequence[Any] | None = None,
    method: Literal["lasso", "spearman"] = "lasso",
    alpha: float = 0.1,
    threshold: float = KL_THRESHOLD,
) -> Score:
    """Unsupervised disentanglement ranking (arXiv:1905.12614): disentangled runs agree up to order and sign.

    For each pair of runs, R [J, J] is ``|coefficient|`` of a Lasso that predicts one run's codes from the other's (or
    ``|Spearman|``); ``1/2 [mean_b max_a R_ab^2 / sum_a R_ab + mean_a max_b R_ab^2 / sum_b R_ab]`` over the active
    codes. A run's score is the median over its partners.

    Args:
        codes: of each run, [N, J] of the same N observations with the same J; five runs or more say something.
        kl: of each run, [J] mean KL per code; codes at or below ``threshold`` are passive. None: codes with a standard
            deviation below 0.05 are.
        method: "lasso" or "spearman".
        alpha: of the Lasso, on standardised codes.
        threshold: see ``kl``.

    Returns:
        ``scores`` [runs], ``matrix`` [runs, runs] (NaN on the diagonal), ``score`` and ``best`` of the best run. A run
        without active codes scores 0.

    Raises:
        UnbraidError: fewer than two runs, or codes that do not fit together.
    """
    one_of(method, ("lasso", "spearman"), "method")
    tables = [as_codes(z, f"codes of run {i}") for i, z in enumerate(codes)]
    if len(tables) < 2:
        raise UnbraidError(f"udr compares runs with one another; give at least two, not {len(tables)}.")
    if len({z.shape for z in tables}) > 1:
        raise UnbraidError(f"all runs need codes of one shape; these have {sorted({z.shape for z in tables})}.")
    masks = _active(tables, kl, threshold)
    scaled = [np.where(mask, _standard(z), 0.0) for z, mask in zip(tables, masks, strict=True)]
    count = len(tables)
    matrix = np.full((count, count), np.nan)
    for i in range(count):
        for j in range(count):
            if i != j:
                relation = _relation(scaled[i], scaled[j], method, alpha)[np.ix_(masks[i], masks[j])]
                matrix[i, j] = agreement(relation)
    scores = np.nanmedian(matrix, axis=1)
    said = {"score": float(scores.max()), "interval": None, "matrix": matrix, "active": np.stack(masks)}
    return Score(**said, estimator=f"udr[{method}]", representation="mean", scores=scores, best=int(scores.argmax()))


def agreement(relation: np.ndarray) -> float:
    """How nearly a table [A, B] of magnitudes is one-to-one; 0 where it is empty or nothing relates."""
    if not relation.size:
        return 0.0
    total = 0.0
    for axis in (0, 1):
        above, below = (relation**2).max(axis=axis), relation.sum(axis=axis)
        total += float(np.divide(above, below, out=np.zeros_like(above), where=below > 0).mean())
    return total / 2


def _active(tables: list[np.ndarray], kl: Sequence[Any] | None, threshold: float) -> list[np.ndarray]:
    if kl is None:
        return [z.std(axis=0) >= STD_THRESHOLD for z in tables]
    given = [as_array(one, "kl") for one in kl]
    if len(given) != len(tables) or any(one.shape != tables[0].shape[1:] for one in given):
        raise UnbraidError(f"kl must be {len(tables)} lists of {tables[0].shape[1]} numbers, one list per run.")
    return [one > threshold for one in given]


def _standard(z: np.ndarray) -> np.ndarray:
    spread = z.std(axis=0)
    out: np.ndarray = (z - z.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return out


def _relation(one: np.ndarray, two: np.ndarray, method: str, alpha: float) -> np.ndarray:
    """[J, J] how code a of one run relates to code b of the other."""
    if method == "lasso":
        from sklearn.linear_model import Lasso

        return np.abs(np.atleast_2d(Lasso(alpha=alpha).fit(one, two).coef_).reshape(two.shape[1], -1)).T
    from scipy.stats import rankdata

    a, b = (_standard(np.apply_along_axis(rankdata, 0, z)) for z in (one, two))
    return np.abs(a.T @ b) / len(one)
