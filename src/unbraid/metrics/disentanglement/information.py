"""The mutual information of every code with every factor, by bins or by nearest neighbours, and its bias."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, Unpack, get_args

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.metrics.disentanglement.discretiser import Discretiser, discretise
from unbraid.metrics.disentanglement.inputs import Observed, Score, Shared, at_least, observe, one_of
from unbraid.metrics.disentanglement.knn import knn_information, knn_regression
from unbraid.metrics.disentanglement.resample import Bounds, around, halves, row_weights

Estimator = Literal["bins", "knn"]
Correction = Literal["none", "miller-madow", "permutation"]


class InformationOptions(TypedDict, total=False):
    """How mutual information is estimated; taken by every metric that is built on it.

    Attributes:
        bins: per code, for the estimator by bins.
        discretiser: "width", "quantile" or "adaptive"; see `discretise`.
        estimator: "bins" (plug-in); "knn" (no bins; the only one for blocks of several codes, and chosen for them).
        neighbours: k of the estimator "knn".
        correction: what is taken off the plug-in estimate, which is too large by about (bins - 1)(n_k - 1)/(2N):
            "none", "miller-madow" (that formula with the cells that occur) or "permutation" (the mean after the rows
            of the codes were shuffled).
        floor: shuffles for a floor: codes whose information is within four standard deviations of that of shuffled
            rows for every factor are left out. 0: none is left out; 20 will do.
    """

    bins: int
    discretiser: Discretiser
    estimator: Estimator
    neighbours: int
    correction: Correction
    floor: int


class InformationArguments(InformationOptions, Shared, total=False):
    """The options of information, and those of all metrics."""


@dataclass(frozen=True)
class Information:
    """Mutual information of U codes (or blocks) with K factors, in nats.

    Attributes:
        m: [U, K] information.
        factor_entropy: [K] H(v_k).
        code_entropy: [U] H of the binned code; NaN for "knn".
        joint_entropy: [U, K] H(code, factor); NaN for "knn".
        bins: [U] bins in use.
        kept: [U] mask of the codes above the floor.
        name: the estimator in words, such as "width-20" or "knn-10".
    """

    m: np.ndarray
    factor_entropy: np.ndarray
    code_entropy: np.ndarray
    joint_entropy: np.ndarray
    bins: np.ndarray
    kept: np.ndarray
    name: str


Formula = Callable[[Information, Observed], float]
SHUFFLES = 20
DEVIATIONS = 4.0
TIES = 1e-10


def split(given: InformationArguments) -> tuple[dict[str, Any], dict[str, Any]]:
    """(options of information, shared arguments)."""
    ours = InformationOptions.__annotations__
    return {k: v for k, v in given.items() if k in ours}, {k: v for k, v in given.items() if k not in ours}


def measure(seen: Observed, options: InformationOptions) -> tuple[Information, Callable[[], Information]]:
    """Estimate information, and make a function that estimates it anew with resampled rows.

    Raises:
        UnbraidError: an option has another form.
    """
    bins, floor = at_least(options.get("bins", 20), 2, "bins"), at_least(options.get("floor", 0), 0, "floor")
    correction = one_of(options.get("correction", "none"), get_args(Correction), "correction")
    wanted = one_of(options.get("estimator", "bins" if seen.single else "knn"), get_args(Estimator), "estimator")
    if wanted == "knn" or not seen.single:
        if correction == "miller-madow":
            raise UnbraidError("correction 'miller-madow' is for bins; take 'permutation' or 'none' here.")
        if not seen.single and options.get("estimator") == "bins":
            raise UnbraidError("blocks of several codes have no bins of their own; use estimator='knn' (or leave it).")
        return _measure_knn(seen, at_least(options.get("neighbours", 10), 1, "neighbours"), correction, floor)
    method = one_of(options.get("discretiser", "width"), get_args(Discretiser), "discretiser")
    placed, counts = discretise(seen.z[:, [int(b[0]) for b in seen.blocks]], bins, method)  # type: ignore[arg-type]
    name = f"{method}-{bins}" + ("" if correction == "none" else f",{correction}")
    found = _corrected(placed, counts, seen, correction, floor, name)
    draw = row_weights(len(placed), seen.seed)
    offset = found.m - plug_in(placed, counts, seen.classes, seen.sizes).m  # the correction stays as it is

    def again() -> Information:
        drawn = plug_in(placed, counts, seen.classes, seen.sizes, draw())
        m = np.maximum(drawn.m + offset, 0.0)
        return replace(drawn, m=m, kept=found.kept, name=name)

    return found, again


def plug_in(
    placed: np.ndarray, counts: np.ndarray, classes: np.ndarray, sizes: np.ndarray, weights: np.ndarray | None = None
) -> Information:
    """The plug-in estimate for all pairs at once.

    Args:
        placed: [N, U] bins.
        counts: [U] how many bins.
        classes: [N, K].
        sizes: [K] how many classes.
        weights: [N] how often each row counts; None: once.
    """
    rows, units = placed.shape
    total = float(rows) if weights is None else float(weights.sum())
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    width = int(sizes.sum())
    columns = (classes + starts).astype(np.intp)
    each = None if weights is None else np.repeat(weights, len(sizes))
    joint = np.empty((units, len(sizes)))
    code = np.empty(units)
    table: np.ndarray = np.zeros((1, width))
    for u in range(units):
        at = (columns + (placed[:, u] * width)[:, None]).ravel()
        table = np.bincount(at, each, minlength=int(counts[u]) * width).reshape(int(counts[u]), width)
        joint[u] = np.add.reduceat(_x_log_x(table).sum(axis=0), starts)
        code[u] = _x_log_x(table[:, : int(sizes[0])].sum(axis=1)).sum()
    factor = np.add.reduceat(_x_log_x(table.sum(axis=0)), starts)
    log = np.log(total)
    entropies = log - factor / total, log - code / total, log - joint / total
    m = np.maximum(entropies[0][None] + entropies[1][:, None] - entropies[2], 0.0)
    return Information(m, *entropies, bins=counts, kept=np.ones(units, dtype=bool), name="")


def cells_in_use(
    placed: np.ndarray, counts: np.ndarray, classes: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How many bins [U], classes [K] and pairs of both [U, K] occur."""
    bins = np.array([len(np.unique(column)) for column in placed.T])
    present = np.array([len(np.unique(column)) for column in classes.T])
    pairs = np.empty((placed.shape[1], classes.shape[1]))
    for u, column in enumerate(placed.T):
        for k in range(classes.shape[1]):
            pairs[u, k] = np.count_nonzero(np.bincount(column * sizes[k] + classes[:, k]))
    return bins, present, pairs


