"""What the oracle reads in samples of a packed pipeline, next to what it reads in the scenes themselves.

Guidance and steps are chosen on seeds from 100; what is reported has seeds from 0.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.core.progress import bar
from unbraid.data.scenes import LISTS, SIZES, Choice, accuracy, caption, listed, prompts, read, render, sample, score
from unbraid.data.scenes.judging import wilson
from unbraid.zoo.reference import NAMES, SIDE
from unbraid.zoo.reference.packing import fingerprint
from unbraid.zoo.reference.sampling import opened, pictures, rebuilt

GUIDANCES, STEPS, USUAL = (2.0, 3.5, 5.0, 7.5), (10, 25, 50), 25
FIRST_CHOICE = 100  # seeds from here choose
SHEET = 16  # pictures that are timed
CHOICE = "Choice of guidance and steps, on other seeds"
WHATS = {  # what is asked of which list of captions
    "single": ("shape", "colour", "shape and colour", "background", "count"),
    "two": ("both things", "relation", "background", "count", "all"),
    "style": ("shape and colour", "style", "background"),
    "place": ("shape and colour", "background"),
    "held_out": ("shape", "colour", "shape and colour", "background", "count"),
}
BARS = {  # of issue 5
    ("single", "shape and colour"): 0.9,
    ("single", "background"): 0.9,
    ("held_out", "shape and colour"): 0.9,
    ("held_out", "background"): 0.9,
    ("two", "both things"): 0.7,
}


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Args:
        each: captions of each list; None: all.
        seeds: pictures of each caption.
        guidances: tried, with the usual number of steps.
        steps: tried, with the best guidance.
        choosing: captions of either list that choice is made on.
        ceiling: scenes of each size that the autoencoder is judged on.
    """

    each: int | None
    seeds: int
    guidances: Sequence[float]
    steps: Sequence[int]
    choosing: int
    ceiling: int


PLANS = {
    "tiny": Plan(2, 1, (3.0,), (2,), 2, 8),
    "small": Plan(16, 1, (3.5,), (25,), 8, 100),
    "medium": Plan(64, 1, (3.5, 5.0), (25,), 16, 200),
    "full": Plan(None, 3, GUIDANCES, STEPS, 24, 500),
}


def judged(images: np.ndarray, said: Sequence[str]) -> dict[str, list[bool]]:
    """What is right in each image: attributes, and those of a thing or of both together.

    Args:
        images: [n, 3, H, W] from 0 to 1.
        said: their captions.
    """
    made: dict[str, list[bool]] = {}
    for image, words in zip(images, said, strict=True):
        row = {name: bool(right[0]) for name, right in score(image[None], words).items()}
        whole = [row.get(f"{name} {k}", True) for k in (1, 2) for name in ("shape", "colour")]
        row |= {"shape": whole[0], "colour": whole[1], "shape and colour": all(whole[:2]), "both things": all(whole)}
        for name, right in row.items():
            made.setdefault(name, []).append(right)
    return made


def chosen(pipe: Any, plan: Plan, progress: bool | None = None) -> tuple[float, int, list[dict[str, Any]]]:
    """Guidance and steps with most captions right altogether, on seeds that nothing is reported of.

    Args:
        pipe: a pipeline.
        plan: what is tried.
        progress: show a bar.

    Returns:
        Guidance, steps, and a row for each pair tried.
    """
    said = [*prompts("single", plan.choosing), *prompts("two", plan.choosing)]
    seeds = range(FIRST_CHOICE, FIRST_CHOICE + len(said))
    rows: list[dict[str, Any]] = []
    usual = USUAL if USUAL in plan.steps else plan.steps[0]
    tries = len(plan.guidances) + len(plan.steps) - 1
    with bar(progress, "Choosing", tries * len(said)) as tick:

        def tried(guidance: float, steps: int) -> None:
            found = judged(pictures(pipe, said, seeds, steps, guidance, tick=tick), said)
            row = {"guidance": guidance, "steps": steps, "samples": len(said)}
            rows.append(row | {name: float(np.mean(found[name])) for name in ("both things", "background", "all")})

        for guidance in plan.guidances:
            tried(guidance, usual)
        best = max(rows, key=lambda row: row["all"])["guidance"]
        for steps in plan.steps:
            if steps != usual:
                tried(best, steps)
    return *best_of(rows), rows


def best_of(rows: Sequence[dict[str, Any]]) -> tuple[float, int]:
    """Guidance and steps of the row with most captions right altogether; of equal ones that with fewer steps.

    Args:
        rows: as `chosen` makes them.
    """
    top = max(rows, key=lambda row: (row["all"], -row["steps"]))
    return top["guidance"], top["steps"]


def score_pipeline(folder: Path, plan: Plan, progress: bool | None = None) -> dict[str, list[dict[str, Any]]]:
    """Tables of a text-to-image pipeline.

    Args:
        folder: the packed pipeline.
        plan: how much.
        progress: show bars.

    Returns:
        Title -> rows; shares are parts of one.
    """
    pipe = opened(folder)
    guidance, steps, choice = chosen(pipe, plan, progress)
    rows = []
    asked = {kind: _captions(kind, plan) for kind in LISTS}
    total = plan.seeds * sum(len(said) for said, _ in asked.values())
    with bar(progress, "Samples", total) as tick:
        for kind, (said, scenes) in asked.items():
            many = [words for words in said for _ in range(plan.seeds)]
            seeds = [10_000 * k + seed for k in range(len(said)) for seed in range(plan.seeds)]
            drawn = render(scenes, SIDE)
            found = judged(pictures(pipe, many, seeds, steps, guidance, tick=tick), many)
            rows += _rows(kind, found, judged(rebuilt(pipe.vae, drawn), said), judged(drawn, said))
    settings = f"guidance {guidance:g}, {steps} steps, {plan.seeds} seeds a caption"
    return {
        f"What the oracle reads ({settings}; low and high: 95 % interval)": rows,
        CHOICE: choice,
        "The autoencoder alone": autoencoder(pipe.vae, plan.ceiling),
        f"Time of {SHEET} pictures": [timed(pipe, steps, guidance)],
    }


