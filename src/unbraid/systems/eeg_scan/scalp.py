"""Factors found, on the scalp: a study of 32 sites, and MNE's pictures of truth, latent and label there."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np

from unbraid.data.erp import SITES, TRAITS, simulate
from unbraid.systems.eeg_scan.recordings import _mne, to_evoked
from unbraid.systems.eeg_scan.study import TRAINING
from unbraid.systems.eeg_scan.system import EEGScan

MONTAGE = "biosemi32"  # MNE's, with the sites that the simulation has
WORLD: dict[str, Any] = {"channels": 32, "samples": 32, "spread": 0.4}
SETTINGS: dict[str, Any] = {"beta": 0.1, "whiten": True, "averaged": 0}  # chosen on seed 100


def mapped(seed: int, subjects: int, trials: int, noise: float, size: str, latents: int) -> dict[str, np.ndarray]:
    """Fits a study of 32 sites and says what each trait does at each site: in truth, by its latent, by its label.

    Returns:
        "times" [T] seconds; "truth", "latent" and "label" [traits, sites, T]: the mean potential of those with the
        trait less the others'; the named latent at 2 less at -2, with the sign of the truth; the label's prototype
        of 1 less that of 0.
    """
    study = simulate(subjects, trials, noise, seed=seed, **WORLD)
    train, _ = study.split_subjects(TRAINING, seed)
    model = EEGScan(**SETTINGS, size=size, latents=latents, seed=seed)  # type: ignore[arg-type]
    model.fit(study.x[train], study.factors[train], study.subjects[train], study.names, progress=False)
    truth, latent, label = [], [], []
    for k, name in enumerate(study.names):
        has = study.truth[study.subjects, k] == 1
        true = study.clean[has].mean(0) - study.clean[~has].mean(0)
        ends = model.traverse(int(model.contrast(name, draws=2).head.argmax()), (-2.0, 2.0))
        found = ends[1] - ends[0]
        truth.append(true)
        latent.append(found if (found * true).sum() >= 0 else -found)
        label.append(model.prototype({name: 1}).mean - model.prototype({name: 0}).mean)
    return {"times": study.times, "truth": np.array(truth), "latent": np.array(latent), "label": np.array(label)}


def peaks(shown: dict[str, np.ndarray]) -> list[int]:
    """[traits] the sample at which the truth differs most."""
    return [int(np.abs(one).sum(0).argmax()) for one in shown["truth"]]


def agreement(shown: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """A row per trait: correlation with the truth, over sites at its peak, and over sites and samples."""
    rows = []
    for k, (name, at) in enumerate(zip(TRAITS, peaks(shown), strict=True)):
        row: dict[str, Any] = {"label": name, "peak (s)": round(float(shown["times"][at]), 3)}
        for what in ("latent", "label"):
            a, b = shown["truth"][k], shown[what][k]
            row[f"{what}: r over sites"] = float(np.corrcoef(a[:, at], b[:, at])[0, 1])
            row[f"{what}: r over sites and time"] = float(np.corrcoef(a.ravel(), b.ravel())[0, 1])
        rows.append(row)
    return rows


HEADS = (("truth", "truth"), ("latent", "named latent"), ("label", "label's prototype"))


def draw(shown: dict[str, np.ndarray]) -> dict[str, bytes]:
    """PNG of "topographies" at the peaks by MNE's `plot_topomap`, and of "waveforms" at all sites by its `Evoked.plot`.

    Raises:
        UnbraidError: MNE is not installed.
    """
    mne = _mne()
    out = {}
    with mne.use_log_level("error"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        canvas, axes = _sheet(len(HEADS), 6.4)
        for k, (row, at) in enumerate(zip(axes, peaks(shown), strict=True)):
            for ax, (what, title) in zip(row, HEADS, strict=True):
                evoked = to_evoked(shown[what][k], shown["times"], SITES, montage=MONTAGE)
                values = evoked.data[:, at]
                end = float(np.abs(values).max()) or 1.0
                mne.viz.plot_topomap(values, evoked.info, axes=ax, show=False, vlim=(-end, end))
                ax.set_title(f"{TRAITS[k]}: {title}\n{shown['times'][at]:.2f} s, ±{end:.2f}", fontsize=9)
        out["topographies"] = _png(canvas)
        canvas, axes = _sheet(2, 7.2)
        for k, (row, at) in enumerate(zip(axes, peaks(shown), strict=True)):
            for ax, (what, title) in zip(row, (HEADS[0], HEADS[2]), strict=True):
                evoked = to_evoked(shown[what][k], shown["times"], SITES, montage=MONTAGE)
                evoked.plot(axes=ax, show=False, spatial_colors=True, selectable=False,
                            scalings={"eeg": 1}, units={"eeg": "amplitude"})  # fmt: skip
                for written in list(ax.texts):  # "N_ave = 1", over the title
                    written.remove()
                ax.set_title(f"{TRAITS[k]}: {title}", fontsize=10)
                ax.axvline(shown["times"][at], color="0.5", lw=0.8, ls="--")
        out["waveforms"] = _png(canvas)
    return out


def _sheet(columns: int, width: float) -> tuple[Any, Any]:
    """An empty picture of a row per trait: its canvas, and axes [traits, columns]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 7.0), layout="constrained", dpi=84)
    return FigureCanvasAgg(figure), figure.subplots(len(TRAITS), columns)


def _png(canvas: Any) -> bytes:
    held = io.BytesIO()
    canvas.print_png(held)
    return held.getvalue()
