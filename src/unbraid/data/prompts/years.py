"""Greater-than: a span of years whose second year is not finished (after arXiv 2305.00586)."""

from __future__ import annotations

from typing import Any

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.data.prompts.pairs import PromptPair, PromptSet
from unbraid.data.prompts.tokens import Encoder, Slots, check_count, pair

EVENTS = (
    "war", "siege", "project", "journey", "reign", "drought", "trial", "voyage", "revolt", "study", "dispute", "tour",
    "famine", "alliance", "campaign", "contract",
)  # fmt: skip


def greater_than(tokenizer: Any, count: int = 100, seed: int = 0, shots: int = 0) -> PromptSet:
    """Prompts such as "The war lasted from the year 1732 to the year 17", after which a greater number is right.

    Where the tokenizer keeps two digits together, answers are the two-digit endings above the first year's and
    distractors the others; where every digit is a token of its own, the same for the first digit alone (the first
    year's own digit, which can be right or wrong, is left out). The twin's span begins in the year 01 of the century.
    Places: "start" (the ending of the first year), "century", "end".

    Args:
        tokenizer: a fast tokenizer.
        count: how many prompts.
        seed: of events and years.
        shots: finished spans before each prompt.

    Raises:
        UnbraidError: the tokenizer cuts years in yet another way.
    """
    check_count(count, shots)
    encoder = Encoder(tokenizer)
    digits = _digits(encoder)
    rng = np.random.default_rng([seed, 3])
    found: list[PromptPair] = []
    for _ in range(20 * count):
        before = "".join(_shot(rng) for _ in range(shots))
        made = _make(encoder, rng, digits, before)
        if made is not None:
            found.append(made)
        if len(found) == count:
            return PromptSet("greater_than", tuple(found), {"shots": shots, "seed": seed, "digits": digits})
    raise UnbraidError(
        "This tokenizer melts the ending of a year into what stands before it; greater-than needs a cut."
    )


def _digits(encoder: Encoder) -> int:
    """Digits per token inside a year: 2 or 1."""
    for digits, whole in ((2, "1745"), (1, "1745")):
        slots = Slots(["the year ", ("17", "century"), (whole[2:], "start"), " to"])
        _, spans = encoder.encode(slots.text)
        at = encoder.places(slots, spans)
        apart = not set(at["century"]) & set(at["start"])
        if apart and len(at["start"]) == 2 // digits and len(at["century"]) == 2 // digits:
            return digits
    raise UnbraidError(
        "This tokenizer cuts years neither into two halves nor into single digits (1745), so the endings of years "
        "cannot be compared; use another task."
    )


def _make(encoder: Encoder, rng: np.random.Generator, digits: int, before: str) -> PromptPair | None:
    event, century = str(rng.choice(EVENTS)), int(rng.integers(11, 18))
    ending = int(rng.integers(2, 98)) if digits == 2 else int(rng.integers(2, 9)) * 10 + int(rng.integers(2, 10))

    def slots(end: int) -> Slots:
        pieces = [f"{before}The {event} lasted from the year ", (f"{century}", "century"), (f"{end:02d}", "start")]
        return Slots([*pieces, f" to the year {century}"])  # type: ignore[list-item]

    if digits == 2:
        right = [f"{y:02d}" for y in range(ending + 1, 100)]
        wrong = [f"{y:02d}" for y in range(0, ending + 1)]
    else:
        right = [str(d) for d in range(ending // 10 + 1, 10)]
        wrong = [str(d) for d in range(0, ending // 10)]
    made = pair(encoder, slots(ending), slots(1), right, wrong, source=("start",), whole=True)
    if made is not None:
        made.places["source"] = made.places["start"]
    return made


def _shot(rng: np.random.Generator) -> str:
    event, century = str(rng.choice(EVENTS)), int(rng.integers(11, 18))
    start = int(rng.integers(2, 70))
    stop = int(rng.integers(start + 1, 100))
    return f"The {event} lasted from the year {century}{start:02d} to the year {century}{stop:02d}.\n"
