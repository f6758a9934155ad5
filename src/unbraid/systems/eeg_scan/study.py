"""The study behind `unbraid run eeg_scan`: a simulated study of potentials with known traits, over seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unbraid.core.errors import UnbraidError

if TYPE_CHECKING:
    import numpy as np

    from unbraid.core.pieces import Pieces
    from unbraid.core.result import Result

# name -> settings of EEGScan; whitening's beta and the training on averages were chosen on seed 100, the others are the
# method sheet's
MODELS: dict[str, dict[str, Any]] = {
    "beta 1": {"beta": 1.0},
    "beta 4": {"beta": 4.0},
    "beta 4 at noise 0.6": {"beta": 4.0},
    "averages": {"beta": 4.0, "averaged": 0},
    "whitened": {"beta": 0.5, "whiten": True},
}
NOISE = {"beta 4 at noise 0.6": 0.6}  # models whose study has other noise than the option says
TRAINING = 0.75  # of the subjects


@dataclass(eq=False)
class Findings:
    """What a study measured: `rows` per seed and model, `accuracies` per factor and features, arrays for pictures.

    `denoisers` per seed and other denoiser, `ranking` per setting (UDR), `scalp` arrays for topographies.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    denoisers: list[dict[str, Any]] = field(default_factory=list)
    ranking: list[dict[str, Any]] = field(default_factory=list)
    scalp: dict[str, np.ndarray] = field(default_factory=dict)
    accuracies: list[dict[str, Any]] = field(default_factory=list)
    shown: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    read_back: int = 0


