"""What can be searched: the stripes, trained here, and any pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unbraid.core.errors import UnbraidError
from unbraid.systems.headhunter.evaluating import Painter, check_prompts, named, painter
from unbraid.systems.headhunter.guiding import candidates
from unbraid.systems.headhunter.measuring import Items, World
from unbraid.systems.headhunter.objectives import Score, objective

FRESH = 1_000_000  # seeds of fresh pictures begin here, those of the next repeat so many later
REPEAT = 10_000


def stripes(
    seed: int, steps: int, weight: float, search: int, fresh: int, keep: Path | None, progress: bool | None = False
) -> World:
    """The stripes' world of one seed: a model of its own."""
    from unbraid.systems.headhunter import stripes as toy

    model = toy.load_or_train(keep, seed, steps, progress)

    def items(name: str, repeat: int, purpose: str) -> Items:
        first, n = (FRESH, fresh) if purpose == "fresh" else (0, search)
        return Items(["stripes"] * n, list(range(first, first + n)))

    def paint(u: float) -> Painter:
        return toy.painter(model, u, weight)

    key = ["stripes", seed, steps, weight]
    others: dict[str, Score] = {"quality": toy.quality, "contrast": toy.contrast}
    return World("stripes", key, paint, candidates(model), dict(toy.OBJECTIVES), others, items, model)


def pipeline(
    pipe: Any, name: str, objectives: Sequence[str], prompts: Sequence[str], unseen: Sequence[str], search: int,
    fresh: int, weight: float, settings: dict[str, Any],
) -> World:  # fmt: skip
    """A pipeline's world: prompts in turn, each time with a seed of its own.

    Args:
        pipe: the pipeline.
        name: how it is called.
        objectives: by name.
        prompts: to search with; empty: of the scenes world, those that name the style where a style is wanted.
        unseen: to report on; empty: other ones of the scenes world, or the same where prompts were given.
        search: pictures a set in the search.
        fresh: pictures a set in the report.
        weight: w.
        settings: kind, scope, sites, steps, size, guidance.
    """
    more = {k: settings[k] for k in ("kind", "scope")}
    plain = {k: settings[k] for k in ("steps", "size", "guidance")}
    functions = dict(objective(one) for one in objectives)
    found: dict[str, tuple[list[str], list[str]]] = {}
    for one in functions:
        found[one] = (list(prompts), list(unseen or prompts)) if prompts else asked(one)
        for said in found[one]:
            check_prompts(said, range(len(said)))

    def items(name: str, repeat: int, purpose: str) -> Items:
        said = found[name][purpose == "fresh"]
        first, n = (FRESH, fresh) if purpose == "fresh" else (0, search)
        seeds = range(first + REPEAT * repeat, first + REPEAT * repeat + n)
        return Items([said[i % len(said)] for i in range(n)], list(seeds))

    def paint(u: float) -> Painter:
        return painter(pipe, u, weight, more=more, **plain)

    every = [said for pair in found.values() for part in pair for said in part]
    heads = candidates(pipe, settings["sites"], settings["kind"])
    return World(name, [named(pipe), weight, more, plain], paint, heads, functions, second(every), items)


def second(prompts: Sequence[str]) -> dict[str, Any]:
    """What is always reported next to an objective: the oracle's reading where it knows the prompts, and pixels."""
    from unbraid.data.scenes import parse

    names = ["contrast", "saturation"]
    try:
        for said in dict.fromkeys(prompts):
            parse(said)
        names = ["content", "clarity", *names]
    except UnbraidError:
        pass
    return dict(objective(one) for one in names)


def asked(name: str) -> tuple[list[str], list[str]]:
    """Prompts of the scenes world for a search and for its report: never the same."""
    from unbraid.data import scenes

    what, _, wanted = name.partition(":")
    said = scenes.prompts("single")
    if what == "style":
        every = [(one, scenes.parse(one).style or "flat") for one in scenes.prompts("style")]
        said = [one for one, of in every if of == wanted]
    return said[::2], said[1::2]
