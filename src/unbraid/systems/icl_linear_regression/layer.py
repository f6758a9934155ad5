"""The layer with its K, Q, V and O, and the same circuits in torch's MultiheadAttention and in a Llama attention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError
from unbraid.systems.icl_linear_regression.circuits import Circuits
from unbraid.systems.icl_linear_regression.sampling import Batch, whole


class Attention(nn.Module):
    """One layer of softmax attention whose query does not see itself, in the shape of the paper's code.

    Head width is D = d + N; no bias, no positions, no norm; the output has the N predictions only.

    Args:
        dimension: d.
        heads: H.
        tasks: N.

    Raises:
        UnbraidError: a number is below 1.
    """

    def __init__(self, dimension: int = 5, heads: int = 2, tasks: int = 1) -> None:
        super().__init__()
        self.dimension, self.heads = whole("dimension", dimension), whole("heads", heads)
        self.tasks = whole("tasks", tasks)
        width = dimension + tasks
        self.q_proj = nn.Linear(width, heads * width, bias=False)
        self.k_proj = nn.Linear(width, heads * width, bias=False)
        self.v_proj = nn.Linear(width, heads * width, bias=False)
        self.o_proj = nn.Linear(heads * width, tasks, bias=False)

    @property
    def width(self) -> int:
        """D."""
        return self.dimension + self.tasks

    def forward(self, tokens: Tensor, query: Tensor) -> Tensor:
        """Predictions [B, N] from tokens [B, L, D] and queries [B, D], with keys and values of every token."""
        q, k, v = (
            proj(z).unflatten(-1, (self.heads, self.width)).transpose(-2, -3)
            for proj, z in ((self.q_proj, query[:, None]), (self.k_proj, tokens), (self.v_proj, tokens))
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.o_proj(mixed.transpose(-2, -3).flatten(-2))[:, 0]

    def predict(self, batch: Batch) -> Tensor:
        """[B, N]."""
        zeros = batch.query.new_zeros(batch.query.shape[0], self.tasks)
        return self(batch.tokens, torch.cat([batch.query, zeros], -1))


def attention_of(circuits: Circuits) -> Attention:
    """A layer with these circuits: K and V are the identity, Q is KQ, O is OV.

    Raises:
        UnbraidError: the circuits are not of softmax attention.
    """
    if circuits.activation != "softmax":
        raise UnbraidError(f"a layer with {circuits.activation} attention cannot be built; the circuits can be used.")
    made = Attention(circuits.dimension, circuits.heads, circuits.tasks).to(circuits.kq)
    eye = torch.eye(made.width).to(circuits.kq).repeat(circuits.heads, 1)
    with torch.no_grad():
        made.k_proj.weight.copy_(eye)
        made.v_proj.weight.copy_(eye)
        made.q_proj.weight.copy_(circuits.kq.flatten(0, 1) * math.sqrt(made.width))
        made.o_proj.weight.copy_(circuits.ov.transpose(0, 1).flatten(1))
    return made


def load_attention(state: Mapping[str, Any], tasks: int = 1) -> Attention:
    """A layer from the weights of a checkpoint, such as those that the paper's code saves.

    Args:
        state: names -> tensors that end in q_proj.weight, k_proj.weight, v_proj.weight and o_proj.weight, once each.
        tasks: N.

    Raises:
        UnbraidError: the checkpoint is of another architecture.
    """
    need = [f"{p}_proj.weight" for p in "qkvo"]
    found = {n: [w for key, w in state.items() if key == n or key.endswith(f".{n}")] for n in need}
    other = sorted(key for key in state if not any(key == n or key.endswith(f".{n}") for n in need))
    if any(len(ws) != 1 or not isinstance(ws[0], Tensor) or ws[0].dim() != 2 for ws in found.values()) or other:
        said = ", ".join([*other, *(f"{len(ws)} of {n}" for n, ws in found.items() if len(ws) != 1)]) or "other shapes"
        raise UnbraidError(
            f"the checkpoint is of another architecture ({said}); needed are the weights {', '.join(need)} of one "
            "layer without biases."
        )
    q, k, v, o = (found[n][0] for n in need)
    width, heads = q.shape[1], q.shape[0] // max(1, q.shape[1])
    shapes = [list(w.shape) for w in (q, k, v, o)]
    if shapes != [[heads * width, width]] * 3 + [[tasks, heads * width]] or width <= tasks or not heads:
        raise UnbraidError(
            f"the checkpoint is of another architecture: q, k, v and o have shapes {shapes}; needed are three times "
            f"[heads D, D] and [{tasks}, heads D]."
        )
    made = Attention(width - tasks, heads, tasks)
    made.load_state_dict({n: ws[0] for n, ws in found.items()})
    return made


def as_multihead(layer: Attention) -> tuple[nn.MultiheadAttention, Tensor, Tensor]:
    """The same layer as `torch.nn.MultiheadAttention`, whose embedding is H D wide.

    Call it with query z_q E' [B, 1, H D] and tokens Z E' [B, L, H D] as keys and values.

    Returns:
        The module; E [H D, D], which puts a token into its first D coordinates; R [N, H D], which reads the predictions
        in the output.
    """
    width, wide = layer.width, layer.heads * layer.width
    made = nn.MultiheadAttention(wide, layer.heads, bias=False, batch_first=True).to(layer.q_proj.weight)
    embed = torch.eye(wide, width).to(layer.q_proj.weight)
    read = torch.zeros(layer.tasks, wide).to(embed)
    read[:, layer.dimension : width] = torch.eye(layer.tasks).to(embed)
    with torch.no_grad():
        for part in (made.in_proj_weight, made.out_proj.weight):
            part.zero_()
        stacked = torch.cat([layer.q_proj.weight, layer.k_proj.weight, layer.v_proj.weight])
        made.in_proj_weight[:, :width] = stacked
        made.out_proj.weight[layer.dimension : width] = layer.o_proj.weight
    return made, embed, read


def as_llama(layer: Attention) -> tuple[nn.Module, Tensor, Tensor]:
    """The same layer as the attention of a Llama of transformers, whose hidden size is a multiple of H (it insists).

    Give it `no_positions` as position_embeddings, so that nothing is rotated, and `strict_mask` as attention_mask.

    Returns:
        The module; E [hidden size, D], which puts a token into its first D coordinates; R [N, hidden size], which reads
        the predictions in the output.
    """
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaAttention

    width, wide = layer.width, -(-layer.width // layer.heads) * layer.heads
    config: Any = LlamaConfig(
        hidden_size=wide, num_attention_heads=layer.heads, num_key_value_heads=layer.heads,
        head_dim=layer.width, attention_bias=False, num_hidden_layers=1, intermediate_size=1, vocab_size=1,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    config._attn_implementation = "eager"
    made: Any = LlamaAttention(config, 0)
    made.to(layer.q_proj.weight)
    with torch.no_grad():
        for name in ("q_proj", "k_proj", "v_proj"):
            made.get_submodule(name).weight.zero_()
            made.get_submodule(name).weight[:, :width] = layer.get_submodule(name).weight
        made.o_proj.weight.zero_()
        made.o_proj.weight[layer.dimension : width] = layer.o_proj.weight
    read = torch.zeros(layer.tasks, wide).to(layer.q_proj.weight)
    read[:, layer.dimension : width] = torch.eye(layer.tasks).to(read)
    return made.eval(), torch.eye(wide, width).to(read), read


def no_positions(layer: Attention, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B, L + 1, D] that rotate nothing, for embedded tokens [B, L + 1, hidden size]."""
    ones = tokens.new_ones(*tokens.shape[:-1], layer.width)
    return ones, torch.zeros_like(ones)


def strict_mask(length: int) -> Tensor:
    """[1, 1, L + 1, L + 1] to add to logits: causal, and the query in the last place does not see itself."""
    allowed = torch.ones(length + 1, length + 1).tril().bool()
    allowed[-1, -1] = False
    return torch.zeros(1, 1, length + 1, length + 1).masked_fill(~allowed, float("-inf"))
