"""Mutual information by nearest neighbours, without bins (Ross 2014; Kraskov, Stoegbauer and Grassberger 2004)."""

from __future__ import annotations

import numpy as np


def knn_information(codes: np.ndarray, classes: np.ndarray, neighbours: int) -> float:
    """I(code; class) in nats by Ross' estimator, as scikit-learn's ``mutual_info_classif`` computes it.

    Args:
        codes: [N] or [N, d]; a block of several codes is taken jointly, with the greatest coordinate distance.
        classes: [N] class numbers.
        neighbours: k.

    Returns:
        Clipped at 0. Classes with a single observation are left out; 0 when nothing is left.
    """
    from scipy.special import digamma

    points = codes[:, None] if codes.ndim == 1 else codes
    counts = np.bincount(classes)
    kept = counts[classes] > 1
    points, labels = points[kept], classes[kept]
    if not len(points):
        return 0.0
    radius, used = np.empty(len(points)), np.empty(len(points))
    for label in np.flatnonzero(counts > 1):
        mine = np.flatnonzero(labels == label)
        used[mine] = min(neighbours, len(mine) - 1)
        radius[mine] = _kth_distance(points[mine], min(neighbours, len(mine) - 1))
    near = _closer_than(points, radius)
    total = digamma(len(points)) + digamma(used).mean() - digamma(counts[labels]).mean() - digamma(near).mean()
    return max(0.0, float(total))


def _kth_distance(points: np.ndarray, k: int) -> np.ndarray:
    """[n] distance of each point to its k-th neighbour."""
    if points.shape[1] > 1:
        from scipy.spatial import cKDTree

        found: np.ndarray = cKDTree(points).query(points, k=[k + 1], p=np.inf)[0][:, 0]
        return found
    order = np.argsort(points[:, 0], kind="stable")
    line = points[order, 0]
    n = len(line)
    best = np.full(n, np.inf)
    for before in range(k + 1):  # the k nearest of a point on a line lie in a window of k + 1 that holds it
        low, high = before, n - (k - before)
        window = np.maximum(line[low:high] - line[: high - low], line[k : k + high - low] - line[low:high])
        np.minimum(best[low:high], window, out=best[low:high])
    radius = np.empty(n)
    radius[order] = best
    return radius


def _closer_than(points: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """[n] how many points, itself included, lie strictly within each point's radius (itself alone when that is 0)."""
    if points.shape[1] > 1:
        from scipy.spatial import cKDTree

        reach = np.nextafter(radius, 0)
        found: np.ndarray = cKDTree(points).query_ball_point(points, reach, p=np.inf, return_length=True)
        return found
    line = np.sort(points[:, 0])
    at = points[:, 0]
    reach = np.nextafter(radius, 0)
    low = np.searchsorted(line, at - reach, side="left")
    high = np.searchsorted(line, at + reach, side="right")
    last = len(line) - 1
    # at - reach rounds; whether a neighbour at the rim counts is decided by its distance itself
    low -= (low > 0) & (at - line[np.maximum(low - 1, 0)] <= reach)
    low += at - line[np.minimum(low, last)] > reach
    high += (high <= last) & (line[np.minimum(high, last)] - at <= reach)
    high -= line[np.maximum(high - 1, 0)] - at > reach
    return np.maximum(high - low, 1)


def knn_regression(codes: np.ndarray, values: np.ndarray, neighbours: int) -> float:
    """I(code; value) of continuous values in nats, first estimator of Kraskov et al. 2004.

    Args:
        codes: [N] or [N, d], scaled.
        values: [N].
        neighbours: k.

    Returns:
        Clipped at 0.
    """
    from scipy.spatial import cKDTree
    from scipy.special import digamma

    points = codes[:, None] if codes.ndim == 1 else codes
    spread = values.std()
    target = (values / spread if spread > 0 else values)[:, None]
    k = min(neighbours, len(points) - 1)
    both = np.hstack([points, target])
    radius = cKDTree(both).query(both, k=[k + 1], p=np.inf)[0][:, 0]
    near_code, near_value = _closer_than(points, radius), _closer_than(target, radius)
    total = digamma(len(points)) + digamma(k) - digamma(near_code).mean() - digamma(near_value).mean()
    return max(0.0, float(total))
