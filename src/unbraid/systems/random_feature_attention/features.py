"""Random features of attention heads and of neurons, a block at a time, and sums over them that never hold them all.

The frozen weights are their seed: block k of a map is drawn anew from (seed, k) whenever it is needed, so a map of a
million heads takes no memory, the first heads of a larger map are those of a smaller one, and results do not depend
on how the work is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from unbraid.systems.random_feature_attention.kernels import attention_kernel, mlp_kernel
from unbraid.systems.random_feature_attention.tokens import Tokens, concatenated

ROWS = 512  # inputs at a time: half of a product is saved by symmetry from twice as many on
Step = Callable[[int], None]


class Features(Protocol):
    """A random feature map: `size` heads of `per(tokens)` features, in blocks of `BLOCK` heads."""

    BLOCK: ClassVar[int]

    @property
    def size(self) -> int:
        """Heads or neurons."""

    def per(self, tokens: Tokens) -> int:
        """Features of a head."""

    def block(self, tokens: Tokens, index: int) -> Tensor:
        """[n, heads of the block * per] features, not normalised by the number of heads."""

    def kernel(self, left: Tokens, right: Tokens | None = None, tick: Step | None = None) -> Tensor:
        """[n, n'] limit of the features' inner products over the number of heads."""

    def sized(self, size: int) -> Features:
        """The same map with another number of heads."""


def generator(seed: int, *where: int) -> torch.Generator:
    """A generator for one block: the same on every machine and device, as it draws on the CPU."""
    state = np.random.SeedSequence([seed, *where]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


@dataclass(frozen=True, eq=False)
class AttentionFeatures:
    """RFA and BRFA: head m gives 1/N sum_i relu(x~_0' W_m x~_i) x~_i, W_m of mean W_0 and variance 1/4.

    Args:
        heads: M.
        bias: [d + 1, d + 1] mean W_0; None: zero.
        seed: of the weights.
    """

    BLOCK: ClassVar[int] = 64
    heads: int
    bias: np.ndarray | None = None
    seed: int = 0

    @property
    def size(self) -> int:
        """Heads."""
        return self.heads

    def per(self, tokens: Tokens) -> int:
        """d + 1: the values act on the whole of x~_i."""
        return tokens.width + 1

    def sized(self, size: int) -> AttentionFeatures:
        """The same map with another number of heads."""
        return replace(self, heads=size)

    def weights(self, index: int, width: int) -> Tensor:
        """[heads of the block, d + 1, d + 1] frozen weights, float32 on the CPU."""
        drawn = 0.5 * torch.randn(self.BLOCK, width, width, generator=generator(self.seed, 0, index))
        if self.bias is not None:
            drawn += torch.from_numpy(self.bias).float()
        return drawn[: self.heads - index * self.BLOCK]

    def block(self, tokens: Tokens, index: int) -> Tensor:
        """[n, heads of the block * (d + 1)]."""
        w = self.weights(index, tokens.query.shape[1]).to(tokens.query)
        flat = w.transpose(0, 1).flatten(1)  # as one product, which is quicker than an einsum
        projected = (tokens.query @ flat).unflatten(1, w.shape[:2])
        scores = torch.relu_(projected @ tokens.keys.transpose(1, 2))
        return (scores @ (tokens.keys * tokens.inverse[:, None, None])).flatten(1)

    def kernel(self, left: Tokens, right: Tokens | None = None, tick: Step | None = None) -> Tensor:
        """The closed form."""
        bias = None if self.bias is None else torch.from_numpy(self.bias).to(left.query.device)
        return attention_kernel(left, right, bias, tick)


@dataclass(frozen=True, eq=False)
class NeuronFeatures:
    """RFMLP: neuron m gives relu(<w_m, z>), w_m standard normal, on tokens side by side, z of unit norm.

    Args:
        neurons: M(d + 1) for as many trained numbers as M heads have.
        seed: of the weights.
    """

    BLOCK: ClassVar[int] = 1_024
    neurons: int
    seed: int = 0

    @property
    def size(self) -> int:
        """Neurons."""
        return self.neurons

    def per(self, tokens: Tokens) -> int:
        """1."""
        return 1

    def sized(self, size: int) -> NeuronFeatures:
        """The same map with another number of neurons."""
        return replace(self, neurons=size)

    def block(self, tokens: Tokens, index: int) -> Tensor:
        """[n, neurons of the block]."""
        z = concatenated(tokens)
        w = torch.randn(self.BLOCK, z.shape[1], generator=generator(self.seed, 1, index)).to(z)
        return torch.relu_(z @ w[: self.neurons - index * self.BLOCK].T)

    def kernel(self, left: Tokens, right: Tokens | None = None, tick: Step | None = None) -> Tensor:
        """The closed form."""
        z = concatenated(left)
        return mlp_kernel(z, z if right is None else concatenated(right))


def blocks(features: Features, start: int = 0) -> range:
    """The indices of the blocks, from the one that holds head ``start`` on."""
    return range(start // features.BLOCK, -(-features.size // features.BLOCK))


def batches(count: int, rows: int = ROWS) -> Iterator[slice]:
    """Slices of so many rows."""
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))


def _whole(features: Features, tokens: Tokens, index: int) -> Tensor:
    return torch.cat([features.block(tokens[rows], index) for rows in batches(len(tokens))])


def add_gram(features: Features, tokens: Tokens, into: Tensor, index: int) -> None:
    """Adds a block's inner products to the lower triangle of [n, n] sums, in tiles."""
    phi = _whole(features, tokens, index)
    for low in batches(len(tokens)):
        for left in batches(low.stop):
            if phi.dtype == into.dtype:
                into[low, left].addmm_(phi[low], phi[left].T)
            else:
                into[low, left] += phi[low] @ phi[left].T


def mirror(lower: Tensor) -> Tensor:
    """The symmetric matrix of a lower triangle, in place."""
    for low in batches(len(lower)):
        lower[: low.start, low] = lower[low, : low.start].T
        tile = lower[low, low]
        lower[low, low] = torch.tril(tile) + torch.tril(tile, -1).T
    return lower


def gram(features: Features, tokens: Tokens, tick: Step | None = None) -> Tensor:
    """[n, n] float64 inner products over the number of heads, summed over blocks; the design matrix is never held.

    Args:
        features: the map.
        tokens: n inputs; their dtype is that of the products.
        tick: called with a number of finished heads.
    """
    found = torch.zeros(len(tokens), len(tokens), dtype=torch.float64, device=tokens.query.device)
    for index in blocks(features):
        add_gram(features, tokens, found, index)
        if tick is not None:
            tick(min(features.BLOCK, features.size - index * features.BLOCK))
    return mirror(found).div_(features.size)


def design(features: Features, tokens: Tokens) -> Tensor:
    """[n, M per] all features over the root of M: for few inputs only."""
    return torch.cat([features.block(tokens, index) for index in blocks(features)], 1) / features.size**0.5


def normal_equations(features: Features, tokens: Tokens, y: Tensor) -> tuple[Tensor, Tensor]:
    """Phi' Phi and Phi' y of features over the root of M, summed over inputs: the primal problem.

    Args:
        features: the map.
        tokens: n inputs.
        y: [n, outputs].

    Returns:
        [p, p] and [p, outputs], float64.
    """
    p = features.size * features.per(tokens)
    squares = torch.zeros(p, p, dtype=torch.float64, device=y.device)
    moments = torch.zeros(p, y.shape[1], dtype=torch.float64, device=y.device)
    for rows in batches(len(tokens), 512):
        phi = design(features, tokens[rows])
        moments += phi.T.double() @ y[rows].double()
        for low in batches(p):
            squares[low, : low.stop] += phi[:, low].T @ phi[:, : low.stop]
    return mirror(squares), moments


def values(features: Features, tokens: Tokens, dual: Tensor) -> Tensor:
    """[M per, outputs] float64 trained values of dual coefficients [n, outputs]: Phi' alpha, a block at a time."""

    def part(index: int) -> Tensor:
        products = (
            features.block(tokens[rows], index).T.double() @ dual[rows].double() for rows in batches(len(tokens))
        )
        return torch.stack(list(products)).sum(0)

    return torch.cat([part(index) for index in blocks(features)]) / features.size**0.5


def project(features: Features, tokens: Tokens, trained: Tensor) -> Tensor:
    """[n, outputs] float64 predictions of trained values [M per, outputs]."""
    found = torch.zeros(len(tokens), trained.shape[1], dtype=torch.float64, device=tokens.query.device)
    step = features.BLOCK * features.per(tokens)
    for index in blocks(features):
        part = trained[index * step : (index + 1) * step]
        for rows in batches(len(tokens)):
            found[rows] += features.block(tokens[rows], index).double() @ part.double()
    return found / features.size**0.5
