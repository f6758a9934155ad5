"""Factors that come back to where they began: no single code can carry an angle, two can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.metrics.disentanglement.inputs import as_array, factor_names


def cyclic_view(
    factors: Any, cycles: Mapping[str, float], names: Sequence[str] | None = None
) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """Replace cyclic factors by their cosine and sine.

    Args:
        factors: [N, K] values.
        cycles: name -> value at which the factor is back where it began: 40 for forty orientations of a full turn,
            10 if the shape has fourfold symmetry; hue as tenths: 10.
        names: [K] of the factors; None: f0, f1, ...

    Returns:
        [N, K + cycles] factors, their names ("hue" becomes "hue cos" and "hue sin"), and which of them are continuous
        now: what ``names=`` and ``continuous=`` of the metrics take.

    Raises:
        UnbraidError: a name is unknown, or a cycle is not above 0.

    Example:
        >>> values, names, continuous = cyclic_view([[0, 2], [1, 2]], {"angle": 4}, ["angle", "size"])
        >>> names
        ('angle cos', 'angle sin', 'size')
        >>> values.round(3).tolist()
        [[1.0, 0.0, 2.0], [0.0, 1.0, 2.0]]
    """
    values = as_array(factors, "factors").astype(np.float64)
    values = values[:, None] if values.ndim == 1 else values
    called = factor_names(names, values.shape[1])
    wrong = [name for name in cycles if name not in called]
    if wrong:
        raise UnbraidError(f"cycles names a factor {wrong[0]!r}; there are {', '.join(called)}.")
    columns, new, continuous = [], [], []
    for name, column in zip(called, values.T, strict=True):
        if name not in cycles:
            columns.append(column)
            new.append(name)
            continue
        if not cycles[name] > 0:
            raise UnbraidError(f"the cycle of {name!r} is {cycles[name]!r}; it must be above 0.")
        angle = 2 * np.pi * column / cycles[name]
        columns += [np.cos(angle), np.sin(angle)]
        continuous += [f"{name} cos", f"{name} sin"]
        new += continuous[-2:]
    return np.stack(columns, axis=1), tuple(new), tuple(continuous)
