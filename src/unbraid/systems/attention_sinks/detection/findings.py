"""`SinkReport` and `report`: all ten metrics of a model on given texts."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from unbraid.core.attach import attach
from unbraid.core.blocks import Block, blocks, listening
from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores
from unbraid.systems.attention_sinks.detection import metrics
from unbraid.systems.attention_sinks.detection.collect import SinkTap, StreamWatch
from unbraid.systems.attention_sinks.detection.layout import layouts


@dataclass
class SinkReport:
    """Ten metrics of one model; numbers per head are `HeadScores`, averaged over texts.

    Attributes:
        alpha: metric 2, mean attention on the first token from the queries that see it.
        samples: site -> [texts, H], the same per text.
        first_share: metric 3 per head, share of all attention that goes to the first token.
        mass: attention on the chosen sink set.
        value_ratio: metric 5, norm of the sinks' values over the median.
        write: metric 5, what the sinks write over what the head writes.
        constancy: metric 6 (NaN where nothing was written).
        sink_key: metric 7, distinctiveness of the sinks' keys.
        other_keys: metric 7, mean distinctiveness of the others.
        key_rank: metric 7, rank correlation of distinctiveness with received attention (texts without padding).
        tokens: metric 1, one dict per key above the threshold: text, token, layer, times the average.
        massive: metric 4, one dict per massive activation: layer, text, token, channel, value.
        layers: metrics 3, 4, 8 per block.
        experts: metric 10, one dict per super expert; None for a model without experts.
        texts: how many texts.
        length: tokens of the longest.
        epsilon: of the sink rate.
    """

    alpha: HeadScores
    samples: dict[str, np.ndarray]
    first_share: HeadScores
    mass: HeadScores
    value_ratio: HeadScores | None
    write: HeadScores | None
    constancy: HeadScores | None
    sink_key: HeadScores | None
    other_keys: HeadScores | None
    key_rank: HeadScores | None
    tokens: list[dict[str, Any]]
    massive: list[dict[str, Any]]
    layers: list[dict[str, Any]]
    experts: list[dict[str, Any]] | None
    texts: int
    length: int
    epsilon: float = 0.3
    profile: dict[str, np.ndarray] = field(default_factory=dict)

    def sink_rate(self, epsilon: float | None = None) -> float:
        """Sink^epsilon: share of (layer, head, text) whose attention on the first token exceeds epsilon."""
        limit = self.epsilon if epsilon is None else epsilon
        return float((np.concatenate([x.ravel() for x in self.samples.values()]) > limit).mean())

    def rate_per_text(self, epsilon: float | None = None) -> np.ndarray:
        """The same for each text, [texts]."""
        limit = self.epsilon if epsilon is None else epsilon
        return (np.concatenate(list(self.samples.values()), 1) > limit).mean(1)

    @property
    def first_token_share(self) -> float:
        """Metric 3 over all layers and heads."""
        return float(np.nanmean(np.concatenate(list(self.first_share.scores.values()))))

    @property
    def lifecycle(self) -> dict[str, int | None]:
        """Metric 9: layers between which massive activations live."""
        return metrics.lifecycle(sorted({m["layer"] for m in self.massive}), len(self.layers))

    def summary(self) -> dict[str, Any]:
        """The ten metrics in a line each."""

        def mean(x: HeadScores | None) -> float | None:
            return None if x is None else float(np.nanmean(np.concatenate(list(x.scores.values()))))

        largest = max((abs(m["value"]) for m in self.massive), default=0.0)
        return {
            "1 keys above the threshold": len(self.tokens),
            f"2 sink rate at {self.epsilon:g}": self.sink_rate(),
            "3 first-token share": self.first_token_share,
            "4 massive activations": len(self.massive), "4 largest": largest,
            "5 value norm of sinks / median": mean(self.value_ratio), "5 sink write / head write": mean(self.write),
            "6 bias constancy": mean(self.constancy),
            "7 key distinctiveness, sinks": mean(self.sink_key), "7 others": mean(self.other_keys),
            "7 rank correlation with attention": mean(self.key_rank),
            "8 kurtosis, largest of a layer": max((r["kurtosis"] for r in self.layers), default=None),
            "9 emerges at block": self.lifecycle["emerges"], "9 last block": self.lifecycle["last"],
            "10 super experts": None if self.experts is None else len(self.experts),
        }  # fmt: skip


def report(
    model: nn.Module,
    inputs: Mapping[str, Any] | Iterable[Mapping[str, Any]],
    *,
    sinks: Sequence[int] = (0,),
    epsilon: float = 0.3,
    tau: float = 20.0,
    floor: float = 100.0,
    ratio: float = 1_000.0,
    memory: int | None = None,
) -> SinkReport:
    """All ten metrics from one forward pass per batch; memory stays linear in the length of the text.

    Args:
        model: any model whose attention can be tapped: decoder, encoder, vision, encoder-decoder.
        inputs: keyword arguments of the model, or several such batches. Left or right padding is read from
            attention_mask, packed texts from position_ids that start anew.
        sinks: the sink set of metrics 5 to 7, as positions from the first token of each text.
        epsilon: a head has a sink when its mean attention on the first token exceeds this.
        tau: metric 1 counts keys that get this many times the average.
        floor: smallest massive activation.
        ratio: a massive activation exceeds this multiple of the median magnitude of its layer.
        memory: bytes that attention statistics may use at one site.

    Raises:
        UnbraidError: there is no text, an option is out of range, or the model's attention cannot be tapped.

    Example:
        >>> found = report(model, tokenizer("Once upon a time there was a fox.", return_tensors="pt"))
        >>> found.sink_rate(0.3), found.first_token_share, found.lifecycle
    """
    checked = check(sinks, epsilon, tau)
    batches = [inputs] if isinstance(inputs, Mapping) else inputs
    known = stack(model)
    outputs = {block.site: block.out for block in known if block.out is not None}
    gathered: list[tuple[SinkTap, StreamWatch]] = []
    for batch in batches:
        tokens = layouts(batch)
        longest = max((x.valid.shape[1] for x in tokens), default=None)
        if longest is not None and max(checked) >= longest:
            raise UnbraidError(f"sinks names position {max(checked)}, but the text has {longest} tokens.")
        tap, watch = SinkTap(tokens, outputs, checked), StreamWatch(known, tokens, floor, ratio)
        with torch.no_grad(), attach(model, tap, memory=memory), listening(watch.after(), before=watch.before(model)):
            feed(model, batch)
        gathered.append((tap, watch))
    if not gathered:
        raise UnbraidError("report needs at least one batch of inputs; the list is empty.")
    return join(gathered, epsilon, tau)


def check(sinks: Sequence[int], epsilon: float, tau: float) -> tuple[int, ...]:
    """The sink positions, after all options were looked at."""
    if not sinks or min(sinks) < 0:
        raise UnbraidError(f"sinks needs positions from 0, such as (0,) or (0, 1, 2, 3), not {list(sinks)}.")
    if not 0 < epsilon < 1:
        raise UnbraidError(f"epsilon is {epsilon}; a share of attention lies between 0 and 1.")
    if tau <= 0:
        raise UnbraidError(f"tau is {tau}; it must be above 0.")
    return tuple(int(k) for k in sinks)


def stack(model: nn.Module) -> list[Block]:
    """The model's blocks, or none where it is no stack of layers (then metrics 4, 8 and 9 are left out)."""
    try:
        return blocks(model)
    except UnbraidError:
        return []


