"""Haystacks and needles of our own: endless plain prose, and made-up facts that no model can know beforehand."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from unbraid.core.errors import UnbraidError

Difficulty = Literal["single", "multi", "passkey"]

PLACES = (
    "harbour", "old mill", "market square", "orchard", "railway station", "lighthouse", "town library", "stone bridge",
    "botanical garden", "ferry landing", "school yard", "bakery", "weather station", "village hall", "quarry",
    "canal towpath", "observatory", "post office", "boat shed", "cider press",
)  # fmt: skip
PEOPLE = (
    "The baker", "A carpenter", "The schoolteacher", "An old sailor", "The postwoman", "A travelling musician",
    "The gardener", "A young surveyor", "The ferryman", "The librarian", "A retired engineer", "The beekeeper",
    "A visiting painter", "The miller", "The stationmaster", "A night watchman",
)  # fmt: skip
ACTS = (
    "counted the boats that came in before noon", "repaired a window that had stuck since the spring",
    "argued with a neighbour about the price of firewood", "read aloud from a newspaper that was three days old",
    "carried two heavy baskets up the hill without resting", "waited for a letter that did not arrive",
    "drew a careful map of the paths along the river", "polished the brass handles until they shone",
    "told a long story about a storm at sea", "planted a row of beans along the southern wall",
    "listened to the rain on the tin roof and fell asleep", "measured the depth of the well with a knotted rope",
    "swept the leaves into a pile that the wind undid", "traded a basket of apples for a coil of rope",
    "watched the geese pass over in a ragged line", "mended a torn net by the light of a small lamp",
)  # fmt: skip
TIMES = (
    "In the early morning", "Shortly after lunch", "On the second day of the week", "Late in the afternoon",
    "Before the bell had rung", "When the fog finally lifted", "During the long evening",
    "Towards the end of the month",
    "While the tide was still low", "As soon as the shops had opened", "At the turn of the season", "One quiet Sunday",
)  # fmt: skip
REMARKS = (
    "Nobody thought it strange at the time.", "The air smelled of wet hay and smoke.", "It took longer than expected.",
    "A dog barked somewhere and then was silent.", "The light changed slowly from grey to gold.",
    "Most people had already gone home by then.", "There was no hurry, and so nobody hurried.",
    "The tea had gone cold on the table.", "Children were playing a game with chalk and stones.",
    "The work was dull, but it was honest work.", "Clouds were gathering over the western ridge.",
    "Somebody laughed, although nothing funny had been said.", "The road was muddy and full of puddles.",
    "Later they would remember the day quite differently.", "The clock on the tower was five minutes slow.",
    "A cart loaded with barrels rolled past.", "The river was higher than it had been for years.",
)  # fmt: skip

SHOPS = (
    "Copper Lantern", "Blue Heron", "Velvet Anchor", "Silver Thistle", "Crooked Chimney", "Golden Plover",
    "Painted Drum", "Winter Fox", "Iron Teapot", "Sleeping Giant",
)  # fmt: skip
INGREDIENTS = (
    "smoked paprika", "roasted chestnuts", "pickled ginger", "black garlic", "toasted barley", "dried plums",
    "orange blossom", "salted almonds", "wild thyme", "burnt honey",
)  # fmt: skip
DISHES = ("soup", "stew", "bread", "pie", "tea", "jam", "porridge", "salad", "cider", "pudding")
NAMES = (
    "Orla Venn", "Tobias Marrick", "Ines Calloway", "Pavel Drummond", "Mira Tanaka", "Hugo Bellweather", "Sanna Holt",
    "Edwin Marsh", "Lucia Ferrand", "Amir Castell",
)  # fmt: skip
JOBS = (
    "glass blower", "clock maker", "bridge painter", "map printer", "violin tuner", "kite builder", "salt merchant",
    "rope maker", "bell founder", "lamp lighter",
)  # fmt: skip
TOWNS = (
    "Harrowfield", "Port Selkie", "Dunmere", "Lower Quill", "Ashby Ferry", "Kestrel Bay", "Wendle", "Stonecross",
    "Marlow Hythe", "Upper Tarn",
)  # fmt: skip
THINGS = (
    "fly a paper kite from the old pier", "eat warm plum cake beside the canal", "row a green boat to the island",
    "climb the bell tower before sunrise", "feed the white deer in the park", "ride the yellow tram to the beach",
    "listen to the brass band on the roof", "pick blackberries behind the chapel", "skate on the frozen mill pond",
    "watch the lanterns float down the river",
)  # fmt: skip
OBJECTS = (
    "brass key", "red notebook", "silver whistle", "wooden flute", "glass marble", "blue envelope", "torn ticket",
    "ivory comb", "tin soldier", "pearl button",
)  # fmt: skip
HIDING = (
    "under the third step of the mill", "behind the portrait of the admiral", "inside the hollow oak",
    "beneath a stack of old maps", "in the pocket of a green coat", "at the bottom of the flour barrel",
    "between two loose bricks of the chimney", "in the beak of the stone owl", "under the saddle of the grey horse",
    "inside the broken piano",
)  # fmt: skip


@dataclass(frozen=True)
class Needle:
    """A fact hidden in a haystack.

    Attributes:
        sentences: the sentences that are hidden, each at a sentence end of its own.
        question: what is asked afterwards.
        answer: the text that a right answer contains (for multi-fact needles, all facts one after another).
        difficulty: "single", "multi" or "passkey".
    """

    sentences: tuple[str, ...]
    question: str
    answer: str
    difficulty: Difficulty = "single"


def haystack(seed: int, sentences: int) -> list[str]:
    """Plain prose, one sentence an item, from a few lists; the same seed gives the same text."""
    rng = np.random.default_rng([seed, 7])
    out: list[str] = []
    while len(out) < sentences:
        who, act, when, place = (rng.choice(x) for x in (PEOPLE, ACTS, TIMES, PLACES))
        form = rng.integers(4)
        if form == 0:
            out.append(f"{when}, near the {place}, {who[0].lower() + who[1:]} {act}.")
        elif form == 1:
            out.append(f"{who} from the {place} {act}.")
        elif form == 2:
            out.append(f"{when}, {who[0].lower() + who[1:]} went to the {place} and {act}.")
        else:
            out.append(str(rng.choice(REMARKS)))
    return out[:sentences]


def needle(seed: int, difficulty: Difficulty = "single") -> Needle:
    """A made-up fact; different seeds give different facts.

    Raises:
        UnbraidError: an unknown difficulty.
    """
    rng = np.random.default_rng([seed, 11])
    if difficulty == "passkey":
        key = "".join(str(d) for d in rng.integers(0, 10, 6))
        return Needle((f"The pass key is {key}.",), "What is the pass key?", f"The pass key is {key}.", "passkey")
    if difficulty == "single":
        return _single(rng, int(rng.integers(4)))
    if difficulty == "multi":
        facts = [_single(rng, form) for form in rng.choice(4, 2, replace=False)]
        return Needle(
            tuple(f.sentences[0] for f in facts),
            " And ".join([facts[0].question, facts[1].question[0].lower() + facts[1].question[1:]]),
            " ".join(f.answer for f in facts),
            "multi",
        )
    raise UnbraidError(f"difficulty={difficulty!r} is unknown; choose 'single', 'multi' or 'passkey'.")


def _single(rng: np.random.Generator, form: int) -> Needle:
    def pick(items: Sequence[str]) -> str:
        return str(rng.choice(list(items)))

    if form == 0:
        shop, dish, what = pick(SHOPS), pick(DISHES), pick(INGREDIENTS)
        said = f"The secret ingredient of the {dish} at the {shop} is {what}."
        return Needle((said,), f"What is the secret ingredient of the {dish} at the {shop}?", said)
    if form == 1:
        town, thing = pick(TOWNS), pick(THINGS)
        said = f"The best thing to do in {town} is to {thing}."
        return Needle((said,), f"What is the best thing to do in {town}?", said)
    if form == 2:
        name, job, town = pick(NAMES), pick(JOBS), pick(TOWNS)
        said = f"{name} worked for many years as a {job} in {town}."
        return Needle((said,), f"What did {name} do for work, and where?", said)
    thing, place = pick(OBJECTS), pick(HIDING)
    said = f"The {thing} is hidden {place}."
    return Needle((said,), f"Where is the {thing} hidden?", said)


def read_haystack(path: Path) -> list[str]:
    """The user's own text, cut at sentence ends.

    Raises:
        UnbraidError: the file cannot be read as UTF-8 text or holds fewer than two sentences.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnbraidError(f"--haystack {path} cannot be read as UTF-8 text: {error}.") from None
    sentences = [s.strip() for s in re.split(r"(?<=[.!?。！？])\s+", " ".join(text.split())) if s.strip()]
    if len(sentences) < 2:
        raise UnbraidError(f"--haystack {path} holds {len(sentences)} sentences; give a text of at least two.")
    return sentences


def read_needles(path: Path) -> list[Needle]:
    """The user's own needles: a JSON list (or one JSON object per line) with "needle", "question" and maybe "answer".

    Raises:
        UnbraidError: the file cannot be read, or an item lacks a field.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
        items = json.loads(text) if text.startswith("[") else [json.loads(x) for x in text.splitlines() if x.strip()]
    except (OSError, ValueError) as error:
        raise UnbraidError(f"--needles {path} cannot be read as JSON: {error}.") from None
    out = []
    for number, item in enumerate(items):
        said, question = (item.get("needle"), item.get("question")) if isinstance(item, dict) else (None, None)
        if not said or not question:
            raise UnbraidError(f'--needles {path}: item {number} needs the fields "needle" and "question".')
        sentences = (said,) if isinstance(said, str) else tuple(said)
        answer = str(item.get("answer") or " ".join(sentences))
        out.append(Needle(sentences, str(question), answer, "multi" if len(sentences) > 1 else "single"))
    if not out:
        raise UnbraidError(f"--needles {path} holds no needle.")
    return out
