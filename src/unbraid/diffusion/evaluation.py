"""What pictures show of what was asked for: an oracle's word, CLIP's, a vision model's, and grids per prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from unbraid.core.claim import Table
from unbraid.core.errors import UnbraidError
from unbraid.core.figures import Figure, Image
from unbraid.core.result import Result
from unbraid.diffusion.clip import ImageText, pixels_of
from unbraid.diffusion.grids import grid
from unbraid.diffusion.quiet import quiet

SHOWN = 8  # pictures of a prompt in a grid


class Look(nn.Module):
    """A frozen vision model (DINO, DINOv2, ViT, ...), for likeness of images without words.

    Args:
        model: of transformers, with `pixel_values` in and a pooled output or a first token.
        mean: of the pixels that it was trained on.
        std: of the same.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model: Any = model.eval().requires_grad_(False)
        size = vars(self.model.config).get("image_size", 224)
        self.side = int(size if isinstance(size, int) else size[0])
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @classmethod
    def open(cls, name: str | Path, device: str = "cpu") -> Look:
        """A model by its folder or hub id, such as "facebook/dinov2-small".

        Raises:
            UnbraidError: no such model.
        """
        from transformers import AutoModel

        local = {"local_files_only": True} if Path(name).is_dir() else {}
        try:
            with quiet():
                model = AutoModel.from_pretrained(str(name), use_safetensors=True, trust_remote_code=False, **local)
                mean, std = pixels_of(str(name), local)
        except (OSError, ValueError) as error:
            said = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
            raise UnbraidError(f"{name!s} cannot be opened as a vision model: {said[:240]}") from error
        return cls(model, mean, std).to(device)

    def images(self, pixels: Tensor | np.ndarray) -> Tensor:
        """Features [B, width] of images [B, 3, H, W] from 0 to 1: the first token, or the pooled output."""
        x = torch.as_tensor(pixels, dtype=torch.float32, device=self.mean.device)
        if x.shape[-2:] != (self.side, self.side):
            size = (self.side, self.side)
            x = functional.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        made = self.model(pixel_values=(x - self.mean) / self.std)
        last: Tensor = made.last_hidden_state
        return last[:, 0] if last.dim() == 3 else last.mean((2, 3))

    @torch.no_grad()
    def likeness(self, images: Tensor | np.ndarray, others: Tensor | np.ndarray, batch: int = 64) -> np.ndarray:
        """Cosines [n, m] between n images and m others."""
        a, b = (torch.cat([self.images(part) for part in torch.as_tensor(x).split(batch)]) for x in (images, others))
        return np.asarray(functional.normalize(a) @ functional.normalize(b).T, np.float64)


def perceptual(images: Tensor | np.ndarray, others: Tensor | np.ndarray, net: str = "alex") -> np.ndarray:
    """LPIPS [n] between images and others [n, 3, H, W] from 0 to 1, by the package of its authors.

    Raises:
        UnbraidError: the package is not installed; it needs torchvision, which breaks transformers beside a CPU build
            of torch, so that it is no dependency of ours.
    """
    try:
        import lpips
    except ImportError as error:
        raise UnbraidError(
            "LPIPS needs the packages lpips and torchvision; install them where there is a torchvision for your torch, "
            "or use Look.likeness."
        ) from error
    model = lpips.LPIPS(net=net, verbose=False)
    with torch.no_grad():
        found = model(torch.as_tensor(images) * 2 - 1, torch.as_tensor(others) * 2 - 1)
    return np.asarray(found.flatten(), np.float64)


def evaluate(
    images: np.ndarray,
    prompts: Sequence[str],
    *,
    references: np.ndarray | Tensor | None = None,
    encoder: ImageText | None = None,
    look: Look | None = None,
    oracle: bool = False,
    subjects: Mapping[str, int] | None = None,
    title: str = "What pictures show",
) -> Result:
    """Scores per prompt and a grid of the pictures.

    Args:
        images: [n, 3, H, W] from 0 to 1.
        prompts: one per picture.
        references: photos of a subject [m, 3, H, W] that pictures should resemble.
        encoder: for CLIP-T, and CLIP-I against references.
        look: for likeness to references without words.
        oracle: read pictures of the scenes world back and compare them with the prompts' words.
        subjects: for the oracle, word -> number of the subject that it stands for.
        title: of the page.

    Returns:
        Tables "prompts" and "pictures", and a grid.

    Raises:
        UnbraidError: nothing to judge by, or numbers that differ.
    """
    x = np.asarray(images, np.float32)
    if x.ndim != 4 or x.shape[1] != 3 or len(x) != len(prompts) or not len(x):
        raise UnbraidError(
            f"there are images of {x.shape} and {len(prompts)} prompts; give [n, 3, H, W] and n prompts."
        )
    texts = encoder is not None and encoder.tokenizer is not None
    if not (oracle or texts or (references is not None and (encoder is not None or look is not None))):
        raise UnbraidError("there is nothing to judge by; give an encoder, references with a model, or oracle=True.")
    columns: dict[str, np.ndarray] = {}
    if oracle:
        columns |= _told(x, prompts, subjects)
    if texts:
        assert encoder is not None
        columns["CLIP-T"] = encoder.agreement(x, prompts)
    if references is not None:
        for name, model in (("CLIP-I", encoder), ("likeness", look)):
            if model is not None:
                columns[name] = model.likeness(x, references).mean(1)
    pictures: list[dict[str, Any]] = [
        {"prompt": said, **{k: float(v[i]) for k, v in columns.items()}} for i, said in enumerate(prompts)
    ]
    rows = []
    for said in dict.fromkeys(prompts):
        mine = [row for row in pictures if row["prompt"] == said]
        means = {name: _mean([float(row[name]) for row in mine]) for name in columns}
        rows.append({"prompt": said, "pictures": len(mine), **means})
    return Result(
        "evaluation", title, figures=[_sheet(x, prompts)],
        tables={"prompts": Table.from_records(rows, "Means per prompt."), "pictures": Table.from_records(pictures)},
        lead="figures",
    )  # fmt: skip


def _mean(values: Sequence[float]) -> float | None:
    """Of what is a number."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else None


def _told(images: np.ndarray, prompts: Sequence[str], subjects: Mapping[str, int] | None) -> dict[str, np.ndarray]:
    """Per picture whether it shows what its prompt says, attribute by attribute; NaN where that is not said."""
    from unbraid.data.scenes import score

    found: list[dict[str, float]] = [{} for _ in prompts]
    for said in dict.fromkeys(prompts):
        at = [i for i, one in enumerate(prompts) if one == said]
        named = {word: number for word, number in (subjects or {}).items() if word in said}
        for name, values in score(images[at], said, named or None).items():
            for i, value in zip(at, values, strict=True):
                found[i][name] = float(value)
    names = list(dict.fromkeys(name for row in found for name in row))
    return {name: np.array([row.get(name, np.nan) for row in found]) for name in names}


def _sheet(images: np.ndarray, prompts: Sequence[str]) -> Figure:
    said = list(dict.fromkeys(prompts))
    most = min(
        SHOWN, max(prompts.count(one) if isinstance(prompts, list) else list(prompts).count(one) for one in said)
    )
    cells = np.full((len(said), most, *images.shape[1:]), np.nan, np.float32)
    for i, one in enumerate(said):
        mine = images[[j for j, other in enumerate(prompts) if other == one]][:most]
        cells[i, : len(mine)] = mine
    return Image.from_array(grid(cells, said), "Pictures, a row per prompt.", "Pictures", "A row per prompt.")
