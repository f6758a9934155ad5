"""Scores that are a formula of the table of information: MIG and its relatives, modularity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.metrics.disentanglement.information import Information, InformationArguments, evaluate
from unbraid.metrics.disentanglement.inputs import Observed, Score, one_of

Normaliser = Literal["factor", "code"]


def top_two(m: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The greatest and the second greatest along an axis; the second is 0 where there is only one."""
    if m.shape[axis] == 1:
        return m.max(axis=axis), np.zeros_like(m.max(axis=axis))
    ranked = np.sort(m, axis=axis)
    return np.take(ranked, -1, axis=axis), np.take(ranked, -2, axis=axis)


def counted(found: Information, seen: Observed, exclude: Sequence[str]) -> np.ndarray:
    """[K] mask of factors that vary and are not excluded.

    Raises:
        UnbraidError: a name is unknown, or no factor is left.
    """
    unknown = [name for name in exclude if name not in seen.names]
    if unknown:
        raise UnbraidError(f"exclude names a factor {unknown[0]!r}; there are {', '.join(seen.names)}.")
    mask = seen.varying & ~np.isin(seen.names, list(exclude)) & (found.factor_entropy > 0)
    if not mask.any():
        raise UnbraidError("no factor is left that varies; exclude fewer, or give other data.")
    return np.asarray(mask)


def mig(
    z: Any,
    factors: Any,
    *,
    normaliser: Normaliser = "factor",
    exclude: Sequence[str] = (),
    **given: Unpack[InformationArguments],
) -> Score:
    """Mutual information gap (Chen et al. 2018, arXiv:1802.04942) in disentanglement_lib's form on binned codes.

    For each factor the difference between the most informative code's information and the second's, over H(v_k);
    the mean over factors. A factor without variation is left out; with one code the second is 0. The original's
    estimator on the posterior is `mig_posterior`.

    Args:
        z: [N, J] codes.
        factors: [N, K].
        normaliser: "factor": H(v_k); "code": H of the most informative code, as ubisoft's library does.
        exclude: names of factors to leave out, such as dSprites' shape in the original.
        given: `InformationOptions` and `Shared`.

    Returns:
        From 0 to 1, with ``gaps`` [K].

    Raises:
        UnbraidError: an argument has another form.
    """
    one_of(normaliser, ("factor", "code"), "normaliser")
    options = f"mig{',code' if normaliser == 'code' else ''}"

    def gaps(found: Information, seen: Observed) -> np.ndarray:
        first, second = top_two(found.m[found.kept], 0) if found.kept.any() else np.zeros((2, len(seen.sizes)))
        if normaliser == "factor":
            return _over(first - second, found.factor_entropy)
        return _over(first - second, found.code_entropy[found.m.argmax(axis=0)])

    def formula(found: Information, seen: Observed) -> float:
        return float(gaps(found, seen)[counted(found, seen, exclude)].mean())

    score, found, seen = evaluate(z, factors, given, formula, options)
    score["gaps"] = gaps(found, seen)
    return score


def mig_sup(z: Any, factors: Any, **given: Unpack[InformationArguments]) -> Score:
    """MIG-sup (Li et al. 2020): for each code the gap between its two best factors, normalised; mean over codes.

    Args:
        z: [N, J] codes.
        factors: [N, K].
        given: `InformationOptions` and `Shared`.

    Returns:
        From 0 to 1; codes below the floor are left out (NaN if none is left).
    """

    def formula(found: Information, seen: Observed) -> float:
        mask = counted(found, seen, ())
        share = found.m[found.kept][:, mask] / found.factor_entropy[mask]
        if not len(share):
            return float("nan")
        first, second = top_two(share, 1)
        return float((first - second).mean())

    return evaluate(z, factors, given, formula, "mig_sup")[0]


