"""Indirect object identification: two names, one comes again, the other one is the answer (arXiv 2211.00593)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.data.prompts.pairs import PromptPair, PromptSet
from unbraid.data.prompts.tokens import Encoder, Piece, Slots, check_count, need, pair

NAMES = (
    "Mary", "John", "Tom", "James", "Dan", "Sarah", "Paul", "Anna", "Mark", "Peter", "Kate", "Alice", "David", "Laura",
    "Simon", "Emma", "Jack", "Lucy", "Adam", "Ruth", "Frank", "Helen", "Martin", "Julia", "George", "Rachel", "Henry",
    "Jane", "Robert", "Susan", "Kevin", "Amy", "Steven", "Michael", "Lisa", "Daniel", "Maria", "Thomas", "Linda",
    "Scott",
)  # fmt: skip
PLACES = (
    "store", "garden", "restaurant", "school", "hospital", "office", "house", "station", "park", "museum", "library",
    "market",
)  # fmt: skip
THINGS = ("ring", "book", "drink", "key", "bag", "letter", "ticket", "basket", "computer", "flower", "camera", "card")
# {A} and {B} are the two names in the order of the first clause, {S} the one that comes again
TEMPLATES = (
    "Then,{A} and{B} went to the {place}.{S} gave a {thing} to",
    "When{A} and{B} got a {thing} at the {place},{S} decided to give it to",
    "Then,{A} and{B} had a long argument, and afterwards{S} said to",
    "After{A} and{B} went to the {place},{S} gave a {thing} to",
    "While{A} and{B} were working at the {place},{S} gave a {thing} to",
    "Then,{A} and{B} were thinking about going to the {place}.{S} wanted to give a {thing} to",
    "Friends{A} and{B} found a {thing} at the {place}.{S} gave it to",
    "The {place}{A} and{B} went to had a {thing}.{S} gave it to",
)


def indirect_object(
    tokenizer: Any,
    count: int = 100,
    seed: int = 0,
    shots: int = 0,
    twin: Literal["swap", "fresh"] = "swap",
    names: Sequence[str] = NAMES,
) -> PromptSet:
    """Prompts such as "Then, Mary and John went to the store. John gave a bag to" with the answer " Mary".

    Places: "IO", "S1", "S1+1", "S2", "end".

    Args:
        tokenizer: a fast tokenizer.
        count: how many prompts.
        seed: of templates, names, places and things; the same seed gives the same prompts.
        shots: solved examples before each prompt, the same before its twin.
        twin: "swap" exchanges the repeated name for the other, so that the other answer is right (arXiv 2310.08744);
            "fresh" exchanges all three names for two others, so that nothing is right (as most of the earlier paper's
            patching does), which also reaches what happens at the first two names.
        names: given names; those that are not a single token after a space are left out.

    Raises:
        UnbraidError: an unknown twin, or too few names are single tokens.
    """
    check_count(count, shots)
    if twin not in ("swap", "fresh"):
        raise UnbraidError(f"twin={twin!r} is unknown; choose 'swap' or 'fresh'.")
    encoder = Encoder(tokenizer)
    good = encoder.whole_words(names)
    need(good, 4, "names", len(names))
    rng = np.random.default_rng([seed, 1])
    found: list[PromptPair] = []
    for _ in range(20 * count):
        before = "".join(_shot(rng, good) for _ in range(shots))
        made = _make(encoder, rng, good, before, twin)
        if made is not None:
            found.append(made)
        if len(found) == count:
            return PromptSet("ioi", tuple(found), {"shots": shots, "seed": seed, "twin": twin})
    raise UnbraidError("This tokenizer melts names into the words before them, so no prompt has a token as its answer.")


def _make(encoder: Encoder, rng: np.random.Generator, names: list[str], before: str, twin: str) -> PromptPair | None:
    first, second, other, another = (str(n) for n in rng.choice(names, 4, replace=False))
    template, place, thing = str(rng.choice(TEMPLATES)), str(rng.choice(PLACES)), str(rng.choice(THINGS))
    repeated = bool(rng.integers(2))  # whether the first or the second name comes again
    subject, object_ = (first, second) if repeated else (second, first)

    def slots(a: str, b: str, s: str) -> Slots:
        return Slots([before, *_pieces(template, a, b, s, place, thing, repeated)])

    clean = slots(first, second, subject)
    corrupt = slots(first, second, object_) if twin == "swap" else slots(other, another, other if repeated else another)
    where = ("S2",) if twin == "swap" else ("IO", "S1", "S2")
    made = pair(encoder, clean, corrupt, [f" {object_}"], [f" {subject}"], source=where)
    if made is None:
        return None
    made.places["S1+1"] = tuple(i + 1 for i in made.places["S1"])
    made.places["source"] = made.places["S2"]
    return made


def _pieces(template: str, a: str, b: str, s: str, place: str, thing: str, repeated: bool) -> list[Piece]:
    words: dict[str, Piece] = {
        "A": (f" {a}", "S1" if repeated else "IO"), "B": (f" {b}", "IO" if repeated else "S1"), "S": (f" {s}", "S2"),
        "place": place, "thing": thing,
    }  # fmt: skip
    parts = template.replace("{", "\0{").replace("}", "}\0").split("\0")
    return [words[part[1:-1]] if part.startswith("{") else part for part in parts]


def _shot(rng: np.random.Generator, names: list[str]) -> str:
    a, b = (str(n) for n in rng.choice(names, 2, replace=False))
    template, place, thing = str(rng.choice(TEMPLATES)), str(rng.choice(PLACES)), str(rng.choice(THINGS))
    repeated = bool(rng.integers(2))
    s, answer = (a, b) if repeated else (b, a)
    return Slots(_pieces(template, a, b, s, place, thing, repeated)).text + f" {answer}.\n"
