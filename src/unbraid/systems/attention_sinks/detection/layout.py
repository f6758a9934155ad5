"""Which tokens count, and which of them are the first of their text: padding and packed texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unbraid.core.calls import AttentionCall
from unbraid.core.engine import fused
from unbraid.core.errors import UnbraidError

ROWS = 1_024  # query rows of a given mask that are counted at once


@dataclass
class Layout:
    """The tokens of a batch.

    Attributes:
        valid: [B, T] bool, tokens that are no padding.
        first: [B, T] bool, the first token of each text: of a padded row its first real token, of a packed row one per
            text.
    """

    valid: Tensor
    first: Tensor

    @classmethod
    def of(cls, tokens: Tensor, mask: Tensor | None, positions: Tensor | None) -> Layout:
        """From a batch [B, T, ...], its 2-D attention mask and its position ids.

        Packed texts are told by position ids that start anew, which is how transformers tells them.
        """
        batch, length = tokens.shape[:2]
        valid = torch.ones(batch, length, dtype=torch.bool, device=tokens.device)
        if mask is not None and mask.dim() == 2:
            if mask.shape != valid.shape:
                raise UnbraidError(
                    f"attention_mask is {tuple(mask.shape)}, but the batch is {batch} texts of {length} tokens; give "
                    "one 0 or 1 per token."
                )
            valid = mask.bool()
        if not bool(valid.any(-1).all()):
            raise UnbraidError("a text of the batch has no token (its attention_mask is all 0); leave it out.")
        before = torch.nn.functional.pad(valid, (1, 0))[:, :-1]
        first = valid & ~before.cumsum(-1).bool()
        if mask is None and positions is not None and positions.dim() == 2:
            jump = positions[:, 1:] - positions[:, :-1] != 1
            first = first | torch.nn.functional.pad(jump, (1, 0)).expand(batch, -1)
        return cls(valid, first)

    @classmethod
    def plain(cls, batch: int, length: int, device: torch.device) -> Layout:
        """All tokens count, and the first is the first."""
        valid = torch.ones(batch, length, dtype=torch.bool, device=device)
        first = torch.zeros_like(valid)
        first[:, 0] = True
        return cls(valid, first)

    def fits(self, batch: int, length: int) -> bool:
        """Whether these are the tokens of something of this shape."""
        return tuple(self.valid.shape) == (batch, length)


def layouts(inputs: Mapping[str, Any]) -> list[Layout]:
    """The layouts that a model's inputs speak of: of its text, and of its decoder's text.

    Raises:
        UnbraidError: there is no token, or a mask of another shape.
    """
    found = []
    for prefix in ("", "decoder_"):
        tokens = inputs.get(f"{prefix}input_ids")
        tokens = inputs.get(f"{prefix}inputs_embeds") if tokens is None else tokens
        if not isinstance(tokens, Tensor):
            continue
        if tokens.dim() < 2 or 0 in tokens.shape[:2]:
            raise UnbraidError(f"the text is empty: its tokens are {tuple(tokens.shape)}; give [batch, tokens].")
        found.append(Layout.of(tokens, inputs.get(f"{prefix}attention_mask"), inputs.get(f"{prefix}position_ids")))
    return found


def layout_for(known: list[Layout], batch: int, length: int, device: torch.device) -> Layout:
    """The layout of something [batch, length]; where none was given for that shape, all tokens count."""
    for one in known:
        if one.fits(batch, length):
            return Layout(one.valid.to(device), one.first.to(device))
    return Layout.plain(batch, length, device)


def positions_of(marks: Tensor) -> tuple[Tensor, Tensor]:
    """Bools [B, T] as padded indices [B, s] and a bool [B, s] that says which of them are real."""
    most = max(1, int(marks.sum(-1).max()))
    order = torch.argsort(marks.to(torch.uint8), dim=-1, descending=True, stable=True)[:, :most]
    return order, marks.gather(1, order)


def one_hot_columns(marks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(columns [B, 1, T, s], indices [B, s], real [B, s]): one column per marked token."""
    index, real = positions_of(marks)
    columns = torch.zeros(*marks.shape, index.shape[1], device=marks.device)
    columns.scatter_(1, index[:, None, :], real[:, None, :].float())
    return columns[:, None], index, real


def watchers(c: AttentionCall, valid: Tensor) -> Tensor:
    """How many valid queries may see each key, [B, 1 or H, K]: T - j for a causal text without padding.

    Args:
        c: the call.
        valid: [B, Q] bool.
    """
    mask, causal = fused.kernel_mask(c, torch.float32)
    if mask is None and not causal:
        return valid.sum(-1).float()[:, None, None].expand(-1, 1, c.keys)
    if mask is None:
        count = valid.flip(-1).cumsum(-1).flip(-1).float()
        return torch.nn.functional.pad(count, (0, max(0, c.keys - c.queries)))[:, None, : c.keys]
    total = torch.zeros(valid.shape[0], mask.shape[1], c.keys, device=c.device)
    rows = mask.expand(*mask.shape[:2], c.queries, c.keys)
    for start in range(0, c.queries, ROWS):
        part = rows[:, :, start : start + ROWS]
        part = part if part.dtype == torch.bool else part > -1e29
        total += (part & valid[:, None, start : start + ROWS, None]).sum(-2)
    return total
