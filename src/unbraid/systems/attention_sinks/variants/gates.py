"""Gates on outputs and values (survey section 5.1), and the learned scaling factor (5.3); weights are plain softmax.

x is the layer's normed input at the query token, which a hook hands over (`Variant.source`).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError
from unbraid.systems.attention_sinks.variants.base import Sizes
from unbraid.systems.attention_sinks.variants.softmaxes import Plain


class _FromSource(Plain):
    """A factor on the output, made from x."""

    def factor(self, x: Tensor) -> Tensor:
        """[B, H, Q, 1 or D] from x [B, Q, N]."""
        raise NotImplementedError

    def finish(self, y: Tensor) -> Tensor:
        """The output times the factor."""
        if self.source is None:
            raise UnbraidError("A gate needs the input of its layer; put it into a model with `convert`.")
        return y * self.factor(self.source[:, -y.shape[2] :]).to(y.dtype)


class QuantizableGate(_FromSource):
    """sigmoid(g_h(x)) o_h, g_h linear, per head.

    Reference: arXiv 2306.12929.

    Args:
        sizes: of the attention.
        inputs: "slice": each gate reads its head's slice of x (width / heads features), "all": all of x.
        pi: expected gate at the start; its bias is logit(pi).
        finetune: start as in the paper's fine-tuning: small weights, output times 1 / pi, so that little changes.
    """

    def __init__(
        self, sizes: Sizes, inputs: Literal["slice", "all"] = "slice", pi: float = 0.25, finetune: bool = False
    ) -> None:
        super().__init__(sizes)
        if inputs not in ("slice", "all"):
            raise UnbraidError(f"inputs={inputs!r} is unknown; choose 'slice' or 'all'.")
        if not 0 < pi < 1:
            raise UnbraidError(f"pi={pi}: the gate's expected value lies between 0 and 1.")
        if inputs == "slice" and sizes.hidden % sizes.heads:
            raise UnbraidError(f"{sizes.hidden} features cannot be cut into {sizes.heads} slices; choose inputs='all'.")
        self.inputs, self.pi, self.finetune = inputs, pi, finetune
        features = sizes.hidden // sizes.heads if inputs == "slice" else sizes.hidden
        std = 0.01 if finetune else 1 / math.sqrt(features)
        self.weight = nn.Parameter(std * torch.randn(sizes.heads, features))
        self.bias = nn.Parameter(torch.full((sizes.heads,), math.log(pi / (1 - pi))))

    def factor(self, x: Tensor) -> Tensor:
        """One number per head and token."""
        if self.inputs == "slice":
            g = torch.einsum("bqhf,hf->bhq", x.unflatten(-1, (self.sizes.heads, -1)), self.weight.to(x))
        else:
            g = torch.einsum("bqf,hf->bhq", x, self.weight.to(x))
        gate = torch.sigmoid(g + self.bias.to(x)[:, None])[..., None]
        return gate / self.pi if self.finetune else gate


class OutputGate(_FromSource):
    """sigmoid(W_g x) o before the output projection: the G1 gate of Qwen3-Next.

    Reference: arXiv 2505.06708; its code takes the layer's input, not the query.

    Args:
        sizes: of the attention.
        per: "element" (a gate per feature) or "head".
        open: bias added to the gates' logits; 0 is the paper's, a large number leaves a pretrained model as it is.
    """

    def __init__(self, sizes: Sizes, per: Literal["element", "head"] = "element", open: float = 0.0) -> None:
        super().__init__(sizes)
        if per not in ("element", "head"):
            raise UnbraidError(f"per={per!r} is unknown; choose 'element' or 'head'.")
        self.open, self.rows = open, sizes.heads * (sizes.width if per == "element" else 1)
        self.gate = nn.Linear(sizes.hidden, self.rows, bias=False)
        nn.init.normal_(self.gate.weight, std=0.02)

    def factor(self, x: Tensor) -> Tensor:
        """A gate per head or feature."""
        g = torch.sigmoid(self.gate(x.to(self.gate.weight.dtype)) + self.open)
        return g.unflatten(-1, (self.sizes.heads, -1)).transpose(1, 2)


class ScalingFactor(_FromSource):
    """S(x) o, one learned linear factor per head, not squashed.

    Args:
        sizes: of the attention.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.weight = nn.Parameter(torch.zeros(sizes.heads, sizes.hidden))
        self.bias = nn.Parameter(torch.ones(sizes.heads))

    def factor(self, x: Tensor) -> Tensor:
        """Starts at one."""
        return (torch.einsum("bqf,hf->bhq", x, self.weight.to(x)) + self.bias.to(x)[:, None])[..., None]


class ValueGate(Plain):
    """A (sigmoid(G(V)) * V), G linear per head: a token can make its own value small.

    Args:
        sizes: of the attention.
        open: bias added to the gates' logits.
    """

    def __init__(self, sizes: Sizes, open: float = 0.0) -> None:
        super().__init__(sizes)
        self.weight = nn.Parameter(torch.randn(sizes.heads, sizes.width, sizes.width) / math.sqrt(sizes.width))
        self.bias = nn.Parameter(torch.full((sizes.heads, sizes.width), float(open)))

    def values(self, v: Tensor) -> Tensor:
        """Gated values."""
        g = torch.einsum("bhkd,hde->bhke", v, self.weight.to(v)) + self.bias.to(v)[:, None]
        return torch.sigmoid(g) * v
