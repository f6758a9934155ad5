"""Alignment: from a map over encoder states to a path through time, and to the times of words.

The recipe is Whisper's own (median filter over time, each head normalised over tokens, dynamic time warping on the
negative mean), here on any map: attention of chosen heads, weighted heads, or saliency.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.data.speech.clips import Word

WIDTH = 7


class Group(NamedTuple):
    """A word of the hypothesis: its text, its first token and the token after its last."""

    text: str
    start: int
    stop: int


def median_filter(x: np.ndarray, width: int = WIDTH) -> np.ndarray:
    """Median over the last axis, edges mirrored; unchanged where there are too few columns, as in transformers."""
    if width < 1 or width % 2 == 0:
        raise UnbraidError(f"The width of a median filter must be odd and positive, not {width}.")
    side = width // 2
    if x.shape[-1] <= side or side == 0:
        return x
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(side, side)], mode="reflect")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width, axis=-1), axis=-1)


def warp(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest monotone path through a cost matrix [I, T']: token and state of each step.

    Ties are broken as in transformers: to the left, except where the diagonal or the row above is strictly cheapest.
    """
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    trace = np.full((rows + 1, columns + 1), 2, np.int8)
    total[0, 0] = 0
    for i in range(1, rows + 1):
        above, here, row, steps = total[i - 1].tolist(), total[i].tolist(), cost[i - 1].tolist(), trace[i]
        for j in range(1, columns + 1):
            diagonal, up, left = above[j - 1], above[j], here[j - 1]
            if diagonal < up and diagonal < left:
                best, step = diagonal, 0
            elif up < diagonal and up < left:
                best, step = up, 1
            else:
                best, step = left, 2
            here[j] = row[j - 1] + best
            steps[j] = step
        total[i] = here
    trace[:, 0] = 1
    trace[0, :] = 2
    i, j, path = rows, columns, []
    while i > 0 or j > 0:
        path.append((i - 1, j - 1))
        step = int(trace[i, j])
        i, j = i - (step != 2), j - (step != 1)
    steps_taken = np.array(path[::-1])
    return steps_taken[:, 0], steps_taken[:, 1]


def alignment_matrix(maps: np.ndarray, width: int = WIDTH) -> np.ndarray:
    """[heads, I, T'] (or [I, T']) to one matrix to warp: normalised over tokens, filtered, averaged over heads."""
    x = np.asarray(maps, dtype=np.float64)
    x = x[None] if x.ndim == 2 else x
    deviation = x.std(axis=-2, keepdims=True)
    x = (x - x.mean(axis=-2, keepdims=True)) / np.where(deviation > 0, deviation, 1)
    return median_filter(x, width).mean(0)


def token_starts(maps: np.ndarray, width: int = WIDTH) -> np.ndarray:
    """[I] first state of each token on the warped path.

    Args:
        maps: [heads, I, T'] or [I, T'].
        width: of the median filter.
    """
    tokens, states = warp(-alignment_matrix(maps, width))
    first = np.concatenate([[True], np.diff(tokens) > 0])
    return states[first]


def group_words(tokens: Sequence[str], ends: Sequence[bool] | None = None) -> list[Group]:
    """Words of a row of pieces: a word begins with a blank (" a", "Ġa", "▁a"), the end token belongs to none.

    Args:
        tokens: pieces as the tokenizer names them, or decoded texts.
        ends: which are end or other special tokens; None: none is.
    """
    ends = [False] * len(tokens) if ends is None else list(ends)
    groups: list[list[Any]] = []
    blank = any(str(t)[:1] in (" ", "Ġ", "▁") for t in tokens)
    for number, (piece, end) in enumerate(zip(tokens, ends, strict=True)):
        if end:
            continue
        opens = not blank or str(piece)[:1] in (" ", "Ġ", "▁")
        if opens or not groups or groups[-1][2] != number:
            groups.append(["", number, number])
        groups[-1][0] += str(piece).replace("Ġ", " ").replace("▁", " ")
        groups[-1][2] = number + 1
    return [Group(text.strip(), start, stop) for text, start, stop in groups]


def word_times(
    maps: np.ndarray, words: Sequence[Group], seconds: float, tokens: Sequence[str] = (), width: int = WIDTH
) -> list[Word]:
    """When each word is said.

    Args:
        maps: [heads, I, T'] or [I, T'], columns cropped to the audio; I should include the end token.
        words: of the hypothesis, as `group_words` gives them.
        seconds: per encoder state.
        tokens: pieces; where given, a word ends where the punctuation after it begins.
        width: of the median filter over states.

    Returns:
        A `Word` for each.
    """
    starts = token_starts(maps, width)
    end = maps.shape[-1]
    out = []
    for word in words:
        stop = word.stop
        while tokens and stop - 1 > word.start and not re.search(r"\w", str(tokens[stop - 1])):
            stop -= 1
        until = starts[stop] if stop < len(starts) else end
        out.append(
            Word(word.text, float(starts[word.start]) * seconds, float(max(until, starts[word.start])) * seconds)
        )
    return out


def plain_word(text: str) -> str:
    """Letters and digits of a word in lower case, for comparing."""
    return re.sub(r"[^\w']", "", text.lower())


def match_words(found: Sequence[Word], true: Sequence[Word]) -> list[tuple[int, int]]:
    """Pairs (found, true) of equal words, in order, as a longest common subsequence."""
    from difflib import SequenceMatcher

    a, b = [plain_word(w.text) for w in found], [plain_word(w.text) for w in true]
    blocks = SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
    return [(m.a + k, m.b + k) for m in blocks for k in range(m.size)]


def time_errors(found: Sequence[Word], true: Sequence[Word]) -> dict[str, np.ndarray]:
    """Absolute errors in seconds of the words that match: "start" and "end", and which true words they are."""
    pairs = match_words(found, true)
    return {
        "start": np.array([abs(found[i].start - true[j].start) for i, j in pairs]),
        "end": np.array([abs(found[i].end - true[j].end) for i, j in pairs]),
        "which": np.array([j for _, j in pairs], dtype=int),
    }
