"""Ways to learn a subject, trained alike and judged alike, at several steps of the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unbraid.core.pieces import Pieces
from unbraid.diffusion.adapters import lora_weights, save_lora
from unbraid.diffusion.clip import ImageText
from unbraid.diffusion.painting import paint
from unbraid.diffusion.parts import Parts
from unbraid.diffusion.photos import Album
from unbraid.diffusion.subjects import dreambooth, textual_inversion
from unbraid.diffusion.tuning import Tuner, held
from unbraid.systems.disenbooth.branch import disen_embeds
from unbraid.systems.disenbooth.system import DisenBooth

# of DisenBooth itself, what differs from its own settings
VARIANTS: dict[str, dict[str, Any]] = {
    "DisenBooth": {},
    "weak 0": {"weak": 0.0},
    "weak 0.1": {"weak": 0.1},
    "contrast 0": {"contrast": 0.0},
    "no mask": {"mask": False},
}
LORA, WORDS = "DreamBooth-LoRA", "Textual Inversion"
METHODS = (*VARIANTS, LORA, WORDS)
KNOWN = 0.5  # identity from which on a subject counts as seen, see unbraid.data.scenes
Row = dict[str, Any]


@dataclass(eq=False)
class Case:
    """One subject.

    Attributes:
        album: its photos.
        noun: of its class.
        scenes: prompts with {} where the subject stands, such as "a {}, on a red background".
        subject: its number in the scenes world, or None for somebody's photos.
        asked: the background of each prompt, where the oracle can tell.
        shown: backgrounds of the photos, one each, where it can.
        token: stands for the subject.
    """

    album: Album
    noun: str
    scenes: Sequence[str]
    subject: int | None = None
    asked: Sequence[str] = ()
    shown: Sequence[str] = ()
    token: str = "sks"

    @property
    def squares(self) -> torch.Tensor:
        """The photos, [n, 3, size, size]."""
        return self.album.crop(range(len(self.album)))[:, :3]

    def prompts(self, word: str | None = None) -> list[str]:
        """A prompt for each scene."""
        return [one.replace("{}", word or f"{self.token} {self.noun}") for one in self.scenes]


@dataclass(eq=False)
class Plan:
    """How a subject is learnt and judged.

    Attributes:
        steps: of training.
        looks: how often on the way pictures are judged.
        draws: pictures per scene.
        batch: photos per step.
        lr: of adapters and branch.
        word_lr: of Textual Inversion.
        rank: of adapters.
        sampler: steps of the sampler.
        guidance: of the pictures.
        stop: whether DisenBooth may end early.
        gradient_checkpointing: see `DisenBooth`.
        precision: see `DisenBooth`.
        which: modules with adapters.
    """

    steps: int
    looks: int = 4
    draws: int = 2
    batch: int = 1
    lr: float = 1e-4
    word_lr: float = 5e-3
    rank: int = 4
    sampler: int = 25
    guidance: float = 7.0
    stop: bool = False
    gradient_checkpointing: bool = False
    precision: str = "no"
    which: str | tuple[str, ...] = "attention"

    @property
    def at(self) -> list[int]:
        """Steps at which pictures are judged."""
        return [max(1, round(self.steps * (i + 1) / self.looks)) for i in range(self.looks)]


@dataclass(eq=False)
class Learnt:
    """What one training gave.

    Attributes:
        rows: per look, what was measured.
        pictures: "scenes" [scenes, 3, H, W], and for DisenBooth "without" (each photo without the subject) and
            "setting" (the class's prompt in each photo's setting), of the last look.
        history: step and loss.
        looks: of the automatic stop.
        weights: files' contents: name -> tensors.
        system: a trained `DisenBooth`, else None.
    """

    rows: list[Row] = field(default_factory=list)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    history: dict[str, list[Any]] = field(default_factory=dict)
    looks: list[dict[str, float]] = field(default_factory=list)
    system: DisenBooth | None = None
    write: Callable[..., Any] | None = None


class Judge:
    """A callback that paints and judges on the way; with a folder, looks of an interrupted training are not lost."""

    def __init__(
        self, pipe: Any, case: Case, encoder: ImageText, plan: Plan, word: str | None, seed: int, keep: Path | None
    ) -> None:
        self.pipe, self.case, self.encoder, self.plan, self.word, self.seed = pipe, case, encoder, plan, word, seed
        self.notes = Pieces(keep)
        self.rows: list[Row] = []
        self.pictures: dict[str, np.ndarray] = {}

    def __call__(self, step: int, tuner: Tuner, numbers: Any) -> None:
        """Judges at the plan's steps."""
        if step in self.plan.at:
            self.look(step, tuner.networks)

    def options(self) -> dict[str, Any]:
        """For `paint`."""
        return {
            "steps": self.plan.sampler, "guidance": self.plan.guidance, "size": self.case.album.size, "progress": False,
        }  # fmt: skip

    def look(self, step: int, branch: Any) -> None:
        """Pictures in new scenes and, with an image branch, of its other two modes."""
        prompts = [one for one in self.case.prompts(self.word) for _ in range(self.plan.draws)]
        seeds = [self.seed + i % self.plan.draws for i in range(len(prompts))]
        made = paint(self.pipe, prompts, seeds, **self.options())
        self.pictures["scenes"] = made[:: self.plan.draws]
        row = {"step": step, **in_scenes(made, self.case, self.plan.draws, self.encoder)}
        row |= self.empty() if branch is None else self.modes(branch)
        self.rows.append(row)
        self.notes.save_arrays("look", step, self.pictures)
        self.notes.save("look", step, row)

    def finish(self, step: int, branch: Any) -> None:
        """With looks from before an interruption, and one at the last step if there was none."""
        seen = {row["step"] for row in self.rows}
        early = [self.notes.load("look", at) for at in self.plan.at if at <= step and at not in seen]
        self.rows = sorted([*(row for row in early if row), *self.rows], key=lambda row: row["step"])
        if not self.rows or self.rows[-1]["step"] != step:
            self.look(step, branch)
        elif not self.pictures:
            self.pictures = self.notes.load_arrays("look", step) or {}

    def modes(self, branch: Any) -> Row:
        """(0, 1): each photo without its subject; (1, 1): the class's plain prompt in each photo's setting."""
        squares = self.case.squares
        found: Row = {}
        for name, prompt, weights in (("without", "", (0.0, 1.0)), ("setting", f"a {self.case.noun}", (1.0, 1.0))):
            told, away = disen_embeds(self.pipe, branch, self.encoder, [prompt] * len(squares), squares, *weights)
            seeds = range(self.seed, self.seed + len(squares))
            made = paint(self.pipe, told, seeds, negative=away.at([0]), **self.options())
            self.pictures[name] = made
            found |= {f"{name}: {key}": value for key, value in in_photos(made, self.case, self.encoder).items()}
        return found

    def empty(self) -> Row:
        """Without an image branch: what the tuned pipeline paints of an empty prompt."""
        count = len(self.case.squares)
        made = paint(self.pipe, [""] * count, range(self.seed, self.seed + count), **self.options())
        return {f"without: {key}": value for key, value in in_photos(made, self.case, self.encoder).items()}


