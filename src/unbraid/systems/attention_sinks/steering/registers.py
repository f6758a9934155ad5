"""Test-time registers (arXiv 2506.08010): neurons that make outlier tokens are found and moved to a token of their own.

In a vision transformer the token is appended behind the patches and dropped after the last block. In a decoder every
token sees only what lies before it, so the token goes to the front, and since a maximum over later tokens would tell
the front about the future, the value of each neuron is the one measured when the neurons were found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.core.blocks import Block, blocks, listening, residual, with_residual
from unbraid.core.errors import UnbraidError
from unbraid.systems.attention_sinks.detection.findings import feed
from unbraid.systems.attention_sinks.detection.layout import Layout, layout_for, layouts


@dataclass
class RegisterNeurons:
    """Neurons of a model that write to outlier tokens.

    Attributes:
        layer: block whose output was looked at.
        threshold: norm above which a token counts as outlier there.
        outliers: outlier tokens that were found, per text on average.
        neurons: (block, neuron, mean magnitude at outlier tokens), strongest first.
        values: of each neuron, its mean signed value where it is largest.
    """

    layer: int
    threshold: float
    outliers: float
    neurons: list[tuple[int, int, float]] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def at(self, block: int) -> tuple[list[int], list[float]]:
        """(neurons of a block, their values)."""
        pairs = [(n, v) for (b, n, _), v in zip(self.neurons, self.values, strict=True) if b == block]
        return [n for n, _ in pairs], [v for _, v in pairs]


def find_register_neurons(
    model: nn.Module,
    inputs: Iterable[Mapping[str, Any]],
    layer: int | None = None,
    threshold: float | None = 30.0,
    top: int = 10,
    part: str | None = None,
) -> RegisterNeurons:
    """The MLP neurons with the largest mean magnitude at tokens whose norm is out of line.

    Args:
        model: a vision transformer or a language model.
        inputs: batches of keyword arguments (the paper uses 500 images).
        layer: block whose output tells outliers; None: the one where the largest norm exceeds the median most.
        threshold: norm above which a token is an outlier; None: five times the median norm of that block.
        top: neurons wanted.
        part: which stack, for a model of several; see `blocks`.

    Raises:
        UnbraidError: no batch, a layer that the model does not have, blocks without an MLP, or no outlier token.
    """
    batches = list(inputs)
    if not batches:
        raise UnbraidError("find_register_neurons needs at least one batch; the list is empty.")
    stack = blocks(model, part)
    if layer is not None and not 0 <= layer < len(stack):
        raise UnbraidError(f"layer is {layer}; {type(model).__name__} has blocks 0 to {len(stack) - 1}.")
    if top < 1:
        raise UnbraidError(f"top is {top}; it must be 1 or more.")
    norms = block_norms(model, stack, batches)
    if layer is None:
        layer = max(range(len(stack)), key=lambda i: max(float(n[i].max() / n[i].median()) for n in norms))
    limit = threshold if threshold is not None else 5 * float(torch.cat([n[layer].flatten() for n in norms]).median())
    marks = [n[layer] > limit for n in norms]
    found, texts = sum(int(m.sum()) for m in marks), sum(len(m) for m in marks)
    if not found:
        most = max(float(n[layer].max()) for n in norms)
        raise UnbraidError(
            f"no token of block {layer} has a norm above {limit:.4g} (the largest is {most:.4g}); lower threshold, or "
            "give None for five times the median."
        )
    usual = [block for block in stack[: layer + 1] if block.down is not None]
    if not usual:
        raise UnbraidError(f"the blocks of {type(model).__name__} up to {layer} have no MLP whose neurons can be read.")
    size, value = neuron_means(model, usual, batches, marks)
    ranked = sorted(((b.index, n, s) for b in usual for n, s in enumerate(size[b.index].tolist())), key=lambda x: -x[2])
    best = ranked[:top]
    return RegisterNeurons(layer, limit, found / texts, best, [float(value[b][n]) for b, n, _ in best])


@torch.no_grad()
def block_norms(model: nn.Module, stack: list[Block], batches: list[Mapping[str, Any]]) -> list[list[Tensor]]:
    """Per batch, per block: norms of the residual stream [B, T], 0 at padding."""
    found = []
    for batch in batches:
        here: list[Tensor] = []
        with listening({block.module: keep_norms(here, layouts(batch)) for block in stack}):
            feed(model, batch)
        found.append(here)
    return found


def keep_norms(here: list[Tensor], known: list[Layout]) -> Any:
    """A hook that keeps the norms of a residual stream."""

    def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        h = residual(output).float()
        here.append(h.norm(dim=-1) * layout_for(known, h.shape[0], h.shape[1], h.device).valid)

    return keep


@torch.no_grad()
def neuron_means(
    model: nn.Module, stack: list[Block], batches: list[Mapping[str, Any]], marks: list[Tensor]
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Block -> (mean magnitude of each neuron at outlier tokens, mean of its largest signed value per text)."""
    size: dict[int, Tensor] = {}
    value: dict[int, Tensor] = {}
    weight, texts = 0, 0
    for batch, mark in zip(batches, marks, strict=True):
        weight, texts = weight + int(mark.sum()), texts + len(mark)

        def look(index: int, mark: Tensor = mark) -> Any:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
                a = args[0].detach().float().reshape(*mark.shape, -1)
                size[index] = size.get(index, 0) + (a.abs() * mark[..., None]).sum((0, 1))
                value[index] = value.get(index, 0) + signed_max(a, 1).sum(0)[0]

            return hook

        with listening(before={b.down: look(b.index) for b in stack if b.down is not None}):
            feed(model, batch)
    return {i: x / weight for i, x in size.items()}, {i: x / texts for i, x in value.items()}


