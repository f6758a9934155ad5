"""Correlation scores of mean and sampled codes, on all latents and on index sets of active, mixed and passive ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.systems.active_variables.gauss import effective_rank, mutual_information, total_correlation, wasserstein
from unbraid.systems.active_variables.labels import KINDS
from unbraid.systems.active_variables.statistics import Moments, correlation

REPRESENTATIONS = ("mean", "sampled")


def index_sets(labels: Sequence[str], least: int = 2) -> dict[str, list[int]]:
    """Full, active, mixed, passive and the unions of two; a union with an empty member is left out.

    Args:
        labels: [J].
        least: sets with fewer latents are left out.

    Raises:
        UnbraidError: a label is none of the three.
    """
    if set(labels) - set(KINDS):
        raise UnbraidError(f"labels are {', '.join(KINDS)}, not {sorted(set(labels) - set(KINDS))[0]!r}.")
    parts = {kind: [j for j, label in enumerate(labels) if label == kind] for kind in KINDS}
    sets = {"full": list(range(len(labels))), **parts}
    for a, b in combinations(KINDS, 2):
        if parts[a] and parts[b]:
            sets[f"{a}+{b}"] = sorted(parts[a] + parts[b])
    return {name: members for name, members in sets.items() if len(members) >= least}


def informative(labels: Sequence[str]) -> list[int]:
    """The latents that are active or mixed."""
    return [j for j, label in enumerate(labels) if label != "passive"]


def scores(
    moments: Moments, labels: Sequence[str], codes: dict[str, np.ndarray], bins: int = 20
) -> list[dict[str, Any]]:
    """One row per index set and representation.

    Covariances of samples are the closed form, so the scores from them carry no sampling noise. The mutual information
    comes from a histogram of the codes given (one draw for "sampled"); independent codes get about (bins - 1)^2 / 2N.

    Args:
        moments: of the posteriors.
        labels: [J].
        codes: representation -> [N, J] codes, for the mutual information; may be empty.
        bins: of the histogram.
    """
    covs = {"mean": moments.mu_cov, "sampled": moments.sampled_cov}
    information = {name: mutual_information(z, bins) for name, z in codes.items()}
    rows = []
    for name, members in index_sets(labels).items():
        pick = np.ix_(members, members)
        for kind in REPRESENTATIONS:
            cov = covs[kind][pick]
            row: dict[str, Any] = {"set": name, "codes": kind, "latents": len(members)}
            row |= covariance_scores(cov)
            if kind in information:
                row["mean mutual information"] = off_diagonal_mean(information[kind][pick])
            rows.append(row)
    return rows


def covariance_scores(cov: np.ndarray) -> dict[str, float]:
    """All scores that a covariance gives."""
    return {
        "total correlation": total_correlation(cov),
        "total correlation (covariance)": total_correlation(cov, standardise=False),
        "Wasserstein correlation": wasserstein(cov),
        "normalised Wasserstein": wasserstein(cov, normalise=True),
        "effective rank": effective_rank(cov),
        "largest |correlation|": largest(cov),
    }


def largest(cov: np.ndarray) -> float:
    """The largest absolute correlation between two codes; constant codes count as uncorrelated."""
    corr = np.abs(np.nan_to_num(correlation(cov)))
    np.fill_diagonal(corr, 0)
    return float(corr.max(initial=0))


def largest_with(cov: np.ndarray, members: Iterable[int]) -> float | None:
    """The largest absolute correlation between one of these latents and any other; None where there is none."""
    rows = list(members)
    corr = np.abs(np.nan_to_num(correlation(cov)))
    np.fill_diagonal(corr, 0)
    return float(corr[rows].max()) if rows and len(cov) > 1 else None


def off_diagonal_mean(table: np.ndarray) -> float:
    """Mean of a square table without its diagonal."""
    return float(table[~np.eye(len(table), dtype=bool)].mean())
