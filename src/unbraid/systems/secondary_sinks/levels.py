"""Sink levels: how many tokens share a first block and a lifetime, with intervals over texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from unbraid.systems.secondary_sinks.detect import Sink


def sink_levels(sinks: Sequence[Sink], tokens: Sequence[int], draws: int = 999, seed: int = 0) -> list[dict[str, Any]]:
    """Counts of every (l_start, lifetime), most frequent first.

    Args:
        sinks: of all texts, any label.
        tokens: length of every text; texts are the units of the bootstrap.
        draws: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        One row per level: l_start, lifetime, label, count, share, per 1,000 tokens with a 95 % interval over texts.
    """
    counts = Counter(s.level for s in sinks)
    labels = {s.level: s.label for s in sinks}
    lengths = np.asarray(tokens, float)
    pick = np.random.default_rng(seed).integers(0, len(lengths), (draws, len(lengths)))
    rows = []
    for level, count in counts.most_common():
        each = np.zeros(len(lengths))
        for s in sinks:
            each[s.text] += s.level == level
        rates = 1000 * each[pick].sum(1) / lengths[pick].sum(1)
        low, high = np.quantile(rates, [0.025, 0.975])
        rows.append(
            {
                "l_start": level[0], "lifetime": level[1], "label": labels[level], "count": count,
                "share": count / len(sinks), "per 1000 tokens": float(1000 * count / lengths.sum()),
                "low": float(low), "high": float(high),
            }
        )  # fmt: skip
    return rows


def level_grid(sinks: Sequence[Sink], layers: int) -> np.ndarray:
    """[L, L] log(1 + count): rows are first blocks, columns lifetimes 1 to L (the paper's heat map)."""
    grid = np.zeros((layers, layers))
    for s in sinks:
        grid[s.l_start, s.lifetime - 1] += 1
    return np.log1p(grid)


def same_levels(a: Sequence[Sink], b: Sequence[Sink], layers: tuple[int, int]) -> float:
    """Overlap of two models' level distributions, both axes as shares of the depth in tenths: 0 to 1."""

    def shares(sinks: Sequence[Sink], depth: int) -> dict[tuple[int, int], float]:
        cells = Counter((round(10 * s.l_start / depth), round(10 * s.lifetime / depth)) for s in sinks)
        return {k: v / max(1, len(sinks)) for k, v in cells.items()}

    one, two = shares(a, layers[0]), shares(b, layers[1])
    return float(sum(min(share, two.get(k, 0.0)) for k, share in one.items()))
