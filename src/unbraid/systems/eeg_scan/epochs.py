"""What comes in: epochs, their labels and subjects, checked; and noise made white."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.data.erp import ErpStudy
from unbraid.data.factors import FactorData

SHRINKAGE = 0.01  # of the noise covariance towards a sphere: directions without noise would otherwise explode


def as_epochs(x: Any, shape: Sequence[int] | None = None) -> np.ndarray:
    """[n, channels, samples] of a study, `FactorData` or an array.

    Raises:
        UnbraidError: another shape, values that are not finite, or no variation at all.
    """
    try:
        epochs = np.asarray(x.x if isinstance(x, FactorData) else x, dtype=np.float64)
    except (TypeError, ValueError):
        raise UnbraidError(f"epochs must be numbers [n, channels, samples], not a {type(x).__name__}.") from None
    if epochs.ndim != 3 or not epochs.size:
        raise UnbraidError(f"epochs must be [n, channels, samples], not of shape {epochs.shape}.")
    if shape is not None and tuple(epochs.shape[1:]) != tuple(shape):
        raise UnbraidError(f"this model was fitted on epochs of {tuple(shape)}, not of {tuple(epochs.shape[1:])}.")
    if not np.isfinite(epochs).all():
        raise UnbraidError(f"{int((~np.isfinite(epochs)).any((1, 2)).sum())} epochs hold NaN or infinity: drop them.")
    if shape is None and (len(epochs) < 2 or np.ptp(epochs, axis=0).max() == 0):
        raise UnbraidError("all epochs are the same; give at least two that differ.")
    return epochs


def as_subjects(x: Any, subjects: Any, n: int) -> np.ndarray:
    """[n] whose trial each epoch is; without any, each is its own subject.

    Raises:
        UnbraidError: another length.
    """
    given = x.subjects if subjects is None and isinstance(x, ErpStudy) else subjects
    who = np.arange(n) if given is None else np.asarray(given)
    if who.shape != (n,):
        raise UnbraidError(f"subjects must be {n} names, one per epoch, not of shape {who.shape}.")
    return who


def as_labels(
    x: Any, labels: Any, names: Sequence[str] | None, n: int
) -> tuple[np.ndarray, list[str], list[int]] | None:  # fmt: skip
    """Labels [n, K], names and sizes of the factors; None where there are none.

    Raises:
        UnbraidError: no whole numbers, another length, a factor with fewer than two known values.
    """
    if labels is None and isinstance(x, FactorData):
        labels, names = x.factors, list(x.names) if names is None else names
    if labels is None:
        return None
    y = np.asarray(labels)
    y = y[:, None] if y.ndim == 1 else y
    if y.ndim != 2 or len(y) != n or not y.shape[1] or y.dtype.kind not in "biu" or (y < -1).any():
        raise UnbraidError(
            f"labels must be whole numbers from 0 (-1: unknown), [{n}] or [{n}, factors], not {y.dtype} {y.shape}."
        )
    y = y.astype(np.int64)
    listed = [f"f{k}" for k in range(y.shape[1])] if names is None else [str(name) for name in names]
    if len(listed) != y.shape[1] or len(set(listed)) < len(listed):
        raise UnbraidError(f"names must be {y.shape[1]} different names, not {listed}.")
    for k, name in enumerate(listed):
        found = np.unique(y[y[:, k] >= 0, k])
        if len(found) < 2:
            raise UnbraidError(f"{name} has {len(found)} known values; a label needs at least two.")
    return y, listed, [int(v) + 1 for v in y.max(0)]


def mean_by(values: np.ndarray, who: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Subjects in rising order, and the mean of the values [n, ...] of each."""
    names, at = np.unique(who, return_inverse=True)
    total = np.zeros((len(names), *values.shape[1:]))
    np.add.at(total, at, values)
    return names, total / np.bincount(at).reshape(-1, *([1] * (values.ndim - 1)))


def sub_averages(epochs: np.ndarray, who: np.ndarray, size: int, seed: int = 0) -> np.ndarray:
    """[n', channels, samples] means of ``size`` trials of one subject each (0: all of them), at random, none twice.

    Noise falls with the root of the size, and with it what the code spends on noise. Trials that are left over join the
    last average of their subject.

    Raises:
        UnbraidError: a size below 0, or only one average would be left.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise UnbraidError(f"averaged is {size!r}; it must be 0 (all trials of a subject), 1 (single trials) or more.")
    if size == 1:
        return epochs
    names, at = np.unique(who, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(epochs))
    order = order[np.argsort(at[order], kind="stable")]
    out = []
    for rows in np.split(order, np.cumsum(np.bincount(at))[:-1]):
        parts = max(1, len(rows) // size) if size else 1
        cuts = np.arange(1, parts) * size
        out += [epochs[part].mean(0) for part in np.split(rows, cuts)]
    if len(out) < 2:
        raise UnbraidError(f"averaged={size} leaves a single epoch of {len(names)} subjects; take fewer trials each.")
    return np.stack(out)


def whitening(flat: np.ndarray, who: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """C^(-1/2) and C^(1/2) [D, D] for the covariance C of trials around their subject's mean.

    Raises:
        UnbraidError: fewer than two trials of every subject, so that there is no noise to be seen.
    """
    names, means = mean_by(flat, who)
    if len(flat) - len(names) < 2:
        raise UnbraidError("whiten=True needs subjects with several trials each, as the noise is what differs.")
    rest = flat - means[np.searchsorted(names, who)]
    cov = rest.T @ rest / (len(flat) - len(names))
    cov = (1 - SHRINKAGE) * cov + SHRINKAGE * np.trace(cov) / len(cov) * np.eye(len(cov))
    values, vectors = np.linalg.eigh(cov)
    if values[0] <= 0:
        raise UnbraidError("trials of a subject do not differ, so there is no noise to be made white.")
    return (vectors / np.sqrt(values)) @ vectors.T, (vectors * np.sqrt(values)) @ vectors.T