def in_scenes(images: np.ndarray, case: Case, draws: int, encoder: ImageText) -> Row:
    """What pictures of the subject in new scenes show, by CLIP and, where there is one, by the oracle."""
    like = encoder.likeness(images, case.squares)
    row: Row = {"CLIP-I": float(like.mean()), "nearest photo": float(like.max(1).mean())}
    if encoder.tokenizer is not None:
        plain = [one for one in case.prompts(case.noun) for _ in range(draws)]
        row["CLIP-T"] = float(encoder.agreement(images, plain).mean())
    if case.subject is not None:
        from unbraid.data.scenes import locate, read

        found = locate(images, case.subject)
        names = [one.background.name for one in read(images).scenes]
        asked = [one for one in case.asked for _ in range(draws)]
        row |= {
            "identity": float(found.score.mean()),
            "identity error": float(np.minimum(found.difference, 0.1).mean()),
            "background": float(np.mean([a == b for a, b in zip(names, asked, strict=True)])),
            "leak": float(np.mean([name in case.shown for name in names])),
        }
    return row


def in_photos(images: np.ndarray, case: Case, encoder: ImageText) -> Row:
    """What pictures made from the photos' own embeddings show."""
    like = encoder.likeness(images, case.squares).diagonal()
    row: Row = {"CLIP-I": float(like.mean())}
    if case.subject is not None:
        from unbraid.data.scenes import locate, read

        names = [one.background.name for one in read(images).scenes]
        score = locate(images, case.subject).score
        row |= {
            "identity": float(score.mean()), "subject seen": float((score >= KNOWN).mean()),
            "background": float(np.mean([a == b for a, b in zip(names, case.shown, strict=True)])),
        }  # fmt: skip
    return row


