"""The receiver pass: the clean prompt again, with the receivers' inputs changed, read at the answer.

Nothing before the first receiver's layer and nothing before the first patched token can change, so neither is run:
layers start from the clean residual stream, and earlier tokens are there as the clean run's keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unbraid.core.calls import AttentionCall, Tap
from unbraid.core.patching.anatomy import Anatomy, Hooks, hidden_of, with_hidden
from unbraid.core.patching.nodes import Receiver
from unbraid.core.patching.norms import Normed, pick
from unbraid.core.patching.sending import Scene, Sent

Nested = Literal["flow", "cut"]
Pair = tuple[int, tuple[Receiver, ...]]  # number of the sender, its receivers


class Plan:
    """Who receives what, as masks over variants and heads.

    Args:
        anatomy: of the model.
        pairs: one variant each.
        device: of the masks.

    Attributes:
        senders: [V] number of each variant's sender.
        masks: channel -> layer -> [V, H] bool.
        mlps: layer -> [V] bool.
        logits: [V] bool.
        first: the first layer that changes; the number of layers when only the logits do.
    """

    def __init__(self, anatomy: Anatomy, pairs: Sequence[Pair], device: torch.device) -> None:
        self.senders = torch.tensor([s for s, _ in pairs], device=device)
        self.masks: dict[str, dict[int, Tensor]] = {"q": {}, "k": {}, "v": {}}
        self.mlps: dict[int, Tensor] = {}
        self.logits = torch.zeros(len(pairs), dtype=torch.bool, device=device)
        self.first = anatomy.depth
        for v, (_, receivers) in enumerate(pairs):
            for r in receivers:
                layer = anatomy.names.depth(r)
                self.first = min(self.first, layer)
                if r.channel == "logits":
                    self.logits[v] = True
                elif r.channel == "mlp":
                    self.mlps.setdefault(layer, torch.zeros_like(self.logits))[v] = True
                else:
                    empty = torch.zeros(len(pairs), anatomy.heads[layer], dtype=torch.bool, device=device)
                    self.masks[r.channel].setdefault(layer, empty)[v, r.head] = True

    def kinds(self, layer: int) -> list[tuple[bool, bool, Tensor]]:
        """(keys changed, values changed, [V, H] for whom): under grouped-query attention heads of one group differ."""
        k, v = self.masks["k"].get(layer), self.masks["v"].get(layer)
        if k is None and v is None:
            return []
        like = k if k is not None else v
        assert like is not None
        k = torch.zeros_like(like) if k is None else k
        v = torch.zeros_like(like) if v is None else v
        every = [(True, True, k & v), (True, False, k & ~v), (False, True, ~k & v)]
        return [kind for kind in every if bool(kind[2].any())]


class Resume(Tap):
    """Continues the clean run from a token on: earlier keys and values are handed in, receivers' inputs changed."""

    def __init__(self, anatomy: Anatomy, scene: Scene, plan: Plan, sent: Sent, nested: Nested) -> None:
        self.anatomy, self.scene, self.plan, self.sent, self.nested = anatomy, scene, plan, sent, nested
        self.variants = len(plan.senders)

    def call(self, c: AttentionCall) -> AttentionCall:
        """Hands in the past, changes receivers' queries."""
        layer = self.anatomy.names.layer[c.site]
        clean = self.scene.clean
        if clean.start:
            past = [t[layer][:, :, : clean.start].repeat(self.variants, 1, 1, 1) for t in (clean.key, clean.value)]
            key, value = (torch.cat(pair, 2) for pair in zip(past, (c.key, c.value), strict=True))
            c = c.replace(key=key, value=value, mask=self._mask(c, key.shape[2]), causal=False)
        mask = self.plan.masks["q"].get(layer)
        if mask is None or layer not in self.sent.query:
            return c
        return c.replace(query=self._changed(c.query, self.sent.query[layer], mask, clean.query[layer], 0))

    def out(self, c: AttentionCall, y: Tensor) -> Tensor | None:
        """Outputs of heads that receive through keys or values: the model's kernel again, with those changed."""
        layer = self.anatomy.names.layer[c.site]
        kinds = self.plan.kinds(layer)
        if not kinds or layer not in self.sent.key:
            return None
        clean, changed = self.scene.clean, {}
        for name, table, old in (("key", self.sent.key, clean.key), ("value", self.sent.value, clean.value)):
            own = c.key if name == "key" else c.value
            everyone = torch.ones(self.variants, own.shape[1], dtype=torch.bool, device=own.device)
            changed[name] = self._changed(own, table[layer], everyone, old[layer], clean.start)
        assert c.kernel is not None
        for keys, values, who in kinds:
            new = c.kernel(
                c.replace(key=changed["key"] if keys else c.key, value=changed["value"] if values else c.value)
            )
            rows = who.repeat_interleave(self.scene.ids.shape[0], 0)
            y = torch.where(rows[:, :, None, None], new, y)
        return y

    def _changed(self, own: Tensor, change: Tensor, who: Tensor, clean: Tensor, offset: int) -> Tensor:
        """own [V * B, heads, tokens, D] with `change` at the patched positions, for those who receive.

        "flow" adds the change to what the run has there itself; "cut" puts clean + change, which severs what receivers
        of earlier layers send. Both are the same unless one receiver feeds another.
        """
        where = self.scene.inside + offset
        part = change[self.plan.senders] * who[:, None, :, None, None]
        index = where.repeat(self.variants, 1)[:, None, :, None].expand(-1, own.shape[1], -1, own.shape[-1])
        if self.nested == "flow":
            return own.scatter_add(2, index, part.flatten(0, 1).to(own.dtype))
        goal = (pick(clean, where, 2) + change[self.plan.senders]).flatten(0, 1).to(own.dtype)
        rows = who.repeat_interleave(self.scene.ids.shape[0], 0)[:, :, None, None]
        return own.scatter(2, index, torch.where(rows, goal, own.gather(2, index)))

    def _mask(self, c: AttentionCall, keys: int) -> Tensor | None:
        """Causal from the first run token on, inside the layer's window."""
        window = c.extra.get("window")
        if c.queries == 1 and (window is None or keys <= window):
            return None
        i = torch.arange(keys - c.queries, keys, device=c.device)[:, None]
        j = torch.arange(keys, device=c.device)[None]
        seen = j <= i
        if window is not None:
            seen &= i - j < window
        return seen[None, None]


