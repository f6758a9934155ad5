"""The blocks of a transformer, found by structure: where the residual stream, the heads and the MLP can be read.

What runs through `attach` needs none of this. It is for methods that also read what attention writes to: the residual
stream after each block, the MLP's output, the input of the attention's last projection (all heads side by side).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from unbraid.core.errors import UnbraidError

After = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]
Before = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]


@dataclass(frozen=True, eq=False)
class Block:
    """One block of a stack.

    Attributes:
        index: depth in its stack, from 0.
        name: qualified module name.
        module: its output, or the first of a tuple, is the residual stream [batch, tokens, width].
        site: name of its (first) self-attention as `attach` names it.
        attention: that attention.
        out: the attention's last projection; its input is the heads' outputs side by side,
            [batch, tokens, heads * value width]. None when the attention has none.
        mlp: the feed-forward part as one module; None when its layers lie in the block itself (OPT, Whisper, BERT).
        down: the MLP's last projection; None for experts that keep their weights in one tensor.
        norms: name inside the block and module of every normalisation of the block.
    """

    index: int
    name: str
    module: nn.Module
    site: str
    attention: nn.Module
    out: nn.Module | None
    mlp: nn.Module | None
    down: nn.Module | None
    norms: tuple[tuple[str, nn.Module], ...] = field(default=())

    @property
    def writer(self) -> nn.Module | None:
        """The module whose output the MLP adds to the residual stream: `mlp`, else `down`."""
        return self.mlp if self.mlp is not None else self.down


def blocks(model: nn.Module, part: str | None = None) -> list[Block]:
    """The blocks of a model's stack, in order of depth; nothing is run.

    Args:
        model: a transformer: any module with a list of layers that hold attention.
        part: name (or its beginning) of the part to look in, e.g. "model.encoder"; None takes the only stack, and of
            several the decoder's.

    Returns:
        One `Block` per layer.

    Raises:
        UnbraidError: no stack, several stacks and no decoder among them, or `part` names none.
    """
    stacks = _stacks(model)
    if part is not None:
        found = {name: b for name, b in stacks.items() if name == part or name.startswith(part)}
        if not found:
            raise UnbraidError(f"part={part!r} holds no stack of blocks; choose from {_names(stacks)}.")
        stacks = found
    if not stacks:
        raise UnbraidError(
            f"{type(model).__name__} has no list of layers with attention in it, so there are no blocks to read; "
            'read its attention with `attach(model, ..., sites="...")` instead.'
        )
    if len(stacks) > 1:
        stacks = _decoder_of(model, stacks)
    if len(stacks) > 1:
        raise UnbraidError(f"{type(model).__name__} has several stacks of blocks; say part= one of {_names(stacks)}.")
    return next(iter(stacks.values()))


def final_norm(model: nn.Module, part: str | None = None) -> nn.Module | None:
    """The normalisation after the last block, or None."""
    stack = blocks(model, part)[0].name.rpartition(".")[0]
    parent = model.get_submodule(stack.rpartition(".")[0])
    before, after = None, None
    seen = False
    for name, child in parent.named_children():
        if is_norm(child):
            before, after = (before, child) if seen else (child, after)
        seen = seen or name == stack.rpartition(".")[2]
    return after if after is not None else before  # OPT declares its own before the list


def unembedding(model: nn.Module) -> nn.Module:
    """The projection from the residual stream to logits.

    Raises:
        UnbraidError: the model has none.
    """
    from transformers import PreTrainedModel

    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    if head is None:
        raise UnbraidError(f"{type(model).__name__} has no output embedding; load it with AutoModelForCausalLM.")
    return head


@dataclass(frozen=True)
class Shape:
    """Heads of a site: query heads, key/value heads, width of a head."""

    site: str
    heads: int
    key_heads: int
    width: int


def heads_of(model: nn.Module, part: str | None = None) -> list[Shape]:
    """Head counts and head widths of every block, read from the model's configuration.

    Raises:
        UnbraidError: the model has no configuration that says how many heads it has.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise UnbraidError(f"{type(model).__name__} is no transformers model, so its head counts are not known.")
    stack = blocks(model, part)
    config = model.config.get_text_config(decoder=True) if part is None else model.config
    known = {name: value for name, value in config.to_dict().items() if value is not None}
    known |= {common: known[own] for common, own in config.attribute_map.items() if own in known}
    heads = known.get("num_attention_heads")
    if heads is None:
        raise UnbraidError(f"The configuration of {type(model).__name__} has no num_attention_heads.")
    width = known.get("head_dim") or known["hidden_size"] // heads
    return [Shape(b.site, int(heads), int(known.get("num_key_value_heads", heads)), int(width)) for b in stack]


def residual(output: Any) -> Tensor:
    """The residual stream in what a block returned."""
    return output[0] if isinstance(output, (tuple, list)) else output


def with_residual(output: Any, new: Tensor) -> Any:
    """What a block returned, with another residual stream."""
    return (new, *output[1:]) if isinstance(output, tuple) else new


