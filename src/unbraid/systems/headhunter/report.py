"""From findings to a page: pictures first, then scores, strength curves and claims."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from unbraid.core.claim import Claim, Table
from unbraid.core.figures import Bars, Figure, HeadMap, Image, Lines
from unbraid.core.mosaic import mosaic
from unbraid.core.result import Result
from unbraid.core.series import Series
from unbraid.metrics.intervals import over
from unbraid.systems.headhunter import CARD
from unbraid.systems.headhunter.atlas import levels
from unbraid.systems.headhunter.measuring import ALL, FEW, LAYER, NONE, ONE, OURS, RANDOM, Found, Plan, table_of
from unbraid.systems.headhunter.study import STRIPES, Findings

SPEC = {c.name: c for c in CARD.claims}
ORDER = (NONE, LAYER, FEW, RANDOM, ONE, OURS, ALL)
STEER = ("correlation", "contrast")  # the stripes' objectives that claims on search use, as the method sheet has them
SLACK = 0.01  # of the objective: how much worse than one-shot still counts as no worse, from the method sheet
DROP = 0.03  # of adherence: a fall that still counts as none
Row = dict[str, Any]


def make_result(f: Findings, given: dict[str, Any], plan: Plan, seconds: float) -> Result:
    """The page."""
    rows = [
        {"objective": one.objective, "seed": one.repeat, "method": method, **numbers}
        for one in f.found
        for method, numbers in one.methods.items()
    ]
    rounds = [{"objective": one.objective, "seed": one.repeat, **row} for one in f.found for row in one.trace]
    sweep = [{"objective": one.objective, "seed": one.repeat, **row} for one in f.found for row in one.sweep]
    tables: dict[str, Table] = {
        "methods": Table.from_records(
            summary(f), "Means over repeats on fresh seeds; 95 % intervals (t) where there are two or more."
        ),
        "repeats": Table.from_records(
            rows, "Each search: means over fresh pictures. sd: of the objective among the pictures."
        ),
        "strengths": Table.from_records(sweep, "The heads that were found, at other strengths."),
        "rounds": Table.from_records(rounds, "What each round added, scored on the search's own pictures."),
    }
    if f.planted:
        tables["planted"] = Table.from_records(
            f.planted, "Change of samples by each head where only three do anything."
        )
    if f.atlas is not None:
        tables["atlas"] = Table.from_records(f.atlas.rows, "What each head does alone; atlas.html has pictures.")
    params = {k: v for k, v in given.items() if k not in ("out", "progress")}
    params |= {"k": plan.k, "rounds": plan.rounds, "strength": plan.strength}
    return Result(
        CARD.slug, f"Heads that steer {f.model}", params=params, claims=claims(f, plan), tables=tables,
        figures=figures(f, plan), notes=notes(f, given), lead="figures",
        meta={"seed": given["seed"], "seconds": round(seconds, 1), "pieces_read_back": f.read_back},
    )  # fmt: skip


def names_of(f: Findings) -> list[str]:
    """Objectives in the order given."""
    return list(dict.fromkeys(one.objective for one in f.found))


def summary(f: Findings) -> list[Row]:
    """One row an objective and method."""
    out: list[Row] = []
    for name in names_of(f):
        some = [one for one in f.found if one.objective == name]
        for method in ORDER:
            middle, ends = over([one.methods[method][name] for one in some])
            row: Row = {"objective": name, "method": method, "score": middle}
            row |= {"low": None if ends is None else ends[0], "high": None if ends is None else ends[1]}
            row |= {
                k: float(np.mean([one.methods[method][k] for one in some]))
                for k in some[0].methods[method]
                if k not in (name, "sd")
            }
            out.append(row)
    return out


def make(name: str, measured: Any, comparator: Any, holds: bool | None, note: str, **more: Any) -> Claim:
    """A claim of the card."""
    spec = SPEC[name]
    return Claim(name, spec.statement, spec.source, spec.paper or None, measured, comparator, holds, note, **more)


def untested(name: str, why: str) -> Claim:
    """A claim that this run cannot judge."""
    return make(name, None, None, None, why)


def paired(found: Sequence[Found], value: Callable[[Found], float]) -> dict[int, float]:
    """Mean over objectives for each repeat."""
    out: dict[int, list[float]] = {}
    for one in found:
        out.setdefault(one.repeat, []).append(value(one))
    return {repeat: float(np.mean(v)) for repeat, v in out.items()}


def gain(one: Found, method: str, other: str) -> float:
    """Difference of two methods, in standard deviations of unguided pictures."""
    sd = one.methods[NONE]["sd"] or 1.0
    return (one.methods[method][one.objective] - one.methods[other][one.objective]) / sd


def claims(f: Findings, plan: Plan) -> list[Claim]:
    """All claims of the card, in its order."""
    steer = [one for one in f.found if f.model != STRIPES or one.objective in STEER]
    made: list[Claim] = []
    if steer:
        named = ", ".join(dict.fromkeys(one.objective for one in steer))
        count = len(steer[0].heads)
        made += [
            versus("heads", steer, FEW, LAYER, f"Objectives: {named}; as many heads as the layer has"),
            versus("search", steer, OURS, RANDOM, f"Objectives: {named}; {count} heads, mean of {plan.random} draws"),
            iterate(steer), smooth(steer, plan),
        ]  # fmt: skip
    else:
        made += [
            untested(name, "needs the objective correlation or contrast")
            for name in ("heads", "search", "iterate", "smooth")
        ]
    kept = (
        "quality"
        if f.model == STRIPES
        else next((k for k in ("content", "clarity", "clip") if f.found and k in f.found[0].methods[NONE]), "diversity")
    )
    made.append(relief(steer or f.found, kept))
    styled = [one for one in f.found if one.objective.startswith("style:")]
    made += [style(styled), adherence(styled)]
    best = [one for one in f.found if one.objective in ("quality", "clarity", "clip", "prompt")]
    if best:
        made.append(versus("quality", best, OURS, NONE, f"Objective: {best[0].objective}"))
    else:
        made.append(untested("quality", "needs an objective that stands for quality: clarity, prompt or clip"))
    made.append(planted(f))
    return made


def versus(name: str, found: Sequence[Found], method: str, other: str, what: str) -> Claim:
    """One method against another on the objective, paired by repeat."""
    pairs = paired(found, lambda one: gain(one, method, other))
    middle, ends = over(list(pairs.values()))
    raw = "; ".join(difference([o for o in found if o.objective == n], method, other) for n in objectives(found))
    return make(
        name, middle, f"{other}: 0", None if ends is None else ends[0] > 0,
        f"{what}. {raw}. Measured: their difference in standard deviations of unguided pictures, paired by seed; holds "
        "if the interval lies above 0.", interval=ends, n=len(pairs),
    )  # fmt: skip


def objectives(found: Sequence[Found]) -> list[str]:
    """Objectives of some searches."""
    return list(dict.fromkeys(one.objective for one in found))


def difference(found: Sequence[Found], method: str, other: str) -> str:
    """Means of both methods on one objective, and the interval of their difference."""
    name = found[0].objective
    both = [(one.methods[method][name], one.methods[other][name]) for one in found]
    _, ends = over([mine - its for mine, its in both])
    mine, its = (float(np.mean(x)) for x in zip(*both, strict=True))
    sure = "" if ends is None else f", difference {ends[0]:+.3f} to {ends[1]:+.3f}"
    return f"{name}: {method} {mine:.3f}, {other} {its:.3f}{sure}"


def iterate(found: Sequence[Found]) -> Claim:
    """Rounds against the first round's best."""
    pairs = paired(found, lambda one: one.methods[OURS][one.objective] - one.methods[ONE][one.objective])
    middle, ends = over(list(pairs.values()))
    return make(
        "iterate", middle, "one-shot: 0", None if ends is None else middle >= -SLACK,
        f"Objective with heads from rounds less that with as many from the first round alone; holds from -{SLACK} up "
        "(the method sheet's bound).", interval=ends, n=len(pairs),
    )  # fmt: skip