def arrive(anatomy: Anatomy, scene: Scene, sent: Sent, pairs: Sequence[Pair], nested: Nested) -> Tensor:
    """The receiver pass.

    Args:
        anatomy: of the model.
        scene: the prompts.
        sent: what the sender pass found.
        pairs: (number of the sender, receivers), one variant each.
        nested: "flow" or "cut", for receivers that feed other receivers.

    Returns:
        [V, B, A] logits of the scene's tokens.
    """
    plan = Plan(anatomy, pairs, scene.ids.device)
    variants, clean = len(pairs), scene.clean
    before: Hooks = {}
    after: Hooks = {}
    for layer, who in plan.mlps.items():
        if layer not in sent.mlp:
            continue
        mlp: Any = anatomy.mlps[layer]
        before[mlp] = [_added(scene, sent.mlp[layer], plan, who, clean.mlp_in[layer], nested)]
    if bool(plan.logits.any()):
        assert sent.final is not None
        before[anatomy.exit] = [_added(scene, sent.final, plan, plan.logits, clean.final, nested)]
    layers = range(plan.first, anatomy.depth)
    for norm in [m for i in layers for m in anatomy.norms(i)] + [anatomy.exit]:
        if norm in scene.frozen:
            after[norm] = [_frozen(scene.frozen[norm])]
    kept = clean.final if plan.first == anatomy.depth else clean.entered[plan.first]
    ids = scene.ids[:, clean.start :].repeat(variants, 1)
    places = torch.arange(clean.start, scene.ids.shape[1], device=ids.device).expand(len(ids), -1)
    logits = anatomy.run(
        ids,
        places,
        tokens=scene.tokens.repeat(variants, 1),
        skip=range(plan.first),
        entry=(plan.first, kept.repeat(variants, 1, 1)),
        before=before,
        after=after,
        tap=Resume(anatomy, scene, plan, sent, nested),
    )
    assert logits is not None
    return logits.unflatten(0, (variants, -1))


def _added(scene: Scene, change: Tensor, plan: Plan, who: Tensor, clean: Tensor, nested: Nested) -> Callable[..., Any]:
    """A hook that changes what an MLP or the final norm is given."""

    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        x = hidden_of(args, kwargs)
        part = (change[plan.senders] * who[:, None, None, None]).flatten(0, 1).to(x.dtype)
        index = scene.inside.repeat(len(who), 1)[..., None].expand(-1, -1, x.shape[-1])
        if nested == "flow":
            return with_hidden(x.scatter_add(1, index, part), args, kwargs)
        goal = (pick(clean, scene.inside) + change[plan.senders]).flatten(0, 1).to(x.dtype)
        rows = who.repeat_interleave(scene.ids.shape[0], 0)[:, None, None]
        return with_hidden(x.scatter(1, index, torch.where(rows, goal, x.gather(1, index))), args, kwargs)

    return hook


def _frozen(norm: Normed) -> Callable[..., Any]:
    return lambda module, args, kwargs, output: norm(hidden_of(args, kwargs))
