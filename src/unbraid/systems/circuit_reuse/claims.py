"""The paper's claims with what came out here, the comparator of the same run, and an interval."""

from __future__ import annotations

from typing import Any

import numpy as np

from unbraid.core.claim import Claim
from unbraid.systems.circuit_reuse import CARD
from unbraid.systems.circuit_reuse.behaviour import mean_interval
from unbraid.systems.circuit_reuse.sharing import bootstrap_overlap, overlap, shape_of
from unbraid.systems.circuit_reuse.study import Findings

SPEC = {c.name: c for c in CARD.claims}


def measure(f: Findings, seed: int) -> list[Claim]:
    """All claims of the card, in its order; what was not measured is not tested."""
    return [shared(f, seed), others(f, seed), *mended(f), gathered(f)]


def make(name: str, **values: Any) -> Claim:
    """A claim of the card."""
    spec = SPEC[name]
    empty = {"measured": None, "comparator": None, "holds": None}
    return Claim(name, spec.statement, spec.source, spec.paper, **{**empty, **values})


def shared(f: Findings, seed: int) -> Claim:
    """The overlap of the two circuits against both nulls."""
    found = [overlap(a.heads, b.heads, shape_of(a)) for a, b in f.pairs]
    bounds = [bootstrap_overlap(a, b, seed=seed + i) for i, (a, b) in enumerate(f.pairs)]
    again = [
        f"{old.task} {old.heads.overlap(new.heads):.0%}"
        for pair in f.pairs[1:]
        for old, new in zip(f.pairs[0], pair, strict=True)
    ]
    ceiling = (
        f" The same task on other prompts shares: {', '.join(again)}; the search itself is that noisy." if again else ""
    )
    sizes = "; ".join(f"{o.shared} of {o.union} (p {o.p:.2g}, in layers {o.p_by_layer:.2g})" for o in found)
    return make(
        "overlap",
        measured=float(np.mean([o.jaccard for o in found])),
        interval=(min(b[0] for b in bounds), max(b[1] for b in bounds)),
        comparator=float(np.mean([o.expected for o in found])),
        holds=all(o.jaccard > 0.5 and o.p < 0.01 and o.p_by_layer < 0.05 for o in found),
        n=len(found),
        note=f"Jaccard index per seed: {sizes}. Comparator: random sets of these sizes; with as many heads in each "
        f"layer {np.mean([o.expected_by_layer for o in found]):.3f}. Holds if in every seed more than half are shared "
        "(mostly the same heads), p < .01 against any heads and p < .05 against heads of the same layers. Interval: "
        f"bootstrap over prompts, receivers of later stages as found.{ceiling}",
    )


def others(f: Findings, seed: int) -> Claim:
    """Overlap of control tasks with the first task, against the overlap of the two main tasks."""
    if not f.controls:
        return make("controls", note="no --controls were given")
    first, second = f.pairs[0]
    shape = shape_of(first)
    main = overlap(first.heads, second.heads, shape)
    rows = [(c.task, overlap(first.heads, c.heads, shape), bootstrap_overlap(first, c, seed=seed)) for c in f.controls]
    said = "; ".join(f"{task} {o.shared} of {o.union} ({o.jaccard:.0%}, p {o.p:.2g})" for task, o, _ in rows)
    return make(
        "controls",
        measured=float(np.mean([o.jaccard for _, o, _ in rows])),
        interval=(min(b[0] for *_, b in rows), max(b[1] for *_, b in rows)),
        comparator=main.jaccard,
        holds=all(o.jaccard < main.jaccard for _, o, _ in rows),
        n=len(rows),
        note=f"{said}. Comparator: indirect objects with coloured objects, same seed. Chance for sets of these sizes: "
        f"{np.mean([o.expected for _, o, _ in rows]):.3f}. Holds if every control shares less than the comparator.",
    )