def _captions(kind: str, plan: Plan) -> tuple[list[str], list[Any]]:
    """Captions of a list and, of each, the scene that it was made of."""
    scenes = {caption(scene): scene for scene in reversed(listed(kind, 0))}
    said = prompts(kind, plan.each)
    return said, [scenes[words] for words in said]


def _rows(kind: str, *found: dict[str, list[bool]]) -> list[dict[str, Any]]:
    """A row for each thing asked of a list: the samples, then the scenes rebuilt and as drawn."""
    made, back, drawn = found
    rows = []
    for what in WHATS[kind]:
        low, high = wilson(sum(made[what]), len(made[what]))
        least = BARS.get((kind, what))
        share = float(np.mean(made[what]))
        row = {"captions": kind.replace("_", " "), "right": what, "samples": len(made[what]), "share": share}
        row |= {"low": low, "high": high, "bar": least, "met": None if least is None else share >= least}
        ceilings = {"autoencoder": float(np.mean(back[what])), "drawn": float(np.mean(drawn[what]))}
        rows.append(row | ceilings)
    return rows


def autoencoder(vae: Any, count: int) -> list[dict[str, Any]]:
    """What is lost from image to latents and back, for one thing of each size.

    Args:
        vae: the autoencoder.
        count: scenes of each size, of the split "held_out".
    """
    rows = []
    for size in SIZES:
        scenes = sample(count, 7_000, (1, 1), "held_out", Choice(sizes=(size,)))
        drawn = render(scenes, SIDE)
        back = rebuilt(vae, drawn)
        error = float(np.abs(back - drawn).mean())
        noise = float(-10 * np.log10(np.square(back - drawn).mean((1, 2, 3)) + 1e-12).mean())
        row: dict[str, Any] = {"size": size, "scenes": count, "mean error": error, "PSNR": noise}
        shares, truth = accuracy(read(back), scenes), accuracy(read(drawn), scenes)
        for name in ("shape", "colour", "texture", "background", "style"):
            row |= {name: shares[name], f"{name}, drawn": truth[name]}
        rows.append(row)
    return rows


def timed(pipe: Any, steps: int, guidance: float, repeat: int = 3) -> dict[str, Any]:
    """Seconds of a batch of pictures with guidance: wall and processor time, the median of some."""
    import torch

    said = prompts("two", SHEET)
    walls, works = [], []
    for _ in range(repeat):
        wall, work = time.perf_counter(), time.process_time()
        pictures(pipe, said, range(SHEET), steps, guidance, SHEET)
        walls.append(time.perf_counter() - wall)
        works.append(time.process_time() - work)
    row = {"pictures": SHEET, "steps": steps, "threads": torch.get_num_threads()}
    return row | {"seconds": float(np.median(walls)), "processor": float(np.median(works)), "bar": 30}


def score_to_file(
    name: str, model: Path | None = None, size: str = "full", out: Path | None = None, progress: bool | None = None
) -> dict[str, Any]:
    """Scores one model and writes them among those of the others.

    Args:
        name: one of `NAMES`.
        model: folder of the packed model; None: the shipped one.
        size: one of `PLANS`.
        out: JSON file that keeps the scores of all; beside it lies the same for people. None: none is written.
        progress: show bars.

    Returns:
        What was written of this model.

    Raises:
        UnbraidError: no such name, size or folder.
    """
    from unbraid.core.provenance import provenance
    from unbraid.zoo.fetching import fetch
    from unbraid.zoo.reference.retrieval import score_clip

    if name not in NAMES:
        raise UnbraidError(f"there is no reference model {name!r}; give one of {', '.join(NAMES)}.")
    if size not in PLANS:
        raise UnbraidError(f"size is {size!r}; give one of {', '.join(PLANS)}.")
    folder = fetch(name) if model is None else Path(model)
    if not (folder / ("config.json" if name == "tiny-clip" else "model_index.json")).is_file():
        raise UnbraidError(f"{folder} holds no packed {name}; give the folder that `pack {name}` printed.")
    job = score_clip if name == "tiny-clip" else score_pipeline
    tables = job(folder, PLANS[size], progress)
    command = f"python -m unbraid.zoo.reference score {name}" + ("" if size == "full" else f" --size {size}")
    found = {"weights": fingerprint(folder), "command": command, "tables": tables, "provenance": provenance()}
    if out is not None:
        write(out, name, found)
    return found


def write(out: Path, name: str, found: dict[str, Any]) -> None:
    """Puts the scores of one model among the others and shows all as Markdown."""
    from unbraid.zoo.reference.card import table

    told = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {"models": {}}
    told["models"][name] = found
    parts = ["# Reference pipelines\n"]
    for other in (one for one in NAMES if one in told["models"]):
        mine = told["models"][other]
        parts += [f"## {other}\n", f"`{mine['command']}`\n"]
        for title, rows in mine["tables"].items():
            parts += [f"{title}:\n", "\n".join(table(rows)) + "\n"]
    out.parent.mkdir(parents=True, exist_ok=True)
    for path, text in ((out, json.dumps(told, indent=1) + "\n"), (out.with_suffix(".md"), "\n".join(parts))):
        unfinished = path.with_name(f".{path.name}.tmp")
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
