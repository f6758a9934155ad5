"""Whether images show what prompts ask for, attribute by attribute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.data.scenes.asking import Prompt, Wanted, parse
from unbraid.data.scenes.finding import Located, locate
from unbraid.data.scenes.reading import checked, read
from unbraid.data.scenes.scene import Scene, Thing

if TYPE_CHECKING:
    from unbraid.core.result import Result

KNOWN = 0.5  # an identity from which a subject counts as seen
WORDS = ("shape", "colour", "texture", "size")


def score(images: np.ndarray, prompt: str | Prompt, subjects: Mapping[str, int] | None = None) -> dict[str, np.ndarray]:
    """Whether images show what a prompt asks for.

    Args:
        images: [n, 3, H, W] from 0 to 1, as `read` takes them.
        prompt: a sentence of the grammar, or what `parse` made of one.
        subjects: word of a new concept -> number of the subject that it stands for, as ``{"<mug>": 7}``; its ``shape``
            is right where `identity` is 0.5 or more. Without it, nothing is asked of a concept but to be somewhere.

    Returns:
        attribute -> [n] booleans: ``shape 1``, ``colour 1``, ... for what is said of the first thing, ``relation``,
        ``background``, ``background texture``, ``fade`` and ``style`` where the prompt says something of them,
        ``count`` (as many things as are named, where any is) and ``all`` (everything but the count). Things read are
        given to those named so that most is right.

    Raises:
        UnbraidError: the prompt is not understood, or the images are none.

    Example:
        >>> score(render(Scene((Thing("star", "yellow"),))), "a yellow star")["all"].tolist()
        [True]
    """
    wanted = prompt if isinstance(prompt, Prompt) else parse(prompt, tuple(subjects or ()))
    given = checked(images)
    places = {word: locate(given, number) for word, number in (subjects or {}).items()}
    rows = [
        _judged(scene, wanted, {word: (place, k) for word, place in places.items()})
        for k, scene in enumerate(read(given).scenes)
    ]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _judged(scene: Scene, prompt: Prompt, places: Mapping[str, tuple[Located, int]]) -> dict[str, bool]:
    """What is right about one image."""
    seen = [thing for thing in scene.things if not _within(thing, places)]
    stand_ins = [_stand_in(wanted, places) for wanted in prompt.things]
    ordinary = [k for k, wanted in enumerate(prompt.things) if wanted.concept not in places]
    best: dict[str, bool] = {}
    slots: list[int | None] = [*range(len(seen)), *([None] * len(ordinary))]
    for order in set(permutations(slots, len(ordinary))):
        things = list(stand_ins)
        for k, slot in zip(ordinary, order, strict=True):
            things[k] = None if slot is None else seen[slot]
        ranks = {k: slot for k, slot in zip(ordinary, order, strict=True) if slot is not None}
        row = _row(things, ranks, prompt)
        if not best or sum(row.values()) > sum(best.values()):
            best = row
    for name, said, found in (
        ("background", prompt.background, scene.background.name),
        ("background texture", prompt.ground_texture, scene.background.texture),
        ("fade", prompt.fade, scene.background.fade),
        ("style", prompt.style, scene.style),
    ):
        if said:
            best[name] = said == found
    everything = all(best.values())
    if prompt.things:
        found_new = sum(stand_ins[k] is not None for k in range(len(stand_ins)) if k not in ordinary)
        best["count"] = len(seen) + found_new == len(prompt.things)
    return best | {"all": everything}


def _row(things: Sequence[Thing | None], ranks: Mapping[int, int], prompt: Prompt) -> dict[str, bool]:
    made: dict[str, bool] = {}
    for k, (thing, wanted) in enumerate(zip(things, prompt.things, strict=True)):
        for name in WORDS:
            said = vars(wanted)[name]
            if wanted.concept and name == "shape":
                made[f"shape {k + 1}"] = thing is not None
            elif said:
                made[f"{name} {k + 1}"] = thing is not None and vars(thing)[name] == said
        if not wanted.concept and not wanted.shape:
            made[f"shape {k + 1}"] = thing is not None  # "a red thing": there is one
        if wanted.spot:
            made[f"place {k + 1}"] = thing is not None and set(wanted.spot.split()) <= set(thing.spot.split())
    if prompt.relation:
        from unbraid.data.scenes.scene import relation

        one, other = things[:2]
        in_front = ranks.get(0, 9) > ranks.get(1, 9) or (0 not in ranks and 1 in ranks)
        made["relation"] = one is not None and other is not None and relation(one, other, in_front) == prompt.relation
    return made


def _stand_in(wanted: Wanted, places: Mapping[str, tuple[Located, int]]) -> Thing | None:
    """The subject of a concept as a thing, where it is seen."""
    if wanted.concept not in places:
        return None
    place, k = places[wanted.concept]
    return place.things[k] if place.score[k] >= KNOWN else None


def _within(thing: Thing, places: Mapping[str, tuple[Located, int]]) -> bool:
    """Whether what was read as an ordinary thing is a part of a subject that is there."""
    for place, k in places.values():
        there = place.things[k]
        if place.score[k] >= KNOWN and np.hypot(thing.x - there.x, thing.y - there.y) < there.radius:
            return True
    return False


def agreement(
    images: Sequence[np.ndarray] | np.ndarray, prompts: Sequence[str], subjects: Mapping[str, int] | None = None
) -> Result:
    """How often images show what their prompts ask for.

    Args:
        images: for each prompt an image [3, H, W] or several [n, 3, H, W].
        prompts: what each was made from.
        subjects: as in `score`.

    Returns:
        A result with a table of attributes (share of right answers with a 95 % interval), one of prompts, and pictures
        with everything right and with something wrong.

    Raises:
        UnbraidError: not as many groups of images as prompts, or as in `score`.
    """
    from unbraid.core.result import Result

    if len(images) != len(prompts) or not len(prompts):
        raise UnbraidError(f"there are {len(images)} groups of images and {len(prompts)} prompts; give one each.")
    totals: dict[str, list[bool]] = {}
    rows: list[dict[str, Any]] = []
    shown: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for group, prompt in zip(images, prompts, strict=True):
        group = checked(group)
        judged = score(group, prompt, subjects)
        rows.append({"prompt": prompt, "images": len(group)} | {k: float(v.mean()) for k, v in judged.items()})
        for k, right in enumerate(judged["all"]):
            shown[bool(right)].append(group[k])
        for name, right in judged.items():
            group_name = name.rstrip(" 0123456789")
            totals.setdefault(group_name, []).extend(map(bool, right))
    keys = list(dict.fromkeys(key for row in rows for key in row))
    table = [{key: row.get(key) for key in keys} for row in rows]
    summary = []
    for name, right in totals.items():
        low, high = wilson(sum(right), len(right))
        summary.append(
            {"attribute": name, "asked": len(right), "right": float(np.mean(right)), "low": low, "high": high}
        )
    return Result(
        "scenes",
        "Images against their prompts",
        tables={"attributes": summary, "prompts": table},
        figures=_pictures(shown),
        lead="figures",
    )


def _pictures(shown: Mapping[bool, Sequence[np.ndarray]]) -> list[Any]:
    from unbraid.core.mosaic import mosaic
    from unbraid.core.result import Image

    made = []
    for right, title in ((True, "Everything as asked"), (False, "Something wrong")):
        some = shown[right][:40]
        if some:
            said = f"{len(some)} of {len(shown[right])} images"
            made.append(Image.from_array(mosaic(np.stack(some), 10), f"{said}: {title.lower()}", title, said + "."))
    return made


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson, 1927)."""
    z = 1.96
    share = right / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))
