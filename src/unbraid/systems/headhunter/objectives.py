"""What a search can be steered to: `objective(name)`, or any function of (images, prompts) that returns scores.

Higher is more. Pictures are [n, 3, H, W] (or one channel) from 0 to 1; all scores are one number a picture.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.spatial.distance import pdist

from unbraid.core.errors import UnbraidError

Score = Callable[[np.ndarray, Sequence[str]], np.ndarray]
SIDE = 16  # pictures are averaged to this many pixels a side before their differences count as diversity


def contrast(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """Standard deviation of brightness within each picture."""
    grey = images.mean(1)
    return np.asarray(grey.reshape(len(grey), -1).std(1))


def saturation(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """Mean saturation of pixels, as in HSV."""
    top, low = images.max(1), images.min(1)
    return np.asarray(np.where(top > 0, (top - low) / np.maximum(top, 1e-6), 0.0).mean((1, 2)))


def brightness(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """Mean of all pixels."""
    return np.asarray(images.mean((1, 2, 3)))


def detail(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """Mean absolute difference of neighbouring pixels."""
    across, down = np.abs(np.diff(images, axis=3)), np.abs(np.diff(images, axis=2))
    return np.asarray((across.mean((1, 2, 3)) + down.mean((1, 2, 3))) / 2)


def style(wanted: str) -> Score:
    """The oracle's probability of a style of the scenes world."""
    return _whole("style", wanted)


def background(wanted: str) -> Score:
    """The oracle's probability of a background of the scenes world."""
    return _whole("background", wanted)


def _whole(part: str, wanted: str) -> Score:
    from unbraid.data.scenes import BACKGROUNDS, STYLES
    from unbraid.data.scenes.reading import checked, wholes

    at = _among(wanted, STYLES if part == "style" else BACKGROUNDS, part)
    return lambda images, prompts: wholes(checked(images))[part][:, at].astype(float)


def colour(wanted: str) -> Score:
    """Share of the things that the oracle reads whose colour this is."""
    return _things("colour", wanted)


def shape(wanted: str) -> Score:
    """Share of the things that the oracle reads whose shape this is."""
    return _things("shape", wanted)


