"""Scores without factors: total correlation, Wasserstein correlation, information between codes."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.metrics.disentanglement.discretiser import Discretiser, discretise
from unbraid.metrics.disentanglement.information import plug_in
from unbraid.metrics.disentanglement.inputs import (
    REPRESENTATIONS,
    Representation,
    Score,
    as_array,
    as_codes,
    as_mask,
    at_least,
    make_blocks,
    one_of,
)
from unbraid.metrics.disentanglement.resample import around, row_weights

SINGULAR = 1e-10


def active_codes(z: Any, threshold: float = 0.05) -> np.ndarray:
    """[J] mask of codes whose standard deviation is at least ``threshold``, as the FactorVAE score prunes.

    Raises:
        UnbraidError: an argument has another form.
    """
    if not isinstance(threshold, int | float) or not threshold >= 0:
        raise UnbraidError(f"threshold is {threshold!r}; it must be a standard deviation of at least 0.")
    spread = as_codes(z).std(axis=0, ddof=1)
    return np.asarray((spread >= threshold) & (spread > 0))


def total_correlation(
    z: Any,
    *,
    variance: Any = None,
    representation: Representation = "mean",
    active_mask: Any = None,
    blocks: Any = None,
    bootstrap: int = 0,
    seed: int = 0,
) -> Score:
    """Total correlation of a Gaussian with the codes' covariance, ``1/2 (sum_j log S_jj - log det S)``, in nats.

    It sees linear dependence only: a rotation of whitened codes has none. Constant codes are left out.

    Args:
        z: [N, J] codes.
        variance: [J] or [N, J] posterior variances: their mean is added to the diagonal, which gives the covariance
            of sampled codes exactly and without drawing.
        representation: "mean" or "sampled", recorded.
        active_mask: [J] True for codes that count.
        blocks: codes whose dependence among themselves does not count.
        bootstrap: resamples of rows for the interval.
        seed: of the resamples.

    Returns:
        0 or more; infinity when a code is a linear combination of the others. ``matrix`` is the correlation matrix.

    Raises:
        UnbraidError: an argument has another form.
    """
    setup = _Setup(z, variance, representation, active_mask, blocks, bootstrap, seed)
    return setup.score("tc[gaussian]", setup.total_correlation)


def wasserstein_correlation(
    z: Any,
    *,
    normalised: bool = False,
    variance: Any = None,
    representation: Representation = "mean",
    active_mask: Any = None,
    bootstrap: int = 0,
    seed: int = 0,
) -> Score:
    """Wasserstein distance of a Gaussian with the codes' covariance from its independent twin (Xiao and Wang 2019).

    ``2 tr S - 2 tr (D^1/2 S D^1/2)^1/2`` with D the diagonal of S.

    Args:
        z: [N, J] codes.
        normalised: divide by tr S.
        variance: [J] or [N, J] posterior variances, see `total_correlation`.
        representation: "mean" or "sampled", recorded.
        active_mask: [J] True for codes that count.
        bootstrap: resamples of rows for the interval.
        seed: of the resamples.

    Returns:
        0 or more, in squared units of the codes unless normalised.

    Raises:
        UnbraidError: an argument has another form.
    """
    setup = _Setup(z, variance, representation, active_mask, None, bootstrap, seed)

    def formula(s: np.ndarray) -> float:
        half = np.sqrt(np.diag(s))
        inner = half[:, None] * s * half[None]
        root = np.sqrt(np.clip(np.linalg.eigvalsh(inner), 0, None)).sum()
        value = max(0.0, float(2 * np.trace(s) - 2 * root))
        return value / float(np.trace(s)) if normalised else value

    return setup.score(f"wasserstein{'[normalised]' if normalised else ''}", formula)


def mi_score(
    z: Any,
    *,
    bins: int = 20,
    discretiser: Discretiser = "width",
    correction: str = "none",
    representation: Representation = "mean",
    active_mask: Any = None,
    bootstrap: int = 0,
    seed: int = 0,
) -> Score:
    """Mean mutual information between different codes, in nats, on binned codes.

    Args:
        z: [N, J] codes.
        bins: per code.
        discretiser: "width", "quantile" or "adaptive".
        correction: "none" or "miller-madow"; plug-in information of independent codes is about (bins - 1)^2/(2N).
        representation: "mean" or "sampled", recorded.
        active_mask: [J] True for codes that count.
        bootstrap: resamples of rows for the interval.
        seed: of the resamples.

    Returns:
        0 or more; 0 for a single code. ``matrix`` [J, J].

    Raises:
        UnbraidError: an argument has another form.
    """
    one_of(correction, ("none", "miller-madow"), "correction")
    one_of(discretiser, get_args(Discretiser), "discretiser")
    setup = _Setup(z, None, representation, active_mask, None, bootstrap, seed)
    placed, counts = discretise(setup.z, bins, discretiser)
    excess: np.ndarray | float = 0.0
    if correction == "miller-madow":
        from unbraid.metrics.disentanglement.information import cells_in_use

        used, _, pairs = cells_in_use(placed, counts, placed, counts)
        excess = (pairs - used[:, None] - used[None] + 1) / (2 * len(placed))

    def value(weights: np.ndarray | None) -> tuple[float, np.ndarray]:
        m = np.maximum(plug_in(placed, counts, placed, counts, weights).m - excess, 0.0)
        off = ~np.eye(len(m), dtype=bool)
        return float(m[off].mean()) if len(m) > 1 else 0.0, m

    score, m = value(None)
    name = f"mi_score[{discretiser}-{bins}{'' if correction == 'none' else ',' + correction}]"
    answer = setup.answer(score, name, m)
    draw = row_weights(len(placed), setup.seed)
    draws = np.array([value(draw())[0] for _ in range(setup.bootstrap)])
    answer["interval"] = around(score, draws, (0.0, np.inf))
    return answer


class _Setup:
    """Codes without constant ones, their covariance, and the arguments of a score without factors."""

    def __init__(
        self, z: Any, variance: Any, representation: str, mask: Any, blocks: Any, bootstrap: int, seed: int
    ) -> None:
        codes = as_codes(z)
        self.representation = one_of(representation, REPRESENTATIONS, "representation")
        self.bootstrap, self.seed = at_least(bootstrap, 0, "bootstrap"), at_least(seed, 0, "seed")
        added = np.zeros(codes.shape[1])
        if variance is not None:
            given = as_array(variance, "variance").astype(np.float64)
            if given.shape not in (codes.shape, codes.shape[1:]) or not np.isfinite(given).all() or (given < 0).any():
                raise UnbraidError(f"variance must be [J] or [N, J] numbers of at least 0, not {given.shape}.")
            added = given.mean(axis=0) if given.ndim == 2 else given
            self.representation = "sampled"
        self.active = as_mask(mask, codes.shape[1]) & ((codes.max(axis=0) > codes.min(axis=0)) | (added > 0))
        if not self.active.any():
            raise UnbraidError("all codes are constant, so they have no correlation; the model has collapsed.")
        self.z, self.added = codes[:, self.active], added[self.active]
        self.blocks, self.labels = make_blocks(blocks, self.active)

    def covariance(self, weights: np.ndarray | None = None) -> np.ndarray:
        """[A, A] covariance (ddof 1); ``weights`` [N] say how often each row counts."""
        z = self.z if weights is None else self.z[np.repeat(np.arange(len(self.z)), weights.astype(int))]
        return np.atleast_2d(np.cov(z, rowvar=False)) + np.diag(self.added)

    def total_correlation(self, s: np.ndarray) -> float:
        """Of the blocks; infinite where the covariance is singular."""
        columns = np.concatenate(self.blocks)
        spread = np.sqrt(np.diag(s))
        if (spread == 0).any():
            return float("nan")  # a resample in which a code happened to be constant
        r = (s / spread[:, None] / spread[None])[np.ix_(columns, columns)]
        whole = np.linalg.eigvalsh(r)
        if whole.min() < SINGULAR:
            return float("inf")
        full = s / spread[:, None] / spread[None]
        parts = sum(float(np.linalg.slogdet(full[np.ix_(b, b)])[1]) for b in self.blocks)
        return max(0.0, 0.5 * (parts - float(np.log(whole).sum())))

    def answer(self, score: float, name: str, matrix: np.ndarray) -> Score:
        """A `Score` without an interval."""
        said = {"score": score, "interval": None, "matrix": matrix, "active": self.active, "estimator": name}
        return Score(**said, representation=self.representation, codes=list(self.labels))

    def score(self, name: str, formula: Any) -> Score:
        """A score that is a formula of the covariance."""
        s = self.covariance()
        spread = np.sqrt(np.diag(s))
        answer = self.answer(formula(s), name, s / spread[:, None] / spread[None])
        draw = row_weights(len(self.z), self.seed)
        draws = np.array([formula(self.covariance(draw())) for _ in range(self.bootstrap)])
        answer["interval"] = around(answer["score"], draws, (0.0, np.inf))
        return answer
