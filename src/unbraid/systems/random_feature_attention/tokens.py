"""Inputs: a query token and a set of keys, checked, brought to one scale, and with the 1 that the method appends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unbraid.core.errors import UnbraidError

FORM = "X must be [n, 1 + N, d]: n inputs, each a query token and N keys of d numbers"


@dataclass(frozen=True, eq=False)
class Tokens:
    """Inputs with a 1 appended to every token; keys that are not there are zero, also in that place.

    Attributes:
        query: [n, d + 1].
        keys: [n, N, d + 1].
        inverse: [n] one over the number of keys.
    """

    query: Tensor
    keys: Tensor
    inverse: Tensor

    def __len__(self) -> int:
        return len(self.query)

    def __getitem__(self, rows: Any) -> Tokens:
        return Tokens(self.query[rows], self.keys[rows], self.inverse[rows])

    @property
    def width(self) -> int:
        """d, without the appended 1."""
        return self.query.shape[1] - 1

    def to(self, device: str | torch.device, dtype: torch.dtype) -> Tokens:
        """Elsewhere, or in another precision."""
        return Tokens(*(part.to(device, dtype) for part in (self.query, self.keys, self.inverse)))


def pad(sets: Sequence[Any]) -> np.ndarray:
    """Inputs with different numbers of keys as one array, in which missing keys are NaN.

    Args:
        sets: n arrays [1 + N_i, d], query first.

    Returns:
        [n, 1 + max N_i, d] float64, to be given to an estimator with ``ragged=True``.

    Raises:
        UnbraidError: there is none, or they differ in d.
    """
    arrays = [np.asarray(one, dtype=np.float64) for one in sets]
    if not arrays or any(a.ndim != 2 or len(a) < 2 for a in arrays) or len({a.shape[1] for a in arrays}) > 1:
        shapes = sorted({a.shape for a in arrays})[:4]
        raise UnbraidError(
            f"sets must be arrays [1 + N_i, d] of one d with a key at least; these have shapes {shapes}."
        )
    found = np.full((len(arrays), max(map(len, arrays)), arrays[0].shape[1]), np.nan)
    for row, one in zip(found, arrays, strict=True):
        row[: len(one)] = one
    return found


def unflatten(x: Any, width: int | None) -> np.ndarray:
    """An array [n, 1 + N, d] of numbers from what a user gave.

    Args:
        x: [n, 1 + N, d], or flat [n, (1 + N) d] if ``width`` is d.
        width: d of flat inputs.

    Raises:
        UnbraidError: another shape, no input, no key, or not numbers.
    """
    try:
        found = np.asarray(x, dtype=np.float64)
    except (TypeError, ValueError):
        raise UnbraidError(
            f"{FORM}; what was given is no array of numbers (sets of different sizes: see `pad` and ragged=True)."
        ) from None
    if found.ndim == 2 and width is not None:
        if isinstance(width, bool) or not isinstance(width, int | np.integer) or width < 1:
            raise UnbraidError(f"width is {width!r}; it must be a whole number of at least 1, the d of a token.")
        if found.shape[1] % width:
            raise UnbraidError(f"X has {found.shape[1]} columns, which are no whole number of tokens of width {width}.")
        found = found.reshape(len(found), -1, width)
    if found.ndim != 3:
        more = "; for flat inputs [n, (1 + N) d] give width=d" if found.ndim == 2 else ""
        raise UnbraidError(f"{FORM}, not {found.shape}{more}.")
    if len(found) < 1 or found.shape[2] < 1:
        raise UnbraidError(f"{FORM}; the one given is {found.shape}, which holds nothing.")
    if found.shape[1] < 2:
        flat = " (1 feature(s), a minimum of 2 is required)" if width is not None else ""
        raise UnbraidError(f"{FORM}; {found.shape} has a query and no key{flat}.")
    return found


def presence(x: np.ndarray, mask: Any, ragged: bool) -> np.ndarray:
    """[n, N] whether a key is there.

    Args:
        x: [n, 1 + N, d].
        mask: [n, N], true where there is a key; None: no mask.
        ragged: whether a key of NaN only is one that is not there.

    Raises:
        UnbraidError: the mask has another shape, an input has no key, or a number that counts is not finite.
    """
    there = np.ones((len(x), x.shape[1] - 1), bool)
    if mask is not None:
        given = np.asarray(mask)
        if given.shape != there.shape or given.dtype.kind not in "biu":
            raise UnbraidError(f"mask must be {there.shape} booleans, true where there is a key, not {given.shape}.")
        there &= given.astype(bool)
    if ragged:
        there &= ~np.isnan(x[:, 1:]).all(2)
    if not there.any(1).all():
        raise UnbraidError(f"input {int((~there.any(1)).argmax())} has no key; every input needs one.")
    if not np.isfinite(x[:, 0]).all() or not np.isfinite(x[:, 1:][there]).all():
        hint = "" if ragged else "; a missing key is said by mask= or, with ragged=True, by NaN in all its places"
        raise UnbraidError(f"X holds NaN or infinity; all numbers that count must be finite{hint}.")
    return there


def augment(x: np.ndarray, there: np.ndarray) -> Tokens:
    """Tokens with a 1 appended, float64 on the CPU.

    Args:
        x: [n, 1 + N, d].
        there: [n, N] whether a key is there.
    """
    whole = np.concatenate([x, np.ones((*x.shape[:2], 1))], 2)
    keys = np.where(there[:, :, None], whole[:, 1:], 0.0)
    return Tokens(*(torch.from_numpy(np.ascontiguousarray(a)) for a in (whole[:, 0], keys, 1.0 / there.sum(1))))


def read(x: Any, mask: Any = None, ragged: bool = False, width: int | None = None) -> Tokens:
    """Tokens of an array, as they are.

    Raises:
        UnbraidError: see `unflatten` and `presence`.
    """
    found = unflatten(x, width)
    return augment(found, presence(found, mask, ragged))


def same_width(left: Tokens, right: Tokens | None, keys: bool = False) -> None:
    """Refuse two sets of inputs that do not belong together.

    Raises:
        UnbraidError: they differ in d, or, if that matters, in the number of keys.
    """
    if right is not None and right.width != left.width:
        raise UnbraidError(f"tokens have width {left.width} here and {right.width} there; they must be of one space.")
    if keys and right is not None and right.keys.shape[1] != left.keys.shape[1]:
        sizes = f"{left.keys.shape[1]} and {right.keys.shape[1]}"
        raise UnbraidError(f"tokens side by side must be as many in all inputs; there are {sizes} keys.")


def bias_matrix(bias: Any, width: int) -> np.ndarray | None:
    """[d + 1, d + 1] float64 mean of the query-key weights, W_0 = [[B, 0], [0, 0]]; None for zero.

    Args:
        bias: "zero", "identity", or B itself, [d, d].
        width: d.

    Raises:
        UnbraidError: another name or shape.
    """
    if isinstance(bias, str):
        if bias not in ("zero", "identity"):
            raise UnbraidError(f"bias is {bias!r}; it must be 'zero', 'identity' or a [d, d] matrix here.")
        if bias == "zero":
            return None
        inner: np.ndarray = np.eye(width)
    else:
        try:
            inner = np.asarray(bias, dtype=np.float64)
        except (TypeError, ValueError):
            inner = np.empty(0)
        if inner.shape != (width, width) or not np.isfinite(inner).all():
            raise UnbraidError(f"bias must be 'zero', 'identity', 'estimated' or [{width}, {width}] finite numbers.")
    found: np.ndarray = np.zeros((width + 1, width + 1))
    found[:-1, :-1] = inner
    return found


def estimated_bias(tokens: Tokens, y: np.ndarray) -> np.ndarray:
    """[d, d] cross-moment E[y x_0 mean_i x_i'] with the norm of the identity: a bias fitted from data.

    It is unbiased up to a factor for targets that are odd in <x_0, S x_i>; for even ones it is noise.

    Args:
        tokens: n inputs.
        y: [n] or [n, outputs] centred targets; with several, their moments' root mean square has no sign, so the first
            right singular direction of the outputs is taken.
    """
    d = tokens.width
    values = np.asarray(y, np.float64).reshape(len(tokens), -1)
    if values.shape[1] > 1:
        values = (values @ np.linalg.svd(values, full_matrices=False)[2][0])[:, None]
    query, keys = tokens.query[:, :d].double().cpu().numpy(), tokens.keys[..., :d].double().cpu().numpy()
    mean = keys.sum(1) * tokens.inverse.double().cpu().numpy()[:, None]
    moment = (query * values).T @ mean / len(values)
    size = np.linalg.norm(moment)
    return moment * (np.sqrt(d) / size) if size > 0 else moment


def concatenated(tokens: Tokens) -> Tensor:
    """[n, (1 + N) d + 1] inputs of the MLP, z = [x_0; ...; x_N; 1] / sqrt(N + 2): of unit norm for unit tokens."""
    flat = torch.cat([tokens.query[:, None, :-1], tokens.keys[..., :-1]], 1).flatten(1)
    one = torch.ones_like(flat[:, :1])
    return torch.cat([flat, one], 1) / (tokens.keys.shape[1] + 2) ** 0.5
