"""Redistribution as taps: sinks scaled, their mass given to others, VAR and ACT; all in closed form on the output.

With m_i the mass on the sinks S and o_S,i what they write (one narrow fused call gives both), no matrix is needed:
scaling their weights by g gives (o + (g - 1) o_S) / (1 + (g - 1) m), removing them (o - o_S) / (1 - m), and giving a
part b of their mass to the others in proportion (1 - b) o_S + (1 + b m / (1 - m)) (o - o_S).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from unbraid.core.calls import AttentionCall, Tap
from unbraid.core.engine import fused
from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores, HeadSet
from unbraid.systems.attention_sinks.detection.layout import watchers
from unbraid.systems.attention_sinks.detection.metrics import sink_metric
from unbraid.systems.attention_sinks.steering.parts import (
    FLOOR,
    marked,
    mass_and_write,
    mass_and_write_of,
    total_mass,
    uniform_over,
)
from unbraid.taps.edit_base import Edit, Keys, Phase

Gamma = float | HeadScores | Mapping[str, Tensor]
NEEDS = "works on head outputs, which the softmax seam does not show; use scale_sinks or redistribute there"


class SinkEdit(Edit):
    """What these edits share: rows that would be divided by next to nothing are left as they are.

    Attributes:
        start: queries from this place of the text on are edited, one number or one per text [B].
    """

    start: int | Tensor = 0

    def late(self, c: AttentionCall, rows: int, first: int = 0) -> Tensor:
        """[B or 1, 1, rows] bool: queries that are edited."""
        place = torch.arange(rows, device=c.device) + c.offset + first
        start = torch.as_tensor(self.start, device=c.device).reshape(-1, 1)
        return (place >= start)[:, None]

    def out(self, c: AttentionCall, y: Tensor) -> Tensor:
        """The changed output of the chosen heads."""
        new, sound = self.changed(c, y.float())
        new = torch.where((sound & self.late(c, y.shape[2]))[..., None], new, y.float())
        pick = self.chosen(c)
        return self.blend(c, y, new if len(pick) == c.heads else new[:, pick])

    def changed(self, c: AttentionCall, y: Tensor) -> tuple[Tensor, Tensor]:
        """(new output [B, H, Q, V], rows where it is sound [B, H, Q] bool)."""
        raise NotImplementedError

    def out_as_rows(self, c: AttentionCall, p: Tensor, start: int) -> Tensor:
        """The same said in probabilities."""
        new, sound = self.rows_changed(c, p.float(), start)
        new = torch.where((sound & self.late(c, p.shape[2], start))[..., None], new, p.float()).to(p.dtype)
        pick, out = self.chosen(c), p.clone()
        out[:, pick] = p[:, pick] + self.amount * (new[:, pick] - p[:, pick])
        return out

    def rows_changed(self, c: AttentionCall, p: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """(new probabilities, rows where they are sound)."""
        raise UnbraidError(f"{type(self).__name__} {NEEDS}.")


class ScaleSinks(SinkEdit):
    """See `scale_sinks`."""

    def __init__(
        self, gamma: Gamma, sinks: Keys, heads: HeadSet | None, amount: float, phase: Phase, start: int | Tensor
    ) -> None:
        super().__init__(heads, amount, phase)
        self.gamma, self.sinks, self.start = gamma, sinks, start

    def factor(self, c: AttentionCall) -> Tensor:
        """[1, H, 1] the factor of each head."""
        if isinstance(self.gamma, (int, float)):
            found = torch.full((c.heads,), float(self.gamma))
        else:
            table = self.gamma.scores if isinstance(self.gamma, HeadScores) else self.gamma
            found = torch.as_tensor(table[c.site] if c.site in table else [1.0] * c.heads, dtype=torch.float32)
        if len(found) != c.heads:
            raise UnbraidError(f"gamma has {len(found)} numbers for {c.site!r}, which has {c.heads} heads.")
        if not bool((found >= 0).all()):
            raise UnbraidError(f"gamma must be 0 or more, and is {float(found.min()):g} at {c.site!r}.")
        return found.to(c.device)[None, :, None]

    def changed(self, c: AttentionCall, y: Tensor) -> tuple[Tensor, Tensor]:
        """(o + (g - 1) o_S) / (1 + (g - 1) m)."""
        more = self.factor(c) - 1
        mass, write = mass_and_write(c, marked(self.sinks, c))
        rest = 1 + more * mass
        return (y + more[..., None] * write) / rest.clamp(min=FLOOR)[..., None], rest >= FLOOR

    def rows_changed(self, c: AttentionCall, p: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """The same in probabilities."""
        more = (self.factor(c) - 1)[..., None] * marked(self.sinks, c)[:, None, None]
        rest = 1 + (more * p).sum(-1)
        return p * (1 + more) / rest.clamp(min=FLOOR)[..., None], rest >= FLOOR


class Redistribute(SinkEdit):
    """See `redistribute`."""

    def __init__(
        self, beta: float, sinks: Keys, targets: Keys | None, how: str, heads: HeadSet | None, phase: Phase
    ) -> None:
        super().__init__(heads, 1.0 if beta else 0.0, phase)
        if not 0 <= beta <= 1:
            raise UnbraidError(f"beta is {beta}; the moved share of the sinks' mass lies between 0 and 1.")
        if how not in ("proportional", "uniform"):
            raise UnbraidError(f"how={how!r} is unknown; choose 'proportional' or 'uniform'.")
        self.beta, self.sinks, self.targets, self.how = beta, sinks, targets, how

    def both(self, c: AttentionCall) -> tuple[Tensor, Tensor]:
        """(sinks, targets) as [B, K] bools; a sink is no target."""
        sinks = marked(self.sinks, c)
        targets = ~sinks if self.targets is None else marked(self.targets, c) & ~sinks
        return sinks, targets

    def changed(self, c: AttentionCall, y: Tensor) -> tuple[Tensor, Tensor]:
        """The sinks keep 1 - beta; what they lose goes to the targets."""
        sinks, targets = self.both(c)
        mass, write = mass_and_write(c, sinks)
        kept = y - self.beta * write
        if self.how == "uniform":
            mean, any_target = uniform_over(c, targets)
            return kept + (self.beta * mass)[..., None] * mean, any_target
        if self.targets is None:
            others, room = y - write, total_mass(c, mass) - mass
        else:
            room, others = mass_and_write(c, targets)
        return kept + (self.beta * mass / room.clamp(min=FLOOR))[..., None] * others, room >= FLOOR

    def rows_changed(self, c: AttentionCall, p: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """The same in probabilities."""
        sinks, targets = self.both(c)
        on_sinks = p * sinks[:, None, None]
        mass = on_sinks.sum(-1, keepdim=True)
        seen = targets[:, None, None] & (p > 0)
        share = seen.float() if self.how == "uniform" else p * targets[:, None, None]
        room = share.sum(-1, keepdim=True)
        least = 0.5 if self.how == "uniform" else FLOOR
        return p - self.beta * on_sinks + self.beta * mass * share / room.clamp(min=least), room[..., 0] >= least


class Var(SinkEdit):
    """See `visual_redistribution`."""

    def __init__(
        self, visual: Keys, sinks: Keys, keep: float, most: float, least: float, heads: HeadSet | None, phase: Phase
    ) -> None:
        super().__init__(heads, 1.0 - keep, phase)
        for name, value in (("keep", keep), ("most", most), ("least", least)):
            if not 0 <= value <= 1:
                raise UnbraidError(f"{name} is {value}; it is a share between 0 and 1.")
        self.amount = 1.0 if keep < 1 else 0.0
        self.visual, self.sinks, self.keep, self.most, self.least = visual, sinks, keep, most, least

    def changed(self, c: AttentionCall, y: Tensor) -> tuple[Tensor, Tensor]:
        """Sinks keep a share; the rest goes to visual tokens that are none, where the head looks at the picture."""
        sinks, visual = marked(self.sinks, c), marked(self.visual, c)
        mass, write = mass_and_write(c, sinks)
        on_visual_sinks = (
            mass_and_write(c, sinks & visual)[0] if bool((sinks & visual).any()) else torch.zeros_like(mass)
        )
        room, others = mass_and_write(c, visual & ~sinks)
        looks = room + on_visual_sinks
        central = (looks >= self.least) & (on_visual_sinks <= self.most * looks) & (room >= FLOOR)
        freed = (1 - self.keep) * mass
        return y - (1 - self.keep) * write + (freed / room.clamp(min=FLOOR))[..., None] * others, central


class Act(SinkEdit):
    """See `calibrate_sinks`."""

    def __init__(
        self, excess: float, keep: float, first: Keys, valid: Keys | None, heads: HeadSet | None, phase: Phase
    ) -> None:
        super().__init__(heads, 1.0 if keep != 1 else 0.0, phase)
        if excess <= 0 or not 0 <= keep <= 1:
            raise UnbraidError(f"excess is {excess} and keep {keep}; excess must be above 0, keep between 0 and 1.")
        self.excess, self.keep, self.first, self.valid = excess, keep, first, valid
        self.found: dict[str, Tensor] = {}

    def changed(self, c: AttentionCall, y: Tensor) -> tuple[Tensor, Tensor]:
        """Sinks of each head, the first token left aside, are scaled; what they lose is spread in proportion."""
        if not fused.can_fuse(c):
            raise UnbraidError(f"calibrate_sinks cannot run at {c.site!r}, which caps its logits.")
        real = torch.ones(c.batch, c.keys, dtype=torch.bool, device=c.device)
        real = real if self.valid is None else marked(self.valid, c)
        asking = real[:, -c.queries :] if c.keys >= c.queries else torch.ones_like(real[:, :1]).expand(-1, c.queries)
        with torch.no_grad():
            received = fused.received(c, asking[:, None, :, None].float())[..., 0]
            alpha = sink_metric(received, watchers(c, asking))
        initial = marked(self.first, c)
        limit = self.excess / real.sum(-1)[:, None, None]
        sinks = (alpha > limit) & (real & ~initial)[:, None]
        self.found[c.site] = sinks
        mass, write = mass_and_write_of(c, sinks)
        room = total_mass(c, mass) - mass
        moved = 1 - self.keep
        others = y - write
        return y - moved * write + (moved * mass / room.clamp(min=FLOOR))[..., None] * others, room >= FLOOR


def scale_sinks(
    gamma: Gamma,
    sinks: Keys = (0,),
    heads: HeadSet | None = None,
    *,
    amount: float = 1.0,
    phase: Phase = "all",
    start: int | Tensor = 0,
) -> Tap:
    """Multiplies the weights of sinks before rows are normalised: ZeroTuning's bias ln(gamma) on their logits.

    Reference: arXiv 2505.11739 (ZeroTuning). 1 is the identity, 0 removes the sinks. Removed for every query, the first
    token is as good as not there, and models tend to make the next one a sink; `start` leaves the first queries be.

    Args:
        gamma: the factor, for all heads, or per head as `HeadScores` or site -> [H].
        sinks: key positions, a slice, bools, or `first_tokens(attention_mask)` for padded texts.
        heads: which heads; None for all.
        amount: 1 replaces the output, smaller ones blend.
        phase: "all", "prefill" or "decode".
        start: queries from this place on are edited; one number, or one per text [B] where padding differs.
    """
    return ScaleSinks(gamma, sinks, heads, amount, phase, start)


def redistribute(
    beta: float,
    sinks: Keys = (0,),
    targets: Keys | None = None,
    how: Literal["proportional", "uniform"] = "proportional",
    heads: HeadSet | None = None,
    *,
    phase: Phase = "all",
) -> Tap:
    """Moves a share beta of the sinks' mass to other keys (survey, equation 20, alpha = 1 - beta).

    Args:
        beta: share that is moved.
        sinks: where it is taken from, as in `scale_sinks`.
        targets: where it goes; None for all other keys.
        how: "proportional" to what the targets get already, or "uniform" over those in sight.
        heads: which heads; None for all.
        phase: "all", "prefill" or "decode".
    """
    return Redistribute(beta, sinks, targets, how, heads, phase)


def visual_redistribution(
    visual: Keys,
    sinks: Keys,
    keep: float = 0.6,
    most: float = 0.5,
    least: float = 0.2,
    heads: HeadSet | None = None,
    *,
    phase: Phase = "all",
) -> Tap:
    """VAR (arXiv 2503.03321): heads that look at the picture give what sinks hold to the rest of the picture.

    Attach it with `sites=` for the layers from 2 to the last but one, as the paper does: see `var_sites`.

    Args:
        visual: keys of image tokens.
        sinks: sink tokens of text and picture, by `channel_sinks` for example.
        keep: share of their mass that sinks keep.
        most: a head is image-centric where sinks hold at most this share of its visual mass ...
        least: ... and it has at least this mass on the picture.
        heads: which heads; None for all.
        phase: "all", "prefill" or "decode".
    """
    return Var(visual, sinks, keep, most, least, heads, phase)


def calibrate_sinks(
    excess: float = 5.0,
    keep: float = 0.4,
    first: Keys = (0,),
    valid: Keys | None = None,
    heads: HeadSet | None = None,
    *,
    phase: Phase = "all",
) -> Tap:
    """ACT (arXiv 2406.15765): per head, sinks other than the first token are damped, and what they lose is spread.

    Which keys are sinks is read from all queries of the pass, later ones included: right for a prompt that is only
    read, wrong for scoring its tokens.

    Args:
        excess: a key is a sink when its mean attention exceeds this over the number of keys.
        keep: share of their mass that such sinks keep.
        first: keys that are never damped.
        valid: keys that are no padding; None for all.
        heads: which heads; None for all.
        phase: "all", "prefill" or "decode".
    """
    return Act(excess, keep, first, valid, heads, phase)


def var_sites(sites: list[str]) -> list[str]:
    """The layers that VAR touches: from the third to the last but one.

    Args:
        sites: all sites in the order of execution.
    """
    return sites[2:-1]
