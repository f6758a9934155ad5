"""A circuit, found backwards: what writes the answer, what steers that, what feeds the steering, what feeds that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import nn

from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores, HeadSet
from unbraid.core.patching import LOGITS, Effects, PathPatcher, receive
from unbraid.core.patching.patcher import FreezeNorm
from unbraid.core.pieces import Pieces
from unbraid.data.prompts import PromptSet

Search = Literal["below_all", "below_any"]
OnStep = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Stage:
    """One step of the backward search.

    Attributes:
        name: of the stage.
        channels: "logits" for the first; "q", "k", "v" or several for the heads that the stage before it kept.
        place: named place of the prompts where senders are patched.
    """

    name: str
    channels: str
    place: str


# Receiver sets are not listed in the paper; these follow its text and arXiv 2211.00593. Only the twin's one exchanged
# token and what comes after it can differ, so that earlier stages are patched there ("source").
PLAN = (
    Stage("movers", "logits", "end"),
    Stage("steering", "q", "end"),
    Stage("feeding", "kv", "source"),
    Stage("early", "qkv", "source"),
)


@dataclass(eq=False)
class Found:
    """What a stage found.

    Attributes:
        stage: what was asked.
        receivers: heads that received (none for the logits).
        effects: of every sender on them, prompt by prompt.
        kept: the top heads by absolute importance, best first.
    """

    stage: Stage
    receivers: HeadSet
    effects: Effects
    kept: HeadSet

    @property
    def scores(self) -> HeadScores:
        """Importance per head; NaN where a head has no path to the receivers."""
        return self.effects.scores()

    def top(self, fraction: float, floor: float, prompts: np.ndarray | None = None) -> HeadSet:
        """The heads that another threshold, or a resample of the prompts, would keep."""
        return strongest(self.effects, fraction, floor, prompts)


@dataclass(eq=False)
class Circuit:
    """The heads that carry a task.

    Attributes:
        task: its name.
        found: stage by stage; a search ends early where nothing is left to find.
        fraction: share of all heads that each stage keeps.
        floor: heads below this share of the strongest effect are not kept.
        total: heads of the model.
    """

    task: str
    found: list[Found]
    fraction: float
    floor: float
    total: int

    @property
    def heads(self) -> HeadSet:
        """Union over stages."""
        return self.at()

    @property
    def size(self) -> int:
        """Prompts behind it."""
        return len(self.found[0].effects.clean)

    def at(self, fraction: float | None = None, prompts: np.ndarray | None = None) -> HeadSet:
        """The circuit at another threshold or for a resample of prompts; receivers of later stages stay as found."""
        share = self.fraction if fraction is None else fraction
        out = HeadSet()
        for f in self.found:
            out = out | f.top(share, self.floor, prompts)
        return out

    def stage(self, name: str) -> Found | None:
        """A stage by name, or None where the search did not get there."""
        return next((f for f in self.found if f.stage.name == name), None)

    def movers(self) -> tuple[HeadSet, HeadSet]:
        """(movers, negative movers) of the first stage: heads that help the answer, heads that work against it."""
        scores = self.found[0].scores
        kept = self.found[0].kept
        return HeadSet(h for h in kept if scores[h] > 0), HeadSet(h for h in kept if scores[h] < 0)

    def normalised(self) -> dict[str, HeadScores]:
        """Stage -> importance over the largest absolute one of that stage, to compare tasks and stages."""
        out = {}
        for f in self.found:
            s = f.scores
            top = np.nanmax(np.abs(s.array)) or 1.0
            out[f.stage.name] = HeadScores({k: v / top for k, v in s.scores.items()}, "normalised importance")
        return out


def strongest(effects: Effects, fraction: float, floor: float, prompts: np.ndarray | None = None) -> HeadSet:
    """The top heads by absolute importance: a share of all heads, none below `floor` times the strongest."""
    values = np.abs(effects.importance(prompts))
    count = max(1, round(fraction * sum(effects.heads)))
    least = max(floor * float(values.max(initial=0.0)), 1e-12)
    order = [i for i in np.argsort(-values, kind="stable")[:count] if values[i] >= least]
    nodes = [next(iter(effects.senders[i])) for i in order]
    return HeadSet((effects.sites[layer], head) for layer, head in nodes)


def find_circuit(
    model: nn.Module,
    prompts: PromptSet,
    plan: Sequence[Stage] = PLAN,
    fraction: float = 0.02,
    *,
    floor: float = 1e-3,
    search: Search = "below_all",
    freeze_norm: FreezeNorm = "clean",
    freeze_mlps: bool = False,
    batch: int = 25,
    rows: int = 2048,
    on_step: OnStep | None = None,
    store: Pieces | None = None,
) -> Circuit:
    """Path patching in stages, backwards from the answer.

    Args:
        model: a decoder language model in evaluation mode.
        prompts: pairs of one task, from `unbraid.data.prompts` or your own.
        plan: the stages; the receivers of each are the heads that the one before it kept.
        fraction: share of all heads that each stage keeps; the paper's is 0.02.
        floor: heads below this share of a stage's strongest effect are never kept.
        search: senders lie below all receivers (the paper) or below at least one.
        freeze_norm: see `PathPatcher`; the paper's code leaves norms live ("none").
        freeze_mlps: see `PathPatcher`; the paper's default is False.
        batch: prompts per batch at the most.
        rows: tokens per forward.
        on_step: called with (stage, done, all).
        store: finished batches are read from it and written to it.

    Returns:
        The circuit, with the effects of every head and prompt.

    Raises:
        UnbraidError: no prompts, an empty plan, a fraction outside 0 to 1, or an unknown search or place.
    """
    _check(prompts, plan, fraction, search)
    found: list[Found] = []
    total = 0
    for stage in plan:
        heads = found[-1].kept if found else HeadSet()
        settings = {"freeze_norm": freeze_norm, "freeze_mlps": freeze_mlps, "rows": rows}
        effects = _stage(model, prompts, stage, heads, bool(found), search, batch, settings, on_step, store)
        if effects is None:
            break  # nothing lies below these receivers
        total = sum(effects.heads)
        found.append(Found(stage, heads, effects, strongest(effects, fraction, floor)))
        if not len(found[-1].kept):
            break
    return Circuit(prompts.task, found, fraction, floor, total)


def _stage(
    model: nn.Module,
    prompts: PromptSet,
    stage: Stage,
    heads: HeadSet,
    later: bool,
    search: Search,
    batch: int,
    settings: dict[str, Any],
    on_step: OnStep | None,
    store: Pieces | None,
) -> Effects | None:
    places = [_places(prompts, i, stage.place) for i in range(len(prompts))]
    groups = _groups(prompts, places, batch)
    whole: Effects | None = None
    order: list[int] = []
    for number, group in enumerate(groups):
        made = _patcher(model, prompts, group, settings)
        receivers = receive(heads, stage.channels) if later else [LOGITS]
        senders = _senders(made, heads, later, search)
        if not senders:
            return None
        key = [
            [prompts[i].clean + prompts[i].corrupt + prompts[i].answers for i in group], [places[i] for i in group],
            sorted(heads), stage.channels, settings["freeze_norm"], settings["freeze_mlps"], len(senders),
        ]  # fmt: skip
        patched = None if store is None else store.load_arrays("effects", key)
        at = [places[i] for i in group]
        step = None if on_step is None else _step(on_step, stage.name, number, len(groups))
        if patched is None:
            effects = made.effects(receivers, senders, at, step)
            if store is not None:
                store.save_arrays("effects", key, _packed(effects))
        else:
            effects = _unpacked(patched, made, senders)
        if on_step is not None:
            on_step(stage.name, number + 1, len(groups))
        order += group
        whole = effects if whole is None else whole + effects
    assert whole is not None
    back = np.argsort(order)  # batches are by length; effects are in the order of the prompts again
    return Effects(
        whole.senders, whole.labels, whole.patched[:, back], whole.clean[back], whole.corrupt[back], whole.sites,
        whole.heads,
    )  # fmt: skip


def _step(on_step: OnStep, name: str, number: int, groups: int) -> Callable[[int, int], None]:
    return lambda done, all_: on_step(name, number + done / max(1, all_), groups)  # type: ignore[arg-type]


def _packed(e: Effects) -> dict[str, np.ndarray]:
    return {"patched": e.patched, "clean": e.clean, "corrupt": e.corrupt}


def _unpacked(arrays: dict[str, np.ndarray], made: PathPatcher, senders: Iterable[Any]) -> Effects:
    names = made.anatomy.names
    nodes = [names.nodes(s) for s in senders]
    return Effects(nodes, [names.label(n) for n in nodes], **arrays, sites=made.anatomy.sites, heads=made.anatomy.heads)


def _senders(made: PathPatcher, heads: HeadSet, later: bool, search: Search) -> list[tuple[str, int]]:
    layer = made.anatomy.names.layer
    depths = [layer[site] for site, _ in heads] if later else [made.anatomy.depth]
    limit = min(depths) if search == "below_all" else max(depths)
    return [h for h in made.heads if layer[h[0]] < limit]


def _patcher(model: nn.Module, prompts: PromptSet, group: list[int], settings: dict[str, Any]) -> PathPatcher:
    def filled(rows: list[tuple[int, ...]]) -> list[list[int]]:
        width = max(map(len, rows))
        return [[*row, *[-1] * (width - len(row))] for row in rows]

    some = [prompts[i] for i in group]
    return PathPatcher(
        model,
        [list(p.clean) for p in some],
        [list(p.corrupt) for p in some],
        filled([p.answers for p in some]),
        filled([p.distractors for p in some]),
        **settings,
    )


def _places(prompts: PromptSet, i: int, name: str) -> list[int]:
    """Positions of a place where the two prompts can differ: before the first exchanged token nothing does."""
    pair = prompts[i]
    if name not in pair.places:
        raise UnbraidError(
            f"Prompts of {prompts.task!r} have no place {name!r}; they have {', '.join(map(repr, pair.places))}."
        )
    at = [p for p in pair.places[name] if p >= pair.first_difference]
    if not at:
        raise UnbraidError(
            f"At the place {name!r} of {prompts.task!r} prompts and twins do not differ yet, so patching there does "
            "nothing; choose a later place, or twins that differ earlier."
        )
    return at


def _groups(prompts: PromptSet, places: list[list[int]], size: int) -> list[list[int]]:
    found: dict[tuple[int, int], list[int]] = {}
    for i, at in enumerate(places):
        found.setdefault((len(prompts[i].clean), len(at)), []).append(i)
    return [whole[at : at + size] for _, whole in sorted(found.items()) for at in range(0, len(whole), size)]


def _check(prompts: PromptSet, plan: Sequence[Stage], fraction: float, search: str) -> None:
    if not isinstance(prompts, PromptSet) or not len(prompts):
        raise UnbraidError(
            "find_circuit needs a PromptSet with at least one pair, e.g. "
            "unbraid.data.prompts.indirect_object(tokenizer, 100)."
        )
    if not plan or plan[0].channels != "logits" or any(s.channels == "logits" for s in plan[1:]):
        raise UnbraidError("A plan begins with one stage whose channels are 'logits'; later ones use 'q', 'k', 'v'.")
    if not 0 < fraction <= 1:
        raise UnbraidError(f"fraction={fraction} must lie above 0 and be 1 at the most; the paper's is 0.02.")
    if search not in ("below_all", "below_any"):
        raise UnbraidError(f"search={search!r} is unknown; choose 'below_all' or 'below_any'.")
