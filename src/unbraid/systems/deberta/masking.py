"""Which tokens a masked language model has to guess: spans of words, as DeBERTa draws them."""

from __future__ import annotations

import numpy as np

from unbraid.core.errors import UnbraidError

Array = np.ndarray
NONE = -100  # label of a token that is not asked for


def mask_spans(
    ids: Array,
    *,
    mask_id: int,
    vocabulary: int,
    rng: np.random.Generator,
    special: Array | None = None,
    continues: Array | None = None,
    share: float = 0.15,
    longest: int = 3,
    split: tuple[float, float] = (0.8, 0.1),
    lowest: int = 0,
) -> tuple[Array, Array]:
    """Masked inputs and labels; drawn anew at each call.

    Args:
        ids: tokens, [B, N].
        mask_id: of the mask token.
        vocabulary: random tokens are below this.
        rng: what draws.
        special: tokens that are left alone, [B, N] of bool.
        continues: tokens that go on with the word before them, [B, N] of bool: words are masked whole. None: each token
            is a word.
        share: of the tokens that are asked for; 0.15 in the paper.
        longest: words of a span; spans of n words have a chance proportional to 1 / n.
        split: shares that become the mask token and stay as they are; the rest become random tokens.
            ``(1, 0)`` with ``longest=1`` is what the generator of v3 gets.
        lowest: random tokens are this or above.

    Returns:
        inputs [B, N] and labels [B, N], -100 where nothing is asked.

    Raises:
        UnbraidError: a share is out of range, or ``longest`` is not positive.
    """
    if not 0 < share < 1 or longest < 1 or min(split) < 0 or sum(split) > 1:
        raise UnbraidError(f"share {share}, longest {longest} and split {split} cannot be; see the defaults.")
    ids = np.asarray(ids)
    inputs, labels = ids.copy(), np.full_like(ids, NONE)
    chances = 1 / np.arange(1, longest + 1)
    for row in range(len(ids)):
        free = np.ones(ids.shape[1], bool) if special is None else ~special[row]
        words = _words(free, None if continues is None else continues[row])
        budget = max(1, round(share * int(free.sum()))) if len(words) else 0
        chosen = _spans(words, budget, chances / chances.sum(), rng)
        labels[row, chosen] = ids[row, chosen]
        kind = rng.random(len(chosen))
        inputs[row, chosen[kind < split[0]]] = mask_id
        other = chosen[kind >= sum(split)]
        inputs[row, other] = rng.integers(lowest, vocabulary, len(other))
    return inputs, labels


def _words(free: Array, continues: Array | None) -> list[Array]:
    places = np.flatnonzero(free)
    if not len(places):
        return []
    starts = np.ones(len(places), bool) if continues is None else ~continues[places]
    starts[1:] |= np.diff(places) > 1
    starts[0] = True
    return np.split(places, np.flatnonzero(starts)[1:])


def _spans(words: list[Array], budget: int, chances: Array, rng: np.random.Generator) -> Array:
    """Places of spans in a random order until the budget is reached; one that would pass it is cut to whole words."""
    taken = np.zeros(len(words), bool)
    found: list[Array] = []
    count = 0
    for start in rng.permutation(len(words)):
        for word in range(start, min(start + 1 + rng.choice(len(chances), p=chances), len(words))):
            if taken[word] or (count and count + len(words[word]) > budget):
                break
            taken[word] = True
            found.append(words[word])
            count += len(words[word])
        if count >= budget:
            break
    return np.sort(np.concatenate(found)) if found else np.zeros(0, int)
