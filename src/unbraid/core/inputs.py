"""What to hand to a language model so that a long text costs no more than its own forward pass."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn


def lean_inputs(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Any]:
    """Keyword arguments for one pass over a text: no cache, and logits of the last token only where the model can.

    Args:
        model: a transformers model.
        input_ids: [batch, tokens].
        attention_mask: [batch, tokens], 1 for tokens that count; None when all do.
    """
    accepted = inspect.signature(model.forward).parameters
    inputs: dict[str, Any] = {"input_ids": input_ids}
    if attention_mask is not None:
        inputs["attention_mask"] = attention_mask
    if "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = 1  # the logits of all tokens are large, and nobody looks at them
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    return inputs
