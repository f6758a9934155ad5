"""Read CTranslate2's `model.bin`: named arrays, no pickle, numpy only.

Layout (version 6, little endian): u32 version; spec name; u32 spec revision; u32 number of variables; for each its
name, u8 rank, u32 per dimension, u8 type, u32 number of bytes, the bytes; then u32 number of aliases and two names for
each. A name is a u16 length, which counts a closing zero byte, and that many bytes.

Reference: `converters/` and `specs/model_spec.py` of OpenNMT/CTranslate2 (MIT), read for the layout.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unbraid.core.errors import UnbraidError

_TYPES: dict[int, type] = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


@dataclass(frozen=True)
class CT2Model:
    """The contents of one `model.bin`: the spec's name and every array, aliases resolved."""

    spec: str
    revision: int
    arrays: dict[str, np.ndarray]


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self, code: str) -> int:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return int(value)

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise IndexError
        self.at += count
        return self.data[self.at - count : self.at]

    def name(self) -> str:
        return self.take(self.number("H")).rstrip(b"\0").decode("utf-8")

    def array(self) -> np.ndarray:
        shape = tuple(self.number("I") for _ in range(self.number("B")))
        kind, length = self.number("B"), self.number("I")
        if kind not in _TYPES:
            raise UnbraidError(f"CTranslate2 array type {kind} is not read here; accepted: {sorted(_TYPES)}.")
        return np.frombuffer(self.take(length), _TYPES[kind]).reshape(shape)


def read_ct2(path: Path) -> CT2Model:
    """Read a CTranslate2 model file.

    Args:
        path: `model.bin` of version 6.

    Raises:
        UnbraidError: The file is of another version, cut off, or damaged.
    """
    reader = _Reader(path.read_bytes())
    try:
        version = reader.number("I")
        if version != 6:
            raise UnbraidError(f"{path.name} is not a CTranslate2 file of version 6 (found {version}); fetch it again.")
        spec, revision = reader.name(), reader.number("I")
        arrays: dict[str, np.ndarray] = {}
        for _ in range(reader.number("I")):
            name = reader.name()
            arrays[name] = reader.array()
        for _ in range(reader.number("I")):
            alias, target = reader.name(), reader.name()
            arrays[alias] = arrays[target]
    except (struct.error, IndexError, KeyError, UnicodeDecodeError) as error:
        raise UnbraidError(f"{path.name} is cut off or damaged at byte {reader.at:,}; fetch it again.") from error
    except ValueError as error:  # numpy: the bytes do not fill the shape
        if isinstance(error, UnbraidError):
            raise
        raise UnbraidError(f"{path.name}: an array before byte {reader.at:,} does not fill its shape.") from error
    if reader.at != len(reader.data):
        raise UnbraidError(f"{path.name} has {len(reader.data) - reader.at:,} bytes too many; fetch it again.")
    return CT2Model(spec, revision, arrays)
