"""What all our caches share: layers that keep some of the past, aligned so that the model's own masks stay right.

A transformers model makes its mask from two numbers of the cache: how many keys come back, and which position the
first of them has. Here the keys that are kept always look like the last ones of the text. For a row with left padding
this needs care: its padding must stay to the left of its kept tokens for as long as there is any, and it does, because
kept tokens are always in the order of the text and padding is the first to go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from unbraid.core.attach import attach
from unbraid.core.calls import Answer, Ask, AttentionCall, Tap
from unbraid.core.errors import UnbraidError


class KeptLayer(CacheLayerMixin):
    """A layer that keeps some of the past: keys and values [B, G, kept, width], in the order of the text.

    Attributes:
        cumulative_length: tokens seen.
        padding: [B] left padding of each row, or None.
    """

    keys: Any  # None until the first tokens come
    values: Any
    is_sliding = False
    is_croppable = False
    shared: tuple[str, ...] = ()  # tensors that have no row per text

    def __init__(self, padding: Tensor | None = None) -> None:
        super().__init__()
        self.cumulative_length = 0
        self.padding = padding

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Empty keys and values of the right type."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states[:, :, :0].clone()
        self.values = value_states[:, :, :0].clone()
        if self.padding is not None:
            self.padding = self.padding.to(self.device)
            if len(self.padding) != key_states.shape[0]:
                raise UnbraidError(
                    f"The cache was made for {len(self.padding)} texts (attention_mask), but the batch has "
                    f"{key_states.shape[0]}."
                )
        self.is_initialized = True

    @property
    def kept(self) -> int:
        """Tokens kept of each row."""
        return 0 if self.keys is None else int(self.keys.shape[-2])

    def staying(self, n: int) -> int:
        """How many kept tokens are still there when n new ones come."""
        return self.kept

    def get_seq_length(self) -> int:
        """Tokens seen, which is where the model puts the next one."""
        return self.cumulative_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(keys that will come back, position that the first of them seems to have)."""
        staying = self.staying(int(query_length))
        return staying + int(query_length), self.cumulative_length - staying

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def get_max_cache_shape(self) -> int:
        """No maximum (the name of older releases)."""
        return -1

    def reset(self) -> None:
        """Forgets everything."""
        self.keys = self.values = None
        self.is_initialized = False
        self.cumulative_length = 0

    def crop(self, tokens_to_remove: int) -> None:
        """Evicted tokens cannot be brought back, so nothing can be undone.

        Raises:
            UnbraidError: always, but for 0 tokens.
        """
        if tokens_to_remove:
            raise UnbraidError(
                f"{type(self).__name__} has evicted tokens and cannot go back; use a DynamicCache to undo steps."
            )

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each row."""
        self._rows(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps some rows."""
        self._rows(lambda x: x[indices.to(x.device)])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows in another order, for beam search."""
        self._rows(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def _rows(self, change: Callable[[Tensor], Tensor]) -> None:
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and name not in self.shared and value.dim() > 0 and len(value):
                vars(self)[name] = change(value)

    def _new(self, key_states: Tensor, value_states: Tensor) -> int:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return int(key_states.shape[-2])

    def pads(self) -> Tensor:
        """[B] how many of the kept slots, from the left, are padding."""
        if self.padding is None:
            return torch.zeros(self.keys.shape[0], dtype=torch.int64, device=self.keys.device)
        return (self.padding - (self.cumulative_length - self.kept)).clamp(min=0, max=self.kept)

    def take(self, index: Tensor) -> None:
        """Keeps the slots index [B, G or 1, m], rising along the last axis."""
        for name in ("keys", "values"):
            old = vars(self)[name]
            at = index.expand(-1, old.shape[1], -1)[..., None].expand(-1, -1, -1, old.shape[-1])
            vars(self)[name] = old.gather(2, at)


def ends(length: int, keep: int, sinks: int, pads: Tensor) -> Tensor:
    """Slots [B, keep] of the first `sinks` real tokens and the last ones, of `length` slots with `pads` [B] padding.

    Where a row has more padding than must go, only padding goes.
    """
    drop = length - keep
    slots = torch.arange(keep, device=pads.device)[None] + drop
    front = torch.arange(keep, device=pads.device)[None] + pads[:, None]
    early = (torch.arange(keep, device=pads.device)[None] < sinks) & (pads[:, None] < drop)
    return torch.where(early, front, slots.expand(len(pads), -1))


def left_padding(attention_mask: Tensor | None) -> Tensor | None:
    """[B] padding on the left of each row.

    Raises:
        UnbraidError: the mask is no [batch, tokens], a row is empty, or its padding is not on the left.
    """
    if attention_mask is None:
        return None
    if attention_mask.dim() != 2:
        raise UnbraidError(f"attention_mask must be [batch, tokens], not {tuple(attention_mask.shape)}.")
    real = attention_mask.bool()
    pads = (~real).sum(-1)
    if not bool(real.any(-1).all()):
        raise UnbraidError("a text of the batch has no token (its attention_mask is all 0); leave it out.")
    if not bool((real.cumsum(-1).bool() == real).all()):
        raise UnbraidError('a cache needs padding on the left; set tokenizer.padding_side = "left".')
    return pads


def decoder(model: Any, what: str) -> PreTrainedModel:
    """The model, after it was found to be one that a cache of keys is for.

    Raises:
        UnbraidError: it is no decoder language model of transformers.
    """
    if not isinstance(model, PreTrainedModel):
        raise UnbraidError(f"{what} needs a transformers model, not {type(model).__name__}.")
    if model.config.is_encoder_decoder or not model.can_generate():
        raise UnbraidError(
            f"{what} needs a decoder language model that can generate; {type(model).__name__} reads its whole input at "
            "once and keeps no keys."
        )
    return model


def kinds_of(model: PreTrainedModel) -> list[str | None]:
    """The type of each layer where the configuration says it ("full_attention", "sliding_attention", ...)."""
    listed = model.config.get_text_config(decoder=True).to_dict().get("layer_types")
    return list(listed) if listed else []


class KeptCache(Cache):
    """A cache whose full-attention layers are of our own making; windowed and recurrent layers stay the model's own.

    Args:
        model: a decoder language model.
        make: number of a layer -> its cache layer.
    """

    def __init__(self, model: Any, make: Callable[[int], KeptLayer]) -> None:
        found = decoder(model, type(self).__name__)
        layers: list[Any] = list(DynamicCache(config=found.config).layers)
        self.ours = [i for i, layer in enumerate(layers) if type(layer) is DynamicLayer]
        if not self.ours:
            raise UnbraidError(
                f"{type(found).__name__} has no layer with full attention, so there is nothing that "
                f"{type(self).__name__} could keep or evict."
            )
        for i in self.ours:
            layers[i] = make(i)
        self.current: KeptLayer | None = None
        super().__init__(layers=layers)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As in transformers; remembers the layer, because the attention that follows is the one that uses it."""
        layer = self.layers[layer_idx]
        self.current = layer if isinstance(layer, KeptLayer) else None
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        return keys, values

    @property
    def kept(self) -> int:
        """Tokens that the full-attention layers keep of each row."""
        layer = self.layers[self.ours[0]]
        assert isinstance(layer, KeptLayer)
        return layer.kept

    def nbytes(self) -> int:
        """Bytes of everything that is kept."""
        return cache_bytes(self)


