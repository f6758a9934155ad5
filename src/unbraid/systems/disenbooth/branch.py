"""The image branch: what a photo shows besides the subject, as one vector added to all tokens of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from unbraid.core.errors import UnbraidError
from unbraid.diffusion.clip import ImageText
from unbraid.diffusion.parts import Context, Parts

Form = Literal["cosine", "absolute", "square"]


class ImageBranch(nn.Module):
    """f = W2 ReLU(W1 g + b1) + b2 + g with g = sigmoid(M) * v, v an image's projected embedding.

    Args:
        features: width of v.
        width: of the tokens it is added to. Where it differs from `features`, v passes a linear map first (not in
            the paper, whose models have equal widths).
        masked: whether there is M; without it g = v.
    """

    def __init__(self, features: int, width: int, masked: bool = True) -> None:
        super().__init__()
        self.features, self.width, self.masked = features, width, masked
        self.project = nn.Identity() if features == width else nn.Linear(features, width)
        self.mask = nn.Parameter(torch.zeros(width)) if masked else None
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, v: Tensor) -> Tensor:
        """[B, 1, width] of image embeddings [B, features]."""
        g = self.project(v)
        if self.mask is not None:
            g = g * self.mask.sigmoid()
        found: Tensor = self.second(functional.relu(self.first(g))) + g
        return found[:, None]


def terms(full: Tensor, weak: Tensor | None, text: Tensor, image: Tensor, form: Form = "cosine") -> dict[str, Tensor]:
    """The three terms of the loss, each a mean over the batch.

    Args:
        full: errors [B] of the denoiser told text and image.
        weak: errors [B] of the denoiser told the text only, the same noise; None: that term is left out.
        text: tokens [B, n, d] of the prompt.
        image: [B, 1, d] of the image branch.
        form: of the contrast: "cosine" (signed, so that -1 is best, as the paper's code has it), "absolute" or
            "square" (which ask for a right angle).
    """
    cosine = functional.cosine_similarity(text.mean(1).float(), image[:, 0].float(), dim=-1)
    contrast = {"cosine": cosine, "absolute": cosine.abs(), "square": cosine.square()}[form].mean()
    return {"full": full.mean(), "weak": full.new_zeros(()) if weak is None else weak.mean(), "contrast": contrast}


def disen_embeds(
    pipe: Any,
    branch: ImageBranch,
    encoder: ImageText,
    prompts: Sequence[str],
    references: Tensor | None = None,
    text: float = 1.0,
    image: float = 0.0,
    negative: str = "",
) -> tuple[Context, Context]:
    """What a pipeline is told by prompts and references, for any pipeline of its family (inpainting, ControlNet, ...).

    Args:
        pipe: the pipeline, with the adapter in it.
        branch: trained.
        encoder: the image encoder that it was trained with.
        prompts: B of them.
        references: images [B or 1, 3, H, W] from 0 to 1; needed where `image` is not 0.
        text: weight of the prompts; 0 with `image` 1 shows a reference without its subject.
        image: weight of the references.
        negative: what guidance leads away from; it has no image in it, and the weight of the text, as in the paper.

    Returns:
        Positive and negative; `context.words()` and `context.words(negative=True)` are the pipeline's arguments.

    Raises:
        UnbraidError: references are missing or of another number.
    """
    parts = Parts.of(pipe)
    with torch.no_grad():
        told, away = parts.encode(prompts).times(text), parts.encode([negative]).times(text).repeat(len(prompts))
        if image == 0:
            return told, away
        if references is None:
            raise UnbraidError(f"the image's weight is {image}, but there is no reference; give one, or weight 0.")
        if len(references) not in (1, len(prompts)):
            raise UnbraidError(
                f"there are {len(prompts)} prompts and {len(references)} references; give one each, or one."
            )
        return told.plus(branch(encoder.images(references)), image), away
