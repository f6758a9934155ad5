"""No-op and implicit bias (survey 4.1 and 4.3): what is lost without a sink's attention, and without its write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.core.attach import attach
from unbraid.core.calls import AttentionCall, Tap
from unbraid.core.errors import UnbraidError
from unbraid.systems.attention_sinks.detection.findings import feed
from unbraid.systems.attention_sinks.detection.layout import Layout, layout_for, layouts
from unbraid.systems.attention_sinks.steering.mass_edits import SinkEdit, scale_sinks
from unbraid.systems.attention_sinks.steering.parts import FLOOR, marked, mass_and_write
from unbraid.taps.edit_base import Keys


class DropWrite(SinkEdit):
    """Takes the sinks' write out of the heads' outputs, attention left as it is.

    Args:
        sinks: their keys.
        mean: site -> [H, V], put in its place: the sinks' mean write.
        average: take out as much mass of the other keys' mean value instead (the control).
        start: first query that is edited, per text.
    """

    def __init__(
        self,
        sinks: Keys,
        mean: Mapping[str, Tensor] | None = None,
        average: bool = False,
        start: int | Tensor = 0,
    ) -> None:
        super().__init__(None, 1.0)
        self.sinks, self.mean, self.average, self.start = sinks, mean, average, start

    def changed(self, c: AttentionCall, y: Tensor) -> tuple[Tensor, Tensor]:
        """o - o_S (+ its mean), or o - m times the mean of the others."""
        mass, write = mass_and_write(c, marked(self.sinks, c))
        fine = torch.ones_like(mass, dtype=torch.bool)
        if self.average:
            rest = 1 - mass
            return y - (mass / rest.clamp(min=FLOOR))[..., None] * (y - write), rest >= FLOOR
        new = y - write
        if self.mean is not None:
            new = new + self.mean[c.site].to(new)[None, :, None]
        return new, fine


class MeanWrite(Tap):
    """The mean over tokens of what the sinks write, site -> [H, V]: the bias that they amount to."""

    def __init__(self, sinks: Keys, known: list[Layout], start: int) -> None:
        self.sinks, self.known, self.start = sinks, known, start
        self.mean: dict[str, Tensor] = {}

    def out(self, c: AttentionCall, y: Tensor) -> None:
        """Averages; changes nothing."""
        _, write = mass_and_write(c, marked(self.sinks, c))
        valid = layout_for(self.known, c.batch, c.queries, c.device).valid
        weight = (valid & (valid.cumsum(-1) > self.start))[:, None, :, None].to(write)
        self.mean[c.site] = (write * weight).sum((0, 2)) / weight.sum()


def next_token_loss(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Mean loss of the next token of each text [B], padding left aside.

    Raises:
        UnbraidError: there is no input_ids, or the model gives no logits.
    """
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.shape[1] < 2:
        raise UnbraidError("this probe needs input_ids [batch, tokens] with at least 2 tokens.")
    valid = layouts(inputs)[0].valid
    with torch.no_grad():
        output = feed(model, inputs, logits=True)
    if "logits" not in output or output.logits.shape[:2] != ids.shape:
        raise UnbraidError(f"{type(model).__name__} predicts no next token; load it with AutoModelForCausalLM.")
    losses = torch.nn.functional.cross_entropy(
        output.logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    ).view(len(ids), -1)
    weight = (valid[:, 1:] & valid[:, :-1]).to(losses)
    return (losses * weight).sum(1) / weight.sum(1).clamp(min=1)


def begin(inputs: Mapping[str, Any], start: int) -> Tensor:
    """[B] place of the query from which on a probe edits: `start` tokens after the first of each text.

    Raises:
        UnbraidError: the texts end before it.
    """
    known = layouts(inputs)
    if not known or start < 1 or start >= int(known[0].valid.sum(-1).min()):
        raise UnbraidError(f"start is {start}; it must be at least 1, and texts (input_ids) longer than that.")
    return known[0].valid.to(torch.uint8).argmax(-1) + start


def noop_probe(model: nn.Module, inputs: Mapping[str, Any], sinks: Keys = (0,), start: int = 4) -> list[dict[str, Any]]:
    """What the model loses without the sinks' write, without their attention, and without as much of the others'.

    A no-op predicts: the write can go, the attention cannot. The first few queries are left as they are: without
    them the sink itself would change, and hidden from all queries the first token is merely replaced by the
    second, which the last condition shows.

    Args:
        model: a decoder language model.
        inputs: of the model, with input_ids.
        sinks: their keys; `first_tokens(attention_mask)` for padded texts.
        start: tokens of each text that are left as they are.

    Returns:
        One row per condition, with the loss of each text under "losses".
    """
    first = begin(inputs, start)
    conditions: list[tuple[str, list[Tap]]] = [
        ("as it is", []),
        ("sinks write nothing", [DropWrite(sinks, start=first)]),
        ("the others write as much less (control)", [DropWrite(sinks, average=True, start=first)]),
        ("sinks get no attention", [scale_sinks(0.0, sinks, start=first)]),
        ("sinks get no attention, not even from the first queries", [scale_sinks(0.0, sinks)]),
    ]
    return [under_taps(model, inputs, name, taps) for name, taps in conditions]


def bias_probe(
    model: nn.Module,
    inputs: Mapping[str, Any],
    calibration: Mapping[str, Any],
    sinks: Keys = (0,),
    start: int = 4,
) -> list[dict[str, Any]]:
    """Takes the sinks' write away and puts its mean over other texts back: a bias would be made good by that.

    Args:
        model: a decoder language model.
        inputs: of the model, with input_ids.
        calibration: other texts, of which the mean is taken.
        sinks: their keys.
        start: tokens of each text that are left as they are, and left out of the mean.

    Returns:
        One row per condition, with the loss of each text under "losses".
    """
    first = begin(inputs, start)
    begin(calibration, start)
    watch = MeanWrite(sinks, layouts(calibration), start)
    with torch.no_grad(), attach(model, watch):
        feed(model, calibration)
    wrong = {site: -x for site, x in watch.mean.items()}
    conditions: list[tuple[str, list[Tap]]] = [
        ("as it is", []),
        ("sinks write nothing", [DropWrite(sinks, start=first)]),
        ("the mean of what they write instead", [DropWrite(sinks, watch.mean, start=first)]),
        ("minus that mean instead (control)", [DropWrite(sinks, wrong, start=first)]),
    ]
    return [under_taps(model, inputs, name, taps) for name, taps in conditions]


def under_taps(model: nn.Module, inputs: Mapping[str, Any], name: str, taps: list[Tap]) -> dict[str, Any]:
    """The losses of a condition."""
    with attach(model, *taps):
        losses = next_token_loss(model, inputs)
    return {"condition": name, "loss": float(losses.mean()), "losses": losses.tolist()}
