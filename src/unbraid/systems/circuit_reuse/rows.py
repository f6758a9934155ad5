"""Taps that say where chosen heads look from chosen tokens: attend there, or anywhere but there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from unbraid.core.calls import Answer, Ask, AttentionCall, Tap
from unbraid.core.errors import UnbraidError
from unbraid.core.heads import Head, HeadSet

Where = Iterable[int] | Sequence[Sequence[int]]
Mass = Literal["one", "own"]


class RowEdit(Tap):
    """Replaces probabilities of a few query rows of some heads; all other rows and heads stay with the model's kernel.

    Cost: the asked rows, O(rows * keys); no map is built.
    """

    def __init__(self, heads: HeadSet | Iterable[Head], where: Where, rows: Iterable[int]) -> None:
        self.heads = heads if isinstance(heads, HeadSet) else HeadSet(heads)
        self.where = _listed(where)
        self.at = [int(r) for r in rows]
        if not self.at:
            raise UnbraidError(f"{type(self).__name__} needs at least one row (query position); -1 is the last token.")
        self._own: dict[str, Tensor] = {}

    def ask(self, c: AttentionCall) -> Ask:
        """The rows as they are."""
        return Ask(rows=torch.tensor(self._rows(c), device=c.device))

    def take(self, c: AttentionCall, answer: Answer) -> None:
        """Keeps them until the output is there."""
        assert answer.rows is not None
        self._own[c.site] = answer.rows[:, self.heads_at(c)]

    def out(self, c: AttentionCall, y: Tensor) -> Tensor:
        """The chosen heads' outputs at the chosen rows, from the new probabilities."""
        heads, rows = self.heads_at(c) or [], self._rows(c)
        new = self.changed(c, self._own.pop(c.site), rows)
        made = new @ c.expand(c.value)[:, heads].float()
        out = y.clone()
        out[:, torch.tensor(heads)[:, None], torch.tensor(rows)[None]] = made.to(y.dtype)
        return out

    def out_as_rows(self, c: AttentionCall, p: Tensor, start: int) -> Tensor:
        """The same in probabilities, for the softmax seam."""
        rows = [r for r in self._rows(c) if start <= r < start + p.shape[2]]
        if not rows:
            return p
        heads = self.heads_at(c) or []
        out, at = p.clone(), torch.tensor([r - start for r in rows])
        own = p[:, heads][:, :, at].float()
        out[:, torch.tensor(heads)[:, None], at[None]] = self.changed(c, own, rows).to(p.dtype)
        return out

    def changed(self, c: AttentionCall, own: Tensor, rows: list[int]) -> Tensor:
        """New probabilities [B, heads, rows, K] from the head's own."""
        raise NotImplementedError

    def chosen(self, c: AttentionCall, rows: list[int]) -> Tensor:
        """[B, 1, 1, K] float: 1 at the positions of each prompt.

        Raises:
            UnbraidError: as many lists as prompts are needed, or a position lies outside or after a row.
        """
        if len(self.where) not in (1, c.batch):
            raise UnbraidError(
                f"{type(self).__name__} has positions for {len(self.where)} prompts, but the batch has {c.batch}."
            )
        hit = torch.zeros(len(self.where), c.keys, device=c.device)
        last = min(rows) + c.offset
        for i, places in enumerate(self.where):
            for k in places:
                if not -c.keys <= k < c.keys:
                    raise UnbraidError(f"Position {k} is outside the {c.keys} keys of {c.site!r}.")
                if c.kind != "cross" and k % c.keys > last:
                    raise UnbraidError(
                        f"Position {k % c.keys} comes after row {last}: a head cannot look at what is not there yet."
                    )
                hit[i, k % c.keys] = 1.0
        return hit[:, None, None]

    def _rows(self, c: AttentionCall) -> list[int]:
        outside = [r for r in self.at if not -c.queries <= r < c.queries]
        if outside:
            raise UnbraidError(f"Row {outside[0]} is outside the {c.queries} queries of {c.site!r}.")
        return [r % c.queries for r in self.at]


class AttendTo(RowEdit):
    """See `attend_to`."""

    def __init__(
        self, heads: HeadSet | Iterable[Head], where: Where, rows: Iterable[int], mass: Mass, keep: Iterable[int]
    ) -> None:
        super().__init__(heads, where, rows)
        if mass not in ("one", "own"):
            raise UnbraidError(f"mass={mass!r} is unknown; choose 'one' or 'own'.")
        if any(not places for places in self.where):
            raise UnbraidError("attend_to needs at least one position for every prompt.")
        self.mass, self.keep = mass, [int(k) for k in keep]

    def changed(self, c: AttentionCall, own: Tensor, rows: list[int]) -> Tensor:
        """Kept positions as they are, the rest of the mass evenly on the chosen ones."""
        chosen = self.chosen(c, rows)
        total = own.sum(-1, keepdim=True) if self.mass == "own" else torch.ones_like(own[..., :1])
        kept = torch.zeros_like(own)
        if self.keep:
            kept[..., self.keep] = own[..., self.keep]
            kept = kept * (1 - chosen)
        rest = (total - kept.sum(-1, keepdim=True)).clamp(min=0)
        return kept + rest * chosen / chosen.sum(-1, keepdim=True)


class BlockKeys(RowEdit):
    """See `block_keys`."""

    def changed(self, c: AttentionCall, own: Tensor, rows: list[int]) -> Tensor:
        """Blocked positions at zero, the others with their share of what is left (as a mask before softmax does)."""
        hidden = self.chosen(c, rows)
        return own * (1 - hidden) / (1 - (own * hidden).sum(-1, keepdim=True)).clamp(min=1e-12)


def attend_to(
    heads: HeadSet | Iterable[Head],
    where: Where,
    rows: Iterable[int] = (-1,),
    *,
    mass: Mass = "one",
    keep: Iterable[int] = (),
) -> Tap:
    """Makes heads attend evenly to given positions, from given rows; the repair of arXiv 2310.08744, section 5.

    Everything after it recomputes. Other heads, rows and layers run in the model's own kernel.

    Args:
        heads: which heads.
        where: key positions for all prompts, or a list of positions per prompt of the batch.
        rows: query positions; negative ones from the end.
        mass: what the row sums to: "one" over real tokens, or the head's "own" mass on real tokens, which is less than
            one in models with sink logits (gpt-oss).
        keep: positions that keep their own probability, such as [0], the first-token sink; the rest is normalised over
            the real tokens of `where`.

    Raises:
        UnbraidError: no position, no row, or an unknown mass.
    """
    return AttendTo(heads, where, rows, mass, keep)


def block_keys(heads: HeadSet | Iterable[Head], where: Where, rows: Iterable[int] = (-1,)) -> Tap:
    """Hides positions from heads at given rows, as a mask before the softmax would.

    Args:
        heads: which heads.
        where: key positions for all prompts, or a list of positions per prompt of the batch (it may be empty).
        rows: query positions; negative ones from the end.
    """
    return BlockKeys(heads, where, rows)


def _listed(where: Where) -> list[list[int]]:
    listed: list[Any] = list(where)
    if listed and all(isinstance(w, int) or (isinstance(w, Tensor) and w.dim() == 0) for w in listed):
        return [[int(w) for w in listed]]
    try:
        return [[int(k) for k in places] for places in listed] or [[]]
    except TypeError:
        raise UnbraidError("where must be positions, or one list of positions per prompt, not a mixture.") from None
