"""The study behind `unbraid run disenbooth`: somebody's photos, or subjects and worlds whose truth is known."""

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

    from unbraid.core.pieces import Pieces
    from unbraid.core.result import Result
    from unbraid.systems.disenbooth.measuring import Case, Plan

MINIATURE = "miniature"
LORA, WORDS = "DreamBooth-LoRA", "Textual Inversion"
METHODS = ("DisenBooth", "weak 0", "weak 0.1", "contrast 0", "no mask", LORA, WORDS)
# of the miniature, what differs from the method's own settings; chosen on seeds from 100 on
SETTINGS: dict[str, dict[str, Any]] = {
    "DisenBooth": {},
    LORA: {"weak": None},
    "weak 0": {"weak": 0.0},
    "weak 0.1": {"weak": 0.1},
    "weak 1": {"weak": 1.0},
    "contrast 0": {"contrast": 0.0},
    "no mask": {"mask": False},
    "one background": {"shared": True},
}
# steps of the base model, of the tuning, and subjects of each base model
WORLD_SIZES = {"tiny": (60, 8, 1), "small": (3000, 600, 4), "paper": (3000, 1200, 8)}
STEPS = {"tiny": 4, "small": 400, "paper": 1000}
RATES = {"tiny": 1e-3, "small": 1e-3, "paper": 1e-4}  # small models need larger steps than the paper's 1e-4
SMALL = 50_000_000  # weights of a denoiser up to which a pipeline counts as small
COLOURS = ("white", "red", "blue", "green", "yellow", "purple", "grey", "black")
PLACES = {
    **{name: f"a {{}}, on a {name} background" for name in COLOURS},
    "night sky": "a {}, in the night sky", "snow": "a {}, in the snow", "beach": "a {}, at the beach",
    "meadow": "a {}, in a meadow",
}  # fmt: skip
EVERYDAY = (
    "a {} on the beach", "a {} in the snow", "a {} on a wooden table", "a {} in front of a brick wall",
    "an oil painting of a {}",
)  # fmt: skip


@dataclass(eq=False)
class Findings:
    """What a study measured.

    Attributes:
        worlds: rows of the miniature: setting, seed and step.
        rows: one per subject, method, seed and look.
        shown: (subject, method) -> pictures; "photos" too.
        curves: (subject, method) -> step and loss.
        looks: (subject, method) -> the automatic stop's.
        shares: errors by what the denoiser is told, per subject.
        scenes: subject -> what was asked for.
        alike: subject -> mean cosine between photos.
        read_back: pieces of an earlier run.
    """

    worlds: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    shown: dict[tuple[str, str], dict[str, np.ndarray]] = field(default_factory=dict)
    curves: dict[tuple[str, str], dict[str, list[Any]]] = field(default_factory=dict)
    looks: dict[tuple[str, str], list[dict[str, float]]] = field(default_factory=dict)
    shares: list[dict[str, Any]] = field(default_factory=list)
    scenes: dict[str, list[str]] = field(default_factory=dict)
    alike: dict[str, float] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    read_back: int = 0


