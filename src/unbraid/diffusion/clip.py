"""Images and texts in the space of a CLIP model: the features that tuning conditions on and evaluation compares."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from unbraid import zoo
from unbraid.core.errors import UnbraidError
from unbraid.diffusion.quiet import quiet

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's


class ImageText(nn.Module):
    """A frozen CLIP model on images from 0 to 1.

    Args:
        model: a `CLIPModel`, or for images only a `CLIPVisionModelWithProjection`.
        tokenizer: of its texts; None where only images are compared.
        mean: of the pixels that it was trained on.
        std: of the same.

    Attributes:
        width: numbers of an embedding.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, tokenizer: Any = None, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
    ) -> None:
        super().__init__()
        self.model: Any = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        config: Any = self.model.config
        self.width = int(config.projection_dim)
        self.side = int(vars(config).get("vision_config", config).image_size)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @classmethod
    def open(cls, name: Any, device: str = "cpu") -> ImageText:
        """A model by the zoo's name ("tiny-clip"), a folder or a hub id, with the pixels' mean and spread it names.

        Raises:
            UnbraidError: no such model, or one that is no CLIP.
        """
        if isinstance(name, ImageText):
            return name
        known = str(name) in {card.name for card in zoo.models()}
        source = str(zoo.fetch(str(name))) if known else str(name)
        looks_like_path = source.startswith((".", "~", "/")) or source.count("/") > 1 or not source.strip()
        if looks_like_path and not Path(source).is_dir():
            raise UnbraidError(f"{name!s} is not a folder; give one with a CLIP model, a hub id or 'tiny-clip'.")
        local: Any = {"local_files_only": True} if known or Path(source).is_dir() else {}
        try:
            with quiet():
                model, words = _opened(source, local)
                mean, std = pixels_of(source, local)
        except (OSError, ValueError) as error:
            said = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
            raise UnbraidError(f"{name!s} cannot be opened as a CLIP model: {said[:240]}") from error
        return cls(model, words, mean, std).to(device)

    def images(self, pixels: Tensor | np.ndarray) -> Tensor:
        """Projected embeddings [B, width], not normed, of images [B, 3, H, W] from 0 to 1; gradients pass."""
        x = torch.as_tensor(pixels, dtype=torch.float32, device=self.mean.device)
        if x.shape[-2:] != (self.side, self.side):
            size = (self.side, self.side)
            x = functional.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        x = (x - self.mean) / self.std
        if self.model.config.model_type == "clip_vision_model":
            found: Tensor = self.model(pixel_values=x).image_embeds
            return found
        found = self.model.visual_projection(self.model.vision_model(pixel_values=x).pooler_output)
        return found

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Projected embeddings [B, width] of texts, not normed.

        Raises:
            UnbraidError: a model of images only.
        """
        if self.tokenizer is None:
            raise UnbraidError("this model has images only; give a whole CLIPModel to compare with texts.")
        asked = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, return_tensors="pt",
            max_length=self.tokenizer.model_max_length,
        ).to(self.mean.device)  # fmt: skip
        text = self.model.text_model(input_ids=asked.input_ids, attention_mask=asked.attention_mask)
        found: Tensor = self.model.text_projection(text.pooler_output)
        return found

    @torch.no_grad()
    def likeness(self, images: Tensor | np.ndarray, others: Tensor | np.ndarray, batch: int = 64) -> np.ndarray:
        """CLIP-I: cosines [n, m] between n images and m others."""
        a, b = (torch.cat([self.images(part) for part in torch.as_tensor(x).split(batch)]) for x in (images, others))
        return np.asarray(functional.normalize(a) @ functional.normalize(b).T, np.float64)

    @torch.no_grad()
    def agreement(self, images: Tensor | np.ndarray, prompts: Sequence[str], batch: int = 64) -> np.ndarray:
        """CLIP-T: cosine [n] between each image and its prompt."""
        x = torch.as_tensor(images)
        if len(x) != len(prompts):
            raise UnbraidError(f"there are {len(x)} images and {len(prompts)} prompts; give one each.")
        a = torch.cat([self.images(part) for part in x.split(batch)])
        b = torch.cat([self.texts(prompts[i : i + batch]) for i in range(0, len(prompts), batch)])
        return np.asarray(functional.cosine_similarity(a, b), np.float64)


def _opened(source: str, local: Any) -> tuple[Any, Any]:
    """Model and tokenizer (None for one of images only)."""
    from transformers import AutoConfig, CLIPModel, CLIPTokenizer, CLIPVisionModelWithProjection

    config = AutoConfig.from_pretrained(source, trust_remote_code=False, **local)
    if config.model_type == "clip":
        model = CLIPModel.from_pretrained(source, use_safetensors=True, **local)
        return model, CLIPTokenizer.from_pretrained(source, **local)
    if config.model_type == "clip_vision_model":
        return CLIPVisionModelWithProjection.from_pretrained(source, use_safetensors=True, **local), None
    raise UnbraidError(f"{source} is a {config.model_type}, not a CLIP model; give one, such as 'tiny-clip'.")


def pixels_of(source: str, local: Any) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and spread of the pixels that the model was trained on, as its image processor has them."""
    from transformers import AutoImageProcessor

    try:
        found: Any = AutoImageProcessor.from_pretrained(source, **local)
    except (OSError, ValueError, ImportError):
        return MEAN, STD
    return found.image_mean, found.image_std
