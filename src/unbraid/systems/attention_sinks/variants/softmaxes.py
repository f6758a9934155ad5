"""Other functions than softmax, and softmax with something in its denominator (survey sections 5.2 and 5.3).

Each class says in its first line what the weights are. z are masked logits; sums run over visible keys.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError
from unbraid.systems.attention_sinks.variants.base import Sizes, Variant, fused, with_column


class Plain(Variant):
    """softmax(z): the control."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float) -> Tensor:
        """Through the fused kernel."""
        return fused(q, k, v, mask, scale, dropout)


class Clipped(Variant):
    """clip((zeta - gamma) softmax(z) + gamma, 0, 1), gamma = -alpha / visible keys, never below -1.

    Reference: arXiv 2306.12929 (Quantizable Transformers).

    Args:
        sizes: of the attention.
        alpha: 12 for decoders in the paper; gamma follows the length of each row.
        gamma: a fixed gamma instead (the paper's -0.025 for BERT at 128 tokens).
        zeta: 1 clips at the lower end only.
    """

    def __init__(self, sizes: Sizes, alpha: float = 12.0, gamma: float | None = None, zeta: float = 1.0) -> None:
        super().__init__(sizes)
        if alpha < 0 or (gamma is not None and gamma > 0) or zeta < 1:
            raise UnbraidError(
                f"alpha={alpha}, gamma={gamma}, zeta={zeta}: alpha >= 0, gamma <= 0 and zeta >= 1 are meant."
            )
        self.alpha, self.gamma, self.zeta = alpha, gamma, zeta

    def weights(self, z: Tensor, visible: Tensor) -> Tensor:
        """Clipped; hidden keys stay at zero."""
        p = super().weights(z, visible)
        gamma = self.gamma
        low = (
            -self.alpha / visible.sum(-1, keepdim=True).clamp(min=1)
            if gamma is None
            else torch.full_like(p[..., :1], gamma)
        )
        # rows with fewer keys than alpha would be zero unless they look at a single key
        low = low.clamp(min=-1.0).to(p)
        return ((self.zeta - low) * p + low).clamp(0, 1) * visible


class SoftmaxOne(Variant):
    """e^z / (1 + sum e^z): a null key of logit 0 and value 0.

    Reference: arXiv 2410.17174; equal to plain attention times sigmoid(lse).
    """

    def weights(self, z: Tensor, visible: Tensor) -> Tensor:
        """With the largest logit, or 0, taken off."""
        return _with_null(z, visible, z.new_zeros(1, 1, 1, 1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float) -> Tensor:
        """Through the fused kernel, with a key and value of zeros."""
        nothing = q.new_zeros(q.shape[1], q.shape[3])
        return with_column(q, k, v, mask, scale, dropout, nothing, nothing)


class SinkLogit(Variant):
    """e^z / (sum e^z + e^s), s learned per head: the sink of gpt-oss and MiMo.

    Args:
        sizes: of the attention.
        start: initial s; -20 leaves a pretrained model as it is, 0 is softmax-1.
    """

    def __init__(self, sizes: Sizes, start: float = 0.0) -> None:
        super().__init__(sizes)
        self.sink = nn.Parameter(torch.full((sizes.heads,), float(start)))

    def weights(self, z: Tensor, visible: Tensor) -> Tensor:
        """With the largest logit, sink included, taken off."""
        return _with_null(z, visible, self.sink.to(z)[None, :, None, None])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float) -> Tensor:
        """Through the fused kernel; one more feature carries the logit."""
        nothing = q.new_zeros(q.shape[1], q.shape[3])
        return with_column(q, k, v, mask, scale, dropout, nothing, nothing, self.sink)


