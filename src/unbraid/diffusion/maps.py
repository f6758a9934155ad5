"""Where in a picture words are attended to: maps per word, exact, with gradients, without a map per token.

A pixel's attention on a word is the mass it puts on the word's tokens, which needs no matrix of pixels times tokens:
the words' columns are all that is ever made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from unbraid.core.attach import attach
from unbraid.core.calls import Answer, Ask, AttentionCall, Tap
from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadSet
from unbraid.diffusion.parts import Parts


def shapes(parts: Parts, size: tuple[int, int]) -> dict[int, tuple[int, int]]:
    """Tokens of a picture -> (height, width) of its map, for every resolution at which the denoiser attends.

    Args:
        parts: of the pipeline.
        size: height and width of the latents.
    """
    height, width = size
    if parts.kind == "joint":
        step = 2 if parts.family == "flux" else int(parts.denoiser.config.patch_size)
        return {(height // step) * (width // step): (height // step, width // step)}
    found = {}
    for _ in parts.denoiser.config.block_out_channels:
        found[height * width] = (height, width)
        height, width = -(-height // 2), -(-width // 2)
    return found


class WordMaps(Tap):
    """Keeps the mean over heads, sites and steps of each resolution's maps. Open it with `word_maps`.

    Args:
        parts: of the pipeline.
        spans: token positions of each word.
        size: height and width of the latents.
        ratios: which resolutions, as latents per map pixel along an axis (1, 2, 4, ...); None: all.
        heads: which heads; None: all.
        grad: keep the graph.
        guided: a batch has an unguided and a guided half (classifier-free guidance), of which the second counts.

    Attributes:
        maps: latents per map pixel -> [B, words, h, w], sums so far.
        counts: how many maps each is the sum of.
    """

    def __init__(
        self,
        parts: Parts,
        spans: Sequence[Sequence[int]],
        size: tuple[int, int],
        ratios: Sequence[int] | None = None,
        heads: HeadSet | None = None,
        grad: bool = False,
        guided: bool = False,
    ) -> None:
        if not spans or not all(spans):
            raise UnbraidError("maps need at least one word, with its positions in the prompt.")
        self.heads, self.spans, self.size = heads, [list(one) for one in spans], size
        self.grad, self.guided, self.joint = grad, guided, parts.kind == "joint"
        self.shapes = {count: shape for count, shape in shapes(parts, size).items()
                       if ratios is None or self._ratio(shape) in ratios}  # fmt: skip
        if not self.shapes:
            known = [self._ratio(shape) for shape in shapes(parts, size).values()]
            raise UnbraidError(f"ratios are {list(ratios or ())}; this model has maps at {known} latents per pixel.")
        self.clear()

    def _ratio(self, shape: tuple[int, int]) -> int:
        return round(self.size[0] / shape[0])

    def clear(self) -> None:
        """Forgets all maps, as before the next training step."""
        self.maps: dict[int, Tensor] = {}
        self.counts: dict[int, int] = {}

    def _texts(self, c: AttentionCall) -> tuple[int, int, int] | None:
        """First key of the text, first query of the picture and their number, where this is a map that is wanted."""
        if not self.joint:
            return (0, 0, c.queries) if c.kind == "cross" and c.queries in self.shapes else None
        parts = {one.name: one for one in c.segments or ()}
        if set(parts) != {"text", "image"}:
            return None
        picture = parts["image"].stop - parts["image"].start
        return (parts["text"].start, parts["image"].start, picture) if picture in self.shapes else None

    def ask(self, c: AttentionCall) -> Ask | None:
        """Mass on each word's tokens."""
        found = self._texts(c)
        if found is None:
            return None
        columns = torch.zeros(c.keys, len(self.spans), device=c.device)
        for k, span in enumerate(self.spans):
            if found[0] + max(span) >= c.keys:
                raise UnbraidError(f"token {max(span)} is beyond the {c.keys} keys of {c.site!r}; is it this prompt?")
            columns[[found[0] + i for i in span], k] = 1.0
        return Ask(moments=columns, grad=self.grad)

    def take(self, c: AttentionCall, answer: Answer) -> None:
        """Adds the mean over heads to its resolution's sum."""
        found = self._texts(c)
        assert found is not None
        assert answer.moments is not None
        _, start, count = found
        chosen = self.heads_at(c)
        mass = answer.moments if chosen is None else answer.moments[:, chosen]
        mass = mass[:, :, start : start + count].mean(1)
        if self.guided:
            mass = mass.chunk(2)[1]
        height, width = self.shapes[count]
        maps = mass.transpose(1, 2).unflatten(-1, (height, width))
        key = self._ratio((height, width))
        self.maps[key] = self.maps[key] + maps if key in self.maps else maps
        self.counts[key] = self.counts.get(key, 0) + 1

    def at(self, ratio: int) -> Tensor:
        """Mean maps [B, words, h, w] at a resolution: a pixel's share of attention on each word.

        Raises:
            UnbraidError: nothing was attended to at that resolution.
        """
        if ratio not in self.maps:
            raise UnbraidError(
                f"there are no maps at {ratio} latents per pixel; there are some at {sorted(self.maps)}."
            )
        return self.maps[ratio] / self.counts[ratio]

    def mean(self, size: tuple[int, int] | None = None) -> Tensor:
        """Mean of all resolutions, [B, words, h, w], each weighted alike, at the finest one's size or a given one.

        Raises:
            UnbraidError: the denoiser did not run.
        """
        if not self.maps:
            raise UnbraidError("there are no maps; run the pipeline or its denoiser inside the block.")
        to = size or max(tuple(one.shape[-2:]) for one in self.maps.values())
        scaled = [functional.interpolate(self.at(k), to, mode="bilinear", align_corners=False) for k in self.maps]
        return torch.stack(scaled).mean(0)


@contextmanager
def word_maps(
    parts: Parts,
    spans: Sequence[Sequence[int]],
    size: tuple[int, int],
    *,
    ratios: Sequence[int] | None = None,
    heads: HeadSet | None = None,
    grad: bool = False,
    guided: bool = False,
) -> Iterator[WordMaps]:
    """Maps of words while the block runs; see `WordMaps` for the arguments and `spans` for the positions.

    Raises:
        UnbraidError: gradients were asked for under gradient checkpointing, where every attention runs twice.

    Example:
        >>> with word_maps(parts, spans(parts, said, ["circle"]), (16, 16), guided=True) as maps:  # doctest: +SKIP
        ...     picture = paint(pipe, [said], [0])
        >>> maps.mean().shape  # doctest: +SKIP
        torch.Size([1, 1, 16, 16])
    """
    if grad and bool(parts.denoiser.is_gradient_checkpointing):
        raise UnbraidError("maps with gradients need gradient checkpointing off: with it every attention runs twice.")
    tap = WordMaps(parts, spans, size, ratios, heads, grad, guided)
    with attach(parts.denoiser, tap):
        yield tap
