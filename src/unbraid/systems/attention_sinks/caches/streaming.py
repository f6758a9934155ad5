"""StreamingLLM (arXiv 2309.17453): the first tokens and the last ones, at positions inside the cache, without end.

Positions are cache indices: sinks at 0 to S - 1, the window right behind them, however long the text has become. Since
rotary attention sees differences of positions only, two ways of saying so give the same numbers. By default the model
goes on counting, the window's keys stay as they are, and the few sink keys are moved up behind it: each is turned
once per step from where it first stood, so nothing drifts, and a step costs no more than with the library's own cache.
Inside `indexed` the model itself is told cache indices, keys are stored un-rotated, and every key is rotated at its
index in every step, as in the paper: for streams so long that angles of absolute positions lose digits, and for models
whose biases are made from the length of the cache (ALiBi).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.core.blocks import listening
from unbraid.core.errors import UnbraidError
from unbraid.systems.attention_sinks.caches.kept import KeptCache, KeptLayer, decoder, kinds_of, left_padding
from unbraid.systems.attention_sinks.caches.rotation import Rotation, rotations


class StreamingLayer(KeptLayer):
    """Keeps the first `sinks` and the last `window` tokens of each row.

    Args:
        sinks: S, may be 0 (a plain sliding window).
        window: W, the token that is being read included.
        rotation: of the model's keys; None when it rotates nothing.
        padding: [B] left padding, or None.
    """

    def __init__(self, sinks: int, window: int, rotation: Rotation | None, padding: Tensor | None = None) -> None:
        super().__init__(padding)
        self.sinks, self.window, self.rotation = sinks, window, rotation
        self.indexed = False
        self.incoming = 0
        self.home: Tensor | None = None
        self.home_values: Tensor | None = None

    def staying(self, n: int) -> int:
        """The sinks and the last W - n tokens stay when n new ones come."""
        return min(self.kept, self.sinks + max(self.window - n, 0))

    def get_seq_length(self) -> int:
        """Tokens seen; while the model counts in cache indices, the index of the next token."""
        return self.staying(self.incoming) if self.incoming else self.cumulative_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(keys that will come back, position that the first of them seems to have)."""
        staying = self.staying(int(query_length))
        return staying + int(query_length), self.get_seq_length() - staying

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends, evicts, and returns keys rotated for their places."""
        n = self._new(key_states, value_states)
        seen, keep = self.cumulative_length, self.staying(n)
        if seen == 0:
            self.indexed = bool(self.incoming)
        elif self.indexed != bool(self.incoming):
            raise UnbraidError("This cache was begun in the other way of counting: use `indexed` always or never.")
        self._remember(key_states, value_states, seen)
        drop, total = self.kept - keep, keep + n
        keys = torch.cat([self.keys[:, :, drop:], self._raw(key_states, keep)], 2)
        values = torch.cat([self.values[:, :, drop:], value_states], 2)
        start = seen - keep
        self._put(keys, self._front(start), start)
        self._put(values, self.home_values, start)
        self.cumulative_length += n
        most = min(total, self.sinks + self.window)
        self.keys, self.values = (
            (keys, values) if most == total else (keys[:, :, -most:].clone(), values[:, :, -most:].clone())
        )
        if self.indexed and self.rotation is not None:
            index = torch.arange(total, device=keys.device)
            return self.rotation.turn(keys, torch.zeros_like(index), index), values
        return keys, values

    def reset(self) -> None:
        """Forgets everything."""
        super().reset()
        self.home = self.home_values = None

    def _raw(self, keys: Tensor, index: int) -> Tensor:
        """New keys as they are stored: un-rotated where the model counts in cache indices, else as they are."""
        if not self.indexed or self.rotation is None:
            return keys
        where = torch.arange(keys.shape[2], device=keys.device) + index
        return self.rotation.turn(keys, where, torch.zeros_like(where))

    def _first(self, length: int) -> Tensor:
        """[B, length] the places of each row's first tokens, counted with its padding."""
        places = torch.arange(length, device=self.device)[None]
        return places if self.padding is None else places + self.padding[:, None]

    def _remember(self, keys: Tensor, values: Tensor, seen: int) -> None:
        """Keeps the sinks as they came."""
        if not self.sinks:
            return
        if self.home is None or self.home_values is None:
            self.home = keys.new_zeros(*keys.shape[:2], self.sinks, keys.shape[-1])
            self.home_values = values.new_zeros(*values.shape[:2], self.sinks, values.shape[-1])
        last = self.sinks - 1 + (0 if self.padding is None else int(self.padding.max()))
        if seen > last:
            return
        at = (self._first(self.sinks) - seen).expand(keys.shape[0], -1)
        here = ((at >= 0) & (at < keys.shape[2]))[:, None, :, None]
        at = at.clamp(min=0, max=keys.shape[2] - 1)[:, None, :, None]
        stored = self._raw(keys, self.staying(keys.shape[2]))
        self.home = torch.where(here, stored.gather(2, at.expand(*self.home.shape)), self.home)
        self.home_values = torch.where(here, values.gather(2, at.expand(*self.home_values.shape)), self.home_values)

    def _front(self, start: int) -> Tensor | None:
        """The sinks' keys, moved up behind the window."""
        if self.home is None or self.indexed or self.rotation is None or start <= 0:
            return self.home
        new = torch.arange(self.sinks, device=self.home.device) + start
        return self.rotation.turn(self.home, self._first(self.sinks), new)

    def _put(self, whole: Tensor, front: Tensor | None, start: int) -> None:
        """Puts the sinks into the first slots of the rows that have lost them, in place."""
        if front is None or start <= 0:
            return
        if self.padding is None:
            whole[:, :, : self.sinks] = front
            return
        lost = (self.padding < start)[:, None, None, None]
        whole[:, :, : self.sinks] = torch.where(lost, front, whole[:, :, : self.sinks])


