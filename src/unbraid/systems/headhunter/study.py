"""The study behind `unbraid run headhunter`: search, and what became of it on fresh seeds next to other choices."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unbraid.core.errors import UnbraidError

if TYPE_CHECKING:
    from unbraid.core.pieces import Pieces
    from unbraid.core.result import Result
    from unbraid.systems.headhunter.atlas import Atlas
    from unbraid.systems.headhunter.measuring import Found, Plan, World

STRIPES = "stripes"
# pictures a set in search and report, draws of random sets, steps of the stripes' training
SIZES = {"tiny": (4, 8, 1, 40), "small": (64, 256, 5, 450), "medium": (64, 256, 5, 450), "paper": (64, 256, 5, 450)}
# pictures a set in search and report, random draws, k, rounds, steps of the sampler
PIPES = {"tiny": (2, 4, 1, 1, 1, 2), "small": (8, 32, 3, 3, 2, 10), "medium": (8, 64, 5, 3, 5, 20),
         "paper": (20, 50, 5, 3, 5, 20)}  # fmt: skip


@dataclass(eq=False)
class Findings:
    """What a study measured.

    Attributes:
        model: its name.
        found: one a repeat and objective.
        planted: rows of the planted heads' ranking.
        atlas: effects and pictures of each head, where asked for.
        recipes: files written, objective to name.
        read_back: pieces of an earlier run.
    """

    model: str
    found: list[Found] = field(default_factory=list)
    planted: list[dict[str, Any]] = field(default_factory=list)
    atlas: Atlas | None = None
    recipes: dict[str, str] = field(default_factory=dict)
    read_back: int = 0


def run(
    model: str = STRIPES,
    objectives: Sequence[str] = (),
    prompts: Sequence[str] = (),
    unseen: Sequence[str] = (),
    seeds: int = 2,
    size: Literal["tiny", "small", "medium", "paper"] = "small",
    k: int | None = None,
    rounds: int | None = None,
    strength: float | None = None,
    weight: float | None = None,
    kind: Literal["identity", "uniform", "query_mean", "argmax", "temperature"] = "identity",
    scope: Literal["joint", "image", "text"] = "joint",
    sites: Sequence[str] = ("*",),
    search: int | None = None,
    fresh: int | None = None,
    stop: bool = False,
    halving: int = 1,
    steps: int | None = None,
    pixels: int | None = None,
    guidance: float = 0.0,
    batch: int = 16,
    atlas: bool = True,
    device: str = "cpu",
    dtype: str = "float32",
    out: Path | None = None,
    keep: Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Result:
    """Search for heads that steer an objective, and compare with the best layer, random and one-shot sets.

    For example, the claims on a small world that is trained here, or a style on a pipeline of yours:

        unbraid run headhunter --seeds 5 --out page

        unbraid run headhunter --model tiny-sd --objectives style:sketch --out page --keep runs/sketch

        unbraid run headhunter --model my/pipeline --objectives clip --prompts "ink, a cat","ink, a boat" --out page

    Args:
        model: stripes (an SD3 transformer of 8 x 8 pictures, trained here), a pipeline of the zoo, a folder or a hub
            id: Stable Diffusion 1.x, 2.x, XL, 3, 3.5 or FLUX.1.
        objectives: What to steer to. Pipelines: contrast, saturation, brightness, detail, clip, clip:MODEL and, where
            pictures are scenes, style:sketch, colour:red, shape:star, background:blue, prompt, content, clarity;
            stripes: correlation, contrast, quality.
        prompts: What is painted in the search; by default sentences of the scenes world.
        unseen: What is painted for the report; by default other sentences, or the prompts with other seeds.
        seeds: Repeats: searches with other noise (stripes: other models).
        size: How many pictures, rounds and steps; tiny takes seconds, paper has the paper's numbers.
        k: Heads added a round.
        rounds: Of the search.
        strength: Of the damage while searching, 0 to 1; by default 1, stripes 0.5.
        weight: Of the guidance; by default 3, stripes 1.
        kind: Of damage.
        scope: Of joint attention; with identity, joint is the paper's and image is what diffusers has for SD3.
        sites: Globs on names of attention modules whose heads may be chosen.
        search: Pictures a candidate in the search.
        fresh: Pictures a method in the report.
        stop: End a search when a round gains nothing.
        halving: Stages of successive halving over the prompts.
        steps: Of the sampler; for stripes, of training.
        pixels: Side of the pictures; by default the model's own.
        guidance: Classifier-free guidance scale; 0 for none, as the paper searches.
        batch: Pictures at a time; each takes two rows of the denoiser.
        atlas: Also write atlas.html: what each head alone does, with pictures, sortable (needs --out).
        device: Of a pipeline.
        dtype: Of a pipeline's weights: float32, bfloat16 or float16.
        out: Folder for the recipes (JSON that other programs load) and the atlas.
        keep: Folder for finished scores; a run that is started again with it goes on where it stopped.
        seed: First of the seeds; settings were chosen on seeds from 100 on.
        progress: Show progress on stderr; by default when that is a terminal.

    Returns:
        Scores of all methods on fresh seeds, strength curves, the paper's claims, and pictures.
    """
    given, start = dict(locals()), time.perf_counter()
    check(given)
    from unbraid.core.pieces import Pieces
    from unbraid.core.progress import bar
    from unbraid.systems.headhunter.measuring import measure, work
    from unbraid.systems.headhunter.report import make_result

    pipe = None
    if model != STRIPES:
        from unbraid.diffusion import open_pipeline

        pipe = open_pipeline(model, device, dtype)
    plan, store, f = planned(given), Pieces(keep, {"headhunter": 1}), Findings(model)
    names = list(objectives) or (["correlation", "contrast", "quality"] if pipe is None else ["contrast"])
    worlds: dict[int, World] = {}
    for number in range(seed, seed + seeds):
        if pipe is None or not worlds:
            worlds[number] = world_of(pipe, given, names, number)
        world = worlds.get(number, next(iter(worlds.values())))
        total = sum(work(world, plan, name, number) for name in names)
        with bar(progress, f"Seed {number}", total + (pipe is None)) as tick:
            f.found += [measure(world, plan, name, number, store, tick) for name in names]
            if pipe is None:
                f.planted.append(planted(world, given, number, store))
                tick()
    first = next(iter(worlds.values()))
    if out is not None:
        finish(f, first, plan, given, store, out)
    f.read_back = store.read_back
    return make_result(f, given, plan, time.perf_counter() - start)


def check(given: dict[str, Any]) -> None:
    """Raises on what cannot work, before anything is loaded or trained."""
    for name in ("seeds", "batch", "halving", "k", "rounds", "search", "fresh", "steps"):
        value = given[name]
        if value is not None and value < 1:
            raise UnbraidError(f"{name} is {value}; it must be at least 1.")
    u, w = given["strength"], given["weight"]
    if u is not None and not 0 < u <= 1:
        raise UnbraidError(f"strength is {u}; give a number above 0, which is no damage, up to 1.")
    if w is not None and not 0 < abs(w) < 1e6:
        raise UnbraidError(f"weight is {w}; give a number other than 0, which is no guidance.")
    known = ("correlation", "contrast", "quality")
    if given["model"] == STRIPES:
        wrong = [name for name in given["objectives"] if name not in known]
        if wrong:
            raise UnbraidError(
                f"the stripes know the objectives {', '.join(known)}, not {wrong[0]!r}; for others give a pipeline "
                "with --model."
            )
        if given["prompts"] or given["unseen"]:
            raise UnbraidError("the stripes take no prompts; give a pipeline with --model.")
        if given["kind"] != "identity" or given["scope"] != "joint" or list(given["sites"]) != ["*"]:
            raise UnbraidError("the stripes are searched with kind identity, scope joint and all sites.")
        return
    from unbraid.systems.headhunter.evaluating import check_prompts
    from unbraid.systems.headhunter.objectives import objective

    for name in given["objectives"]:
        if not name.startswith("clip"):
            objective(name)
    for prompts in (given["prompts"], given["unseen"]):
        if prompts:
            check_prompts(list(prompts), range(len(prompts)))
    if given["unseen"] and not given["prompts"]:
        raise UnbraidError("unseen prompts are given without prompts to search with; give --prompts too.")


def weight_of(given: dict[str, Any]) -> float:
    """The weight of guidance that was asked for."""
    return float(given["weight"] or (1.0 if given["model"] == STRIPES else 3.0))


def planned(given: dict[str, Any]) -> Plan:
    """How much the size asks for, with what was given in its place."""
    from unbraid.systems.headhunter.measuring import Plan

    if given["model"] == STRIPES:
        k, rounds, u, draws = 2, 3 if given["size"] != "tiny" else 1, 0.5, SIZES[given["size"]][2]
        batch = 256
    else:
        _, _, draws, k, rounds, _ = PIPES[given["size"]]
        u, batch = 1.0, given["batch"]
    more = {"sweep": (0.0, 0.5, 1.0)} if given["size"] == "tiny" else {}
    return Plan(
        given["k"] or k, given["rounds"] or rounds, given["strength"] or u, given["stop"], given["halving"], draws,
        batch, **more,
    )  # fmt: skip


def world_of(pipe: Any, given: dict[str, Any], names: Sequence[str], number: int) -> World:
    """The world of a repeat."""
    from unbraid.systems.headhunter import worlds

    if pipe is None:
        search, fresh, _, steps = SIZES[given["size"]]
        return worlds.stripes(
            number, given["steps"] or steps, weight_of(given), given["search"] or search,
            given["fresh"] or fresh, given["keep"], given["progress"],
        )  # fmt: skip
    search, fresh, _, _, _, steps = PIPES[given["size"]]
    settings = {
        "kind": given["kind"], "scope": given["scope"], "sites": list(given["sites"]),
        "steps": given["steps"] or steps, "size": given["pixels"], "guidance": given["guidance"],
    }  # fmt: skip
    return worlds.pipeline(
        pipe, given["model"], names, given["prompts"], given["unseen"], given["search"] or search,
        given["fresh"] or fresh, weight_of(given), settings,
    )  # fmt: skip


def planted(world: World, given: dict[str, Any], number: int, store: Pieces) -> dict[str, Any]:
    """All heads but three are cut off: does the ranking return these?"""
    from unbraid.systems.headhunter import stripes
    from unbraid.systems.headhunter.search import draws, hunt

    def make() -> dict[str, Any]:
        model = copy.deepcopy(world.model)
        three = draws(world.heads, 3, 1, number)[0]
        stripes.plant(model, three)
        seeds = list(range(given["search"] or 16))
        found = hunt(stripes.change(model, seeds), world.heads, len(seeds), 3, 1)
        assert found.single is not None
        effects = dict(found.single.ranked())
        idle = [effects[h] for h in effects if h not in three]
        return {
            "seed": number, "planted": " ".join(f"{s}:{h}" for s, h in three), "first": len(found.heads & three),
            "least of the planted": min(effects[h] for h in three), "most of the others": max(idle),
        }  # fmt: skip

    key = [number, given["steps"], given["size"], given["search"]]
    made: dict[str, Any] = store.get("planted", key, make)
    return made


def finish(f: Findings, world: World, plan: Plan, given: dict[str, Any], store: Pieces, out: Path) -> None:
    """Recipes and the atlas, into the folder of the page."""
    from unbraid.systems.headhunter.atlas import make_atlas, write_atlas
    from unbraid.systems.headhunter.recipe import Recipe

    for found in f.found:
        name = f"heads-{found.objective.replace(':', '-').replace('/', '-')}-{found.repeat}.json"
        model = world.key[0] if isinstance(world.key[0], dict) else {"class": "stripes", "seed": str(found.repeat)}
        measured = {f"{method}: {k}": v for method, row in found.methods.items() for k, v in row.items()}
        recipe = Recipe(
            tuple((s, int(h)) for s, h in found.heads), plan.strength, weight_of(given), given["kind"],
            given["scope"], found.objective, model, tuple(found.trace), measured,
        )  # fmt: skip
        recipe.save(out / name)
        f.recipes[f"{found.objective}, seed {found.repeat}"] = name
    if given["atlas"]:
        f.atlas = make_atlas(world, plan, f.found[0], store, given["progress"])
        write_atlas(f.atlas, out / "atlas.html")
