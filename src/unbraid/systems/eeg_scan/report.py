"""From findings to a page: waveforms against truth first, then contrasts, prototypes, accuracies and claims."""

from __future__ import annotations

from typing import Any

import numpy as np

from unbraid.core.claim import Claim, Table
from unbraid.core.result import Result
from unbraid.data.erp import TRAITS
from unbraid.metrics.intervals import over
from unbraid.systems.eeg_scan import CARD
from unbraid.systems.eeg_scan.pictures import figures
from unbraid.systems.eeg_scan.sheet import beside_the_sheet
from unbraid.systems.eeg_scan.study import Findings

SPEC = {c.name: c for c in CARD.claims}
GAIN, BELOW, ABOVE, NULL = 1.3, -0.02, 0.1, 0.15  # the method sheet's thresholds
REMAP, INVENTED, DELAY = -0.05, 0.05, 0.1  # ours
NAMED = ("depression", "sex")
Row = dict[str, Any]


def make_result(f: Findings, params: dict[str, Any], seconds: float) -> Result:
    """The page."""
    tables = {
        "accuracies": Table.from_records(
            summary(f), "Balanced accuracy on held-out subjects (chance 0.5), means over seeds: of a subject's "
            "average, and of one trial. Logistic regression where no other classifier is named; SCAN decides by itself."
        ),
        "beside the method sheet": Table.from_records(
            beside_the_sheet(f), "The method sheet measured one seed; here are means over seeds and 95 % intervals."
        ),
        "denoisers": Table.from_records(
            denoisers(f), "Correlation of held-out trials with the potential beneath, as they are and after the grand "
            "average is subtracted from both; means over seeds. Xdawn's filters were shown who is depressed."
        ),
        "spoiled labels": Table.from_records(
            spoiled(f), "SCAN alone trained again with labels spoiled per subject: balanced accuracy by match on "
            "held-out subjects' averages, largest contrast, and share of seeds in which it names the right latent."
        ),
        "models": Table.from_records(f.rows, "A row per model; correlations are with the potential beneath."),
        "accuracies per seed": Table.from_records(
            f.accuracies, "low, high: 95 % of a bootstrap over held-out subjects."
        ),
    }  # fmt: skip
    if f.ranking:
        tables["UDR"] = Table.from_records(
            f.ranking, "Agreement of several short fits of one study, without labels: Lasso 0.1, latents above 0.01 "
            "nats, median over partners. |r|: with the true amounts, mean over traits, of the latent that follows each "
            "best."
        )  # fmt: skip
    if f.scalp:
        from unbraid.systems.eeg_scan.scalp import agreement

        tables["scalp"] = Table.from_records(
            agreement(f.scalp), "32 sites: what the named latent and the label's prototype do, against the truth."
        )
    return Result(
        CARD.slug, "EEG: potentials from single trials, and labels tied to latents",
        params={**params, "keep": None if params["keep"] is None else str(params["keep"])},
        claims=claims(f), tables=tables, figures=figures(f), notes=notes(f, params), lead="figures",
        meta={"seed": params["seed"], "seconds": round(seconds, 1), "pieces_read_back": f.read_back},
    )  # fmt: skip


def summary(f: Findings) -> list[Row]:
    """One row per features: mean accuracies over seeds."""
    out = []
    for name in dict.fromkeys(r["features"] for r in f.accuracies):
        row: Row = {"features": name}
        for what in ("average", "trial"):
            for factor in TRAITS:
                found = _of(f, name, factor, what)
                row[f"{factor}, {what}"] = None if None in found else over(found)[0]
        out.append(row)
    return out


def denoisers(f: Findings) -> list[Row]:
    """One row per denoiser: means over seeds, models among them."""
    rows = []
    for name in dict.fromkeys(r["denoiser"] for r in f.denoisers):
        mine = [r for r in f.denoisers if r["denoiser"] == name]
        rows.append({"denoiser": name, **{k: over([r[k] for r in mine])[0] for k in ("correlation", "own part")}})
    for model in models(f):
        whole, own = ([r[k] for r in f.rows if r["model"] == model]
                      for k in ("reconstruction", "reconstruction, own part"))  # fmt: skip
        rows.append({"denoiser": f"VAE, {model}", "correlation": over(whole)[0], "own part": over(own)[0]})
    return rows


def spoiled(f: Findings) -> list[Row]:
    """One row per model, kind of spoiling and label."""
    rows = []
    for model in models(f):
        mine = [r for r in f.rows if r["model"] == model]
        for kind in ("20 % wrong", "50 % unknown"):
            for factor in TRAITS:
                row: Row = {"model": model, "labels": kind, "label": factor}
                row |= {k: over([r[f"{kind}, {factor}: {k}"] for r in mine])[0]
                        for k in ("accuracy", "contrast", "right latent")}  # fmt: skip
                rows.append(row)
    return rows


def _of(f: Findings, features: str, factor: str, what: str = "average") -> list[float]:
    return [r[what] for r in f.accuracies if r["features"] == features and r["factor"] == factor]


