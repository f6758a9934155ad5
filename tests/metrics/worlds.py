"""Codes whose scores are known: section 3 of the sheet."""

from __future__ import annotations

import numpy as np

SIZES = (3, 6, 8, 8, 4)
KINDS = ("perfect", "rotated", "duplicated", "noise", "scaled", "merged", "random")


def encoder(kind, seed=0):
    """factors [n, 5] -> codes; draws its noise anew at each call."""
    rng = np.random.default_rng(seed)
    mix = np.linalg.qr(np.random.default_rng(7).standard_normal((5, 5)))[0]
    n = np.array(SIZES)

    def encode(factors):
        f = np.asarray(factors)
        perfect = (f - (n - 1) / 2) / np.sqrt((n**2 - 1) / 12) + rng.normal(0, 0.02, f.shape)
        if kind == "rotated":
            return perfect @ mix
        if kind == "duplicated":
            return np.hstack([perfect, perfect])
        if kind == "noise":
            return np.hstack([perfect, rng.standard_normal((len(f), 5))])
        if kind == "scaled":
            return perfect * np.array([0.01, 0.01, 1, 1, 1])
        if kind == "merged":
            both = f[:, 3] * 4 + f[:, 4]
            packed = (both - 15.5) / np.sqrt((32**2 - 1) / 12) + rng.normal(0, 0.002, len(f))
            return np.column_stack([perfect[:, :3], packed])
        if kind == "random":
            return rng.standard_normal((len(f), 5))
        return perfect

    return encode


def sample(kind, rows=10_000, seed=0):
    """(codes, factors)."""
    rng = np.random.default_rng([seed, 1])
    factors = np.stack([rng.integers(n, size=rows) for n in SIZES], axis=1)
    return encoder(kind, seed)(factors), factors


def grid_of(sizes):
    return np.stack(np.meshgrid(*map(range, sizes), indexing="ij"), -1).reshape(-1, len(sizes))
