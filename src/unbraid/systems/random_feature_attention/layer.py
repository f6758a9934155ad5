"""The method as a torch layer: frozen weights as a buffer that is drawn anew from a seed, values as the parameter."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError
from unbraid.systems.random_feature_attention.features import AttentionFeatures
from unbraid.systems.random_feature_attention.system import check_count
from unbraid.systems.random_feature_attention.tokens import bias_matrix


class RandomFeatureAttention(nn.Module):
    """sum_m 1/N sum_i relu(x~_0' W_m x~_i) V_m x~_i with W_m frozen: convex in V for convex losses.

    The state holds the seed and the values, not the weights W, which have M (d + 1)^2 numbers.

    Args:
        dim: d of a token.
        heads: M.
        outputs: numbers per input.
        bias: mean of the weights: "zero" (RFA), "identity" (BRFA) or a [d, d] matrix.
        seed: of the weights; a state that is loaded brings its own.

    Raises:
        UnbraidError: a number is not positive, or the bias is none.
    """

    frozen: Tensor
    mean: Tensor
    seed: Tensor

    def __init__(
        self, dim: int, heads: int = 1_000, outputs: int = 1, bias: str | np.ndarray = "zero", seed: int = 0
    ) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("heads", heads), ("outputs", outputs)):
            check_count(name, value)
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise UnbraidError(f"seed is {seed!r}; it must be a whole number of at least 0.")
        mean = bias_matrix(bias, dim)
        self.dim, self.heads, self.outputs = dim, heads, outputs
        self.register_buffer("seed", torch.tensor(seed, dtype=torch.int64))
        self.register_buffer("mean", torch.from_numpy(np.zeros((dim + 1, dim + 1)) if mean is None else mean).float())
        self.register_buffer("frozen", torch.empty(heads, dim + 1, dim + 1), persistent=False)
        self.values = nn.Parameter(torch.zeros(heads, outputs, dim + 1))
        self.redraw()

    def redraw(self) -> None:
        """Draws the frozen weights from the seed."""
        features = AttentionFeatures(self.heads, self.mean.double().cpu().numpy(), int(self.seed))
        drawn = [features.weights(k, self.dim + 1) for k in range(-(-self.heads // features.BLOCK))]
        self.frozen = torch.cat(drawn).to(self.values)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.redraw()

    def features(self, query: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        """[batch, M, d + 1] features of a query [batch, d] and keys [batch, N, d]; mask [batch, N], true: there."""
        q, k = (torch.cat([t, torch.ones_like(t[..., :1])], -1) for t in (query, keys))
        if mask is not None:
            k = k * mask[..., None].to(k)
        count = k.shape[1] if mask is None else mask.sum(1).clamp_min(1).to(k)[:, None, None]
        scores = torch.relu(torch.einsum("bd,mde,bie->bmi", q, self.frozen, k))
        return (scores @ k) / count

    def forward(self, query: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        """The layer.

        Args:
            query: [batch, d].
            keys: [batch, N, d].
            mask: [batch, N], true where there is a key; None: all are there.

        Returns:
            [batch, outputs].

        Raises:
            UnbraidError: shapes do not fit.
        """
        fits = query.ndim == 2 and keys.ndim == 3 and len(query) == len(keys) and keys.shape[1] > 0
        if not fits or query.shape[1] != self.dim or keys.shape[2] != self.dim:
            given = f"{tuple(query.shape)} and {tuple(keys.shape)}"
            raise UnbraidError(f"give a query [batch, {self.dim}] and keys [batch, N, {self.dim}], not {given}.")
        if mask is not None and mask.shape != keys.shape[:2]:
            raise UnbraidError(f"mask must be {tuple(keys.shape[:2])}, true where there is a key, not {mask.shape}.")
        return torch.einsum("bmd,mod->bo", self.features(query, keys, mask), self.values)

    @classmethod
    def from_regressor(cls, fitted: Any) -> tuple[RandomFeatureAttention, Tensor]:
        """The layer of a fitted `RandomFeatureAttentionRegressor`, and the [outputs] offset to add.

        Tokens must be divided by the regressor's ``common_`` first.

        Raises:
            UnbraidError: it has a kernel and no heads.
        """
        values = fitted.values_ if fitted.values_.ndim == 3 else fitted.values_[..., None]
        heads, width, outputs = values.shape
        inner: Any = "zero" if fitted.bias_ is None else fitted.bias_[:-1, :-1]
        layer = cls(width - 1, heads, outputs, inner, int(fitted.seed)).double()
        layer.redraw()
        with torch.no_grad():
            layer.values.copy_(torch.from_numpy(values).transpose(1, 2))
        return layer, torch.from_numpy(fitted.offset_)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"dim={self.dim}, heads={self.heads}, outputs={self.outputs}, seed={int(self.seed)}"