def claims(f: Findings) -> list[Claim]:
    """All claims of the card, on the paper's own form; the whitened model stands in the notes of each."""
    one, four = ([r for r in f.rows if r["model"] == m] for m in ("beta 1", "beta 4"))
    four, one = four or one or f.rows, one or four or f.rows  # a run with fewer models judges what it has
    name = one[0]["model"]
    found = [
        denoise(f, four), individual(f, four), invented(f, four),
        tells(f, "depression", name, "LPP score", BELOW), tells(f, "sex", name, "LPP score", ABOVE),
        tells(f, "age", name, "raw signal", BELOW), names(f, four), null(f, four), remap(f, one),
    ]  # fmt: skip
    if {"whitened", "beta 4"} <= set(models(f)):
        found.append(delay(f))
    return found


def make(name: str, measured: Any, comparator: str, holds: bool, note: str, interval: Any, n: int) -> Claim:
    """A claim of the card."""
    spec = SPEC[name]
    return Claim(name, spec.statement, spec.source, None, measured, comparator, holds, note, interval, n)


def beside(f: Findings, key: str) -> str:
    """The mean of a column for every model."""
    found = {m: float(np.mean([r[key] for r in f.rows if r["model"] == m])) for m in models(f)}
    return ", ".join(f"{m}: {v:.2f}" for m, v in found.items())


def models(f: Findings) -> list[str]:
    """In the order in which they were trained."""
    return list(dict.fromkeys(r["model"] for r in f.rows))


def denoise(f: Findings, rows: list[Row]) -> Claim:
    """Correlation of reconstructions with truth, over that of the trials."""
    mean, interval = over([r["reconstruction"] / r["trial"] for r in rows])
    null = np.mean([r["reconstruction of noise"] for r in rows])
    return make(
        "denoise", mean, f"trial: {np.mean([r['trial'] for r in rows]):.2f}, reconstruction of noise alone: {null:.2f}",
        mean >= GAIN, f"{rows[0]['model']}: correlation with the potential beneath, as a multiple of the trial's. "
        f"Holds at {GAIN} or more. Reconstructions by model: {beside(f, 'reconstruction')}. Noise reconstructed "
        "also correlates, since the decoder knows the mean potential: see the next claim.", interval, len(rows),
    )  # fmt: skip


def individual(f: Findings, rows: list[Row]) -> Claim:
    """The same after the grand average is gone, less what trials have."""
    key = "reconstruction, own part"
    mean, interval = over([r[key] - r["trial, own part"] for r in rows])
    own, other = (float(np.mean([r[k] for r in rows])) for k in ("trial, own part", "another subject's, own part"))
    return make(
        "individual", mean, f"trial: {own:.2f}, with another subject's potential: {other:.2f}",
        mean > 0 if interval is None else interval[0] > 0,
        f"{rows[0]['model']}: gain in correlation with the potential beneath after the grand average of the training "
        f"subjects is subtracted from both. Holds if the interval lies above 0. By model: {beside(f, key)}; of noise "
        f"alone: {beside(f, 'reconstruction of noise, own part')}.", interval, len(rows),
    )  # fmt: skip


def invented(f: Findings, rows: list[Row]) -> Claim:
    """What reconstructions of noise alone have of the subject's own."""
    key = "reconstruction of noise, own part"
    mean, interval = over([r[key] for r in rows])
    real = float(np.mean([r["reconstruction, own part"] for r in rows]))
    return make(
        "invented", mean, f"reconstruction of trials: {real:.2f}", all(abs(r[key]) < INVENTED for r in rows),
        f"{rows[0]['model']}: surrogates are trials less their subject's mean with random phases; correlation of their "
        "reconstructions with the subject's potential after the grand average is subtracted. Holds if within "
        f"{INVENTED} of 0 in every seed. By model: {beside(f, key)}. With the grand average left in: "
        f"{beside(f, 'reconstruction of noise')}.", interval, len(rows),
    )  # fmt: skip


def delay(f: Findings) -> Claim:
    """Accuracy on age of whitened codes less that of codes of the signal as it is."""
    pair = zip(_of(f, "codes, whitened", "age"), _of(f, "codes, beta 4", "age"), strict=True)
    mean, interval = over([a - b for a, b in pair])
    each = ", ".join(f"{m}: {np.mean(_of(f, f'codes, {m}', 'age')):.2f}" for m in models(f))
    return make(
        "delay", mean, f"beta 4: {np.mean(_of(f, 'codes, beta 4', 'age')):.2f}",
        mean >= DELAY and (interval is None or interval[0] > 0),
        "balanced accuracy on age, averages of held-out subjects: codes with whitening less codes without. Holds at "
        f"{DELAY:+g} or more with the interval above 0. By model: {each}.", interval, len(f.rows) // len(models(f)),
    )  # fmt: skip


