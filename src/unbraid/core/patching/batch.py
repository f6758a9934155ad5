"""A batch of clean and corrupt prompts with their answers, checked before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unbraid.core.errors import UnbraidError
from unbraid.core.patching.anatomy import Anatomy

Tokens = Tensor | Sequence[int] | Sequence[Sequence[int]]


@dataclass(eq=False)
class Batch:
    """Tokens of both runs, and whose logits make the metric.

    Attributes:
        clean: [B, T].
        corrupt: [B, T].
        tokens: [B, A] answers, then distractors.
        right: [B, A] bool, the answers among them.
        wrong: [B, A] bool, the distractors.
    """

    clean: Tensor
    corrupt: Tensor
    tokens: Tensor
    right: Tensor
    wrong: Tensor

    def places(self, positions: Any) -> tuple[Tensor, Tensor]:
        """([B, P] positions from the start, [B, P] False where one is repeated in its row).

        Raises:
            UnbraidError: none, or one outside the text.
        """
        batch, length = self.clean.shape
        try:
            at = torch.as_tensor(positions, device=self.clean.device)
        except (TypeError, ValueError, RuntimeError):
            raise UnbraidError(
                f"positions={positions!r}: give one position, a list of them, or [prompts, positions] of equal rows."
            ) from None
        at = at.reshape(1, -1) if at.dim() < 2 else at
        if at.dim() != 2 or at.shape[0] not in (1, batch) or not at.numel() or at.is_floating_point():
            raise UnbraidError(
                f"positions has shape {list(at.shape)}; give one position, a list, or [{batch} prompts, positions]."
            )
        outside = at[(at < -length) | (at >= length)]
        if outside.numel():
            raise UnbraidError(
                f"Position {int(outside[0])} is outside the prompts, which have {length} tokens: 0 to {length - 1}, or "
                f"-{length} to -1 from the end."
            )
        at = (at % length).expand(batch, -1)
        at = at.sort(1).values
        fresh = torch.ones_like(at, dtype=torch.bool)
        fresh[:, 1:] = at[:, 1:] != at[:, :-1]
        return at, fresh


def check_batch(anatomy: Anatomy, clean: Tokens, corrupt: Tokens, answers: Tokens, distractors: Tokens) -> Batch:
    """The batch on the model's device.

    Raises:
        UnbraidError: shapes that do not belong together, or tokens that the model does not have.
    """
    device = anatomy.device
    both = [_integers(x, name, device) for x, name in ((clean, "clean"), (corrupt, "corrupt"))]
    both = [x[None] if x.dim() == 1 else x for x in both]
    if both[0].dim() != 2 or both[0].shape != both[1].shape or not both[0].numel():
        raise UnbraidError(
            f"clean is {list(both[0].shape)} and corrupt {list(both[1].shape)}; both must be [prompts, tokens] of one "
            "length: prompts and their twins are compared token by token, so group them by length."
        )
    ends = []
    for x, name in ((answers, "answers"), (distractors, "distractors")):
        t = _integers(x, name, device)
        t = t[:, None] if t.dim() == 1 else t
        if t.dim() != 2 or t.shape[0] != both[0].shape[0] or not t.numel() or bool((t < 0).all(1).any()):
            raise UnbraidError(
                f"{name} is {list(t.shape)}; it must hold at least one token for each of {both[0].shape[0]} prompts."
            )
        ends.append(t)
    for t in (*both, *ends):
        if int(t.max()) >= anatomy.vocabulary:
            raise UnbraidError(
                f"Token {int(t.max())} does not exist in this model, which has {anatomy.vocabulary}; is the tokenizer "
                "another model's?"
            )
    if bool((both[0] < 0).any() | (both[1] < 0).any()):
        raise UnbraidError(
            "clean and corrupt hold negative tokens; group prompts by length instead of filling them up."
        )
    tokens = torch.cat(ends, 1)
    right = torch.zeros_like(tokens, dtype=torch.bool)
    right[:, : ends[0].shape[1]] = True
    return Batch(both[0], both[1], tokens.clamp(min=0), right & (tokens >= 0), ~right & (tokens >= 0))


def log_odds(logits: Tensor, right: Tensor, wrong: Tensor) -> Tensor:
    """log sum exp over answers minus that over distractors, [B]; for one token each their logit difference."""
    return logits.masked_fill(~right, -torch.inf).logsumexp(-1) - logits.masked_fill(~wrong, -torch.inf).logsumexp(-1)


def _integers(x: Any, name: str, device: torch.device) -> Tensor:
    try:
        t = torch.as_tensor(x, device=device)
    except (TypeError, ValueError, RuntimeError):
        raise UnbraidError(f"{name} cannot be read as tokens of equal rows; group prompts by length.") from None
    if t.is_floating_point() or t.dtype == torch.bool:
        raise UnbraidError(f"{name} must hold token numbers, not {t.dtype}.")
    return t.long()
