"""What is measured on one simulated study and one model, on subjects that neither stage has seen."""

from __future__ import annotations

import time
from typing import Any, Literal, NamedTuple

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.data.erp import ErpStudy, simulate
from unbraid.systems.eeg_scan.baselines import accuracy, balanced, correlations, lpp_score, shuffled, surrogates
from unbraid.systems.eeg_scan.epochs import mean_by
from unbraid.systems.eeg_scan.study import TRAINING
from unbraid.systems.eeg_scan.system import EEGScan


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


def scored(d: Data, name: str, features: np.ndarray) -> list[dict[str, Any]]:
    """Accuracy of logistic regression on features, per factor, for one trial and for a subject's average.

    It learns from the labels that the study has and is tested on the truth.
    """
    rows = []
    for k, factor in enumerate(d.study.names):
        y = np.where(d.train, d.study.factors[:, k], d.truth[:, k])
        row: dict[str, Any] = {"seed": d.seed, "features": name, "factor": factor}
        for what, by in (("average", True), ("trial", False)):
            row[what] = accuracy(features, y, d.study.subjects, d.train, by)
        rows.append(row)
    return rows


def baselines(d: Data) -> list[dict[str, Any]]:
    """The canonical score and the raw signal."""
    score = lpp_score(d.study.x, d.study.times, d.study.channels)
    return scored(d, "LPP score", score) + scored(d, "raw signal", d.study.x)


def measure(name: str, settings: dict[str, Any], d: Data) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Train one model and measure everything on it."""
    s, inside = d.study, d.train
    x, labels, who = s.x[inside], s.factors[inside], s.subjects[inside]
    began = time.perf_counter()
    model = EEGScan(**settings).fit(x, subjects=who, progress=False)
    middle = time.perf_counter()
    model.remap(x, labels, who, s.names, progress=False)
    row: dict[str, Any] = {"model": name, "seed": d.seed}
    row |= {"VAE (s)": round(middle - began, 2), "SCAN (s)": round(time.perf_counter() - middle, 2)}
    row |= {"active latents": int((model.kl_ > 0.01).sum()), "KL (nats)": float(model.kl_.sum())}
    inputs = int(np.prod(s.x.shape[1:]))
    row["beta_norm"] = settings["beta"] * settings["latents"] / inputs
    row |= _denoising(model, d)
    row["accuracies"] = _accuracies(model, name, d)
    contrasts = {n: model.contrast(n, seed=d.seed) for n in s.names}
    row |= _naming(model, contrasts, d)
    shown = _pictures(model, contrasts, d)
    row |= _null(model, d) | _remapped(model, d)
    return row, shown


def _denoising(model: EEGScan, d: Data) -> dict[str, float]:
    x, clean, who = (v[~d.train] for v in (d.study.x, d.study.clean, d.study.subjects))
    grand = d.study.x[d.train].mean(0)
    made, noise = model.denoise(x), surrogates(x, who, d.seed)
    invented = model.denoise(noise)
    names = np.unique(who)
    other = dict(zip(names, np.roll(names, 1), strict=True))
    first = {a: int(np.argmax(who == a)) for a in names}
    foreign = clean[[first[other[w]] for w in who]]
    return {
        "trial": float(correlations(x, clean).mean()), "reconstruction": float(correlations(made, clean).mean()),
        "trial, own part": float(correlations(x - grand, clean - grand).mean()),
        "reconstruction, own part": float(correlations(made - grand, clean - grand).mean()),
        "another subject's, own part": float(correlations(made - grand, foreign - grand).mean()),
        "reconstruction of noise": float(correlations(invented, clean).mean()),
        "reconstruction of noise, own part": float(correlations(invented - grand, clean - grand).mean()),
        "average of trials": float(correlations(mean_by(x, who)[1], mean_by(clean, who)[1]).mean()),
        "average of reconstructions": float(correlations(mean_by(made, who)[1], mean_by(clean, who)[1]).mean()),
    }  # fmt: skip


def _accuracies(model: EEGScan, name: str, d: Data) -> list[dict[str, Any]]:
    ways: tuple[tuple[Literal["decoder", "match"], str], ...] = (("decoder", "SCAN"), ("match", "SCAN by match"))
    rows = scored(d, f"codes, {name}", model.transform(d.study.x))
    held = ~d.train
    x, who, truth = d.study.x[held], d.study.subjects[held], d.truth[held]
    people = d.study.truth[np.unique(who)]
    for k, factor in enumerate(d.study.names):
        for how, label in ways:
            one, whole = (model.predict_proba(x, factor, s, how).argmax(1) for s in (None, who))
            rows.append({
                "seed": d.seed, "features": f"{label}, {name}", "factor": factor,
                "average": float(balanced(people[:, k], whole)), "trial": float(balanced(truth[:, k], one)),
            })  # fmt: skip
    return rows


def _naming(model: EEGScan, contrasts: dict[str, Any], d: Data) -> dict[str, Any]:
    """Does the largest contrast name the latent that follows the true amount best, over held-out subjects?"""
    held = ~d.train
    names = np.unique(d.study.subjects[held])
    z = model.transform(d.study.x[held], d.study.subjects[held])
    amounts = d.study.amounts[names]
    out: dict[str, Any] = {}
    for k, factor in enumerate(d.study.names):
        live = z.std(0) > 1e-6
        r = np.zeros(z.shape[1])
        r[live] = np.abs(np.corrcoef(z[:, live].T, amounts[:, k])[-1, :-1])
        named = int(contrasts[factor].head.argmax())
        out |= {
            f"{factor}: named": named, f"{factor}: truest": int(r.argmax()), f"{factor}: |r| of named": float(r[named]),
            f"{factor}: |r| of truest": float(r.max()), f"{factor}: contrast": float(contrasts[factor].head.max()),
        }  # fmt: skip
    return out


def _null(model: EEGScan, d: Data) -> dict[str, float]:
    """Largest separation of any label when labels are dealt anew among subjects; the model's own labels are lost."""
    x, who = d.study.x[d.train], d.study.subjects[d.train]
    labels = shuffled(d.study.factors[d.train], who, d.seed)
    model.remap(x, labels, who, d.study.names, progress=False)
    return {"shuffled: contrast": float(max(model.contrast(n, draws=2).head.max() for n in d.study.names))}


