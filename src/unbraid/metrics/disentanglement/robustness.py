"""Interventional robustness score (Suter et al. 2019)."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.metrics.disentanglement.inputs import Observed, Score, Shared, at_least, observe
from unbraid.metrics.disentanglement.resample import around, halves


def irs(
    z: Any,
    factors: Any,
    *,
    quantile: float = 0.99,
    rediscretise: int | None = None,
    **given: Unpack[Shared],
) -> Score:
    """Interventional robustness (Suter et al. 2019, arXiv:1811.00007): does a code stay put while one factor does?

    ``d_j = max_n |z_nj - mean z_j|``; for each value a of factor k, ``q_jka`` is a quantile of the distances from the
    group's mean; ``IRS_jk = 1 - mean_a q_jka / d_j``. The score weighs each code's best factor by ``d_j``, so codes of
    irrelevant noise pull it down.

    Args:
        z: [N, J] codes.
        factors: [N, K].
        quantile: of the distances; disentanglement_lib takes 0.99, the paper the greatest (1).
        rediscretise: cut factors into so many bins of equal width first, as disentanglement_lib does with 20 (it
            merges values of factors that have more); None: leave them.
        given: `Shared`. A block's distance is Euclidean.

    Returns:
        From 0 to 1; constant codes are left out (0 if all are constant). ``parents`` [U] are the best factors.

    Raises:
        UnbraidError: an argument has another form.
    """
    if not isinstance(quantile, int | float) or not 0 < quantile <= 1:
        raise UnbraidError(f"quantile is {quantile!r}; it must lie above 0 and at most at 1.")
    seen = observe(z, factors, given)
    classes = seen.classes if rediscretise is None else _equal_width(seen, at_least(rediscretise, 2, "rediscretise"))
    score, table, reach = _irs(seen.z, classes, seen, quantile)
    suffix = "" if rediscretise is None else f",rebinned-{rediscretise}"
    answer = seen.answer(score, f"irs[{quantile:g}{suffix}]", table, num_active=int((reach > 0).sum()))
    answer["parents"] = [seen.names[k] for k in np.nan_to_num(table, nan=-1.0).argmax(axis=1)]
    if seen.bootstrap:
        parts = halves(len(seen.z), seen.bootstrap, seen.seed)
        draws = np.array([_irs(seen.z[rows], classes[rows], seen, quantile)[0] for rows in parts])
        answer["interval"] = around(score, draws)
    return answer


def _equal_width(seen: Observed, bins: int) -> np.ndarray:
    low, high = seen.values.min(axis=0), seen.values.max(axis=0)
    share = (seen.values - low) / np.where(high > low, high - low, 1.0)
    cut = np.minimum((share * bins).astype(np.int64), bins - 1)
    return np.stack([np.unique(column, return_inverse=True)[1] for column in cut.T], axis=1)


def _irs(z: np.ndarray, classes: np.ndarray, seen: Observed, quantile: float) -> tuple[float, np.ndarray, np.ndarray]:
    """(score, [U, K] table, [U] greatest distances)."""
    columns = z.T[[int(block[0]) for block in seen.blocks]] if seen.single else z.T
    columns = np.ascontiguousarray(columns)
    reach = _distance(columns, columns.mean(axis=1), seen).max(axis=1)
    table = np.full((len(seen.blocks), classes.shape[1]), np.nan)
    for k in np.flatnonzero(seen.varying):
        column = classes[:, k]
        # numpy sorts 16 bits by radix, several times faster
        order = np.argsort(column.astype(np.int16) if column.max() < 2**15 else column, kind="stable")
        ends = np.flatnonzero(np.diff(classes[order, k])) + 1
        moved = columns[:, order]
        spread = np.zeros(len(seen.blocks))
        groups = np.split(np.arange(len(z)), ends)
        for group in groups:
            part = moved[:, group[0] : group[-1] + 1]
            spread += _quantile(_distance(part, part.mean(axis=1), seen), quantile)
        table[:, k] = 1 - np.divide(spread / len(groups), reach, out=np.ones(len(reach)), where=reach > 0)
    live = reach > 0
    if not live.any():
        return 0.0, table, reach
    return float((reach[live] * np.nanmax(table[live], axis=1)).sum() / reach[live].sum()), table, reach


def _distance(columns: np.ndarray, centre: np.ndarray, seen: Observed) -> np.ndarray:
    """[U, n] distances from a centre [A or U]."""
    away = columns - centre[:, None]
    if seen.single:
        return np.abs(away, out=away)
    return np.stack([np.sqrt((away[block] ** 2).sum(axis=0)) for block in seen.blocks])


def _quantile(values: np.ndarray, quantile: float) -> np.ndarray:
    """[U] quantiles along the last axis, linear between ranks; a partition is enough, no full sort."""
    n = values.shape[1]
    at = quantile * (n - 1)
    low = int(at)
    ranked = np.partition(values, low, axis=1)
    first = ranked[:, low]
    if at == low:
        return first
    second = ranked[:, low + 1 :].min(axis=1)
    found: np.ndarray = first + (at - low) * (second - first)
    return found