def smooth(found: Sequence[Found], plan: Plan) -> Claim:
    """Whether the objective rises with u, and in no sudden step."""
    if len(plan.sweep) < 3:
        return untested("smooth", "needs three strengths or more")

    def rank(one: Found) -> float:
        x, y = [row["u"] for row in one.sweep], [row[one.objective] for row in one.sweep]
        return float(stats.spearmanr(x, y).statistic)

    def leap(one: Found) -> float:
        y = [row[one.objective] for row in one.sweep]
        whole = abs(y[-1] - y[0]) or 1.0
        return float(np.abs(np.diff(y)).max() / whole)

    ranks, leaps = paired(found, rank), paired(found, leap)
    middle, ends = over(list(ranks.values()))
    return make(
        "smooth", middle, "no relation: 0", None if ends is None else ends[0] > 0.8,
        f"Spearman's rho of objective and u in {', '.join(f'{u:g}' for u in plan.sweep)}; holds if the interval lies "
        f"above .8. The largest step between neighbours is {np.mean(list(leaps.values())):.2f} of the way; the most is "
        "reached at " + ", ".join(f"u = {u:g} ({n})" for n, u in peaks(found)) + ".",
        interval=ends, n=len(ranks),
    )  # fmt: skip


def peaks(found: Sequence[Found]) -> list[tuple[str, float]]:
    """The strength with the highest mean, for each objective."""
    out = []
    for name in objectives(found):
        some = [one for one in found if one.objective == name]
        means = np.mean([[row[name] for row in one.sweep] for one in some], 0)
        out.append((name, float(some[0].sweep[int(means.argmax())]["u"])))
    return out


