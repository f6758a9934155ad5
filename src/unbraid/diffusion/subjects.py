"""The two common ways to teach a pipeline a subject: DreamBooth with LoRA, and Textual Inversion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from unbraid.core.errors import UnbraidError
from unbraid.core.training.history import History
from unbraid.diffusion.adapters import lora
from unbraid.diffusion.painting import paint
from unbraid.diffusion.parts import Parts
from unbraid.diffusion.photos import Album, Crop
from unbraid.diffusion.step import DiffusionStep
from unbraid.diffusion.tokens import NewTokens
from unbraid.diffusion.tuning import Tuner, Views, held, tune


def class_photos(
    pipe: Any, prompt: str, count: int, *, seed: int = 0, progress: bool | None = None, **more: Any
) -> Album:
    """Pictures of a subject's class by the untuned pipeline, for prior preservation.

    Args:
        pipe: a pipeline.
        prompt: such as "a dog".
        count: pictures.
        seed: of the first one.
        progress: show a bar.
        more: for `paint`.
    """
    made = paint(pipe, [prompt] * count, range(seed, seed + count), progress=progress, **more)
    return Album.of(torch.from_numpy(made))


@contextmanager
def dreambooth(
    pipe: Any,
    album: Album,
    prompt: str,
    *,
    steps: int = 400,
    batch: int = 1,
    lr: float = 1e-4,
    rank: int = 4,
    which: str | Sequence[str] = "attention",
    prior: Album | None = None,
    prior_prompt: str = "",
    prior_weight: float = 1.0,
    crop: Crop = "random",
    masked: bool = False,
    snr_gamma: float | None = None,
    seed: int = 0,
    **more: Any,
) -> Iterator[tuple[Tuner, History]]:
    """DreamBooth (arXiv 2208.12242) with a low-rank adapter on the denoiser; the pipeline is tuned inside the block.

    Args:
        pipe: a pipeline.
        album: photos of the subject.
        prompt: said of each, such as "a sks dog"; captions of the album come first.
        steps: of training.
        batch: photos per step.
        lr: learning rate.
        rank: of the adapter.
        which: see `adapters.targets`.
        prior: pictures of the class, see `class_photos`.
        prior_prompt: said of each of these.
        prior_weight: of their errors.
        crop: of photos that are not square.
        masked: the error is that within the album's masks.
        snr_gamma: see `DiffusionStep`.
        seed: of everything random.
        more: for `tune`.

    Yields:
        The tuner and the run's history; `adapters.lora_weights(tuner.parts)` has the weights.

    Raises:
        UnbraidError: masks were asked for and there are none, or a prior without its prompt.
    """
    parts = Parts.of(pipe)
    if masked and album.masks is None:
        raise UnbraidError("masked=True needs masks; put them into a folder masks beside the photos.")
    if prior is not None and not prior_prompt:
        raise UnbraidError("prior needs prior_prompt, what is said of these pictures, such as 'a dog'.")
    with held(parts), lora(parts, rank, which, seed=seed):
        tuner = Tuner(parts, DiffusionStep(parts, snr_gamma))
        views, others = Views(parts, album, crop), None if prior is None else Views(parts, prior, crop)

        def draw(number: int, generator: torch.Generator) -> Any:
            at = torch.randint(len(album), (batch,), generator=generator).tolist()
            _, latents, masks = views.draw(at, generator)
            said = [album.captions[i] for i in at] if album.captions else [prompt] * batch
            if others is None:
                return latents, masks, said
            old = torch.randint(len(others.album), (batch,), generator=generator).tolist()
            # apart from one another: several processes each get their share of both
            return latents, masks, said, others.draw(old, generator)[1], [prior_prompt] * batch

        def loss(tuner: Any, given: Any) -> tuple[Tensor, dict[str, Any]]:
            latents, masks, said, *old = given
            count = len(latents)
            noised = tuner.step.draw(torch.cat([latents, old[0]]) if old else latents)
            (made,) = tuner.step.predict(noised, [tuner.told(said + old[1] if old else said)])
            whole = tuner.step.error(made, noised)
            subject, kept = whole[:count], whole[count:]
            if masked:
                area = torch.cat([masks, torch.ones_like(masks)]) if old else masks
                subject = tuner.step.error(made, noised, area)[:count]
            if not old:
                return subject.mean(), {}
            return subject.mean() + prior_weight * kept.mean(), {"subject": subject.mean(), "prior": kept.mean()}

        history = tune(tuner, loss, draw, steps=steps, lr=lr, seed=seed, **more)
        yield tuner, history


@contextmanager
def textual_inversion(
    pipe: Any,
    album: Album,
    word: str,
    start: str | None,
    *,
    prompt: str = "a {}",
    steps: int = 400,
    batch: int = 1,
    lr: float = 5e-3,
    vectors: int = 1,
    crop: Crop = "random",
    seed: int = 0,
    **more: Any,
) -> Iterator[tuple[NewTokens, History]]:
    """Textual Inversion (arXiv 2208.01618): rows of a new word alone are trained; it is known inside the block.

    Args:
        pipe: a pipeline.
        album: photos of the subject.
        word: the new one, such as "<mug>".
        start: word of the vocabulary that it begins as; None for a random row.
        prompt: said of each photo, with {} where the word stands.
        steps: of training.
        batch: photos per step.
        lr: learning rate.
        vectors: rows of the word.
        crop: of photos that are not square.
        seed: of everything random.
        more: for `tune`.

    Raises:
        UnbraidError: a prompt without {}, or a word that the vocabulary has.
    """
    if "{}" not in prompt:
        raise UnbraidError(f"prompt is {prompt!r}; it needs {{}} where the new word stands.")
    parts = Parts.of(pipe)
    words = NewTokens(parts, {word: start}, vectors, seed)
    with held(parts), words.installed():
        tuner, views = Tuner(parts, words=words), Views(parts, album, crop)

        def draw(number: int, generator: torch.Generator) -> Any:
            at = torch.randint(len(album), (batch,), generator=generator).tolist()
            return views.draw(at, generator)[1]

        def loss(tuner: Any, latents: Any) -> tuple[Tensor, dict[str, Any]]:
            noised = tuner.step.draw(latents)
            (made,) = tuner.step.predict(noised, [tuner.told([prompt.format(word)]).repeat(len(latents))])
            return tuner.step.error(made, noised).mean(), {}

        history = tune(tuner, loss, draw, steps=steps, lr=lr, decay=0.0, seed=seed, **more)
        yield words, history
