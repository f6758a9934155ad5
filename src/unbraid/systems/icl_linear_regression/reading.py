"""Circuits read out of any attention layer: this one's, torch's MultiheadAttention, transformers', plain tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError
from unbraid.systems.icl_linear_regression.circuits import Circuits
from unbraid.systems.icl_linear_regression.layer import Attention

OUT = ("o_proj", "out_proj", "dense", "c_proj")


def read_circuits(
    layer: nn.Module | Circuits, labels: int | None = None, *, embed: Tensor | None = None, read: Tensor | None = None,
    heads: int | None = None, head_width: int | None = None, scale: float | None = None,
) -> Circuits:  # fmt: skip
    """The circuits of an attention layer in the coordinates (x; y) of its data.

    Only weights are read. What a model does beside them (positions, norms of queries and keys, logit caps) is not part
    of a circuit and must be absent or small for a report to describe the model.

    Args:
        layer: `Attention`, `torch.nn.MultiheadAttention`, or a layer with q_proj, k_proj, v_proj and o_proj (grouped
            keys are repeated), as most of transformers are; circuits are passed on.
        labels: N, the last coordinates of a token; None: `Attention` knows, else 1.
        embed: [E, D] puts a token of the data into the layer's space; None: they are the same.
        read: [N, E] reads the predictions in the layer's output; None: its last N coordinates.
        heads: number of heads, where the layer does not say.
        head_width: of each head, where the layer does not say.
        scale: of the logits; None: the layer's, else 1 / sqrt(head width).

    Raises:
        UnbraidError: the layer has none of these forms, has biases, or shapes do not fit.
    """
    if isinstance(layer, Circuits):
        return layer
    if not isinstance(layer, nn.Module):
        raise UnbraidError(
            f"circuits are read from an attention layer (a torch.nn.Module), not a {type(layer).__name__}."
        )
    if isinstance(layer, Attention):
        count, own = layer.heads, layer.tasks
        w = [p.weight.detach() for p in (layer.q_proj, layer.k_proj, layer.v_proj)]
        factors = [m.unflatten(0, (count, -1)).transpose(1, 2) for m in w]
        out = layer.o_proj.weight.detach().unflatten(1, (count, -1)).permute(1, 2, 0)
        given = torch.eye(own).to(out) if read is None else read
        return per_head(factors[0], factors[1], factors[2], out, labels=own, embed=embed, read=given, scale=scale)
    if isinstance(layer, nn.MultiheadAttention):
        q, k, v, o, count, repeats = *_multihead(layer), layer.num_heads, 1
    else:
        q, k, v, o, count, repeats, own_scale = _projections(layer, heads, head_width)
        scale = own_scale if scale is None else scale
    w_q = q.unflatten(0, (count, -1)).transpose(1, 2)
    w_k, w_v = (w.unflatten(0, (count // repeats, -1)).transpose(1, 2).repeat_interleave(repeats, 0) for w in (k, v))
    w_o = o.unflatten(1, (count, -1)).permute(1, 2, 0)
    return per_head(w_q, w_k, w_v, w_o, labels=labels or 1, embed=embed, read=read, scale=scale)


def per_head(
    w_q: Tensor, w_k: Tensor, w_v: Tensor, w_o: Tensor, *, labels: int = 1, embed: Tensor | None = None,
    read: Tensor | None = None, scale: float | None = None,
) -> Circuits:  # fmt: skip
    """Circuits from weights per head in the convention of TransformerLens.

    Args:
        w_q: [H, E, head width].
        w_k: [H, E, head width].
        w_v: [H, E, head width].
        w_o: [H, head width, E].
        labels: N.
        embed: [E, D]; see `read_circuits`.
        read: [N, E].
        scale: of the logits; None: 1 / sqrt(head width).

    Raises:
        UnbraidError: shapes do not fit.
    """
    shapes = [list(w.shape) for w in (w_q, w_k, w_v, w_o)]
    wide, out = w_q.shape[1] if w_q.dim() == 3 else 0, w_o.shape[-1]
    fits = w_q.dim() == 3 and shapes[0] == shapes[1] and shapes[2][:2] == shapes[0][:2] and w_o.dim() == 3
    if not fits or shapes[3][:2] != [shapes[2][0], shapes[2][2]]:
        raise UnbraidError(
            f"W_Q, W_K, W_V and W_O have shapes {shapes}; they must be three times [heads, E, width] and "
            "[heads, width, E]."
        )
    kq = w_k @ w_q.transpose(1, 2) * (w_q.shape[2] ** -0.5 if scale is None else scale)
    ov = (w_v @ w_o).transpose(1, 2)
    if read is None and labels >= out:
        raise UnbraidError(
            f"labels is {labels}, but the layer writes {out} numbers; say which of them are predictions."
        )
    reader = torch.eye(out)[out - labels :].to(ov) if read is None else read.to(ov)
    if reader.dim() != 2 or reader.shape[1] != out:
        raise UnbraidError(
            f"read has shape {list(reader.shape)}; the layer writes {out} numbers: give [labels, {out}]."
        )
    ov = reader @ ov
    if embed is not None:
        if embed.dim() != 2 or embed.shape[0] != wide:
            raise UnbraidError(
                f"embed has shape {list(embed.shape)}; the layer reads {wide} numbers: give [{wide}, D]."
            )
        kq, ov = embed.to(kq).T @ kq @ embed.to(kq), ov @ embed.to(kq)
    return Circuits(kq, ov)


def _multihead(layer: nn.MultiheadAttention) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if layer.in_proj_weight is None:
        raise UnbraidError("this MultiheadAttention has keys or values of another width than its queries (kdim, vdim).")
    _no_bias("MultiheadAttention", layer.in_proj_bias, layer.out_proj.bias, layer.bias_k, layer.bias_v)
    q, k, v = layer.in_proj_weight.detach().chunk(3)
    return q, k, v, layer.out_proj.weight.detach()


def _projections(layer: nn.Module, heads: int | None, head_width: int | None) -> tuple[Any, ...]:
    name, parts, own = type(layer).__name__, dict(layer.named_children()), vars(layer)
    out = next((parts[p] for p in OUT if p in parts), None)
    three = [parts.get(f"{p}_proj") for p in "qkv"]
    if out is None or any(not isinstance(p, nn.Linear) for p in [*three, out]):
        raise UnbraidError(
            f"{name} has no linear q_proj, k_proj, v_proj and o_proj (it has {', '.join(parts) or 'no parts'}); give "
            "one attention layer, or its weights to per_head."
        )
    linear: list[Any] = [*three, out]
    _no_bias(name, *(p.bias for p in linear))
    q, k, v, o = (p.weight.detach() for p in linear)
    said = vars(own["config"]) if "config" in own else {}
    count = heads or own.get("num_heads") or said.get("num_attention_heads")
    width = head_width or own.get("head_dim") or (q.shape[0] // count if count else None)
    if not width or q.shape[0] % width or k.shape[0] % width or k.shape != v.shape:
        raise UnbraidError(f"{name} does not say how many heads it has; give heads= or head_width=.")
    count = q.shape[0] // width
    repeats = count // (k.shape[0] // width)
    return q, k, v, o, count, repeats, own.get("scaling")


def _no_bias(name: str, *biases: Any) -> None:
    if any(b is not None and bool(torch.as_tensor(b).detach().abs().max() > 0) for b in biases):
        raise UnbraidError(f"{name} has biases, which circuits cannot hold; set them to zero, or train without.")