def relief(found: Sequence[Found], kept: str) -> Claim:
    """Half strength against full strength on what should be kept."""
    some = [one for one in found if {0.5, 1.0} <= {row["u"] for row in one.sweep}]
    if not some:
        return untested("relief", "needs the strengths .5 and 1")

    def at(one: Found, u: float, key: str) -> float:
        return next(row[key] for row in one.sweep if row["u"] == u)

    pairs = paired(some, lambda one: at(one, 0.5, kept) - at(one, 1.0, kept))
    spread = paired(some, lambda one: at(one, 0.5, "diversity") - at(one, 1.0, "diversity"))
    share = [
        (at(o, 0.5, o.objective) - at(o, 0.0, o.objective)) / ((at(o, 1.0, o.objective) - at(o, 0.0, o.objective)) or 1)
        for o in some
    ]
    middle, ends = over(list(pairs.values()))
    return make(
        "relief", middle, "u = 1: 0", None if ends is None else ends[0] > 0,
        f"{kept} at u = .5 less that at u = 1, same heads; holds if the interval lies above 0. Diversity differs by "
        f"{np.mean(list(spread.values())):+.3f}, and u = .5 has {np.mean(share):.2f} of the gain of u = 1.",
        interval=ends, n=len(pairs),
    )  # fmt: skip


def style(found: Sequence[Found]) -> Claim:
    """The style's score on unseen prompts, against no guidance."""
    if not found:
        return untested("style", "needs an objective like style:sketch")
    pairs = paired(found, lambda one: one.methods[OURS][one.objective] - one.methods[NONE][one.objective])
    middle, ends = over(list(pairs.values()))
    base = np.mean([one.methods[NONE][one.objective] for one in found])
    return make(
        "style", middle, f"no guidance: 0 ({base:.3f})", None if ends is None else ends[0] > 0,
        "The oracle's probability of the style on unseen prompts, less that without guidance; holds if the interval "
        "lies above 0.", interval=ends, n=len(pairs),
    )  # fmt: skip


def adherence(found: Sequence[Found]) -> Claim:
    """What prompts ask for besides the style."""
    if not found or "content" not in found[0].methods[NONE]:
        return untested("adherence", "needs an objective like style:sketch and prompts of the scenes world")
    pairs = paired(found, lambda one: one.methods[OURS]["content"] - one.methods[NONE]["content"])
    middle, ends = over(list(pairs.values()))
    base = np.mean([one.methods[NONE]["content"] for one in found])
    return make(
        "adherence", middle, f"no guidance: 0 ({base:.3f})", None if ends is None else ends[0] > -DROP,
        f"Share of what prompts ask for, style apart, less that without guidance; holds if the interval lies above "
        f"-{DROP}.",
        interval=ends, n=len(pairs),
    )  # fmt: skip


def planted(f: Findings) -> Claim:
    """Whether the three heads that do anything are the first three."""
    if not f.planted:
        return untested("planted", "needs the stripes")
    right = [row["first"] == 3 for row in f.planted]
    other = max(r["most of the others"] for r in f.planted)
    return make(
        "planted", f"{sum(right)} of {len(right)} models", f"the most that another head does: {other:.2g}",
        all(right), "Objective: mean squared change of samples at u = 1. Holds if the first three are the planted ones "
        "in all models.", n=len(right),
    )  # fmt: skip


