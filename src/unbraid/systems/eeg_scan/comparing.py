"""What others do with the same simulated study: scores, classifiers, denoisers, and the agreement of several fits."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.data.erp import ErpStudy, simulate
from unbraid.systems.eeg_scan.baselines import Classifier, balanced, classify, correlations, interval, lpp_score
from unbraid.systems.eeg_scan.controls import autoencoder, pca, xdawn
from unbraid.systems.eeg_scan.ranking import rank_models
from unbraid.systems.eeg_scan.study import TRAINING
from unbraid.systems.eeg_scan.system import STEPS, EEGScan

RANKED_STEPS = {"tiny": 20, "small": 1_000}  # of the fits that UDR compares; as long as the others where not said here


class Data(NamedTuple):
    """A study, which trials are for training [n], the true traits per trial [n, 3], and labels for training."""

    study: ErpStudy
    train: np.ndarray
    truth: np.ndarray
    seed: int


def prepared(seed: int, world: dict[str, Any]) -> Data:
    """A simulated study and its split by subject."""
    study = simulate(**world, seed=seed)
    train = np.zeros(len(study), bool)
    truth = study.truth[study.subjects]
    for attempt in range(100):  # of few subjects, one side may have all of a kind
        train[:] = False
        train[study.split_subjects(TRAINING, seed + 1_000 * attempt)[0]] = True
        sides = (truth[~train], np.where(study.factors >= 0, study.factors, 2)[train])
        if all({0, 1} <= set(side[:, k]) for side in sides for k in range(truth.shape[1])):
            break
    else:
        raise UnbraidError(f"{len(study.truth)} subjects are too few for both kinds on either side; take more.")
    return Data(study, train, truth, seed)


def scored(d: Data, name: str, features: np.ndarray, classifier: Classifier = "logistic") -> list[dict[str, Any]]:
    """Accuracy of a classifier on features, per factor, for a subject's average and for one trial.

    It learns from the labels that the study has and is tested on the truth. Intervals are over held-out subjects.
    Single trials only go to logistic regression, as the others take minutes.
    """
    rows = []
    for k, factor in enumerate(d.study.names):
        y = np.where(d.train, d.study.factors[:, k], d.truth[:, k])
        whole = classify(features, y, d.study.subjects, d.train, True, classifier)
        low, high = interval(whole, seed=d.seed)
        row: dict[str, Any] = {"seed": d.seed, "features": name, "factor": factor}
        row |= {"average": balanced(*whole[:2]), "low": low, "high": high, "trial": None}
        if classifier == "logistic":
            row["trial"] = balanced(*classify(features, y, d.study.subjects, d.train)[:2])
        rows.append(row)
    return rows


def others(d: Data, size: str, latents: int) -> dict[str, list[dict[str, Any]]]:
    """Accuracies of everything but the VAE, and correlations of other denoisers with the potential beneath."""
    s = d.study
    score = lpp_score(s.x, s.times, s.channels)
    linear = pca(s.x, d.train, latents)
    plain = autoencoder(s.x, d.train, latents, STEPS[size][0], seed=d.seed)
    rows = scored(d, "LPP score", score) + scored(d, "PCA codes", linear.codes)
    rows += scored(d, "auto-encoder codes", plain.codes)
    for kind, name in (("logistic", "raw signal"), ("svm", "raw signal, SVM"), ("knn", "raw signal, kNN")):
        rows += scored(d, name, s.x, kind)  # type: ignore[arg-type]
    held = ~d.train
    made = {"nothing": s.x[held], "PCA": linear.made[held], "auto-encoder": plain.made[held]}
    if find_spec("mne"):  # the page says where it is not
        made["Xdawn (supervised)"] = xdawn(s.x, np.maximum(s.factors[:, 0], 0), d.train, s.rate, 1)
    return {"accuracies": rows, "denoisers": [denoised(d, name, one) for name, one in made.items()]}


def denoised(d: Data, name: str, made: np.ndarray) -> dict[str, Any]:
    """How near denoised held-out trials are to the potential beneath, as they are and less the grand average."""
    clean, grand = d.study.clean[~d.train], d.study.x[d.train].mean(0)
    return {
        "seed": d.seed, "denoiser": name, "correlation": float(correlations(made, clean).mean()),
        "own part": float(correlations(made - grand, clean - grand).mean()),
    }  # fmt: skip


def ranked(d: Data, settings: dict[str, dict[str, Any]], runs: int, size: str, latents: int) -> list[dict[str, Any]]:
    """UDR of several fits of each setting on one study: a row per setting."""
    x, who = d.study.x[d.train], d.study.subjects[d.train]
    rows = []
    for name, given in settings.items():
        fits = [
            EEGScan(**given, size=size, latents=latents, steps=RANKED_STEPS.get(size), seed=d.seed + i)  # type: ignore[arg-type]
            .fit(x, subjects=who, progress=False)
            for i in range(runs)
        ]  # fmt: skip
        said = rank_models(fits, d.study.x[~d.train])
        truest = [_follows(m, d.study, d.train) for m in fits]
        rows.append({
            "model": name, "runs": runs, "UDR, median": float(np.median(said.scores)), "UDR, best": float(said.score),
            "active latents": float(said.active.sum(1).mean()),
            "|r| of the truest latent, best by UDR": truest[int(said.best)],
            "|r| of the truest latent, mean of runs": float(np.mean(truest)),
        })  # fmt: skip
    return rows


def _follows(model: EEGScan, study: ErpStudy, train: np.ndarray) -> float:
    """Mean over traits of the largest |r| of a latent with the true amount, over held-out subjects."""
    z = model.transform(study.x[~train], study.subjects[~train])
    return float(np.abs(follows(z, study.amounts[np.unique(study.subjects[~train])])).max(0).mean())


def follows(z: np.ndarray, amounts: np.ndarray) -> np.ndarray:
    """[J, K] correlation of each latent with each true amount; 0 where a latent is constant."""
    live = z.std(0) > 1e-6
    r = np.zeros((z.shape[1], amounts.shape[1]))
    r[live] = np.corrcoef(z[:, live].T, amounts.T)[: live.sum(), live.sum() :]
    return r