class StreamingCache(KeptCache):
    """StreamingLLM for `generate()`: constant memory and time per token, for texts of any length.

    Layers with a window of their own, and recurrent ones, stay as the model has them. Every token of one forward pass
    sees all tokens before it in that pass, so a prompt longer than the window is read with full attention once (as in
    the authors' code); `stream_losses` reads in long passes what token-by-token streaming would see.

    Reference: arXiv 2309.17453.

    Args:
        model: a decoder language model with rotary positions, ALiBi or no positions.
        sinks: S, first tokens of each text that stay; 0 for a plain sliding window.
        window: W, last tokens that stay, the newest included.
        attention_mask: [B, n] of the prompt where it is padded (on the left): each row keeps its own first tokens.

    Raises:
        UnbraidError: sizes are too small, the model keeps no keys, its positions cannot be moved, or the mask has its
            padding on the right.

    Example:
        >>> cache = StreamingCache(model, sinks=4, window=1020)
        >>> model.generate(**inputs, past_key_values=cache, max_new_tokens=100_000)
    """

    def __init__(self, model: Any, sinks: int = 4, window: int = 1020, attention_mask: Tensor | None = None) -> None:
        check_sizes(sinks, window)
        padding = left_padding(attention_mask)
        turned = keys_of(decoder(model, "StreamingCache"))
        super().__init__(model, lambda i: StreamingLayer(sinks, window, turned[i], padding))

    @contextmanager
    def indexed(self, model: nn.Module) -> Iterator[None]:
        """Tells the model cache indices as positions, for the length of the block.

        Raises:
            UnbraidError: the model has layers with a window of their own, whose keys stand at absolute positions.
        """
        others = [i for i in range(len(self.layers)) if i not in self.ours]
        if others:
            raise UnbraidError(
                f"Layer {others[0]} of {type(model).__name__} keeps keys at absolute positions (a window of its own), "
                "so the model cannot count in cache indices; use the cache without `indexed`, the numbers are the same."
            )
        places = "position_ids" in inspect.signature(model.forward).parameters
        layers = [layer for layer in self.layers if isinstance(layer, StreamingLayer)]

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if kwargs.get("past_key_values") is not self:
                return None
            tokens = kwargs.get("input_ids")
            tokens = kwargs.get("inputs_embeds") if tokens is None else tokens
            tokens = args[0] if tokens is None else tokens
            n = int(tokens.shape[1])
            for layer in layers:
                layer.incoming = n
            first, changed = layers[0].staying(n), dict(kwargs)
            if places:
                changed["position_ids"] = torch.arange(first, first + n, device=tokens.device)[None]
            mask = kwargs.get("attention_mask")
            if isinstance(mask, Tensor) and mask.dim() == 2:
                changed["attention_mask"] = mask[:, -(first + n) :]
            return args, changed

        def leave(*_: Any) -> None:
            for layer in layers:
                layer.incoming = 0

        try:
            with listening({model: leave}, before={model: enter}):
                yield
        finally:
            leave()


def check_sizes(sinks: int, window: int) -> None:
    """Refuses sizes that cannot be.

    Raises:
        UnbraidError: which one, and what is accepted.
    """
    if sinks < 0:
        raise UnbraidError(f"sinks is {sinks}; give 0 (a plain sliding window) or more, 4 in the paper.")
    if window < 2:
        raise UnbraidError(
            f"window is {window}, so a token would see {'only the sinks' if sinks else 'nothing'} besides itself; give "
            "at least 2, a few hundred or more in practice."
        )


def keys_of(model: Any) -> dict[int, Rotation | None]:
    """The rotation of every full-attention layer of a model."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    layers = [i for i, x in enumerate(DynamicCache(config=model.config).layers) if type(x) is DynamicLayer]
    kinds = kinds_of(model)
    return rotations(model, layers, [kinds[i] if i < len(kinds) else None for i in layers]) if layers else {}
