"""The two circuits of each head, all that a prediction depends on: KQ = K'Q (scaled) and OV = O V at the label rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from unbraid.core.errors import UnbraidError
from unbraid.systems.icl_linear_regression.sampling import Batch

Activation = Literal["softmax", "affine", "square", "tanh", "linear", "linear mean"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
# f'(0) / f(0): what a small step of a logit does to a weight, so that the step of descent is 2 C_f |omega| mu
SLOPES: dict[str, float] = {"softmax": 1.0, "affine": 1.0, "square": 2.0, "tanh": 1.0}


def weigh(logits: Tensor, activation: Activation = "softmax", length: int | None = None) -> Tensor:
    """Attention weights from logits.

    Args:
        logits: [..., L].
        activation: softmax; affine, square, tanh: f(v) / sum f(v) with f = 1 + v, (1 + v)^2, 1 + tanh v; linear: v / L
            with the L of training; "linear mean": v / L with the L of the sequence at hand.
        length: L of training, for linear; None: the logits'.

    Raises:
        UnbraidError: there is no such activation.
    """
    if activation == "softmax":
        return torch.softmax(logits, -1)
    if activation in ("linear", "linear mean"):
        return logits / (logits.shape[-1] if length is None or activation == "linear mean" else length)
    if activation == "affine":
        raw = 1 + logits
    elif activation == "square":
        raw = (1 + logits).square()
    elif activation == "tanh":
        raw = 1 + torch.tanh(logits)
    else:
        raise UnbraidError(f"activation is {activation!r}; choose from {', '.join(ACTIVATIONS)}.")
    return raw / raw.sum(-1, keepdim=True)


def attend(
    kq: Tensor, ov: Tensor, tokens: Tensor, query: Tensor, activation: Activation = "softmax", length: int | None = None
) -> Tensor:
    """What each head adds to the prediction: OV Z w(Z' KQ z_q), without keys or values of any token.

    The logits are Z (KQ z_q): O(L D) per head.

    Args:
        kq: [H, D, D].
        ov: [H, N, D].
        tokens: [B, L, D].
        query: [B, d]; the rest of z_q is zero, so the last columns of KQ do nothing.
        activation: see `weigh`.
        length: see `weigh`.

    Returns:
        [B, H, N].
    """
    asked = torch.einsum("hij,bj->bhi", kq[..., : query.shape[-1]], query)
    weights = weigh(asked @ tokens.transpose(-1, -2), activation, length)
    return torch.einsum("hnd,bhd->bhn", ov, weights @ tokens)


@dataclass(frozen=True, eq=False)
class Circuits:
    """The circuits of a layer.

    Args:
        kq: [H, D, D]: the logit of token z for query q is z' KQ q (the scale of the logits is inside).
        ov: [H, N, D]: what a token adds to the N predictions where a head looks at it.
        activation: of the layer.
        length: of training, which linear attention divides by.

    Raises:
        UnbraidError: shapes do not fit, or a number is not finite.
    """

    kq: Tensor
    ov: Tensor
    activation: Activation = "softmax"
    length: int | None = None

    def __post_init__(self) -> None:
        kq, ov = self.kq, self.ov
        given = f"kq and ov have shapes {list(kq.shape)} and {list(ov.shape)}"
        if kq.dim() != 3 or ov.dim() != 3 or kq.shape[0] != ov.shape[0] or 0 in (*kq.shape, *ov.shape):
            raise UnbraidError(f"{given}; they must be [heads, D, D] and [heads, N, D].")
        if kq.shape[1] != kq.shape[2] or kq.shape[2] != ov.shape[2] or ov.shape[1] >= kq.shape[1]:
            raise UnbraidError(f"{given}; D must be the same throughout and larger than N, the number of labels.")
        if not (torch.isfinite(kq).all() and torch.isfinite(ov).all()):
            raise UnbraidError("the circuits hold numbers that are not finite: the training diverged; train again.")
        if self.activation not in ACTIVATIONS:
            raise UnbraidError(f"activation is {self.activation!r}; choose from {', '.join(ACTIVATIONS)}.")

    @property
    def heads(self) -> int:
        """H."""
        return int(self.kq.shape[0])

    @property
    def tasks(self) -> int:
        """N."""
        return int(self.ov.shape[1])

    @property
    def dimension(self) -> int:
        """D of a token less the labels: d."""
        return int(self.kq.shape[1] - self.ov.shape[1])

    def sorted(self) -> Circuits:
        """Heads from the largest omega (mean of KQ's diagonal) to the smallest: their numbers mean nothing."""
        d = self.dimension
        order = self.kq.diagonal(dim1=1, dim2=2)[:, :d].mean(1).argsort(descending=True)
        return Circuits(self.kq[order], self.ov[order], self.activation, self.length)

    def as_softmax(self, gamma: float = 0.01) -> Circuits:
        """Linear attention of H heads as softmax attention of 2 H: KQ and -KQ scaled by gamma, OV by 1 / (2 gamma).

        As gamma goes to 0 the softmax layer computes the linear one with its logits less their mean over the context,
        divided by the length of the context at hand.

        Raises:
            UnbraidError: gamma is not positive.
        """
        if not gamma > 0:
            raise UnbraidError(f"gamma is {gamma}; it must be positive.")
        kq, ov = gamma * self.kq, self.ov / (2 * gamma)
        return Circuits(torch.cat([kq, -kq]), torch.cat([ov, -ov]))

    def contributions(self, batch: Batch) -> Tensor:
        """[B, H, N] of each head."""
        kq, ov = self.kq.to(batch.x), self.ov.to(batch.x)
        return attend(kq, ov, batch.tokens, batch.query, self.activation, self.length)

    def predict(self, batch: Batch) -> Tensor:
        """[B, N] predictions for the queries."""
        return self.contributions(batch).sum(1)
