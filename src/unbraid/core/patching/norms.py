"""Norms with a frozen scale: LayerNorm and RMSNorm of any library, read by probing, so that no class name matters.

A norm is y = (x - m(x)) r(x) w + b, with m the mean (LayerNorm) or zero (RMSNorm) and r the reciprocal of the spread.
Frozen to a reference run, m and r are constants, and the change of y is linear in the change of x:
y = y_c + (x - x_c) r_f w. Without it every sender reaches every reader through r (arXiv 2310.08744 leaves it live).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError


@dataclass(eq=False)
class Gain:
    """What a norm does beside scaling.

    Attributes:
        weight: [d], w up to a factor that cancels against `scale`.
        bias: [d], b.
        centred: whether the mean is taken away.
    """

    weight: Tensor
    bias: Tensor
    centred: bool

    def scale(self, x: Tensor, y: Tensor) -> Tensor:
        """r of every token [..., 1], by least squares from input and output.

        Raises:
            UnbraidError: y is not a scaled x.
        """
        x, y = x.float(), y.float() - self.bias
        a = self.weight * (x - x.mean(-1, keepdim=True) if self.centred else x)
        r = (y * a).sum(-1, keepdim=True) / (a * a).sum(-1, keepdim=True).clamp(min=1e-30)
        if float((y - r * a).abs().max()) > 0.05 * float(y.abs().max()) + 1e-4:
            raise UnbraidError(
                "A norm of this model is neither LayerNorm nor RMSNorm, so its scale cannot be frozen; use "
                "freeze_norm='none'."
            )
        return r


def probe(norm: nn.Module, like: Tensor) -> Gain:
    """Weight, bias and kind of a norm from three inputs.

    Args:
        norm: LayerNorm, RMSNorm or the like.
        like: [..., d], an input it had.
    """
    d = like.shape[-1]
    g = torch.Generator().manual_seed(0)
    sign = torch.ones(d)
    sign[1::2] = -1
    u = (sign * (1 + torch.rand(d, generator=g) / 2)).to(like)[None, None]
    up, down, shifted = (norm(x).float()[0, 0] for x in (u, -u, u + 1))
    u = u.float()[0, 0]
    bias, odd = (up + down) / 2, (up - down) / 2
    tolerance = 1e-3 if like.dtype == torch.float32 else 3e-2
    centred = bool((shifted - up).abs().max() <= tolerance * (up.abs().max() + 1e-12))
    return Gain(odd / (u - u.mean() if centred else u), bias, centred)


@dataclass(eq=False)
class Normed:
    """A norm in a reference run, at the tokens of the frame.

    Attributes:
        x: [B, n, d] input of the clean run.
        y: [B, n, d] output of the clean run.
        gain: [B, n, d] r_f w, with r of the run that the norm is frozen to.
    """

    x: Tensor
    y: Tensor
    gain: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """The norm's output for inputs [V * B, n, d], variants outermost, with the scale frozen."""
        b = self.x.shape[0]
        own = x.unflatten(0, (-1, b))
        return (self.y + (own - self.x) * self.gain.to(x.dtype)).flatten(0, 1)

    def at(self, where: Tensor) -> Normed:
        """The same at some tokens [B, P] of the frame."""
        return Normed(*(pick(t, where) for t in (self.x, self.y, self.gain)))


def pick(x: Tensor, where: Tensor, dim: int = 1) -> Tensor:
    """Entries `where` [B, P] of dimension `dim` of x [B, ..., n, ...]."""
    shape = [1] * x.dim()
    shape[0], shape[dim] = where.shape
    index = where.reshape(shape).expand([*x.shape[:dim], where.shape[1], *x.shape[dim + 1 :]])
    return x.gather(dim, index)
