"""Caches that choose what to keep: H2O and A2SF by attention received, SnapKV by the last queries, KeyDiff by keys.

Scores are made per query head; what goes, goes per key head, because the heads of a group share their keys.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unbraid.core.calls import Answer, Ask, AttentionCall
from unbraid.core.errors import UnbraidError
from unbraid.systems.attention_sinks.caches.kept import KeptCache, KeptLayer, ScoringLayer, WatchingCache, left_padding
from unbraid.systems.attention_sinks.detection.metrics import key_distinctiveness


def best(scores: Tensor, keep: int, recent: int, pads: Tensor) -> Tensor:
    """Slots [B, G, keep] of the highest scores and of the last `recent` tokens, in the order of the text.

    Args:
        scores: [B, G, kept].
        keep: how many stay.
        recent: how many of these are the last ones.
        pads: [B] padding slots on the left, which go first.
    """
    length = scores.shape[-1]
    slots = torch.arange(length, device=scores.device)
    ranked = scores.masked_fill(slots >= length - recent, torch.inf)
    ranked = ranked.masked_fill((slots < pads[:, None])[:, None], -torch.inf)
    # of equal scores the later token stays, so that padding (all -inf) goes from the left
    order = ranked.flip(-1).sort(dim=-1, descending=True, stable=True).indices[..., :keep]
    return (length - 1 - order).sort(-1).values


class HeavyLayer(ScoringLayer):
    """Keeps the tokens that have received most attention, and the last ones.

    Args:
        heavy: tokens kept for what they received.
        recent: last tokens kept in any case.
        decay: what a score is multiplied by at every query; 1 for H2O, less for A2SF.
        padding: [B] left padding, or None.
    """

    def __init__(self, heavy: int, recent: int, decay: float, padding: Tensor | None) -> None:
        super().__init__(padding)
        self.heavy, self.recent, self.decay = heavy, recent, decay
        self.scores: Tensor | None = None

    def question(self, c: AttentionCall) -> Ask:
        """Attention received from these queries, later ones weighing more with a decay."""
        n = c.queries
        age = torch.arange(n - 1, -1, -1, device=c.device, dtype=torch.float32)
        weight = (self.decay**age)[None].expand(c.batch, -1)
        if self.padding is not None:
            place = torch.arange(n, device=c.device) + self.cumulative_length - n
            weight = weight * (place >= self.padding[:, None])
        return Ask(weights=weight[:, None, :, None])

    def answer(self, c: AttentionCall, answer: Answer) -> None:
        """Adds up, and evicts what is too much."""
        assert answer.weights is not None
        self.waiting = False
        new = answer.weights[..., 0].unflatten(1, (self.keys.shape[1], -1)).mean(2)
        if self.scores is not None:
            old = F.pad(self.scores, (0, new.shape[-1] - self.scores.shape[-1]))
            new = new + old * self.decay**c.queries
        self.scores = new
        if self.kept > self.heavy + self.recent:
            index = best(new, self.heavy + self.recent, self.recent, self.pads())
            self.take(index)
            self.scores = new.gather(2, index)

    def reset(self) -> None:
        """Forgets everything."""
        super().reset()
        self.scores = None


class H2OCache(WatchingCache):
    """H2O (arXiv 2306.14048): heavy hitters by attention received so far, and a recent window.

    Args:
        model: a decoder language model.
        heavy: tokens kept for the attention that they received.
        recent: last tokens kept in any case.
        attention_mask: [B, n] of a prompt that is padded on the left.

    Example:
        >>> cache = H2OCache(model, heavy=128, recent=128)
        >>> with cache.watching(model):
        ...     model.generate(**inputs, past_key_values=cache, max_new_tokens=500)
    """

    decay = 1.0

    def __init__(self, model: Any, heavy: int = 128, recent: int = 128, attention_mask: Tensor | None = None) -> None:
        check_budget("heavy", heavy, 0)
        check_budget("recent", recent, 1)
        padding = left_padding(attention_mask)
        super().__init__(model, lambda _: HeavyLayer(heavy, recent, self.decay, padding))


class A2SFCache(H2OCache):
    """A2SF (arXiv 2407.20485): as H2O, but what was received long ago fades; older tokens have had more chances.

    Args:
        model: a decoder language model.
        heavy: tokens kept for the attention that they received.
        recent: last tokens kept in any case.
        decay: what a score is multiplied by at every query, above 0 and at most 1.
        attention_mask: [B, n] of a prompt that is padded on the left.
    """

    def __init__(
        self,
        model: Any,
        heavy: int = 128,
        recent: int = 128,
        decay: float = 0.99,
        attention_mask: Tensor | None = None,
    ) -> None:
        if not 0 < decay <= 1:
            raise UnbraidError(f"decay is {decay}; it must be above 0 and at most 1 (1 is H2O).")
        self.decay = decay
        super().__init__(model, heavy, recent, attention_mask)


class SnapLayer(ScoringLayer):
    """Compresses a prompt by the attention of its last queries; what is generated afterwards stays.

    Args:
        budget: tokens kept of the prompt, the observing ones included.
        observe: last queries that vote; their tokens stay.
        pool: width of the average over neighbouring tokens.
        padding: [B] left padding, or None.
    """

    def __init__(self, budget: int, observe: int, pool: int, padding: Tensor | None) -> None:
        super().__init__(padding)
        self.budget, self.observe, self.pool = budget, observe, pool

    def question(self, c: AttentionCall) -> Ask | None:
        """The rows of the last queries of a prompt that is too long; nothing while decoding."""
        if c.queries == 1 or self.kept <= self.budget:
            self.waiting = False
            return None
        return Ask(rows=torch.arange(max(0, c.queries - self.observe), c.queries, device=c.device))

    def answer(self, c: AttentionCall, answer: Answer) -> None:
        """Votes, and evicts."""
        assert answer.rows is not None
        self.waiting = False
        votes = answer.rows[..., : self.kept - self.observe].mean(2)
        votes = F.avg_pool1d(votes, self.pool, stride=1, padding=self.pool // 2)
        votes = votes.unflatten(1, (self.keys.shape[1], -1)).mean(2)
        scores = F.pad(votes, (0, self.kept - votes.shape[-1]))
        self.take(best(scores, self.budget, self.observe, self.pads()))


class SnapKVCache(WatchingCache):
    """SnapKV (arXiv 2404.14469): a long prompt is cut to the tokens that its last queries look at.

    Args:
        model: a decoder language model.
        budget: tokens kept of a prompt.
        observe: last queries that vote; their tokens stay.
        pool: width of the average over neighbouring tokens, odd.
        attention_mask: [B, n] of a prompt that is padded on the left.
    """

    def __init__(
        self,
        model: Any,
        budget: int = 256,
        observe: int = 64,
        pool: int = 5,
        attention_mask: Tensor | None = None,
    ) -> None:
        check_budget("observe", observe, 1)
        if budget <= observe:
            raise UnbraidError(f"budget is {budget}; it must exceed the {observe} observing tokens, which all stay.")
        if pool < 1 or pool % 2 == 0:
            raise UnbraidError(f"pool is {pool}; it must be odd and at least 1.")
        padding = left_padding(attention_mask)
        super().__init__(model, lambda _: SnapLayer(budget, observe, pool, padding))


class KeyDiffLayer(KeptLayer):
    """Keeps the keys that are least like the others.

    Args:
        budget: tokens kept.
        recent: of these, last tokens that stay in any case.
        padding: [B] left padding, or None.
    """

    def __init__(self, budget: int, recent: int, padding: Tensor | None) -> None:
        super().__init__(padding)
        self.budget, self.recent = budget, recent

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends, returns everything, and evicts for the next time."""
        n = self._new(key_states, value_states)
        keys = self.keys = torch.cat([self.keys, key_states], 2)
        values = self.values = torch.cat([self.values, value_states], 2)
        self.cumulative_length += n
        if self.kept > self.budget:
            pads = self.pads()
            real = torch.arange(self.kept, device=keys.device) >= pads[:, None]
            self.take(best(key_distinctiveness(keys, real), self.budget, self.recent, pads))
        return keys, values


class KeyDiffCache(KeptCache):
    """KeyDiff (arXiv 2504.15364): evicts the keys most similar to the mean key; needs no attention.

    Args:
        model: a decoder language model.
        budget: tokens kept.
        recent: of these, last tokens that stay in any case (0 in the paper).
        attention_mask: [B, n] of a prompt that is padded on the left.
    """

    def __init__(self, model: Any, budget: int = 256, recent: int = 0, attention_mask: Tensor | None = None) -> None:
        check_budget("recent", recent, 0)
        if budget <= recent:
            raise UnbraidError(f"budget is {budget}; it must exceed recent, which is {recent}.")
        padding = left_padding(attention_mask)
        super().__init__(model, lambda _: KeyDiffLayer(budget, recent, padding))


def check_budget(name: str, value: int, least: int) -> None:
    """Refuses a size that is too small.

    Raises:
        UnbraidError: which one, and what is accepted.
    """
    if value < least:
        raise UnbraidError(f"{name} is {value}; it must be {least} or more.")
