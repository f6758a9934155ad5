"""The system: texts in, a table of sinks out, with everything that was measured of them in one pass per text."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from unbraid.core.attach import attach
from unbraid.core.blocks import blocks
from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores
from unbraid.core.inputs import lean_inputs
from unbraid.core.system import System
from unbraid.systems.secondary_sinks import CARD
from unbraid.systems.secondary_sinks.columns import ColumnScores
from unbraid.systems.secondary_sinks.detect import Guard, Sink, find_sinks, massive, primary_sink, weak_sinks
from unbraid.systems.secondary_sinks.levels import sink_levels
from unbraid.systems.secondary_sinks.watch import Profile, Watch, texts_of

if TYPE_CHECKING:
    import pandas as pd


class SecondarySinks(System):
    """Finds tokens that become attention sinks in the middle of a network.

    One forward pass per text with hooks that keep a few floats per token and block, and a tap that keeps two column
    means per head: memory grows linearly with the text.

    Args:
        threshold: on |cosine| of a token's residual stream with the primary sink's.
        candidates: how many first tokens may be the primary sink: 2, or 3 for chat templates.
        guard: "norm" also asks for `guard_ratio` times the block's median norm, "centre" takes the mean of ordinary
            tokens off before the cosine, "none" is the paper's script.
        guard_ratio: for guard="norm".
        primary_ratio: norm of the primary sink in units of the median token's, below which there is none.
        drop: the primary sink's window ends at its largest fall, if that is more than this share of its peak.
        bounds: lifetimes above the first and below the second are "secondary"; None: the paper's 4 and L - 15, scaled
            on models of fewer than 28 blocks.
        attention: also measure the attention that every token receives.
        weak_ratio: the attention-side test asks for this many times the block's median score.
        weak_least: and for at least this score.

    Attributes:
        records_: sinks as plain data (`sinks_` as objects), `primary_` one per text (None: this text has none).
        levels_: counts of (l_start, lifetime) with intervals.
        weak_: tokens of the attention-side test, per text.
        massive_: massive activations, per text.
        primary_mass_: texts x [L] mean attention of the common queries on the primary sink.
        primary_norm_: texts x [L] norm of the first token; `median_norm_` of the median token; `sink_norm_` of the
            longest-lived sink (None: there is none).
        heads_: `HeadScores`, mean attention of each head on the secondary sinks that its block reads; None without any.
        refused_: why texts without a primary sink were left out.
    """

    card = CARD

    def __init__(
        self,
        threshold: float = 0.9,
        candidates: int = 3,
        guard: Guard = "norm",
        guard_ratio: float = 3.0,
        primary_ratio: float = 10.0,
        drop: float = 0.5,
        bounds: tuple[int, int] | None = None,
        attention: bool = True,
        weak_ratio: float = 5.0,
        weak_least: float = 0.01,
    ) -> None:
        self.threshold, self.candidates = threshold, candidates
        self.guard, self.guard_ratio = guard, guard_ratio
        self.primary_ratio, self.drop, self.bounds = primary_ratio, drop, bounds
        self.attention, self.weak_ratio, self.weak_least = attention, weak_ratio, weak_least

    def fit(
        self, model: nn.Module, texts: Tensor | Sequence[Tensor], on_text: Callable[[int], None] | None = None
    ) -> SecondarySinks:
        """Looks for sinks in texts.

        Args:
            model: a decoder with a stack of blocks.
            texts: token ids, [batch, tokens] of equal length or a list of [tokens] or [1, tokens]; without padding.
            on_text: called after each text with how many are done.

        Returns:
            Itself.

        Raises:
            UnbraidError: no text, one is too short, or no text has a primary sink.
        """
        if not 0 < self.threshold <= 1:
            raise UnbraidError(f"threshold is {self.threshold}; a cosine threshold lies between 0 and 1.")
        rows = texts_of(texts)
        sites = [b.site for b in blocks(model)]
        self.layers_, self.tokens_ = len(sites), [int(x.shape[1]) for x in rows]
        self.sites_ = sites
        self.records_: list[dict[str, Any]] = []
        self.primary_: list[dict[str, Any] | None] = []
        self.weak_: list[list[dict[str, Any]]] = []
        self.massive_: list[list[dict[str, Any]]] = []
        self.primary_mass_: list[list[float] | None] = []
        self.primary_norm_: list[list[float]] = []
        self.median_norm_: list[list[float]] = []
        self.sink_norm_: list[list[float] | None] = []
        self.refused_: list[str] = []
        self.heads_: HeadScores | None = None
        share = _Share(sites)
        for i, ids in enumerate(rows):
            self._one(model, i, ids, share)
            if on_text is not None:
                on_text(i + 1)
        if not any(self.primary_):
            raise UnbraidError(self.refused_[0])
        self.levels_ = sink_levels(self.sinks_, self.tokens_) if self.records_ else []
        self.heads_ = share.scores()
        return self

    @property
    def sinks_(self) -> list[Sink]:
        """All sinks of all texts, in order."""
        return [Sink.from_dict(r) for r in self.records_]

    @property
    def secondary_(self) -> list[Sink]:
        """Those in the primary sink's window whose lifetime makes them secondary sinks: the paper's definition."""
        return [s for s in self.sinks_ if s.label == "secondary" and s.window == "main"]

    @property
    def early_(self) -> list[Sink]:
        """Those of another phase of the primary sink with a secondary sink's lifetime; the paper looks elsewhere."""
        return [s for s in self.sinks_ if s.label == "secondary" and s.window == "other"]

    @property
    def main_(self) -> list[Sink]:
        """Secondary sinks, or where there are none those of another phase: what a study looks at closely."""
        return self.secondary_ or self.early_

    def _one(self, model: nn.Module, number: int, ids: Tensor, share: _Share) -> None:
        profile, scores = measure(model, ids, self.candidates, self.attention)
        self.primary_norm_.append(profile.norm[:, 0, 0].tolist())
        self.median_norm_.append(np.median(profile.norm[:, 0], axis=1).tolist())
        self.massive_.append(massive(profile))
        try:
            primary = primary_sink(profile, self.primary_ratio, self.drop)
        except UnbraidError as error:
            self.refused_.append(str(error))
            self.sink_norm_.append(None)
            self.primary_.append(None)
            self.weak_.append([])
            self.primary_mass_.append(None)
            return
        found = find_sinks(
            profile, primary, threshold=self.threshold, guard=self.guard, guard_ratio=self.guard_ratio,
            bounds=self.bounds, tokens=ids[0].cpu().numpy(), text=number,
        )  # fmt: skip
        self.primary_.append({**vars(primary)})
        top = max(found, key=lambda s: (s.lifetime, s.write), default=None)
        self.sink_norm_.append(None if top is None else profile.norm[:, 0, top.position].tolist())
        if scores is None:
            self.records_ += [s.to_dict() for s in found]
            self.weak_.append([])
            self.primary_mass_.append(None)
            return
        by_head = scores.stacked(self.sites_)
        mean = by_head.mean(1)
        self.primary_mass_.append(mean[:, primary.position].tolist())
        self.weak_.append(weak_sinks(mean, found, primary, scores.common, self.weak_ratio, self.weak_least))
        for s in found:
            row = s.to_dict()
            read = [layer for layer in s.readers if layer < len(mean)]
            comparable = s.position < scores.common and bool(read)
            row["score"] = float(mean[read, s.position].mean()) if comparable else float("nan")
            self.records_.append(row)
            if s.label == "secondary" and comparable:  # of either window
                share.add(by_head, s)

    def frame(self) -> pd.DataFrame:
        """One row per sink (needs pandas)."""
        import pandas as pd

        return pd.DataFrame([s.to_dict() for s in self.sinks_])

    def protected(self, text: int = 0) -> list[int]:
        """Positions that a cache must keep, and keep exact: the primary sink and every sink that is not noise."""
        primary = self.primary_[text]
        first = [] if primary is None else [int(primary["position"])]
        return sorted({*first, *(s.position for s in self.sinks_ if s.text == text and s.label != "noise")})

    def export(self, path: str | Path) -> Path:
        """Writes sinks, levels and the positions to protect as JSON."""
        path = Path(path)
        data = {
            "kind": "secondary-sinks", "layers": self.layers_, "tokens": self.tokens_, "sinks": self.records_,
            "primary": self.primary_, "levels": self.levels_,
            "protect": [self.protected(i) for i in range(len(self.tokens_))],
        }  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(_finite(data), indent=1), encoding="utf-8")
        os.replace(part, path)
        return path


