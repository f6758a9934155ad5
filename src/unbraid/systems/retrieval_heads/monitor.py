"""A live monitor during `generate()`: do the retrieval heads look into the context, or fall back on the sink?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from unbraid.core.calls import Answer, Ask, AttentionCall, Tap
from unbraid.core.heads import HeadSet


@dataclass
class Step:
    """One decoding step.

    Attributes:
        step: number from 0; step t is the one that produces answer token t.
        sink: attention of the monitored heads on the first token, mean.
        context: their attention on the watched span (the whole prompt but the first token by default), mean.
        position: prompt position with the most attention, all monitored heads together, the first token excepted.
        grounded: whether the heads look at the context more than at the sink.
    """

    step: int
    sink: float
    context: float
    position: int
    grounded: bool


class Monitor(Tap):
    """Watches retrieval heads while a model generates (batch size 1, greedy or sampling).

    When these heads fall back on the first token although the answer should come from the context, the model is
    likely to make the answer up (arXiv 2404.15574, failure modes): `steps` says at which tokens.

    Args:
        heads: retrieval heads, e.g. `RetrievalHeads(...).fit(...).scores_.top(8)`.
        span: prompt positions to watch; None is everything but the first token.
        on_step: called after every step.

    Example:
        >>> monitor = Monitor(heads.scores_.top(8), on_step=print)
        >>> with attach(model, monitor):
        ...     model.generate(**inputs, max_new_tokens=30)
    """

    def __init__(
        self, heads: HeadSet, span: Sequence[int] | None = None, on_step: Callable[[Step], None] | None = None
    ) -> None:
        self.heads, self.span, self.on_step = heads, span, on_step
        self.steps: list[Step] = []
        self._rows: list[torch.Tensor] = []
        self._first: str | None = None
        self._seen: set[str] = set()

    def ask(self, c: AttentionCall) -> Ask:
        """The row of the newest token."""
        return Ask(rows=torch.tensor([c.queries - 1], device=c.device))

    def take(self, c: AttentionCall, answer: Answer) -> None:
        """Gathers the rows of all sites of a step; a site seen again begins the next step."""
        assert answer.rows is not None
        if c.site in self._seen:
            self._close()
        self._seen.add(c.site)
        self._rows.append(answer.rows[0, self.heads_at(c) or [], 0].float())
        if self.heads is not None and self._seen == set(self.heads.sites):
            self._close()

    def _close(self) -> None:
        if not self._rows:
            return
        n = min(r.shape[-1] for r in self._rows)
        rows = torch.cat([r[:, -n:] for r in self._rows]).mean(0)
        self._rows, self._seen = [], set()
        sink = float(rows[0])
        rest = rows.clone()
        rest[0] = 0.0
        watched = rest if self.span is None else rest[[i for i in self.span if i < n]]
        step = Step(len(self.steps), sink, float(watched.sum()), int(rest.argmax()), bool(watched.sum() > sink))
        self.steps.append(step)
        if self.on_step is not None:
            self.on_step(step)

    def closed(self, session: Any) -> None:
        """Closes the last step."""
        self._close()
