"""From findings to a page: claims, where the circuits lie, what they share, what the repair does."""

from __future__ import annotations

from typing import Any

import numpy as np

from unbraid.core.figures import Bars, Figure, HeadMap, HtmlText, Lines, Scatter
from unbraid.core.heads import HeadScores
from unbraid.core.result import Result, Table
from unbraid.core.series import Series
from unbraid.systems.circuit_reuse import CARD
from unbraid.systems.circuit_reuse.behaviour import slopes
from unbraid.systems.circuit_reuse.circuit import Circuit
from unbraid.systems.circuit_reuse.claims import measure
from unbraid.systems.circuit_reuse.sharing import overlap, overlap_curve, rank_correlation, shape_of
from unbraid.systems.circuit_reuse.study import Findings

LONG = {
    "ioi": "indirect objects", "coloured_objects": "coloured objects", "greater_than": "greater-than",
    "capitals": "capitals",
}  # fmt: skip


def make_result(f: Findings, params: dict[str, Any], seconds: float) -> Result:
    """The page."""
    first, second = f.pairs[0]
    tables: dict[str, Any] = {
        "accuracy": Table.from_records(f.tried, "More solved examples are tried below one half, on other prompts."),
        "circuits": Table.from_records([r for c in (first, second, *f.controls) for r in circuit_rows(c)]),
        "overlap": Table.from_records(overlap_curve(first, second), "At several thresholds, first seed."),
        "overlap of tasks": Table.from_records(task_rows(f)),
        "rank correlation": Table.from_records(rank_correlation(first, second)),
    }
    if f.repairs:
        tables["interventions"] = Table.from_records(intervention_rows(f))
    for task, rows in f.roles.items():
        if rows:
            caption = f"Heads of the circuit of {LONG[task]}: mean attention from the last token, and behaviour."
            tables[f"roles, {LONG[task]}"] = Table.from_records(rows, caption)
    first_maps, later_maps = maps(f)
    figures = [*repair_bars(f), *first_maps, curve(f), *together(f), *copy_points(f), *example(f), *later_maps]
    return Result(
        CARD.slug,
        f"Do indirect objects and coloured objects use the same heads of {f.name}?",
        params=params,
        claims=measure(f, int(params.get("seed", 0))),
        tables=tables,
        figures=figures,
        arrays=arrays(f),
        notes=notes(f, params),
        meta={"seed": params.get("seed", 0), "seconds": round(seconds, 1), "pieces_read_back": f.read_back},
    )


def circuit_rows(c: Circuit) -> list[dict[str, Any]]:
    """Each kept head of a circuit with its stage and importance."""
    rows = []
    for found in c.found:
        scores, into = found.scores, found.stage.channels
        if len(found.receivers):
            into = f"{into} of " + ", ".join(scores.label(h) for h in found.receivers)
        rows += [
            {
                "task": LONG.get(c.task, c.task), "stage": found.stage.name, "head": scores.label(head),
                "importance": scores[head], "patched at": found.stage.place, "into": into,
            }
            for head in found.kept
        ]  # fmt: skip
    return rows


def task_rows(f: Findings) -> list[dict[str, Any]]:
    """Overlap of every pair of circuits that were found."""
    rows = []
    for i, (a, b) in enumerate(f.pairs):
        rows.append({"seed": i, "pair": _names(a, b), **overlap(a.heads, b.heads, shape_of(a)).row()})
    for c in f.controls:
        rows += [
            {"seed": 0, "pair": _names(main, c), **overlap(main.heads, c.heads, shape_of(main)).row()}
            for main in f.pairs[0]
        ]
    for i, (a, b) in enumerate(f.pairs[1:], 1):
        for old, new in zip(f.pairs[0], (a, b), strict=True):
            pair = f"{LONG[old.task]}, seeds 0 and {i}"
            rows.append({"seed": i, "pair": pair, **overlap(old.heads, new.heads, shape_of(old)).row()})
    return rows


def _names(a: Circuit, b: Circuit) -> str:
    return f"{LONG.get(a.task, a.task)} and {LONG.get(b.task, b.task)}"


