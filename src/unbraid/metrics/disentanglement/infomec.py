"""InfoMEC (Hsu et al. 2023): modularity, explicitness and compactness in units of information."""

from __future__ import annotations

import warnings
from typing import Any, Literal, Unpack

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.metrics.disentanglement.information import entropy_of, knn_matrix, plug_in
from unbraid.metrics.disentanglement.inputs import Observed, Score, Shared, at_least, observe, one_of
from unbraid.metrics.disentanglement.resample import around, halves


def infomec(
    z: Any,
    factors: Any,
    *,
    codes: Literal["continuous", "discrete"] = "continuous",
    neighbours: int = 10,
    active_ratio: float = 20.0,
    undefined: Literal["drop", "nan"] = "drop",
    explicitness_rows: int | None = None,
    **given: Unpack[Shared],
) -> Score:
    """InfoM, InfoE and InfoC (arXiv:2305.18378).

    ``NMI[k, j] = I(v_k; z_j) / H(v_k)``, by nearest neighbours for continuous codes and plug-in for discrete ones.
    InfoM and InfoC are the mean shares of a code's best factor and of a factor's best code, rescaled so that an even
    spread is 0. InfoE is the share of entropy that a logistic regression without penalty takes away, fitted and scored
    on the same rows, as in the original code (for continuous factors R^2 of a linear regression).

    Args:
        z: [N, J] codes.
        factors: [N, K].
        codes: "continuous" or "discrete".
        neighbours: of the estimator for continuous codes.
        active_ratio: a code is active if its range exceeds the widest range over this (20; an older file of the
            original repository has 8); discrete codes if they vary at all.
        undefined: a code without information on any factor has no share: "drop" leaves it out of the mean (NaN when
            none is left), "nan" gives NaN, as the original does.
        explicitness_rows: fit InfoE on so many random rows at most; None: all.
        given: `Shared`; ``bootstrap`` recomputes on so many random halves of the rows.

    Returns:
        ``infom``, ``infoe``, ``infoc``, ``score`` (InfoM), ``matrix`` NMI [codes, factors], ``intervals``.

    Raises:
        UnbraidError: an argument has another form.
    """
    one_of(codes, ("continuous", "discrete"), "codes")
    one_of(undefined, ("drop", "nan"), "undefined")
    at_least(neighbours, 1, "neighbours")
    if not isinstance(active_ratio, int | float) or not active_ratio > 0:
        raise UnbraidError(f"active_ratio is {active_ratio!r}; it must be above 0.")
    seen = observe(z, factors, given)
    if codes == "discrete" and not seen.single:
        raise UnbraidError("discrete codes are taken one by one; leave out blocks, or use codes='continuous'.")
    spread = np.ptp(seen.z, axis=0)
    live = spread > (0 if codes == "discrete" else spread.max() / active_ratio)
    units = np.array([live[block].any() for block in seen.blocks])

    def three(part: Observed) -> tuple[np.ndarray, np.ndarray]:
        if codes == "discrete":
            placed = np.stack([np.unique(c, return_inverse=True)[1] for c in part.z.T], axis=1)
            m = plug_in(placed, placed.max(axis=0) + 1, part.classes, part.sizes).m
        else:
            m = knn_matrix(part, neighbours)
        entropy = np.array([entropy_of(column) for column in part.classes.T])
        nmi = m / np.where(entropy > 0, entropy, 1.0)
        some = nmi[units][:, seen.varying]
        rows = None if explicitness_rows is None else at_least(explicitness_rows, 2, "explicitness_rows")
        return np.array([_share(some, undefined), _explicit(part, rows), _share(some.T, undefined)]), nmi

    values, nmi = three(seen)
    keys = ("infom", "infoe", "infoc")
    answer = seen.answer(values[0], f"infom[{codes}]", nmi, num_active=int(units.sum()), intervals={})
    answer |= dict(zip(keys, map(float, values), strict=True))
    answer["active_units"] = units
    if seen.bootstrap:
        drawn = np.array([three(seen.rows(r))[0] for r in halves(len(seen.z), seen.bootstrap, seen.seed)])
        answer["intervals"] = {key: around(values[i], drawn[:, i]) for i, key in enumerate(keys)}
        answer["interval"] = answer["intervals"]["infom"]
    return answer


def _share(table: np.ndarray, undefined: str) -> float:
    """Mean over rows of the greatest share, rescaled from [1/n, 1] to [0, 1]; 1 when there is a single column."""
    total = table.sum(axis=1)
    if not (total > 0).any() or (undefined == "nan" and not (total > 0).all()):
        return float("nan")
    count = table.shape[1]
    if count == 1:
        return 1.0
    best = float((table.max(axis=1)[total > 0] / total[total > 0]).mean())
    return (best - 1 / count) / (1 - 1 / count)


def _explicit(seen: Observed, rows: int | None) -> float:
    from sklearn.linear_model import LogisticRegression

    at = np.arange(len(seen.z))
    if rows is not None and rows < len(at):
        at = np.random.default_rng([seen.seed, 0x1E]).permutation(len(at))[:rows]
    z = seen.z[at]
    spread = z.std(axis=0)
    z = (z - z.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    scores = []
    for k in np.flatnonzero(seen.varying):
        if seen.continuous[k]:
            inputs, v = np.column_stack([z, np.ones(len(z))]), seen.values[at, k]
            left = v - inputs @ np.linalg.lstsq(inputs, v, rcond=None)[0]
            scores.append(1 - left.var() / v.var() if v.var() > 0 else 0.0)
            continue
        labels, y = np.unique(seen.classes[at, k], return_inverse=True)
        if len(labels) < 2:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = LogisticRegression(C=np.inf, class_weight="balanced", max_iter=200).fit(z, y)
        chance = np.clip(model.predict_proba(z)[np.arange(len(y)), y], np.finfo(np.float64).eps, 1)
        # with balanced classes and zero inputs the same model answers evenly: its loss is the logarithm of their number
        null = np.log(len(labels))
        scores.append((null + np.log(chance).mean()) / null)
    return float(np.mean(scores)) if scores else float("nan")
