"""Kernels of infinitely many random heads, in closed form (arXiv 2307.11353; derived here, not in the paper as code).

With x~ = [x; 1] the pre-activation of a head at key i is normal with mean a_i = x~_0' W_0 x~_i and deviation
s_i = |x~_0| |x~_i| / 2; those of two inputs have the correlation

    t_ij = <x~_0, x~'_0> <x~_i, x~'_j> / (|x~_0| |x~'_0| |x~_i| |x~'_j|),

so K(x, x') = 1 / (N N') sum_ij E[relu(a_i + s_i u) relu(b_j + s'_j v)] <x~_i, x~'_j>. The expectation is a moment of a
truncated bivariate normal (S. Rosenbaum, 1961); without a mean it is the arc-cosine kernel of degree one. For unit
tokens s = 1, which is why the weights have variance 1/4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from unbraid.systems.random_feature_attention.tokens import Tokens

NODES = 10  # of the quadrature for P(u < a, v < b): errors below 1e-10 up to |t| = 0.9
CLOSE, CLOSE_NODES = 0.9, 80  # beyond, where inputs nearly coincide: below 5e-6
CHUNK = 20_000  # pairs of keys at a time, so that they stay in the processor's cache
DEVICE_CHUNK = 20_000_000  # elsewhere
TINY = 1e-14


@lru_cache
def _nodes(count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(count)
    return tuple(((x + 1) / 2).tolist()), tuple((w / 2).tolist())


def arc_cosine(t: Tensor) -> Tensor:
    """E[relu(u) relu(v)] of two standard normals with correlation t; any shape, -1 to 1 (clamped)."""
    t = t.clamp(-1, 1)
    return (torch.sqrt(1 - t * t) + t * (math.pi - torch.arccos(t))) / (2 * math.pi)


def relu_moment(a: Tensor, b: Tensor, t: Tensor, nodes: int = NODES) -> Tensor:
    """E[relu(a + u) relu(b + v)] of two standard normals with correlation t.

    (a b + t) P(u < a, v < b) + a phi(b) Phi((a - t b) / s) + b phi(a) Phi((b - t a) / s) + s exp(-q / 2) / (2 pi) with
    s^2 = 1 - t^2, q = (a^2 - 2 t a b + b^2) / s^2. The probability is an integral over the angle arcsin t (Drezner and
    Wesolowsky, 1990), whose integrand is smooth; only it needs quadrature.

    Args:
        a: means; shapes of the three must broadcast to that of t.
        b: means.
        t: -1 to 1 (clamped).
        nodes: of the quadrature.
    """
    t = t.clamp(-1 + TINY, 1 - TINY)
    s = torch.sqrt((1 - t) * (1 + t))
    angle, both, squares = torch.arcsin(t), a * b, (a * a + b * b) / 2
    integral = _plackett(angle, both, squares, nodes)
    close = t.abs() > CLOSE
    if bool(close.any()):
        near = [part.expand_as(t)[close] for part in (angle, both, squares)]
        integral[close] = _plackett(near[0], near[1], near[2], max(nodes, CLOSE_NODES))
    joint = normal_cdf(a) * normal_cdf(b) + angle * integral / (2 * math.pi)
    edge = a * _density(b) * normal_cdf((a - t * b) / s) + b * _density(a) * normal_cdf((b - t * a) / s)
    rest = s * torch.exp((t * both - squares) / (s * s)) / (2 * math.pi)
    return (both + t) * joint + edge + rest


def _plackett(angle: Tensor, both: Tensor, squares: Tensor, nodes: int) -> Tensor:
    """Mean of exp((a b sin w - (a^2 + b^2) / 2) / cos^2 w) over w from 0 to the angle."""
    found = torch.zeros_like(angle)
    for at, weight in zip(*_nodes(nodes), strict=True):
        sine = torch.sin(angle * at)
        found.add_((both * sine).sub_(squares).div_(sine.square_().neg_().add_(1)).exp_(), alpha=weight)
    return found


def normal_cdf(x: Tensor) -> Tensor:
    """P(u < x) of a standard normal u; by erf, which is thirty times as quick here as torch.special.ndtr."""
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def _density(x: Tensor) -> Tensor:
    return torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _pairs(left: Tokens, right: Tokens, bias: Tensor | None) -> Tensor:
    """[n, n'] of a chunk."""
    inner = torch.einsum("nid,mjd->nmij", left.keys, right.keys)
    queries = (left.query @ right.query.T)[:, :, None, None]
    norms = [(half.query.norm(dim=1)[:, None], half.keys.norm(dim=2)) for half in (left, right)]
    s_left, s_right = (0.5 * q * k for q, k in norms)  # zero at keys that are not there
    scale = s_left[:, None, :, None] * s_right[None, :, None, :]
    t = 0.25 * queries * inner / scale.clamp_min(TINY)
    if bias is None:
        value = arc_cosine(t)
    else:
        means = [(half.query @ bias)[:, None, :] @ half.keys.transpose(1, 2) for half in (left, right)]
        a, b = (m[:, 0] / s.clamp_min(TINY) for m, s in zip(means, (s_left, s_right), strict=True))
        value = relu_moment(a[:, None, :, None], b[None, :, None, :], t)
    return (value * scale * inner).sum((2, 3)) * left.inverse[:, None] * right.inverse[None]


def attention_kernel(
    left: Tokens, right: Tokens | None = None, bias: Tensor | None = None, tick: Callable[[int], None] | None = None
) -> Tensor:
    """The kernel of RFA, or, with a bias, of BRFA.

    Args:
        left: n inputs.
        right: n' inputs; None: the same, of which only half the pairs are computed.
        bias: [d + 1, d + 1] mean W_0 of the weights; None: zero.
        tick: called with a number of finished pairs of inputs.

    Returns:
        [n, n'] float64, whatever the dtype of the tokens: near t = 1 less is not enough.
    """
    other = left = left.to(left.query.device, torch.float64)
    if right is not None:
        other = right.to(right.query.device, torch.float64)
    found = left.query.new_zeros(len(left), len(other))
    width = max(1, left.keys.shape[1] * other.keys.shape[1])
    chunk = CHUNK if left.query.device.type == "cpu" else DEVICE_CHUNK
    rows = max(1, min(8, chunk // width))
    columns = max(1, chunk // (width * rows))
    for i in range(0, len(left), rows):
        last = len(other) if right is not None else min(i + rows, len(left))
        for j in range(0, last, columns):
            end = min(j + columns, last)
            found[i : i + rows, j:end] = _pairs(left[i : i + rows], other[j:end], bias)
            if tick is not None:
                tick(min(rows, len(left) - i) * (end - j))
    return found if right is not None else torch.tril(found) + torch.tril(found, -1).T


def mlp_kernel(left: Tensor, right: Tensor) -> Tensor:
    """The kernel of infinitely many random ReLU neurons (RFMLP).

    Args:
        left: [n, p] inputs z, see `unbraid.systems.random_feature_attention.tokens.concatenated`.
        right: [n', p].

    Returns:
        [n, n'] float64.
    """
    left, right = left.double(), right.double()
    norms = left.norm(dim=1)[:, None] * right.norm(dim=1)[None]
    return norms * arc_cosine(left @ right.T / norms.clamp_min(TINY))


def rfa_kernel(x: np.ndarray, y: np.ndarray | None = None, bias: str | np.ndarray = "zero") -> np.ndarray:
    """The infinite-head kernel of arrays, for `KernelRidge(kernel="precomputed")`, `SVR` or a Gaussian process.

    Args:
        x: [n, 1 + N, d]: query first, then keys. Tokens are taken as they are; the theory has unit norms.
        y: [n', 1 + N', d]; None: x.
        bias: "zero" (RFA), "identity" (BRFA) or a [d, d] matrix.

    Returns:
        [n, n'] float64.

    Raises:
        UnbraidError: shapes do not fit, or a number is not finite.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).standard_normal((3, 5, 2))
        >>> rfa_kernel(x).shape
        (3, 3)
    """
    from unbraid.systems.random_feature_attention.tokens import bias_matrix, read, same_width

    left = read(x)
    right = None if y is None else read(y)
    same_width(left, right)
    mean = bias_matrix(bias, left.width)
    return attention_kernel(left, right, None if mean is None else torch.from_numpy(mean)).numpy()


def rfmlp_kernel(x: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
    """The kernel of a random-feature MLP on the tokens side by side.

    Args:
        x: [n, 1 + N, d].
        y: [n', 1 + N, d]; None: x.

    Returns:
        [n, n'] float64.

    Raises:
        UnbraidError: shapes do not fit, or a number is not finite.
    """
    from unbraid.systems.random_feature_attention.tokens import concatenated, read, same_width

    left = read(x)
    right = left if y is None else read(y)
    same_width(left, right, keys=True)
    return mlp_kernel(concatenated(left), concatenated(right)).numpy()