def _x_log_x(counts: np.ndarray) -> np.ndarray:
    return counts * np.log(np.where(counts > 0, counts, 1.0))


def _corrected(
    placed: np.ndarray, counts: np.ndarray, seen: Observed, correction: str, floor: int, name: str
) -> Information:
    found = plug_in(placed, counts, seen.classes, seen.sizes)

    def shuffled(rng: np.random.Generator) -> np.ndarray:
        return plug_in(placed[rng.permutation(len(placed))], counts, seen.classes, seen.sizes).m

    if correction == "miller-madow":
        bins, present, pairs = cells_in_use(placed, counts, seen.classes, seen.sizes)
        excess = (pairs - bins[:, None] - present[None] + 1) / (2 * len(placed))
        found = replace(found, m=np.maximum(found.m - excess, 0.0))
        return _above_floor(found, found.m + excess, shuffled, floor, seen.seed, name)
    raw = found.m
    if correction == "permutation":
        rng = np.random.default_rng([seen.seed, 0xF100])
        bias = np.mean([shuffled(rng) for _ in range(SHUFFLES)], axis=0)
        found = replace(found, m=np.maximum(raw - bias, 0.0))
    return _above_floor(found, raw, shuffled, floor, seen.seed, name)


def _above_floor(
    found: Information,
    raw: np.ndarray,
    shuffled: Callable[[np.random.Generator], np.ndarray],
    floor: int,
    seed: int,
    name: str,
) -> Information:
    """Mark the codes whose information on some factor is four deviations above the mean of shuffles."""
    if not floor:
        return replace(found, name=name)
    rng = np.random.default_rng([seed, 0xF1002])
    noise = np.stack([shuffled(rng) for _ in range(max(2, floor))])
    mean = noise.mean(axis=0)
    # few shuffles say little about one pair's spread; the codes of a factor share it nearly
    spread = np.sqrt(noise.var(axis=0, ddof=1).mean(axis=0))
    kept = (raw - mean > DEVIATIONS * spread).any(axis=1)
    return replace(found, kept=kept, name=f"{name},floor-{floor}")


