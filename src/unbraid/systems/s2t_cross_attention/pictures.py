"""Spectrograms with saliency and attention laid over them, as pixels; numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unbraid.core.figures import Image
from unbraid.data.speech.clips import Word
from unbraid.systems.s2t_cross_attention.explanation import Explanation
from unbraid.systems.s2t_cross_attention.maps import aggregate, normalise, spread_out

HOT = np.array([1.0, 0.45, 0.1])
COOL = np.array([0.25, 0.65, 1.0])
GREEN = np.array([0.35, 0.85, 0.45])
WHITE = np.array([1.0, 1.0, 1.0])
WIDTH, ROW, STRIP = 900, 2, 9


def word_image(e: Explanation, number: int, true: Word | None = None) -> Image:
    """One word of the hypothesis: spectrogram with input saliency, and strips of both kinds of map under it.

    Args:
        e: the utterance, with saliency.
        number: of the word.
        true: when it is really said, drawn as two white lines.
    """
    group = e.words[number]
    rows = list(range(group.start, group.stop))
    picture = spectrum(e.grid)
    height, width = picture.shape[:2]
    if e.saliency_x is not None:
        heat = standing_out(e.saliency_x[rows].mean(0)).T[::-1]
        picture = laid_over(picture, stretched(heat, height, width), HOT)
    strips = [picture]
    attention = aggregate(e.attention[:, :, rows][..., : e.valid]).mean(0)
    strips.append(strip(attention, width, COOL))
    if e.saliency_h is not None:
        strips.append(strip(e.saliency_h[rows].mean(0), width, GREEN))
    whole = np.concatenate(strips)
    if true is not None:
        for at in (true.start, true.end):
            column = min(width - 1, max(0, round(at / e.seconds * width)))
            whole[:, max(0, column - 1) : column + 1] = WHITE
    marked = " White lines: when the word is really said." if true is not None else ""
    peak = (int(attention.argmax()) + 0.5) * e.state_seconds
    said = f"Time from left to right ({e.seconds:.1f} s), pitch upwards; orange: input saliency of “{group.text}”."
    caption = f"{said} Strips below: attention of all heads (blue), encoder-output saliency (green).{marked}"
    alt = f"Spectrogram of {e.name}; for the word “{group.text}” attention is greatest at {peak:.2f} s."
    return Image.from_array(whole, alt, f"{e.name}: “{group.text}”", caption)


def matrix_image(e: Explanation) -> Image:
    """Tokens downwards, time to the right: attention of all heads, input saliency, encoder-output saliency."""
    maps = [(aggregate(e.heads()), COOL)]
    if e.saliency_x is not None:
        maps.append((e.saliency("x"), HOT))
    if e.saliency_h is not None:
        maps.append((e.saliency("h"), GREEN))
    tall = max(4, min(16, 240 // max(1, len(e.rows))))
    panels = []
    for x, colour in maps:
        shade = stretched(np.stack([standing_out(row) for row in x]), len(x) * tall, WIDTH)
        panels += [shade[..., None] * colour, np.ones((4, WIDTH, 3))]
    words = " ".join(w.text for w in e.words)
    names = ["attention (blue)", "input saliency (orange)", "encoder-output saliency (green)"][: len(maps)]
    return Image.from_array(
        np.concatenate(panels[:-1]),
        f"Maps of {e.name}: tokens of “{words}” downwards, {e.seconds:.1f} s to the right.",
        f"{e.name}: tokens against time", f"From top to bottom {', '.join(names)}; one row per token of “{words}”.",
    )  # fmt: skip


def standing_out(x: np.ndarray) -> np.ndarray:
    """0 up to the median, 1 from the highest percent on: a mean of few runs has a floor, and noise upon it."""
    low, high = np.quantile(x, [0.5, 0.99])
    return np.clip((x - low) / (high - low if high > low else 1.0), 0, 1)


def spectrum(grid: np.ndarray) -> np.ndarray:
    """[F * 2, WIDTH, 3] grey picture of [T, F], low frequencies at the bottom."""
    grey = normalise(grid[None], "minmax")[0].T[::-1]
    return np.repeat(stretched(grey, grey.shape[0] * ROW, WIDTH)[..., None] * 0.75, 3, axis=2)


def laid_over(picture: np.ndarray, amount: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """A picture with a colour mixed in where amount [h, w] is near 1."""
    share = np.clip(amount, 0, 1)[..., None] * 0.85
    return picture * (1 - share) + colour * share


def strip(x: np.ndarray, width: int, colour: np.ndarray) -> np.ndarray:
    """[STRIP + 1, width, 3] one row of a map."""
    shade = spread_out(normalise(x[None], "minmax")[0], width)
    line = np.broadcast_to(shade[None, :, None] * colour, (STRIP, width, 3))
    return np.concatenate([np.zeros((1, width, 3)), line])


def stretched(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Nearest neighbours of [a, b] at [height, width]."""
    rows = np.arange(height) * x.shape[0] // height
    columns = np.arange(width) * x.shape[1] // width
    return x[np.ix_(rows, columns)]


def true_word(e: Explanation, number: int, words: Sequence[Word]) -> Word | None:
    """The known word that word `number` of the hypothesis stands for, or None."""
    from unbraid.systems.s2t_cross_attention.align import match_words

    said = [Word(w.text, 0, 0) for w in e.words]
    return next((words[j] for i, j in match_words(said, words) if i == number), None)
