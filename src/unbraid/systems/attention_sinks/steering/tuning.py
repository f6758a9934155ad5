"""ZeroTuning (arXiv 2505.11739): a factor on the first token's attention for each group of heads, chosen by a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from unbraid.core.attach import attach
from unbraid.core.calls import Tap
from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores, HeadSet
from unbraid.systems.attention_sinks.steering.mass_edits import scale_sinks
from unbraid.taps.edit_base import Keys


@dataclass
class Tuned:
    """What tuning found.

    Attributes:
        gammas: group -> factor.
        loss: with these factors.
        before: with all factors 1.
        trials: one dict per loss that was computed: group, gamma, loss.
        heads: group -> its heads.
        sinks: the keys that are scaled.
    """

    gammas: dict[str, float]
    loss: float
    before: float
    trials: list[dict[str, Any]]
    heads: dict[str, HeadSet]
    sinks: Keys

    def taps(self) -> list[Tap]:
        """The edits, for `attach(model, *tuned.taps())`."""
        return [scale_sinks(g, self.sinks, self.heads[name]) for name, g in self.gammas.items() if g != 1]


def head_groups(scores: HeadScores, count: int = 3) -> dict[str, HeadSet]:
    """Heads in groups of about equal size by how much they give to the first token, least first.

    Args:
        scores: as `report(...).alpha`.
        count: how many groups.

    Raises:
        UnbraidError: there are fewer heads than groups.
    """
    ranked = [head for head, value in reversed(scores.ranked()) if np.isfinite(value)]
    if not 1 <= count <= len(ranked):
        raise UnbraidError(f"count is {count}; there are {len(ranked)} heads to make groups of.")
    parts = np.array_split(np.arange(len(ranked)), count)
    return {f"group {i + 1} of {count}": HeadSet(ranked[j] for j in part) for i, part in enumerate(parts)}


def zero_tune(
    model: nn.Module,
    loss: Callable[[], float],
    groups: Mapping[str, HeadSet],
    grid: Sequence[float] = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0),
    sinks: Keys = (0,),
    step: Callable[[], None] | None = None,
) -> Tuned:
    """Chooses a factor for each group, one group after the other, each with the factors found before it.

    Args:
        model: whose attention is scaled.
        loss: runs the model and returns what is to become small: a loss with labels, or the entropy of the answers.
        groups: name -> heads, e.g. from `head_groups`.
        grid: factors that are tried; 1 is always among them.
        sinks: the keys that are scaled.
        step: called after each trial, for a progress bar.

    Raises:
        UnbraidError: no group, or a factor below 0.
    """
    if not groups:
        raise UnbraidError("zero_tune needs at least one group of heads; see head_groups.")
    if not grid or min(grid) < 0:
        raise UnbraidError(f"grid must hold factors of 0 or more, not {list(grid)}.")
    before = float(loss())
    best, gammas = before, dict.fromkeys(groups, 1.0)
    trials: list[dict[str, Any]] = [{"group": "none", "gamma": 1.0, "loss": before}]
    for name in groups:
        for gamma in grid:
            if gamma == 1:
                continue
            now = {**gammas, name: float(gamma)}
            taps = [scale_sinks(g, sinks, groups[n]) for n, g in now.items() if g != 1]
            with attach(model, *taps):
                value = float(loss())
            trials.append({"group": name, "gamma": float(gamma), "loss": value})
            if step is not None:
                step()
            if value < best:
                best, gammas = value, now
    return Tuned(gammas, best, before, trials, dict(groups), sinks)
