"""Photos of a folder, ready for tuning: upright, in colour, with masks and captions where there are any."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from unbraid.core.errors import UnbraidError

log = logging.getLogger("unbraid.diffusion")

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
LARGEST = 100_000_000  # pixels; beyond this a file is more likely a mistake than a photo
SMALLEST = 16  # pixels along a side
CAPTIONS = "captions.jsonl"
Crop = Literal["centre", "random"]


@dataclass(frozen=True, eq=False)
class Album:
    """Photos for tuning.

    Attributes:
        images: per photo [3, H, W] from 0 to 1, the shorter side `size` pixels.
        size: side in pixels of what `crop` cuts.
        names: of the files.
        masks: per photo [H, W] from 0 to 1, what the subject covers, or None.
        captions: per photo, or None.
    """

    images: list[Tensor]
    size: int
    names: list[str]
    masks: list[Tensor] | None = None
    captions: list[str] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def crop(self, at: Sequence[int], how: Crop = "centre", generator: torch.Generator | None = None) -> Tensor:
        """Squares [n, 3 or 4, size, size]; where there are masks they are the fourth channel.

        Args:
            at: which photos.
            how: "centre", or "random" along the longer side.
            generator: of random crops; None takes torch's own.
        """
        return torch.stack([self._one(i, how, generator) for i in at])

    def _one(self, i: int, how: Crop, generator: torch.Generator | None) -> Tensor:
        image = self.images[i]
        if self.masks is not None:
            image = torch.cat([image, self.masks[i][None]])
        starts = [side - self.size for side in image.shape[1:]]
        if how == "random":
            top, left = (int(torch.randint(room + 1, (), generator=generator)) for room in starts)
        else:
            top, left = (room // 2 for room in starts)
        return image[:, top : top + self.size, left : left + self.size]

    @classmethod
    def of(
        cls,
        images: Tensor,
        size: int | None = None,
        masks: Tensor | None = None,
        captions: Sequence[str] | None = None,
    ) -> Album:
        """Photos that are there already.

        Args:
            images: [n, 3, H, W] from 0 to 1.
            size: shorter side in pixels; None: as they are.
            masks: [n, H, W], what the subject covers.
            captions: one per photo.

        Raises:
            UnbraidError: no images, or of another shape or range.
        """
        if images.dim() != 4 or images.shape[1] != 3 or not len(images):
            raise UnbraidError(f"images are {tuple(images.shape)}; give [n, 3, height, width] with n at least 1.")
        if not torch.isfinite(images).all() or images.min() < 0 or images.max() > 1:
            raise UnbraidError("images must be numbers from 0 to 1.")
        for name, given in (("masks", masks), ("captions", captions)):
            if given is not None and len(given) != len(images):
                raise UnbraidError(f"there are {len(images)} images and {len(given)} {name}; give one each.")
        side = min(images.shape[2:]) if size is None else size
        layers = None if masks is None else [_fit(mask[None].float(), side)[0] for mask in masks]
        names = [f"image {i}" for i in range(len(images))]
        words = None if captions is None else list(captions)
        return cls([_fit(image.float(), side) for image in images], side, names, layers, words)

    @classmethod
    def read(cls, folder: str | Path, size: int, limit: int = 200) -> Album:
        """The photos of a folder, in the order of their names.

        Masks are taken from a folder `masks` beside them, under the same names; captions from `captions.jsonl`
        (`file_name` and `text`), where there are such.

        Args:
            folder: with PNG, JPEG, WebP, BMP or TIFF files.
            size: shorter side in pixels.
            limit: largest number of photos.

        Raises:
            UnbraidError: no folder, no images, too many, an unreadable one, one of over a hundred million pixels or
                under 16 pixels a side, or a mask of another shape than its photo.
        """
        home = Path(folder).expanduser()
        if not home.is_dir():
            raise UnbraidError(f"{folder} is not a folder; give one with photos ({', '.join(ENDINGS)}).")
        files = sorted(one for one in home.iterdir() if one.suffix.lower() in ENDINGS and not one.name.startswith("."))
        if not files:
            raise UnbraidError(f"{folder} holds no images; put photos ({', '.join(ENDINGS)}) into it.")
        if len(files) > limit:
            raise UnbraidError(f"{folder} holds {len(files)} images, more than {limit}; give a folder of one subject.")
        images = [_fit(load(one, "RGB"), size) for one in files]
        grey = [name for name, image in zip([one.name for one in files], images, strict=True) if _is_grey(image)]
        if grey:
            log.warning(
                "%d of %d photos have no colour (%s): no colour is learnt from them", len(grey), len(files), grey[0]
            )
        rows = _rows(home)
        masks = _masks(home, files, images, size, rows)
        return cls(images, size, [one.name for one in files], masks, _captions(files, rows))


def _is_grey(image: Tensor) -> bool:
    return float((image.amax(0) - image.amin(0)).max()) < 0.02


def load(path: Path, mode: str) -> Tensor:
    """[channels, H, W] from 0 to 1, turned as the camera was held."""
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            width, height = opened.size
            if width * height > LARGEST:
                raise UnbraidError(
                    f"{path.name} has {width} x {height} pixels, more than {LARGEST // 10**6} million; make it smaller."
                )
            if min(width, height) < SMALLEST:
                raise UnbraidError(f"{path.name} has {width} x {height} pixels; give at least {SMALLEST} a side.")
            turned: Any = ImageOps.exif_transpose(opened)
            if mode == "RGB" and "A" in turned.getbands():  # what is transparent is white, not whatever lies beneath
                clear = turned.convert("RGBA")
                turned = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
            pixels = np.asarray(turned.convert(mode), np.float32) / 255
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnbraidError(f"{path.name} cannot be read as an image: {error}.") from error
    return torch.from_numpy(pixels.copy()).reshape(*pixels.shape[:2], -1).permute(2, 0, 1)


def _fit(image: Tensor, size: int) -> Tensor:
    """The shorter side brought to `size`, by area averages when it shrinks."""
    height, width = image.shape[-2:]
    if min(height, width) == size:
        return image
    scale = size / min(height, width)
    target = [max(size, round(side * scale)) for side in (height, width)]
    found = functional.interpolate(image[None], target, mode="bicubic", antialias=True, align_corners=False)[0]
    return found.clamp(0, 1)


def _rows(home: Path) -> dict[str, dict[str, Any]] | None:
    """What captions.jsonl says, by file; None where there is none."""
    path = home / CAPTIONS
    if not path.is_file():
        return None
    try:
        listed = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
        return {str(row["file_name"]): dict(row) for row in listed}
    except (ValueError, KeyError, TypeError) as error:
        raise UnbraidError(
            f"{CAPTIONS} cannot be read ({error}); each line is an object with file_name and text."
        ) from error


def _captions(files: list[Path], rows: dict[str, dict[str, Any]] | None) -> list[str] | None:
    if rows is None:
        return None
    missing = [one.name for one in files if not isinstance(rows.get(one.name, {}).get("text"), str)]
    if missing:
        raise UnbraidError(f"{CAPTIONS} has no text for {missing[0]}; give one per photo, or remove the file.")
    return [str(rows[one.name]["text"]) for one in files]


def _masks(
    home: Path, files: list[Path], images: list[Tensor], size: int, rows: dict[str, dict[str, Any]] | None
) -> list[Tensor] | None:
    """One mask per photo: those that captions.jsonl lists, joined, else the one of the photo's name."""
    if not (home / "masks").is_dir():
        return None
    found = []
    for one, image in zip(files, images, strict=True):
        listed = (rows or {}).get(one.name, {}).get("masks") or [f"masks/{one.stem}.png"]
        layers = []
        for name in listed:
            path = home / "masks" / Path(str(name)).name
            if not path.is_file():
                raise UnbraidError(f"masks holds no {path.name}; give a mask per photo, or remove the folder masks.")
            layers.append(_fit(load(path, "L"), size)[0])
            if layers[-1].shape != image.shape[1:]:
                raise UnbraidError(f"the mask {path.name} has another shape than its photo.")
        found.append(torch.stack(layers).amax(0))
    return found
