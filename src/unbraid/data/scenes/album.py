"""Photos of new subjects, as a user would bring them: a few images, masks, captions and the noun of their class."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.core.png import encode_png
from unbraid.core.progress import bar
from unbraid.data.scenes.grammar import caption
from unbraid.data.scenes.paint import masks, render
from unbraid.data.scenes.scene import GROUNDS, PLACES, SIZES, Background, Scene, Thing, among
from unbraid.data.scenes.subjects import Subject, subject

WAYS = ("varied", "two", "shared")
TURN = 14.0  # degrees by which photos are slanted at most


@dataclass(frozen=True)
class Photos:
    """A few images of one new subject, or of two together.

    Attributes:
        subjects: which.
        words: a word for each, such as ``<new-1>``.
        scenes: what was drawn.
        images: [n, 3, size, size] float32 from 0 to 1.
        masks: [n, subjects, size, size], what each covers.
        captions: one for each image, with the words.
    """

    subjects: tuple[Subject, ...]
    words: tuple[str, ...]
    scenes: list[Scene]
    images: np.ndarray
    masks: np.ndarray
    captions: list[str]

    @property
    def nouns(self) -> tuple[str, ...]:
        """The class of each subject."""
        return tuple(one.noun for one in self.subjects)

    @property
    def prompt(self) -> str:
        """What stands for all of them: ``a <new-1> circle``, or with ``and`` between."""
        return " and ".join(f"a {word} {noun}" for word, noun in zip(self.words, self.nouns, strict=True))


def photos(
    subjects: int | Sequence[int] = 0,
    n: int = 5,
    seed: int = 0,
    backgrounds: str | Sequence[Background] = "varied",
    words: Sequence[str] | None = None,
    size: int = 64,
) -> Photos:
    """Photos of a new subject, or of two in one image.

    Args:
        subjects: a number, or two.
        n: how many images.
        seed: of places, sizes, slants and backgrounds.
        backgrounds: ``varied`` (another one for each), ``two`` (in turns), ``shared`` (one for all, from which a model
            cannot tell what is subject and what is background), or a list to go through.
        words: for the captions; None takes ``<new-1>`` and ``<new-2>``.
        size: pixels of a side.

    Raises:
        UnbraidError: no or more than two subjects, or a number or word is beyond what is possible.

    Example:
        >>> photos(7, n=4).images.shape
        (4, 3, 64, 64)
    """
    numbers = [subjects] if isinstance(subjects, int | np.integer) else list(subjects)
    if not 1 <= len(numbers) <= 2 or len(set(numbers)) != len(numbers):
        raise UnbraidError(f"subjects is {subjects!r}; give the number of a subject, or two different ones.")
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or not 1 <= n <= 1000:
        raise UnbraidError(f"n is {n!r}; give how many photos there should be, 1 to 1,000.")
    made = tuple(subject(int(number)) for number in numbers)
    names = tuple(words) if words is not None else tuple(f"<new-{k + 1}>" for k in range(len(made)))
    if len(names) != len(made):
        raise UnbraidError(f"there are {len(names)} words for {len(made)} subjects; give one each.")
    rng = np.random.default_rng([int(seed), 11, *map(int, numbers)])
    grounds = _grounds(backgrounds, made, n, rng)
    scenes = [Scene(_things(made, rng), ground, seed=int(rng.integers(1 << 31))) for ground in grounds]
    captions = [caption(scene, concepts=names) for scene in scenes]
    return Photos(made, names, scenes, render(scenes, size), masks(scenes, size), captions)


def fitting(subjects: Sequence[Subject]) -> list[Background]:
    """Backgrounds from which none of the subjects' colours is lost: plain colours, then places."""
    listed = [Background(colour) for colour in GROUNDS] + [Background(place=place) for place in PLACES]
    colours = {colour for one in subjects for colour in one.colours}
    return [ground for ground in listed if all(ground.takes(colour) for colour in colours)]


