"""What is kept of earlier tokens while a text grows: sums of fixed size where a variant is one, or keys and values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

    A layer with fixed maps has its queries and keys from the start, the same for all texts: of a token it keeps the
    value, and as its key the number of its place.

    Args:
        variants: of each layer.
        maps: queries and keys [heads, longest, D] of the layers that have fixed maps.

    Reference:
        arXiv 2510.11602, Eqs. 14-18 (recurrent forms) and its table of cache sizes.
    """

    def __init__(self, variants: Sequence[str], maps: Mapping[int, tuple[Tensor, Tensor]] | None = None) -> None:
        self.variants, self.maps = list(variants), dict(maps or {})
        summed = ("mlp", "approximate", "non_approximate")
        super().__init__(layers=[Sums() if v in summed else DynamicLayer() for v in variants])

    @property
    def longest(self) -> int | None:
        """Places that the maps have; None without fixed maps."""
        return min((key.shape[1] for _, key in self.maps.values()), default=None)

    def seen(self, count: int) -> None:
        """Count tokens that have gone through the model."""
        for layer in self.layers:
            if isinstance(layer, Sums):
                layer.seen += count

    def sums(self, layer: int) -> list[Tensor] | None:
        """The running sums of a layer, to be changed in place; None where it keeps keys and values."""
        found = self.layers[layer]
        return found.state if isinstance(found, Sums) else None

    def fixed(self, layer: int, places: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of new tokens, and keys and values of all, in a layer with fixed maps.

        Args:
            layer: its number.
            places: of the new tokens [B, n].
            value: of the new tokens [B, H, n, D].

        Returns:
            Queries [B, H, n, D], keys [B, H, N, D] and values of that shape; one row of queries and keys where all
            texts have the same places.
        """
        query, key = self.maps[layer]
        kept, values = self.update(places[:, None, :, None], value, layer)
        every = kept[:, 0, :, 0]
        if bool((every == every[:1]).all()):
            places, every = places[:1], every[:1]
        query, count = query[:, places].transpose(0, 1), every.shape[1]
        if len(every) == 1 and torch.equal(every[0], torch.arange(count, device=every.device)):
            return query, key[None, :, :count], values  # no copy: nothing is padded
        return query, key[:, every].transpose(0, 1), values

    def numel(self) -> int:
        """Numbers kept of tokens, over all layers; fixed maps are not counted, as they are there before any token."""
        total = 0
        for layer in self.layers:
            held: Any = layer
            kept = held.state if isinstance(layer, Sums) else [held.keys, held.values]
            total += sum(x.numel() for x in kept if isinstance(x, torch.Tensor))
        return total
