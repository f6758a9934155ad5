"""The search itself: heads added round by round by what they do to a score, on top of those chosen before.

It knows nothing of models: `evaluate(sets, items)` says what each set of heads makes of each item, a prompt and a
seed.

Reference: arXiv 2506.10978, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores, HeadSet

Evaluate = Callable[[Sequence[HeadSet], Sequence[int]], np.ndarray]


@dataclass
class Hunt:
    """What a search found.

    Attributes:
        heads: the chosen ones, in the order of choice.
        base: mean score without guidance.
        score: mean score with the chosen heads.
        trace: one row a round: candidates, heads added, best candidate's score, the set's score.
        single: what each head does alone: mean score less the base, from the first round (NaN where it was dropped).
        stopped: whether the search ended early because nothing was gained.
    """

    heads: HeadSet
    base: float
    score: float
    trace: list[dict[str, Any]] = field(default_factory=list)
    single: HeadScores | None = None
    stopped: bool = False


def hunt(
    evaluate: Evaluate,
    heads: HeadSet,
    items: int,
    k: int = 3,
    rounds: int = 5,
    *,
    stop: bool = False,
    halving: int = 1,
) -> Hunt:
    """HeadHunter's search.

    Args:
        evaluate: [sets, items] scores; the same items for every set, so that sets are compared on the same noise.
        heads: candidates.
        items: how many there are.
        k: heads added a round.
        rounds: at most.
        stop: end when a round gains nothing over the set before it (the paper's search goes on).
        halving: 1 scores every candidate on all items; with more stages, all are scored on the first items only, and
            the better half goes on to twice as many (successive halving).

    Raises:
        UnbraidError: no candidates or items, or numbers below 1.
    """
    for name, value in (("k", k), ("rounds", rounds), ("halving", halving), ("prompts", items)):
        if value < 1:
            raise UnbraidError(f"{name} is {value}; it must be at least 1.")
    if not len(heads):
        raise UnbraidError("there are no heads to choose from.")
    everything = list(range(items))
    base = float(np.mean(evaluate([HeadSet()], everything)))
    found = Hunt(HeadSet(), base, base)
    rest = list(heads)
    for number in range(rounds):
        if not rest:
            break
        sets = [found.heads | HeadSet([head]) for head in rest]
        scores = _scores(evaluate, sets, items, max(1, min(k, len(rest))), halving)
        if number == 0:
            found.single = as_table(heads, dict(zip(rest, scores - base, strict=True)))
        order = np.argsort(-np.where(np.isnan(scores), -np.inf, scores), kind="stable")
        added = [rest[i] for i in order[:k] if not np.isnan(scores[i])]
        best = float(scores[order[0]])
        new, reached = _joined(evaluate, found, added, best, everything, stop)
        row = {
            "round": number + 1, "candidates": len(rest), "base": found.score, "best candidate": best,
            "worst candidate": float(np.nanmin(scores)), "score": reached,
            "added": " ".join(f"{site}:{h}" for site, h in new - found.heads) or "none",
        }  # fmt: skip
        found.trace.append(row)
        if len(new) == len(found.heads):
            found.stopped = True
            break
        found.heads, found.score = new, reached
        rest = [head for head in rest if head not in new]
    return found


def _joined(
    evaluate: Evaluate, found: Hunt, added: list[Any], best: float, items: list[int], stop: bool
) -> tuple[HeadSet, float]:
    """The set after a round and its score; with `stop`, never a set that scores no more than the one before."""
    for count in (len(added), 1):
        new = found.heads | HeadSet(added[:count])
        reached = best if len(added[:count]) == 1 else float(np.mean(evaluate([new], items)))
        if not stop or reached > found.score:
            return new, reached
    return found.heads, found.score


def _scores(evaluate: Evaluate, sets: Sequence[HeadSet], items: int, keep: int, stages: int) -> np.ndarray:
    """[sets] mean scores over all items; NaN for sets that were dropped on the way."""
    out = np.full(len(sets), np.nan)
    alive = list(range(len(sets)))
    for stage in range(stages):
        share = max(1, items // 2 ** (stages - 1 - stage))
        means = np.asarray(evaluate([sets[i] for i in alive], range(share)), float).mean(1)
        if stage == stages - 1:
            out[alive] = means
        else:
            order = np.argsort(-means, kind="stable")[: max(keep, -(-len(alive) // 2))]
            alive = sorted(alive[i] for i in order)
    return out


def as_table(heads: HeadSet, values: dict[Any, float], name: str = "effect") -> HeadScores:
    """A number per head as a table, NaN where there is none."""
    table = {site: np.full(max(numbers) + 1, np.nan) for site, numbers in heads.by_site().items()}
    for (site, head), value in values.items():
        table[site][head] = value
    return HeadScores(table, name)


def layers(heads: HeadSet) -> list[HeadSet]:
    """All heads of each site as a set: what layer-level guidance chooses among."""
    return [HeadSet((site, h) for h in numbers) for site, numbers in heads.by_site().items()]


def draws(heads: HeadSet, count: int, n: int, seed: int) -> list[HeadSet]:
    """Sets of so many heads, drawn at random."""
    rng, every = np.random.default_rng(seed), list(heads)
    return [HeadSet(every[i] for i in rng.permutation(len(every))[:count]) for _ in range(n)]


def budget(heads: int, items: int, k: int, rounds: int, halving: int = 1) -> int:
    """Pictures that a search paints at most: what a progress bar needs."""
    total = items
    for number in range(rounds):
        left = heads - number * k
        if left <= 0:
            break
        for stage in range(halving):
            total += max(1, items // 2 ** (halving - 1 - stage)) * left
            left = max(k, -(-left // 2)) if stage < halving - 1 else left
        total += items if k > 1 else 0
    return total
