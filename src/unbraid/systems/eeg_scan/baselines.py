"""What one would do instead, and nulls: the late positive potential, logistic regression, surrogate noise."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.systems.eeg_scan.epochs import mean_by

WINDOW = (0.4, 0.8)  # seconds after the stimulus
PARIETAL = ("Pz", "P3", "P4", "CPz", "CP1", "CP2", "P1", "P2")


def lpp_score(
    x: np.ndarray,
    times: np.ndarray,
    channels: Sequence[str],
    window: tuple[float, float] = WINDOW,
    sites: Sequence[str] = PARIETAL,
) -> np.ndarray:
    """[n] the canonical score: mean amplitude at parietal sites in a late window.

    Args:
        x: [n, channels, samples] epochs.
        times: [samples] seconds.
        channels: [channels] names.
        window: seconds, both ends included.
        sites: names of which those that exist are averaged.

    Raises:
        UnbraidError: none of the sites is there, or no sample lies in the window.
    """
    at = [i for i, name in enumerate(channels) if name in sites]
    late = np.flatnonzero((np.asarray(times) >= window[0]) & (np.asarray(times) <= window[1]))
    if not at or not len(late):
        raise UnbraidError(
            f"none of {', '.join(sites)} is among the channels {', '.join(channels)}, or no sample lies between "
            f"{window[0]} and {window[1]} s."
        )
    return x[:, at][:, :, late].mean((1, 2))


def accuracy(
    features: np.ndarray, labels: np.ndarray, subjects: np.ndarray, train: np.ndarray, by_subject: bool = False
) -> float:
    """Balanced accuracy of logistic regression on subjects it has not seen.

    Args:
        features: [n, F], or [n].
        labels: [n], -1 where unknown (those are left out).
        subjects: [n].
        train: [n] whether a trial is for training; no subject may be on both sides.
        by_subject: features are averaged over each subject's trials first.

    Raises:
        UnbraidError: a subject on both sides, or one class only.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if set(subjects[train]) & set(subjects[~train]):
        raise UnbraidError("a subject has trials in training and in test, which inflates every accuracy; split them.")
    known = labels >= 0
    z = features.reshape(len(features), -1)[known]
    y, who, inside = labels[known], subjects[known], train[known]
    if by_subject:
        names, z = mean_by(z, who)
        first = np.searchsorted(np.sort(who, kind="stable"), names)
        order = np.argsort(who, kind="stable")[first]
        y, inside = y[order], inside[order]
    if min(len(np.unique(y[inside])), len(np.unique(y[~inside]))) < 2:
        raise UnbraidError("one side of the split has a single class only; take more subjects or another split.")
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=200))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(z[inside], y[inside])
    return balanced(y[~inside], model.predict(z[~inside]))


def balanced(true: np.ndarray, told: np.ndarray) -> float:
    """Balanced accuracy: the share that is right, averaged over the values that occur."""
    return float(np.mean([(told[true == value] == value).mean() for value in np.unique(true)]))


def correlations(made: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """[n] correlation of each epoch with the potential beneath, over channels and samples together."""
    a, b = (v.reshape(len(v), -1) - v.reshape(len(v), -1).mean(1, keepdims=True) for v in (made, clean))
    below = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.divide((a * b).sum(1), below, out=np.zeros(len(a)), where=below > 0)


def surrogates(x: np.ndarray, subjects: np.ndarray, seed: int = 0) -> np.ndarray:
    """Epochs of noise only: trials less their subject's mean, with random phases common to all channels.

    Spectrum and covariance of channels stay; anything locked to the stimulus is gone.

    Args:
        x: [n, channels, samples].
        subjects: [n].
        seed: of the phases.
    """
    names, means = mean_by(x, subjects)
    rest = x - means[np.searchsorted(names, subjects)]
    spectrum = np.fft.rfft(rest)
    turn = np.random.default_rng(seed).uniform(0, 2 * np.pi, (len(x), 1, spectrum.shape[2]))
    turn[..., 0] = 0
    if x.shape[2] % 2 == 0:
        turn[..., -1] = 0  # both must stay real
    return np.fft.irfft(spectrum * np.exp(1j * turn), x.shape[2])


def shuffled(labels: np.ndarray, subjects: np.ndarray, seed: int = 0) -> np.ndarray:
    """Labels [n, K] dealt anew among subjects, each keeping one label for all its trials."""
    names, first, at = np.unique(subjects, return_index=True, return_inverse=True)
    rng = np.random.default_rng(seed)
    return np.stack([labels[first, k][rng.permutation(len(names))][at] for k in range(labels.shape[1])], 1)
