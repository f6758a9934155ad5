"""What is kept of earlier tokens while a text grows: sums of fixed size where a variant is one, or keys and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from unbraid.core.errors import UnbraidError


class Sums(CacheLayerMixin):
    """Running sums of a layer; empty for one that mixes nothing.

    Attributes:
        state: tensors [batch, heads, ...], as `mixing.taylor` and `mixing.pooled` keep them.
        seen: tokens so far.
    """

    is_sliding = False
    is_croppable = False

    def __init__(self) -> None:
        super().__init__()
        self.state: list[Tensor] = []
        self.seen = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is made ahead."""

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: there are no keys and values.

        Raises:
            UnbraidError: always.
        """
        raise UnbraidError("a layer of sums keeps no keys and values; use memory(model) with the model it is of.")

    def get_seq_length(self) -> int:
        """Tokens so far."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that a mask has columns for, and the first of them."""
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        """No greatest length."""
        return -1

    def reset(self) -> None:
        """Forget all tokens."""
        self.state, self.seen = [], 0

    def crop(self, tokens_to_remove: int) -> NoReturn:
        """Refused: a token cannot be taken out of a sum.

        Raises:
            UnbraidError: always.
        """
        raise UnbraidError("tokens cannot be taken back out of running sums; decode without an assistant model.")

    def _each(self, change: Callable[[Tensor], Tensor]) -> None:
        self.state = [change(x) for x in self.state]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows in another order, for beam search."""
        self._each(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Some rows."""
        self._each(lambda x: x[indices.to(x.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row several times."""
        self._each(lambda x: x.repeat_interleave(repeats, 0))


class Memory(Cache):
    """The cache of a deconstructed model, for one text or batch; `memory` makes it.

    Args:
        variants: of each layer.

    Raises:
        UnbraidError: a layer has fixed maps.

    Reference:
        arXiv 2510.11602, Eqs. 14-18 (recurrent forms) and its table of cache sizes.
    """

    def __init__(self, variants: Sequence[str]) -> None:
        fixed = [v for v in variants if v in ("random", "sequence")]
        if fixed:
            raise UnbraidError(
                f"the variant {fixed[0]!r} has fixed maps and no memory of earlier tokens yet; generate with "
                "use_cache=False, which gives the same text."
            )
        self.variants = list(variants)
        super().__init__(layers=[DynamicLayer() if v in ("standard", "static") else Sums() for v in variants])

    def seen(self, count: int) -> None:
        """Count tokens that have gone through the model."""
        for layer in self.layers:
            if isinstance(layer, Sums):
                layer.seen += count

    def sums(self, layer: int) -> list[Tensor] | None:
        """The running sums of a layer, to be changed in place; None where it keeps keys and values."""
        found = self.layers[layer]
        return found.state if isinstance(found, Sums) else None

    def numel(self) -> int:
        """Numbers kept, over all layers."""
        total = 0
        for layer in self.layers:
            held: Any = layer
            kept = held.state if isinstance(layer, Sums) else [held.keys, held.values]
            total += sum(x.numel() for x in kept if isinstance(x, torch.Tensor))
        return total
