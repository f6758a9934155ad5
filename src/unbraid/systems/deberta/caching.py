"""Projections of the table of positions, kept while nothing they depend on can have changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

PROJECTIONS = ("query_proj", "key_proj", "pos_key_proj", "pos_query_proj", "pos_proj", "pos_q_proj")


class Cache:
    """Of one attention module; used only in evaluation, without gradients and without hooks on the projections.

    Args:
        used: whether anything is kept.
    """

    def __init__(self, used: bool = True) -> None:
        self.used = used
        self._state: Any = None
        self._kept: Any = None

    def may(self, attention: nn.Module, embeddings: Tensor) -> bool:
        """Whether nothing random or recorded lies between the table and what is kept."""
        if not self.used or attention.training or torch.is_grad_enabled() or embeddings.requires_grad:
            return False
        return not any(
            part._forward_hooks or part._forward_pre_hooks for one in _projections(attention) for part in one.modules()
        )

    def get(self, attention: nn.Module, embeddings: Tensor, make: Callable[[], Any]) -> Any:
        """What is kept, or made anew when a weight, an adapter or the table is another."""
        # the table's norm is taken anew in each forward: another tensor with the same numbers
        state = (_sums(embeddings), *(_state(one) for one in _projections(attention)))
        if state != self._state:
            self._kept, self._state = make(), state
        return self._kept

    def clear(self) -> None:
        """Keep nothing."""
        self._state = self._kept = None


def _projections(attention: nn.Module) -> list[nn.Module]:
    return [getattr(attention, name) for name in PROJECTIONS if isinstance(getattr(attention, name, None), nn.Module)]


def _version(x: Tensor) -> tuple[Any, ...]:
    # sums too: a change through .data, as adapters are merged, leaves pointer and version as they were
    return (x.data_ptr(), x._version, *_sums(x))


def _sums(x: Tensor) -> tuple[Any, ...]:
    flat = x.detach().float().flatten()
    return (x.shape, x.dtype, x.device, float(flat.sum()), float(flat @ flat))


def _state(one: nn.Module) -> tuple[Any, ...]:
    adapters = tuple(
        str(getattr(one, name, None)) for name in ("active_adapters", "merged_adapters", "disable_adapters")
    )
    scaling = str(getattr(one, "scaling", None))
    return (type(one), adapters, scaling, torch.is_autocast_enabled("cpu"), *(_version(p) for p in one.parameters()))
