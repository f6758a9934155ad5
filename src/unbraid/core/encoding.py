"""Values as JSON plus named arrays, and back: how a system's configuration and what it learned reach the disk.

Everything is data: nothing is pickled, and reading a file runs no code that the file names. Numbers, text and
containers become JSON; arrays and tensors go to one safetensors file and leave a reference in the JSON; the few
types that JSON has no word for (tuples, sets, paths, NaN, torch dtypes, head sets) become a tagged object, whose
tag is the key ``"$"``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores, HeadSet

if TYPE_CHECKING:
    import torch

TAG = "$"


def encode(value: Any, arrays: dict[str, Any], path: str, *, omit: bool = False) -> Any:
    """Turn ``value`` into JSON; arrays and tensors met on the way are put into ``arrays``.

    Args:
        value: what to encode.
        arrays: receives the arrays and tensors, under names that begin with ``path``.
        path: dotted name of the value, used for those names and in messages.
        omit: stand in a note for a value that cannot be encoded (a loaded model, a function) instead of raising.

    Returns:
        A structure of dicts, lists, strings, numbers, booleans and None that ``json.dumps`` accepts.

    Raises:
        UnbraidError: the value has a type that cannot be saved, and ``omit`` is False.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, list):
        return [encode(item, arrays, f"{path}.{i}", omit=omit) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        return _encode_mapping(value, arrays, path, omit)
    for recognises, convert in _ENCODERS:
        if recognises(value):
            return convert(value, arrays, path, omit)
    if omit:
        return {TAG: "omitted", "type": type(value).__name__}
    raise UnbraidError(
        f"{path} is a {type(value).__name__}, which cannot be saved; accepted are numbers, text, lists, tuples, sets, "
        "dicts, paths, arrays, tensors, torch dtypes, HeadSet and HeadScores: keep one of these instead."
    )


def leaves_out(node: Any) -> bool:
    """Whether encoded JSON holds, at any depth, a note in place of a value that could not be encoded."""
    if isinstance(node, list):
        return any(leaves_out(item) for item in node)
    return isinstance(node, dict) and (node.get(TAG) == "omitted" or any(leaves_out(item) for item in node.values()))


def _encode_mapping(value: Mapping[Any, Any], arrays: dict[str, Any], path: str, omit: bool) -> Any:
    if all(type(key) is str and key != TAG for key in value):
        return {key: encode(item, arrays, f"{path}.{key}", omit=omit) for key, item in value.items()}
    pairs = enumerate(value.items())
    items = [
        [encode(k, arrays, f"{path}.{i}.key", omit=omit), encode(v, arrays, f"{path}.{i}", omit=omit)]
        for i, (k, v) in pairs
    ]
    return {TAG: "dict", "items": items}


def _items(tag: str) -> Callable[[Any, dict[str, Any], str, bool], Any]:
    def convert(value: Any, arrays: dict[str, Any], path: str, omit: bool) -> Any:
        listed = sorted(value, key=repr) if tag in ("set", "frozenset") else list(value)
        return {TAG: tag, "items": encode(listed, arrays, path, omit=omit)}

    return convert


def _encode_float(value: Any, arrays: dict[str, Any], path: str, omit: bool) -> Any:
    number = float(value)  # str(NaN) is not JSON, so other programs could not read it
    return number if math.isfinite(number) else {TAG: "float", "value": repr(number)}


def _store(value: Any, arrays: dict[str, Any], path: str) -> str:
    name = path
    while name in arrays:  # {"a.b": x, "a": {"b": y}} gives one path twice
        name += "'"
    arrays[name] = value
    return name


def _encode_array(value: Any, arrays: dict[str, Any], path: str, omit: bool) -> Any:
    if value.dtype.kind not in "biuf":
        raise UnbraidError(f"{path} is an array of {value.dtype}; only booleans and real numbers can be saved.")
    return {TAG: "array", "name": _store(value, arrays, path)}


def _encode_tensor(value: Any, arrays: dict[str, Any], path: str, omit: bool) -> Any:
    name = _store(value.detach(), arrays, path)
    return {TAG: "tensor", "name": name, "parameter": _torch_kind(value, "Parameter")}


def _encode_heads(value: Any, arrays: dict[str, Any], path: str, omit: bool) -> Any:
    if isinstance(value, HeadSet):
        return {TAG: "HeadSet", "heads": [[site, int(head)] for site, head in value]}
    return {TAG: "HeadScores", "value": encode(value.to_dict(), arrays, path)}


def _torch_kind(value: Any, kind: str) -> bool:
    """Whether ``value`` is of torch's class ``kind``, without importing torch for values that cannot be."""
    return any(t.__module__.split(".")[0] == "torch" and t.__name__ == kind for t in type(value).__mro__)


_ENCODERS: tuple[tuple[Callable[[Any], bool], Callable[[Any, dict[str, Any], str, bool], Any]], ...] = (
    (lambda v: isinstance(v, np.bool_), lambda v, a, p, o: bool(v)),
    (lambda v: isinstance(v, np.integer), lambda v, a, p, o: int(v)),
    (lambda v: isinstance(v, float | np.floating), _encode_float),
    (lambda v: isinstance(v, np.ndarray), _encode_array),
    (lambda v: _torch_kind(v, "Tensor"), _encode_tensor),
    (lambda v: _torch_kind(v, "dtype"), lambda v, a, p, o: {TAG: "dtype", "name": str(v).removeprefix("torch.")}),
    (lambda v: _torch_kind(v, "device"), lambda v, a, p, o: {TAG: "device", "name": str(v)}),
    (lambda v: isinstance(v, os.PathLike), lambda v, a, p, o: {TAG: "path", "value": os.fspath(v)}),
    (lambda v: isinstance(v, HeadSet | HeadScores), _encode_heads),
    (lambda v: type(v) is tuple, _items("tuple")),
    (lambda v: type(v) is set, _items("set")),
    (lambda v: type(v) is frozenset, _items("frozenset")),
)


def decode(node: Any, arrays: Mapping[str, Any]) -> Any:
    """Undo `encode`; ``arrays`` maps the stored names to arrays and tensors.

    Raises:
        UnbraidError: the JSON holds a tag that this version does not know.
    """
    if isinstance(node, list):
        return [decode(item, arrays) for item in node]
    if not isinstance(node, dict):
        return node
    tag = node.get(TAG)
    if tag is None:
        return {key: decode(item, arrays) for key, item in node.items()}
    if tag not in _DECODERS:
        raise UnbraidError(f"this file holds a value of kind {tag!r}, which this version of Unbraid cannot read.")
    return _DECODERS[tag](node, arrays)


def _decode_torch(node: dict[str, Any], arrays: Mapping[str, Any]) -> Any:
    import torch

    if node[TAG] == "device":
        return torch.device(node["name"])
    dtype = vars(torch).get(node["name"])
    if not isinstance(dtype, torch.dtype):
        raise UnbraidError(f"this file names the torch dtype {node['name']!r}, which this torch does not have.")
    return dtype


def _decode_tensor(node: dict[str, Any], arrays: Mapping[str, Any]) -> Any:
    tensor: torch.Tensor = arrays[node["name"]]
    if not node.get("parameter"):
        return tensor
    import torch

    return torch.nn.Parameter(tensor, requires_grad=tensor.is_floating_point())


_DECODERS: dict[str, Callable[[dict[str, Any], Mapping[str, Any]], Any]] = {
    "float": lambda node, arrays: float(node["value"]),
    "tuple": lambda node, arrays: tuple(decode(node["items"], arrays)),
    "set": lambda node, arrays: set(decode(node["items"], arrays)),
    "frozenset": lambda node, arrays: frozenset(decode(node["items"], arrays)),
    "dict": lambda node, arrays: {decode(k, arrays): decode(v, arrays) for k, v in node["items"]},
    "path": lambda node, arrays: Path(node["value"]),
    "array": lambda node, arrays: arrays[node["name"]],
    "tensor": _decode_tensor,
    "dtype": _decode_torch,
    "device": _decode_torch,
    "HeadSet": lambda node, arrays: HeadSet((site, head) for site, head in node["heads"]),
    "HeadScores": lambda node, arrays: HeadScores.from_dict(decode(node["value"], arrays)),
}


def write_arrays(arrays: Mapping[str, Any], path: Path) -> str:
    """Write arrays and tensors to one safetensors file, atomically; returns the file's SHA-256."""
    if any(_torch_kind(value, "Tensor") for value in arrays.values()):
        import torch
        from safetensors.torch import save

        # cloned: safetensors refuses tensors that share memory, and tied weights do
        data = save({name: torch.as_tensor(value).cpu().contiguous().clone() for name, value in arrays.items()})
    else:
        from safetensors.numpy import save as save_numpy

        data = save_numpy({name: np.ascontiguousarray(value).reshape(value.shape) for name, value in arrays.items()})
    write_bytes(path, data)
    return hashlib.sha256(data).hexdigest()


def read_arrays(path: Path, node: Any) -> dict[str, Any]:
    """Read from ``path`` the arrays that ``node`` (encoded JSON) refers to, each as the kind it was: numpy or torch."""
    from safetensors import safe_open

    wanted: dict[str, str] = {}
    _collect(node, wanted)
    found: dict[str, Any] = {}
    for kind, framework in (("array", "np"), ("tensor", "pt")):
        names = [name for name, k in wanted.items() if k == kind]
        if names:
            with safe_open(path, framework=framework) as file:
                found |= {name: file.get_tensor(name) for name in names}
    return found


def _collect(node: Any, wanted: dict[str, str]) -> None:
    if isinstance(node, dict):
        if node.get(TAG) in ("array", "tensor"):
            wanted[node["name"]] = node[TAG]
        for item in node.values():
            _collect(item, wanted)
    elif isinstance(node, list):
        for item in node:
            _collect(item, wanted)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file under a temporary name in the same folder and move it into place."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON (already encoded) atomically, indented, as UTF-8."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, text.encode("utf-8"))
