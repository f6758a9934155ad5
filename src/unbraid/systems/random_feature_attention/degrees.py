"""Which degrees a target has: variance shares by kernel alignment with Gegenbauer polynomials.

For keys uniform on the sphere and independent of one another, f = 1/N sum_i F(x_0, x_i) splits into parts F_rs of
degree r in the query and s in a key. With the reproducing kernels Q_r of the spherical harmonics,
E[f(x) f(x') Q_r(<x_0, x'_0>) 1/N^2 sum_ij Q_s(<x_i, x'_j>)] is |F_rs|^2 / N^2 for s > 0 and |F_r0|^2 for s = 0, so that
shares of the variance can be read from pairs of inputs alone. For other inputs the numbers are alignments, not shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unbraid.core.claim import Table
from unbraid.core.errors import UnbraidError
from unbraid.systems.random_feature_attention.features import batches
from unbraid.systems.random_feature_attention.tokens import Tokens

LIMIT = 4.0  # standard deviations of a shuffled target: what counts as there


def dimension(degree: int, d: int) -> int:
    """How many spherical harmonics of a degree there are in d dimensions."""
    if degree == 0:
        return 1
    lower = comb(d + degree - 3, d - 1) if degree > 1 else 0
    return comb(d + degree - 1, d - 1) - lower


def harmonics(t: Tensor, degree: int, d: int) -> list[Tensor]:
    """Reproducing kernels Q_0 .. Q_degree at inner products t of unit vectors; Q_k(1) is the dimension of degree k."""
    found = [torch.ones_like(t), t.clone()]
    for k in range(1, degree):  # normalised Gegenbauer polynomials, P_k(1) = 1
        found.append(((2 * k + d - 2) * t * found[k] - k * found[k - 1]) / (k + d - 2))
    return [dimension(k, d) * p for k, p in enumerate(found[: degree + 1])]


@dataclass(frozen=True, eq=False)
class Degrees:
    """Shares of a target's variance.

    Attributes:
        shares: [r, s] of degree r in the query and s in the keys.
        noise: [r, s] standard deviation of the same for a shuffled target.
        correlated: [k] R^2 added by 1/N sum_i P_k(<x_0, x_i>), k from 1 on: what a bias helps with.
        keys: mean number of keys.
    """

    shares: np.ndarray
    noise: np.ndarray
    correlated: np.ndarray
    keys: float

    @property
    def present(self) -> list[tuple[int, int]]:
        """The degrees (r, s) that stand out of the noise, largest share first."""
        at = [(int(r), int(s)) for r, s in zip(*np.nonzero(self.shares > LIMIT * self.noise), strict=True)]
        return sorted((rs for rs in at if rs != (0, 0)), key=lambda rs: -self.shares[rs])

    def table(self) -> Table:
        """A row per degree."""
        rows = [
            {"degree in query": r, "degree in keys": s, "share": float(self.shares[r, s]),
             "noise": float(self.noise[r, s]), "present": (r, s) in self.present, "C_k": cost(max(r, s))}
            for r in range(self.shares.shape[0]) for s in range(self.shares.shape[1]) if r + s
        ]  # fmt: skip
        return Table.from_records(rows, "Share of the target's variance; noise: deviation for a shuffled target.")

    def statement(self) -> str:
        """What the target is made of, and what that costs, in words."""
        if not self.present:
            return "No degree stands out of the noise: give more samples, or the target is of higher degree or noise."
        parts = ", ".join(f"({r}, {s}) {self.shares[r, s]:.0%}" for r, s in self.present)
        worst = max(max(rs) for rs in self.present)
        left = 1 - sum(self.shares[rs] for rs in self.present)
        best = int(self.correlated.argmax()) + 1
        biased = (
            f"; averages of degree {best} in <x_0, x_i> alone explain {self.correlated[best - 1]:.0%}, so a bias can "
            "help" if self.correlated.max() > 0.05 else "; averages of <x_0, x_i> alone explain nothing"
        )  # fmt: skip
        return (
            f"Degrees (query, keys) and their shares of the variance: {parts}; the rest, {max(left, 0):.0%}, is noise "
            f"or higher degrees. B(f*) has terms up to C_{worst} = {cost(worst):,.0f} (from memory){biased}."
        )


def cost(degree: int) -> float:
    """C_k = max(1, k^4.5 4^k) of the theorem (from memory)."""
    return max(1.0, degree**4.5 * 4.0**degree)


def degree_shares(tokens: Tokens, y: np.ndarray, degree: int = 3, draws: int = 30, seed: int = 0) -> Degrees:
    """Estimate the shares from all pairs of different inputs: n^2 N^2 work.

    Args:
        tokens: n inputs; norms are ignored.
        y: [n] target.
        degree: highest, in query and keys.
        draws: shuffled targets for the noise.
        seed: of the shuffles.

    Raises:
        UnbraidError: fewer than ten inputs, d below 2, or a constant target.
    """
    n, d = len(tokens), tokens.width
    if n < 10 or d < 2 or not np.std(y) > 0:
        raise UnbraidError(f"degrees need 10 inputs, tokens of width 2 and a target that varies; n={n}, d={d}.")
    standard = torch.from_numpy((y - np.mean(y)) / np.std(y))
    rng = np.random.default_rng(seed)
    shuffled = torch.stack([standard[torch.from_numpy(rng.permutation(n))] for _ in range(draws)], 1)
    both = torch.cat([standard[:, None], shuffled], 1)
    query = _unit(tokens.query[:, :-1].double())
    keys = _unit(tokens.keys[..., :-1].double())
    there = (tokens.keys[..., -1] != 0).double()
    sums = torch.zeros(degree + 1, degree + 1, 1 + draws, dtype=torch.float64)
    for rows in batches(n, max(1, 200_000 // (n * keys.shape[1] ** 2))):
        of_query = harmonics(query[rows] @ query.T, degree, d)
        inner = torch.einsum("nid,mjd->nmij", keys[rows], keys)
        weight = (there * tokens.inverse[:, None]).double()
        of_keys = [torch.einsum("nmij,ni,mj->nm", q, weight[rows], weight) for q in harmonics(inner, degree, d)]
        diagonal = torch.arange(rows.start, rows.stop)
        for r, left in enumerate(of_query):
            for s, right in enumerate(of_keys):
                product = left * right
                product[torch.arange(len(product)), diagonal] = 0
                sums[r, s] += (both[rows] * (product @ both)).sum(0)
    count = 1 / float(tokens.inverse.mean())
    factor = torch.full((1, degree + 1, 1), count, dtype=torch.float64)
    factor[:, 0] = 1.0
    shares = (sums * factor / (n * (n - 1))).numpy()
    return Degrees(shares[..., 0], shares[..., 1:].std(-1), _correlated(query, keys, there, standard, degree, d), count)


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-300)


def _correlated(query: Tensor, keys: Tensor, there: Tensor, y: Tensor, degree: int, d: int) -> np.ndarray:
    """[degree] R^2 that each average P_k(<x_0, x_i>) adds after those of lower degree."""
    inner = torch.einsum("nd,nid->ni", query, keys)
    columns: list[Any] = [torch.ones_like(y)]
    explained = [0.0]
    for p in harmonics(inner, degree, d)[1:]:
        columns.append((p * there).sum(1) / there.sum(1))
        design = torch.stack(columns, 1)
        rest = y - design @ torch.linalg.lstsq(design, y[:, None], driver="gelsd").solution[:, 0]
        explained.append(float(1 - rest.square().sum() / y.square().sum()))
    return np.diff(explained)