def figures(f: Findings, plan: Plan) -> list[Figure]:
    """Pictures of methods and strengths, then scores, curves and the map of heads."""
    out: list[Figure] = []
    for name in names_of(f):
        one = next(x for x in f.found if x.objective == name)
        out += [
            pictures(
                one,
                [m for m in ORDER if m in one.shown],
                f"{name}: what each choice of heads paints",
                "fresh seeds, the same in each row",
            ),
            pictures(
                one,
                [f"u = {u:g}" for u in plan.sweep],
                f"{name}: strength of the damage",
                "the heads that were found; u = 0 is no guidance",
            ),
        ]
    for name in names_of(f):
        rows = [r for r in summary(f) if r["objective"] == name]
        sure = all(r["low"] is not None for r in rows)
        ends = [[r[e] for r in rows] for e in ("low", "high")] if sure else [None, None]
        series = Series(name, [r["method"] for r in rows], [r["score"] for r in rows], *ends)
        out.append(Bars(f"{name} on fresh seeds", [series], y_label=name, horizontal=True))
        out.append(curve(f, name))
        single = next(x for x in f.found if x.objective == name)
        out.append(
            HeadMap(
                f"{name}: what each head does alone", table_of(single.single),
                "Change of the score on the search's pictures; outlined: chosen. " + key_of(single),
                marked=[(s, int(h)) for s, h in single.heads], scale="diverging",
            )
        )  # fmt: skip
    if f.atlas is not None:
        out.append(atlas_figure(f))
    return out


def key_of(one: Found) -> str:
    """Which rows are which sites."""
    sites = list(one.single)
    return "" if len(sites) > 12 else "L0 is " + sites[0] + ", L" + str(len(sites) - 1) + " is " + sites[-1] + "."


def pictures(one: Found, methods: Sequence[str], title: str, what: str) -> Image:
    """A row for each method."""
    shown = levels(np.stack([one.shown[m] for m in methods]))
    rows = ", ".join(methods)
    return Image.from_array(mosaic(shown), f"Rows: {rows}.", title, f"Rows from the top: {rows}; {what}.")


def curve(f: Findings, name: str) -> Lines:
    """Scores against u, each as a change in the unit of its own spread over u."""
    some = [one for one in f.found if one.objective == name]
    us = [row["u"] for row in some[0].sweep]
    series = []
    for key in [k for k in some[0].sweep[0] if k not in ("u", "sd")]:
        values = np.array([[row[key] for row in one.sweep] for one in some])
        span = np.abs(values.mean(0) - values.mean(0)[0]).max() or 1.0
        series.append(Series(key, us, ((values - values[:, :1]).mean(0) / span).tolist()))
    return Lines(
        f"{name}: strength", series, x_label="u", y_label="change, largest = 1",
        caption="The heads that were found. Every line is a score less its value without guidance, divided by its own "
        "largest change.",
    )  # fmt: skip


def atlas_figure(f: Findings) -> Image:
    """The heads that do most and least for the objective."""
    assert f.atlas is not None
    order = sorted(range(len(f.atlas.rows)), key=lambda i: -f.atlas.rows[i][f.atlas.objective])  # type: ignore[union-attr]
    some = order if len(order) <= 12 else [*order[:6], *order[-6:]]
    shown = levels(np.stack([f.atlas.plain, *(f.atlas.pictures[i] for i in some)]))
    rows = ", ".join(f"{f.atlas.rows[i]['head']} ({f.atlas.rows[i][f.atlas.objective]:+.3f})" for i in some)
    return Image.from_array(
        mosaic(shown), f"Rows: no guidance, then single heads: {rows}.", f"Single heads by {f.atlas.objective}",
        f"Top row: no guidance; below, one head each, most first: {rows}. atlas.html has all of them.",
    )  # fmt: skip


def notes(f: Findings, given: dict[str, Any]) -> list[str]:
    """What a reader must know."""
    said = [
        "Scores that are searched for go up in part because they are searched for: the other columns, diversity among "
        "them, say at what cost.",
        "The paper searches SD3 and FLUX.1-dev with PickScore for three hours on eight GPUs; what is measured here are "
        "small models, so its figures and these are not the same measurement.",
    ]
    if f.model == STRIPES:
        said.append(
            "The stripes' objectives correlation and contrast were chosen by the method sheet after quality gave no "
            "gain there; quality is reported too, and used for its own claim alone."
        )
    if f.recipes:
        said.append(
            "Heads as JSON, for Recipe.load(path).guide(pipe): "
            + ", ".join(f"{v} ({k})" for k, v in f.recipes.items())
            + "."
        )
    if given["seeds"] < 3:
        said.append("Few repeats: intervals are wide or missing; the study of the Makefile has more.")
    if f.read_back:
        said.append(f"{f.read_back} pieces were read back from an earlier run (--keep).")
    return said