@contextmanager
def listening(
    after: Mapping[nn.Module, After | Sequence[After]] | None = None,
    before: Mapping[nn.Module, Before | Sequence[Before]] | None = None,
) -> Iterator[None]:
    """Calls functions after or before modules run; every hook is gone afterwards, also after an exception.

    Args:
        after: module -> fn(module, args, kwargs, output), which may return a new output.
        before: module -> fn(module, args, kwargs), which may return new (args, kwargs).
    """
    handles = []
    try:
        for module, ones in (after or {}).items():
            several = [ones] if callable(ones) else ones
            handles += [module.register_forward_hook(one, with_kwargs=True) for one in several]
        for module, firsts in (before or {}).items():
            many = [firsts] if callable(firsts) else firsts
            handles += [module.register_forward_pre_hook(first, with_kwargs=True) for first in many]
        yield
    finally:
        for handle in handles:
            handle.remove()


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises (LayerNorm, RMSNorm, and what models call theirs)."""
    return "norm" in type(module).__name__.lower()


def is_linear(module: nn.Module) -> bool:
    """Whether a module is one matrix product: Linear, GPT-2's Conv1D, or either inside an adapter."""
    if isinstance(module, nn.Linear) or "base_layer" in dict(module.named_children()):
        return True
    return "weight" in (own := dict(module.named_parameters(recurse=False))) and (
        own["weight"].dim() == 2 and not isinstance(module, nn.Embedding)
    )


def linears(module: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """All matrix products of a module by name, in order of declaration; adapters count as one."""
    if is_linear(module):
        return [(prefix, module)]
    found = []
    for name, child in module.named_children():
        found += linears(child, f"{prefix}.{name}" if prefix else name)
    return found


def _is_attention(module: nn.Module) -> bool:
    return "attention" in type(module).__name__.lower()


def _innermost(module: nn.Module) -> tuple[str, nn.Module]:
    """The deepest module with attention in its class name, first in order: the one whose forward attends."""
    deepest = ("", module)
    for name, inner in module.named_modules():
        if _is_attention(inner) and name.startswith(deepest[0]):
            deepest = (name, inner)
    return deepest


def _stacks(model: nn.Module) -> dict[str, list[Block]]:
    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)) or len(module) == 0:
            continue
        layers = list(module.children())
        made = [_block(f"{name}.{i}" if name else str(i), i, layer) for i, layer in enumerate(layers)]
        whole = [b for b in made if b is not None]
        if len(whole) == len(made):
            found[name] = whole
    # T5 keeps the parts of a block in a list of their own: a list inside a block of another list is no stack
    inside = [n for n in found if any(n != o and n.startswith(o + ".") for o in found)]
    return {name: stack for name, stack in found.items() if name not in inside}


def _block(name: str, index: int, layer: nn.Module) -> Block | None:
    parts = _parts(layer)
    attentions = [(n, m) for n, m in parts if _is_attention(m)]
    if not attentions:
        return None
    at, outer = attentions[0]
    inner_name, inner = _innermost(outer)
    inside = linears(outer)
    taken = {id(m) for _, a in attentions for m in a.modules()}
    rest = [(n, m) for n, m in parts if id(m) not in taken and not is_norm(m)]
    mlp = next((m for _, m in rest if _feeds(m)), None)
    down = linears(mlp) if mlp is not None else [pair for n, m in rest for pair in linears(m, n)]
    if mlp is not None and any(p.dim() > 2 for p in mlp.parameters()):
        down = []  # experts that keep their weights in one tensor: what looks like a projection is the router
    return Block(
        index=index,
        name=name,
        module=layer,
        site=".".join(p for p in (name, at, inner_name) if p),
        attention=inner,
        out=inside[-1][1] if inside else None,
        mlp=mlp,
        down=down[-1][1] if down else None,
        norms=tuple((n, m) for n, m in layer.named_modules() if n and is_norm(m)),
    )


def _feeds(module: nn.Module) -> bool:
    """Whether a child of a block is its feed-forward part: several matrices, or experts' weights stacked in one."""
    if is_linear(module):
        return False
    return len(linears(module)) > 1 or any(p.dim() > 2 for p in module.parameters())


def _parts(layer: nn.Module) -> list[tuple[str, nn.Module]]:
    """The children of a layer; T5's hold theirs in a list of sub-layers."""
    children = list(layer.named_children())
    if len(children) == 1 and isinstance(children[0][1], nn.ModuleList):
        name, inner = children[0]
        return [(f"{name}.{i}", m) for i, m in enumerate(inner.children())]
    return children


def _decoder_of(model: nn.Module, stacks: dict[str, list[Block]]) -> dict[str, list[Block]]:
    """Of several stacks, those in the part that transformers calls the decoder; all where there is no such part."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        return stacks
    decoder = model.get_decoder()
    inside = {id(m) for m in decoder.modules()} if decoder is not None and decoder is not model else set()
    return {n: s for n, s in stacks.items() if id(s[0].module) in inside} or stacks


def _names(stacks: Mapping[str, object]) -> str:
    return ", ".join(repr(n) for n in stacks) or "none"
