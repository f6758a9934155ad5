"""The sender pass: what receivers would read if only the sender had seen the corrupt prompt.

All heads but the sender are frozen to the clean run, so no token hears of another and only the patched tokens need to
be run, whatever the length of the text; senders are stacked on the batch axis. With frozen norms and MLPs nothing
bends the sender's write on its way: it is added up by a matrix product, and only the receivers' own projections run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.core.patching.anatomy import Anatomy, Hooks, given, hidden_of, rewritten
from unbraid.core.patching.nodes import MLP, Node
from unbraid.core.patching.norms import Normed, pick
from unbraid.core.patching.snapshot import Snapshot, Watch

Senders = Sequence[frozenset[Node]]


@dataclass(eq=False)
class Scene:
    """A batch of prompts with both runs, and the tokens that are patched.

    Attributes:
        ids: [B, T] clean tokens.
        tokens: [B, A] tokens whose logits make the metric.
        at: [B, P] patched positions.
        fresh: [B, P] False where a position is repeated to fill the row.
        clean: snapshot of the clean run from `clean.start` on.
        corrupt: of the corrupt run.
        frozen: norm -> frozen norm; empty with live norms.
        freeze_mlps: the sender pass keeps MLPs as in the clean run.
        short: the model can be run on a few tokens (it takes positions, and no bias depends on the others).
    """

    ids: Tensor
    tokens: Tensor
    at: Tensor
    fresh: Tensor
    clean: Snapshot
    corrupt: Snapshot
    frozen: dict[nn.Module, Normed]
    freeze_mlps: bool
    short: bool

    @property
    def inside(self) -> Tensor:
        """[B, P] patched positions, counted from the first kept token."""
        return self.at - self.clean.start


@dataclass(eq=False)
class Sent:
    """Changes of receivers' inputs against the clean run at the patched positions; S senders, B prompts, P positions.

    Attributes:
        query: layer -> [S, B, H, P, D].
        key: layer -> [S, B, G, P, D].
        value: layer -> [S, B, G, P, V].
        mlp: layer -> [S, B, P, d].
        final: [S, B, P, d], of the final residual stream.
    """

    query: dict[int, Tensor] = field(default_factory=dict)
    key: dict[int, Tensor] = field(default_factory=dict)
    value: dict[int, Tensor] = field(default_factory=dict)
    mlp: dict[int, Tensor] = field(default_factory=dict)
    final: Tensor | None = None

    def settle(self, fresh: Tensor) -> Sent:
        """Zeroes repeated positions, which would be added twice."""
        if bool(fresh.all()):
            return self
        heads = fresh[None, :, None, :, None]
        for table in (self.query, self.key, self.value):
            for layer in table:
                table[layer] = table[layer] * heads
        for layer in self.mlp:
            self.mlp[layer] = self.mlp[layer] * fresh[None, :, :, None]
        if self.final is not None:
            self.final = self.final * fresh[None, :, :, None]
        return self


class Frame:
    """The tokens that a pass runs: the patched ones, or the whole text where a model cannot run on a few.

    Args:
        anatomy: of the model.
        scene: the prompts.
        variants: copies of the batch, stacked on the batch axis, variants outermost.
    """

    def __init__(self, anatomy: Anatomy, scene: Scene, variants: int) -> None:
        self.anatomy, self.scene, self.variants = anatomy, scene, variants
        batch, length = scene.ids.shape
        whole = torch.arange(length, device=scene.ids.device).expand(batch, -1)
        self.places = scene.at if scene.short else whole
        self.kept = self.places - scene.clean.start  # where in the snapshots
        self.patched = (
            scene.at if not scene.short else torch.arange(scene.at.shape[1], device=whole.device).expand(batch, -1)
        )
        self.hit = torch.zeros(self.places.shape, dtype=torch.bool, device=whole.device).scatter_(1, self.patched, True)

    def of(self, kept: Tensor) -> Tensor:
        """The frame's tokens of a snapshot's tensor, once per variant: [V * B, F, ...]."""
        part = pick(kept, self.kept)
        return part.repeat(self.variants, *[1] * (part.dim() - 1))

    def change(self, run: Tensor, kept: Tensor, dim: int = 1) -> Tensor:
        """[V, B, ...]: what a pass has at the patched tokens, minus the snapshot's."""
        own = run.unflatten(0, (self.variants, -1))
        old = pick(kept, self.scene.inside, dim)
        if not self.scene.short:
            own = torch.stack([pick(part, self.patched, dim) for part in own])
        return own - old

    def run(self, **options: Any) -> None:
        """Runs the model on the frame."""
        ids = self.scene.ids.gather(1, self.places).repeat(self.variants, 1)
        self.anatomy.run(ids, self.places.repeat(self.variants, 1), **options)


