"""What a clean or a corrupt run computed, kept for the tokens that patching can change."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.core.blocks import residual
from unbraid.core.calls import AttentionCall, Tap
from unbraid.core.patching.anatomy import Anatomy, Hooks, hidden_of
from unbraid.core.patching.norms import Gain, Normed, probe


@dataclass(eq=False)
class Snapshot:
    """One run of a batch; n tokens from `start` to the end are kept, and keys and values of all T.

    Lists have one entry per layer.

    Attributes:
        start: first token kept.
        logits: [B, A] of the asked tokens at the last place.
        entered: [B, n, d] what the block is given.
        attended: [B, n, d] what its attention is given.
        z: [B, n, H * V] heads' outputs, side by side.
        mlp_in: [B, n, d], or None where there is no MLP module.
        mlp_out: [B, n, d], or None.
        final: [B, n, d] what the final norm is given.
        query: [B, H, n, D] after rotation.
        key: [B, G, T, D] after rotation.
        value: [B, G, T, D].
        norms: norm -> (input, output), [B, n, d].
        pre: the norm whose output attention reads, or None.
        post: the norm that reads what attention writes, or None.
        biased: attention adds numbers of its own to logits (ALiBi), which a shorter run would misplace.
    """

    start: int
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    entered: list[Any] = field(default_factory=list)
    attended: list[Any] = field(default_factory=list)
    z: list[Any] = field(default_factory=list)
    mlp_in: list[Any] = field(default_factory=list)
    mlp_out: list[Any] = field(default_factory=list)
    final: Any = None
    query: list[Any] = field(default_factory=list)
    key: list[Any] = field(default_factory=list)
    value: list[Any] = field(default_factory=list)
    norms: dict[nn.Module, tuple[Tensor, Tensor]] = field(default_factory=dict)
    pre: list[Any] = field(default_factory=list)
    post: list[Any] = field(default_factory=list)
    biased: bool = False


class Watch(Tap):
    """Keeps queries, keys and values of every site."""

    def __init__(self) -> None:
        self.calls: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.biased = False

    def call(self, c: AttentionCall) -> None:
        """Keeps; changes nothing."""
        self.calls[c.site] = (c.query, c.key, c.value)
        if c.mask is not None and c.mask.dtype != torch.bool:
            self.biased |= bool(((c.mask != 0) & (c.mask > -1e4)).any())


def take(anatomy: Anatomy, ids: Tensor, tokens: Tensor, start: int) -> Snapshot:
    """Runs a batch [B, T] and keeps what patching needs from token `start` on."""
    depth = anatomy.depth
    s = Snapshot(start)
    for name in ("entered", "attended", "z", "mlp_in", "mlp_out", "query", "key", "value", "pre", "post"):
        vars(s)[name] = [None] * depth
    before, after, links = _hooks(anatomy, s)
    watch = Watch()
    logits = anatomy.run(ids, None, tokens=tokens, before=before, after=after, tap=watch)
    assert logits is not None
    s.logits, s.biased = logits, watch.biased
    for i, site in enumerate(anatomy.sites):
        query, s.key[i], s.value[i] = watch.calls[site]
        s.query[i] = query[:, :, start:].clone()
    for i, (pre, post) in links.items():
        s.pre[i], s.post[i] = pre, post
    return s


def _hooks(anatomy: Anatomy, s: Snapshot) -> tuple[Hooks, Hooks, dict[int, tuple[Any, Any]]]:
    before: Hooks = {}
    after: Hooks = {}
    links: dict[int, tuple[Any, Any]] = dict.fromkeys(range(anatomy.depth), (None, None))

    def keep(where: list[Any], i: int) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            where[i] = hidden_of(args, kwargs)[:, s.start :].clone()  # a model may go on to add in place

        return hook

    for i, b in enumerate(anatomy.blocks):
        before.setdefault(b.module, []).append(keep(s.entered, i))
        after.setdefault(b.module, []).append(_note_tuple(anatomy.tuples, i))
        before.setdefault(b.out, []).append(keep(s.z, i))  # type: ignore[arg-type]
        mlp, writer = anatomy.mlps[i], anatomy.writer(i)
        if mlp is not None:
            before.setdefault(mlp, []).append(keep(s.mlp_in, i))
        if writer is not None:
            after.setdefault(writer, []).extend([_keep_output(s, i), _note_tuple(anatomy.mlp_tuples, i)])
        _link(anatomy, s, i, before, after, links)

    def final(module: nn.Module, args: Any, kwargs: Any) -> None:
        s.final = hidden_of(args, kwargs)[:, s.start :].clone()

    before.setdefault(anatomy.exit, []).append(final)
    if anatomy.exit is not anatomy.head:
        after.setdefault(anatomy.exit, []).append(_keep_norm(s))
    return before, after, links


def _link(
    anatomy: Anatomy, s: Snapshot, i: int, before: Hooks, after: Hooks, links: dict[int, tuple[Any, Any]]
) -> None:
    """Keeps the norms of a block, and finds which of them attention reads and which reads attention."""
    block = anatomy.blocks[i]
    made: dict[int, tuple[nn.Module, Tensor]] = {}  # address of a norm's output; kept alive so that it stays its own
    written: list[Tensor] = []

    def norm(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        x = hidden_of(args, kwargs)
        s.norms[module] = (x[:, s.start :].clone(), output[:, s.start :].clone())
        made[output.data_ptr()] = (module, output)
        if written and x.data_ptr() == written[0].data_ptr():
            links[i] = (links[i][0], module)

    def reads(module: nn.Module, args: Any, kwargs: Any) -> None:
        x = hidden_of(args, kwargs)
        s.attended[i] = x[:, s.start :].clone()
        found = made.get(x.data_ptr())
        links[i] = (found[0] if found else None, links[i][1])

    def writes(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        written.append(residual(output))

    def done(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        made.clear()
        written.clear()

    for module in anatomy.norms(i):
        after.setdefault(module, []).append(norm)
    before.setdefault(block.attention, []).append(reads)
    after.setdefault(block.out, []).append(writes)  # type: ignore[arg-type]
    after.setdefault(block.module, []).append(done)


def _note_tuple(where: list[bool], i: int) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        where[i] = isinstance(output, tuple)

    return hook


def _keep_output(s: Snapshot, i: int) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        s.mlp_out[i] = residual(output)[:, s.start :].clone()

    return hook


def _keep_norm(s: Snapshot) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        s.norms[module] = (hidden_of(args, kwargs)[:, s.start :].clone(), output[:, s.start :].clone())

    return hook


def frozen_norms(clean: Snapshot, scales: Snapshot, gains: dict[nn.Module, Gain]) -> dict[nn.Module, Normed]:
    """The norms of the clean run with the scales of `scales` (the clean or the corrupt run).

    Args:
        clean: the clean run.
        scales: the run whose spread is kept.
        gains: what is known of the norms; filled on the way.
    """
    out = {}
    for module, (x, y) in clean.norms.items():
        if module not in gains:
            gains[module] = probe(module, x)
        gain = gains[module]
        out[module] = Normed(x, y, gain.scale(*scales.norms[module]) * gain.weight)
    return out
