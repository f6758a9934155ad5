"""What maps look like: how spread, how alike over heads, how much on the first token and on the last few."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError
from unbraid.systems.deconstructing_attention.modules import Mixer, NoMixing
from unbraid.systems.deconstructing_attention.streams import Streams


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
        UnbraidError: there is more than one text.
    """
    if input_ids.ndim != 2 or len(input_ids) != 1:
        raise UnbraidError(f"input_ids has shape {list(input_ids.shape)}; maps are of one text, [1, tokens].")
    layers: Any = model.get_submodule("model").get_submodule("layers")
    found: list[Tensor] = []
    eye = torch.eye(input_ids.shape[1], device=input_ids.device)

    def look(layer: Any) -> Any:
        own = layer.self_attn
        if isinstance(own, NoMixing):
            return lambda module, args, kwargs: found.append(eye[None])
        mixer = (
            own if isinstance(own, Mixer) else Mixer(own, layer.input_layernorm, Streams(None, None), "standard", True)
        )

        def before(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            query, key = mixer.query_key(hidden, *kwargs["position_embeddings"])
            query, key = query[:1], key[:1]
            values = eye.to(hidden.dtype).expand(1, query.shape[1], -1, -1)
            found.append(mixer.mix(query, key, values)[0])

        return before

    hooks = [layer.self_attn.register_forward_pre_hook(look(layer), with_kwargs=True) for layer in layers]
    try:
        with torch.no_grad():
            model(input_ids=input_ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found
