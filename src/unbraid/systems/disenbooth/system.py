"""`DisenBooth`: tune a pipeline on photos of a subject, paint it elsewhere, or what the photos show besides it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from unbraid.core.errors import UnbraidError
from unbraid.core.system import System
from unbraid.diffusion.adapters import kept_lora, lora, lora_weights, save_lora
from unbraid.diffusion.clip import ImageText
from unbraid.diffusion.painting import paint
from unbraid.diffusion.parts import Parts
from unbraid.diffusion.photos import Album, Crop
from unbraid.diffusion.step import DiffusionStep
from unbraid.diffusion.tuning import Tuner, Views, held, tune
from unbraid.systems.disenbooth import CARD
from unbraid.systems.disenbooth.branch import Form, ImageBranch, disen_embeds, terms
from unbraid.systems.disenbooth.stopping import ALIKE, Watch, between

log = logging.getLogger("unbraid.disenbooth")


class DisenBooth(System):
    """A low-rank adapter and an image branch, learnt from a few photos of one subject (arXiv 2305.03374).

    The prompt, said of every photo, takes up what they have in common; the image branch what is each one's own.

    Args:
        token: rare word that stands for the subject.
        prompt: said of every photo, with {token} and {noun}.
        weak: weight of the error without the image branch; 0 leaves that term and its half of the work out.
        contrast: weight of the cosine between text and image branch.
        form: of that term: "cosine" (the paper's, signed), "absolute" or "square".
        mask: a learnt mask on the image features.
        rank: of the adapter.
        which: modules it is on: "attention" (the paper's), "cross_kv", "cross_qkv" or names of modules.
        steps: of training; the authors take 1,000 to 2,000, fewer for animals than for things.
        batch: photos per step.
        lr: learning rate of adapter and branch.
        decay: weight decay.
        crop: "random" along the longer side, as the paper's, or "centre".
        stop: "never", or "auto": once pictures are nearer to single photos than these are to one another.
        check_every: steps between looks for that; None: a tenth of the steps.
        snr_gamma: min-SNR bound of the errors' weights; None: equal weights, as in the paper.
        gradient_checkpointing: less memory, more time.
        precision: "no", "bf16" or "fp16".
        seed: of weights, order and noise.
    """

    card = CARD
    widths_: list[int]
    history_: dict[str, list[Any]]

    def __init__(
        self,
        token: str = "sks",
        prompt: str = "a {token} {noun}",
        weak: float = 0.01,
        contrast: float = 0.001,
        form: Form = "cosine",
        mask: bool = True,
        rank: int = 4,
        which: str | Sequence[str] = "attention",
        steps: int = 2000,
        batch: int = 1,
        lr: float = 1e-4,
        decay: float = 1e-2,
        crop: Crop = "random",
        stop: Literal["never", "auto"] = "never",
        check_every: int | None = None,
        snr_gamma: float | None = None,
        gradient_checkpointing: bool = False,
        precision: str = "no",
        seed: int = 0,
    ) -> None:
        self.token, self.prompt, self.weak, self.contrast, self.form = token, prompt, weak, contrast, form
        self.mask, self.rank, self.which, self.steps, self.batch = mask, rank, which, steps, batch
        self.lr, self.decay, self.crop, self.stop, self.check_every = lr, decay, crop, stop, check_every
        self.snr_gamma, self.gradient_checkpointing, self.precision = snr_gamma, gradient_checkpointing, precision
        self.seed = seed

    def fit(
        self,
        pipe: Any,
        album: Album,
        noun: str,
        encoder: ImageText,
        keep: str | Path | None = None,
        progress: bool | None = None,
        callbacks: Sequence[Callable[..., Any]] = (),
        paint_options: Mapping[str, Any] | None = None,
    ) -> DisenBooth:
        """Learn a subject.

        Args:
            pipe: a pipeline; it is as it was afterwards.
            album: three to six photos of the subject (one is possible).
            noun: of its class, such as "dog".
            encoder: of images; its embeddings should be as wide as the prompt's tokens.
            keep: folder for checkpoints, from which an interrupted training goes on.
            progress: show a bar.
            callbacks: as those of `fit_loop`; the pipeline has the adapter while they run.
            paint_options: for the pictures of `stop`: steps, guidance, size.

        Returns:
            Itself, with `lora_` (weights), `branch_` (an `ImageBranch`), `prompt_` (what stands for the subject),
            `alike_` (mean cosine between the photos), `history_`, `looks_` (of `stop`).

        Raises:
            UnbraidError: settings that do not fit.
        """
        self._check(album, noun)
        parts = Parts.of(pipe)
        self.prompt_ = self.prompt.format(token=self.token, noun=noun)
        squares = album.crop(range(len(album)))[:, :3]
        self.alike_ = between(encoder, squares)[0]
        if self.alike_ > ALIKE:
            log.warning(
                "the photos are nearly equal to the image encoder (mean cosine %.2f): what they share beside the "
                "subject, such as one background, cannot be told from it",
                self.alike_,
            )
        self.widths_ = [encoder.width, parts.width]
        with held(parts), lora(parts, self.rank, self.which, seed=self.seed):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                branch = self.build_module("branch_").to(parts.device)
            tuner = Tuner(parts, DiffusionStep(parts, self.snr_gamma), networks=branch)
            every = self.check_every or max(1, self.steps // 10)
            options = {"steps": 20, "size": album.size, **(paint_options or {})}
            automatic = self.stop == "auto"
            notes = Path(keep) if keep is not None and automatic else None
            watch = Watch(pipe, encoder, squares, self.prompt_, every, stop=automatic, keep=notes, **options)
            calls: list[Callable[..., Any]] = [*callbacks, *([watch] if automatic else [])]
            history = tune(
                tuner, self._loss, self._draw(Views(parts, album, self.crop), encoder), steps=self.steps, lr=self.lr,
                decay=self.decay, seed=self.seed, keep=keep, progress=progress, callbacks=calls,
                gradient_checkpointing=self.gradient_checkpointing, precision=self.precision,
            )  # fmt: skip
            self.lora_ = lora_weights(parts)
        self.branch_ = branch.cpu().requires_grad_(False)
        self.looks_ = watch.seen
        self.history_ = {"steps": history.steps, "losses": history.losses, **history.extra}
        return self

    def _check(self, album: Album, noun: str) -> None:
        if not noun.strip():
            raise UnbraidError("the noun of the subject's class is empty; give one, such as 'dog'.")
        if "{token}" not in self.prompt or "{noun}" not in self.prompt:
            raise UnbraidError(f"prompt is {self.prompt!r}; it needs {{token}} and {{noun}}.")
        for name in ("weak", "contrast"):
            if vars(self)[name] < 0:
                raise UnbraidError(f"{name} is {vars(self)[name]}; it must not be negative.")
        for name in ("steps", "batch"):
            if vars(self)[name] < 1:
                raise UnbraidError(f"{name} is {vars(self)[name]}; it must be at least 1.")
        if len(album) == 1:
            log.warning("there is one photo: what in it is subject and what background, one photo cannot say")

    def _draw(self, views: Views, encoder: ImageText) -> Callable[[int, torch.Generator], Any]:
        def draw(number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            at = torch.randint(len(views.album), (self.batch,), generator=generator).tolist()
            squares, latents, _ = views.draw(at, generator)
            with torch.no_grad():  # of the very crop that is encoded, with the encoder's own normalisation
                return latents, encoder.images(squares)

        return draw

    def _loss(self, tuner: Tuner, given: Any) -> tuple[Tensor, dict[str, Any]]:
        latents, v = given
        step, text = tuner.__dict__["step"], tuner.told([self.prompt_]).repeat(len(latents))
        assert tuner.networks is not None
        image = tuner.networks(v)
        noised = step.draw(latents)
        contexts = [text.plus(image), text] if self.weak else [text.plus(image)]
        errors = [step.error(made, noised) for made in step.predict(noised, contexts)]
        found = terms(errors[0], errors[1] if self.weak else None, text.embeds, image, self.form)
        loss = found["full"] + self.weak * found["weak"] + self.contrast * found["contrast"]
        return loss, {**found, "image / text": image.detach().norm() / text.embeds.mean(1).norm()}

    def build_module(self, name: str) -> Any:
        """The image branch without its weights."""
        features, width = self.widths_
        return ImageBranch(features, width, self.mask)

    @contextmanager
    def installed(self, pipe: Any, weight: float = 1.0) -> Iterator[None]:
        """The pipeline has the adapter while this lasts.

        Args:
            pipe: of the family that was tuned.
            weight: of the adapter.
        """
        with kept_lora(Parts.of(pipe), self.lora_, self.rank, self.which, weight=weight):
            yield

    def paint(
        self,
        pipe: Any,
        prompts: Sequence[str],
        seeds: Sequence[int],
        references: Tensor | None = None,
        encoder: ImageText | None = None,
        weights: tuple[float, float] = (1.0, 0.0),
        **options: Any,
    ) -> np.ndarray:
        """Pictures: (1, 0) the subject in new scenes; (0, 1) with empty prompts a reference without its subject;
        (1, 1) what the prompt says in a reference's setting.

        Args:
            pipe: the pipeline; it is as it was afterwards.
            prompts: one per picture; the subject's is `prompt_`.
            seeds: one per picture.
            references: images [n or 1, 3, H, W] from 0 to 1.
            encoder: of images, where there are references.
            weights: of text and image.
            options: for `paint`.

        Returns:
            [n, 3, H, W] float32 from 0 to 1.

        Raises:
            UnbraidError: a prompt for the subject alone (weights (1, 0)) that does not name it, no references or no
                encoder although the image counts.
        """
        if weights[1] and encoder is None:
            raise UnbraidError("references need the image encoder that was used in tuning; give encoder=.")
        if weights[0] and not weights[1]:
            lost = [one for one in prompts if self.token not in one.split()]
            if lost:
                raise UnbraidError(f"the prompt {lost[0]!r} does not name the subject; say {self.prompt_!r} in it.")
        with self.installed(pipe):
            branch: Any = self.branch_
            told, away = disen_embeds(pipe, branch, encoder, prompts, references, *weights)  # type: ignore[arg-type]
            return paint(pipe, told, seeds, negative=away.at([0]), **options)

    def export(self, pipe: Any, folder: str | Path) -> list[Path]:
        """Write files for others: `lora/` for plain `pipe.load_lora_weights`, and `adapter.safetensors`, the branch.

        Args:
            pipe: of the family that was tuned.
            folder: made if needed.
        """
        from safetensors.torch import save_file

        place = Path(folder)
        written = [save_lora(Parts.of(pipe), self.lora_, place / "lora")]
        part = place / "adapter.part"
        branch: Any = self.branch_
        said = {"prompt": self.prompt_, "features": str(self.widths_[0]), "width": str(self.widths_[1])}
        save_file({key: value.contiguous() for key, value in branch.state_dict().items()}, part, metadata=said)
        return [*written, part.replace(place / "adapter.safetensors")]
