"""Read a GGUF file: its metadata and its tensors, dequantised to fp32. numpy only.

The `gguf` package on the registry does the same and is the reference in the tests; reading here takes no dependency and
reads the 262,144-word vocabulary of Gemma in a fraction of a second, where that package takes about ten.

Reference: the file layout and the block formats are those of llama.cpp's `ggml` (GGUF version 3, little endian).
"""

import mmap
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unbraid.core.errors import UnbraidError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

Blocks = np.ndarray
"""Raw bytes of a quantised tensor, one block a row."""


def _f16(blocks: Blocks, start: int) -> np.ndarray:
    """The fp16 number at byte `start` of every block, as fp32 of shape [blocks, 1]."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16).astype(np.float32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """[blocks, n] bytes to [blocks, 2n] values: all low halves first, then all high halves."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _q8_0(blocks: Blocks) -> np.ndarray:
    return _f16(blocks, 0) * np.ascontiguousarray(blocks[:, 2:34]).view(np.int8).astype(np.float32)


def _q4_1(blocks: Blocks) -> np.ndarray:
    return _f16(blocks, 0) * _nibbles(blocks[:, 4:20]).astype(np.float32) + _f16(blocks, 2)


def _q5_0(blocks: Blocks) -> np.ndarray:
    fifth = np.unpackbits(blocks[:, 2:6], axis=-1, bitorder="little")
    values = (_nibbles(blocks[:, 6:22]) | (fifth << 4)).astype(np.int8) - np.int8(16)
    return _f16(blocks, 0) * values.astype(np.float32)


def _q4_k(blocks: Blocks) -> np.ndarray:
    """256 values in eight groups of 32, each with a 6-bit scale and a 6-bit minimum packed into 12 bytes."""
    low, mid, high = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([low & 63, (high & 15) | ((low >> 6) << 4)], axis=-1).astype(np.float32)
    minima = np.concatenate([mid & 63, (high >> 4) | ((mid >> 6) << 4)], axis=-1).astype(np.float32)
    packed = blocks[:, 16:144].reshape(-1, 4, 32)
    values = np.stack([packed & 15, packed >> 4], axis=2).reshape(-1, 8, 32).astype(np.float32)
    scaled = (_f16(blocks, 0) * scales)[..., None] * values - (_f16(blocks, 2) * minima)[..., None]
    return scaled.reshape(-1, 256)


def _q6_k(blocks: Blocks) -> np.ndarray:
    """256 values of 6 bits (4 low bits and 2 high bits apart) in sixteen groups of 16 with 8-bit scales."""
    low = blocks[:, :128].reshape(-1, 2, 1, 64) >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1) & 15
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1) & 3
    values = (low.reshape(-1, 16, 16) | (high.reshape(-1, 16, 16) << 4)).astype(np.int8) - np.int8(32)
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    return ((_f16(blocks, 208) * scales)[..., None] * values.astype(np.float32)).reshape(-1, 256)


def _f32(blocks: Blocks) -> np.ndarray:
    return np.ascontiguousarray(blocks).view(np.float32)


_FORMATS: dict[int, tuple[str, int, int, Callable[[Blocks], np.ndarray]]] = {
    0: ("F32", 1, 4, _f32),
    1: ("F16", 1, 2, lambda blocks: _f16(blocks, 0)),
    3: ("Q4_1", 32, 20, _q4_1),
    6: ("Q5_0", 32, 22, _q5_0),
    8: ("Q8_0", 32, 34, _q8_0),
    12: ("Q4_K", 256, 144, _q4_k),
    14: ("Q6_K", 256, 210, _q6_k),
}
"""ggml type number: name, values in a block, bytes of a block, how to dequantise [blocks, bytes] uint8."""


