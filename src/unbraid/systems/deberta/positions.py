"""Which row of the table of relative positions a query and a key look up: DeBERTa's buckets, once for each length."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

LongRange = Literal["hf", "official"]


def bucket(distance: Tensor, buckets: int, longest: int) -> Tensor:
    """Distances as numbers of buckets: as they are up to half of the buckets, logarithmic beyond.

    Args:
        distance: query less key, any shape, whole numbers.
        buckets: half of the table's rows; 0 or less leaves all distances as they are.
        longest: distance that fills the last bucket.

    Returns:
        Whole numbers of the same shape, odd in the distance.
    """
    if buckets <= 0 or longest <= 0:
        return distance
    middle = buckets // 2
    far = distance.abs().clamp(min=middle).float()
    # in single precision and in this order, as the released models were trained
    steps = torch.ceil(torch.log(far / middle) / torch.log(torch.tensor((longest - 1) / middle)) * (middle - 1))
    return torch.where(distance.abs() <= middle, distance, ((steps + middle) * distance.sign()).long())


@lru_cache(maxsize=64)
def rows(queries: int, keys: int, span: int, buckets: int, longest: int, long_range: LongRange = "hf") -> Tensor:
    """Row of the table for each distance from ``-(keys - 1)`` to ``queries - 1``.

    Args:
        queries: how many.
        keys: how many.
        span: half of the table's rows.
        buckets: see `bucket`.
        longest: see `bucket`.
        long_range: what becomes of distances of `longest` and more: "hf" lets them run into the table's first and last
            row, the first of which no training of that length has touched; "official" holds them at ``longest - 1``.

    Returns:
        [queries + keys - 1] whole numbers from 0 to ``2 span - 1``, on the CPU.
    """
    distance = torch.arange(-(keys - 1), queries)
    if long_range == "official":
        distance = distance.clamp(-(longest - 1), longest - 1)
    return (bucket(distance, buckets, longest) + span).clamp(0, 2 * span - 1)
