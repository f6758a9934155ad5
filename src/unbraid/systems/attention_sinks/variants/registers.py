"""Learned tokens before the text (survey section 3.3): registers, or sink tokens of language models."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from unbraid.core.errors import UnbraidError


class Registers(nn.Module):
    """K learned embeddings that stand before every text and are dropped from the output.

    They are ordinary first tokens to the model (rotary positions 0 to K - 1; relative positions of the text do not
    change); every token of the text sees them. With a cache they enter it once.

    Reference: arXiv 2309.16588 (K = 4 for ViT), arXiv 2309.17453 section 3.3 (one sink token for language models).

    Args:
        width: of the embeddings.
        count: K.
        std: of their initial values.
    """

    def __init__(self, width: int, count: int = 1, std: float = 0.02) -> None:
        super().__init__()
        if count < 1:
            raise UnbraidError(f"count={count}: at least one register is needed.")
        self.tokens = nn.Parameter(std * torch.randn(count, width))
        self._added = False

    @property
    def count(self) -> int:
        """K."""
        return int(self.tokens.shape[0])

    def install(self, body: nn.Module) -> None:
        """Hooks a decoder body (`model.model` of a transformers language model)."""
        body.add_module("registers", self)
        body.register_forward_pre_hook(self._before, with_kwargs=True)
        body.register_forward_hook(self._after, with_kwargs=True)

    def _before(
        self, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        kwargs = dict(kwargs)
        ids = args[0] if args else kwargs.pop("input_ids", None)
        x = kwargs.get("inputs_embeds")
        if x is None:
            x = body.get_input_embeddings()(ids)
        b = x.shape[0]
        cache = kwargs.get("past_key_values")
        seen = 0 if cache is None else cache.get_seq_length()
        self._added = seen == 0
        if self._added:
            x = torch.cat([self.tokens.to(x).expand(b, -1, -1), x], 1)
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = torch.ones(b, seen + x.shape[1], dtype=torch.int64, device=x.device)
        elif mask.dim() == 2:
            mask = torch.cat([mask.new_ones(b, self.count), mask], 1)
        else:
            raise UnbraidError("Registers take an attention mask of [batch, tokens], or none.")
        if kwargs.get("position_ids") is not None:
            positions = kwargs["position_ids"] + self.count
            first = torch.arange(self.count, device=x.device).expand(positions.shape[0], -1)
            kwargs["position_ids"] = torch.cat([first, positions], 1) if self._added else positions
        kwargs.pop("cache_position", None)
        kwargs |= {"inputs_embeds": x, "attention_mask": mask}
        return (), kwargs

    def _after(self, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if self._added:
            output.last_hidden_state = output.last_hidden_state[:, self.count :]
        return output
