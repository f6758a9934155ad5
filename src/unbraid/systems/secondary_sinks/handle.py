"""Step 7, the causal handle: set the norm of what a block's MLP writes in the primary sink's direction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unbraid.core.blocks import blocks, is_norm, listening, residual, with_residual
from unbraid.core.errors import UnbraidError


@contextmanager
def rescale(
    model: nn.Module,
    layer: int,
    target: float = 100.0,
    *,
    threshold: float = 0.98,
    primary: int = 0,
    skip: int = 3,
    positions: list[int] | None = None,
    reference: Literal["stream", "write"] = "stream",
) -> Iterator[list[tuple[int, float]]]:
    """While open, every write of one block's MLP along the primary sink's gets a norm of `target`.

    The write is changed where it joins the residual stream, so a norm between the two (Gemma) does not undo it. Works
    through a generation: the primary sink's direction is that of the first pass.

    Args:
        model: a transformer with a stack of blocks.
        layer: the block.
        target: norm that the write gets, in units of the stream; 0 removes it.
        threshold: a write counts when its cosine with the reference is above this.
        primary: position of the primary sink.
        skip: first positions that are left alone, whatever they write.
        reference: what a write is compared with: the primary sink's residual stream after the block, or (the paper's
            script) what the same MLP writes at the primary sink.
        positions: only these tokens; None: every one that writes along the primary sink's.

    Yields:
        (position, norm before) of the writes that were changed so far.

    Raises:
        UnbraidError: the block does not exist or has no MLP, or `target` is negative.
    """
    stack = blocks(model)
    if not 0 <= layer < len(stack):
        raise UnbraidError(f"Block {layer} does not exist; the model has blocks 0 to {len(stack) - 1}.")
    if reference not in ("stream", "write"):
        raise UnbraidError(f"reference={reference!r} is unknown; choose 'stream' or 'write'.")
    if target < 0:
        raise UnbraidError(f"target={target}: a norm is 0 or more.")
    block = stack[layer]
    if block.writer is None:
        raise UnbraidError(f"{block.name} has no MLP, so there is no write to change.")
    changed: list[tuple[int, float]] = []
    state: dict[str, Any] = {"seen": 0, "reference": None, "write": None}

    def wrote(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        state["write"] = residual(output)

    def normed(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if state["write"] is not None and args and args[0] is state["write"]:
            state["write"] = output

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        h = residual(output)
        y = state["write"].reshape(h.shape).float()
        state["write"] = None
        if state["reference"] is None:
            first = (y if reference == "write" else h.float())[:, primary]
            state["reference"] = torch.nn.functional.normalize(first, dim=-1)
        norm = y.norm(dim=-1)
        at = torch.arange(state["seen"], state["seen"] + h.shape[1], device=h.device)
        hit = _along(y, norm, state["reference"]) > threshold
        hit &= (at >= max(skip, primary + 1))[None]
        if positions is not None:
            hit &= torch.isin(at, torch.as_tensor(positions, device=h.device))[None]
        changed.extend((int(at[t]), float(norm[b, t])) for b, t in hit.nonzero().tolist())
        state["seen"] += h.shape[1]
        factor = torch.where(hit, target / norm.clamp(min=1e-12) - 1, torch.zeros_like(norm))
        return with_residual(output, (h.float() + factor[..., None] * y).to(h.dtype))

    after: dict[nn.Module, Any] = {block.writer: wrote, block.module: leave}
    after |= {m: normed for _, m in block.norms if is_norm(m)}
    with listening(after):
        yield changed


def _along(y: Tensor, norm: Tensor, reference: Tensor) -> Tensor:
    return torch.einsum("btd,bd->bt", y, reference) / norm.clamp(min=1e-12)