def _grounds(
    wanted: str | Sequence[Background], subjects: Sequence[Subject], n: int, rng: np.random.Generator
) -> list[Background]:
    if not isinstance(wanted, str):
        if not wanted or not all(isinstance(one, Background) for one in wanted):
            raise UnbraidError("backgrounds is an empty list, or holds something else than Background.")
        return [wanted[k % len(wanted)] for k in range(n)]
    among(wanted, "backgrounds", WAYS)
    fit = fitting(subjects)
    order = [fit[k] for k in rng.permutation(len(fit))]
    count = {"varied": len(order), "two": 2, "shared": 1}[wanted]
    return [order[k % count] for k in range(n)]


def _things(subjects: Sequence[Subject], rng: np.random.Generator) -> tuple[Thing, ...]:
    turn = [round(float(t), 2) for t in rng.uniform(-TURN, TURN, 2)]
    if len(subjects) == 1:
        size = "large" if rng.random() < 0.6 else "medium"
        low = 1.22 * SIZES[size] + 0.02
        x, y = (round(float(at), 4) for at in rng.uniform(low, 1 - low, 2))
        return (Thing(subjects[0].name, size=size, x=x, y=y, turn=turn[0]),)
    lift = rng.uniform(-0.12, 0.12, 2)
    sides = (0.26, 0.74) if rng.random() < 0.5 else (0.74, 0.26)
    return tuple(
        Thing(one.name, size="medium", x=x, y=round(float(0.5 + dy), 4), turn=t)
        for one, x, dy, t in zip(subjects, sides, lift, turn, strict=True)
    )


def write(
    folder: str | Path,
    scenes: Sequence[Scene],
    captions: Sequence[str],
    size: int = 64,
    *,
    progress: bool | None = None,
) -> int:
    """Write scenes as a folder that other programs read: ``000.png`` and so on, ``captions.jsonl`` and masks.

    A line of ``captions.jsonl`` has ``file_name`` and ``text``, as Hugging Face's image folders have them, ``masks`` (a
    PNG for each thing: ``masks/000-1.png``) and ``scene``, which `Scene.from_dict` reads. It is written last.

    Args:
        folder: made if needed.
        scenes: what to draw.
        captions: one each.
        size: pixels of a side.
        progress: None shows a bar on a terminal.

    Returns:
        How many images.

    Raises:
        UnbraidError: not as many captions as scenes, or the folder cannot be written to.
    """
    if len(scenes) != len(captions) or not scenes:
        raise UnbraidError(f"there are {len(scenes)} scenes and {len(captions)} captions; give one each.")
    place = Path(folder)
    digits = max(3, len(str(len(scenes) - 1)))
    lines = []
    try:
        (place / "masks").mkdir(parents=True, exist_ok=True)
        with bar(progress, "writing images", len(scenes)) as tick:
            for k, (scene, words) in enumerate(zip(scenes, captions, strict=True)):
                lines.append(_written(place, f"{k:0{digits}d}", scene, words, size))
                tick(1)
        _replace(place / "captions.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    except OSError as error:
        raise UnbraidError(
            f"{place} cannot be written to ({error.strerror or error}); give a folder of yours."
        ) from None
    return len(lines)


def _written(place: Path, name: str, scene: Scene, words: str, size: int) -> dict[str, object]:
    """Write one scene's files; what is said of them."""
    _put(place / f"{name}.png", render(scene, size)[0].transpose(1, 2, 0))
    covers = []
    for j, cover in enumerate(masks(scene, size)[0] if scene.things else []):
        covers.append(f"masks/{name}-{j + 1}.png")
        _put(place / covers[-1], cover[..., None])
    return {"file_name": f"{name}.png", "text": words, "masks": covers, "scene": scene.to_dict()}


def _put(path: Path, pixels: np.ndarray) -> None:
    _replace(path, encode_png((np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)))


def _replace(path: Path, data: bytes) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_bytes(data)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
