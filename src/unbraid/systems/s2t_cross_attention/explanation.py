"""`Explanation`: everything measured of one utterance, and the views of it that the comparisons take."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.data.speech.clips import Word
from unbraid.systems.s2t_cross_attention.align import Group, word_times
from unbraid.systems.s2t_cross_attention.maps import Pool, aggregate, pool, sink_columns, spread_out

Source = Literal[
    "attention", "alignment_heads", "weights", "norms", "gradient", "saliency_x", "saliency_h", "effects_x", "effects_h"
]  # fmt: skip


@dataclass(eq=False)
class Explanation:
    """One utterance, its hypothesis, and all maps.

    Symbols as in the paper: I tokens, T frames, F frequencies, T' states.

    Attributes:
        name: of the clip.
        text: the hypothesis.
        ids: its tokens [I], end token included.
        tokens: pieces as text [I].
        special: [I] which tokens are special (the end); left out of comparisons.
        words: words of the hypothesis, as ranges of tokens.
        valid: encoder states that hold audio; the rest is padding.
        state_seconds: seconds per encoder state.
        seconds: length of the audio.
        grid: [T, F] spectrogram, cropped to the audio.
        sites: names of the cross-attentions.
        attention: [L, H, I, T'] all columns, padding too.
        log_probs: [I].
        chosen: [L, H] the model's own alignment heads as 0/1 (Whisper names some), or None.
        head_norms: [L, H, I, T'], layer_norms: [L, I, T'], gradients: [L, H, I, T'], or None.
        saliency_x: [I, T, F] input saliency, or None; error_x: its standard error ("mean" estimator).
        saliency_h: [I, valid] saliency of encoder states, or None.
        effects_x: [I, T, F], effects_h: [I, valid] effects by regression on the same runs, or None. They are sharper
            than means of few runs, which is what alignment needs.
        saliency_y: [I, n] saliency of previous tokens, or None.
        cost: what the runs cost and how exact they are: "input" and "encoder" -> runs, seconds, per second, ...
        silent: the audio was silent.
    """

    name: str
    text: str
    ids: list[int]
    tokens: list[str]
    special: np.ndarray
    words: list[Group]
    valid: int
    state_seconds: float
    seconds: float
    grid: np.ndarray
    sites: list[str]
    attention: np.ndarray
    log_probs: np.ndarray
    chosen: np.ndarray | None = None
    head_norms: np.ndarray | None = None
    layer_norms: np.ndarray | None = None
    gradients: np.ndarray | None = None
    saliency_x: np.ndarray | None = None
    error_x: np.ndarray | None = None
    saliency_h: np.ndarray | None = None
    effects_x: np.ndarray | None = None
    effects_h: np.ndarray | None = None
    saliency_y: np.ndarray | None = None
    cost: dict[str, dict[str, Any]] = field(default_factory=dict)
    silent: bool = False

    @property
    def rows(self) -> np.ndarray:
        """Indices of tokens that are text."""
        return np.flatnonzero(~self.special)

    def heads(self, crop: bool = True, what: str = "attention") -> np.ndarray:
        """[L, H, I, T'] of text tokens: "attention", "norms" or "gradient".

        Args:
            crop: leave out columns of padding.
            what: which maps.

        Raises:
            UnbraidError: these were not asked for when the utterance was explained.
        """
        found = {"attention": self.attention, "norms": self.head_norms, "gradient": self.gradients}[what]
        if found is None:
            raise UnbraidError(f"{what} was not kept for {self.name!r}; explain it with {what}=True.")
        return found[:, :, self.rows, : self.valid if crop else None]

    def saliency(self, which: str = "h", how: Pool = "max", crop: bool = True, effects: bool = False) -> np.ndarray:
        """[I, T'] of text tokens: "x" (input, pooled to states) or "h" (encoder output); padding is 0 where kept.

        Args:
            which: "x" or "h".
            how: pooling of input saliency.
            crop: leave out columns of padding.
            effects: the effects by regression instead.

        Raises:
            UnbraidError: this saliency was not made.
        """
        found = {"x": self.saliency_x, "h": self.saliency_h}[which]
        if effects:
            found = {"x": self.effects_x, "h": self.effects_h}[which]
        if found is None:
            raise UnbraidError(f"There is no saliency {which!r} of {self.name!r}; explain it with more than 0 masks.")
        small = found[self.rows] if which == "h" else pool(found[self.rows], self.valid, how)
        if crop:
            return small
        return np.pad(small, [(0, 0), (0, self.attention.shape[-1] - self.valid)])

    def sinks(self) -> np.ndarray:
        """[valid] columns that the median token attends to, whatever it says (all heads averaged)."""
        return sink_columns(aggregate(self.heads()))

    def sink_mass(self) -> float:
        """Share of attention on sink columns and on padding."""
        whole = aggregate(self.heads(crop=False))
        return float(whole[:, : self.valid][:, self.sinks()].sum(1).mean() + whole[:, self.valid :].sum(1).mean())

    def aligning(self, source: Source, weights: np.ndarray | None = None) -> np.ndarray:
        """[heads, I, valid] (or [I, valid]) with the end token's row, for alignment.

        Args:
            source: which map.
            weights: [L, H] for "weights".
        """
        maps = self.attention[..., : self.valid]
        if source == "attention":
            return maps.reshape(-1, *maps.shape[2:])[np.isfinite(maps[:, :, 0, 0]).ravel()]
        if source == "alignment_heads":
            if self.chosen is None:
                raise UnbraidError(
                    f"The model of {self.name!r} names no alignment heads; use 'attention' or 'weights'."
                )
            return maps[self.chosen > 0]
        if source == "weights":
            if weights is None:
                raise UnbraidError("source='weights' needs the weights of heads; call fit on a few utterances first.")
            return aggregate(maps, weights)
        if source in ("norms", "gradient"):
            kept = {"norms": self.head_norms, "gradient": self.gradients}[source]
            if kept is None:
                raise UnbraidError(f"{source} was not kept for {self.name!r}; explain it with {source}=True.")
            return kept[..., : self.valid].reshape(-1, kept.shape[2], self.valid)
        found = {
            "saliency_x": self.saliency_x, "saliency_h": self.saliency_h, "effects_x": self.effects_x,
            "effects_h": self.effects_h,
        }.get(source)  # fmt: skip
        if found is None:
            raise UnbraidError(f"There is no {source} of {self.name!r}; explain it with more than 0 masks.")
        return found if source.endswith("_h") else pool(found, self.valid)

    def word_times(self, source: Source = "attention", weights: np.ndarray | None = None) -> list[Word]:
        """Times of the words of the hypothesis, aligned by a map; see `Explanation.aligning`."""
        return word_times(self.aligning(source, weights), self.words, self.state_seconds, self.tokens)

    def ranking(self, source: str, how: Pool = "max") -> np.ndarray:
        """[T, F] of the sentence, to delete bins by: attention ("attention"), input saliency at its own resolution
        ("saliency_x"), at that of attention ("saliency_x_pooled"), or of the encoder's output ("saliency_h").
        """
        frames, bins = self.grid.shape
        if source == "saliency_x":
            if self.saliency_x is None:
                raise UnbraidError(f"There is no saliency 'x' of {self.name!r}; explain it with more than 0 masks.")
            return self.saliency_x[self.rows].mean(0)
        small = {
            "attention": lambda: aggregate(self.heads()),
            "saliency_x_pooled": lambda: self.saliency("x", how),
            "saliency_h": lambda: self.saliency("h"),
        }[source]()
        return np.repeat(spread_out(small.mean(0), frames)[:, None], bins, axis=1)
