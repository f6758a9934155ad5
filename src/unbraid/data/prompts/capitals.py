"""World capitals: a country, its capital; recall from memory, which shares little with copying (arXiv 2310.08744)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.data.prompts.pairs import PromptPair, PromptSet
from unbraid.data.prompts.tokens import Encoder, Slots, check_count, pair

CAPITALS = (
    ("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Germany", "Berlin"), ("England", "London"),
    ("Japan", "Tokyo"), ("China", "Beijing"), ("Russia", "Moscow"), ("Egypt", "Cairo"), ("Greece", "Athens"),
    ("Austria", "Vienna"), ("Poland", "Warsaw"), ("Portugal", "Lisbon"), ("Ireland", "Dublin"), ("Norway", "Oslo"),
    ("Sweden", "Stockholm"), ("Finland", "Helsinki"), ("Denmark", "Copenhagen"), ("Hungary", "Budapest"),
    ("Turkey", "Ankara"), ("Canada", "Ottawa"), ("Cuba", "Havana"), ("Peru", "Lima"), ("Chile", "Santiago"),
    ("India", "New"), ("Iran", "Tehran"), ("Iraq", "Baghdad"), ("Syria", "Damascus"), ("Kenya", "Nairobi"),
    ("Thailand", "Bangkok"), ("Vietnam", "Hanoi"), ("Australia", "Canberra"), ("Belgium", "Brussels"),
    ("Ukraine", "Kiev"), ("Lebanon", "Beirut"), ("Romania", "Bucharest"), ("Bulgaria", "Sofia"), ("Serbia", "Belgrade"),
    ("Nepal", "Kathmandu"), ("Afghanistan", "Kabul"),
)  # fmt: skip


def world_capitals(
    tokenizer: Any,
    count: int = 100,
    seed: int = 0,
    shots: int = 1,
    capitals: Sequence[tuple[str, str]] = CAPITALS,
) -> PromptSet:
    """Prompts such as "The capital of France is", with the answer " Paris"; the twin names another country.

    Places: "country", "end".

    Args:
        tokenizer: a fast tokenizer.
        count: how many prompts.
        seed: of the countries.
        shots: other countries with their capitals before each prompt.
        capitals: (country, capital); countries that are not a single token after a space are left out.

    Raises:
        UnbraidError: fewer countries are single tokens than the prompts need.
    """
    check_count(count, shots)
    encoder = Encoder(tokenizer)
    whole = set(encoder.whole_words([country for country, _ in capitals]))
    good = [(c, town) for c, town in capitals if c in whole]
    if len(good) < 2 + shots:
        raise UnbraidError(
            f"Only {len(good)} of {len(capitals)} countries are single tokens for this tokenizer; {shots} shots need "
            f"{2 + shots}: give capitals= of your own."
        )
    rng = np.random.default_rng([seed, 4])
    found: list[PromptPair] = []
    for _ in range(20 * count):
        picked = [good[i] for i in rng.choice(len(good), 2 + shots, replace=False)]
        before = "".join(f"The capital of {c} is {town}.\n" for c, town in picked[2:])
        (country, town), (other, other_town) = picked[:2]
        clean, corrupt = (Slots([before, "The capital of", (f" {c}", "country"), " is"]) for c in (country, other))
        made = pair(encoder, clean, corrupt, [f" {town}"], [f" {other_town}"], source=("country",))
        if made is not None:
            made.places["source"] = made.places["country"]
            found.append(made)
        if len(found) == count:
            return PromptSet("capitals", tuple(found), {"shots": shots, "seed": seed})
    raise UnbraidError("This tokenizer melts the answers into the prompts, so no prompt has a token as its answer.")