class KeyBias(Variant):
    """softmax over [k', K] with value v' = 0 (or learned) at k': a key, and with `values` a value, of its own per head.

    Reference: arXiv 2402.17762 (both learned), arXiv 2410.10781 (value zero).

    Args:
        sizes: of the attention.
        values: learn v' as well.
        std: of the initial k' and v'.
        shared: one key (and value) for all heads.
    """

    def __init__(self, sizes: Sizes, values: bool = False, std: float = 0.02, shared: bool = False) -> None:
        super().__init__(sizes)
        rows = 1 if shared else sizes.heads
        self.key = nn.Parameter(std * torch.randn(rows, sizes.width))
        self.value = nn.Parameter(std * torch.randn(rows, sizes.width)) if values else None
        self.scale = 1.0
        self._q: Tensor | None = None

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float = 0.0
    ) -> Tensor:
        """Remembers queries, from which the extra logit is made when weights are looked at."""
        self._q, self.scale = q, scale
        try:
            return super().forward(q, k, v, mask, scale, dropout)
        finally:
            self._q = None

    def weights(self, z: Tensor, visible: Tensor) -> Tensor:
        """Of the real keys only; rows sum to less than one."""
        assert self._q is not None
        key = self.key.to(z).expand(self.sizes.heads, -1)
        return _with_null(z, visible, self.scale * torch.einsum("bhqd,hd->bhq", self._q.to(z), key)[..., None])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float) -> Tensor:
        """Through the fused kernel."""
        key = self.key.expand(self.sizes.heads, -1)
        value = torch.zeros_like(key) if self.value is None else self.value.expand(self.sizes.heads, -1)
        return with_column(q, k, v, mask, scale, dropout, key, value)


class KeyValueBias(KeyBias):
    """softmax over [k', K] with values [v'; V], both learned per head."""

    def __init__(self, sizes: Sizes, std: float = 0.02, shared: bool = False) -> None:
        super().__init__(sizes, True, std, shared)


class Softpick(Variant):
    """relu(e^z - 1) / (sum |e^z - 1| + eps): exact zeros below logit 0, rows need not sum to one.

    Reference: arXiv 2504.20966; the survey prints another formula, the authors' code is this one.

    Args:
        sizes: of the attention.
        eps: in the denominator.
    """

    def __init__(self, sizes: Sizes, eps: float = 1e-8) -> None:
        super().__init__(sizes)
        self.eps = eps

    def weights(self, z: Tensor, visible: Tensor) -> Tensor:
        """With e^max factored out of numerator and denominator."""
        z = z.masked_fill(~visible, -torch.inf)
        top = z.detach().amax(-1, keepdim=True).clamp(min=0)
        part = (torch.exp(z - top) - torch.exp(-top)) * visible
        return part.relu() / (part.abs().sum(-1, keepdim=True) + self.eps * torch.exp(-top))


class Elastic(Variant):
    """softmax(z / T), T > 1 (or (e^z)^alpha normalised, alpha = 1 / T): flatter rows.

    Args:
        sizes: of the attention.
        temperature: T.
    """

    def __init__(self, sizes: Sizes, temperature: float = 2.0) -> None:
        super().__init__(sizes)
        if temperature <= 0:
            raise UnbraidError(f"temperature={temperature}: it must be above 0 (above 1 for flatter rows).")
        self.temperature = temperature

    def weights(self, z: Tensor, visible: Tensor) -> Tensor:
        """Flatter softmax."""
        return super().weights(z / self.temperature, visible)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float) -> Tensor:
        """Through the fused kernel."""
        if mask is not None and mask.dtype != torch.bool:
            return super().attend(q, k, v, mask, scale, dropout)
        return fused(q, k, v, mask, scale / self.temperature, dropout)


class Sigmoid(Variant):
    """sigmoid(z + b), unnormalised.

    Reference: arXiv 2409.04431.

    Args:
        sizes: of the attention.
        bias: "rows" for b = -ln(visible keys), which keeps rows near a sum of one at the start; "none" for b = 0.
    """

    def __init__(self, sizes: Sizes, bias: Literal["rows", "none"] = "rows") -> None:
        super().__init__(sizes)
        if bias not in ("rows", "none"):
            raise UnbraidError(f"bias={bias!r} is unknown; choose 'rows' or 'none'.")
        self.bias = bias

    def weights(self, z: Tensor, visible: Tensor) -> Tensor:
        """Each key on its own."""
        shift = visible.sum(-1, keepdim=True).clamp(min=1).to(z).log() if self.bias == "rows" else 0.0
        return torch.sigmoid(z - shift) * visible


class Relu(Variant):
    """relu(z), neither normalised nor bounded: a control that needs no sink, as a row may be all zeros."""

    def weights(self, z: Tensor, visible: Tensor) -> Tensor:
        """Zero below logit 0."""
        return z.masked_fill(~visible, 0.0).relu()


def _with_null(z: Tensor, visible: Tensor, null: Tensor) -> Tensor:
    """softmax with one more logit in the denominator; rows without a visible key are zero."""
    z = z.masked_fill(~visible, -torch.inf)
    top = torch.maximum(z.detach().amax(-1, keepdim=True), null.detach())
    part = torch.exp(z - top)
    return part / (part.sum(-1, keepdim=True) + torch.exp(null - top))
