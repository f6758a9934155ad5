"""Sinks as they appear while a model generates: which new tokens a cache must keep from now on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor, nn

from unbraid.systems.secondary_sinks.detect import Primary, primary_sink
from unbraid.systems.secondary_sinks.watch import Watch


class Monitor(Watch):
    """Flags tokens that take the primary sink's direction, token by token; use it around `generate()`.

    The primary sink, its window and the usual norms of each block come from the first pass (the prompt).

    Args:
        model: a decoder with a stack of blocks.
        threshold: on |cosine|.
        guard_ratio: times the median norm of the prompt's tokens at that block.
        least: number of blocks at which a token must pass to be flagged.
        candidates: how many first tokens may be the primary sink.
        primary_ratio: as for `SecondarySinks`.
        on_sink: called with (position, blocks) as soon as a new token is flagged.

    Attributes:
        flags: position -> blocks at which it passed; `protected` adds the primary sink.

    Example:
        >>> with Monitor(model) as monitor:
        ...     model.generate(**inputs, max_new_tokens=500)
        >>> monitor.protected
    """

    def __init__(
        self,
        model: nn.Module,
        threshold: float = 0.9,
        guard_ratio: float = 3.0,
        least: int = 5,
        candidates: int = 3,
        primary_ratio: float = 10.0,
        attention_mask: Tensor | None = None,
        on_sink: Callable[[int, list[int]], None] | None = None,
    ) -> None:
        super().__init__(model, candidates, attention_mask, self._passed)
        self.threshold, self.guard_ratio, self.least = threshold, guard_ratio, least
        self.primary_ratio, self.on_sink = primary_ratio, on_sink
        self.flags: dict[int, list[int]] = {}
        self.primary: Primary | None = None
        self._middle = np.zeros(0)

    @property
    def protected(self) -> list[int]:
        """Positions to keep: the primary sink and all flagged tokens."""
        first = [] if self.primary is None else [self.primary.position]
        return sorted({*first, *self.flags})

    def _passed(self, seen: int) -> None:
        if self.primary is None:
            profile = self.profile().text(0)
            self.primary = primary_sink(profile, self.primary_ratio)
            self._middle = np.median(profile.norm[:, 0], axis=1)
        c, window = self.primary.candidate, range(self.primary.start, self.primary.end)
        new = self._parts["norm"][0][-1].shape[-1]
        cosine = np.stack([self._parts["cosine"][i][-1][0, c].numpy() for i in window])
        norm = np.stack([self._parts["norm"][i][-1][0].numpy() for i in window])
        middle = self._middle[self.primary.start : self.primary.end, None]
        passes = (np.abs(cosine) > self.threshold) & (norm > self.guard_ratio * middle)
        for t in np.flatnonzero(passes.sum(0) >= self.least):
            position = seen - new + int(t)
            if position > self.primary.position:
                self.flags[position] = [int(x) + self.primary.start for x in np.flatnonzero(passes[:, t])]
                if self.on_sink is not None:
                    self.on_sink(position, self.flags[position])
