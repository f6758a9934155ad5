"""The study behind `unbraid run eeg_scan`: a simulated study of potentials with known traits, over seeds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unbraid.core.errors import UnbraidError

if TYPE_CHECKING:
    import numpy as np

    from unbraid.core.result import Result

# name -> settings of EEGScan; the whitened one's beta was chosen on seed 100, the others are the method sheet's
MODELS: dict[str, dict[str, Any]] = {
    "beta 1": {"beta": 1.0},
    "beta 4": {"beta": 4.0},
    "whitened": {"beta": 0.5, "whiten": True},
}
TRAINING = 0.75  # of the subjects


@dataclass(eq=False)
class Findings:
    """What a study measured: `rows` per seed and model, `accuracies` per factor and features, arrays for pictures."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    accuracies: list[dict[str, Any]] = field(default_factory=list)
    shown: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    read_back: int = 0


def run(
    models: Sequence[str] = ("beta 1", "beta 4", "whitened"),
    seeds: int = 3,
    subjects: int = 400,
    trials: int = 30,
    noise: float = 1.0,
    wrong: float = 0.0,
    unknown: float = 0.0,
    size: Literal["tiny", "small", "medium", "paper"] = "small",
    latents: int = 10,
    keep: Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Result:
    """Learn codes of simulated potentials, tie traits to them with SCAN, and compare with the truth and baselines.

    Args:
        models: Out of "beta 1", "beta 4" (as in the method sheet) and "whitened" (noise made white, beta 0.5).
        seeds: Simulated studies, each with its own models.
        subjects: Of a study; a quarter is held out.
        trials: Of a subject.
        noise: Scale of the noise; the LPP has the amplitude 1.2.
        wrong: Share of labels that are wrong in training.
        unknown: Share of labels that are unknown in training.
        size: Length of the trainings.
        latents: Of the codes.
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
    from unbraid.core.pieces import Pieces
    from unbraid.core.progress import bar
    from unbraid.systems.eeg_scan.measuring import baselines, measure, prepared
    from unbraid.systems.eeg_scan.report import make_result

    store, f = Pieces(keep, {"study": 2}), Findings()
    world = {"subjects": subjects, "trials": trials, "noise": noise, "wrong": wrong, "unknown": unknown}
    with bar(progress, "Training models", seeds * (len(models) + 1)) as tick:
        for number in range(seed, seed + seeds):
            data = prepared(number, world)
            key = {"seed": number, **world}
            f.accuracies += store.get("baselines", key, partial(baselines, data))
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
    f.read_back = store.read_back
    return make_result(f, given, time.perf_counter() - start)
