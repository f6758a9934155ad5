"""One search and what became of it on fresh seeds, next to what one would try instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unbraid.core.heads import HeadSet
from unbraid.core.pieces import Pieces
from unbraid.core.progress import Tick
from unbraid.systems.headhunter.evaluating import Evaluator, Painter
from unbraid.systems.headhunter.objectives import Score, diversity, scored
from unbraid.systems.headhunter.search import budget, draws, hunt, layers

NONE, LAYER, ALL, ONE, RANDOM, FEW, OURS = (
    "none", "best layer", "all heads", "one-shot", "random", "HeadHunter, few", "HeadHunter",
)  # fmt: skip
SWEEP = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
SHOWN = 8  # pictures of each method that are kept


@dataclass(frozen=True)
class Items:
    """Prompts and seeds, one each for a picture."""

    prompts: list[str]
    seeds: list[int]


@dataclass(frozen=True, eq=False)
class World:
    """A model and what is asked of it.

    Attributes:
        name: of the model.
        key: what pictures depend on.
        paint: strength u to a painter.
        heads: candidates.
        objectives: name -> function.
        others: further scores, reported always.
        items: (objective, repeat, purpose) to prompts and seeds; purpose is "search" or "fresh".
        model: the denoiser, where the study goes on to work with it.
    """

    name: str
    key: Any
    paint: Callable[[float], Painter]
    heads: HeadSet
    objectives: dict[str, Score]
    others: dict[str, Score]
    items: Callable[[str, int, str], Items]
    model: Any = None


@dataclass(frozen=True)
class Plan:
    """How much of it.

    Attributes:
        k: heads a round.
        rounds: of the search.
        strength: u of search and comparison.
        stop: end when nothing is gained.
        halving: stages.
        random: draws of random sets.
        batch: pictures at a time.
        sweep: strengths at which the heads that were found are tried.
    """

    k: int
    rounds: int
    strength: float
    stop: bool
    halving: int
    random: int
    batch: int
    sweep: tuple[float, ...] = SWEEP


@dataclass
class Found:
    """One search.

    Attributes:
        objective: its name.
        repeat: seed of the repeat.
        methods: method -> metric -> mean over fresh pictures; "sd" is the objective's without guidance.
        sweep: one row for each strength.
        heads: chosen heads.
        trace: of the search.
        single: site -> effect of each head alone, on the search's items.
        shown: method -> [n, C, H, W].
    """

    objective: str
    repeat: int
    methods: dict[str, dict[str, float]] = field(default_factory=dict)
    sweep: list[dict[str, float]] = field(default_factory=list)
    heads: list[list[Any]] = field(default_factory=list)
    trace: list[dict[str, Any]] = field(default_factory=list)
    single: dict[str, list[float | None]] = field(default_factory=dict)
    shown: dict[str, np.ndarray] = field(default_factory=dict)


def work(world: World, plan: Plan, name: str, repeat: int) -> int:
    """Pictures that `measure` asks for: the length of its bar."""
    search = len(world.items(name, repeat, "search").prompts)
    fresh = len(world.items(name, repeat, "fresh").prompts)
    chosen = budget(len(world.heads), search, plan.k, plan.rounds, plan.halving)
    return chosen + search * len(layers(world.heads)) + fresh * (6 + plan.random + len(plan.sweep))


def measure(world: World, plan: Plan, name: str, repeat: int, store: Pieces, tick: Tick) -> Found:
    """Search for one objective, then all methods on fresh seeds.

    Args:
        world: the model.
        plan: how much.
        name: of the objective.
        repeat: seed of noise, and of random sets.
        store: keeps finished scores.
        tick: told of pictures.
    """
    key = [world.key, name, repeat, vars(plan)]
    score, given = world.objectives[name], world.items(name, repeat, "search")
    paint = world.paint(plan.strength)
    judge = Evaluator(
        paint, given.prompts, given.seeds, {name: score}, store, [world.key, plan.strength], plan.batch, tick
    )
    n = len(given.prompts)
    found = hunt(judge, world.heads, n, plan.k, plan.rounds, stop=plan.stop, halving=plan.halving)
    per_layer = layers(world.heads)
    best = per_layer[int(np.argmax(judge(per_layer, range(n)).mean(1)))]
    assert found.single is not None
    count = max(1, len(found.heads))
    sets = {
        NONE: [HeadSet()], LAYER: [best], ALL: [world.heads], ONE: [found.single.top(count)],
        RANDOM: draws(world.heads, count, plan.random, repeat), FEW: [HeadSet(list(found.heads)[: len(best)])],
        OURS: [found.heads],
    }  # fmt: skip
    made = Found(name, repeat, heads=[list(h) for h in found.heads], trace=found.trace)
    made.single = {s: [None if np.isnan(x) else float(x) for x in v] for s, v in found.single.scores.items()}
    for method, some in sets.items():
        parts = [fresh(world, plan, name, repeat, one, plan.strength, store, tick) for one in some]
        made.methods[method] = {k: float(np.mean([p[0][k] for p in parts])) for k in parts[0][0]}
        made.shown[method] = parts[0][1]
    for u in plan.sweep:
        numbers, images = fresh(world, plan, name, repeat, found.heads, u, store, tick)
        made.sweep.append({"u": u, **numbers})
        made.shown[f"u = {u:g}"] = images
    store.save("search", key, {"heads": made.heads, "methods": made.methods})
    return made


def fresh(
    world: World, plan: Plan, name: str, repeat: int, heads: HeadSet, u: float, store: Pieces, tick: Tick
) -> tuple[dict[str, float], np.ndarray]:
    """Means of all metrics on fresh seeds, and some pictures."""
    given = world.items(name, repeat, "fresh")
    scores = {name: world.objectives[name], **world.others}
    u = 0.0 if not len(heads) else u
    key = {
        "world": world.key, "heads": sorted(heads), "u": u, "items": [given.prompts, given.seeds],
        "scores": list(scores),
    }  # fmt: skip
    numbers, arrays = store.load("fresh", key), store.load_arrays("shown", key)
    if numbers is None or arrays is None:
        images = painted(world.paint(u), heads, given, plan.batch, tick)
        each = {k: scored(k, f, images, given.prompts) for k, f in scores.items()}
        numbers = {k: float(v.mean()) for k, v in each.items()}
        numbers |= {"diversity": spread(images, given.prompts), "sd": float(each[name].std())}
        arrays = {"images": images[:SHOWN].astype(np.float32)}
        store.save("fresh", key, numbers)
        store.save_arrays("shown", key, arrays)
    else:
        tick(len(given.prompts))
    return numbers, arrays["images"]


def painted(paint: Painter, heads: HeadSet, given: Items, batch: int, tick: Tick) -> np.ndarray:
    """All pictures of one set of heads."""
    made = []
    for start in range(0, len(given.prompts), batch):
        part = slice(start, start + batch)
        prompts = given.prompts[part]
        made.append(paint([heads] * len(prompts), prompts, given.seeds[part]))
        tick(len(prompts))
    return np.concatenate(made)


def spread(images: np.ndarray, prompts: Sequence[str]) -> float:
    """Diversity among the pictures of each prompt, mean over prompts that have two or more."""
    groups = [[i for i, one in enumerate(prompts) if one == said] for said in dict.fromkeys(prompts)]
    found = [diversity(images[at]) for at in groups if len(at) > 1]
    return float(np.mean(found)) if found else diversity(images)


def table_of(single: dict[str, list[float | None]]) -> Any:
    """`HeadScores` of a search's single effects."""
    from unbraid.core.heads import HeadScores

    return HeadScores(single, "effect alone")
