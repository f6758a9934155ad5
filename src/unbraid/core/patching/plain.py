"""Path patching to the letter: two whole forwards per sender, every token, every layer. The measure of the fast one.

This is what the paper describes and what most people write; tests compare with it and the benchmark races it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unbraid.core.attach import attach
from unbraid.core.blocks import listening, residual, with_residual
from unbraid.core.calls import AttentionCall, Tap
from unbraid.core.errors import UnbraidError
from unbraid.core.patching.anatomy import Anatomy, hidden_of, with_hidden
from unbraid.core.patching.batch import Tokens, check_batch, log_odds
from unbraid.core.patching.nodes import MLP, Receiver, Receivers, Sender
from unbraid.core.patching.norms import probe


class PlainPatcher:
    """The definition, unbatched: arguments as for `PathPatcher`, and the last token is what is patched.

    Args:
        model: a decoder language model in evaluation mode.
        clean: [B, T] tokens.
        corrupt: [B, T] tokens.
        answers: [B] or [B, a] tokens.
        distractors: [B] or [B, b] tokens.
        freeze_norm: "clean" or "none".
        freeze_mlps: whether MLPs keep their clean outputs in the sender pass.
    """

    def __init__(
        self,
        model: nn.Module,
        clean: Tokens,
        corrupt: Tokens,
        answers: Tokens,
        distractors: Tokens,
        *,
        freeze_norm: str = "clean",
        freeze_mlps: bool = False,
    ) -> None:
        if freeze_norm not in ("none", "clean"):
            raise UnbraidError(f"PlainPatcher knows freeze_norm='none' and 'clean', not {freeze_norm!r}.")
        self.anatomy = Anatomy(model)
        self.batch = check_batch(self.anatomy, clean, corrupt, answers, distractors)
        self.freeze_norm, self.freeze_mlps = freeze_norm, freeze_mlps
        last = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.options: dict[str, Any] = {"use_cache": False, **({"logits_to_keep": 1} if last else {})}
        self.norms: dict[nn.Module, tuple[Tensor, Tensor, Tensor]] = {}
        self.clean = self._look(self.batch.clean)
        self.corrupt = self._look(self.batch.corrupt)

    @torch.no_grad()
    def effect(self, sender: Sender, receivers: Receivers, position: int = -1) -> np.ndarray:
        """[B] metric with the paths from a sender to all receivers patched."""
        nodes, ends = self.anatomy.names.nodes(sender), self.anatomy.names.receivers(receivers)
        found = self._sender_pass(nodes, position)
        return self._receiver_pass(ends, found, position)

    @property
    def baselines(self) -> tuple[np.ndarray, np.ndarray]:
        """([B], [B]) metric of the clean and of the corrupt run."""
        return self._metric(self.clean["logits"]), self._metric(self.corrupt["logits"])

    def _metric(self, logits: Tensor) -> np.ndarray:
        b = self.batch
        return log_odds(logits.gather(1, b.tokens).float(), b.right, b.wrong).detach().cpu().numpy().astype(np.float64)

    @torch.no_grad()
    def _look(self, ids: Tensor) -> dict[str, Any]:
        found: dict[str, Any] = {"z": {}, "mlp": {}}
        before: dict[nn.Module, Any] = {}
        after: dict[nn.Module, Any] = {}
        for i, b in enumerate(self.anatomy.blocks):
            before[b.out] = _store(found["z"], i)  # type: ignore[index]
            writer = self.anatomy.writer(i)
            if writer is not None:
                after[writer] = _store_output(found["mlp"], i)
        seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        if self.freeze_norm == "clean" and not self.norms:
            for norm in self._all_norms():
                after[norm] = _store_both(seen)
        with listening(after, before):
            found["logits"] = self.anatomy.model(input_ids=ids, **self.options).logits[:, -1]
        for norm, (x, y) in seen.items():
            gain = probe(norm, x)
            self.norms[norm] = (x, y, gain.scale(x, y) * gain.weight)
        return found

    def _all_norms(self) -> list[nn.Module]:
        norms = [m for i in range(self.anatomy.depth) for m in self.anatomy.norms(i)]
        return norms + ([self.anatomy.exit] if self.anatomy.exit is not self.anatomy.head else [])

    def _sender_pass(self, nodes: frozenset[tuple[int, int]], position: int) -> dict[str, Any]:
        before: dict[nn.Module, Any] = {}
        after = self._freezing()
        for i, b in enumerate(self.anatomy.blocks):
            z = self.clean["z"][i].clone()
            width = z.shape[-1] // self.anatomy.heads[i]
            for layer, h in nodes:
                if layer == i and h != MLP:
                    at = slice(h * width, (h + 1) * width)
                    z[:, position, at] = self.corrupt["z"][i][:, position, at]
            before[b.out] = _put(z)  # type: ignore[index]
            writer = self.anatomy.writer(i)
            if writer is None:
                continue
            if self.freeze_mlps:
                after[writer] = _give(self.clean["mlp"][i])
            if (i, MLP) in nodes:
                own = self.clean["mlp"][i].clone() if self.freeze_mlps else None
                after[writer] = _exchange(self.corrupt["mlp"][i], position, own)
        watch = _Calls()
        mlps: dict[int, Tensor] = {}
        for i, mlp in enumerate(self.anatomy.mlps):
            if mlp is not None:
                before[mlp] = _store(mlps, i)
        final: dict[int, Tensor] = {}
        before[self.anatomy.exit] = _store(final, 0)
        with attach(self.anatomy.model, watch), listening(after, before):
            self.anatomy.model(input_ids=self.batch.clean, **self.options)
        return {"calls": watch.calls, "mlp": mlps, "final": final[0]}

    def _receiver_pass(self, ends: tuple[Receiver, ...], found: dict[str, Any], position: int) -> np.ndarray:
        before: dict[nn.Module, Any] = {}
        for r in ends:
            if r.channel == "logits":
                before[self.anatomy.exit] = _put_at(found["final"], position)
            elif r.channel == "mlp":
                before[self.anatomy.mlps[r.layer]] = _put_at(found["mlp"][r.layer], position)  # type: ignore[index]
        with attach(self.anatomy.model, _Listen(ends, found["calls"])), listening(self._freezing(), before):
            out = self.anatomy.model(input_ids=self.batch.clean, **self.options)
        return self._metric(out.logits[:, -1])

    def _freezing(self) -> dict[nn.Module, Any]:
        def frozen(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Tensor:
            x, y, gain = self.norms[module]
            return y + (hidden_of(args, kwargs) - x) * gain.to(x.dtype)

        return dict.fromkeys(self.norms, frozen)


class _Calls(Tap):
    """Queries, keys and values of every site, all tokens."""

    def __init__(self) -> None:
        self.calls: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def call(self, c: AttentionCall) -> None:
        self.calls[c.site] = (c.query, c.key, c.value)


class _Listen(Tap):
    """Receiving heads computed densely from the given queries, keys and values, one by one."""

    def __init__(self, ends: tuple[Receiver, ...], calls: dict[str, tuple[Tensor, Tensor, Tensor]]) -> None:
        self.ends, self.calls = ends, calls

    def out(self, c: AttentionCall, y: Tensor) -> Tensor | None:
        mine: dict[int, set[str]] = {}
        for r in self.ends:
            if r.channel in ("q", "k", "v") and r.site == c.site:
                mine.setdefault(r.head, set()).add(r.channel)
        y = y.clone() if mine else y
        for head, channels in mine.items():
            q, k, v = (
                c.expand(new if name in channels else own)[:, head].float()
                for name, new, own in zip("qkv", self.calls[c.site], (c.query, c.key, c.value), strict=True)
            )
            logits = q @ k.transpose(-1, -2) * c.scale
            logits = logits if c.softcap is None else c.softcap * torch.tanh(logits / c.softcap)
            seen = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
            if c.mask is not None:
                mask = c.mask if c.mask.dtype == torch.bool else c.mask > -1e4
                seen = seen & mask.expand(c.batch, c.heads, -1, -1)[:, head]
            logits = logits.masked_fill(~seen, -torch.inf)
            if c.sinks is not None:
                sink = c.sinks[head].float().expand(*logits.shape[:-1], 1)
                logits = torch.cat([logits, sink], -1)
            y[:, head] = (logits.softmax(-1)[..., : k.shape[1]] @ v).to(y.dtype)
        return y


def _store(where: dict[int, Tensor], i: int) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        where[i] = hidden_of(args, kwargs).clone()

    return hook


def _store_output(where: dict[int, Tensor], i: int) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        where[i] = residual(output).clone()

    return hook


def _store_both(where: dict[nn.Module, tuple[Tensor, Tensor]]) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        where[module] = (hidden_of(args, kwargs).clone(), output.clone())

    return hook


def _put(new: Tensor) -> Callable[..., Any]:
    return lambda module, args, kwargs: with_hidden(new, args, kwargs)


def _put_at(new: Tensor, position: int) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        x = hidden_of(args, kwargs).clone()
        x[:, position] = new[:, position]
        return with_hidden(x, args, kwargs)

    return hook


def _give(new: Tensor) -> Callable[..., Any]:
    return lambda module, args, kwargs, output: with_residual(output, new)


def _exchange(new: Tensor, position: int, own: Tensor | None) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        x = residual(output).clone() if own is None else own.clone()
        x[:, position] = new[:, position]
        return with_residual(output, x)

    return hook