def intervention_rows(f: Findings) -> list[dict[str, Any]]:
    """Every intervention with accuracy and new mistakes."""
    rows: list[dict[str, Any]] = []
    table = f.pairs[0][0].found[0].scores
    for name, r in f.repairs.items():
        if not rows:
            rows.append(_row("the model as it is", "", r.before))
        for part, answers in r.after.items():
            label = name if part == "all" else part
            heads = ", ".join(table.label(h) for h in r.heads) if part == "all" else ""
            rows.append({**_row(label, heads, answers), "new mistakes": r.new_mistakes(name=part)})
        for i, (answers, drawn) in enumerate(zip(r.random, r.draws, strict=True)):
            names = ", ".join(table.label(h) for h in drawn)
            rows.append(_row(f"random heads, draw {i + 1}", names, answers))
    if f.gathered is not None:
        gatherers, blocked, random = f.gathered
        rows.append(_row("gatherers cannot see the question", ", ".join(table.label(h) for h in gatherers), blocked))
        rows += [_row(f"random heads cannot, draw {i + 1}", "", a) for i, a in enumerate(random)]
    return rows


def _row(name: str, heads: str, answers: Any) -> dict[str, Any]:
    share, low, high = answers.share()
    return {
        "intervention": name, "top-1": share, "low": low, "high": high, "best of three": answers.share("best")[0],
        "log-odds": float(answers.log_odds.mean()), "heads": heads,
    }  # fmt: skip


def repair_bars(f: Findings) -> list[Figure]:
    """Accuracy of every intervention."""
    done = f.repairs.get("the four heads")
    if done is None:
        return []
    bars = [("the model as it is", done.before.share())]
    bars += [("the four heads" if n == "all" else n, a.share()) for n, a in done.after.items()]
    bars.append((f"random heads ({len(done.random)}x)", done.spread()))
    if f.gathered is not None:
        bars.append(("gatherers blocked", f.gathered[1].share()))
        spread = [a.share()[0] for a in f.gathered[2]]
        bars.append(("random heads blocked", (float(np.mean(spread)), min(spread), max(spread))))
    series = Series(
        "top-1", [n for n, _ in bars], [v[0] for _, v in bars], [v[1] for _, v in bars], [v[2] for _, v in bars]
    )
    caption = (
        "Coloured objects, held-out prompts, right token of the whole vocabulary. Whiskers: 95 % intervals, for random "
        "heads the range over draws."
    )
    return [Bars("What switching heads on or off does", [series], y_label="accuracy", caption=caption)]


def maps(f: Findings) -> tuple[list[Figure], list[Figure]]:
    """Normalised importance, kept heads outlined: of the first two stages, and of the others."""
    first: list[Figure] = []
    later: list[Figure] = []
    for c in f.pairs[0]:
        for found in c.found:
            table = c.normalised()[found.stage.name]
            into = "the logits" if found.stage.channels == "logits" else f"{found.stage.channels} of the stage before"
            caption = (
                f"Positive: the head helps the answer. Into {into}; over the largest of this stage; outlined: kept. "
                "Empty: not below the receivers."
            )
            title = f"{LONG.get(c.task, c.task).capitalize()}: {found.stage.name}"
            made = HeadMap(title, table, caption=caption, scale="diverging", limits=(-1, 1), marked=found.kept)
            (first if found in c.found[:2] else later).append(made)
    return first, later


def curve(f: Findings) -> Lines:
    """Jaccard index against the threshold, with both nulls, and the control tasks."""
    shares = (0.01, 0.02, 0.05, 0.1)
    first, second = f.pairs[0]
    rows = [r for r in overlap_curve(first, second, shares) if r["stage"] == "all"]
    series = [Series("indirect and coloured objects", shares, [r["jaccard"] for r in rows])]
    for c in f.controls:
        own = [r for r in overlap_curve(first, c, shares) if r["stage"] == "all"]
        series.append(Series(f"indirect objects and {LONG[c.task]}", shares, [r["jaccard"] for r in own]))
    series.append(Series("chance, any heads", shares, [r["expected"] for r in rows]))
    series.append(Series("chance, heads of the same layers", shares, [r["expected_by_layer"] for r in rows]))
    return Lines(
        "Overlap depends on how many heads one keeps", series, x_label="share of heads kept per stage", x_scale="log",
        y_label="Jaccard index",
        caption="The paper keeps 2 %. Receivers of later stages stay those of the run's threshold.",
    )  # fmt: skip


