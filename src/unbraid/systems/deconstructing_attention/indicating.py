"""What maps look like: how spread, how alike over heads, how much on the first token and on the last few."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError
from unbraid.systems.deconstructing_attention.mixing import BLOCK
from unbraid.systems.deconstructing_attention.modules import Mixer, NoMixing
from unbraid.systems.deconstructing_attention.streams import Streams
from unbraid.systems.deconstructing_attention.swapping import checked


def indicators(attention: Tensor, near: int = 4) -> dict[str, float]:
    """The paper's indicators of a layer's maps.

    Args:
        attention: [H, L, L] causal maps.
        near: lags of local focus, from 0.

    Returns:
        entropy (nats, summed over a map, mean over heads), concentration (Frobenius norm, mean over heads), diversity
        (mean over pairs of the standard deviation over heads), sink (mean weight of the first token), and
        ``focus_0`` ... (mean weight of the token so many places back).

    Raises:
        UnbraidError: these are no maps, or near exceeds their length.

    Reference:
        arXiv 2510.11602, indicators.
    """
    if attention.ndim != 3 or attention.shape[1] != attention.shape[2]:
        raise UnbraidError(f"attention has shape {list(attention.shape)}; give [heads, tokens, tokens].")
    length = attention.shape[1]
    if not 1 <= near <= length:
        raise UnbraidError(f"near is {near}; maps of {length} tokens have lags 0 to {length - 1}.")
    a = attention.double()
    spread = a.std(0, correction=0).tril().sum() * 2 / (length * (length + 1))
    found = {
        "entropy": -torch.special.xlogy(a.clamp(min=0), a.clamp(min=0)).sum((1, 2)).mean(),
        "concentration": a.square().sum((1, 2)).sqrt().mean(), "diversity": spread, "sink": a[:, :, 0].mean(),
    }  # fmt: skip
    found |= {f"focus_{n}": a.diagonal(-n, 1, 2).mean() for n in range(near)}
    return {name: float(value) for name, value in found.items()}


def maps(model: nn.Module, input_ids: Tensor) -> list[Tensor]:
    """The map of every layer for one text, for looking at: a matrix even where the variant needs none.

    Args:
        model: deconstructed or not.
        input_ids: [1, L], one text without padding.

    Returns:
        [H, L, L] for each layer; of "mlp", the identity of one head.

    Raises:
        UnbraidError: there is more than one text, or the model is of another kind.
    """
    if input_ids.ndim != 2 or len(input_ids) != 1:
        raise UnbraidError(f"input_ids has shape {list(input_ids.shape)}; maps are of one text, [1, tokens].")
    found: list[Tensor] = []
    eye = torch.eye(input_ids.shape[1], device=input_ids.device)

    def note(mixer: Mixer | None, query: Tensor, key: Tensor) -> None:
        if mixer is None:
            found.append(eye[None])
            return
        values = eye.to(query.dtype).expand(1, query.shape[1], -1, -1)
        found.append(mixer.mix(query[:1], key[:1], values)[0])

    _visit(model, input_ids, note)
    return found


def logits(model: nn.Module, input_ids: Tensor, block: int = BLOCK) -> list[float | None]:
    """The greatest logit of every layer, in absolute value, by which training without attention's softmax goes wrong.

    No matrix of all pairs is made.

    Args:
        model: deconstructed or not.
        input_ids: [B, L], texts without padding.
        block: queries that meet all keys at once.

    Returns:
        For each layer the greatest |q·k| / √d over heads and pairs that may meet; of "non_approximate" over keys, each
        with the query of its own place; None of "mlp", which has none.

    Raises:
        UnbraidError: the texts are not [B, L], block is below 1, or the model is of another kind.

    Reference:
        arXiv 2510.11602: beyond 1,000 in the last layers of uniform "non_approximate", below 10 when interleaved.
    """
    if input_ids.ndim != 2 or block < 1:
        raise UnbraidError(
            f"input_ids is {list(input_ids.shape)} and block {block}; give [texts, tokens] and 1 or more."
        )
    found: list[float | None] = []

    def note(mixer: Mixer | None, query: Tensor, key: Tensor) -> None:
        if mixer is None:
            found.append(None)
            return
        query, key = query.float() * mixer.scaling, key.float()
        if mixer.variant == "non_approximate":
            found.append(float((query * key).sum(-1).abs().max()))
            return
        most = [
            (query[:, :, at : at + block] @ key[:, :, : at + block].mT).tril(at).abs().max()
            for at in range(0, query.shape[2], block)
        ]
        found.append(float(torch.stack(most).max()))

    _visit(model, input_ids, note)
    return found


def _visit(model: nn.Module, input_ids: Tensor, note: Callable[[Mixer | None, Tensor, Tensor], None]) -> None:
    """One pass, in which every layer's queries and keys are noted; None for a layer without any."""
    if "model.deconstruction" not in dict(model.named_modules()):
        checked(model)
    layers: Any = model.get_submodule("model.layers")

    def look(layer: Any) -> Any:
        own = layer.self_attn
        if isinstance(own, NoMixing):
            return lambda module, args, kwargs: note(None, input_ids, input_ids)
        mixer = (
            own if isinstance(own, Mixer) else Mixer(own, layer.input_layernorm, Streams(None, None), "standard", True)
        )

        def before(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            note(mixer, *mixer.query_key(hidden, *kwargs["position_embeddings"]))

        return before

    hooks = [layer.self_attn.register_forward_pre_hook(look(layer), with_kwargs=True) for layer in layers]
    try:
        with torch.no_grad():
            model(input_ids=input_ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