class Watcher(Tap):
    """Asks the attention for what a cache needs to know to choose; see `ScoringLayer`."""

    def __init__(self, cache: KeptCache) -> None:
        self.cache = cache

    def ask(self, c: AttentionCall) -> Ask | None:
        """What the layer asks, if it asks."""
        layer = self.cache.current
        return layer.question(c) if isinstance(layer, ScoringLayer) else None

    def take(self, c: AttentionCall, answer: Answer) -> None:
        """Hands the answer on."""
        layer = self.cache.current
        assert isinstance(layer, ScoringLayer)
        layer.answer(c, answer)


class ScoringLayer(KeptLayer):
    """A layer that keeps what attention says is worth keeping."""

    waiting = False

    def question(self, c: AttentionCall) -> Ask | None:
        """What to ask of an attention."""
        raise NotImplementedError

    def answer(self, c: AttentionCall, answer: Answer) -> None:
        """Takes the answer, and evicts."""
        raise NotImplementedError

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends; what is too much goes once the attention was seen.

        Raises:
            UnbraidError: nobody listens to the attention.
        """
        n = self._new(key_states, value_states)
        if self.waiting:
            raise UnbraidError(
                "This cache chooses by attention and has seen none: generate inside `with cache.watching(model):`."
            )
        self.keys = torch.cat([self.keys, key_states], 2)
        self.values = torch.cat([self.values, value_states], 2)
        self.cumulative_length += n
        self.waiting = True
        return self.keys, self.values

    def reset(self) -> None:
        """Forgets everything."""
        super().reset()
        self.waiting = False


class WatchingCache(KeptCache):
    """A cache that chooses by attention: use it inside `watching`."""

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Lets the cache see the attention of the model, for the length of the block."""
        with attach(model, Watcher(self), strict=False):
            yield


def cache_bytes(cache: Cache) -> int:
    """Bytes of all tensors that a cache holds: the comparison of memory in tables and benchmarks."""
    seen: dict[int, int] = {}

    def count(value: Any) -> None:
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            seen[storage.data_ptr() or id(value)] = storage.nbytes()
        elif isinstance(value, (list, tuple)):
            for item in value:
                count(item)
        elif isinstance(value, dict):
            for item in value.values():
                count(item)
        elif isinstance(value, CacheLayerMixin):
            count(list(vars(value).values()))

    for layer in cache.layers:
        count(list(vars(layer).values()))
    return sum(seen.values())