def mended(f: Findings) -> list[Claim]:
    """Repair, its trace in the movers, and the rank correlation."""
    done = f.repairs.get("the four heads")
    if done is None:
        return [make(n, note="a circuit ended after one stage") for n in ("repair", "harmless", "downstream", "rank")]
    after, before = done.after["all"].share(), done.before.share()
    mean, low, high = done.spread()
    parts = ", ".join(f"{n} {a.share()[0]:.1%}" for n, a in done.after.items() if n != "all")
    other = {n: r.after["all"].share()[0] for n, r in f.repairs.items() if "of seed" in n}
    again = "".join(f" With {n}: {share:.1%}." for n, share in other.items())
    repair = make(
        "repair",
        measured=after[0],
        interval=after[1:],
        comparator=f"{before[0]:.1%} without; {mean:.1%} ({low:.1%} to {high:.1%}) with random heads",
        holds=after[0] > before[0] and after[0] > high,
        n=len(done.before.top1),
        note=f"{parts}; {len(done.random)} random draws from the same layers, none of them among the four. Among the "
        f"three colours: {done.before.share('best')[0]:.1%} to {done.after['all'].share('best')[0]:.1%}. Holds if it "
        "beats the model as it is and every draw. The intervention is told which colours are wrong, and so are the "
        f"random heads.{again}",
    )
    right = int(done.before.top1.sum())
    worse = [int((done.before.top1 & ~a.top1).sum()) for a in done.random]
    harmless = make(
        "harmless",
        measured=done.new_mistakes(),
        comparator=f"{np.mean(worse):.1f} ({min(worse)} to {max(worse)}) with random heads",
        holds=done.new_mistakes() == 0 if right else None,
        n=right or None,
        note=f"of {right} prompts that were right before (top-1); among the three colours {done.new_mistakes('best')}.",
    )
    return [repair, harmless, *_traced(f)]


def _traced(f: Findings) -> list[Claim]:
    m = f.moved
    if not m.get("movers"):
        return [make("downstream", note="no mover"), make("rank", note="no mover")]
    down = make(
        "downstream",
        measured=f"{100 * m['wrong']:+.2f} points on wrong colours, {100 * m['colour']:+.2f} on the right one",
        comparator=f"before: {m['wrong before']:.1%} and {m['colour before']:.1%}",
        holds=m["wrong interval"][1] < 0 < m["colour interval"][0],
        n=m["movers"],
        note=f"95 % intervals over prompts: {_points(m['wrong interval'])} and {_points(m['colour interval'])}; logit "
        f"attribution (answer minus distractor) changes by {m['mean gain']:+.3f} per mover. n: movers. Holds if both "
        "intervals leave out zero, with the paper's signs.",
    )
    return [down, ranked(m)]


def ranked(m: dict[str, Any]) -> Claim:
    """Rank correlation of gain and importance, per set of prompts that importance was measured on."""
    found, few = m["ranks 0.05"], m["ranks 0.02"]
    said = "; ".join(f"{rho:.2f} (p {p:.2g}, {n} heads)" for rho, p, n in found)
    least = "; ".join(f"{rho:.2f} ({n} heads)" for rho, _, n in few)
    tested = all(n >= 6 and np.isfinite(rho) for rho, _, n in found)  # of four or five heads no order reaches p < .05
    return make(
        "rank",
        measured=float(np.mean([rho for rho, *_ in found])) if tested else None,
        comparator=0.0,
        holds=all(rho > 0 and p < 0.05 for rho, p, _ in found) if tested else None,
        n=len(found),
        note=f"Per seed of the prompts that importance comes from: {said}, over heads that help the answer among the "
        f"top 5 % of the first stage; among the top 2 %, too few to decide: {least}. Holds if "
        "positive with p < .05 in each.",
    )


def _points(bounds: tuple[float, float]) -> str:
    return f"{100 * bounds[0]:+.2f} to {100 * bounds[1]:+.2f}"


def gathered(f: Findings) -> Claim:
    """Accuracy without gatherers, against random heads that lose sight of the same place."""
    if f.gathered is None:
        return make("gatherers", note="a circuit ended after one stage")
    heads, blocked, random = f.gathered
    share = blocked.share()
    others_ = [a.share()[0] for a in random]
    before, low, _ = f.repairs["the four heads"].before.share()
    guesses = low <= 1 / 3
    drop = mean_interval(np.array([before - x for x in others_]))
    return make(
        "gatherers",
        measured=share[0],
        interval=share[1:],
        comparator=f"{np.mean(others_):.1%} ({min(others_):.1%} to {max(others_):.1%}) with random heads",
        holds=None if guesses else share[0] < min(others_) and share[1] <= 1 / 3 <= share[2],
        n=len(blocked.top1),
        note=f"{before:.1%} before; {len(heads)} heads of the second stage cannot see the question's object from the "
        f"last token; among the three colours {blocked.share('best')[0]:.1%}. Random heads of the same layers cost "
        f"{100 * drop[0]:.1f} to {100 * drop[1]:.1f} points. Holds if below every random draw and one third lies in "
        "the interval (a guess among the colours)."
        + (" Not tested: the model guesses as it is, so nothing can be taken away." if guesses else ""),
    )
