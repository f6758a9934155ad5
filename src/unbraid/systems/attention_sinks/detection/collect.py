"""What one pass shows of the sinks: a tap on every attention, and a look at every block's residual stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.core.blocks import Block, residual
from unbraid.core.calls import Answer, Ask, AttentionCall, Tap
from unbraid.systems.attention_sinks.detection import metrics
from unbraid.systems.attention_sinks.detection.layout import Layout, layout_for, one_hot_columns, watchers

Sums = dict[str, list[Tensor]]


def sink_marks(first: Tensor, valid: Tensor, sinks: tuple[int, ...]) -> Tensor:
    """The sinks of each text [B, T] bool: positions counted from its first token, padding left aside."""
    marks = torch.zeros_like(valid)
    for k in sinks:
        marks |= first if k == 0 else torch.nn.functional.pad(first, (k, 0))[:, : first.shape[1]]
    return marks & valid


class SinkTap(Tap):
    """Asks every attention for what each key receives and for the mass on the sinks; sees keys, values and outputs.

    Args:
        layouts: what is known of the tokens.
        outputs: site -> last projection of that attention.
        sinks: positions from each text's first token that metrics 5 to 7 take as the sink set.
    """

    def __init__(self, layouts: list[Layout], outputs: Mapping[str, nn.Module], sinks: tuple[int, ...]) -> None:
        self.layouts, self.outputs, self.sinks = layouts, dict(outputs), sinks
        self.per_head: dict[str, Sums] = {}
        self.profile: Sums = {}
        self._columns: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self._grams: dict[str, Tensor | None] = {}

    def tokens(self, c: AttentionCall) -> tuple[Layout, Layout]:
        """(of the queries, of the keys) of a call."""
        keys = layout_for(self.layouts, c.batch, c.keys, c.device)
        same = c.kind != "cross" and c.keys == c.queries
        return (keys if same else layout_for(self.layouts, c.batch, c.queries, c.device)), keys

    def ask(self, c: AttentionCall) -> Ask:
        """Received attention over valid queries, and the probability of each sink key."""
        queries, keys = self.tokens(c)
        columns, index, real = one_hot_columns(sink_marks(keys.first, keys.valid, self.sinks))
        self._columns[c.site] = (columns, index, real)
        return Ask(weights=queries.valid[:, None, :, None].float(), moments=columns)

    def take(self, c: AttentionCall, answer: Answer) -> None:
        """Metrics 1 to 3 from sums; 7 from the keys; what 5 and 6 need waits for the output."""
        assert answer.weights is not None
        assert answer.moments is not None
        queries, keys = self.tokens(c)
        received = answer.weights[..., 0]
        alpha = metrics.sink_metric(received, watchers(c, queries.valid))
        count = queries.valid.sum(-1)[:, None].float()
        firsts = keys.first[:, None]
        self.add(c.site, "alpha", (alpha * firsts).sum(-1) / firsts.sum(-1).clamp(min=1))
        self.add(c.site, "first", (received * firsts).sum(-1) / count)
        mass = answer.moments.sum(-1)
        self.add(c.site, "mass", (mass * queries.valid[:, None]).sum(-1) / count)
        self.profile.setdefault(c.site, []).append(alpha.mean(1).cpu())
        if c.key is None:
            return
        self._pending = answer.moments
        marks = sink_marks(keys.first, keys.valid, self.sinks)
        distinct = metrics.key_distinctiveness(c.key, keys.valid)
        self.add(c.site, "sink key", per_group(c, masked_mean(distinct, marks)))
        self.add(c.site, "other keys", per_group(c, masked_mean(distinct, keys.valid & ~marks)))
        if bool(keys.valid.all()) and c.keys > 2:
            grouped = alpha.unflatten(1, (c.key.shape[1], -1)).mean(2)
            self.add(c.site, "key rank", per_group(c, metrics.rank_correlation(distinct, grouped)))
        if c.value is not None:
            self.add(c.site, "value ratio", per_group(c, metrics.value_ratio(c.value, marks, keys.valid)))

    def out(self, c: AttentionCall, y: Tensor) -> None:
        """Metrics 5 and 6: what the sinks write, next to what the head writes. Changes nothing."""
        _, index, real = self._columns.pop(c.site)
        queries, _ = self.tokens(c)
        writes = sink_writes(c, self._pending, index, real)
        del self._pending
        self.add(c.site, "constancy", metrics.bias_constancy(writes, queries.valid))
        self.add(c.site, "write", metrics.write_share(writes, y, self.gram(c, y), queries.valid))

    def out_as_rows(self, c: AttentionCall, p: Tensor, start: int) -> Tensor:
        """At the softmax seam no output is seen: nothing to add, nothing changed."""
        self._columns.pop(c.site, None)
        return p

    def gram(self, c: AttentionCall, y: Tensor) -> Tensor | None:
        """W_O W_O^T per head [H, V, V], or None where the projection is not known."""
        if c.site not in self._grams:
            module = self.outputs.get(c.site)
            self._grams[c.site] = None if module is None else head_grams(module, y.shape[1], y.shape[-1])
        return self._grams[c.site]

    def add(self, site: str, name: str, values: Tensor) -> None:
        """Keeps [B, H] numbers of a call."""
        self.per_head.setdefault(site, {}).setdefault(name, []).append(values.detach().float().cpu())


def sink_writes(c: AttentionCall, probabilities: Tensor, index: Tensor, real: Tensor) -> Tensor:
    """Sum over sinks of A_ij v_j, [B, H, Q, V], from the sinks' columns of A alone.

    Args:
        c: the call.
        probabilities: [B, H, Q, s].
        index: [B, s], the keys of these columns.
        real: [B, s] bool, False for columns that stand for no key.
    """
    values = c.value.expand(c.batch, -1, -1, -1)
    at = index.expand(c.batch, -1)[:, None, :, None].expand(-1, values.shape[1], -1, values.shape[-1])
    chosen = c.expand(values.gather(2, at)).float() * real[:, None, :, None]
    return probabilities.float() @ chosen


def per_group(c: AttentionCall, values: Tensor) -> Tensor:
    """Numbers per key head [B, G] as numbers per query head [B, H]."""
    return values.repeat_interleave(c.heads // values.shape[1], dim=1)


def masked_mean(x: Tensor, marks: Tensor) -> Tensor:
    """Mean of x [B, G, K] over marked keys [B, K]."""
    weight = marks[:, None].to(x)
    return (x * weight).sum(-1) / weight.sum(-1).clamp(min=1)


def head_grams(projection: nn.Module, heads: int, width: int) -> Tensor | None:
    """W_O W_O^T of each head [H, V, V], by applying the projection to unit vectors (it may be any linear module)."""
    some = next(projection.parameters(), None)
    if some is None:
        return None
    dtype = some.dtype if some.is_floating_point() else torch.float32
    try:
        with torch.no_grad():
            unit = torch.eye(heads * width, device=some.device, dtype=dtype)
            weight = (projection(unit) - projection(torch.zeros_like(unit[:1]))).float()
    except RuntimeError:  # its input is not the heads side by side
        return None
    weight = weight.reshape(heads, width, -1)
    return weight @ weight.transpose(1, 2)


class StreamWatch:
    """Looks at the output of every block: massive activations, kurtosis, and experts where there are any.

    Args:
        blocks: of the model.
        layouts: what is known of the tokens.
        floor: smallest massive activation.
        ratio: smallest multiple of the median.
    """

    def __init__(self, blocks: list[Block], layouts: list[Layout], floor: float, ratio: float) -> None:
        self.blocks, self.layouts, self.floor, self.ratio = blocks, layouts, floor, ratio
        self.layers: dict[int, list[dict[str, Any]]] = {}
        self.massive: list[dict[str, Any]] = []
        self.experts: dict[str, Tensor] = {}

    def after(self) -> dict[nn.Module, Callable[..., None]]:
        """Hooks for `listening`: one per block."""
        return {block.module: self._look(block) for block in self.blocks}

    def _look(self, block: Block) -> Callable[..., None]:
        def look(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            hidden = residual(output)
            if not isinstance(hidden, Tensor) or hidden.dim() != 3:  # of joint blocks one stream may have ended
                return
            hidden = hidden.detach()
            tokens = layout_for(self.layouts, hidden.shape[0], hidden.shape[1], hidden.device)
            found, median = metrics.massive_activations(hidden, tokens.valid, self.floor, self.ratio)
            whole, per_token = metrics.kurtosis(hidden, tokens.valid)
            norms = hidden.float().norm(dim=-1)
            self.layers.setdefault(block.index, []).append({
                "massive": len(found), "largest": float(hidden.float().abs().amax()), "median": median,
                "kurtosis": whole, "kurtosis per token": per_token,
                "norm of first": float(norms[tokens.first].mean()),
                "median norm": float(norms[tokens.valid].median()),
            })  # fmt: skip
            for text, token, channel, value in found:
                begin = int(tokens.valid[text].to(torch.uint8).argmax())
                self.massive.append({
                    "layer": block.index, "text": text, "token": token - begin, "channel": channel, "value": value,
                    "times the median": abs(value) / max(median, 1e-12),
                })  # fmt: skip

        return look

    def before(self, model: nn.Module) -> dict[nn.Module, Callable[..., None]]:
        """Hooks for `listening`: one per module that holds the weights of several experts."""
        return {module: self._weigh(name) for name, module in expert_modules(model).items()}

    def _weigh(self, name: str) -> Callable[..., None]:
        busy = False

        def weigh(module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
            nonlocal busy
            given = [*args, *kwargs.values()]
            if busy or len(given) < 3:
                return
            busy = True
            try:
                found = expert_maxima(module, given[0], given[1])
            finally:
                busy = False
            old = self.experts.get(name)
            self.experts[name] = found if old is None else torch.fmax(old, found)

        return weigh


def expert_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that hold the weights of several experts in one tensor, as transformers 5 keeps them."""
    found = {}
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if "down_proj" in own and own["down_proj"].dim() == 3:
            found[name] = module
    return found


@torch.no_grad()
def expert_maxima(module: nn.Module, hidden: Tensor, chosen: Tensor) -> Tensor:
    """Largest magnitude in each expert's own output [experts], NaN for experts that no token chose.

    The module itself is run with one expert at a time, so its activation function and layout do not matter.
    """
    experts = dict(module.named_parameters(recurse=False))["down_proj"].shape[0]
    flat, picks = hidden.reshape(-1, hidden.shape[-1]), chosen.reshape(-1, chosen.shape[-1])
    out = torch.full((experts,), torch.nan)
    for expert in range(experts):
        tokens = (picks == expert).any(-1)
        if not bool(tokens.any()):
            continue
        alone = torch.full((int(tokens.sum()), 1), expert, dtype=picks.dtype, device=picks.device)
        weight = torch.ones(alone.shape, dtype=flat.dtype, device=flat.device)
        out[expert] = float(module(flat[tokens], alone, weight).float().abs().amax())
    return out
