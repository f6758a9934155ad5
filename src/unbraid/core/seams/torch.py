"""The torch seam: `F.scaled_dot_product_attention`, where diffusers, PyTorch's own layers and most plain code end.

The attribute on `torch.nn.functional` is replaced while a session is open (and the name in a model's own files that
imported it), which every thread and every autograd worker sees and which costs other operations nothing; a
`TorchFunctionMode` would tax each operation and stop at `F.multi_head_attention_forward`.
"""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbraid.core.calls import AttentionCall, Segment
from unbraid.core.engine.fused import SDPA
from unbraid.core.engine.logits import dense
from unbraid.core.errors import AttachError
from unbraid.core.seams import live

MHA_FORWARD = F.multi_head_attention_forward
_last = threading.local()

# Which tokens come first where a processor joins text and image: by the processor's name, as read in diffusers.
TEXT_FIRST = ("Flux", "QwenDouble", "HunyuanVideo", "CogView", "Lumina", "Bria", "Chroma")
IMAGE_FIRST = ("Joint", "PAGJoint", "StableAudio", "AuraFlow")


_fast_path: list[bool] = []  # the process-wide switch as it was, once per open session that needs it off


def install(model: nn.Module, tapped: bool) -> None:
    """Watches fused attention until `uninstall` was called as often; `nn.MultiheadAttention` leaves its fast path."""
    if tapped and has_multihead(model):
        with live.LOCK:
            _fast_path.append(_fast_path[0] if _fast_path else torch.backends.mha.get_fastpath_enabled())
            torch.backends.mha.set_fastpath_enabled(False)
    live.replace_attribute(F, "scaled_dot_product_attention", scaled_dot_product_attention)
    live.replace_attribute(F, "multi_head_attention_forward", multi_head_attention_forward)
    for file in _importers(model):
        live.replace_attribute(file, "scaled_dot_product_attention", scaled_dot_product_attention)


def uninstall(model: nn.Module, tapped: bool) -> None:
    """Undoes one `install`; the last one puts the fast path back as it was."""
    if tapped and has_multihead(model):
        with live.LOCK:
            before = _fast_path.pop()
            if not _fast_path:
                torch.backends.mha.set_fastpath_enabled(before)
    live.restore_attribute(F, "scaled_dot_product_attention")
    live.restore_attribute(F, "multi_head_attention_forward")
    for file in _importers(model):
        live.restore_attribute(file, "scaled_dot_product_attention")


def has_multihead(model: nn.Module) -> bool:
    """Whether PyTorch's own layer is among the modules."""
    return any(isinstance(m, nn.MultiheadAttention) for m in model.modules())


def _importers(model: nn.Module) -> list[Any]:
    """Python files of the model's classes that hold the fused function under its own name."""
    names = {type(m).__module__ for m in model.modules()} - {"torch.nn.functional"}
    files = [sys.modules[n] for n in sorted(names) if n in sys.modules]
    return [f for f in files if vars(f).get("scaled_dot_product_attention") in (SDPA, scaled_dot_product_attention)]


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Torch's function, shown to the open sessions; same arguments and result."""
    given = (query, key, value, attn_mask, dropout_p, is_causal)

    def plain() -> Tensor:
        return SDPA(*given, scale=scale, enable_gqa=enable_gqa)

    if live.busy() or not live.anyone() or query.dim() not in (3, 4):
        return plain()
    where = live.enclosing("torch")
    if where is None:
        return plain()
    module, frame = where
    found = live.views(module, "torch")
    taps = [pair for s, site in found for pair in s.taps_at(site)]
    if not taps:
        return plain()
    with live.inside():
        call = build(module, frame, found[0][1], given, scale, enable_gqa)
        y = found[0][0].run(call, found, taps)
        if "call" in _last.__dict__:
            _last.call = call
    return y if query.dim() == 4 else y.squeeze(1)