def feed(model: nn.Module, inputs: Mapping[str, Any], logits: bool = False) -> Any:
    """One pass; without a cache where the model has one, because packed texts are only told apart without it.

    Args:
        model: any model.
        inputs: its keyword arguments.
        logits: whether somebody looks at the logits; those of a long text are larger than all else.
    """
    given, accepted = dict(inputs), inspect.signature(model.forward).parameters
    if "use_cache" in accepted:
        given.setdefault("use_cache", False)
    if "logits_to_keep" in accepted and not logits:
        given.setdefault("logits_to_keep", 1)
    return model(**given)


def join(gathered: list[tuple[SinkTap, StreamWatch]], epsilon: float, tau: float) -> SinkReport:
    """One report from all batches."""
    sites = list(gathered[0][0].per_head)
    if not sites:
        raise UnbraidError("no attention was met; see attach for what to change.")

    def table(name: str, label: str) -> HeadScores | None:
        rows = {
            s: np.concatenate([x.numpy() for tap, _ in gathered for x in tap.per_head[s].get(name, [])])
            for s in sites
            if any(name in tap.per_head[s] for tap, _ in gathered)
        }
        if not rows:
            return None
        with np.errstate(all="ignore"):
            return HeadScores({s: nan_mean(x) for s, x in rows.items()}, label)

    samples = {s: np.concatenate([x.numpy() for tap, _ in gathered for x in tap.per_head[s]["alpha"]]) for s in sites}
    alpha, first, mass = (table(n, n) for n in ("alpha", "first", "mass"))
    assert alpha is not None
    assert first is not None
    assert mass is not None
    alpha.name, first.name, mass.name = "sink metric", "first-token share", "mass on the sinks"
    return SinkReport(
        alpha=alpha, samples=samples, first_share=first, mass=mass, value_ratio=table("value ratio", "value ratio"),
        write=table("write", "sink write"), constancy=table("constancy", "bias constancy"),
        sink_key=table("sink key", "distinctiveness"), other_keys=table("other keys", "distinctiveness"),
        key_rank=table("key rank", "rank correlation"), tokens=received_tokens(gathered, sites, tau),
        massive=massive_rows(gathered),
        layers=layer_rows(gathered), experts=expert_rows(gathered),
        texts=len(next(iter(samples.values()))),
        length=max(x.shape[-1] for tap, _ in gathered for rows in tap.profile.values() for x in rows),
        epsilon=epsilon, profile={s: gathered[0][0].profile[s][0][0].numpy() for s in sites},
    )  # fmt: skip