class _Share:
    """Running mean, per head, of the attention on secondary sinks that the head's block reads."""

    def __init__(self, sites: list[str]) -> None:
        self.sites, self.total, self.count = sites, np.zeros(0), np.zeros(len(sites))

    def add(self, by_head: np.ndarray, sink: Sink) -> None:
        if not self.total.size:
            self.total = np.zeros(by_head.shape[:2])
        for layer in sink.readers:
            if layer < len(self.sites):
                self.total[layer] += by_head[layer, :, sink.position]
                self.count[layer] += 1

    def scores(self) -> HeadScores | None:
        if not self.count.any():
            return None
        mean = np.where(self.count[:, None] > 0, self.total / np.maximum(self.count, 1)[:, None], np.nan)
        return HeadScores(dict(zip(self.sites, mean, strict=True)), name="attention on secondary sinks")


def measure(
    model: nn.Module, ids: Tensor, candidates: int = 3, attention: bool = True
) -> tuple[Profile, ColumnScores | None]:
    """One pass over a text [1, tokens]: the profile of its residual stream and, if asked, its column scores."""
    device = next(model.parameters()).device
    ids = ids.to(device)
    watch = Watch(model, min(candidates, ids.shape[1]))
    scores = ColumnScores(common=ids.shape[1] // 2) if attention else None
    with torch.no_grad(), watch:
        if scores is None:
            model(**lean_inputs(model, ids))
        else:
            with attach(model, scores):
                model(**lean_inputs(model, ids))
    return watch.profile(), scores


def _finite(x: Any) -> Any:
    if isinstance(x, dict):
        return {k: _finite(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [_finite(v) for v in x]
    return None if isinstance(x, float) and not np.isfinite(x) else x
