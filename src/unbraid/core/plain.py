"""Values as plain JSON data: what a result keeps of parameters, table cells and measured numbers.

Not to be confused with `unbraid.core.encoding`, which restores Python types exactly: what is written here is for
people and other programs to read, so a tuple is a list, and a number that is not finite is null.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np

from unbraid.core.errors import UnbraidError

Scalar = str | int | float | bool | None


def number(value: Any, where: str) -> float | int | None:
    """A Python number, or None for None, NaN and infinities.

    Raises:
        UnbraidError: ``value`` is not a real number.
    """
    kind = type(value)
    if value is None or kind is int:
        return value
    if kind is float:  # said first, as results hold millions of these
        return value if math.isfinite(value) else None
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real | np.number):
        raise UnbraidError(f"{where} must be a number or None, not {value!r} ({type(value).__name__}).")
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if math.isfinite(float(value)) else None


def numbers_of(values: Iterable[Any], where: str) -> tuple[float | int | None, ...]:
    """A tuple of numbers, see `number`.

    Raises:
        UnbraidError: ``values`` is no flat sequence of real numbers.
    """
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise UnbraidError(f"{where} must be a flat sequence of numbers, not an array of shape {values.shape}.")
        values = values.tolist()
    elif isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise UnbraidError(f"{where} must be a sequence of numbers, not {values!r}.")
    return tuple(number(value, where) for value in values)


def scalar(value: Any, where: str) -> Scalar:
    """A string, number, boolean or None; NaN and infinities become None.

    Raises:
        UnbraidError: ``value`` is something else.
    """
    if value is None or type(value) in (str, bool, int):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, float | numbers.Real | np.number) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return number(value, where)
    raise UnbraidError(
        f"{where} is a {type(value).__name__}; accepted are text, numbers, True, False and None: "
        "write what it should show as text."
    )


def plain(value: Any, where: str) -> Any:
    """JSON data: dicts with text keys, lists, text, finite numbers, booleans and None.

    An absolute path keeps only its last part, so that a result can be handed on without telling where it was made.

    Raises:
        UnbraidError: ``value`` holds something that has no such form.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, np.ndarray) and value.ndim:
        return plain(value.tolist(), where)
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(items)]
    if isinstance(value, PurePath):
        return value.name if value.is_absolute() else value.as_posix()
    return scalar(value, where)


def text(value: Any, where: str, *, needed: bool = False) -> str:
    """A string, as it is.

    Raises:
        UnbraidError: it is no string, or it is blank although it is needed.
    """
    if not isinstance(value, str) or (needed and not value.strip()):
        raise UnbraidError(f"{where} must be {'a non-empty string' if needed else 'a string'}, not {value!r}.")
    return str(value)
