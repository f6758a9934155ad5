"""The size dial: from seconds to the paper's own configurations."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """A model and its training.

    Attributes:
        width: of the hidden state.
        inner: of the feed-forward block.
        layers: of the decoder.
        heads: of attention.
        length: of a text in tokens.
        batch: texts a step, over all processes.
        steps: of the optimizer.
        vocabulary: entries.
        lr: greatest learning rate.
        betas: of AdamW.
        warm: steps of warming up, at most a tenth of all.
        tied: whether words are read and written by the same weights.
    """

    width: int
    inner: int
    layers: int
    heads: int
    length: int
    batch: int
    steps: int
    vocabulary: int
    lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.99)
    warm: int = 2_000
    tied: bool = True


PAPER = (0.9, 0.9999)
TOKENS = 50_304  # Pythia's vocabulary, padded as its models are
# 15 and 45 billion tokens at 256 texts of 2,048; the paper's table of steps does not fit its tokens, which are taken
SIZES = {
    "tiny": Size(24, 48, 2, 2, 32, 4, 6, 512),
    "small": Size(48, 128, 4, 4, 64, 16, 300, 512),
    "medium": Size(192, 512, 6, 6, 128, 32, 4_000, 2_048, 1e-3),
    "70m": Size(512, 2048, 6, 8, 2048, 256, 28_600, TOKENS, 4e-4, PAPER, tied=False),
    "160m": Size(768, 3072, 12, 12, 2048, 256, 28_600, TOKENS, 4e-4, PAPER, tied=False),
    "paper": Size(896, 4864, 24, 14, 2048, 256, 28_600, TOKENS, 4e-4, PAPER, tied=False),
    "1.7b": Size(2048, 6144, 28, 16, 2048, 256, 85_800, TOKENS, 3e-4, PAPER, tied=False),
}
