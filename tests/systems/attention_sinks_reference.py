"""A Llama by hand, one token at a time; what it keeps is decided by a function. The truth that caches are tested on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Memory:
    """Everything one key head of one layer has seen: un-rotated keys, values, and what attention each has received."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    received: dict[int, float] = field(default_factory=dict)


Choose = Callable[[Memory, int, int, int], list[int]]  # (memory, layer, key head, token) -> tokens that it sees


def rotate(x: Tensor, position: int, theta: float = 10_000.0) -> Tensor:
    """Rotary embedding of one vector, channel i paired with channel i + d/2."""
    d = x.shape[-1]
    angle = position * theta ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    a, b = x[: d // 2].double(), x[d // 2 :].double()
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()])


@torch.no_grad()
def by_hand(
    model, ids: list[int], before: Choose, after: Choose | None = None, at_index: bool = False, decay: float = 1.0
) -> Tensor:
    """Logits [n, vocab] of a tiny Llama in float64.

    `before` says which tokens the newest one sees (itself included), `after` which stay for the next. With `at_index`
    keys stand at their place among those kept, else where they stood in the text.
    """
    cfg = model.config
    heads, groups = cfg.num_attention_heads, cfg.num_key_value_heads
    width = cfg.hidden_size // heads
    memory = [[Memory() for _ in range(groups)] for _ in model.model.layers]
    out = []
    for t, token in enumerate(ids):
        h = model.model.embed_tokens(torch.tensor([token]))
        for number, layer in enumerate(model.model.layers):
            x = layer.input_layernorm(h)
            q = layer.self_attn.q_proj(x).view(heads, width)
            k = layer.self_attn.k_proj(x).view(groups, width)
            v = layer.self_attn.v_proj(x).view(groups, width)
            made = []
            for g in range(groups):
                m = memory[number][g]
                m.keys.append(k[g])
                m.values.append(v[g])
                m.kept.append(t)
                m.kept = before(m, number, g, t)
                places = range(len(m.kept)) if at_index else m.kept
                mine = len(m.kept) - 1 if at_index else t
                keys = torch.stack([rotate(m.keys[j], p) for j, p in zip(m.kept, places, strict=True)])
                values = torch.stack([m.values[j] for j in m.kept]).double()
                total = torch.zeros(len(m.kept), dtype=torch.float64)
                for head in range(g * heads // groups, (g + 1) * heads // groups):
                    p = torch.softmax(keys @ rotate(q[head], mine) / width**0.5, -1)
                    total += p
                    made.append((p @ values).to(h.dtype))
                m.received = {j: decay * m.received.get(j, 0.0) for j in m.kept}
                for j, p in zip(m.kept, total.tolist(), strict=True):
                    m.received[j] += p
                if after is not None:
                    m.kept = after(m, number, g, t)
            h = h + layer.self_attn.o_proj(torch.cat(made)[None])
            h = h + layer.mlp(layer.post_attention_layernorm(h))
        out.append(model.lm_head(model.model.norm(h))[0])
    return torch.stack(out)


def everything(m: Memory, layer: int, group: int, t: int) -> list[int]:
    """All tokens."""
    return m.kept


def streaming(sinks: int, window: int) -> Choose:
    """The first and the last ones."""
    return lambda m, layer, group, t: [j for j in m.kept if j < sinks or j > t - window]


def heavy(count: int, recent: int) -> Choose:
    """Those that received most, and the last ones."""

    def choose(m: Memory, layer: int, group: int, t: int) -> list[int]:
        if len(m.kept) <= count + recent:
            return m.kept
        old, new = m.kept[:-recent], m.kept[-recent:]
        return sorted(sorted(old, key=lambda j: -m.received[j])[:count]) + new

    return choose


def unlike(budget: int) -> Choose:
    """The keys least like the mean of the normalised ones, as rotated in the text."""

    def choose(m: Memory, layer: int, group: int, t: int) -> list[int]:
        if len(m.kept) <= budget:
            return m.kept
        unit = F.normalize(torch.stack([rotate(m.keys[j], j) for j in m.kept]), dim=-1)
        score = 1 - unit @ F.normalize(unit.mean(0), dim=-1)
        return sorted(m.kept[i] for i in score.argsort(descending=True)[:budget].tolist())

    return choose


def duo(full: Tensor, sinks: int, recent: int) -> Choose:
    """Everything for some key heads, first and last ones for the others; the newest token comes on top."""

    def choose(m: Memory, layer: int, group: int, t: int) -> list[int]:
        if bool(full[layer][group]):
            return m.kept
        return [j for j in m.kept if j < sinks or j > t - recent]

    return choose
