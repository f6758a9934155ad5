"""`Deberta`: the settings of the faster attention, and what one does with a model that has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from unbraid.core.heads import HeadScores
from unbraid.core.system import System
from unbraid.systems.deberta import CARD
from unbraid.systems.deberta.attention import Backend
from unbraid.systems.deberta.decoding import fill_mask
from unbraid.systems.deberta.positions import LongRange
from unbraid.systems.deberta.swapping import accelerate, restore
from unbraid.systems.deberta.terms import shares


class Deberta(System):
    """DeBERTa v1, v2 and v3 of transformers with a faster attention, in place (arXiv 2006.03654).

    Args:
        backend: "auto" takes what was measured to be fastest for a length; "crop" looks up the rows in reach, "skew"
            reads diagonals, "blocks" needs memory linear in the length, "flex" is FlexAttention.
        long_range: beyond the longest trained distance, usually 512 tokens: "hf" is equal to transformers, "official"
            to Microsoft's code, which never uses rows that were not trained and is the better one for long texts.
        cache: keep projected positions in evaluation, until a weight changes.
    """

    card = CARD

    def __init__(self, backend: Backend = "auto", long_range: LongRange = "hf", cache: bool = True) -> None:
        self.backend = backend
        self.long_range = long_range
        self.cache = cache

    def accelerate(self, model: nn.Module) -> Any:
        """The same model with faster attention; see `accelerate`."""
        return accelerate(model, self.backend, self.long_range, self.cache)

    def restore(self, model: nn.Module) -> Any:
        """The same model with transformers' own."""
        return restore(model)

    def shares(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, HeadScores]:
        """How much of each head's logits is content, and how much place; see `shares`."""
        return shares(model, inputs)

    def fill_mask(
        self, model: Any, tokenizer: Any, texts: str | Sequence[str], top: int = 5
    ) -> list[list[list[tuple[str, float]]]]:
        """What fits into the gaps of texts; see `fill_mask`."""
        return fill_mask(model, tokenizer, texts, top)