def _remapped(model: EEGScan, d: Data) -> dict[str, float]:
    """A new scheme: one factor of four values, depression by sex; SCAN only, against regression on the same codes."""
    s, inside = d.study, d.train
    pair = s.factors[:, [0, 2]]
    y = np.where((pair < 0).any(1), -1, 2 * pair[:, 0] + pair[:, 1])
    true = 2 * d.truth[:, 0] + d.truth[:, 2]
    start = time.perf_counter()
    model.remap(s.x[inside], y[inside], s.subjects[inside], ["group"], progress=False)
    seconds = time.perf_counter() - start
    told = model.predict_proba(s.x[~inside], "group", s.subjects[~inside]).argmax(1)
    people = np.unique(s.subjects[~inside])
    want = 2 * s.truth[people, 0] + s.truth[people, 2]
    other = accuracy(model.transform(s.x), np.where(inside, y, true), s.subjects, inside, True)
    return {
        "remapped: SCAN": float(balanced(want, told)), "remapped: regression": other,
        "remapped: seconds": round(seconds, 2),
    }  # fmt: skip


def _pictures(model: EEGScan, contrasts: dict[str, Any], d: Data) -> dict[str, np.ndarray]:
    """Waveforms at the last site of one held-out subject per value of depression, contrasts, and prototypes."""
    s, held = d.study, np.flatnonzero(~d.train)
    site = s.channels.index("Pz") if "Pz" in s.channels else len(s.channels) - 1
    waves = []
    for value in (0, 1):
        who = s.subjects[held[d.truth[held, 0] == value][0]]
        mine = np.flatnonzero(s.subjects == who)
        one, many = model.denoise(s.x[mine[:1]])[0], model.denoise(s.x[mine]).mean(0)
        rows = (s.clean[mine[0]], s.x[mine[0]], one, s.x[mine].mean(0), many)
        waves.append([r[site] for r in rows])
    protos, truths = [], []
    for k, name in enumerate(s.names):
        for value in (0, 1):
            protos.append(model.prototype({name: value}).mean)
            truths.append(s.clean[d.truth[:, k] == value].mean(0))
    listed = list(contrasts.values())
    return {
        "times": s.times, "waves": np.array(waves), "prototypes": np.array(protos), "truths": np.array(truths),
        "head": np.array([c.head for c in listed]), "matched": np.array([c.matched for c in listed]),
        "low": np.array([c.low for c in listed]), "high": np.array([c.high for c in listed]),
    }  # fmt: skip
