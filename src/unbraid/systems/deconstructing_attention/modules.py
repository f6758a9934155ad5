"""One module for each variant, in the place of `self_attn` of a decoder layer, with the same names of weights."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as sdpa
from torch.nn.functional import silu
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from unbraid.systems.deconstructing_attention.mixing import pooled, taylor
from unbraid.systems.deconstructing_attention.streams import Streams


class Mixer(nn.Module):
    """Attention of a layer, of one variant, with the projections of the module whose place it takes.

    Args:
        attention: of a Llama, Qwen2, Qwen3 or Mistral layer.
        norm: of the layer's input.
        streams: of the model.
        variant: one of the names in `placement.VARIANTS` but "mlp".
        joint: see `mixing.taylor`.
    """

    def __init__(self, attention: nn.Module, norm: nn.Module, streams: Streams, variant: str, joint: bool) -> None:
        super().__init__()
        for name, child in attention.named_children():
            self.add_module(name, child)
        self.parts = {name for name, _ in attention.named_children()}
        source = cast("Any", attention)
        self.layer_idx, self.head_dim, self.scaling = source.layer_idx, source.head_dim, source.scaling
        self.groups, self.dropout = source.num_key_value_groups, source.attention_dropout
        self.variant, self.joint = variant, joint
        # seen, not owned: none of these is a second time in the state
        self.__dict__["seen"] = (norm, streams)
        self.__dict__["replaced"] = (attention,)

    def extra_repr(self) -> str:
        """The variant."""
        return self.variant

    def split(self, name: str, hidden: Tensor) -> Tensor:
        """[B, N, width] by a projection to [B, heads, N, D], normed where the model norms queries and keys."""
        made = self.get_submodule(f"{name}_proj")(hidden).unflatten(-1, (-1, self.head_dim))
        if f"{name}_norm" in self.parts:
            made = self.get_submodule(f"{name}_norm")(made)
        return cast("Tensor", made.transpose(1, 2))

    def query_key(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys of the variant, rotated, as many heads each: [B, H, N, D]."""
        norm, streams = self.__dict__["seen"]
        now = streams.now
        if self.variant == "static":
            hidden = norm(now.embedded.to(hidden.dtype))
        row = now.rows.get(self.variant)
        if row is not None:
            hidden = hidden[row : row + 1]
            cos, sin = (x[row : row + 1] if len(x) > 1 else x for x in (cos, sin))
        query, key = self.split("q", hidden), self.split("k", hidden)
        if self.variant == "non_approximate":
            query = silu(query)  # no rotation: a query meets the key of its own place only
        else:
            query, key = apply_rotary_pos_emb(query, key, cos, sin)
        key = key.repeat_interleave(self.groups, 1)
        if row is not None and streams.record is not None:
            streams.record[self.layer_idx] = query[0].detach(), key[0].detach()
        if row is not None and now.positions is not None:
            query, key = (x[0][:, now.positions].transpose(0, 1) for x in (query, key))
        return query, key

    def mix(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, state: list[Tensor] | None = None
    ) -> Tensor:
        """The variant's mean of values: [B, H, N, E]; queries and keys may have one row for all texts."""
        keys = self.__dict__["seen"][1].now.keys
        if self.variant == "approximate":
            return taylor(query, key, value, keys, joint=self.joint, state=state)
        if self.variant == "non_approximate":
            return pooled((query.float() * key.float()).sum(-1) * self.scaling, value, keys, state=state)
        rows = len(value)
        dropout = self.dropout if self.training else 0.0
        return sdpa(
            query.expand(rows, -1, -1, -1), key.expand(rows, -1, -1, -1), value, mask, dropout,
            is_causal=mask is None and query.shape[2] > 1, scale=self.scaling,
        )  # fmt: skip

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """As the module whose place it takes, without probabilities."""
        value = self.split("v", hidden_states).repeat_interleave(self.groups, 1)
        now = self.__dict__["seen"][1].now
        cache, state = now.cache, None
        if cache is not None and self.layer_idx in cache.maps:
            query, key, value = cache.fixed(self.layer_idx, now.places, value)
        else:
            query, key = self.query_key(hidden_states, *position_embeddings)
            state = None if cache is None else cache.sums(self.layer_idx)
            if cache is not None and state is None:
                key, value = cache.update(key, value, self.layer_idx)
        mixed = self.mix(query, key, value, attention_mask, state)
        return self.get_submodule("o_proj")(mixed.transpose(1, 2).flatten(2)), None


class NoMixing(nn.Module):
    """A gated MLP for each token, with as many weights as the attention whose place it takes.

    Args:
        attention: the module.
        width: of the model.
    """

    def __init__(self, attention: nn.Module, width: int) -> None:
        super().__init__()
        count = sum(p.numel() for p in attention.parameters())
        inner = max(1, round(count / (3 * width)))
        first = next(attention.parameters())
        kind: dict[str, Any] = {"device": first.device, "dtype": first.dtype}
        self.gate_proj = nn.Linear(width, inner, bias=False, **kind)
        self.up_proj = nn.Linear(width, inner, bias=False, **kind)
        self.down_proj = nn.Linear(inner, width, bias=False, **kind)
        self.__dict__["replaced"] = (attention,)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        """[B, N, width] to the same; all else is not looked at."""
        return self.down_proj(silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states)), None


def initialise(module: nn.Module, std: float, seed: int) -> None:
    """Normal weights, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * std)
