"""Step 5: where inside the MLP the direction appears, against other occurrences of the same tokens; and which neurons.

Reference: arXiv 2512.22213, notebooks 03.a and 03.b.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unbraid.core.blocks import Block, blocks, listening, residual
from unbraid.core.errors import UnbraidError
from unbraid.core.inputs import lean_inputs

STREAM = "stream"


@dataclass
class Stages:
    """Cosines with the primary sink at successive points of one MLP.

    Attributes:
        layer: the block.
        names: of the points, in order of execution: "input", the MLP's own modules, "hidden" (input of the last
            projection), "output" and, where a norm stands between the MLP and the stream, "written", all compared
            with the primary sink at the same point; and "written, primary's stream": what joins the stream, compared
            with the primary sink's residual stream after the block.
        sinks: [points, sinks] cosines.
        controls: [points, controls] cosines of other occurrences of the same tokens.
    """

    layer: int
    names: list[str]
    sinks: np.ndarray
    controls: np.ndarray


def mlp_stages(
    model: nn.Module,
    input_ids: Tensor,
    layer: int,
    positions: Sequence[int],
    primary: int,
    controls: Sequence[int] = (),
) -> Stages:
    """Compares tokens with the primary sink at every point of a block's MLP.

    Args:
        model: a transformer whose block has its MLP as one module.
        input_ids: [1, tokens].
        layer: the block.
        positions: of the sinks that appear there.
        primary: position of the primary sink.
        controls: positions to compare with; `same_tokens` finds them.
    """
    seen = capture(model, input_ids, [layer])[layer]
    pairs = {name: (x, x[primary]) for name, x in seen.items() if name != STREAM}
    pairs[f"written, primary's {STREAM}"] = (seen.get("written", seen["output"]), seen[STREAM][primary])
    names = list(pairs)

    def cosines(at: Sequence[int]) -> np.ndarray:
        rows = [torch.cosine_similarity(x[list(at)], b[None], dim=-1).numpy() for x, b in pairs.values()]
        return np.stack(rows) if len(at) else np.zeros((len(names), 0))

    return Stages(layer, names, cosines(positions), cosines(controls))


def same_tokens(input_ids: Tensor, positions: Sequence[int], avoid: Sequence[int], limit: int = 512) -> list[int]:
    """Other positions of the tokens at `positions`: never one of `avoid`, nor one of the first three.

    Args:
        input_ids: [1, tokens].
        positions: of the sinks.
        avoid: all sinks of the text.
        limit: at the most so many, spread evenly.
    """
    ids = input_ids[0].cpu().numpy()
    wanted = np.isin(ids, ids[list(positions)])
    wanted[[*avoid, *range(min(3, len(ids)))]] = False
    found = np.flatnonzero(wanted)
    return [
        int(x) for x in found[np.unique(np.linspace(0, len(found) - 1, min(limit, len(found))).round().astype(int))]
    ]


def capture(model: nn.Module, input_ids: Tensor, layers: Sequence[int]) -> dict[int, dict[str, Tensor]]:
    """What passes the points of some blocks' MLPs: block -> point -> [tokens, width], float32 on the CPU.

    The last point, "stream", is the residual stream after the block.

    Raises:
        UnbraidError: a block does not exist or has no MLP of its own module.
    """
    stack = blocks(model)
    kept: dict[int, dict[str, Tensor]] = {}
    raw: dict[int, Tensor] = {}
    after: dict[nn.Module, Any] = {}
    before: dict[nn.Module, Any] = {}
    for layer in layers:
        if not 0 <= layer < len(stack):
            raise UnbraidError(f"Block {layer} does not exist; the model has blocks 0 to {len(stack) - 1}.")
        mlp, down, store = mlp_of(stack[layer]), stack[layer].down, kept.setdefault(layer, {})
        before[mlp] = _first(store, "input")
        for name, module in mlp.named_modules():
            if name and module is not down and not list(module.children()):
                after[module] = _result(store, name)
        if down is not None:
            before[down] = _first(store, "hidden")
        after[mlp] = [_result(store, "output"), _raw(raw, layer)]
        after |= {m: _written(store, raw, layer) for _, m in stack[layer].norms if m not in after}
        after[stack[layer].module] = _result(store, STREAM)
    with listening(after, before), torch.no_grad():
        model(**lean_inputs(model, input_ids))
    return kept


def mlp_of(block: Block) -> nn.Module:
    """The block's MLP as one module.

    Raises:
        UnbraidError: its layers lie in the block itself.
    """
    if block.mlp is None:
        raise UnbraidError(
            f"The MLP of {block.name} is no module of its own, so nothing can be read between its projections; the "
            "detector and `decompose` work on this model, the stages of the MLP do not."
        )
    return block.mlp


def top_neurons(
    model: nn.Module, input_ids: Tensor, layer: int, position: int, primary: int, count: int = 10
) -> list[dict[str, Any]]:
    """Neurons of a block's MLP by how much of the write along the primary sink's stream they make at one token.

    Args:
        model: a transformer.
        input_ids: [1, tokens].
        layer: the block.
        position: of the token.
        primary: position of the primary sink.
        count: how many.

    A norm after the MLP (Gemma) is left out of account.

    Returns:
        Rows: neuron, contribution (units of the stream), share of the whole, and its activation.
    """
    down = blocks(model)[layer].down
    if down is None:
        raise UnbraidError(f"Block {layer} has no last projection (experts?), so its neurons cannot be told apart.")
    seen = capture(model, input_ids, [layer])[layer]
    hidden = seen["hidden"]
    weight = dict(down.named_parameters())["weight"].detach().float().cpu()
    weight = weight if isinstance(down, nn.Linear) else weight.T  # GPT-2's Conv1D keeps [in, out]
    direction = torch.nn.functional.normalize(seen[STREAM][primary], dim=0)
    part = hidden[position] * (direction @ weight)
    order = part.abs().topk(min(count, len(part))).indices
    return [
        {
            "neuron": int(k), "contribution": float(part[k]), "share": float(part[k] / part.sum()),
            "activation": float(hidden[position, k]),
        }
        for k in order
    ]  # fmt: skip


def _flat(x: Any) -> Tensor:
    x = residual(x).detach().float().cpu()
    return x.reshape(-1, x.shape[-1])


def _first(store: dict[str, Tensor], name: str) -> Callable[..., None]:
    def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        store[name] = _flat(args[0] if args else kwargs["hidden_states"])

    return take


def _raw(raw: dict[int, Tensor], layer: int) -> Callable[..., None]:
    def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        raw[layer] = residual(output)

    return take


def _written(store: dict[str, Tensor], raw: dict[int, Tensor], layer: int) -> Callable[..., None]:
    """After a norm: whether it took what the MLP wrote (Gemma, OLMo 2)."""

    def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if args and args[0] is raw.get(layer):
            store["written"] = _flat(output)

    return take


def _result(store: dict[str, Tensor], name: str) -> Callable[..., None]:
    def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        store[name] = _flat(output)

    return take
