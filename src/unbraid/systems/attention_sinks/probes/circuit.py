"""The outlier circuit (survey 4.2): neurons -> a column of the down-projection -> a massive channel -> aligned keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbraid.core.attach import attach
from unbraid.core.blocks import Block, blocks, listening, residual, with_residual
from unbraid.core.calls import AttentionCall, Tap
from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores
from unbraid.systems.attention_sinks.detection.findings import SinkReport, feed, report
from unbraid.systems.attention_sinks.detection.layout import layout_for, layouts
from unbraid.systems.attention_sinks.probes.causes import next_token_loss


@dataclass
class Circuit:
    """One massive activation traced.

    Attributes:
        token: its place from the first token of the text.
        channel: of the residual stream.
        value: largest over blocks.
        block: whose MLP writes it first.
        neurons: (neuron, activation, share of the channel's write), strongest first.
        alignment: site -> per head, mean cosine of queries with the sink's key minus that with the other keys.
        zeroed: one row per condition: sink rate, first-token share, loss, with the channel set to zero from that block
            on and, as control, with other channels.
    """

    token: int
    channel: int
    value: float
    block: int
    neurons: list[tuple[int, float, float]]
    alignment: HeadScores
    zeroed: list[dict[str, Any]]


class Alignment(Tap):
    """Cosines of queries with the first key and with all others, per head; reads queries and keys only."""

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        self.known = layouts(inputs)
        self.found: dict[str, Tensor] = {}

    def ask(self, c: AttentionCall) -> None:
        """Reads; asks nothing."""
        if c.query is None:
            return
        tokens = layout_for(self.known, c.batch, c.keys, c.device)
        asking = layout_for(self.known, c.batch, c.queries, c.device).valid[:, None, :, None]
        query = (F.normalize(c.query.float(), dim=-1) * asking).sum(2) / asking.sum(2)
        key = F.normalize(c.expand(c.key).float(), dim=-1)
        cosine = torch.einsum("bhd,bhkd->bhk", query, key)
        first, others = tokens.first[:, None].float(), (tokens.valid & ~tokens.first)[:, None].float()

        def mean(w: Tensor) -> Tensor:
            return (cosine * w).sum(-1) / w.sum(-1).clamp(min=1)

        self.found[c.site] = (mean(first) - mean(others)).mean(0).cpu()

    def take(self, c: AttentionCall, answer: object) -> None:
        """Never asked."""


def outlier_circuit(
    model: nn.Module,
    inputs: Mapping[str, Any],
    found: SinkReport | None = None,
    neurons: int = 5,
    controls: int = 5,
    seed: int = 0,
) -> Circuit:
    """Traces the largest massive activation to the neurons that write it, and takes its channel away.

    Args:
        model: a decoder language model.
        inputs: of the model, with input_ids.
        found: a report on the same inputs; None makes one.
        neurons: how many to name.
        controls: other channels that are zeroed for comparison.
        seed: of these channels.

    Raises:
        UnbraidError: the model has no massive activation on this text.
    """
    found = report(model, inputs) if found is None else found
    if not found.massive:
        raise UnbraidError(
            f"{type(model).__name__} has no massive activation on this text (none above 100 and 1,000 times the "
            "median); lower floor= and ratio= of report, and pass its result as found=."
        )
    stack = blocks(model)
    top = max(found.massive, key=lambda m: abs(m["value"]))
    token, channel = top["token"], top["channel"]
    same = [m for m in found.massive if m["channel"] == channel and m["token"] == token]
    born = min(m["layer"] for m in same)
    width = hidden_width(model, inputs, stack[born])
    generator = torch.Generator().manual_seed(seed)
    others = [int(x) for x in torch.randperm(width, generator=generator)[: controls + 1] if int(x) != channel]
    rows = [zeroing(model, inputs, stack, born, [], "as it is")]
    rows.append(zeroing(model, inputs, stack, born, [channel], f"channel {channel} zeroed"))
    rows += [zeroing(model, inputs, stack, born, [x], f"channel {x} zeroed (control)") for x in others[:controls]]
    tap = Alignment(inputs)
    with torch.no_grad(), attach(model, tap):
        feed(model, inputs)
    writers = writing_neurons(model, inputs, stack[born], int(top["text"]), token, channel, neurons)
    aligned = HeadScores({s: x.numpy() for s, x in tap.found.items()}, "alignment with the sink's key")
    return Circuit(token, channel, float(top["value"]), born, writers, aligned, rows)


def hidden_width(model: nn.Module, inputs: Mapping[str, Any], block: Block) -> int:
    """Width of the residual stream."""
    seen: list[int] = []
    with torch.no_grad(), listening({block.module: lambda m, a, k, out: seen.append(residual(out).shape[-1])}):
        feed(model, inputs)
    return seen[0]


def zero_channels(stack: list[Block], start: int, channels: list[int]) -> dict[nn.Module, Callable[..., Any]]:
    """Hooks that hold channels of the residual stream at zero after block `start` and all later ones."""

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        h = residual(output).clone()
        h[..., channels] = 0.0
        return with_residual(output, h)

    return {block.module: hook for block in stack[start:]} if channels else {}


def zeroing(
    model: nn.Module, inputs: Mapping[str, Any], stack: list[Block], start: int, channels: list[int], name: str
) -> dict[str, Any]:
    """Sink rate, first-token share and loss with channels held at zero."""
    with listening(zero_channels(stack, start, channels)):
        found = report(model, inputs)
        loss = float(next_token_loss(model, inputs).mean())
    behind = {block.site for block in stack[start + 1 :]}
    late = [x.ravel() for site, x in found.samples.items() if site in behind]
    return {
        "condition": name, "sink rate": found.sink_rate(),
        "sink rate behind the block": float((np.concatenate(late) > found.epsilon).mean()) if late else None,
        "first-token share": found.first_token_share, "loss": loss,
    }  # fmt: skip


def writing_neurons(
    model: nn.Module, inputs: Mapping[str, Any], block: Block, text: int, token: int, channel: int, most: int
) -> list[tuple[int, float, float]]:
    """Neurons of a block's MLP by what they write to a channel at a token: (neuron, activation, share)."""
    if block.down is None:
        return []
    known = layouts(inputs)
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
        seen.append(args[0].detach())

    with torch.no_grad(), listening(before={block.down: keep}):
        feed(model, inputs)
    batch = known[0].valid.shape
    first = int(known[0].first[text].to(torch.uint8).argmax())
    a = seen[0].reshape(*batch, -1)[text, first + token].clone().requires_grad_(True)
    with torch.enable_grad():
        (column,) = torch.autograd.grad(block.down(a[None])[0, channel], a)
    writes = (column * a).detach().float()
    order = writes.abs().argsort(descending=True)[:most]
    total, a = float(writes.sum()), a.detach()
    return [(int(n), float(a[n]), float(writes[n]) / total if total else 0.0) for n in order]
