"""What path patching measured, prompt by prompt, so that numerators and denominators are averaged apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.core.heads import Head, HeadScores
from unbraid.core.patching.nodes import MLP, Node, Receiver


@dataclass(eq=False)
class Effects:
    """Effects of senders on one set of receivers.

    The metric of a prompt is the log-odds of its answers against its distractors at the last token (for one token
    each: the difference of their logits).

    Attributes:
        senders: nodes (layer, head) of each sender, head -1 being an MLP.
        labels: their short names.
        patched: [senders, prompts] metric with the paths patched.
        clean: [prompts] metric of the clean run.
        corrupt: [prompts] metric of the corrupt run, for the same tokens.
        sites: attention of each layer.
        heads: query heads of each layer.
    """

    senders: list[frozenset[Node]]
    labels: list[str]
    patched: np.ndarray
    clean: np.ndarray
    corrupt: np.ndarray
    sites: list[str]
    heads: list[int]

    def importance(self, prompts: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """(patched - clean) / (corrupt - clean) per sender: 0 is no effect, 1 flips the answer, < 0 strengthens it.

        Args:
            prompts: indices to average over, repeated ones counting twice (for a bootstrap); None for all.

        Raises:
            UnbraidError: corrupt and clean prompts give the same answer, so nothing can be normalised.
        """
        at = np.arange(len(self.clean)) if prompts is None else np.asarray(prompts)
        clean, span = self.clean[at].mean(), (self.corrupt[at] - self.clean[at]).mean()
        if abs(span) < 1e-9:
            raise UnbraidError(
                "The corrupt prompts change the metric by nothing, so effects cannot be normalised; read "
                "`patched - clean`, or give corrupt prompts with another answer."
            )
        return (self.patched[:, at].mean(1) - clean) / span

    def scores(self, prompts: Sequence[int] | np.ndarray | None = None) -> HeadScores:
        """Importance of single heads as a table; NaN for heads that were no sender."""
        return self.table(self.importance(prompts))

    def table(self, values: np.ndarray, name: str = "importance") -> HeadScores:
        """Any number per sender as a table of heads."""
        rows = {site: np.full(n, np.nan) for site, n in zip(self.sites, self.heads, strict=True)}
        for nodes, value in zip(self.senders, values, strict=True):
            if len(nodes) == 1:
                ((layer, head),) = nodes
                if head != MLP:
                    rows[self.sites[layer]][head] = value
        return HeadScores(rows, name)

    def __add__(self, other: Effects) -> Effects:
        """The same senders on further prompts."""
        if self.labels != other.labels:
            raise UnbraidError("Effects of different senders cannot be joined.")
        return Effects(
            self.senders,
            self.labels,
            np.concatenate([self.patched, other.patched], 1),
            np.concatenate([self.clean, other.clean]),
            np.concatenate([self.corrupt, other.corrupt]),
            self.sites,
            self.heads,
        )


@dataclass(eq=False)
class Edges:
    """Effects of single paths: every sender into every receiver alone.

    Attributes:
        senders: nodes of each edge's sender.
        receivers: of each edge.
        patched: [edges, prompts]; clean, corrupt: [prompts].
    """

    senders: list[Head]
    receivers: list[Receiver]
    patched: np.ndarray
    clean: np.ndarray
    corrupt: np.ndarray

    def __len__(self) -> int:
        return len(self.senders)

    def change(self) -> np.ndarray:
        """[edges] mean change of the metric."""
        return (self.patched - self.clean).mean(1)

    def importance(self) -> np.ndarray:
        """[edges] `change` over the change from clean to corrupt prompts."""
        return self.change() / (self.corrupt - self.clean).mean()