def build(
    module: nn.Module,
    frame: FrameType,
    site: str,
    given: tuple[Tensor, Tensor, Tensor, Tensor | None, float, bool],
    scale: float | None,
    enable_gqa: bool,
) -> AttentionCall:
    """The call as taps see it; three-dimensional operands get a single head."""
    query, key, value, mask, dropout, causal = given
    single = query.dim() == 3
    if single:
        query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
        mask = mask.unsqueeze(-3) if mask is not None and mask.dim() == 3 else mask

    def kernel(c: AttentionCall) -> Tensor:
        own = c.mask
        if own is not None and own.dtype not in (torch.bool, c.query.dtype):
            own = own.to(c.query.dtype)
        causal_flag = c.causal
        if own is not None and c.causal:
            seen = torch.ones(c.queries, c.keys, dtype=torch.bool, device=c.device).tril_()
            own = own & seen if own.dtype == torch.bool else own.masked_fill(~seen, torch.finfo(own.dtype).min)
            causal_flag = False
        if single:  # torch takes another kernel for three dimensions: the same one, so that looking changes no bit
            own = own.squeeze(-3) if own is not None and own.dim() > 2 else own
            q, k, v = c.query.squeeze(1), c.key.squeeze(1), c.value.squeeze(1)
            return SDPA(q, k, v, own, c.dropout, causal_flag, scale=c.scale).unsqueeze(1)
        grouped = enable_gqa and c.key.shape[1] != c.query.shape[1]
        return SDPA(c.query, c.key, c.value, own, c.dropout, causal_flag, scale=c.scale, enable_gqa=grouped)

    call = AttentionCall(
        site=site,
        index=0,
        kind="self",
        query=query,
        key=key,
        value=value,
        mask=mask,
        causal=causal,
        scale=query.shape[-1] ** -0.5 if scale is None else float(scale),
        dropout=dropout,
        module=module,
        kernel=kernel,
        extra={"seam": "torch"},
    )
    return with_segments(call, frame)


def with_segments(call: AttentionCall, frame: FrameType) -> AttentionCall:
    """Recognises joint attention (text and image in one sequence) by the lengths of what the module was given."""
    module = call.module
    assert module is not None
    processor = type(vars(module).get("processor", module)).__name__
    lengths = _lengths(live.call_arguments(module, frame))
    if lengths is None and processor.startswith(TEXT_FIRST):  # a block that joins them before it calls its attention
        block = live.outer_call(frame)
        lengths = None if block is None else _lengths(live.call_arguments(*block))
    if lengths is None or not (call.keys == call.queries == sum(lengths)):
        return call
    n_text, n_own = lengths
    segments = None
    if processor.startswith(TEXT_FIRST):
        segments = (Segment("text", 0, n_text), Segment("image", n_text, n_text + n_own))
    elif processor.startswith(IMAGE_FIRST):
        segments = (Segment("image", 0, n_own), Segment("text", n_own, n_own + n_text))
    return call.replace(kind="joint", segments=segments)


def _lengths(arguments: dict[str, Any]) -> tuple[int, int] | None:
    """Tokens of text and of image that a module was given, where it was given both."""
    text, own = arguments.get("encoder_hidden_states"), arguments.get("hidden_states")
    if isinstance(text, Tensor) and isinstance(own, Tensor) and text.dim() == 3 and own.dim() == 3:
        return text.shape[1], own.shape[1]
    return None


def multi_head_attention_forward(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """Torch's function behind `nn.MultiheadAttention`, led through the fused call so that it can be tapped.

    When the caller wants weights, they are computed from the same (edited) call afterwards.
    """
    if live.busy() or not live.anyone() or live.enclosing("torch") is None:
        return MHA_FORWARD(*args, **kwargs)
    wanted = kwargs.get("need_weights", True)
    average = kwargs.pop("average_attn_weights", True)
    if len(args) > 15:  # need_weights given by position
        raise AttachError("multi_head_attention_forward was called with need_weights by position; pass it by name.")
    _last.call = None
    out, _ = MHA_FORWARD(*args, **{**kwargs, "need_weights": False})
    call = _last.__dict__.pop("call", None)
    if not wanted:
        return out, None
    if call is None:  # another session's sites only: this module was not tapped
        return MHA_FORWARD(*args, **{**kwargs, "average_attn_weights": average})
    weights = dense(call).to(out.dtype)
    weights = weights.mean(1) if average else weights
    return out, weights.squeeze(0) if args[0].dim() == 2 else weights