def _things(part: str, wanted: str) -> Score:
    from unbraid.data.scenes import COLOURS, SHAPES, read

    _among(wanted, tuple(COLOURS) if part == "colour" else tuple(SHAPES), part)

    def score(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        found = [[vars(thing)[part] == wanted for thing in scene.things] for scene in read(images).scenes]
        return np.array([float(np.mean(hits)) if hits else 0.0 for hits in found])

    return score


def prompt(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """Share of what a prompt of the scenes world asks for that the oracle finds."""
    return _adherence(images, prompts, ("all", "count"))


def content(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """The same without the style: what a search for a style should leave alone."""
    return _adherence(images, prompts, ("all", "count", "style"))


def _adherence(images: np.ndarray, prompts: Sequence[str], left_out: tuple[str, ...]) -> np.ndarray:
    from unbraid.data.scenes import score

    out = np.zeros(len(images))
    for said in dict.fromkeys(prompts):
        at = [k for k, one in enumerate(prompts) if one == said]
        judged = score(images[at], said)
        out[at] = np.mean([v for name, v in judged.items() if name not in left_out], 0)
    return out


def clarity(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """How sure the oracle is of the least certain thing it reads: a stand-in for quality on the scenes world."""
    from unbraid.data.scenes import read

    return np.asarray(read(images).confidence, float)


def clip(model: Any = "tiny-clip", device: str = "cpu") -> Score:
    """Cosine of picture and prompt in any `CLIPModel`.

    Args:
        model: a name of the zoo, a folder or a hub id with a `CLIPModel` and its tokenizer; or both as a pair, with a
            third entry (mean, deviation) where pixels are not normalised as CLIP's own.
        device: where a model that is loaded goes.

    Raises:
        UnbraidError: no such model.
    """
    import torch

    found, words, *rest = model if isinstance(model, tuple) else _clip(str(model), device)
    side = int(found.config.vision_config.image_size)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (rest or [(CLIP_MEAN, CLIP_STD)])[0])
    limit = int(found.config.text_config.max_position_embeddings)

    @torch.no_grad()
    def score(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        x = torch.from_numpy(np.ascontiguousarray(images)).float()
        if x.shape[-1] != side:
            x = torch.nn.functional.interpolate(x, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        told = words(list(prompts), padding="max_length", truncation=True, max_length=limit, return_tensors="pt")
        home = next(found.parameters())
        made = found(
            pixel_values=((x - mean) / std).to(home), input_ids=told.input_ids.to(home.device),
            attention_mask=told.attention_mask.to(home.device),
        )  # fmt: skip
        cosine = torch.nn.functional.cosine_similarity(made.image_embeds, made.text_embeds)
        return cosine.float().cpu().numpy().astype(float)

    return score


CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def _clip(model: str, device: str) -> tuple[Any, Any, Any]:
    from transformers import AutoTokenizer, CLIPModel
    from transformers.image_processing_utils import BaseImageProcessor

    from unbraid import zoo

    source: Any = zoo.fetch(model) if model in {card.name for card in zoo.models()} else model
    try:
        found, words = CLIPModel.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        said = str(error).strip().splitlines()[0][:200]
        raise UnbraidError(f"{model!r} cannot be opened as a CLIPModel: {said}") from None
    try:
        pixels: dict[str, Any] = BaseImageProcessor.get_image_processor_dict(str(source))[0]
    except (OSError, ValueError):
        pixels = {}
    normal = pixels.get("image_mean", CLIP_MEAN), pixels.get("image_std", CLIP_STD)
    return found.eval().to(device), words, normal


PLAIN: dict[str, Score] = {
    "contrast": contrast, "saturation": saturation, "brightness": brightness, "detail": detail, "prompt": prompt,
    "content": content, "clarity": clarity,
}  # fmt: skip
MAKERS: dict[str, Callable[[str], Score]] = {
    "style": style, "background": background, "colour": colour, "shape": shape, "clip": clip,
}  # fmt: skip


def names() -> list[str]:
    """Objectives by name."""
    return [*PLAIN, "clip", *(f"{name}:..." for name in MAKERS)]


def objective(given: str | Score) -> tuple[str, Score]:
    """Name and function of an objective.

    Args:
        given: a function of (images, prompts), or a name: contrast, saturation, brightness, detail, prompt, content,
            clarity, clip, clip:MODEL, style:STYLE, background:NAME, colour:COLOUR, shape:SHAPE.

    Raises:
        UnbraidError: an unknown name, with near ones.
    """
    if callable(given):
        return str(vars(given).get("name", getattr(given, "__name__", type(given).__name__))), given
    name, _, rest = str(given).partition(":")
    if name in PLAIN and not rest:
        return name, PLAIN[name]
    if name == "clip":
        return given, clip(rest or "tiny-clip")
    if name in MAKERS and rest:
        return given, MAKERS[name](rest)
    close = difflib.get_close_matches(name, [*PLAIN, *MAKERS], 1, 0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise UnbraidError(f"there is no objective {given!r}; choose from {', '.join(names())}, or give a function.{hint}")


def _among(wanted: str, known: Sequence[str], what: str) -> int:
    if wanted not in known:
        close = difflib.get_close_matches(wanted, known, 1, 0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UnbraidError(f"there is no {what} {wanted!r}; choose from {', '.join(known)}.{hint}")
    return list(known).index(wanted)


def scored(name: str, function: Score, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """[n] finite numbers of an objective.

    Raises:
        UnbraidError: it returned something else.
    """
    found = np.asarray(function(images, prompts), dtype=float)
    if found.shape != (len(images),) or not np.isfinite(found).all():
        what = "numbers that are not finite" if found.shape == (len(images),) else f"the shape {found.shape}"
        raise UnbraidError(f"objective {name!r} gave {what} for {len(images)} pictures; it must give a number each.")
    return found


def diversity(images: np.ndarray) -> float:
    """Mean root-mean-square difference of all pairs of pictures, averaged to 16 x 16 first; 0 where all are alike."""
    n, channels, height, width = images.shape
    if n < 2:
        return 0.0
    step = max(1, min(height, width) // SIDE)
    small = images[:, :, : height // step * step, : width // step * step]
    small = small.reshape(n, channels, height // step, step, width // step, step).mean((3, 5)).reshape(n, -1)
    return float(pdist(small.astype(np.float64)).mean() / np.sqrt(small.shape[1]))