def signed_max(x: Tensor, dim: int) -> Tensor:
    """The entry of largest magnitude along a dimension, with its sign; the dimension stays with length 1."""
    return x.gather(dim, x.abs().argmax(dim, keepdim=True))


@contextmanager
def registers_at_test_time(
    model: Any, found: RegisterNeurons, count: int = 1, part: str | None = None
) -> Iterator[None]:
    """Moves the found neurons to `count` tokens of their own, for the length of the block; outputs keep their shape.

    Args:
        model: the model in which they were found: an encoder of pictures or text, or a decoder (forward passes without
            a cache; what is generated token by token cannot be given a token in front).
        found: from `find_register_neurons`.
        count: tokens added.
        part: which stack, for a model of several; see `blocks`.

    Raises:
        UnbraidError: a count below 1, or a model whose positions leave no place for a token.
    """
    from transformers import PreTrainedModel

    if count < 1:
        raise UnbraidError(f"count is {count}; add 1 token or more.")
    stack = blocks(model, part)
    front = isinstance(model, PreTrainedModel) and model.can_generate() and not model.config.is_encoder_decoder
    before: dict[nn.Module, Any] = {}
    after: dict[nn.Module, Any] = {}
    if front:
        before[model], after[model] = prepend(model, count)
    else:
        before[stack[0].module] = append(count)
        after[stack[-1].module] = lambda module, args, kwargs, out: with_residual(out, residual(out)[:, :-count])
    for block in stack:
        neurons, values = found.at(block.index)
        if neurons and block.down is not None:
            before[block.down] = moved(neurons, values if front else None, count)
    with listening(after, before=before):
        yield


def moved(neurons: list[int], values: list[float] | None, count: int) -> Any:
    """A hook on an MLP's last projection: the neurons speak on the added tokens only."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        a = args[0].clone()
        own = slice(0, count) if values is not None else slice(a.shape[1] - count, None)
        rest = slice(count, None) if values is not None else slice(0, a.shape[1] - count)
        if values is None:
            new = signed_max(a[:, rest, neurons], 1)
        else:
            new = torch.as_tensor(values, device=a.device, dtype=a.dtype)
        a[:, rest, neurons] = 0.0
        a[:, own, neurons] = new.to(a.dtype).expand(a.shape[0], count, -1)
        return (a, *args[1:]), kwargs

    return hook


def append(count: int) -> Any:
    """A hook on the first block of an encoder: zero tokens behind the others, seen by all."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = dict(kwargs)
        if given.get("position_embeddings") is not None:
            raise UnbraidError("This encoder rotates by position and has no place for a token without one.")
        h = args[0] if args else given["hidden_states"]
        h = torch.cat([h, h.new_zeros(h.shape[0], count, h.shape[2])], 1)
        mask = given.get("attention_mask")
        if isinstance(mask, Tensor):
            seen = torch.ones if mask.dtype == torch.bool else torch.zeros
            wide = torch.cat([mask, seen(*mask.shape[:-1], count, dtype=mask.dtype, device=mask.device)], -1)
            rows = wide[..., -1:, :].expand(*wide.shape[:-2], count, -1)
            given["attention_mask"] = torch.cat([wide, rows], -2) if mask.shape[-2] > 1 else wide
        if args:
            return (h, *args[1:]), given
        return args, {**given, "hidden_states": h}

    return hook


def prepend(model: Any, count: int) -> tuple[Any, Any]:
    """Hooks on a decoder: zero embeddings in front of the text, and their outputs cut off again."""
    length = 0

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal length
        given = dict(kwargs)
        past = given.get("past_key_values")
        if past is not None and past.get_seq_length():
            raise UnbraidError("Registers of a decoder are for whole texts, not for steps with a cache.")
        ids = given.pop("input_ids", None)
        ids = args[0] if ids is None and args else ids
        h = given.get("inputs_embeds")
        h = model.get_input_embeddings()(ids) if h is None else h
        length = h.shape[1]
        mask = given.get("attention_mask")
        mask = torch.ones(h.shape[:2], dtype=torch.int64, device=h.device) if mask is None else mask
        given["attention_mask"] = torch.nn.functional.pad(mask, (count, 0), value=1)
        given["inputs_embeds"] = torch.cat([h.new_zeros(h.shape[0], count, h.shape[2]), h], 1)
        given.pop("position_ids", None)
        given["use_cache"] = False
        return args[1:], given

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        for name in ("logits", "last_hidden_state"):
            whole = output.get(name)
            if whole is not None and whole.shape[1] > length:
                output[name] = whole[:, -length:]
        return output

    return enter, leave
