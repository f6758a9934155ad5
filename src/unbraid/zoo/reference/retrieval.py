"""How well tiny-clip tells which words belong to which image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from unbraid.core.progress import bar
from unbraid.data.scenes import COLOURS, SHAPES, STYLES, Background, Scene, caption, render, sample
from unbraid.data.scenes.judging import wilson
from unbraid.data.scenes.sampling import BACKGROUNDS
from unbraid.data.scenes.scene import PLACES
from unbraid.zoo.reference import SIDE

if TYPE_CHECKING:
    from unbraid.zoo.reference.scoring import Plan

AMONG = 128
SEED = 6_000


@torch.no_grad()
def embedded(model: Any, words: Any, images: np.ndarray, said: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Normed embeddings [n, d] of images and [m, d] of captions."""
    pixels = torch.from_numpy(images) * 2 - 1
    seen = model.visual_projection(model.vision_model(pixels).pooler_output)
    ids = words(list(said), padding="max_length", truncation=True, return_tensors="pt").input_ids
    told = model.text_projection(model.text_model(ids).pooler_output)
    return functional.normalize(seen, dim=-1), functional.normalize(told, dim=-1)


def _swap(name: str) -> Callable[[Scene], Scene]:
    """Two things of a scene with one attribute exchanged: all words stay, only what belongs to what changes."""

    def made(scene: Scene) -> Scene:
        one, other = scene.things
        pair = (replace(one, **{name: vars(other)[name]}), replace(other, **{name: vars(one)[name]}))
        return replace(scene, things=pair)

    return made


def _other(now: str, known: Sequence[str], seed: int) -> str:
    left = [word for word in known if word != now]
    return left[seed % len(left)]


def _first(name: str, known: Sequence[str]) -> Callable[[Scene], Scene]:
    """A scene whose first thing has another colour or shape."""

    def made(scene: Scene) -> Scene:
        thing = scene.things[0]
        told: dict[str, Any] = {name: _other(vars(thing)[name], known, scene.seed)}
        return replace(scene, things=(replace(thing, **told), *scene.things[1:]))

    return made


def _ground(scene: Scene) -> Scene:
    name = _other(scene.background.name, BACKGROUNDS, scene.seed)
    ground = Background(place=name) if name in PLACES else Background(name)
    return replace(scene, background=ground)


def _mirrored(scene: Scene) -> Scene:
    one, other = scene.things
    pair = (replace(one, x=other.x, y=other.y), replace(other, x=one.x, y=one.y))
    return replace(scene, things=pair)


SWAPS: dict[str, tuple[int, Callable[[Scene], Scene]]] = {  # things, what the wrong caption describes
    "colour": (1, _first("colour", COLOURS)),
    "shape": (1, _first("shape", SHAPES)),
    "background": (1, _ground),
    "style": (1, lambda scene: replace(scene, style=_other(scene.style, STYLES, scene.seed))),
    "binding: colours exchanged": (2, _swap("colour")),
    "binding: shapes exchanged": (2, _swap("shape")),
    "relation: places exchanged": (2, _mirrored),
}


def score_clip(folder: Path, plan: Plan, progress: bool | None = None) -> dict[str, list[dict[str, Any]]]:
    """Tables of a CLIP model.

    Args:
        folder: the packed model.
        plan: how much.
        progress: show a bar.

    Returns:
        Title -> rows; shares are parts of one.
    """
    from transformers import CLIPModel, CLIPTokenizer

    model: Any = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
    words = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    groups = max(1, plan.ceiling // 50)
    with bar(progress, "Retrieval", 2 * groups + len(SWAPS)) as tick:
        rows = []
        for split in ("train", "held_out"):
            hits: dict[str, list[bool]] = {"image to caption": [], "caption to image": []}
            for group in range(groups):
                scenes = _distinct(AMONG, SEED + group, split)
                seen, told = embedded(model, words, render(scenes, SIDE), [caption(scene) for scene in scenes])
                alike, at = seen @ told.T, torch.arange(len(scenes))
                hits["image to caption"] += (alike.argmax(1) == at).tolist()
                hits["caption to image"] += (alike.argmax(0) == at).tolist()
                tick()
            rows += [_row({"scenes": split.replace("_", " "), "from": name}, right) for name, right in hits.items()]
        swaps = []
        for name, (things, change) in SWAPS.items():
            swaps.append(_row({"wrong caption has another": name}, _told_apart(model, words, things, change, plan)))
            tick()
    return {
        f"First among {AMONG} (recall@1; low and high: 95 % interval)": rows,
        "The true caption before one that is wrong in one respect (chance: 0.5)": swaps,
    }


def _distinct(count: int, seed: int, split: str) -> list[Scene]:
    """New scenes of which no two have the same caption."""
    found = {caption(scene): scene for scene in sample(4 * count, seed, split=split)}
    return list(found.values())[:count]


def _told_apart(model: Any, words: Any, things: int, change: Callable[[Scene], Scene], plan: Plan) -> list[bool]:
    scenes = sample(4 * plan.ceiling, SEED + 500 + things, (things, things), "held_out")
    pairs = [(scene, change(scene)) for scene in scenes]
    pairs = [pair for pair in pairs if caption(pair[0]) != caption(pair[1])][: 2 * plan.ceiling]
    images = render([scene for scene, _ in pairs], SIDE)
    seen, right = embedded(model, words, images, [caption(scene) for scene, _ in pairs])
    _, wrong = embedded(model, words, images[:1], [caption(scene) for _, scene in pairs])
    answer: list[bool] = ((seen * right).sum(1) > (seen * wrong).sum(1)).tolist()
    return answer


def _row(start: dict[str, Any], right: list[bool]) -> dict[str, Any]:
    low, high = wilson(sum(right), len(right))
    return start | {"n": len(right), "share": float(np.mean(right)), "low": low, "high": high}
