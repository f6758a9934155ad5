"""Means over seeds with their intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEVEL = 0.95


def over(values: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Mean and its 95 % interval by Student's t.

    Args:
        values: one for each seed, or whatever was drawn independently.

    Returns:
        The mean, NaN of nothing; the interval's ends, None with fewer than two values.
    """
    from scipy import stats

    x = np.asarray(values, float)
    if len(x) < 2:
        return float(x.mean()) if len(x) else float("nan"), None
    half = float(stats.t.ppf(0.5 + LEVEL / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return float(x.mean()), (float(x.mean()) - half, float(x.mean()) + half)