def _measure_knn(
    seen: Observed, neighbours: int, correction: str, floor: int
) -> tuple[Information, Callable[[], Information]]:
    name = f"knn-{neighbours}" + ("" if correction == "none" else f",{correction}")
    raw = knn_matrix(seen, neighbours)
    m = raw

    def shuffled(rng: np.random.Generator) -> np.ndarray:
        return knn_matrix(replace(seen, z=seen.z[rng.permutation(len(seen.z))]), neighbours)

    if correction == "permutation":
        rng = np.random.default_rng([seen.seed, 0xF100])
        m = np.maximum(raw - np.mean([shuffled(rng) for _ in range(SHUFFLES)], axis=0), 0.0)
    found = _above_floor(_of_matrix(m, seen, name), raw, shuffled, floor, seen.seed, name)
    parts = iter(halves(len(seen.z), max(1, seen.bootstrap), seen.seed))

    def again() -> Information:
        half = seen.rows(next(parts))
        m_half = np.maximum(knn_matrix(half, neighbours) + (m - raw), 0.0)
        return replace(_of_matrix(m_half, half, name), kept=found.kept)

    return found, again


def _of_matrix(m: np.ndarray, seen: Observed, name: str) -> Information:
    entropy = np.array([entropy_of(column) for column in seen.classes.T])
    nothing = np.full(m.shape, np.nan)
    kept = np.ones(len(m), dtype=bool)
    return Information(m, entropy, nothing[:, 0], nothing, np.zeros(len(m), dtype=int), kept, name)


def entropy_of(classes: np.ndarray) -> float:
    """H of class numbers [N], in nats, plug-in."""
    counts = np.bincount(classes)
    share = counts[counts > 0] / len(classes)
    return float(-(share * np.log(share)).sum())


def knn_matrix(seen: Observed, neighbours: int) -> np.ndarray:
    """[U, K] information of standardised blocks with the classes of the factors."""
    spread = seen.z.std(axis=0)
    scaled = seen.z / np.where(spread > 0, spread, 1.0)
    # equal codes would be at distance 0 of each other: too little noise to matter tells them apart, as in scikit-learn
    rng = np.random.default_rng([seen.seed, 0x71E5])
    scaled += TIES * np.maximum(1, np.abs(scaled).mean(axis=0)) * rng.standard_normal(scaled.shape)
    out = np.zeros((len(seen.blocks), len(seen.sizes)))
    for u, block in enumerate(seen.blocks):
        if not (spread[block] > 0).any():
            continue
        for k in np.flatnonzero(seen.varying):
            if seen.continuous[k]:
                out[u, k] = knn_regression(scaled[:, block], seen.values[:, k], neighbours)
            else:
                out[u, k] = knn_information(scaled[:, block], seen.classes[:, k], neighbours)
    return out


def evaluate(
    z: Any, factors: Any, given: InformationArguments, formula: Formula, name: str, bounds: Bounds = (0.0, 1.0)
) -> tuple[Score, Information, Observed]:
    """A score that is a formula of the information, with its interval."""
    options, shared = split(given)
    seen = observe(z, factors, shared)
    found, again = measure(seen, options)  # type: ignore[arg-type]
    return score_of(found, again, seen, formula, name, bounds), found, seen


def score_of(
    found: Information,
    again: Callable[[], Information],
    seen: Observed,
    formula: Formula,
    name: str,
    bounds: Bounds = (0.0, 1.0),
) -> Score:
    """A score from information that is there already."""
    value = formula(found, seen)
    answer = seen.answer(value, f"{name}[{found.name}]", found.m, kept=found.kept, entropy=found.factor_entropy)
    if seen.bootstrap:
        draws = np.array([formula(again(), seen) for _ in range(seen.bootstrap)])
        answer["interval"] = around(value, draws, bounds)
    return answer


def mutual_information(z: Any, factors: Any, **given: Unpack[InformationArguments]) -> Score:
    """The table of mutual information itself; the score is its greatest entry.

    Args:
        z: [N, J] codes.
        factors: [N, K].
        given: `InformationOptions` and `Shared`.

    Returns:
        ``matrix`` [codes, factors] in nats, ``entropy`` [K] of the factors, ``kept`` codes above the floor.

    Raises:
        UnbraidError: an argument has another form.
    """
    return evaluate(z, factors, given, lambda i, s: float(i.m.max()), "mi", (0.0, np.inf))[0]
