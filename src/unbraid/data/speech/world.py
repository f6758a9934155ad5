"""A world of made-up speech whose alignment is known: words are short patterns on a mel grid, in noise.

The world of the methods sheet: five words out of sixteen, each with a random binary template of two phases over 16 mel
bins, lasting 10 to 16 of 100 frames, with gaps of 0 to 4 frames. Needs numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unbraid.core.errors import UnbraidError


@dataclass(frozen=True, eq=False)
class Spoken:
    """A batch of utterances of the world.

    Attributes:
        features: [n, mels, frames] float32.
        ids: [n, words] which words.
        spans: [n, words, 2] first frame and the frame after the last.
    """

    features: np.ndarray
    ids: np.ndarray
    spans: np.ndarray

    def truth(self, frames: int) -> np.ndarray:
        """[n, words, frames] of 0 and 1: which of `frames` equal stretches of time belong to a word.

        Args:
            frames: resolution wanted, e.g. the number of encoder states.
        """
        scale = frames / self.features.shape[-1]
        at = np.arange(frames) + 0.5
        start, stop = self.spans[..., 0, None] * scale, self.spans[..., 1, None] * scale
        return ((at >= start) & (at < stop)).astype(np.float32)


class SpeechWorld:
    """Draws utterances; the templates depend on the seed.

    Args:
        words: how many different words there are.
        mels: mel bins.
        frames: frames of an utterance.
        length: words of an utterance.
        shortest: frames of a word at the least.
        longest: frames of a word at the most.
        gap: frames between words at the most.
        noise: standard deviation of the noise.
        loudness: value of a template where it is on.
        seed: of the templates.

    Raises:
        UnbraidError: the words do not fit into the frames.

    Example:
        >>> world = SpeechWorld(seed=0)
        >>> world.draw(4, seed=1).features.shape
        (4, 16, 100)
    """

    def __init__(
        self,
        words: int = 16,
        mels: int = 16,
        frames: int = 100,
        length: int = 5,
        shortest: int = 10,
        longest: int = 16,
        gap: int = 4,
        noise: float = 0.3,
        loudness: float = 2.0,
        seed: int = 0,
    ) -> None:
        if length * (longest + gap) > frames:
            raise UnbraidError(
                f"{length} words of up to {longest} frames with gaps of {gap} need {length * (longest + gap)} frames; "
                f"there are {frames}."
            )
        self.words, self.mels, self.frames, self.length = words, mels, frames, length
        self.shortest, self.longest, self.gap, self.noise = shortest, longest, gap, noise
        rng = np.random.default_rng([seed, 7])
        self.templates = (rng.random((words, 2, mels)) < 0.5).astype(np.float32) * loudness

    def draw(self, count: int, seed: int) -> Spoken:
        """Draws utterances; the same seed gives the same ones.

        Args:
            count: how many.
            seed: of words, lengths, gaps and noise.
        """
        rng = np.random.default_rng([seed, 11])
        features = rng.normal(0, self.noise, (count, self.mels, self.frames)).astype(np.float32)
        ids = rng.integers(self.words, size=(count, self.length))
        lasting = rng.integers(self.shortest, self.longest + 1, size=(count, self.length))
        gaps = rng.integers(0, self.gap + 1, size=(count, self.length))
        spans = np.zeros((count, self.length, 2), np.int64)
        for n in range(count):
            at = 0
            for w in range(self.length):
                start = at + int(gaps[n, w])
                at = start + int(lasting[n, w])
                middle = (start + at) // 2
                features[n, :, start:middle] += self.templates[ids[n, w], 0][:, None]
                features[n, :, middle:at] += self.templates[ids[n, w], 1][:, None]
                spans[n, w] = start, at
        return Spoken(features, ids, spans)