def dcimig(z: Any, factors: Any, **given: Unpack[InformationArguments]) -> Score:
    """DCIMIG, also 3CharM (Sepliarskaia et al. 2019): each code speaks for its best factor only.

    Per code the gap between its two best factors counts for the best one; per factor the best gap; their sum over the
    sum of H(v_k).

    Args:
        z: [N, J] codes.
        factors: [N, K].
        given: `InformationOptions` and `Shared`.

    Returns:
        From 0 to 1.
    """

    def formula(found: Information, seen: Observed) -> float:
        mask = counted(found, seen, ())
        m = found.m[found.kept][:, mask]
        best = np.zeros(m.shape[1])
        if len(m):
            first, second = top_two(m, 1)
            np.maximum.at(best, m.argmax(axis=1), first - second)
        return float(best.sum() / found.factor_entropy[mask].sum())

    return evaluate(z, factors, given, formula, "dcimig")[0]


def jemmig(z: Any, factors: Any, **given: Unpack[InformationArguments]) -> Score:
    """JEMMIG (Do and Tran 2020, arXiv:1908.09961), normalised so that 1 is best.

    ``1 - (H(z_j*, v_k) - m_(1) + m_(2)) / (H(v_k) + log bins)``, mean over factors; needs bins.

    Args:
        z: [N, J] codes.
        factors: [N, K].
        given: `InformationOptions` and `Shared`.

    Returns:
        From 0 to 1. A perfect code reaches 1 only if each of its bins holds one value of the factor and vice versa.

    Raises:
        UnbraidError: the estimator has no bins.
    """
    bins = given.get("bins", 20)

    def formula(found: Information, seen: Observed) -> float:
        if not found.bins.all():
            raise UnbraidError("jemmig needs the entropy of binned codes; give single codes and estimator='bins'.")
        mask = counted(found, seen, ())
        if not found.kept.any():
            return 0.0
        m, joint = found.m[found.kept], found.joint_entropy[found.kept]
        first, second = top_two(m, 0)
        together = joint[m.argmax(axis=0), np.arange(m.shape[1])]
        scores = 1 - (together - first + second) / (found.factor_entropy + np.log(bins))
        return float(scores[mask].mean())

    return evaluate(z, factors, given, formula, "jemmig")[0]


def modularity(z: Any, factors: Any, **given: Unpack[InformationArguments]) -> Score:
    """Modularity (Ridgeway and Mozer 2018, arXiv:1802.05312): does each code carry one factor only?

    ``1 - sum_{k != k*} m_jk^2 / (m_jk*^2 (K - 1))``, 0 for a code without information; mean over codes. The bias of
    plug-in information alone gives pure noise about 0.65, and a code with two factors in full can get 0.99: use
    ``floor=20`` or a correction, and read it beside the others.

    Args:
        z: [N, J] codes.
        factors: [N, K], at least two that vary.
        given: `InformationOptions` and `Shared`.

    Returns:
        From 0 to 1, with ``per_code``; codes below the floor are left out (NaN if none is left).

    Raises:
        UnbraidError: fewer than two factors vary.
    """
    score, found, seen = evaluate(z, factors, given, modularity_of, "modularity")
    score["per_code"] = per_code_modularity(found.m[:, seen.varying])
    return score


def modularity_of(found: Information, seen: Observed) -> float:
    """The formula of `modularity`."""
    if seen.varying.sum() < 2:
        raise UnbraidError("modularity compares factors; it needs at least two that vary.")
    kept = found.m[found.kept][:, seen.varying]
    return float(per_code_modularity(kept).mean()) if len(kept) else float("nan")


def per_code_modularity(m: np.ndarray) -> np.ndarray:
    """[U] modularity of each code; 0 where there is no information."""
    top = m.max(axis=1)
    rest = (m**2).sum(axis=1) - top**2
    return np.where(top > 0, 1 - _over(rest, top**2 * (m.shape[1] - 1)), 0.0)


def _over(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """A quotient that is 0 where there is nothing below."""
    out: np.ndarray = np.divide(above, below, out=np.zeros(np.broadcast(above, below).shape), where=below > 0)
    return out
