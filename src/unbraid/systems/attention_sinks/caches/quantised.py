"""Keys and values in few bits, with the sinks in full precision (IntactKV 2403.01241, KVSink 2508.04257).

Works on transformers' quantised layers. Their two backends, optimum-quanto and hqq, are optional packages; the third
one here, affine, needs nothing else, packs its integers, and can say what its error is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.cache_utils import HQQQuantizedLayer, QuantizedLayer, QuantoQuantizedLayer

from unbraid.core.errors import UnbraidError
from unbraid.systems.attention_sinks.caches.kept import KeptCache, KeptLayer, left_padding

Backend = Literal["affine", "quanto", "hqq"]
BITS = (2, 4, 8)
Packed = tuple[Tensor, Tensor, Tensor, tuple[int, ...]]


class AffineQuantizedLayer(QuantizedLayer):
    """Transformers' quantised layer with integers of our own: value = integer * scale + least, per group.

    Args:
        nbits: 2, 4 or 8.
        axis_key: -1 for groups of tokens in each channel of the keys (their outliers sit in channels), 0 for groups of
            channels in each token.
        axis_value: the same for values.
        q_group_size: numbers that share a scale.
        residual_length: newest tokens that are kept in full precision until so many have come together.
    """

    def __init__(
        self,
        nbits: int = 4,
        axis_key: int = -1,
        axis_value: int = 0,
        q_group_size: int = 64,
        residual_length: int = 128,
    ) -> None:
        if nbits not in BITS:
            raise UnbraidError(f"nbits is {nbits}; choose {', '.join(map(str, BITS))}.")
        if axis_key not in (0, -1) or axis_value not in (0, -1):
            raise UnbraidError(f"axis_key and axis_value must be 0 or -1, not {axis_key} and {axis_value}.")
        if q_group_size < 2 or residual_length < 1:
            raise UnbraidError(
                f"q_group_size is {q_group_size} and residual_length {residual_length}; they must be at least 2 and 1."
            )
        super().__init__(nbits, axis_key, axis_value, q_group_size, residual_length)

    def _quantize(self, tensor: Tensor, axis: int = 0) -> Packed:
        """(packed integers, scale, least, shape) of [B, G, n, D]."""
        x = tensor.transpose(-1, -2) if axis == -1 else tensor
        shape = tuple(x.shape)
        size = min(self.q_group_size, shape[-1])
        extra = -shape[-1] % size
        if extra:  # the last group of tokens is filled with its own last one, which changes no scale
            x = torch.cat([x, x[..., -1:].expand(*shape[:-1], extra)], -1)
        groups = x.unflatten(-1, (-1, size)).float()
        least, most = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        scale = ((most - least) / (2**self.nbits - 1)).clamp(min=1e-8)
        whole = ((groups - least) / scale).round().clamp(0, 2**self.nbits - 1).to(torch.uint8)
        return pack(whole.flatten(-2), self.nbits), scale.to(tensor.dtype), least.to(tensor.dtype), shape

    def _dequantize(self, q_tensor: Packed) -> Tensor:
        """[B, G, n, D] again."""
        packed, scale, least, shape = q_tensor
        size = min(self.q_group_size, shape[-1])
        length = shape[-1] + (-shape[-1] % size)
        whole = unpack(packed, self.nbits, length).unflatten(-1, (-1, size)).to(scale.dtype)
        x = (whole * scale + least).flatten(-2)[..., : shape[-1]]
        # tensors were laid out with channels in front where groups run over tokens
        return x.transpose(-1, -2) if self._channels_in_front(q_tensor) else x

    def _channels_in_front(self, q_tensor: Packed) -> bool:
        axis = self.axis_key if q_tensor is self._quantized_keys else self.axis_value
        return axis == -1


def pack(whole: Tensor, bits: int) -> Tensor:
    """Integers below 2^bits, several to a byte, along the last axis."""
    each = 8 // bits
    extra = -whole.shape[-1] % each
    whole = torch.nn.functional.pad(whole, (0, extra)).unflatten(-1, (-1, each))
    shifts = torch.arange(each, device=whole.device, dtype=torch.uint8) * bits
    return (whole << shifts).sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, length: int) -> Tensor:
    """The inverse of `pack`, [..., length]."""
    shifts = torch.arange(8 // bits, device=packed.device, dtype=torch.uint8) * bits
    return ((packed[..., None] >> shifts) & (2**bits - 1)).flatten(-2)[..., :length]


BACKENDS: dict[str, type[QuantizedLayer]] = {
    "affine": AffineQuantizedLayer, "quanto": QuantoQuantizedLayer, "hqq": HQQQuantizedLayer,
}  # fmt: skip


class ProtectedLayer(KeptLayer):
    """A quantised layer in which some tokens stay as they are.

    A sink's keys and values are far from all others, so in a group with it they would share its scale. Before anything
    is quantised the protected tokens are replaced by the mean of the others of the pass; when keys come back, the
    tokens themselves are put in.

    Args:
        inner: transformers' quantised layer.
        protect: positions from the first token of each row.
        padding: [B] left padding, or None.
    """

    shared = ("protect",)

    def __init__(self, inner: QuantizedLayer, protect: Sequence[int], padding: Tensor | None) -> None:
        super().__init__(padding)
        self.inner = inner
        self.protect = torch.as_tensor(sorted(set(protect)), dtype=torch.int64)
        self.safe: tuple[Tensor, Tensor] | None = None

    @property
    def kept(self) -> int:
        """All that were seen."""
        return self.cumulative_length

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Quantises what may be quantised; returns everything."""
        n = self._new(key_states, value_states)
        if self.safe is None:
            count = len(self.protect)
            self.protect = self.protect.to(self.device)
            self.safe = tuple(x.new_zeros(*x.shape[:2], count, x.shape[-1]) for x in (key_states, value_states))  # type: ignore[assignment]
        assert self.safe is not None
        first = 0 if self.padding is None else self.padding[:, None]
        at = (self.protect[None] + first).expand(key_states.shape[0], -1)
        local = at - self.cumulative_length
        here = (local >= 0) & (local < n)
        smooth = []
        for store, new in zip(self.safe, (key_states, value_states), strict=True):
            smooth.append(self._set_aside(store, new, local, here) if bool(here.any()) else new)
        self.cumulative_length += n
        keys, values = self.inner.update(smooth[0], smooth[1])
        known = at < self.cumulative_length
        return self._put_in(keys, self.safe[0], at, known), self._put_in(values, self.safe[1], at, known)

    def _set_aside(self, store: Tensor, new: Tensor, local: Tensor, here: Tensor) -> Tensor:
        """Copies protected tokens of `new` to the store, in place; returns `new` with the mean in their stead."""
        n = new.shape[2]
        index = local.clamp(0, n - 1)
        wide = index[:, None, :, None].expand(*store.shape)
        store.copy_(torch.where(here[:, None, :, None], new.gather(2, wide), store))
        taken = torch.zeros(new.shape[0], n, device=new.device).scatter_add_(1, index, here.float()) > 0
        rest = (~taken)[:, None, :, None].to(new.dtype)
        mean = (new * rest).sum(2, keepdim=True) / rest.sum(2, keepdim=True).clamp(min=1)
        return torch.where(taken[:, None, :, None], mean, new)

    def _put_in(self, whole: Tensor, store: Tensor, at: Tensor, known: Tensor) -> Tensor:
        out = whole.clone()
        index = at.clamp(max=whole.shape[2] - 1)[:, None, :, None].expand(*store.shape)
        mine = torch.where(known[:, None, :, None], store, out.gather(2, index))
        return out.scatter_(2, index, mine)

    def reset(self) -> None:
        """Forgets everything."""
        super().reset()
        self.inner.reset()
        self.safe = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows in another order, for beam search."""
        super().reorder_cache(beam_idx)
        self.inner.reorder_cache(beam_idx)  # type: ignore[arg-type]
        if self.safe is not None:
            self.safe = (self.safe[0].index_select(0, beam_idx), self.safe[1].index_select(0, beam_idx))


class ProtectedQuantizedCache(KeptCache):
    """A quantised cache whose sinks stay in full precision, for `generate()`.

    As in transformers, a prompt that is read in one pass sees its own exact keys; what comes later sees quantised ones.

    Args:
        model: a decoder language model.
        protect: positions from the first token of each text that stay exact: of the sinks that `report` found, for
            example `[m["token"] for m in found.massive]`; () for transformers' plain quantised cache.
        nbits: bits per number: 2, 4 or 8 (quanto: 2 or 4).
        backend: "affine" (ours), "quanto" (needs optimum-quanto) or "hqq" (needs hqq).
        q_group_size: numbers that share a scale.
        residual_length: newest tokens that are quantised only when so many have come together.
        attention_mask: [B, n] of a prompt that is padded on the left.

    Raises:
        UnbraidError: an option is out of range, or the backend is not installed.
    """

    def __init__(
        self,
        model: Any,
        protect: Sequence[int] = (0, 1, 2, 3),
        nbits: int = 4,
        backend: Backend = "affine",
        q_group_size: int = 64,
        residual_length: int = 128,
        attention_mask: Tensor | None = None,
    ) -> None:
        if backend not in BACKENDS:
            raise UnbraidError(f"backend is {backend!r}; choose {', '.join(BACKENDS)}.")
        if any(p < 0 for p in protect):
            raise UnbraidError(f"protect needs positions from 0, not {list(protect)}.")
        padding = left_padding(attention_mask)
        axes = {"hqq": {"axis_key": 1, "axis_value": 1}, "quanto": {"axis_key": 0, "axis_value": 0}}.get(backend, {})

        def make(_: int) -> KeptLayer:
            try:
                inner = BACKENDS[backend](
                    nbits=nbits, q_group_size=q_group_size, residual_length=residual_length, **axes
                )
            except (ImportError, ValueError) as error:
                raise UnbraidError(f'backend={backend!r} cannot be used: {error}; take "affine".') from None
            return ProtectedLayer(inner, protect, padding)

        super().__init__(model, make)
