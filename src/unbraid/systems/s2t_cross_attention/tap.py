"""Cross-attention of chosen decoder rows, read through `attach` while the model keeps its fused kernels.

Only the rows of the hypothesis are computed densely (tokens x encoder states per head); everything else, the encoder's
self-attention first of all, runs as it always does, so no model is switched to eager attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from unbraid.core.attach import attach
from unbraid.core.calls import Answer, Ask, AttentionCall, Tap
from unbraid.core.errors import UnbraidError

if TYPE_CHECKING:
    from unbraid.systems.s2t_cross_attention.listener import Listener

OUT_NAMES = ("out_proj", "o_proj", "out", "dense", "o", "wo", "to_out", "fc_out", "linear_out")


class CrossAttention(Tap):
    """Keeps rows of every cross-attention, and on request what Kobayashi et al. (2020) weigh them by.

    Args:
        rows: decoder rows to keep; None keeps every row, and appends call by call (for decoding step by step).
        norms: also keep the norms of the transformed values, per head and of all heads of a layer together.
        gradients: also keep head outputs and values, for attention x gradient.

    Attributes:
        maps: site -> [batch, heads, rows, states].
        head_norms: site -> [heads, rows, states], alpha * |v W_O|.
        layer_norms: site -> [rows, states], |sum over heads of alpha v W_O|.
    """

    def __init__(self, rows: Sequence[int] | None = None, norms: bool = False, gradients: bool = False) -> None:
        self.positions, self.norms, self.gradients = rows, norms, gradients
        self.maps: dict[str, Tensor] = {}
        self.head_norms: dict[str, Tensor] = {}
        self.layer_norms: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.values: dict[str, Tensor] = {}

    def wants(self, c: AttentionCall) -> bool:
        """Cross-attention only."""
        return c.kind == "cross"

    def ask(self, c: AttentionCall) -> Ask:
        """The rows of the hypothesis."""
        at = range(c.queries) if self.positions is None else self.positions
        return Ask(rows=torch.tensor(list(at), device=c.device))

    def take(self, c: AttentionCall, answer: Answer) -> None:
        """Keeps them, with their norms."""
        assert answer.rows is not None
        p = answer.rows.detach()
        if self.positions is None and c.site in self.maps:
            p = torch.cat([self.maps[c.site], p], 2)
        self.maps[c.site] = p
        if self.norms and c.value is not None:
            self.head_norms[c.site], self.layer_norms[c.site] = value_norms(c, answer.rows[0])

    def out(self, c: AttentionCall, y: Tensor) -> None:
        """Keeps head outputs in the graph where gradients are wanted; changes nothing."""
        if self.gradients:
            self.outputs[c.site], self.values[c.site] = y, c.expand(c.value).detach()


def value_norms(c: AttentionCall, p: Tensor) -> tuple[Tensor, Tensor]:
    """Norm-weighted attention of one utterance.

    Reference: Kobayashi et al., "Attention is not only a weight" (arXiv 2004.10102).

    Args:
        c: the call.
        p: [H, r, K] attention of the first batch row.

    Returns:
        [H, r, K] alpha * |v W_O| and [r, K] |sum_h alpha v W_O|.
    """
    assert c.module is not None
    weight = output_projection(c.module).weight.detach().float()  # [D, H * V]
    values = c.expand(c.value)[0].detach().float()  # [H, K, V]
    own = weight.shape[1] // values.shape[0]  # some models pad the head width for their kernel
    split = weight.view(weight.shape[0], values.shape[0], own)
    moved = torch.einsum("hkv,dhv->hkd", values[..., :own], split)  # [H, K, D]
    heads = p * moved.norm(dim=-1)[:, None, :]
    joint = torch.stack([torch.einsum("hk,hkd->kd", p[:, r], moved).norm(dim=-1) for r in range(p.shape[1])])
    return heads, joint


def output_projection(module: nn.Module) -> nn.Linear:
    """The last projection of an attention module.

    Raises:
        UnbraidError: none is found under a known name.
    """
    for name, child in module.named_children():
        if name in OUT_NAMES and isinstance(child, nn.Linear):
            return child
    raise UnbraidError(
        f"{type(module).__name__} has no output projection under a known name, so its attention cannot be weighted by "
        "norms; ask for norms=False."
    )


@dataclass(eq=False)
class Captured:
    """Cross-attention of one utterance under teacher forcing.

    Attributes:
        sites: names of the cross-attentions in order of execution.
        maps: [L, H, I, T'] attention.
        log_probs: [I] log-probability of each token.
        head_norms: [L, H, I, T'] norm-weighted attention, or None.
        layer_norms: [L, I, T'] the same of all heads of a layer together, or None.
        gradients: [L, H, I, T'] attention x gradient of the summed log-probability (its positive part), or None.
    """

    sites: list[str]
    maps: Tensor
    log_probs: Tensor
    head_norms: Tensor | None = None
    layer_norms: Tensor | None = None
    gradients: Tensor | None = None
    report: dict[str, object] = field(default_factory=dict)


def capture(
    listener: Listener, states: Tensor, ids: Sequence[int], norms: bool = False, gradients: bool = False
) -> Captured:
    """Cross-attention of the tokens `ids`, one forced pass, with the model's own kernels.

    Args:
        listener: the model.
        states: [1, T', D] encoder states.
        ids: tokens without prefix.
        norms: also norm-weighted attention.
        gradients: also attention x gradient; costs one backward pass of the decoder.

    Raises:
        UnbraidError: the model has no cross-attention.
    """
    inputs, rows, tokens = listener.forced(ids)
    tap = CrossAttention(list(rows), norms, gradients)
    source = states.detach().clone().requires_grad_(gradients)
    with torch.set_grad_enabled(gradients), attach(listener.model, tap) as session:
        logits = listener.logits(source, inputs)[0, rows.start : rows.stop]
        scores = logits.float().log_softmax(-1)[torch.arange(len(ids)), tokens]
    if not tap.maps:
        raise UnbraidError(
            f"{type(listener.model).__name__} has no cross-attention: its decoder never looks at the encoder's states; "
            "give an encoder-decoder speech model such as WhisperForConditionalGeneration."
        )
    sites = [name for name in session.sites if name in tap.maps]
    found = Captured(sites, stacked(tap.maps, sites), scores.detach().cpu(), report=session.report())
    if norms:
        found.head_norms = torch.stack([tap.head_norms[s] for s in sites]).cpu()
        found.layer_norms = torch.stack([tap.layer_norms[s] for s in sites]).cpu()
    if gradients:
        found.gradients = attention_gradient(tap, sites, scores, rows)
    return found


def stacked(maps: dict[str, Tensor], sites: list[str]) -> Tensor:
    """[L, H, I, T'] of the first batch row; layers with fewer heads are filled with NaN."""
    most = max(maps[s].shape[1] for s in sites)
    whole = [torch.nn.functional.pad(maps[s][0].float(), (0, 0, 0, 0, 0, most - maps[s].shape[1]), value=torch.nan)
             for s in sites]  # fmt: skip
    return torch.stack(whole).cpu()


def attention_gradient(tap: CrossAttention, sites: list[str], scores: Tensor, rows: range) -> Tensor:
    """[L, H, I, T'] alpha times the gradient of the summed log-probability towards alpha, negative parts cut off.

    The gradient towards attention alpha[i, j] is that towards the head's output at row i, times the value at j.
    """
    outputs = [tap.outputs[s] for s in sites]
    with torch.enable_grad():
        towards = torch.autograd.grad(scores.sum(), outputs)
    parts = []
    for site, g in zip(sites, towards, strict=True):
        slope = torch.einsum("hiv,hjv->hij", g[0, :, rows.start : rows.stop].float(), tap.values[site][0].float())
        parts.append((tap.maps[site][0] * slope).clamp(min=0).detach())
    return torch.stack(parts).cpu()