def together(f: Findings) -> list[Figure]:
    """Importance in one task against the other, stage by stage."""
    out: list[Figure] = []
    first, second = f.pairs[0]
    for a, b in zip(first.found, second.found, strict=False):
        x, y = a.scores, b.scores
        heads = [h for h in x if np.isfinite(x[h]) and np.isfinite(y[h])]
        kept = a.kept | b.kept
        groups = {"in a circuit": [h for h in heads if h in kept], "other heads": [h for h in heads if h not in kept]}
        series = [
            Series(name, [x[h] for h in some], [y[h] for h in some], labels=[x.label(h) for h in some])
            for name, some in groups.items()
            if some
        ]
        if series:
            out.append(
                Scatter(
                    f"The same heads? Stage {a.stage.name}", series, x_label=f"importance, {LONG[first.task]}",
                    y_label=f"importance, {LONG[second.task]}",
                    caption="One point per head that both stages could find.",
                )
            )  # fmt: skip
    return out[:2]


def copy_points(f: Findings) -> list[Figure]:
    """Attribution against attention for the strongest movers of each task."""
    out: list[Figure] = []
    for c in f.pairs[0]:
        pairs = f.copying.get(c.task)
        if pairs is None:
            continue
        scores, r = c.found[0].scores, slopes(pairs)
        flat = list(scores)
        series = []
        for head in list(c.found[0].kept)[:4]:
            i = flat.index(head)
            name = f"{scores.label(head)} (r = {r[i]:.2f})"
            series.append(Series(name, pairs["attention"][:, i].tolist(), pairs["attribution"][:, i].tolist()))
        out.append(
            Scatter(
                f"Do the movers of {LONG[c.task]} copy?", series, x_label="attention to a token's place",
                y_label="what the head adds to its logit",
                caption="Held-out prompts; answer and distractor. Rising: a mover; falling: a negative mover.",
            )
        )  # fmt: skip
    return out


def example(f: Findings) -> list[Figure]:
    """One prompt with the movers' attention before and after the repair."""
    if "before" not in f.example:
        return []
    out: list[Figure] = []
    ids = f.example["ids"]
    top = float(max(f.example[k][1:].max() for k in ("before", "after")))
    for key, title in (("before", "as it is"), ("after", "with the four heads on the wrong colours")):
        w = f.example[key]
        spans = [(f.tokenizer.decode([t]), None if i == 0 else float(w[i])) for i, t in enumerate(ids)]
        out.append(
            HtmlText(
                f"Where the movers look, {title}", spans, limits=(0.0, max(top, 1e-6)),
                caption=f"Mean attention of the movers of coloured objects from the last token; {w[0]:.0%} of it goes "
                "to the first token, which is not coloured.",
            )
        )  # fmt: skip
    return out


def arrays(f: Findings) -> dict[str, np.ndarray]:
    """Importance per task, seed and stage, [layers, heads]."""
    out = {}
    for i, pair in enumerate(f.pairs):
        for c in pair:
            for found in c.found:
                out[f"{c.task}.{i}.{found.stage.name}"] = found.scores.array
    for c in f.controls:
        for found in c.found:
            out[f"{c.task}.0.{found.stage.name}"] = found.scores.array
    scores: dict[str, HeadScores] = f.repeated
    return out | {name: s.array for name, s in scores.items()}


def notes(f: Findings, params: dict[str, Any]) -> list[str]:
    """What a reader must know."""
    out = []
    for task, shots in f.shots.items():
        row = next(r for r in f.tried if r["task"] == task and r["prompts"] == "held out")
        weak = (
            " Fewer than half are right, so this circuit is that of a task the model cannot do."
            if row["top-1"] < 0.5
            else ""
        )
        out.append(f"{LONG[task].capitalize()}: {row['top-1']:.0%} right with {shots} solved examples.{weak}")
    live = params.get("freeze_norm") == "none"
    out.append(
        "Norms are live, as in the paper's code: every sender also reaches every receiver through their scale."
        if live
        else "Norms keep the scale of a reference run in both passes; the paper's code leaves them live, which lets "
        "every sender reach every receiver through the scale."
    )
    out.append(
        "The paper does not list the receivers of its later stages. Here: queries of the kept heads, then keys and "
        "values of those at the exchanged token, then all three of what feeds them. Twins differ in one token, and "
        "nothing before it can change, so previous-token heads at the first name are out of reach of this method and "
        "appear by behaviour only."
    )
    out.append(
        f"The model is {f.name}, not GPT-2 Medium, whose weights the paper's figures belong to; its claims are tested "
        "here as statements about another model. With GPT-2 Medium: unbraid run circuit_reuse --model "
        "openai-community/gpt2-medium --prompts 200 --held-out 200."
        if "gpt2-medium" not in f.name
        else "This is the paper's model."
    )
    if f.read_back:
        out.append(f"{f.read_back} batches were finished by an earlier run and read back (--keep).")
    return out
