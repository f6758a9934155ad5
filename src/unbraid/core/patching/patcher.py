"""`PathPatcher`: path patching of one batch of prompts, senders stacked, nothing run that cannot change."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError
from unbraid.core.heads import Head
from unbraid.core.patching.anatomy import Anatomy
from unbraid.core.patching.batch import Batch, Tokens, check_batch, log_odds
from unbraid.core.patching.effects import Edges, Effects
from unbraid.core.patching.nodes import LOGITS, MLP, Node, Receiver, Receivers, Sender, receive
from unbraid.core.patching.norms import Gain, pick
from unbraid.core.patching.receiving import Nested, Pair, arrive
from unbraid.core.patching.sending import Scene, Sent, project, send, send_linear
from unbraid.core.patching.snapshot import Snapshot, frozen_norms, take

FreezeNorm = Literal["none", "clean", "corrupt"]
Positions = int | Sequence[int] | Sequence[Sequence[int]] | Tensor


class PathPatcher:
    """Path patching on any decoder of transformers (arXiv 2211.00593, 2310.08744), for a batch of prompts.

    For every sender: the clean prompt is run with the sender's output from the corrupt prompt and all other heads as in
    the clean run; what this changes in the receivers' inputs is then put into another clean run, in which nothing else
    is fixed. The metric is the log-odds of `answers` against `distractors` at the last token, in float32.

    Args:
        model: a decoder language model of transformers, in evaluation mode; it is left as it was.
        clean: [B, T] tokens, no padding: group prompts by length.
        corrupt: [B, T] tokens of the twins, aligned with `clean`.
        answers: [B] or [B, a] tokens; -1 fills a row.
        distractors: [B] or [B, b] tokens; -1 fills a row.
        freeze_norm: norms keep their scale (and mean) of the "clean" or of the "corrupt" run in both passes, or of
            "none", as in the paper's code; live norms let every sender reach every receiver.
        freeze_mlps: MLPs do not pass on what a sender writes; by default they do, in the sender pass too.
        nested: what a receiver that is fed by another receiver gets: "flow", the sum of both paths, or "cut", its own
            direct path only. The same where no receiver feeds another.
        rows: tokens per forward; more is faster up to the cache or the GPU's memory.
        whole: run whole texts instead of the tokens that can change (found out by itself where a model needs it).

    Raises:
        UnbraidError: shapes that do not belong together, tokens that the model does not have, a model that cannot be
            opened, an unknown option.
    """

    def __init__(
        self,
        model: nn.Module,
        clean: Tokens,
        corrupt: Tokens,
        answers: Tokens,
        distractors: Tokens,
        *,
        freeze_norm: FreezeNorm = "clean",
        freeze_mlps: bool = False,
        nested: Nested = "flow",
        rows: int = 2048,
        whole: bool = False,
    ) -> None:
        for name, value, accepted in (
            ("freeze_norm", freeze_norm, ("none", "clean", "corrupt")),
            ("nested", nested, ("flow", "cut")),
        ):
            if value not in accepted:
                raise UnbraidError(f"{name}={value!r} is unknown; choose from {', '.join(map(repr, accepted))}.")
        if rows < 1:
            raise UnbraidError(f"rows={rows}: a forward needs at least one token.")
        self.anatomy = Anatomy(model)
        self.batch: Batch = check_batch(self.anatomy, clean, corrupt, answers, distractors)
        self.freeze_norm, self.freeze_mlps, self.nested, self.rows = freeze_norm, freeze_mlps, nested, rows
        self._gains: dict[nn.Module, Gain] = {}
        self._short: bool | None = False if whole else None
        self._linear: bool | None = None
        self._scene: tuple[Any, Scene] | None = None

    @property
    def heads(self) -> list[Head]:
        """Every head (site, number), in the order of layers."""
        return self.anatomy.names.all_heads()

    @torch.no_grad()
    def effects(
        self,
        receivers: Receivers = LOGITS,
        senders: Iterable[Sender] | None = None,
        positions: Positions = -1,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Effects:
        """Effect of each sender on all receivers together.

        Args:
            receivers: `LOGITS`, `receive(heads, "q")`, `Receiver("mlp", layer=3)`, or a list of such.
            senders: heads, `Mlp(layer)`, or sets of these that are patched jointly (self-repair can hide the effect of
                a single head); None: every head with a path to a receiver.
            positions: token positions that are patched, negative ones from the end; [B, P] where prompts differ.
            on_step: called with (done, all) after every forward.

        Returns:
            Effects per sender and prompt.
        """
        names = self.anatomy.names
        listed = names.receivers(receivers)
        wanted = [
            nodes
            for nodes in ([names.nodes(s) for s in senders] if senders is not None else self._every())
            if senders is not None or any(names.reaches(nodes, r) for r in listed)
        ]
        if not wanted:
            raise UnbraidError("No head lies before these receivers, so nothing can be sent to them.")
        scene = self.scene(positions)
        clean, corrupt = self._metric(scene.clean.logits), self._metric(scene.corrupt.logits)
        patched = np.repeat(clean[None], len(wanted), 0)
        able = [i for i, nodes in enumerate(wanted) if any(names.reaches(nodes, r) for r in listed)]
        able.sort(key=lambda i: min(layer for layer, _ in wanted[i]))
        step, done = self._variants(scene), 0
        for at in range(0, len(able), step):
            chunk = able[at : at + step]
            sent = self._send(scene, [wanted[i] for i in chunk], listed)
            patched[chunk] = self._arrive(scene, sent, [(s, listed) for s in range(len(chunk))])
            done += len(chunk)
            if on_step is not None:
                on_step(done, len(able))
        labels = [names.label(nodes) for nodes in wanted]
        return Effects(wanted, labels, patched, clean, corrupt, self.anatomy.sites, self.anatomy.heads)

    @torch.no_grad()
    def edges(
        self,
        channels: Iterable[str] = ("q", "k", "v"),
        logits: bool = True,
        senders: Iterable[Head] | None = None,
        receivers: Iterable[Head] | None = None,
        positions: Positions = -1,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Edges:
        """Effect of every single path: head to channel of a later head, and head to logits.

        Args:
            channels: of the receiving heads; may be empty.
            logits: also the paths straight to the logits.
            senders: heads; None for all.
            receivers: heads; None for all.
            positions: as for `effects`.
            on_step: called with (done, all) edges after every forward.
        """
        names, scene = self.anatomy.names, self.scene(positions)
        heads = [(site, int(h)) for site, h in (self.heads if senders is None else senders)]
        asked = list(channels)
        ends = receive(self.heads if receivers is None else receivers, asked) if asked else []
        names.receivers([*ends, LOGITS])
        ends += [LOGITS] if logits else []
        by_layer: dict[int, list[Head]] = {}
        for head in heads:
            by_layer.setdefault(names.node(head)[0], []).append(head)
        total = sum(len(who) * sum(names.depth(r) > layer for r in ends) for layer, who in by_layer.items())
        found: tuple[list[Head], list[Receiver], list[np.ndarray]] = ([], [], [])
        for layer, who in sorted(by_layer.items()):
            reached = [r for r in ends if names.depth(r) > layer]
            for part in _parts(who, self._variants(scene)):
                if reached:
                    self._edges_of(scene, part, reached, found, on_step, total)
        if not found[0]:
            raise UnbraidError("No sender lies before a receiver, so there is no edge to patch.")
        clean, corrupt = self._metric(scene.clean.logits), self._metric(scene.corrupt.logits)
        return Edges(found[0], found[1], np.concatenate(found[2]), clean, corrupt)

    def _edges_of(
        self,
        scene: Scene,
        who: list[Head],
        reached: list[Receiver],
        found: tuple[list[Head], list[Receiver], list[np.ndarray]],
        on_step: Callable[[int, int], None] | None,
        total: int,
    ) -> None:
        """All edges of some senders of one layer: one sender pass, then receivers layer by layer."""
        names = self.anatomy.names
        sent = self._send(scene, [frozenset([names.node(h)]) for h in who], reached)
        ordered = sorted(reached, key=names.depth)
        for depth in sorted({names.depth(r) for r in ordered}):
            pairs: list[Pair] = [(s, (r,)) for r in ordered if names.depth(r) == depth for s in range(len(who))]
            for part in _parts(pairs, self._variants(scene)):
                found[2].append(self._arrive(scene, sent, part))
                found[0].extend(who[s] for s, _ in part)
                found[1].extend(r for _, (r,) in part)
                if on_step is not None:
                    on_step(len(found[0]), total)

    @torch.no_grad()
    def attribution(self, tokens: Tokens, position: int = -1) -> np.ndarray:
        """Direct logit attribution: what each head adds to the logits of tokens, the final norm's scale held fixed.

        Args:
            tokens: [B, A] tokens.
            position: where, in the clean run.

        Returns:
            [heads, B, A], heads as in `heads`; the norm's mean and bias belong to no head and are left out.
        """
        anatomy, scene = self.anatomy, self.scene(position)
        asked = torch.as_tensor(tokens, device=anatomy.device)
        rows = anatomy.weight[asked].float()  # [B, A, d]
        frozen = scene.frozen or frozen_norms(scene.clean, scene.clean, self._gains)
        final = frozen[anatomy.exit].at(scene.inside).gain[:, 0] if anatomy.exit in frozen else 1.0
        out = []
        for i, n in enumerate(anatomy.heads):
            z = pick(scene.clean.z[i], scene.inside)  # [B, 1, H * V]
            each = torch.block_diag(*[torch.ones(z.shape[-1] // n)] * n).to(z)[:, None, None]
            write = project(anatomy, i, z[None] * each)[:, :, 0].float()
            post = scene.clean.post[i]
            if post is not None:
                write = write * frozen[post].at(scene.inside).gain[:, 0]
            out.append(torch.einsum("hbd,bad->hba", write * final, rows))
        return torch.cat(out).cpu().numpy()

    @torch.no_grad()
    def scene(self, positions: Positions) -> Scene:
        """The prompts with both runs, for some patched positions; kept until others are asked for."""
        at, fresh = self.batch.places(positions)
        if self._scene is not None and torch.equal(self._scene[0], at):
            return self._scene[1]
        self._scene = None
        if self._short is None:
            self._short = self.anatomy.takes_positions
            scene = self._make(at, fresh)
            self._short = self._short and not scene.clean.biased and self._agrees(scene)
            scene = scene if self._short else self._make(at, fresh)
        else:
            scene = self._make(at, fresh)
        self._scene = (at, scene)
        return scene

    def _make(self, at: Tensor, fresh: Tensor) -> Scene:
        b, start = self.batch, int(at.min()) if self._short else 0
        clean = take(self.anatomy, b.clean, b.tokens, start)
        corrupt = take(self.anatomy, b.corrupt, b.tokens, start)
        frozen: dict[nn.Module, Any] = {}
        if self.freeze_norm != "none":
            frozen = frozen_norms(clean, clean if self.freeze_norm == "clean" else corrupt, self._gains)
        return Scene(b.clean, b.tokens, at, fresh, clean, corrupt, frozen, self.freeze_mlps, bool(self._short))

    def _agrees(self, scene: Scene) -> bool:
        """Whether the model, continued at the first patched token, says what it says of the whole text."""
        nobody = Sent(
            query={0: torch.zeros(1, *pick(scene.clean.query[0], scene.inside, 2).shape, device=scene.ids.device)}
        )
        first = Receiver("q", self.anatomy.sites[0], 0)
        again = arrive(self.anatomy, scene, nobody, [(0, (first,))], "flow")[0]
        want: Tensor = scene.clean.logits
        tolerance = 2e-3 if self.anatomy.weight.dtype == torch.float32 else 5e-2
        return bool((again - want).abs().max() <= tolerance * (1 + want.abs().max()))

    def _send(self, scene: Scene, senders: list[frozenset[Node]], receivers: Sequence[Receiver]) -> Sent:
        names = self.anatomy.names
        layers = sorted({names.depth(r) for r in receivers if r.channel in ("q", "k", "v")})
        mlps = sorted({r.layer for r in receivers if r.channel == "mlp"})
        final = any(r.channel == "logits" for r in receivers)
        plain = not mlps and all(h != MLP for nodes in senders for _, h in nodes)
        if plain and self.freeze_mlps and self.freeze_norm != "none" and (scene.short or not layers):
            if self._linear is None:
                self._linear = self._adds_up(scene, senders[:2], layers, final)
            if self._linear:
                return send_linear(self.anatomy, scene, senders, layers, mlps, final)
        return send(self.anatomy, scene, senders, layers, mlps, final)

    def _adds_up(self, scene: Scene, senders: list[frozenset[Node]], layers: Collection[int], final: bool) -> bool:
        """Whether matrix products give what a run gives: not in models that scale what they add (Granite)."""
        by_run = send(self.anatomy, scene, senders, layers, (), final)
        by_hand = send_linear(self.anatomy, scene, senders, layers, (), final)
        tolerance = 1e-3 if self.anatomy.weight.dtype == torch.float32 else 5e-2
        pairs = [(by_run.query[i], by_hand.query[i]) for i in by_run.query if i in by_hand.query]
        pairs += [(by_run.value[i], by_hand.value[i]) for i in by_run.value if i in by_hand.value]
        pairs += [(by_run.final, by_hand.final)] if by_run.final is not None and by_hand.final is not None else []
        return all(float((a - b).abs().max()) <= tolerance * (float(a.abs().max()) + 1e-3) for a, b in pairs)

    def _arrive(self, scene: Scene, sent: Sent, pairs: Sequence[Pair]) -> np.ndarray:
        logits = arrive(self.anatomy, scene, sent, pairs, self.nested)
        return np.stack([self._metric(part) for part in logits])

    def _metric(self, logits: Tensor) -> np.ndarray:
        return log_odds(logits, self.batch.right, self.batch.wrong).cpu().numpy().astype(np.float64)

    def _variants(self, scene: Scene) -> int:
        tokens = scene.ids.shape[0] * (scene.ids.shape[1] - scene.clean.start)
        return max(1, self.rows // tokens)

    def _every(self) -> list[frozenset[Node]]:
        return [frozenset([self.anatomy.names.node(head)]) for head in self.heads]


def snapshot_of(patcher: PathPatcher, positions: Positions = -1) -> tuple[Snapshot, Snapshot]:
    """Clean and corrupt run as the patcher keeps them."""
    scene = patcher.scene(positions)
    return scene.clean, scene.corrupt


def _parts(items: list[Any], size: int) -> list[list[Any]]:
    return [items[at : at + size] for at in range(0, len(items), size)]