def members(senders: Senders, layer: int, heads: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """([S, H] which heads of a layer belong to each sender, [S] whether its MLP does)."""
    mask = torch.zeros(len(senders), heads, dtype=torch.bool, device=device)
    mlp = torch.zeros(len(senders), dtype=torch.bool, device=device)
    for s, nodes in enumerate(senders):
        for at, head in nodes:
            if at == layer and head == MLP:
                mlp[s] = True
            elif at == layer:
                mask[s, head] = True
    return mask, mlp


def send(
    anatomy: Anatomy, scene: Scene, senders: Senders, layers: Collection[int], mlps: Collection[int], final: bool
) -> Sent:
    """The sender pass by a run of the model.

    Args:
        anatomy: of the model.
        scene: the prompts.
        senders: sets of nodes that are corrupted together; one variant each.
        layers: whose heads are receivers.
        mlps: layers whose MLPs are receivers.
        final: whether the final residual stream is one.
    """
    first = min(layer for nodes in senders for layer, _ in nodes)
    last = anatomy.depth - 1 if final else max([*layers, *mlps])
    frame, watch, sent = Frame(anatomy, scene, len(senders)), Watch(), Sent()
    before: Hooks = {}
    after: Hooks = {}
    instead: dict[nn.Module, Callable[..., Any]] = {}
    for i in range(first, last + 1):
        _force(anatomy, scene, frame, senders, i, before, after, instead)
    for i in mlps:
        before.setdefault(anatomy.mlps[i], []).append(_note(sent.mlp, i))  # type: ignore[arg-type]
    kept: dict[int, Tensor] = {}
    if final:
        before.setdefault(anatomy.exit, []).append(_note(kept, 0))
    skip = [i for i in range(anatomy.depth) if not first <= i <= last]
    entry = (first, frame.of(scene.clean.entered[first]))
    frame.run(skip=skip, entry=entry, before=before, after=after, instead=instead, tap=watch)
    read(sent, frame, watch, [i for i in layers if first <= i <= last])
    sent.mlp = {i: frame.change(x, scene.clean.mlp_in[i]) for i, x in sent.mlp.items()}
    if final:
        sent.final = frame.change(kept[0], scene.clean.final)
    return sent.settle(scene.fresh)


def read(sent: Sent, frame: Frame, watch: Watch, layers: Collection[int]) -> None:
    """Queries, keys and values that a pass made, as changes against the clean run."""
    clean = frame.scene.clean
    start = clean.start
    for i in layers:
        query, key, value = watch.calls[frame.anatomy.sites[i]]
        sent.query[i] = frame.change(query, clean.query[i], 2)
        sent.key[i] = frame.change(key, clean.key[i][:, :, start:], 2)
        sent.value[i] = frame.change(value, clean.value[i][:, :, start:], 2)


def _force(
    anatomy: Anatomy,
    scene: Scene,
    frame: Frame,
    senders: Senders,
    i: int,
    before: Hooks,
    after: Hooks,
    instead: dict[nn.Module, Callable[..., Any]],
) -> None:
    """Layer i: heads as in the clean run but for the senders, frozen norms, frozen MLPs, MLPs that send."""
    block = anatomy.blocks[i]
    heads, mlp = members(senders, i, anatomy.heads[i], scene.ids.device)
    z = frame.of(scene.clean.z[i])
    if bool(heads.any()):
        wide = heads.repeat_interleave(z.shape[-1] // anatomy.heads[i], 1)
        chosen = (wide[:, None, None, :] & frame.hit[None, :, :, None]).flatten(0, 1)
        z = torch.where(chosen, frame.of(scene.corrupt.z[i]), z)
    before.setdefault(block.out, []).append(given(z))  # type: ignore[arg-type]
    for norm in anatomy.norms(i):
        if norm in scene.frozen:
            after.setdefault(norm, []).append(_frozen(scene.frozen[norm].at(frame.kept)))
    writer = anatomy.writer(i)
    if writer is None or (not scene.freeze_mlps and not bool(mlp.any())):
        return
    chosen = (mlp[:, None, None] & frame.hit[None]).flatten(0, 1)[..., None]
    corrupt = frame.of(scene.corrupt.mlp_out[i])
    if scene.freeze_mlps:
        fixed = torch.where(chosen, corrupt, frame.of(scene.clean.mlp_out[i]))
        instead[writer] = _constant(fixed, anatomy.mlp_tuples[i])
    else:
        after.setdefault(writer, []).append(rewritten(lambda x: torch.where(chosen, corrupt, x)))


def send_linear(
    anatomy: Anatomy, scene: Scene, senders: Senders, layers: Collection[int], mlps: Collection[int], final: bool
) -> Sent:
    """The sender pass with frozen norms and MLPs, as matrix products; arguments as for `send`, heads as senders."""
    arrived: dict[int, Tensor] = {}  # layer -> [S, B, P, d], what the senders of earlier layers have written
    first = min(layer for nodes in senders for layer, _ in nodes)
    total = torch.zeros((), device=scene.ids.device)
    for i in range(first, anatomy.depth if final else max([*layers, *mlps]) + 1):
        arrived[i] = total
        write = written(anatomy, scene, senders, i)
        total = total if write is None else total + write
    sent = Sent()
    if final:
        sent.final = total.expand(len(senders), *scene.at.shape, -1) if total.dim() else None
    _project(anatomy, scene, senders, [i for i in layers if i >= first], arrived, sent)
    return sent.settle(scene.fresh)


def written(anatomy: Anatomy, scene: Scene, senders: Senders, i: int) -> Tensor | None:
    """[S, B, P, d]: change of what layer i's heads write when a sender's own are corrupt; None without a sender."""
    heads, _ = members(senders, i, anatomy.heads[i], scene.ids.device)
    if not bool(heads.any()):
        return None
    change = pick(scene.corrupt.z[i], scene.inside) - pick(scene.clean.z[i], scene.inside)
    wide = heads.repeat_interleave(change.shape[-1] // anatomy.heads[i], 1)
    write = project(anatomy, i, change[None] * wide[:, None, None, :])
    post = scene.clean.post[i]
    return write if post is None else write * scene.frozen[post].at(scene.inside).gain.to(write.dtype)


def project(anatomy: Anatomy, i: int, z: Tensor) -> Tensor:
    """Heads' outputs [..., H * V] through the output projection of layer i, without its bias."""
    out: Any = anatomy.blocks[i].out
    return out(z) - out(torch.zeros_like(z[..., :1, :]))


def _project(
    anatomy: Anatomy,
    scene: Scene,
    senders: Senders,
    layers: Sequence[int],
    arrived: dict[int, Tensor],
    sent: Sent,
) -> None:
    """Queries, keys and values of receivers, from what arrives: only their own attention modules run."""
    if not layers:
        return
    frame, watch = Frame(anatomy, scene, len(senders)), Watch()
    before: Hooks = {}
    instead: dict[nn.Module, Callable[..., Any]] = {}
    for i in layers:
        block, pre = anatomy.blocks[i], scene.clean.pre[i]
        gain = 1.0 if pre is None else scene.frozen[pre].at(scene.inside).gain.to(scene.clean.attended[i].dtype)
        read_in = pick(scene.clean.attended[i], scene.inside) + arrived[i] * gain
        if read_in.dim() == 3:  # no sender before this layer
            read_in = read_in.expand(len(senders), *read_in.shape)
        before[block.attention] = [given(read_in.flatten(0, 1))]
        writer = anatomy.writer(i)
        if writer is not None:
            instead[writer] = _nothing(anatomy.mlp_tuples[i])
    skip = [i for i in range(anatomy.depth) if i not in set(layers)]
    frame.run(skip=skip, before=before, instead=instead, tap=watch)
    read(sent, frame, watch, layers)


def _frozen(norm: Normed) -> Callable[..., Any]:
    return lambda module, args, kwargs, output: norm(hidden_of(args, kwargs))


def _note(where: dict[int, Tensor], i: int) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        where[i] = hidden_of(args, kwargs)

    return hook


def _constant(value: Tensor, as_tuple: bool) -> Callable[..., Any]:
    return lambda *args, **kwargs: (value, None) if as_tuple else value


def _nothing(as_tuple: bool) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        x = torch.zeros_like(hidden_of(args, kwargs))
        return (x, None) if as_tuple else x

    return forward