def run(
    model: str = MINIATURE,
    images: Path | None = None,
    class_noun: str = "",
    encoder: str = "tiny-clip",
    methods: Sequence[str] = ("DisenBooth", LORA, WORDS),
    prompts: Sequence[str] = (),
    token: str = "sks",
    subjects: int = 3,
    backgrounds: Literal["two", "varied", "shared"] = "two",
    seeds: int = 3,
    size: Literal["tiny", "small", "paper"] | None = None,
    steps: int | None = None,
    batch: int = 1,
    lr: float | None = None,
    word_lr: float = 5e-3,
    rank: int = 4,
    modules: Sequence[str] = ("attention",),
    looks: int = 4,
    draws: int = 2,
    pixels: int | None = None,
    guidance: float = 7.0,
    sampler: int = 25,
    stop: bool = False,
    gradient_checkpointing: bool = False,
    precision: Literal["no", "bf16", "fp16"] = "no",
    device: str = "cpu",
    dtype: str = "float32",
    out: Path | None = None,
    keep: Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Result:
    """Learn a subject from a few photos apart from what else they show, next to DreamBooth-LoRA and Textual Inversion.

    For example, the claims on a world of vectors, new subjects of the scenes world, or photos of yours:

        unbraid run disenbooth --seeds 5 --out page

        unbraid run disenbooth --model tiny-sd --subjects 3 --out page --keep runs/disenbooth

        unbraid run disenbooth --images photos/dog --class-noun dog --model my/pipeline --encoder my/clip --out dog

    Args:
        model: miniature (a world of vectors, trained here), or a pipeline of the zoo, a folder or a hub id: Stable
            Diffusion 1.x, 2.x, XL, 3, 3.5 or FLUX.1.
        images: Folder with three to six photos of one subject; by default subjects of the scenes world.
        class_noun: What the subject is, such as dog; needed with images.
        encoder: CLIP model of images: of the zoo, a folder or a hub id; its embeddings should be as wide as the
            prompt's tokens (ViT-H for Stable Diffusion 2, ViT-L for 1).
        methods: Out of DisenBooth, weak 0, weak 0.1, contrast 0, no mask, DreamBooth-LoRA, Textual Inversion.
        prompts: New scenes, with {} where the subject stands, such as "a {} in the snow"; by default some of ours.
        token: Rare word that stands for the subject.
        subjects: How many of the scenes world.
        backgrounds: Of their photos: two, one each, or one for all, which shows what cannot be learnt from such.
        seeds: Repeats; of the miniature, base models.
        size: Length of training; tiny takes seconds, small suits the shipped pipelines, paper has the authors' numbers;
            by default what suits the model.
        steps: Of training; by default those of the size.
        batch: Photos per step.
        lr: Learning rate; by default 1e-4 as the authors have it, 1e-3 for small models.
        word_lr: Learning rate of Textual Inversion.
        rank: Of the adapters.
        modules: Which have adapters: attention (the paper's), cross_kv, cross_qkv, or names, such as to_q,to_v,net.2.
        looks: How often on the way pictures are judged.
        draws: Pictures per scene.
        pixels: Side of the pictures; by default the model's own.
        guidance: Classifier-free guidance scale.
        sampler: Steps of the sampler.
        stop: End DisenBooth's training once pictures are nearer to single photos than these are to one another.
        gradient_checkpointing: Less memory, more time.
        precision: Of the training: no, bf16 or fp16.
        device: Of the pipeline.
        dtype: Of its weights: float32, bfloat16 or float16.
        out: Folder for adapters, words and sample sheets.
        keep: Folder for finished pieces; a run that is started again with it goes on where it stopped.
        seed: First of the seeds; settings were chosen on seeds from 100 on.
        progress: Show progress on stderr; by default when that is a terminal.

    Returns:
        Pictures in new scenes, of photos without their subject and of others in their settings; identity against
        leakage at several steps, the paper's claims.
    """
    given, start = dict(locals()), time.perf_counter()
    check(given)
    from unbraid.core.pieces import Pieces
    from unbraid.systems.disenbooth.report import make_result

    f = Findings()
    if model == MINIATURE:
        store = Pieces(keep, {"study": 1})
        miniature(f, store, size or "small", steps, seeds, seed, progress)
    else:
        store = pipelines(f, given)
    f.read_back = store.read_back
    return make_result(f, given, time.perf_counter() - start)


def check(given: dict[str, Any]) -> None:
    """Refuses what cannot be run, before anything is.

    Raises:
        UnbraidError: which argument, and what is accepted.
    """
    unknown = [one for one in given["methods"] if one not in METHODS]
    if unknown or not given["methods"]:
        raise UnbraidError(f"methods are {list(given['methods'])}; give some of {', '.join(METHODS)}.")
    if not given["modules"]:
        raise UnbraidError("modules is empty; give attention or names of modules, such as to_q,to_v.")
    for name in ("subjects", "seeds", "batch", "rank", "looks", "draws", "sampler"):
        if given[name] < 1:
            raise UnbraidError(f"{name} is {given[name]}; it must be at least 1.")
    for name in ("steps", "lr", "word_lr"):
        if given[name] is not None and given[name] <= 0:
            raise UnbraidError(f"{name} is {given[name]}; it must be positive.")
    lost = [one for one in given["prompts"] if "{}" not in one]
    if lost:
        raise UnbraidError(f"the prompt {lost[0]!r} has no {{}} where the subject stands, as in 'a {{}} in the snow'.")
    if given["images"] is not None:
        if given["model"] == MINIATURE:
            raise UnbraidError("photos need a pipeline; give --model, such as tiny-sd or a folder or hub id of yours.")
        if not given["class_noun"].strip():
            raise UnbraidError("photos need --class-noun, what the subject is, such as dog.")


def miniature(
    f: Findings, store: Pieces, size: str, steps: int | None, seeds: int, seed: int, progress: bool | None
) -> None:
    """All settings on the world of vectors."""
    from unbraid.core.progress import bar
    from unbraid.systems.disenbooth.miniature import Settings, make_world, measure

    base, length, count = WORLD_SIZES[size]
    length = steps or length
    at = sorted({max(1, round(length * share)) for share in (0.125, 0.25, 0.5, 0.75, 1.0)})
    with bar(progress, "Vectors", seeds * (len(SETTINGS) + 1)) as tick:
        for number in range(seed, seed + seeds):
            common = {"seed": number, "steps": length, "base": base, "at": at}
            keys = {name: {**common, "setting": name, **changed} for name, changed in SETTINGS.items()}
            found = {name: store.load("world", keys[name]) for name in SETTINGS}
            world = None if all(rows is not None for rows in found.values()) else make_world(number, base)
            tick()
            for name, changed in SETTINGS.items():
                rows = found[name]
                if rows is None:
                    assert world is not None
                    settings = Settings(steps=length, **changed)
                    judge = partial(measure, world, settings, at=at)
                    rows = [{"subject": k, **row} for k in range(count) for row in judge(seed=number * 1000 + k)]
                    store.save("world", keys[name], rows)
                f.worlds += [{"setting": name, "seed": number, **row} for row in rows]
                tick()


def pipelines(f: Findings, given: dict[str, Any]) -> Pieces:
    """All methods on each subject, with each seed."""
    from unbraid.core.pieces import Pieces
    from unbraid.core.progress import bar
    from unbraid.diffusion import Parts, open_pipeline
    from unbraid.diffusion.clip import ImageText
    from unbraid.systems.disenbooth.stopping import between

    pipe = open_pipeline(given["model"], given["device"], given["dtype"])
    eye = ImageText.open(given["encoder"], given["device"])
    parts = Parts.of(pipe)
    plan = make_plan(given, sum(p.numel() for p in parts.denoiser.parameters()))
    cases = make_cases(given, parts)
    store = Pieces(given["keep"], {"study": 1, "model": given["model"], "encoder": given["encoder"]})
    seeds = range(given["seed"], given["seed"] + given["seeds"])
    with bar(given["progress"], "Tuning", len(cases) * len(seeds) * len(given["methods"])) as tick:
        for name, case in cases.items():
            f.scenes[name] = list(case.scenes)
            f.alike[name] = between(eye, case.squares)[0]
            f.shown[name, "photos"] = {"photos": case.squares.numpy()}
            for number in seeds:
                for method in given["methods"]:
                    piece(f, store, pipe, eye, name, case, method, plan, number, given)
                    tick()
    return store


def piece(
    f: Findings, store: Pieces, pipe: Any, eye: Any, name: str, case: Case, method: str, plan: Plan, seed: int,
    given: dict[str, Any],
) -> None:  # fmt: skip
    """One training, new or read back; the first seed's files are written to the folder of the run."""
    from unbraid.systems.disenbooth.measuring import learn, shares

    first = seed == given["seed"]
    folder = given["out"] / method.replace(" ", "-").lower() if given["out"] is not None and first else None
    if folder is not None and given["images"] is None:
        folder = folder / name.replace(" ", "-")
    key = {
        "subject": name, "photos": [case.album.names, float(case.squares.double().sum())], "scenes": list(case.scenes),
        "noun": case.noun, "token": case.token, "method": method, "seed": seed, "plan": vars(plan),
    }  # fmt: skip
    data, pictures = store.load("row", key), store.load_arrays("pictures", key)
    if data is None or pictures is None or (folder is not None and not folder.is_dir()):
        checkpoints = None if given["keep"] is None else store.path("run", key, "")
        found = learn(pipe, eye, case, method, plan, seed, checkpoints)
        if folder is not None and found.write is not None:
            found.write(folder)
        if data is None or pictures is None:  # else it was only opened again for its files
            data = {"rows": found.rows, "history": found.history, "looks": found.looks, "shares": []}
            if found.system is not None and first:
                data["shares"] = shares(pipe, eye, case, found.system)
            pictures = found.pictures
            store.save_arrays("pictures", key, pictures)
            store.save("row", key, data)
    if folder is not None:
        f.files.append(folder.relative_to(given["out"]).as_posix())
    f.rows += [{"subject": name, "method": method, "seed": seed, **row} for row in data["rows"]]
    if first:
        f.shown[name, method], f.curves[name, method] = pictures, data["history"]
        f.looks[name, method] = data["looks"]
        if method == "DisenBooth":
            f.shares += [{"subject": name, **row} for row in data["shares"]]


def make_plan(given: dict[str, Any], weights: int) -> Plan:
    """Of training and judging; small models take other numbers than those the method was made for."""
    from unbraid.systems.disenbooth.measuring import Plan

    size = given["size"] or ("small" if weights <= SMALL else "paper")
    names = (
        "looks", "draws", "batch", "word_lr", "rank", "sampler", "guidance", "stop", "gradient_checkpointing",
        "precision",
    )  # fmt: skip
    which = given["modules"][0] if len(given["modules"]) == 1 else tuple(given["modules"])
    return Plan(
        steps=given["steps"] or STEPS[size], lr=given["lr"] or RATES[size], which=which,
        **{name: given[name] for name in names},
    )  # fmt: skip


def make_cases(given: dict[str, Any], parts: Any) -> dict[str, Case]:
    """The user's photos, or subjects of the scenes world with prompts for backgrounds that their photos do not show."""
    import torch

    from unbraid.data import scenes
    from unbraid.diffusion.photos import Album
    from unbraid.systems.disenbooth.measuring import Case

    side = given["pixels"] or parts.size
    if given["images"] is not None:
        album = Album.read(given["images"], side)
        asked = list(given["prompts"]) or list(EVERYDAY)
        return {given["class_noun"]: Case(album, given["class_noun"], asked, token=given["token"])}
    cases = {}
    for k in range(given["subjects"]):
        number = given["seed"] + k
        mine = scenes.photos(number, n=4, backgrounds=given["backgrounds"], size=side)
        shown = [scene.background.name for scene in mine.scenes]
        asked = [name for name in PLACES if name not in shown and name not in scenes.subject(number).colours][:6]
        album = Album.of(torch.from_numpy(mine.images))
        cases[f"subject {number}"] = Case(
            album, mine.nouns[0], [PLACES[name] for name in asked], number, asked, shown, given["token"]
        )
    return cases
