"""`paint`: pictures of many prompts and seeds with any pipeline, each the same whatever it is painted along with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from unbraid.core.errors import UnbraidError
from unbraid.core.progress import bar
from unbraid.diffusion.parts import Context, Parts


def paint(
    pipe: Any,
    prompts: Sequence[str] | Context,
    seeds: Sequence[int],
    *,
    steps: int = 25,
    guidance: float = 5.0,
    size: int | None = None,
    negative: str | Context = "",
    batch: int = 16,
    progress: bool | None = None,
    **more: Any,
) -> np.ndarray:
    """Pictures of prompts; one generator per picture, on the CPU, so that neither batch nor device changes the noise.

    Args:
        pipe: a pipeline of a supported family.
        prompts: one per picture, or what words became, see `Parts.encode`.
        seeds: one per picture.
        steps: of the sampler.
        guidance: classifier-free guidance scale; 1 and less: none.
        size: side in pixels; None: what the model was made for.
        negative: what is guided away from, for all of them.
        batch: pictures at a time.
        progress: show a bar.
        more: handed to the pipeline.

    Returns:
        [pictures, 3, H, W] float32 from 0 to 1.

    Raises:
        UnbraidError: prompts and seeds of different number, no prompts, a size that the model cannot paint, or out of
            memory.
    """
    parts = Parts.of(pipe)
    total, side = len(prompts), parts.size if size is None else size
    _check(parts, total, len(seeds), steps, batch, side)
    # FLUX.1 has guidance in its weights; classifier-free guidance has another name there
    guided = (more.get("true_cfg_scale", 1.0) if parts.family == "flux" else guidance) > 1
    made = []
    with bar(progress, "Painting", total) as tick, _quiet(pipe), torch.no_grad():
        for start in range(0, total, batch):
            stop = min(start + batch, total)
            words = _words(parts, prompts, negative, start, stop, guided)
            chance = [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds[start:stop]]
            try:
                found = pipe(
                    **words, **more, generator=chance, num_inference_steps=steps, guidance_scale=guidance,
                    height=side, width=side, output_type="np",
                ).images  # fmt: skip
            except torch.OutOfMemoryError as error:
                raise UnbraidError(
                    f"out of memory while painting {stop - start} pictures of {side} pixels; give a smaller batch= or "
                    "size=, or dtype float16."
                ) from error
            made.append(np.asarray(found, np.float32).transpose(0, 3, 1, 2))
            tick(stop - start)
    return np.ascontiguousarray(np.concatenate(made))


def _words(
    parts: Parts, prompts: Sequence[str] | Context, negative: str | Context, start: int, stop: int, guided: bool
) -> dict[str, Any]:
    """The pipeline's arguments for some of the prompts."""
    if not isinstance(prompts, Context) and not isinstance(negative, Context):
        found: dict[str, Any] = {"prompt": list(prompts[start:stop])}
        if negative and guided:
            found["negative_prompt"] = [negative] * (stop - start)
        return found
    told = prompts.at(slice(start, stop)) if isinstance(prompts, Context) else parts.encode(prompts[start:stop])
    words: dict[str, Any] = told.words()
    if guided:
        away = negative if isinstance(negative, Context) else parts.without(negative)
        words |= away.repeat(stop - start).words(negative=True)
    return words


def _check(parts: Parts, total: int, seeds: int, steps: int, batch: int, side: int) -> None:
    if total == 0:
        raise UnbraidError("there are no prompts; give at least one.")
    if total != seeds:
        raise UnbraidError(f"there are {total} prompts and {seeds} seeds; give one seed per picture.")
    for name, value in (("steps", steps), ("batch", batch)):
        if value < 1:
            raise UnbraidError(f"{name} is {value}; it must be at least 1.")
    if side < parts.multiple or side % parts.multiple:
        raise UnbraidError(f"size is {side} pixels; this model paints multiples of {parts.multiple}.")


@contextmanager
def _quiet(pipe: Any) -> Iterator[None]:
    """Without the pipeline's own bars; its setting is put back."""
    before = dict(getattr(pipe, "_progress_bar_config", None) or {})
    pipe.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**before)
