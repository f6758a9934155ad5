"""How much two circuits share, and how much they would by chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores, HeadSet
from unbraid.systems.circuit_reuse.circuit import Circuit


@dataclass(frozen=True)
class Overlap:
    """Heads that two sets share.

    Attributes:
        first, second: sizes of the sets.
        shared: heads in both.
        union: heads in either.
        jaccard: shared / union.
        expected: Jaccard index of two random sets of these sizes, on average.
        p: probability that random sets of these sizes share as many or more (hypergeometric).
        expected_by_layer, p_by_layer: the same for random sets with as many heads in each layer as these, which takes
            away that circuits sit in the same layers.
    """

    first: int
    second: int
    shared: int
    union: int
    jaccard: float
    expected: float
    p: float
    expected_by_layer: float
    p_by_layer: float

    def row(self) -> dict[str, Any]:
        """As a row of a table."""
        return asdict(self)


def overlap(first: HeadSet, second: HeadSet, shape: dict[str, int]) -> Overlap:
    """Overlap of two sets of heads against both nulls.

    Args:
        first: heads.
        second: heads.
        shape: site -> number of heads, of the whole model.

    Raises:
        UnbraidError: a head is not in the model.
    """
    for site, head in first | second:
        if head >= shape.get(site, 0):
            raise UnbraidError(f"overlap: head {head} of {site!r} is not in the given shape.")
    total, shared = sum(shape.values()), len(first & second)
    whole = stats.hypergeom(total, len(first), len(second)).pmf(np.arange(total + 1))
    layered = np.ones(1)
    ours, theirs = first.by_site(), second.by_site()
    for site, heads in shape.items():
        a, b = len(ours.get(site, [])), len(theirs.get(site, []))
        if a and b:
            layered = np.convolve(layered, stats.hypergeom(heads, a, b).pmf(np.arange(min(a, b) + 1)))
    sizes = len(first), len(second)
    return Overlap(
        *sizes, shared, len(first | second), first.overlap(second),
        _mean_jaccard(whole, *sizes), float(whole[shared:].sum()),
        _mean_jaccard(layered, *sizes), float(layered[shared:].sum()),
    )  # fmt: skip


def _mean_jaccard(pmf: np.ndarray, first: int, second: int) -> float:
    k = np.arange(len(pmf))
    union = np.maximum(first + second - k, 1)
    return float((pmf * k / union).sum())


def shape_of(circuit: Circuit) -> dict[str, int]:
    """Heads per site of the model a circuit was found in."""
    e = circuit.found[0].effects
    return dict(zip(e.sites, e.heads, strict=True))


def overlap_curve(
    first: Circuit, second: Circuit, fractions: Sequence[float] = (0.01, 0.02, 0.05, 0.1)
) -> list[dict[str, Any]]:
    """Overlap at several thresholds, of whole circuits and stage by stage.

    Args:
        first: a circuit.
        second: another one, of the same model.
        fractions: share of heads that each stage keeps.
    """
    shape, rows = shape_of(first), []
    for fraction in fractions:
        rows.append({"kept": fraction, "stage": "all", **overlap(first.at(fraction), second.at(fraction), shape).row()})
        for a, b in zip(first.found, second.found, strict=False):
            found = overlap(a.top(fraction, first.floor), b.top(fraction, second.floor), shape)
            rows.append({"kept": fraction, "stage": a.stage.name, **found.row()})
    return rows


def rank_correlation(first: Circuit, second: Circuit) -> list[dict[str, Any]]:
    """Spearman's rho of absolute importance over all heads that both stages could find, stage by stage."""
    rows = []
    for a, b in zip(first.found, second.found, strict=False):
        x, y = (np.abs(_flat(f.scores)) for f in (a, b))
        both = np.isfinite(x) & np.isfinite(y)
        rho, p = stats.spearmanr(x[both], y[both]) if both.sum() > 2 else (float("nan"), float("nan"))
        rows.append({"stage": a.stage.name, "heads": int(both.sum()), "spearman": float(rho), "p": float(p)})
    return rows


def _flat(scores: HeadScores) -> np.ndarray:
    return np.concatenate(list(scores.scores.values()))


def bootstrap_overlap(first: Circuit, second: Circuit, draws: int = 500, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the Jaccard index over resamples of prompts; receivers of later stages stay as found.

    Args:
        first: a circuit.
        second: another one.
        draws: resamples.
        seed: of the resamples.
    """
    rng = np.random.default_rng(seed)
    values = [
        first.at(prompts=rng.integers(0, first.size, first.size)).overlap(
            second.at(prompts=rng.integers(0, second.size, second.size))
        )
        for _ in range(draws)
    ]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
