"""Unsupervised scores from a covariance, which is all that one pass over the data leaves.

`unbraid.metrics.disentanglement` has the same scores for tables of codes; tests compare the two.
"""

from __future__ import annotations

import numpy as np

from unbraid.metrics.disentanglement import mi_score
from unbraid.systems.active_variables.statistics import correlation


def total_correlation(cov: np.ndarray, *, standardise: bool = True) -> float:
    """Gaussian total correlation in nats; infinite for a singular covariance.

    Args:
        cov: [J, J].
        standardise: from the correlation matrix, which is the same number in theory and keeps its digits where codes
            have very different scales; False: from the covariance, as the paper does too.
    """
    scale = cov.diagonal()
    if (scale <= 0).any():
        return float("inf")
    table = correlation(cov) if standardise else cov
    sign, log_det = np.linalg.slogdet(table)
    if sign <= 0:
        return float("inf")
    return float(0.5 * (np.log(table.diagonal()).sum() - log_det))


def wasserstein(cov: np.ndarray, *, normalise: bool = False) -> float:
    """Gaussian Wasserstein correlation 2 tr S - 2 tr (D^1/2 S D^1/2)^1/2, D = diag S; divided by tr S if asked."""
    root = np.sqrt(np.maximum(cov.diagonal(), 0))
    values = np.linalg.eigvalsh(cov * np.outer(root, root))
    total = float(cov.trace())
    distance = max(0.0, 2 * total - 2 * float(np.sqrt(np.maximum(values, 0)).sum()))
    return distance / total if normalise and total > 0 else distance


def effective_rank(cov: np.ndarray) -> float:
    """exp of the entropy of the singular values, normalised to sum 1; zeros dropped."""
    values = np.linalg.svd(cov, compute_uv=False)
    values = values[values > 0]
    if not len(values):
        return 0.0
    p = values / values.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def mutual_information(codes: np.ndarray, bins: int = 20) -> np.ndarray:
    """[J, J] mutual information in nats between codes cut into equal-width bins; 0 with a constant code."""
    z = np.asarray(codes, np.float64)
    found = np.zeros((z.shape[1], z.shape[1]))
    varied = z.max(0) > z.min(0)
    if varied.any():
        found[np.ix_(varied, varied)] = mi_score(z[:, varied], bins=bins)["matrix"]
    return found
