"""Unsupervised scores from a covariance or a table of codes."""

from __future__ import annotations

import numpy as np

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
    """[J, J] mutual information in nats between codes cut into equal-width bins; the diagonal holds entropies."""
    z = np.asarray(codes, np.float64)
    low, high = z.min(0), z.max(0)
    width = np.where(high > low, high - low, 1)
    cut = np.minimum(((z - low) / width * bins).astype(int), bins - 1)
    hot = np.zeros((len(z), z.shape[1] * bins), np.float32)
    hot[np.arange(len(z))[:, None], cut + bins * np.arange(z.shape[1])] = 1
    joint = (hot.T @ hot).astype(np.float64).reshape(z.shape[1], bins, z.shape[1], bins) / len(z)
    single = hot.mean(0, dtype=np.float64).reshape(z.shape[1], bins)
    expected = single[:, :, None, None] * single[None, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(joint > 0, joint * np.log(joint / expected), 0)
    return terms.sum((1, 3))
