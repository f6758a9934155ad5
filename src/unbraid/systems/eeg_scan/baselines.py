"""What one would do instead, and nulls: the late positive potential, logistic regression, surrogate noise."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.systems.eeg_scan.epochs import mean_by

Classifier = Literal["logistic", "svm", "knn"]
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


class Told(NamedTuple):
    """What a classifier said of held-out trials or subjects: true values, answers, and whose they are, [n] each."""

    true: np.ndarray
    told: np.ndarray
    who: np.ndarray


def accuracy(
    features: np.ndarray, labels: np.ndarray, subjects: np.ndarray, train: np.ndarray, by_subject: bool = False,
    classifier: Classifier = "logistic",
) -> float:  # fmt: skip
    """Balanced accuracy of a classifier on subjects it has not seen; arguments as for `classify`."""
    return balanced(*classify(features, labels, subjects, train, by_subject, classifier)[:2])


def classify(
    features: np.ndarray, labels: np.ndarray, subjects: np.ndarray, train: np.ndarray, by_subject: bool = False,
    classifier: Classifier = "logistic",
) -> Told:  # fmt: skip
    """What a classifier says of subjects it has not seen.

    Args:
        features: [n, F], or [n].
        labels: [n], -1 where unknown (those are left out).
        subjects: [n].
        train: [n] whether a trial is for training; no subject may be on both sides.
        by_subject: features are averaged over each subject's trials first.
        classifier: "logistic", "svm" (radial kernel) or "knn" (15 neighbours), each with rare classes weighed up
            where it knows how.

    Raises:
        UnbraidError: lengths differ, a subject is on both sides or changes its label, or a side has one class only.
    """
    features, labels, subjects, train = (np.asarray(v) for v in (features, labels, subjects, train))
    if train.dtype != bool or not len(features) == len(labels) == len(subjects) == len(train):
        raise UnbraidError(
            f"features, labels, subjects and train (bool) must be alike in length, not {len(features)}, {len(labels)}, "
            f"{len(subjects)} and {len(train)} ({train.dtype})."
        )
    if not np.isfinite(features).all():
        raise UnbraidError("features hold NaN or infinity; leave those trials out.")
    if set(subjects[train]) & set(subjects[~train]):
        raise UnbraidError("a subject has trials in training and in test, which inflates every accuracy; split them.")
    known = labels >= 0
    z = features.reshape(len(features), -1)[known]
    y, who, inside = labels[known], subjects[known], train[known]
    if by_subject:
        names, z = mean_by(z, who)
        _, first, at = np.unique(who, return_index=True, return_inverse=True)
        if (y != y[first][at]).any():
            raise UnbraidError("by_subject=True needs one label per subject; here it changes between trials.")
        who, y, inside = names, y[first], inside[first]
    if min(len(np.unique(y[inside])), len(np.unique(y[~inside]))) < 2:
        raise UnbraidError("one side of the split has a single class only; take more subjects or another split.")
    model = _classifier(classifier, int(inside.sum()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # logistic regression may stop before its tolerance
        model.fit(z[inside], y[inside])
    return Told(y[~inside], model.predict(z[~inside]), who[~inside])


def _classifier(name: str, n: int) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    if name == "logistic":
        model: Any = LogisticRegression(C=0.1, class_weight="balanced", max_iter=200)
    elif name == "svm":
        model = SVC(class_weight="balanced")
    elif name == "knn":
        model = KNeighborsClassifier(min(15, n))
    else:
        raise UnbraidError(f"classifier is {name!r}; it must be 'logistic', 'svm' or 'knn'.")
    return make_pipeline(StandardScaler(), model)


def folds(
    features: Callable[[np.ndarray], np.ndarray], labels: np.ndarray, subjects: np.ndarray, count: int = 5,
    by_subject: bool = True, classifier: Classifier = "logistic", seed: int = 0,
) -> Told:  # fmt: skip
    """What classifiers say of every subject, each by one that has not seen it: folds are made of participants.

    Args:
        features: of all trials [n, F], by a code that is learned from the trials where the mask [n] it gets is True;
            one that ignores the mask has seen all subjects.
        labels: [n], -1 where unknown.
        subjects: [n].
        count: of folds, at least 2.
        by_subject: a subject's average is classified, not its trials.
        classifier: as for `classify`.
        seed: of the folds.

    Raises:
        UnbraidError: more folds than subjects, or what `classify` refuses.
    """
    names = np.unique(subjects)
    if not 2 <= count <= len(names):
        raise UnbraidError(f"{count} folds of {len(names)} subjects; give 2 to {len(names)}.")
    parts = np.array_split(np.random.default_rng(seed).permutation(names), count)
    said = []
    for part in parts:
        train = ~np.isin(subjects, part)
        said.append(classify(features(train), labels, subjects, train, by_subject, classifier))
    return Told(*(np.concatenate(columns) for columns in zip(*said, strict=True)))


def interval(said: Told, draws: int = 500, seed: int = 0) -> tuple[float, float]:
    """95 % of the balanced accuracy when subjects are drawn again: trials of one subject are not independent.

    Raises:
        UnbraidError: fewer than two subjects or draws.
    """
    names, at = np.unique(said.who, return_inverse=True)
    if len(names) < 2 or draws < 2:
        raise UnbraidError(f"a bootstrap over {len(names)} subjects with {draws} draws says nothing; give 2 or more.")
    values = np.unique(said.true)
    right, every = np.zeros((2, len(names), len(values)))
    column = np.searchsorted(values, said.true)
    np.add.at(every, (at, column), 1)
    np.add.at(right, (at, column), said.true == said.told)
    weights = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), draws)
    with np.errstate(invalid="ignore"):
        shares = (weights @ right) / (weights @ every)
    low, high = np.nanpercentile(np.nanmean(shares, 1), [2.5, 97.5])
    return float(low), float(high)


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