def tells(f: Findings, factor: str, model: str, against: str, margin: float) -> Claim:
    """Accuracy of averaged codes less that of a baseline, paired by seed."""
    mine, base = _of(f, f"codes, {model}", factor), _of(f, against, factor)
    mean, interval = over([a - b for a, b in zip(mine, base, strict=True)])
    each = ", ".join(f"{m}: {np.mean(_of(f, f'codes, {m}', factor)):.2f}" for m in models(f))
    scan = ", ".join(f"{m}: {np.mean(_of(f, f'SCAN, {m}', factor)):.2f}" for m in models(f))
    both = ", ".join(f"{n} {np.mean(_of(f, n, factor)):.2f}" for n in ("LPP score", "raw signal"))
    return make(
        factor, mean, f"{against}: {np.mean(base):.2f}", mean >= margin,
        f"{model}: balanced accuracy on a held-out subject's average, logistic regression on codes less {against}. "
        f"Holds at {margin:+g} or more. Codes by model: {each}; SCAN itself: {scan}; {both}.", interval, len(mine),
    )  # fmt: skip


def names(f: Findings, rows: list[Row]) -> Claim:
    """How often the latent with the largest contrast is the one that follows the truth best."""
    hits = {m: [r[f"{n}: named"] == r[f"{n}: truest"] for r in f.rows if r["model"] == m for n in NAMED]
            for m in models(f)}  # fmt: skip
    model = rows[0]["model"]
    each = [float(np.mean([r[f"{n}: named"] == r[f"{n}: truest"] for n in NAMED])) for r in rows]
    mean, interval = over(each)
    followed = float(np.mean([r[f"{n}: |r| of named"] for r in rows for n in NAMED]))
    best = float(np.mean([r[f"{n}: |r| of truest"] for r in rows for n in NAMED]))
    told = ", ".join(f"{m}: {sum(h)} of {len(h)}" for m, h in hits.items())
    return make(
        "names", mean, f"|r| with the true amount: named {followed:.2f}, best of all latents {best:.2f}", mean == 1,
        f"{model}: depression and sex, held-out subjects. Holds if right in every seed. By model: {told}.",
        interval, len(rows),
    )  # fmt: skip


def null(f: Findings, rows: list[Row]) -> Claim:
    """Largest contrast of shuffled labels."""
    mean, interval = over([r["shuffled: contrast"] for r in rows])
    real = float(np.mean([r["depression: contrast"] for r in rows]))
    return make(
        "shuffled", mean, f"depression as it is: {real:.2f}", all(r["shuffled: contrast"] < NULL for r in rows),
        f"{rows[0]['model']}: the largest separation of ten latents and three labels. Holds if below {NULL} in every "
        f"seed. By model: {beside(f, 'shuffled: contrast')}.", interval, len(rows),
    )  # fmt: skip


def remap(f: Findings, rows: list[Row]) -> Claim:
    """Accuracy of a new four-valued label by SCAN only, less regression on the same codes."""
    mean, interval = over([r["remapped: SCAN"] - r["remapped: regression"] for r in rows])
    fast = float(np.mean([r["remapped: seconds"] for r in rows]))
    slow = float(np.mean([r["VAE (s)"] for r in rows]))
    other = float(np.mean([r["remapped: regression"] for r in rows]))
    return make(
        "remap", mean, f"logistic regression on the same codes: {other:.2f}",
        mean >= REMAP and fast < slow / 2,
        f"{rows[0]['model']}: depression by sex as one label of four values (chance 0.25), averages of held-out "
        f"subjects; SCAN less regression. Took {fast:.1f} s, the VAE {slow:.1f} s. Holds at {REMAP} or more and in "
        f"less than half the time. SCAN by model: {beside(f, 'remapped: SCAN')}.", interval, len(rows),
    )  # fmt: skip


def notes(f: Findings, params: dict[str, Any]) -> list[str]:
    """What a reader must know."""
    said = [
        "The study is simulated: depression lowers the LPP, age delays the P1, sex raises the N2; noise is 1/f with a "
        "rhythm of 10 Hz. The paper's own data are not public, and its figures were not recovered.",
        "Whitening is not in the paper. The simulated noise is stationary, which suits it; recordings are less kind.",
        "Splits are by subject, intervals of claims over seeds (t); settings were chosen on seed 100.",
        "Epochs are divided by their standard deviation before training, so that beta here weighs as much as beta "
        "times their variance (table of models) in the method sheet, which left them as they were. SCAN takes 1,500 "
        "steps of 256 at 1e-3 (size small), the public code of SCAN about as many passes in batches of 16 at 1e-4.",
    ]
    if not any(r["denoiser"].startswith("Xdawn") for r in f.denoisers):
        said.append('MNE is not installed, so Xdawn and topographies are missing: pip install "unbraid[neuro]".')
    if params["seeds"] < 3:
        said.append("Few seeds: intervals are wide or missing.")
    if f.read_back:
        said.append(f"{f.read_back} pieces were read back from an earlier run (--keep).")
    return said