def run(
    models: Sequence[str] = ("beta 1", "beta 4", "beta 4 at noise 0.6", "averages", "whitened"),
    seeds: int = 2,
    subjects: int = 400,
    trials: int = 30,
    noise: float = 1.0,
    wrong: float = 0.0,
    unknown: float = 0.0,
    size: Literal["tiny", "small", "medium", "paper"] = "small",
    latents: int = 10,
    runs: int = 5,
    scalp: bool = True,
    keep: Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Result:
    """Learn codes of simulated potentials, tie traits to them with SCAN, and compare with the truth and baselines.

    Args:
        models: Out of "beta 1", "beta 4", "beta 4 at noise 0.6" (as in the method sheet), "averages" (the VAE learns
            from subjects' averages) and "whitened" (noise made white first, beta 0.5).
        seeds: Simulated studies, each with its own models.
        subjects: Of a study; a quarter is held out.
        trials: Of a subject.
        noise: Scale of the noise; the LPP has the amplitude 1.2.
        wrong: Share of labels that are wrong in training.
        unknown: Share of labels that are unknown in training.
        size: Length of the trainings.
        latents: Of the codes.
        runs: Fits per model of the first study, which UDR compares (5 or more); 0: none.
        scalp: Also fit a study of 32 sites, and draw what labels do on the scalp with MNE where it is installed.
        keep: Folder for finished models; a run that is started again with it goes on where it stopped.
        seed: First of the seeds; settings were chosen on seed 100.
        progress: Show progress on stderr; by default when that is a terminal.

    Returns:
        Waveforms against truth, contrasts of labels, prototypes, accuracies of codes and baselines, and the claims.
    """
    given, start = dict(locals()), time.perf_counter()
    unknown_models = [m for m in models if m not in MODELS]
    if unknown_models or not models or len(set(models)) < len(models):
        raise UnbraidError(f"models is {', '.join(models) or 'empty'}; choose from {', '.join(MODELS)}, each once.")
    if seeds < 1 or subjects < 16 or trials < 2 or latents < 1 or not noise > 0 or not 0 <= wrong <= 0.5:
        raise UnbraidError(
            f"seeds={seeds}, subjects={subjects}, trials={trials}, latents={latents}, noise={noise}, wrong={wrong}: "
            "give at least 1, 16, 2 and 1, noise above 0, and at most 0.5 wrong labels."
        )
    if not 0 <= unknown < 0.9:
        raise UnbraidError(f"unknown is {unknown}; a share of labels from 0 to below 0.9 may be unknown.")
    if runs and not 5 <= runs <= 100:
        raise UnbraidError(f"runs is {runs}; UDR compares 5 to 100 fits with one another, and 0 leaves it out.")
    from unbraid.core.pieces import Pieces
    from unbraid.core.progress import bar
    from unbraid.systems.eeg_scan.report import make_result

    store, f = Pieces(keep, {"study": 3}), Findings()
    world = {"subjects": subjects, "trials": trials, "noise": noise, "wrong": wrong, "unknown": unknown}
    levels = list(dict.fromkeys(NOISE.get(m, noise) for m in models))
    plan = [(n, level) for n in range(seed, seed + seeds) for level in levels]
    with bar(progress, "Training models", len(plan) + seeds * len(models) + bool(runs) + scalp) as tick:
        for number, level in plan:
            mine = [m for m in models if NOISE.get(m, noise) == level]
            said = "" if level == noise else f" at noise {level}"
            _one(f, store, number, {**world, "noise": level}, mine, said, size, latents, tick)
        if runs:
            chosen = {m: MODELS[m] for m in models if NOISE.get(m, noise) == noise}
            key = {"seed": seed, **world, "runs": runs, "size": size, "latents": latents, "models": chosen}
            f.ranking = store.get("ranking", key, partial(_ranked, seed, world, chosen, runs, size, latents))
            tick()
        if scalp:
            f.scalp = _scalp(store, seed, min(subjects, 200), trials, noise, size, latents)
            tick()
    f.read_back = store.read_back
    return make_result(f, given, time.perf_counter() - start)


def _one(
    f: Findings, store: Pieces, number: int, world: dict[str, Any], models: list[str], suffix: str, size: str,
    latents: int, tick: Callable[[], Any],
) -> None:  # fmt: skip
    """Everything about one simulated study: what others do with it, and each model."""
    from unbraid.systems.eeg_scan.comparing import others, prepared
    from unbraid.systems.eeg_scan.measuring import measure

    data = prepared(number, world)
    key = {"seed": number, **world, "size": size, "latents": latents}
    found = store.get("others", key, partial(others, data, size, latents))
    f.accuracies += [{**r, "features": r["features"] + suffix} for r in found["accuracies"]]
    f.denoisers += [{**r, "denoiser": r["denoiser"] + suffix} for r in found["denoisers"]]
    tick()
    for name in models:
        settings = {**MODELS[name], "size": size, "latents": latents, "seed": number}
        whole = {**key, **settings}
        row, arrays = store.load("row", whole), store.load_arrays("shown", whole)
        if row is None or arrays is None:
            row, arrays = measure(name, settings, data)
            store.save_arrays("shown", whole, arrays)
            store.save("row", whole, row)
        f.accuracies += row["accuracies"]
        f.rows.append({k: v for k, v in row.items() if k != "accuracies"})
        f.shown.setdefault(name, arrays)
        tick()


def _ranked(
    seed: int, world: dict[str, Any], chosen: dict[str, Any], runs: int, size: str, latents: int
) -> list[dict[str, Any]]:  # fmt: skip
    from unbraid.systems.eeg_scan.comparing import prepared, ranked

    return ranked(prepared(seed, world), chosen, runs, size, latents)


def _scalp(
    store: Pieces, seed: int, subjects: int, trials: int, noise: float, size: str, latents: int
) -> dict[str, np.ndarray]:  # fmt: skip
    from unbraid.systems.eeg_scan import scalp

    key = {"seed": seed, "subjects": subjects, "trials": trials, "noise": noise, "size": size, "latents": latents,
           **scalp.WORLD, **scalp.SETTINGS}  # fmt: skip
    found = store.load_arrays("scalp", key)
    if found is None:
        found = scalp.mapped(seed, subjects, trials, noise, size, latents)
        store.save_arrays("scalp", key, found)
    return found
