"""What all observers share: raw answers per site, and means per head over the tokens that count."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from unbraid.core.calls import AttentionCall, Tap
from unbraid.core.engine import fused
from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores, HeadSet

if TYPE_CHECKING:
    from unbraid.core.attach import Session

Keep = Literal["last", "all", "none"]
Group = Iterable[int] | slice | Tensor | Callable[[AttentionCall], Tensor]


class Observer(Tap):
    """Keeps raw answers per site and running means per head.

    Means are over batch and query tokens: those of `attach(tokens=...)` where given, never rows that see no key.

    Args:
        heads: heads of interest; sites without one are not asked at all.
        keep: raw answers of the "last" call of a site, of "all" calls (one per decoding step), or "none".

    Attributes:
        values: site -> raw answers, the shapes are the subclass's.
    """

    name = "value"

    def __init__(self, heads: HeadSet | None = None, keep: Keep = "last") -> None:
        if keep not in ("last", "all", "none"):
            raise UnbraidError(f"keep={keep!r} is unknown; choose 'last', 'all' or 'none'.")
        self.heads, self.keep = heads, keep
        self.values: dict[str, list[Tensor]] = {}
        self._sum: dict[str, dict[str, Tensor]] = {}
        self._count: dict[str, Tensor] = {}
        self._session: Session | None = None

    def opened(self, session: Session) -> None:
        """Remembers which tokens count."""
        self._session = session

    def valid(self, c: AttentionCall) -> Tensor:
        """[B, 1 or H, Q] float: 1 for query rows that averages are taken over."""
        seen = c.extra.get("seeing")
        if seen is None:
            seen = c.extra["seeing"] = _seeing(c)
        tokens = None if self._session is None else self._session.tokens
        if tokens is not None and c.kind == "self" and tokens.shape[-1] >= c.queries:
            if tokens.dim() != 2 or tokens.shape[0] not in (1, c.batch):
                raise UnbraidError(
                    f"attach(tokens=...) must be [batch, tokens] with batch {c.batch}, not {tuple(tokens.shape)}."
                )
            seen = seen * tokens[:, None, -c.queries :].to(seen)
        return seen

    def remember(self, c: AttentionCall, raw: Tensor, **means: Tensor) -> None:
        """Keeps a raw answer; adds per-row numbers [B, H, Q] to the running means."""
        if self.keep != "none":
            old = self.values.get(c.site, []) if self.keep == "all" else []
            self.values[c.site] = [*old, raw.detach()]
        if not means:
            return
        valid = self.valid(c)
        total = self._sum.setdefault(c.site, {})
        for key, x in means.items():
            part = (x.detach().float() * valid).sum((0, 2)).double()
            total[key] = total[key] + part if key in total else part
        count = valid.expand(c.batch, -1, c.queries).sum((0, 2)).double()
        self._count[c.site] = self._count.get(c.site, 0) + count

    def scores(self, which: str | None = None) -> HeadScores:
        """The mean per head, sites in the order of execution.

        Raises:
            UnbraidError: nothing was observed yet, or `which` is no statistic of this observer.
        """
        if not self._sum:
            raise UnbraidError(f"{type(self).__name__} has seen no attention yet; run the model inside attach(...).")
        known = list(next(iter(self._sum.values())))
        which = known[0] if which is None else which
        if which not in known:
            raise UnbraidError(f"{type(self).__name__} has no statistic {which!r}; choose from {', '.join(known)}.")
        table = {}
        for site, total in self._sum.items():
            count = self._count[site].clamp(min=1e-12)
            table[site] = only(self.heads, site, (total[which] / count).cpu().numpy())
        return HeadScores(table, name=self.name if which == known[0] else f"{self.name}: {which}")


def only(heads: HeadSet | None, site: str, values: np.ndarray) -> np.ndarray:
    """Values of the chosen heads of a site, NaN elsewhere."""
    if heads is None:
        return values
    out = np.full_like(values, np.nan)
    chosen = heads.by_site().get(site, [])
    out[chosen] = values[chosen]
    return out


def _seeing(c: AttentionCall) -> Tensor:
    """[B|1, 1 or H, Q] float: rows that may see at least one key."""
    allowed = fused.allowed_keys(c)
    if allowed is not None and c.logits is None:  # an edit hid keys: rows with mass left on the others
        b, h = (max(x, y) for x, y in zip(allowed.shape[:2], c.key.shape[:2], strict=True))
        column = allowed[..., None].float().expand(b, h, -1, 1)
        with torch.no_grad():
            return (fused.attend(c.replace(softcap=None, sinks=None), column) > 0.5)[..., 0].float()
    if c.mask is None or c.mask.dim() < 2 or c.mask.shape[-2] == 1:
        return torch.ones(1, 1, c.queries, device=c.device)
    mask = c.mask if c.mask.dtype == torch.bool else c.mask > -1e29
    while mask.dim() < 4:
        mask = mask.unsqueeze(0)
    return mask[:, :1].any(-1).float()
