"""The pictures of the page: waveforms against truth, the scalp, prototypes, latents by label, accuracies."""

from __future__ import annotations

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.core.figures import Bars, Figure, Image, Lines
from unbraid.core.heatmap import HeatMap
from unbraid.core.series import Series
from unbraid.data.erp import SITES, TRAITS
from unbraid.systems.eeg_scan.study import Findings

WAVES = ("truth", "one trial", "its reconstruction", "average of trials", "average of reconstructions")


def figures(f: Findings) -> list[Figure]:
    """Waveforms, contrasts, prototypes, accuracies."""
    out: list[Figure] = []
    order = [m for m in ("whitened", "beta 4", "averages", "beta 1", "beta 4 at noise 0.6") if m in f.shown]
    for model in order[:2]:
        shown = f.shown[model]
        for waves, kind in zip(shown["waves"], ("without depression", "with depression"), strict=True):
            out.append(
                Lines(
                    f"A held-out subject {kind}, {model}",
                    [Series(n, shown["times"].tolist(), w) for n, w in zip(WAVES, waves, strict=True)],
                    x_label="seconds after the stimulus", y_label="amplitude at Pz",
                    caption="What the decoder makes of a single trial, and of all trials, beside the potential "
                    "beneath.",
                )
            )  # fmt: skip
    if f.scalp:
        out += on_the_scalp(f)
    out += prototypes(f.shown[order[0]], order[0])
    out += traversals(f.shown[order[0]], order[0])
    for model in order[:3]:
        head = f.shown[model]["head"]
        latents = [f"z{j}" for j in range(head.shape[1])]
        out.append(
            HeatMap(f"Which latents a label concerns, {model}", head, TRAITS, latents, "latent", "label",
                    "Separation of the label's two values by SCAN. Best: one bright cell in a row.")
        )  # fmt: skip
    sure = f.shown[order[0]]["relevance"]
    out.append(
        HeatMap(f"How sure a label's code is of each latent, {order[0]}", sure,
                [f"{n} {v}" for n in TRAITS for v in (0, 1)], [f"z{j}" for j in range(sure.shape[1])], "latent",
                "label",
                "log 1/s of SCAN's code of one label: about 0 where the label leaves the latent to the prior.")
    )  # fmt: skip
    shown = f.shown[order[0]]
    latents = [f"z{j}" for j in range(shown["head"].shape[1])]
    out.append(
        Bars(f"Contrast over subjects, {order[0]}",
             [Series(n, latents, shown["matched"][k], np.minimum(shown["low"][k], shown["matched"][k]),
                     np.maximum(shown["high"][k], shown["matched"][k])) for k, n in enumerate(TRAITS)],
             y_label="separation", caption="SCAN's code in closed form; whiskers: 95 % of a bootstrap over subjects.")
    )  # fmt: skip
    out.append(accuracy_bars(f))
    return out


def prototypes(shown: dict[str, np.ndarray], model: str) -> list[Figure]:
    """What labels look like, beside the mean of all who truly have them."""
    out: list[Figure] = []
    site = min(SITES.index("Pz"), shown["prototypes"].shape[1] - 1)
    for k, name in enumerate(TRAITS):
        series = []
        for v in (0, 1):
            at = 2 * k + v
            series.append(Series(f"{name} {v}: prototype", shown["times"].tolist(), shown["prototypes"][at, site]))
            series.append(Series(f"{name} {v}: truth", shown["times"].tolist(), shown["truths"][at, site]))
        out.append(
            Lines(f"What {name} looks like, {model}", series, "seconds after the stimulus",
                  f"amplitude at {SITES[site]}",
                  "Codes drawn from the label, decoded and averaged; and the mean potential of all who have it.")
        )  # fmt: skip
    return out


def on_the_scalp(f: Findings) -> list[Figure]:
    """MNE's picture; none where MNE is not installed, which the notes say."""
    from unbraid.systems.eeg_scan.scalp import draw

    try:
        png = draw(f.scalp)
    except UnbraidError:
        return []
    about = "A further study of 32 sites, drawn by MNE: those with the trait less those without (truth), "
    return [
        Image(
            png["topographies"], "Heads seen from above, a row per label: truth, named latent, label's prototype.",
            "On the scalp: truth, the latent that SCAN names, and the label",
            about + "the named latent at 2 less at -2, the prototype of 1 less that of 0, at the truth's peak. The "
            "code knew no site's place.",
        ),
        Image(
            png["waveforms"], "Waveforms at 32 sites, a row per label: truth, and the label's prototype.",
            "At all sites: truth and the label", about + "and the prototype of 1 less that of 0. A colour per site.",
        ),
    ]  # fmt: skip


def traversals(shown: dict[str, np.ndarray], model: str) -> list[Figure]:
    """What the named latent of each label does at the site where it does most."""
    out: list[Figure] = []
    for name, steps, head in zip(TRAITS, shown["traversal"], shown["head"], strict=True):
        site = int(np.ptp(steps, axis=0).max(1).argmax())
        series = [Series(f"{v:+d}", shown["times"].tolist(), w[site]) for v, w in zip(range(-2, 3), steps, strict=True)]
        out.append(
            Lines(f"Latent {int(head.argmax())}, which SCAN names for {name}, {model}", series,
                  "seconds after the stimulus", f"amplitude at {SITES[site]}",
                  "Decoded while this latent goes from -2 to 2 and the others stay at 0.")
        )  # fmt: skip
    return out


def accuracy_bars(f: Findings) -> Bars:
    """Balanced accuracies on averages, at the study's own noise."""
    mine = [r for r in f.accuracies if " at noise" not in r["features"]]
    labels = [n for n in dict.fromkeys(r["features"] for r in mine) if not n.endswith((", SVM", ", kNN"))]
    series = [
        Series(n, labels, [float(np.mean([r["average"] for r in mine if (r["features"], r["factor"]) == (label, n)]))
                           for label in labels]) for n in TRAITS
    ]  # fmt: skip
    return Bars("Balanced accuracy on held-out subjects' averages", series, y_label="balanced accuracy",
                horizontal=True, references={"chance": 0.5})  # fmt: skip
