"""Step 4: attention that every token receives, head by head, from queries after it; no attention matrix."""

from __future__ import annotations

import numpy as np
import torch

from unbraid.core.calls import Answer, Ask, AttentionCall, Tap
from unbraid.core.errors import UnbraidError


class ColumnScores(Tap):
    """Mean attention that each key receives from later queries, and from one common set of queries.

    Two means of the column A[:, t]: over all queries after t (the paper's score), and over the same last queries for
    all keys, which is the one to compare tokens by: later tokens have fewer, and other, queries after them.

    Args:
        common: position of the first common query.

    Attributes:
        later: site -> [B, H, K] mean over queries after the key; NaN for the last key.
        shared: site -> [B, H, K] mean over queries from `common` on; comparable for keys before `common`.
    """

    def __init__(self, common: int) -> None:
        if common < 1:
            raise UnbraidError(f"common={common}: the common queries must begin after the first token.")
        self.common = common
        self.later: dict[str, np.ndarray] = {}
        self.shared: dict[str, np.ndarray] = {}

    def wants(self, c: AttentionCall) -> bool:
        """Self-attention over a whole text only."""
        return c.kind == "self" and c.queries == c.keys

    def ask(self, c: AttentionCall) -> Ask:
        """Two weighted column sums, and the diagonal to take off the first."""
        if self.common >= c.queries:
            raise UnbraidError(f"common={self.common}, but the text has {c.queries} tokens; choose an earlier query.")
        weights = torch.ones(c.queries, 2, device=c.device)
        weights[: self.common, 1] = 0.0
        at = torch.arange(c.queries, device=c.device)
        return Ask(weights=weights, entries=(at, at))

    def take(self, c: AttentionCall, answer: Answer) -> None:
        """Divides by how many queries there were."""
        assert answer.weights is not None
        assert answer.entries is not None
        w, n = answer.weights.detach(), c.keys
        after = torch.arange(n - 1, -1, -1, device=w.device)
        later = (w[..., 0] - answer.entries.detach()) / after.clamp(min=1)
        later[..., -1] = torch.nan
        self.later[c.site] = later.cpu().numpy()
        self.shared[c.site] = (w[..., 1] / (n - self.common)).cpu().numpy()

    def stacked(self, sites: list[str], which: str = "shared") -> np.ndarray:
        """[L, H, K] of one text, sites in the order given.

        Raises:
            UnbraidError: the model has not run, or a site was never called.
        """
        table = {"shared": self.shared, "later": self.later}[which]
        missing = [s for s in sites if s not in table]
        if missing:
            raise UnbraidError(f"ColumnScores has seen no attention at {missing[0]!r}; run the whole text in one pass.")
        return np.stack([table[s][0] for s in sites])
