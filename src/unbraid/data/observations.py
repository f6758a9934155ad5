"""One way to draw float32 observations from whatever holds them: `FactorData`, arrays, tensors. Needs numpy only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.data.factors import FactorData

HELD = 256 * 2**20  # bytes of rendered observations that are kept in memory; larger worlds are drawn batch by batch


class Observations:
    """Observations as float32, held in memory where they fit, rendered when asked for where they do not.

    Args:
        data: `FactorData`, an array or a tensor [n, ...]. Whole numbers from 0 to 255 (uint8) become shares of 255.
        shape: what one observation must look like; [n, H, W] is taken for (1, H, W). None: as the data are.
        unit: whether all values must lie between 0 and 1.
        held: bytes that rendered observations may take in memory.

    Attributes:
        shape: of one observation.

    Raises:
        UnbraidError: no observations, another shape, values that are not finite or, with ``unit``, beyond 0 to 1.

    Example:
        >>> source = Observations(np.zeros((5, 4, 4), np.uint8), shape=(1, 4, 4))
        >>> len(source), source.take([0, 3]).shape
        (5, (2, 1, 4, 4))
    """

    def __init__(
        self, data: Any, shape: tuple[int, ...] | None = None, *, unit: bool = False, held: int = HELD
    ) -> None:
        self._unit = unit
        self._array: np.ndarray | None = None
        self._data: FactorData | None = None
        if isinstance(data, FactorData):
            self._n = len(data)
            if not self._n:
                raise UnbraidError("the data hold no observation; give at least one.")
            first = np.asarray(data.render([0]))
            self._data = data
        else:
            first = _as_array(data)
            self._array, self._n = first, len(first)
        self.shape = tuple(first.shape[1:]) if shape is None else tuple(shape)
        if tuple(first.shape[1:]) not in (self.shape, self.shape[1:] if self.shape[:1] == (1,) else self.shape):
            raise UnbraidError(
                f"one observation has the shape {tuple(first.shape[1:])}; {self.shape} is needed here: build the "
                "model for these data, or change their shape."
            )
        if self._data is not None and self._n * int(np.prod(self.shape)) * 4 <= held:
            self._array = self._rendered(range(self._n))
        elif self._array is not None:
            self._array = self._checked(self._array)

    def __len__(self) -> int:
        return self._n

    def take(self, indices: Any) -> np.ndarray:
        """[k, ...] float32 observations at these indices."""
        at = np.asarray(indices)
        return self._rendered(at) if self._array is None else self._array[at]

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """All observations in order, ``size`` at a time."""
        for start in range(0, self._n, size):
            yield self.take(np.arange(start, min(start + size, self._n)))

    def _rendered(self, indices: Any) -> np.ndarray:
        assert self._data is not None
        return self._checked(np.asarray(self._data.render(indices)))

    def _checked(self, x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float32) / np.float32(255) if x.dtype == np.uint8 else np.asarray(x, np.float32)
        if not np.isfinite(x).all():
            bad = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(1))
            raise UnbraidError(
                f"{len(bad)} of {len(x)} observations hold NaN or infinity (the first is number {bad[0]}); mend or "
                "drop them."
            )
        if self._unit and (x.min() < 0 or x.max() > 1):
            raise UnbraidError(
                f"observations lie between {x.min():g} and {x.max():g}; a Bernoulli likelihood needs 0 to 1: scale "
                "them, or build the model with likelihood='gaussian'."
            )
        return x.reshape(len(x), *self.shape)


def _as_array(data: Any) -> np.ndarray:
    if callable(getattr(data, "detach", None)):  # a tensor, without importing torch
        data = data.detach().cpu().numpy()
    try:
        array = np.asarray(data)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.ndim < 2 or not len(array) or array.dtype.kind not in "biuf":
        raise UnbraidError(
            f"observations must be FactorData, or numbers of shape [n, ...] with n of at least 1, not "
            f"{type(data).__name__} of {array.dtype}, shape {array.shape}."
        )
    return array
