"""The study behind `unbraid run icl_linear_regression`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unbraid.core.errors import UnbraidError

if TYPE_CHECKING:
    from unbraid.core.result import Result
    from unbraid.systems.icl_linear_regression.study.trainings import Trained

PARTS = ("theory", "heads", "lengths", "anisotropic", "multitask", "activations")
# trainings of each part: of full length, and shorter ones
TRAININGS = {"heads": (1, 0), "lengths": (0, 1), "anisotropic": (0, 1), "multitask": (1, 2), "activations": (0, 3)}
LENGTHS = (10, 20, 40, 70, 100, 150, 200)


@dataclass(eq=False)
class Findings:
    """What a study measured.

    Attributes:
        rows: of each part.
        trained: layers of each setting.
        extra: what figures need beside.
        read_back: pieces of an earlier run.
    """

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    trained: dict[str, Trained] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    read_back: int = 0


def run(
    parts: Sequence[str] = PARTS[:4],
    heads: Sequence[int] = (1, 2, 4),
    seeds: int = 3,
    steps: int = 8_000,
    side_steps: int = 8_000,
    lr: float = 1e-3,
    batch: int = 256,
    sequences: int = 20_000,
    device: str | None = None,
    keep: Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Result:
    """Train softmax attention to regress in context, and hold what it learns against the paper's account of it.

    Args:
        parts: Out of theory (no training), heads (one task, isotropic), lengths (contexts of 10 to 200 pairs, with
            linear attention; needs heads), anisotropic, multitask (two and three tasks) and activations.
        heads: Head counts of the isotropic layers; 1 and 2 are what most claims compare.
        seeds: Trainings of each; at least 2 for intervals.
        steps: Of Adam; the paper takes 500,000.
        side_steps: Of Adam where linear attention, correlated covariates, tasks with a shared b, three tasks and other
            activations are trained.
        lr: Learning rate.
        batch: Sequences a step.
        sequences: Of each test.
        device: Where to train; by default where accelerate says.
        keep: Folder for finished pieces and checkpoints; a run that is started again with it goes on where it stopped.
        seed: First of the seeds; thresholds and settings are the method sheet's.
        progress: Show progress on stderr; by default when that is a terminal.

    Returns:
        Trajectories and circuits as pictures, losses beside those of known predictors, scores and claims.
    """
    given, start = dict(locals()), time.perf_counter()
    check(
        parts,
        heads,
        seeds,
        {
            "steps": steps,
            "side_steps": side_steps,
            "batch": batch,
            "sequences": sequences,
        },
        lr,
    )
    from unbraid.core.pieces import Pieces
    from unbraid.core.progress import bar
    from unbraid.systems.icl_linear_regression.study.report import make_result
    from unbraid.systems.icl_linear_regression.study.trainings import How
    from unbraid.zoo.loading import check_device

    if device is not None:
        check_device(device)
    how = How(steps, lr, batch, device, min(100, steps), sequences)
    side = replace(how, steps=side_steps, records=min(100, side_steps))
    store, found = Pieces(keep, {"study": 1}), Findings()
    numbers = tuple(range(seed, seed + seeds))
    if "theory" in parts:
        _theory(found, numbers, sequences, progress)
    each = [TRAININGS.get(part, (0, 0)) for part in parts]
    total = sum(a * steps + b * side_steps for a, b in each) * -(-seeds // 5)
    if total:
        with bar(progress, "Steps of training", total) as tick:
            _train(found, store, parts, tuple(heads), numbers, how, side, tick)
    found.read_back = store.read_back
    return make_result(found, given, time.perf_counter() - start)


def _theory(found: Findings, seeds: tuple[int, ...], sequences: int, progress: bool | None) -> None:
    from unbraid.core.progress import bar
    from unbraid.systems.icl_linear_regression.sampling import Regression
    from unbraid.systems.icl_linear_regression.study import theory

    task = Regression()
    with bar(progress, "Theory", 5) as tick:
        found.rows["approximation"] = theory.approximation(task, seeds, sequences)
        tick()
        found.extra["flow"], found.rows["dynamics"] = theory.dynamics(task, range(seeds[0], seeds[0] + 20))
        tick()
        found.rows["table"] = theory.table(seeds, 50_000 if sequences >= 20_000 else sequences)
        tick()
        found.rows["ratios"] = theory.ratios()
        tick()
        found.rows["solver"] = theory.solved(seeds[0], sequences)
        tick()


def _train(
    found: Findings, store: Any, parts: Sequence[str], heads: tuple[int, ...], seeds: tuple[int, ...], how: Any,
    side: Any, tick: Any,
) -> None:  # fmt: skip
    from unbraid.systems.icl_linear_regression.sampling import Regression
    from unbraid.systems.icl_linear_regression.study import trainings as t
    from unbraid.systems.icl_linear_regression.study.multitask import SETTINGS, multitask

    task = Regression()
    if "heads" in parts:
        found.trained["softmax"] = t.training(store, task, heads, seeds, how, tick=tick)
        found.rows["heads"] = t.rows_of(found.trained["softmax"], how)
    if "lengths" in parts:
        found.trained["linear"] = t.training(store, task, (1, 2), seeds, side, "linear", tick)
        found.rows["linear"] = t.rows_of(found.trained["linear"], how)
        both, few = [found.trained[name] for name in ("softmax", "linear")], how.sequences // 2
        found.rows["lengths"] = [row for trained in both for row in t.over_lengths(trained, LENGTHS, few)]
    if "anisotropic" in parts:
        found.trained["anisotropic"] = t.training(store, Regression(rho=0.5), (1, 2), seeds, side, tick=tick)
        found.rows["anisotropic"] = t.rows_of(found.trained["anisotropic"], how)
    if "multitask" in parts:
        found.rows["multitask"], kept = multitask(store, tuple(SETTINGS), seeds, (how, side), tick)
        found.trained |= kept
    if "activations" in parts:
        for name in ("affine", "square", "tanh"):
            found.trained[name] = t.training(store, task, (2,), seeds, side, name, tick)
            found.rows.setdefault("activations", []).extend(t.rows_of(found.trained[name], how))


def check(parts: Sequence[str], heads: Sequence[int], seeds: int, counts: dict[str, int], lr: float) -> None:
    """Refuses what cannot be run, before anything is.

    Raises:
        UnbraidError: which argument, and what is accepted.
    """
    unknown = [p for p in parts if p not in PARTS]
    if isinstance(parts, str) or unknown or not parts or len(set(parts)) < len(parts):
        said = parts if isinstance(parts, str) else ", ".join(parts) or "empty"
        raise UnbraidError(f"parts is {said}; choose from {', '.join(PARTS)}, each once.")
    if "lengths" in parts and "heads" not in parts:
        raise UnbraidError("parts has lengths without heads; lengths looks at the layers that heads trains: add it.")
    if not heads or len(set(heads)) < len(heads) or any(isinstance(h, bool) or h < 1 for h in heads):
        raise UnbraidError(
            f"heads is {', '.join(map(str, heads)) or 'empty'}; give head counts of at least 1, each once."
        )
    for name, value in {"seeds": seeds, **counts}.items():
        if value < (100 if name == "sequences" else 1):
            raise UnbraidError(f"{name} is {value}; it must be at least {100 if name == 'sequences' else 1}.")
    if not 0 < lr < float("inf"):
        raise UnbraidError(f"lr is {lr}; it must be positive.")