def learn(
    pipe: Any, encoder: ImageText, case: Case, method: str, plan: Plan, seed: int, keep: Any = None,
    progress: bool | None = False,
) -> Learnt:  # fmt: skip
    """Train one way and judge it on the way; the pipeline is as it was afterwards.

    Args:
        pipe: a pipeline.
        encoder: of images.
        case: the subject.
        method: one of `METHODS`.
        plan: of training and judging.
        seed: of both.
        keep: folder for checkpoints.
        progress: show bars.
    """
    word = "<subject>" if method == WORDS else None
    judge = Judge(pipe, case, encoder, plan, word, seed, None if keep is None else Path(keep))
    common: dict[str, Any] = {
        "steps": plan.steps, "batch": plan.batch, "seed": seed, "keep": keep, "progress": progress,
        "callbacks": [judge], "gradient_checkpointing": plan.gradient_checkpointing, "precision": plan.precision,
    }  # fmt: skip
    found = Learnt()
    if method == WORDS:
        with textual_inversion(pipe, case.album, str(word), case.noun, lr=plan.word_lr, **common) as (words, history):
            judge.finish(history.steps[-1], None)
            found.write = words.save
    elif method == LORA:
        prompt = f"a {case.token} {case.noun}"
        album = Album(case.album.images, case.album.size, case.album.names)  # one prompt for all, as the paper's
        with dreambooth(pipe, album, prompt, lr=plan.lr, rank=plan.rank, which=plan.which, **common) as (_, history):
            judge.finish(history.steps[-1], None)
            weights = lora_weights(Parts.of(pipe))
            found.write = lambda folder: save_lora(Parts.of(pipe), weights, folder)
    else:
        system = DisenBooth(
            token=case.token, rank=plan.rank, which=plan.which, steps=plan.steps, batch=plan.batch, lr=plan.lr,
            stop="auto" if plan.stop else "never", gradient_checkpointing=plan.gradient_checkpointing,
            precision=plan.precision, seed=seed, **VARIANTS[method],
        )  # fmt: skip
        sampler = {"steps": plan.sampler, "guidance": plan.guidance}
        system.fit(pipe, case.album, case.noun, encoder, keep, progress, [judge], sampler)
        found.system, found.looks = system, system.looks_
        found.history = {"steps": system.history_["steps"], "losses": system.history_["losses"]}
        with system.installed(pipe):
            judge.finish(found.history["steps"][-1], system.branch_)
        found.write = lambda folder: [system.save_pretrained(folder), *system.export(pipe, folder)]
    if method in (LORA, WORDS):
        found.history = {"steps": list(history.steps), "losses": list(history.losses)}
    found.rows, found.pictures = judge.rows, judge.pictures
    return found


@torch.no_grad()
def shares(pipe: Any, encoder: ImageText, case: Case, system: DisenBooth, draws: int = 4) -> list[Row]:
    """The error on the photos by what the denoiser is told (text, image, both, nothing), per part of the noise.

    Args:
        pipe: the pipeline.
        encoder: of images.
        case: the subject.
        system: trained.
        draws: of noise per photo and part.
    """
    from unbraid.diffusion.step import DiffusionStep

    parts, rows = Parts.of(pipe), []
    squares = case.squares
    with held(parts), system.installed(pipe):
        branch: Any = system.branch_
        latents = parts.latents(squares, mean=True).repeat(draws, 1, 1, 1)
        image = branch(encoder.images(squares)).repeat(draws, 1, 1)
        text, nothing = (parts.encode([one]).repeat(len(latents)) for one in (system.prompt_, ""))
        told = {
            "text and image": text.plus(image),
            "text": text,
            "image": nothing.times(0.0).plus(image),
            "nothing": nothing,
        }
        for low in (0.0, 0.25, 0.5, 0.75):
            step = DiffusionStep(parts, times=(low, low + 0.25))
            noised = step.draw(latents, torch.Generator().manual_seed(0))
            for name, context in told.items():
                (made,) = step.predict(noised, [context])
                rows.append({"noise": f"{low:.2f} to {low + 0.25:.2f}", "told": name,
                             "error": float(step.error(made, noised).mean())})  # fmt: skip
    return rows
