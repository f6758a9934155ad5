"""A prompt per region: pixels see the words of their own region only, by one masked attention (arXiv 2403.04880)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from unbraid.core.attach import attach
from unbraid.core.calls import AttentionCall, Tap
from unbraid.core.errors import UnbraidError
from unbraid.diffusion.maps import shapes
from unbraid.diffusion.masks import owners
from unbraid.diffusion.parts import Context, Parts


class Regions(Tap):
    """Lets pixels see their own region's words only, at every resolution. Open it with `region_prompts`.

    Args:
        parts: of the pipeline.
        owner: [H, W] whole numbers, the region of each pixel.
        lengths: tokens of each region's prompt, which follow one another.
        size: height and width of the latents.
    """

    def __init__(self, parts: Parts, owner: Tensor, lengths: Sequence[int], size: tuple[int, int]) -> None:
        self.joint = parts.kind == "joint"
        self.shapes = {count: owners(owner, shape) for count, shape in shapes(parts, size).items()}
        self.words = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))

    def call(self, c: AttentionCall) -> AttentionCall | None:
        """Joins the mask to the call's own."""
        mask = self._joint(c) if self.joint else self._cross(c)
        if mask is None:
            return None
        mask = mask.to(c.device)[None, None]
        if c.mask is None:
            return c.replace(mask=mask)
        if c.mask.dtype == torch.bool:
            return c.replace(mask=c.mask & mask)
        return c.replace(mask=c.mask.masked_fill(~mask, torch.finfo(c.mask.dtype).min))

    def _cross(self, c: AttentionCall) -> Tensor | None:
        if c.kind != "cross" or c.queries not in self.shapes or c.keys != len(self.words):
            return None
        return self.shapes[c.queries].flatten()[:, None] == self.words[None]

    def _joint(self, c: AttentionCall) -> Tensor | None:
        """Pictures see themselves and their words; words see one another's region and themselves."""
        found = {one.name: one for one in c.segments or ()}
        if set(found) != {"text", "image"}:
            return None
        text, image = found["text"], found["image"]
        if text.stop - text.start != len(self.words) or image.stop - image.start not in self.shapes:
            return None
        of = torch.empty(c.keys, dtype=torch.long)
        of[text.start : text.stop] = self.words
        of[image.start : image.stop] = self.shapes[image.stop - image.start].flatten()
        mask = of[:, None] == of[None]
        mask[image.start : image.stop, image.start : image.stop] = True
        return mask


@contextmanager
def region_prompts(
    parts: Parts, prompts: Sequence[str | Context], owner: Tensor, size: tuple[int, int] | None = None
) -> Iterator[tuple[Context, Context]]:
    """A prompt for each region of a picture, for as long as the block runs.

    Per pixel this is exactly attention to the words of its region alone, at the cost of one attention over all words.
    What still leaks from region to region goes through self-attention, convolutions and the pooled text (the mean over
    regions, for the families that have one).

    Args:
        parts: of the pipeline.
        prompts: one per region: a text, or the context of one.
        owner: [H, W] whole numbers from 0, which region each pixel belongs to (see `masks.partition`).
        size: height and width of the latents; None: those of the model's own size.

    Yields:
        What to paint with, `paint(pipe, context, seeds, negative=negative)`, of one picture: `context.repeat(n)` for
        more. The negative is the empty prompt, once per region, which is the same as once for all.

    Raises:
        UnbraidError: no prompts, or regions without one.
    """
    if not prompts:
        raise UnbraidError("there are no prompts; give one per region.")
    if owner.dim() != 2 or owner.min() < 0 or owner.max() >= len(prompts):
        raise UnbraidError(
            f"regions are {int(owner.min())} to {int(owner.max())} for {len(prompts)} prompts; number them from 0 to "
            f"{len(prompts) - 1}, in an array [height, width]."
        )
    side = parts.size // parts.patch
    with torch.no_grad():
        told = [one if isinstance(one, Context) else parts.encode([one]) for one in prompts]
        nothing = parts.without()
    lengths = [one.embeds.shape[1] for one in told]
    if any(length != nothing.embeds.shape[1] for length in lengths):
        raise UnbraidError(f"the prompts have {lengths} tokens; give contexts that are padded to one length.")
    with attach(parts.denoiser, Regions(parts, owner, lengths, size or (side, side))):
        yield joined(told), joined([nothing] * len(told))


def joined(told: Sequence[Context]) -> Context:
    """Contexts one after the other; the pooled text is their mean."""
    pooled = [one.pooled for one in told if one.pooled is not None]
    return Context(torch.cat([one.embeds for one in told], 1), torch.stack(pooled).mean(0) if pooled else None)
