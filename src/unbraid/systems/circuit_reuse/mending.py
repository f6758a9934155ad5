"""The repair: four heads of one circuit switched on in another task, against random heads of the same layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores, HeadSet
from unbraid.core.pieces import Pieces
from unbraid.data.prompts import PromptSet
from unbraid.systems.circuit_reuse.answering import Answers, accuracy, remembered
from unbraid.systems.circuit_reuse.circuit import Circuit
from unbraid.systems.circuit_reuse.rows import Mass, attend_to, block_keys

OnStep = Callable[[str, int, int], None]


@dataclass(eq=False)
class Repair:
    """What an intervention did.

    Attributes:
        heads: which heads it was.
        before: answers without it.
        after: name -> answers with it ("all", or parts of the set).
        random: answers with as many random heads of the same layers, one entry per draw.
        draws: the heads of each draw.
    """

    heads: HeadSet
    before: Answers
    after: dict[str, Answers] = field(default_factory=dict)
    random: list[Answers] = field(default_factory=list)
    draws: list[HeadSet] = field(default_factory=list)

    def spread(self, which: str = "top1") -> tuple[float, float, float]:
        """(mean, lowest, highest) accuracy over the random draws."""
        shares = [a.share(which)[0] for a in self.random]
        return float(np.mean(shares)), float(np.min(shares)), float(np.max(shares))

    def new_mistakes(self, which: str = "top1", name: str = "all") -> int:
        """Prompts that were right before and are wrong now."""
        return int((vars(self.before)[which] & ~vars(self.after[name])[which]).sum())


def repair_heads(circuit: Circuit, steering: int = 3, negative: int = 1) -> tuple[HeadSet, HeadSet]:
    """(steering heads, negative movers) to switch on: the strongest helpers of stage 1, the strongest of stage 0 that
    work against the answer.

    Args:
        circuit: of the task that lends the heads (indirect object identification in the paper).
        steering: how many heads of the second stage; the paper has three inhibition heads.
        negative: how many negative movers; the paper has one.

    Raises:
        UnbraidError: the circuit has no second stage.
    """
    found = circuit.stage(circuit.found[1].stage.name) if len(circuit.found) > 1 else None
    if found is None:
        raise UnbraidError(f"The circuit of {circuit.task!r} has one stage only, so it has no heads that steer movers.")
    against = [(h, v) for h, v in reversed(circuit.found[0].scores.ranked()) if v < 0]
    return found.scores.top(steering), HeadSet(h for h, _ in against[:negative])


def random_heads(scores: HeadScores, like: HeadSet, avoid: HeadSet, rng: np.random.Generator) -> HeadSet:
    """As many random heads from the same layers, none in `avoid`; from the nearest layers where one runs out."""
    sites, out = scores.sites, []
    free = {s: [h for h in range(len(v)) if (s, h) not in avoid] for s, v in scores.scores.items()}
    for site, _ in like:
        at = sites.index(site)
        near = sorted(range(len(sites)), key=lambda i: (abs(i - at), i))
        source = next((sites[i] for i in near if free[sites[i]]), None)
        if source is None:
            raise UnbraidError(f"There are not {len(like)} other heads to draw a control from.")
        out.append((source, free[source].pop(int(rng.integers(len(free[source]))))))
    return HeadSet(out)


def repair(
    model: nn.Module,
    prompts: PromptSet,
    heads: HeadSet,
    place: str = "wrong",
    *,
    parts: dict[str, HeadSet] | None = None,
    avoid: HeadSet | None = None,
    scores: HeadScores | None = None,
    draws: int = 10,
    mass: Mass = "one",
    keep: Sequence[int] = (),
    batch: int = 25,
    seed: int = 0,
    on_step: OnStep | None = None,
    store: Pieces | None = None,
) -> Repair:
    """Makes heads attend from the last token to a named place of each prompt, and counts right answers.

    Args:
        model: a decoder language model.
        prompts: of the task to be repaired; not those that chose the heads.
        heads: which heads.
        place: where they shall look; "wrong" are the wrong colours.
        parts: further sets, by name, to try alone.
        avoid: heads that the random controls must not hold; None: `heads` and `parts`.
        scores: any table of the model's heads, from which controls are drawn; None draws none.
        draws: random controls.
        mass: see `attend_to`.
        keep: see `attend_to`.
        batch: prompts per forward.
        seed: of the controls.
        on_step: called with (name, done, all).
        store: finished answers are read from it and written to it.
    """
    wanted = {"all": heads, **(parts or {})}
    avoided = HeadSet(h for some in wanted.values() for h in some) if avoid is None else avoid | heads
    rng = np.random.default_rng(seed)
    controls = [] if scores is None else [random_heads(scores, heads, avoided, rng) for _ in range(draws)]
    total, done = 1 + len(wanted) + len(controls), 0

    def step(name: str) -> None:
        nonlocal done
        done += 1
        if on_step is not None:
            on_step(name, done, total)

    def answers(some: HeadSet) -> Answers:
        if not len(some):
            return out.before
        tap = lambda group: [attend_to(some, [prompts[i].places[place] for i in group], mass=mass, keep=keep)]  # noqa: E731
        what = ["repair", sorted(some), place, mass, list(keep)]
        return remembered(store, prompts, what, lambda: accuracy(model, prompts, tap, batch))

    if place not in prompts[0].places:
        raise UnbraidError(f"Prompts of {prompts.task!r} have no place {place!r}; they have {list(prompts[0].places)}.")
    out = Repair(heads, remembered(store, prompts, "plain", lambda: accuracy(model, prompts, None, batch)))
    step("before")
    for name, some in wanted.items():
        out.after[name] = answers(some)
        step(name)
    for some in controls:
        out.random.append(answers(some))
        out.draws.append(some)
        step("random heads")
    return out


def blocked(
    model: nn.Module,
    prompts: PromptSet,
    heads: HeadSet,
    place: str = "question",
    batch: int = 25,
    store: Pieces | None = None,
) -> Answers:
    """Answers when heads cannot see a place from the last token (content gatherers and the question's object)."""
    tap = lambda group: [block_keys(heads, [prompts[i].places[place] for i in group])]  # noqa: E731
    return remembered(store, prompts, ["block", sorted(heads), place], lambda: accuracy(model, prompts, tap, batch))
