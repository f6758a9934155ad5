"""The softmax seam: for models that never call a fused kernel (DeBERTa-v2): one [B, H, Q, K] tensor per layer.

Only probabilities are seen here, so edits of outputs work where they can be said in probabilities.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unbraid.core.calls import AttentionCall
from unbraid.core.engine.logits import dense
from unbraid.core.seams import live

ORIGINALS: dict[Any, Any] = {F: F.softmax, torch: torch.softmax, torch.Tensor: torch.Tensor.softmax}


def _watching(original: Any) -> Any:
    def softmax(input: Tensor, dim: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        def plain() -> Tensor:
            return original(input, dim, *args, **kwargs)

        if live.busy() or input.dim() != 4 or dim not in (-1, 3) or "out" in kwargs:
            return plain()
        where = live.enclosing("softmax")
        if where is None:
            return plain()
        found = live.views(where[0], "softmax")
        taps = [pair for s, site in found for pair in s.taps_at(site)]
        if not taps:
            return plain()
        with live.inside():

            def kernel(c: AttentionCall) -> Tensor:
                edited = c.key_bias is not None or c.mask is not None or c.logits is not input
                return dense(c).to(input.dtype) if edited else plain()

            call = AttentionCall(
                site=found[0][1],
                index=0,
                kind="self",
                query=None,
                key=None,
                value=None,
                logits=input,
                module=where[0],
                kernel=kernel,
                extra={"seam": "softmax"},
            )
            return found[0][0].run(call, found, taps)

    return softmax


REPLACEMENTS = {owner: _watching(original) for owner, original in ORIGINALS.items()}


def install() -> None:
    """Watches softmax until `uninstall` was called as often."""
    for owner, new in REPLACEMENTS.items():
        live.replace_attribute(owner, "softmax", new)


def uninstall() -> None:
    """Undoes one `install`."""
    for owner in REPLACEMENTS:
        live.restore_attribute(owner, "softmax")
