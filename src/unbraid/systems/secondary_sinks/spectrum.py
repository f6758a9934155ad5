"""Matrix entropy of windows of tokens, block by block: how many directions a stretch of text takes up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unbraid.core.blocks import blocks, listening, residual
from unbraid.core.errors import UnbraidError
from unbraid.core.inputs import lean_inputs


def matrix_entropy(h: Tensor) -> Tensor:
    """[...] Shannon entropy in nats of the eigenvalues of the trace-normalised Gram matrix of [..., tokens, width]."""
    h = h.float()
    gram = h @ h.transpose(-1, -2)
    values = torch.linalg.eigvalsh(gram / gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None].clamp(min=1e-12))
    values = values.clamp(min=0)
    return -torch.xlogy(values, values).sum(-1)


@torch.no_grad()
def window_entropy(model: nn.Module, input_ids: Tensor, window: int = 100) -> np.ndarray:
    """[L, windows] matrix entropy of consecutive windows of the residual stream after each block, in nats.

    Args:
        model: a transformer with a stack of blocks.
        input_ids: [1, tokens].
        window: tokens per window; what is left at the end is not counted.

    Raises:
        UnbraidError: the text is shorter than one window.
    """
    n = input_ids.shape[-1] // window if window > 1 else 0
    if n < 1:
        raise UnbraidError(
            f"window={window} needs a text of at least that many tokens (and 2), not {input_ids.shape[-1]}."
        )
    stack = blocks(model)
    made: dict[int, np.ndarray] = {}

    def reader(index: int) -> Callable[..., None]:
        def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            h = residual(output)[0, : n * window]
            made[index] = matrix_entropy(h.reshape(n, window, -1)).cpu().numpy()

        return take

    with listening({b.module: reader(b.index) for b in stack}):
        model(**lean_inputs(model, input_ids))
    return np.stack([made[i] for i in range(len(stack))])
