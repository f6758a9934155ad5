"""How faithful a map is: delete what it ranks first and decode again; and how compact it is.

Reference: the deletion and size metrics of arXiv 2411.01710 and 2509.18010. Decoding for deletion is by beam search, as
for the hypothesis; maps are made by forced decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.integrate import trapezoid

from unbraid.core.errors import UnbraidError
from unbraid.systems.s2t_cross_attention.align import plain_word
from unbraid.systems.s2t_cross_attention.listener import Heard, Listener

THRESHOLDS = tuple(i / 20 for i in range(21))


def word_errors(reference: Sequence[Any], hypothesis: Sequence[Any]) -> float:
    """Edit distance per reference item, capped at 1 (a WER of 100)."""
    if not len(reference):
        return 0.0 if not len(hypothesis) else 1.0
    row = list(range(len(hypothesis) + 1))
    for i, a in enumerate(reference, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(hypothesis, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return min(1.0, row[-1] / len(reference))


def spoken_words(text: str) -> list[str]:
    """Words of a text in lower case without punctuation."""
    return [w for w in (plain_word(t) for t in text.split()) if w]


def sentence_map(tokens: np.ndarray) -> np.ndarray:
    """[I, T, F] to one map of the sentence [T, F]: the mean over tokens."""
    return tokens.mean(0)


def deletion_masks(ranking: np.ndarray, shares: Sequence[float] | np.ndarray) -> np.ndarray:
    """[shares, T, F] True where a bin stays when the top share of a map [T, F] is deleted; ties keep their order."""
    order = np.argsort(-ranking.ravel(), kind="stable")
    place = np.empty(len(order), dtype=int)
    place[order] = np.arange(len(order))
    cuts = np.round(np.asarray(shares) * len(order)).astype(int)
    return (place[None, :] >= cuts[:, None]).reshape(len(cuts), *ranking.shape)


def deletion_curve(
    listener: Listener,
    heard: Heard,
    ranking: np.ndarray,
    reference: Sequence[Any],
    read: Callable[[list[int]], Sequence[Any]],
    step: float = 0.05,
    beams: int = 5,
    fill: torch.Tensor | None = None,
    batch: int = 8,
) -> tuple[np.ndarray, np.ndarray]:
    """Error against the share of bins deleted.

    Args:
        listener: the model.
        heard: the utterance.
        ranking: [valid, F], bins to delete first are largest.
        reference: words (or tokens) of the undisturbed hypothesis.
        read: tokens -> words (or tokens) to compare with `reference`.
        step: distance of the shares.
        beams: of the search.
        fill: what deleted bins become.
        batch: shares decoded together.

    Returns:
        Shares from 0 to 1 and the error at each, 0 to 1.

    Raises:
        UnbraidError: the step is no share, or the ranking has another shape.
    """
    if not 0 < step <= 1:
        raise UnbraidError(f"deletion_step is {step}; it must be a share in (0, 1].")
    if ranking.shape != heard.shape:
        raise UnbraidError(f"The ranking has shape {ranking.shape}, the utterance {heard.shape}.")
    shares = np.linspace(0, 1, round(1 / step) + 1)
    keep = deletion_masks(ranking, shares)
    errors = []
    for start in range(0, len(shares), batch):
        states = listener.encode(listener.batch(heard, keep[start : start + batch], fill), heard.valid)
        said = listener.transcribe(states, beams)
        errors += [word_errors(reference, read(ids)) for ids in said]
    return shares, np.array(errors)


def area(shares: np.ndarray, errors: np.ndarray) -> float:
    """Area under a deletion curve by trapezoids, 0 to 100; for error rates larger is more faithful."""
    return float(trapezoid(errors, shares) * 100)


def size_curve(ranking: np.ndarray, thresholds: Sequence[float] | np.ndarray = THRESHOLDS) -> np.ndarray:
    """Share of bins above thresholds from 0 to 1 after min-max scaling; smaller is more compact."""
    span = float(np.ptp(ranking)) or 1.0
    scaled = (ranking - ranking.min()) / span
    return np.array([(scaled > t).mean() for t in thresholds])


def size_area(ranking: np.ndarray) -> float:
    """Area under the size curve, 0 to 100."""
    t = np.linspace(0, 1, 21)
    return float(trapezoid(size_curve(ranking, t), t) * 100)