def dequantise(raw: np.ndarray, kind: str) -> np.ndarray:
    """Turn the raw bytes of one tensor into its fp32 values.

    Args:
        raw: uint8, any shape; a whole number of blocks.
        kind: "F32", "F16", "Q4_1", "Q5_0", "Q8_0", "Q4_K" or "Q6_K".

    Returns:
        fp32, one dimension, in file order.
    """
    for name, _, width, function in _FORMATS.values():
        if name == kind:
            return function(raw.reshape(-1, width)).reshape(-1)
    raise UnbraidError(
        f"Tensor format {kind!r} is not read here; accepted: {', '.join(f[0] for f in _FORMATS.values())}."
    )


class GGUF:
    """One GGUF file, mapped into memory.

    Attributes:
        meta: Metadata by key, as plain Python values.
        kinds: Tensor name to the name of its format.

    Raises:
        UnbraidError: The file is not GGUF version 2 or 3, is cut off, or holds a tensor format that is not read here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            try:
                self._bytes: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:
                raise UnbraidError(f"{path.name} is empty; fetch it again.") from None
        self._at = 0
        try:
            self._read_header()
        except (struct.error, IndexError, UnicodeDecodeError, OverflowError):
            raise UnbraidError(f"{path.name} is cut off or damaged (at byte {self._at:,}); fetch it again.") from None

    def __len__(self) -> int:
        return len(self._tensors)

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield every tensor as (name, fp32 array), one at a time, shapes as PyTorch has them."""
        for name, (shape, kind, start, length) in self._tensors.items():
            raw = np.frombuffer(self._bytes, np.uint8, length, start)
            yield name, dequantise(raw, kind).reshape(shape)

    @property
    def kinds(self) -> dict[str, str]:
        """The format of every tensor."""
        return {name: kind for name, (_, kind, _, _) in self._tensors.items()}

    def _read_header(self) -> None:
        if self._bytes[:4] != b"GGUF" or self._scalar("I", skip=4) not in (2, 3):
            raise UnbraidError(f"{self.path.name} is not a GGUF file of version 2 or 3; fetch it again.")
        tensor_count, key_count = self._scalar("Q"), self._scalar("Q")
        self.meta: dict[str, Any] = {}
        for _ in range(key_count):
            key = self._string()
            self.meta[key] = self._value(self._scalar("I"))
        entries = [self._tensor_entry() for _ in range(tensor_count)]
        align = self.meta.get("general.alignment", 32)
        data = -(-self._at // align) * align
        self._tensors = {}
        for name, shape, number, offset in entries:
            kind, per_block, width, _ = _FORMATS.get(number, (None, 1, 1, None))
            if kind is None:
                raise UnbraidError(f"{self.path.name}: tensor {name!r} has ggml type {number}, which is not read here.")
            length = int(np.prod(shape)) // per_block * width
            if data + offset + length > len(self._bytes):
                raise IndexError
            self._tensors[name] = (shape, kind, data + offset, length)

    def _tensor_entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        shape = tuple(self._scalar("Q") for _ in range(self._scalar("I")))
        return name, shape[::-1], self._scalar("I"), self._scalar("Q")

    def _scalar(self, code: str, skip: int = 0) -> Any:
        self._at += skip
        (value,) = struct.unpack_from("<" + code, self._bytes, self._at)
        self._at += struct.calcsize("<" + code)
        return value

    def _string(self) -> str:
        length = self._scalar("Q")
        if self._at + length > len(self._bytes):
            raise IndexError
        text = self._bytes[self._at : self._at + length].decode("utf-8")
        self._at += length
        return text

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._scalar(_SCALARS[kind]) if kind in _SCALARS else self._unknown(kind)
        inner, count = self._scalar("I"), self._scalar("Q")
        if inner in _SCALARS:
            return list(self._array(_SCALARS[inner], count))
        return [self._value(inner) for _ in range(count)]

    def _array(self, code: str, count: int) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{count}{code}", self._bytes, self._at)
        self._at += count * struct.calcsize("<" + code)
        return values

    def _unknown(self, kind: int) -> Any:
        raise UnbraidError(f"{self.path.name}: metadata type {kind} is unknown; the file is damaged, fetch it again.")
