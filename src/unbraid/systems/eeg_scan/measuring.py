"""What is measured on one simulated study and one model, on subjects that neither stage has seen."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from unbraid.systems.eeg_scan.baselines import accuracy, balanced, correlations, shuffled, surrogates
from unbraid.systems.eeg_scan.comparing import Data, denoised, follows, scored
from unbraid.systems.eeg_scan.epochs import mean_by
from unbraid.systems.eeg_scan.system import EEGScan, How

WRONG, UNKNOWN = 0.2, 0.5  # shares of subjects whose labels are turned round, or taken away


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
    row |= {"beta_norm": model.beta_norm_, "residual variance": model.residual_, "variance": model.scale_**2}
    row |= _denoising(model, d)
    row["accuracies"] = _accuracies(model, name, d)
    contrasts = {n: model.contrast(n, seed=d.seed) for n in s.names}
    row |= _naming(model, contrasts, d)
    shown = _pictures(model, contrasts, d)
    row |= _null(model, d) | _spoiled(model, d) | _remapped(model, d)
    return row, shown


def _denoising(model: EEGScan, d: Data) -> dict[str, float]:
    x, clean, who = (v[~d.train] for v in (d.study.x, d.study.clean, d.study.subjects))
    grand = d.study.x[d.train].mean(0)
    made = model.denoise(x)
    raw, mine = denoised(d, "", x), denoised(d, "", made)
    null = denoised(d, "", model.denoise(surrogates(x, who, d.seed)))
    names = np.unique(who)
    other = dict(zip(names, np.roll(names, 1), strict=True))
    first = {a: int(np.argmax(who == a)) for a in names}
    foreign = clean[[first[other[w]] for w in who]]
    return {
        "trial": raw["correlation"], "reconstruction": mine["correlation"],
        "trial, own part": raw["own part"], "reconstruction, own part": mine["own part"],
        "another subject's, own part": float(correlations(made - grand, foreign - grand).mean()),
        "reconstruction of noise": null["correlation"], "reconstruction of noise, own part": null["own part"],
        "average of trials": float(correlations(mean_by(x, who)[1], mean_by(clean, who)[1]).mean()),
        "average of reconstructions": float(correlations(mean_by(made, who)[1], mean_by(clean, who)[1]).mean()),
    }  # fmt: skip


def _accuracies(model: EEGScan, name: str, d: Data) -> list[dict[str, Any]]:
    ways: tuple[tuple[How, str], ...] = (
        ("decoder", "SCAN"), ("trials", "SCAN over trials"), ("match", "SCAN by match"),
    )  # fmt: skip
    z = model.transform(d.study.x)
    rows = scored(d, f"codes, {name}", z)
    for kind in ("svm", "knn"):
        rows += scored(d, f"codes, {name}, {'SVM' if kind == 'svm' else 'kNN'}", z, kind)
    held = ~d.train
    x, who, truth = d.study.x[held], d.study.subjects[held], d.truth[held]
    people = d.study.truth[np.unique(who)]
    for k, factor in enumerate(d.study.names):
        for how, label in ways:
            one, whole = (model.predict_proba(x, factor, s, how).argmax(1) for s in (None, who))
            rows.append({
                "seed": d.seed, "features": f"{label}, {name}", "factor": factor,
                "average": float(balanced(people[:, k], whole)),
                "trial": None if how == "trials" else float(balanced(truth[:, k], one)),
            })  # fmt: skip
    return rows


def _naming(model: EEGScan, contrasts: dict[str, Any], d: Data) -> dict[str, Any]:
    """Does the largest contrast name the latent that follows the true amount best, over held-out subjects?

    And what is that latent worth alone, as a classifier of one feature?
    """
    held = ~d.train
    z = model.transform(d.study.x)
    names, means = mean_by(z[held], d.study.subjects[held])
    r = np.abs(follows(means, d.study.amounts[names]))
    single = np.abs(follows(z[held], d.study.amounts[d.study.subjects[held]]))
    out: dict[str, Any] = {}
    for k, factor in enumerate(d.study.names):
        head = contrasts[factor].head
        named = int(head.argmax())
        y = np.where(d.train, d.study.factors[:, k], d.truth[:, k])
        out |= {
            f"{factor}: named": named, f"{factor}: truest": int(r[:, k].argmax()),
            f"{factor}: |r| of named": float(r[named, k]), f"{factor}: |r| of truest": float(r[:, k].max()),
            f"{factor}: |r|, trials": float(single[:, k].max()), f"{factor}: contrast": float(head.max()),
            f"{factor}: next contrast": float(np.sort(head)[-2]) if len(head) > 1 else 0.0,
            f"{factor}: named latent alone": accuracy(z[:, named], y, d.study.subjects, d.train, True),
        }  # fmt: skip
    return out


def _spoiled(model: EEGScan, d: Data) -> dict[str, Any]:
    """SCAN again with a part of the subjects' labels wrong, or unknown; the truth decides."""
    s, inside = d.study, d.train
    rng = np.random.default_rng(d.seed)
    hit = rng.random(s.truth.shape)
    labels, who = s.factors, s.subjects
    out: dict[str, Any] = {}
    z = model.transform(s.x[~inside], s.subjects[~inside])
    people = np.unique(who[~inside])
    truest = np.abs(follows(z, s.amounts[people])).argmax(0)
    for name, changed in (
        ("20 % wrong", np.where((hit[who] < WRONG) & (labels >= 0), 1 - labels, labels)),
        ("50 % unknown", np.where(hit[who] < UNKNOWN, -1, labels)),
    ):
        model.remap(s.x[inside], changed[inside], who[inside], s.names, progress=False)
        for k, factor in enumerate(s.names):
            told = model.predict_proba(s.x[~inside], factor, who[~inside], "match").argmax(1)
            head = model.contrast(factor, draws=2).head
            out |= {
                f"{name}, {factor}: accuracy": float(balanced(s.truth[people, k], told)),
                f"{name}, {factor}: contrast": float(head.max()),
                f"{name}, {factor}: right latent": int(head.argmax()) == int(truest[k]),
            }
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
    steps = [model.traverse(int(c.head.argmax())) for c in listed]
    sure = [model.relevance({n: v}) for n in s.names for v in (0, 1)]
    return {
        "times": s.times, "waves": np.array(waves), "prototypes": np.array(protos), "truths": np.array(truths),
        "head": np.array([c.head for c in listed]), "matched": np.array([c.matched for c in listed]),
        "traversal": np.array(steps), "relevance": np.array(sure),
        "low": np.array([c.low for c in listed]), "high": np.array([c.high for c in listed]),
    }  # fmt: skip
