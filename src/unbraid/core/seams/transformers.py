"""The transformers seam: the function that a model looks up in its attention registry, for every layer and every call.

The model keeps its own implementation name, so its masks are made exactly as before: registering a new name would need
a second registration for masks, without which the causal mask is silently dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.core.calls import AttentionCall
from unbraid.core.errors import AttachError
from unbraid.core.seams import live

SUPPORTED = ("sdpa", "eager")
# Arguments that models pass along and that change no number of attention (or that this seam reads itself).
HARMLESS = frozenset(
    (
        "output_attentions", "output_hidden_states", "output_router_logits", "use_cache", "return_dict", "position_ids",
        "cache_position", "num_items_in_batch", "sliding_window", "position_embeddings", "deterministic",
        "target_dtype", "implementation", "layer_idx", "logits_to_keep", "past_key_values", "max_length_q",
        "max_length_k",
    )
)  # fmt: skip
REFUSED = {
    "cu_seq_lens_q": "packed sequences of a flash kernel",
    "cu_seq_lens_k": "packed sequences of a flash kernel",
    "cache": "the paged cache of continuous batching",
    "indices": "sparse attention by indices",
    "block_indices": "sparse attention by blocks",
}


def install() -> None:
    """Watches the registry until `uninstall` was called as often."""
    from transformers.modeling_utils import AttentionInterface

    original_get, original_item = AttentionInterface.get_interface, AttentionInterface.__getitem__

    def get_interface(self: Any, attn_implementation: str, default: Callable) -> Callable:
        return _watched(original_get(self, attn_implementation, default), attn_implementation)

    def getitem(self: Any, key: str) -> Callable:
        return _watched(original_item(self, key), key)

    live.replace_attribute(AttentionInterface, "get_interface", get_interface)
    live.replace_attribute(AttentionInterface, "__getitem__", getitem)


def uninstall() -> None:
    """Undoes one `install`."""
    from transformers.modeling_utils import AttentionInterface

    live.restore_attribute(AttentionInterface, "get_interface")
    live.restore_attribute(AttentionInterface, "__getitem__")


class Watched:
    """A registered attention function that shows its calls to the open sessions."""

    def __init__(self, function: Callable, name: str | None) -> None:
        self.function, self.name = function, name

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Same signature and result as the function it stands for."""
        if live.busy():
            return self.function(module, query, key, value, *args, **kwargs)
        found = live.views(module, "transformers")
        taps = [pair for s, site in found for pair in s.taps_at(site)]
        if not taps:
            return self.function(module, query, key, value, *args, **kwargs)
        mask = args[0] if args else kwargs.pop("attention_mask", None)
        with live.inside():
            call, state = build(self, module, query, key, value, mask, kwargs, found[0][1])
            y = found[0][0].run(call, found, taps)
        return y.transpose(1, 2), state.get("weights")


def _watched(function: Callable, name: str | None) -> Callable:
    return function if isinstance(function, Watched) or not live.anyone() else Watched(function, name)


def build(
    watched: Watched,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    kwargs: dict[str, Any],
    site: str,
) -> tuple[AttentionCall, dict[str, Any]]:
    """The call as taps see it, and a place where the kernel leaves the weights it may return."""
    name = watched.name or "eager"
    check(name, module, kwargs, mask)
    scale = kwargs.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    position_bias = kwargs.get("position_bias")
    causal = False
    if name == "sdpa":  # the eager functions have causality in their mask
        flag = kwargs.get("is_causal")
        flag = getattr(module, "is_causal", True) if flag is None else flag  # house: allowed, transformers reads it so
        causal = bool(flag) and mask is None and query.shape[2] > 1
    state: dict[str, Any] = {}
    seen = _joined(mask, position_bias)  # the kernel must not hold the call: a cycle would keep every layer's queries

    def kernel(c: AttentionCall) -> Tensor:
        passed, own = dict(kwargs), mask
        if c.mask is not seen or c.causal != causal:
            passed.pop("position_bias", None)
            own = _for_function(c, name)
            if "is_causal" in passed or name == "sdpa":
                passed["is_causal"] = c.causal and own is None
        out, state["weights"] = watched.function(module, c.query, c.key, c.value, own, **passed)
        return out.transpose(1, 2)

    sinks = kwargs.get("s_aux")
    call = AttentionCall(
        site=site,
        index=0,
        kind="self",
        query=query,
        key=key,
        value=value,
        mask=seen,
        causal=causal,
        scale=scale,
        softcap=kwargs.get("softcap"),
        sinks=None if sinks is None else sinks.reshape(-1),
        dropout=float(kwargs.get("dropout") or 0.0),
        module=module,
        kernel=kernel,
        extra={"seam": "transformers", "implementation": name, "window": kwargs.get("sliding_window")},
    )
    return call, state


def check(name: str, module: nn.Module, kwargs: dict[str, Any], mask: Any) -> None:
    """Refuses what this seam cannot read exactly.

    Raises:
        AttachError: another backend than sdpa or eager, or an argument with a meaning unknown here.
    """
    if name not in SUPPORTED or (mask is not None and not isinstance(mask, Tensor)):
        raise AttachError(
            f"{type(module).__name__} runs with attn_implementation={name!r}, whose masks and numbers cannot be read "
            'exactly; call model.set_attn_implementation("sdpa") (or "eager") before attach.'
        )
    for key, why in REFUSED.items():
        if kwargs.get(key) is not None:
            raise AttachError(f"{type(module).__name__} passes {key!r} ({why}), which cannot be tapped; turn it off.")
    read = {"scaling", "dropout", "is_causal", "position_bias", "softcap", "s_aux"}
    for key, given in kwargs.items():
        if given is not None and key not in read and key not in HARMLESS:
            raise AttachError(
                f"{type(module).__name__} passes the argument {key!r} to its attention function, and Unbraid does not "
                "know what it does to the numbers; please report the model, so that it can be honoured."
            )


def _joined(mask: Tensor | None, bias: Tensor | None) -> Tensor | None:
    if bias is None:
        return mask
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, torch.finfo(bias.dtype).min)
    return bias + mask


def _for_function(c: AttentionCall, name: str) -> Tensor | None:
    """The mask of an edited call in the form the function takes: eager adds it, and has no causal flag."""
    mask = c.mask
    if name == "sdpa" and not (c.causal and mask is not None):
        return mask
    if c.causal:
        seen = torch.ones(c.queries, c.keys, dtype=torch.bool, device=c.device).tril_()
        mask = seen[None, None] if mask is None else mask
        if mask.dtype != torch.bool:
            return mask.masked_fill(~seen, torch.finfo(mask.dtype).min)
        mask = mask & seen
    if mask is None or mask.dtype != torch.bool or name == "sdpa":
        return mask
    return torch.zeros(mask.shape, dtype=c.query.dtype, device=mask.device).masked_fill_(
        ~mask, torch.finfo(c.query.dtype).min
    )
