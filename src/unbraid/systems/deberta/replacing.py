"""Pre-training of v3: find the tokens that a generator replaced, with embeddings whose gradients are kept apart."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding
from transformers.utils.generic import ModelOutput

from unbraid.core.errors import UnbraidError

Sharing = Literal["gdes", "es", "none"]
WORDS = "word_embeddings"


class DisentangledEmbedding(nn.Embedding):
    """The generator's table, which gets no gradient from here, and a change of one's own that starts at zero.

    Args:
        source: the generator's table; no parameter of this module.

    Attributes:
        weight: the change, [rows, D].
    """

    def __init__(self, source: nn.Embedding) -> None:
        super().__init__(source.num_embeddings, source.embedding_dim, source.padding_idx)
        self.to(source.weight.device, source.weight.dtype)
        with torch.no_grad():
            self.weight.zero_()
        self.__dict__["source"] = source  # a reference: not among this module's parameters

    def forward(self, ids: Tensor) -> Tensor:
        """[...] -> [..., D]."""
        kept = embedding(ids, self.__dict__["source"].weight.detach(), self.padding_idx)
        return kept + embedding(ids, self.weight, self.padding_idx)

    def whole(self) -> nn.Embedding:
        """An ordinary table with both added."""
        made = nn.Embedding(self.num_embeddings, self.embedding_dim, self.padding_idx)
        with torch.no_grad():
            made.weight = nn.Parameter(self.__dict__["source"].weight + self.weight)
        return made


@dataclass
class Detected(ModelOutput):
    """A step of pre-training.

    Attributes:
        loss: the generator's plus the weighted one of the discriminator, a scalar.
        generator_loss: cross-entropy at masked tokens, nats.
        discriminator_loss: binary cross-entropy over tokens that are not padding, nats.
        corrupted: the text that the discriminator read, [B, N].
        replaced: where a token is another than it was, [B, N] of bool.
        logits: of "was replaced", [B, N].
    """

    loss: Tensor | None = None
    generator_loss: Tensor | None = None
    discriminator_loss: Tensor | None = None
    corrupted: Tensor | None = None
    replaced: Tensor | None = None
    logits: Tensor | None = None


class ReplacedTokenDetection(nn.Module):
    """A generator and a discriminator trained together (arXiv 2111.09543).

    With "gdes" and "none" no weight has a gradient from both losses, so one step on their sum is, with an optimizer
    that treats weights apart such as AdamW, what two steps with two optimizers are; clip each part on its own.

    Args:
        generator: with `predict_rows`, such as `DebertaV2ForEnhancedMaskedLM`, usually half as deep.
        discriminator: with labels of 0 and 1 for tokens, such as `DebertaV2ForReplacedTokens`.
        sharing: "gdes": tables of the discriminator are those of the generator, without a gradient to them, and a
            change of its own; "es": they are the same; "none": each has its own.
        weight: of the discriminator's loss: 10 in the code.
        temperature: of the words drawn from the generator.

    Raises:
        UnbraidError: a setting is unknown, or their tables differ in shape.
    """

    def __init__(
        self, generator: Any, discriminator: Any, sharing: Sharing = "gdes", weight: float = 10.0,
        temperature: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if sharing not in get_args(Sharing) or temperature <= 0:
            raise UnbraidError(
                f"sharing {sharing!r} and temperature {temperature}: give one of {', '.join(get_args(Sharing))} and a "
                "temperature above 0."
            )
        self.generator, self.discriminator = generator, discriminator
        self.sharing, self.weight, self.temperature = sharing, weight, temperature
        if sharing != "none":
            for name, mine, theirs in self._tables():
                if mine.weight.shape != theirs.weight.shape:
                    raise UnbraidError(
                        f"{name} are {tuple(theirs.weight.shape)} in the generator and {tuple(mine.weight.shape)} in "
                        'the discriminator; give both one vocabulary and width, or sharing="none".'
                    )
                made = DisentangledEmbedding(theirs) if sharing == "gdes" else theirs
                setattr(_embeddings(discriminator), name, made)

    def _tables(self) -> list[tuple[str, nn.Embedding, nn.Embedding]]:
        mine, theirs = _embeddings(self.discriminator), _embeddings(self.generator)
        pairs = [
            (n, getattr(mine, n, None), getattr(theirs, n, None)) for n in ("word_embeddings", "position_embeddings")
        ]
        return [(n, a, b) for n, a, b in pairs if a is not None and b is not None]

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Detected:
        """One step.

        Args:
            input_ids: with mask tokens, [B, N].
            attention_mask: [B, N], 0 at padding.
            labels: the tokens that were masked, -100 elsewhere, [B, N].

        Raises:
            UnbraidError: no token is masked.
        """
        if labels is None or not bool((labels != -100).any()):
            raise UnbraidError("no token is masked in this batch; give labels, as `mask_spans` makes them.")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        asked = labels != -100
        logits = self.generator.predict_rows(input_ids, attention_mask, asked)
        guessing = cross_entropy(logits, labels[asked])
        with torch.no_grad():
            drawn = torch.multinomial((logits.detach().float() / self.temperature).softmax(-1), 1).squeeze(-1)
            original = torch.where(asked, labels, input_ids)
            corrupted = original.masked_scatter(asked, drawn)
            replaced = corrupted != original
        found = self.discriminator(corrupted, attention_mask=attention_mask, labels=replaced.long())
        return Detected(
            guessing + self.weight * found.loss, guessing, found.loss, corrupted, replaced, found.logits
        )  # fmt: skip

    def release(self) -> Any:
        """The discriminator with ordinary tables, a copy to save and fine-tune."""
        parts: dict[int, Any] = {}
        for _, mine, _ in self._tables():
            if isinstance(mine, DisentangledEmbedding):
                parts[id(mine.__dict__["source"])] = mine.__dict__["source"]  # not copied with the model
        made = copy.deepcopy(self.discriminator, parts)
        tables = _embeddings(made)
        for name, mine, _ in self._tables():
            if isinstance(mine, DisentangledEmbedding):
                setattr(tables, name, mine.whole())
        return made


def _embeddings(model: Any) -> Any:
    """The module that holds the table of words, wherever a model has it."""
    words = model.get_input_embeddings()
    found = [m for m in model.modules() if any(child is words for child in m.children())]
    if len(found) != 1 or getattr(found[0], WORDS, None) is not words:
        raise UnbraidError(f"{type(model).__name__} has no one module with {WORDS} to share; give sharing='none'.")
    return found[0]
