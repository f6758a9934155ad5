"""Warnings from cross-attention: text that the audio does not support leaves no path through time.

Not part of the paper. The one number is the share of a token's attention that lies off its own stretch of the alignment
path (and off the audio): near 0 where every token looks at the place it comes from, near 1 where it looks anywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from scipy import stats

from unbraid.systems.s2t_cross_attention.align import Group, alignment_matrix, warp
from unbraid.systems.s2t_cross_attention.explanation import Explanation

REACH = 0.2  # seconds around a token's stretch that still count as on the path
LONGEST = 0.6  # seconds of it that count, where they hold most: with few tokens a path would cover everything
DESIGNED_ON = (
    "spoken 1", "spoken 2", "spoken 3", "beckett", "arctic_a0009", "praatio mary", "praatio bobby",
)  # fmt: skip
"""Clips that were looked at when this measure was chosen; the study's claim leaves them out where it has others."""


@dataclass(frozen=True)
class Flags:
    """What cross-attention says about how far a text can be trusted.

    Attributes:
        risk: mean over text tokens of the attention off the path, 0 to 1.
        token_risk: [I] the same token by token (end token left out).
        padding: share of attention on states beyond the end of the audio.
        progress: rank correlation of the token's number and its centre of attention; 1 for speech read in order.
        entropy: mean entropy of attention over states, as a share of the greatest possible.
        messages: sentences for people; empty where nothing is wrong.
    """

    risk: float
    token_risk: np.ndarray
    padding: float
    progress: float
    entropy: float
    messages: tuple[str, ...]


def flags(explanation: Explanation, threshold: float = 0.5, weights: np.ndarray | None = None) -> Flags:
    """Warnings about an utterance.

    Args:
        explanation: of the utterance; no saliency is needed.
        threshold: attention off the path from which a token or an utterance is flagged.
        weights: [L, H] of heads; None takes the model's alignment heads, or all heads.
    """
    e = explanation
    if weights is None:
        weights = e.chosen if e.chosen is not None else np.isfinite(e.attention[:, :, 0, 0]).astype(float)
    chosen = e.attention[weights > 0]
    share = weights[weights > 0] / weights[weights > 0].sum()
    mean = np.einsum("hit,h->it", chosen, share)
    off = off_path(chosen, mean, e.valid, e.state_seconds)[e.rows]
    text = mean[e.rows]
    centre = (text[:, : e.valid] * np.arange(e.valid)).sum(1) / np.maximum(text[:, : e.valid].sum(1), 1e-12)
    progress = 1.0
    if len(centre) > 2 and np.ptp(centre) > 0:
        progress = float(stats.spearmanr(np.arange(len(centre)), centre).statistic)
    padding = float(text[:, e.valid :].sum(1).mean())
    entropy = float(-(text * np.log(np.maximum(text, 1e-12))).sum(1).mean() / np.log(max(text.shape[1], 2)))
    risk = float(off.mean()) if len(off) else 1.0
    return Flags(risk, off, padding, progress, entropy, tuple(said(e, risk, off, padding, threshold)))


def off_path(heads: np.ndarray, mean: np.ndarray, valid: int, seconds: float) -> np.ndarray:
    """[I] attention outside each token's stretch of the path, widened by `REACH` on both sides, `LONGEST` of it.

    Args:
        heads: [heads, I, T'].
        mean: [I, T'] their mean.
        valid: states that hold audio.
        seconds: per state.
    """
    tokens, states = warp(-alignment_matrix(heads[..., :valid]))
    reach, longest = max(1, round(REACH / seconds)), max(3, round(LONGEST / seconds))
    out = np.zeros(len(mean))
    for i in range(len(mean)):
        at = states[tokens == i]
        low, high = max(0, at.min() - reach), min(valid, at.max() + reach + 1)
        inside = np.concatenate([[0.0], np.cumsum(mean[i, low:high])])
        width = min(longest, high - low)
        out[i] = 1 - (inside[width:] - inside[:-width]).max()
    return out


def said(e: Explanation, risk: float, off: np.ndarray, padding: float, threshold: float) -> list[str]:
    """What to tell people."""
    out = []
    if e.silent:
        out.append("The audio is silent; nothing that was said comes from it.")
    if risk > threshold:
        out.append(f"{risk:.0%} of the attention lies off the path through time; do not trust text or times.")
    else:
        words = [w.text.strip(".,;:!?") for w in e.words if lost(e, off, w, threshold)]
        if words:
            out.append(f"Attention does not find where these words come from: {', '.join(words[:8])}.")
    if padding > threshold:
        out.append(f"{padding:.0%} of the attention lies beyond the end of the audio.")
    return out


def lost(e: Explanation, off: np.ndarray, word: Group, threshold: float) -> bool:
    """Whether the attention of a word's tokens, punctuation left out, lies off the path."""
    rows = [r for r in range(word.start, word.stop) if r < len(off) and re.search(r"\w", e.tokens[r])]
    return bool(rows) and float(off[rows].mean()) > threshold