def nan_mean(x: np.ndarray) -> np.ndarray:
    """Mean over texts [N, H] -> [H]; NaN where all are."""
    known = np.isfinite(x)
    total = np.where(known, x, 0).sum(0)
    return np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)


def massive_rows(gathered: list[tuple[SinkTap, StreamWatch]]) -> list[dict[str, Any]]:
    """Metric 4, texts numbered through all batches."""
    found, number = [], 0
    for tap, watch in gathered:
        found += [{**m, "text": number + m["text"]} for m in watch.massive]
        number += sum(len(x) for x in next(iter(tap.per_head.values()))["alpha"])
    return found


def received_tokens(gathered: list[tuple[SinkTap, StreamWatch]], sites: list[str], tau: float) -> list[dict[str, Any]]:
    """Metric 1: keys whose mean attention, over the heads of a layer, exceeds tau times the average."""
    found = []
    number = 0
    for tap, _ in gathered:
        texts = 0
        for layer, site in enumerate(sites):
            for rows in tap.profile.get(site, []):
                texts = max(texts, len(rows))
                marked = metrics.cumulative_sinks(rows, rows > 0, tau)
                mean = rows.sum(-1) / (rows > 0).sum(-1).clamp(min=1)
                for text, token in marked.nonzero().tolist():
                    times = float(rows[text, token] / mean[text])
                    begin = int((rows[text] > 0).to(torch.uint8).argmax())
                    found.append({
                        "text": number + text, "layer": layer, "token": token - begin, "times the average": times,
                    })  # fmt: skip
        number += texts
    return found


def layer_rows(gathered: list[tuple[SinkTap, StreamWatch]]) -> list[dict[str, Any]]:
    """Per block: the numbers of its residual stream, averaged over batches (the largest of them for "largest")."""
    rows = []
    for index in sorted(gathered[0][1].layers):
        every = [entry for _, watch in gathered for entry in watch.layers[index]]
        row: dict[str, Any] = {"block": index}
        for name in every[0]:
            values = [e[name] for e in every]
            row[name] = max(values) if name == "largest" else float(np.mean(values))
        rows.append(row)
    return rows


def expert_rows(gathered: list[tuple[SinkTap, StreamWatch]]) -> list[dict[str, Any]] | None:
    """Metric 10: the super experts, or None for a model without experts."""
    names = list(gathered[0][1].experts)
    if not names:
        return None
    maxima = torch.stack([torch.stack([w.experts[n] for _, w in gathered]).nan_to_num(-1).amax(0) for n in names])
    maxima = torch.where(maxima < 0, torch.nan, maxima)
    return [
        {"module": names[layer], "expert": expert, "largest output": float(maxima[layer, expert])}
        for layer, expert in metrics.super_experts(maxima).nonzero().tolist()
    ]
