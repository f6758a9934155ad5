"""Where a decoder can be cut open, and runs of a part of it: some tokens, some layers, the rest standing still."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.core.attach import attach
from unbraid.core.blocks import (
    Block,
    blocks,
    final_norm,
    heads_of,
    listening,
    residual,
    unembedding,
    with_residual,
)
from unbraid.core.calls import Tap
from unbraid.core.errors import UnbraidError
from unbraid.core.patching.nodes import Names

Hooks = dict[nn.Module, list[Any]]


class Anatomy:
    """The parts of a decoder language model that path patching reads and writes.

    Args:
        model: a decoder language model of transformers, in evaluation mode.

    Raises:
        UnbraidError: the model is training, has no blocks, or attention without a last projection.
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise UnbraidError(f"Path patching needs a language model (a torch.nn.Module), not {type(model).__name__}.")
        if model.training:
            raise UnbraidError("Path patching needs model.eval(): dropout would make every run another one.")
        self.model = model
        self.head = unembedding(model)
        self.blocks: list[Block] = blocks(model)
        shapes = heads_of(model)
        self.heads = [s.heads for s in shapes]
        self.key_heads = [s.key_heads for s in shapes]
        self.sites = [b.site for b in self.blocks]
        self.mlps = [b.mlp for b in self.blocks]
        self.names = Names(self.sites, self.heads, [m is not None for m in self.mlps])
        for b in self.blocks:
            if b.out is None:
                raise UnbraidError(
                    f"{b.site!r} has no last projection, so what its heads write cannot be told apart; path patching "
                    "needs attention with an output projection."
                )
        self.exit: nn.Module = final_norm(model) or self.head
        weight = dict(self.head.named_parameters(recurse=False)).get("weight")
        if weight is None or weight.dim() != 2:
            raise UnbraidError("The output embedding of this model has no plain weight matrix; merge adapters first.")
        self.vocabulary, self.width, self.weight = weight.shape[0], weight.shape[1], weight
        self.bias = dict(self.head.named_parameters(recurse=False)).get("bias")
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self.tuples = [False] * len(self.blocks)  # whether a block returns a tuple; known after the first run
        self.mlp_tuples = [False] * len(self.blocks)

    def writer(self, layer: int) -> nn.Module | None:
        """The module whose output the MLP of a layer adds to the residual stream."""
        return self.mlps[layer] if self.mlps[layer] is not None else self.blocks[layer].down

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.weight.device

    def norms(self, layer: int) -> list[nn.Module]:
        """Norms of a block on the residual stream; those inside attention (of queries and keys) belong to the head."""
        inside = {id(m) for m in self.blocks[layer].attention.modules()}
        return [m for _, m in self.blocks[layer].norms if id(m) not in inside]

    def inputs(self, ids: Tensor, positions: Tensor | None) -> dict[str, Any]:
        """Keyword arguments of the model for tokens [N, F] at positions [N, F]."""
        found: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if positions is not None and self.takes_positions:
            found["position_ids"] = positions
        return found

    @torch.no_grad()
    def run(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        *,
        tokens: Tensor | None = None,
        skip: Sequence[int] = (),
        entry: tuple[int, Tensor] | None = None,
        before: Hooks | None = None,
        after: Hooks | None = None,
        instead: Mapping[nn.Module, Callable[..., Any]] | None = None,
        tap: Tap | None = None,
    ) -> Tensor | None:
        """Runs the model, or a part of it.

        Args:
            ids: [N, F] tokens.
            positions: [N, F] their places in the text; None when they are all of it.
            tokens: [N, A] whose logits are wanted at the last token; None for none.
            skip: layers that hand on what they are given.
            entry: (layer, hidden [N, F, d]): what this layer is given; the number of layers means the final norm.
            before: module -> hooks that run before it.
            after: module -> hooks that run after it.
            instead: module -> function that runs in its place.
            tap: sees the attention calls.

        Returns:
            [N, A] float32 logits of `tokens`, after what the model does to them (soft caps, scaling).
        """
        before = {m: list(hooks) for m, hooks in (before or {}).items()}
        if entry is not None:
            module = self.exit if entry[0] == self.depth else self.blocks[entry[0]].module
            before[module] = [_enter(entry[1]), *before.get(module, [])]
        stand: dict[nn.Module, Callable[..., Any]] = {self.head: self._reader(tokens)}
        stand |= {self.blocks[i].module: _hand_on(self.tuples[i]) for i in skip}
        stand |= dict(instead or {})
        with ExitStack() as stack:
            stack.enter_context(standing_in(stand))
            stack.enter_context(listening(after, before))
            if tap is not None:
                stack.enter_context(attach(self.model, tap, strict=False))
            out = self.model(**self.inputs(ids, positions))
        return None if tokens is None else out.logits[:, 0].float()

    def _reader(self, tokens: Tensor | None) -> Callable[[Tensor], Tensor]:
        """In the place of the output embedding: a few rows of it, for the last token."""

        def forward(hidden: Tensor) -> Tensor:
            last = hidden[:, -1].float()
            if tokens is None:
                return last[:, None, :1]
            out = (self.weight[tokens].float() * last[:, None]).sum(-1)
            return (out if self.bias is None else out + self.bias[tokens].float())[:, None]

        return forward


def hidden_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states that a module is given."""
    return args[0] if args else kwargs["hidden_states"]


def with_hidden(new: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with other hidden states."""
    return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})


def given(new: Tensor) -> Callable[..., Any]:
    """A hook before a module that gives it other hidden states."""
    return lambda module, args, kwargs: with_hidden(new, args, kwargs)


_enter = given


def _hand_on(as_tuple: bool) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = hidden_of(args, kwargs)
        return (hidden,) if as_tuple else hidden

    return forward


def rewritten(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """A hook after a module that changes its output (the first, of several)."""
    return lambda module, args, kwargs, output: with_residual(output, change(residual(output)))


@contextmanager
def standing_in(functions: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Puts functions in the place of modules' forwards; all is as before afterwards, also after an exception."""
    own = {module: vars(module).get("forward") for module in functions}
    try:
        for module, function in functions.items():
            vars(module)["forward"] = function
        yield
    finally:
        for module, old in own.items():
            if old is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = old
