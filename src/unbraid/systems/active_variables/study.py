"""The study behind `unbraid run active_variables`: VAEs over strengths and seeds, and what their means hide."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unbraid.core.errors import UnbraidError

if TYPE_CHECKING:
    import numpy as np

    from unbraid.core.pieces import Pieces
    from unbraid.core.result import Result
    from unbraid.data.factors import FactorData
    from unbraid.systems.active_variables.dynamics import Dynamics
    from unbraid.systems.active_variables.zoo import Model, Spec

OBJECTIVES = ("beta", "beta_tc", "factor", "dip_ii", "annealed", "dip_i")
# fewer values than the original's: 3,072 images; angles within a quarter turn, so that squares have them too
SPRITES = {"scale": 4, "orientation": 4, "posX": 8, "posY": 8}
CHECK_STRENGTHS = (1.0, 4.0)
CHECK_STEPS = {"tiny": 150, "small": 5_000, "medium": 5_000, "paper": 5_000}
MEASUREMENTS = 60  # along one watched training


@dataclass(eq=False)
class Findings:
    """What a study measured, before it is put into words.

    Attributes:
        models: all trained ones.
        downstream: rows of accuracies.
        checks: models of the discs.
        check_rows: rows of R^2 on the discs.
        watched: the course of one training.
        watched_spec: of that training.
        image: [side, side] and so on: observations for pictures.
        read_back: how many pieces were found finished.
    """

    models: list[Model] = field(default_factory=list)
    downstream: list[dict[str, Any]] = field(default_factory=list)
    checks: list[Model] = field(default_factory=list)
    check_rows: list[dict[str, Any]] = field(default_factory=list)
    watched: Dynamics | None = None
    watched_spec: Spec | None = None
    example: np.ndarray | None = None
    data: FactorData | None = None
    read_back: int = 0


def run(
    objectives: Sequence[str] = ("beta",),
    levels: int = 2,
    seeds: int = 3,
    size: Literal["tiny", "small", "medium", "paper"] = "small",
    steps: int | None = None,
    latents: int = 10,
    points: int = 10_000,
    downstream: Literal["none", "logistic", "both"] = "logistic",
    train: int = 1_000,
    test: int = 1_000,
    checks: int = 0,
    watch: bool = True,
    keep: Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Result:
    """Train VAEs on sprites over strengths and seeds, label their latents, and compare mean with sampled codes.

    Args:
        objectives: Out of beta, beta_tc, factor, dip_ii, annealed and dip_i.
        levels: Strengths of each objective, from weak to strong, at most four.
        seeds: Trainings of each.
        size: Network, image and steps; tiny takes seconds and learns little, small 10 seconds a model, paper days.
        steps: Steps of each training; by default those of the size.
        latents: Dimensions of the code.
        points: Images that labels and scores are measured on, at most.
        downstream: Learners that predict the factors from codes; both adds gradient boosting, which is slow.
        train: Images that a learner is trained on.
        test: Images that it is tested on.
        checks: Trainings of beta 1 and 4 each on discs with continuous factors, for the checks of the method's sheet.
        watch: Whether one training is watched step by step.
        keep: Folder for finished models; a run that is started again with the same folder goes on where it stopped.
        seed: First of the seeds; strengths were explored on seed 100.
        progress: Show progress on stderr; by default when that is a terminal.

    Returns:
        Labels, scores of mean and sampled codes, accuracies, the course of a training, and the paper's claims.
    """
    given, start = dict(locals()), time.perf_counter()
    check(objectives, levels, seeds, latents, points, train, test, checks, 1 if steps is None else steps)
    from unbraid.core.pieces import Pieces
    from unbraid.core.progress import bar
    from unbraid.data.worlds import make
    from unbraid.systems.active_variables.report import make_result
    from unbraid.systems.active_variables.zoo import SCALES, Spec, digest

    store, f = Pieces(keep), Findings()
    data = f.data = make("sprites", SCALES[size].side, sizes=SPRITES if size != "paper" else None, turn=0.25)
    if train + test > len(data):
        raise UnbraidError(f"train + test is {train + test}, but there are {len(data)} images; lower them.")
    x = f.example = data.x
    specs = plan(objectives, levels, range(seed, seed + seeds), size, steps, latents, digest(x))
    disc_specs = [
        Spec("discs", "beta", i, b, s, CHECK_STEPS[size] if steps is None else steps, width=256, latents=latents)
        for i, b in enumerate(CHECK_STRENGTHS)
        for s in range(seed, seed + checks)
    ]
    total = sum(s.steps for s in [*specs, *disc_specs]) + watch * specs[-1].steps
    with bar(progress, "Training VAEs (steps)", total) as tick:
        f.models = [finished(spec, data, x, store, points, tick) for spec in specs]
        try_discs(f, disc_specs, store, points, tick)
        if watch:
            observe(f, specs, x, tick)
    with bar(progress, "Predicting factors from codes (models)", len(learned := middle(f.models))) as tick:
        if downstream != "none":
            learn(f, learned, data, x, store, downstream, train, test, tick)
    f.read_back = store.read_back
    return make_result(f, given, time.perf_counter() - start)


def plan(
    objectives: Sequence[str],
    levels: int,
    seeds: Sequence[int],
    size: str,
    steps: int | None,
    latents: int,
    images: str = "",
) -> list[Spec]:
    """All models of the sprites."""
    from unbraid.systems.active_variables.zoo import OPTIONS, SCALES, Spec, strengths

    scale = SCALES[size]
    made = []
    for objective in objectives:
        options = {} if size == "paper" else OPTIONS.get(objective, {})  # type: ignore[call-overload]
        for level, strength in enumerate(strengths(objective, levels, size)):  # type: ignore[arg-type]
            made += [
                Spec(
                    "sprites", objective, level, strength, s, steps or scale.steps, scale.kind, scale.width,  # type: ignore[arg-type]
                    scale.lr, scale.batch, latents, options, images,
                )
                for s in seeds
            ]  # fmt: skip
    return made


def finished(
    spec: Spec, data: FactorData, x: np.ndarray, store: Pieces, points: int, tick: Callable[..., None]
) -> Model:
    """A model, trained and measured."""
    from unbraid.systems.active_variables.zoo import measured, trained

    vae = trained(spec, x, store)
    tick(spec.steps)
    return measured(spec, vae, data, x, points)


def middle(models: Sequence[Model]) -> list[Model]:
    """The models of the middle strength of each objective but DIP-VAE I, which the paper leaves out."""
    top = max(m.spec.level for m in models)
    found = [m for m in models if m.spec.level == (top + 1) // 2]
    return [m for m in found if m.spec.objective != "dip_i"] or found


def learn(
    f: Findings, models: Sequence[Model], data: FactorData, x: np.ndarray, store: Pieces, learners: str, train: int,
    test: int, tick: Callable[..., None],
) -> None:  # fmt: skip
    """Downstream accuracies."""
    from unbraid.systems.active_variables.downstream import LEARNERS
    from unbraid.systems.active_variables.zoo import downstream

    names = LEARNERS if learners == "both" else LEARNERS[:1]
    for model in models:
        key = {**model.spec.key, "train": train, "test": test, "learners": names}
        rows = store.load("downstream", key)
        if rows is None:
            rows = downstream(model, data, x, train, test, names)
            store.save("downstream", key, rows)
        f.downstream += rows
        tick()


def try_discs(f: Findings, specs: Sequence[Spec], store: Pieces, points: int, tick: Callable[..., None]) -> None:
    """The checks of the sheet on discs."""
    from unbraid.data.worlds import make
    from unbraid.systems.active_variables.zoo import digest, downstream

    if not specs:
        return
    data = make("discs", 16, n=20_000)
    x = data.x
    for spec in (replace(s, images=digest(x)) for s in specs):
        model = finished(spec, data, x, store, points, tick)
        f.checks.append(model)
        f.check_rows += downstream(model, data, x, 10_000, 5_000)


def observe(f: Findings, specs: Sequence[Spec], x: np.ndarray, tick: Callable[..., None]) -> None:
    """Watch the training of the strongest model of the first objective and seed."""
    from unbraid.core.pieces import Pieces
    from unbraid.systems.active_variables.dynamics import Dynamics
    from unbraid.systems.active_variables.zoo import trained

    first = [s for s in specs if s.objective == specs[0].objective and s.seed == specs[0].seed]
    spec = first[-1]
    f.watched = Dynamics(x, every=max(1, spec.steps // MEASUREMENTS), warm=spec.steps // 4)
    f.watched_spec = spec
    trained(spec, x, Pieces(None), f.watched)
    tick(spec.steps)


def check(
    objectives: Sequence[str],
    levels: int,
    seeds: int,
    latents: int,
    points: int,
    train: int,
    test: int,
    checks: int,
    steps: int,
) -> None:
    """Refuse what cannot work, before any work.

    Raises:
        UnbraidError: an unknown objective, or a number beyond its bounds.
    """
    unknown = [o for o in objectives if o not in OBJECTIVES]
    if unknown or not objectives or len(set(objectives)) < len(objectives):
        what = f"there is no objective {unknown[0]!r}" if unknown else f"objectives are {list(objectives)}"
        raise UnbraidError(f"{what}; give different ones out of {', '.join(OBJECTIVES)}.")
    bounds = {
        "levels": (levels, 1, 4), "seeds": (seeds, 1, 100), "latents": (latents, 2, 1_000),
        "points": (points, 100, 10**7), "train": (train, 50, 10**7), "test": (test, 10, 10**7),
        "checks": (checks, 0, 100), "steps": (steps, 1, 10**8),
    }  # fmt: skip
    for name, (value, low, high) in bounds.items():
        if not low <= value <= high:
            raise UnbraidError(f"{name} is {value}; it must be {low} to {high}.")
