"""From findings to a `Result`: tables, figures and the paper's claims, each with its comparator and interval."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from scipy import stats

from unbraid import taps
from unbraid.core.attach import attach
from unbraid.core.figures import Bars, Figure, HeadMap, HtmlText, Lines, Scatter
from unbraid.core.heads import Head, HeadScores, HeadSet
from unbraid.core.result import Result
from unbraid.core.series import Series
from unbraid.systems.retrieval_heads import CARD
from unbraid.systems.retrieval_heads.claims import kept, measure
from unbraid.systems.retrieval_heads.detect import feed, prefill
from unbraid.systems.retrieval_heads.masking import MaskPoint
from unbraid.systems.retrieval_heads.system import RetrievalHeads
from unbraid.systems.retrieval_heads.trial import Trial


@dataclass
class Findings:
    """What a study measured, before it is put into words."""

    name: str
    model: Any
    tokenizer: Any
    pooled: RetrievalHeads
    runs: list[RetrievalHeads]
    curves: dict[int, list[MaskPoint]]
    threshold: float
    compare: str | None = None
    other: RetrievalHeads | None = None
    read_back: int = 0


def make_result(f: Findings, params: dict[str, Any], seconds: float) -> Result:
    """The page: claims first, then the head map, the causal curve, and the rest."""
    found = f.pooled
    tables: dict[str, Any] = {}
    figures: list[Figure] = []
    notes: list[str] = []
    arrays: dict[str, Any] = {}
    if found.n_success_:
        tables["top heads"] = top_rows(f)
        figures += [head_map(f), *kept_lines(f), example(f), *mask_lines(f), activation(f), sparsity(f)]
        arrays = {name: t.array for name, t in score_tables(found).items()}
        tables["agreement"] = agreement(f)
    else:
        notes.append(
            f"None of {found.n_trials_} trials succeeded, so heads are not ranked and nothing is masked: use shorter "
            "--lengths, another --difficulty, or a stronger model."
        )
    tables["success"] = success_rows(f)
    if f.curves:
        tables["masking"] = mask_rows(f)
    tables["trials"] = trial_rows(f)
    figures.append(success_bars(f))
    notes += remarks(f)
    return Result(
        CARD.slug,
        f"Which heads of {f.name} copy facts out of a long context",
        params=params,
        claims=measure(f),
        tables=tables,
        figures=figures,
        arrays=arrays,
        notes=notes,
        meta={"seed": params.get("seed", 0), "seconds": round(seconds, 1), "pieces_read_back": f.read_back},
    )


def score_tables(s: RetrievalHeads) -> dict[str, HeadScores]:
    """All per-head tables, by name."""
    return {
        "decode": s.decode_scores_,
        "one_pass": s.one_pass_scores_,
        "activation": s.activation_,
        "needle_mass": s.needle_mass_,
        "sink_mass": s.sink_mass_,
        "soft": s.soft_scores_,
        "calibrated_mass": s.calibrated_mass_,
    }


def top_rows(f: Findings, k: int = 30) -> list[dict[str, Any]]:
    """The best heads with everything measured of them."""
    s, rows = f.pooled, []
    for rank, (head, score) in enumerate(s.scores_.ranked()[:k], 1):
        assert s.scores_.low is not None
        assert s.scores_.high is not None
        site, h = head
        rows.append(
            {
                "rank": rank, "head": s.scores_.label(head), "score": score,
                "low": float(s.scores_.low[site][h]), "high": float(s.scores_.high[site][h]),
                "one pass": s.one_pass_scores_[head], "active in": s.activation_[head],
                "needle mass": s.needle_mass_[head], "sink mass": s.sink_mass_[head],
                "calibrated": s.calibrated_mass_[head], "site": site,
            }
        )  # fmt: skip
    return rows


def head_map(f: Findings) -> HeadMap:
    """Scores of all heads, retrieval heads outlined."""
    heads = f.pooled.retrieval_heads()
    n = len(f.pooled.scores_)
    return HeadMap(
        "Retrieval score of every head",
        f.pooled.scores_,
        caption=f"{len(heads)} of {n} heads score {f.threshold} or more (outlined). A score is the share of needle "
        "tokens that the head copies, averaged over trials.",
        marked=heads,
        scale="sequential",
    )


def _interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval."""
    x = np.asarray(values, dtype=float)
    if len(x) < 2 or np.ptp(x) == 0:
        return float(x.mean()), float(x.mean()), float(x.mean())
    ci = stats.bootstrap(
        (x,), np.mean, n_resamples=999, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(x.mean()), float(ci.low), float(ci.high)


def curve(points: list[MaskPoint], kind: str) -> dict[int, tuple[float, float, float]]:
    """Masked heads -> accuracy, low, high: over trials for one set, over trials and draws for controls."""
    out = {}
    for k in sorted({p.masked for p in points if p.kind == kind}):
        values = [float(x) for p in points if p.kind == kind and p.masked == k for x in p.success]
        out[k] = _interval(values)
    return out


def kept_lines(f: Findings) -> list[Figure]:
    """Answers that survive masking, all lengths together; only trials that the model answers without masks."""
    series, n = [], 0
    for kind, label in (("retrieval", "top retrieval heads masked"), ("random", "random heads of the same layers")):
        found = {k: _interval(v) for k, v in kept(f.curves, kind).items() if v}
        n = max([n, *(len(v) for v in kept(f.curves, kind).values())])
        x = [0, *found]
        y = [(1.0, 1.0, 1.0), *found.values()]
        series.append(Series(label, x, [v[0] for v in y], [v[1] for v in y], [v[2] for v in y]))
    if not n:
        return []
    return [
        Lines(
            "Answers that survive masking",
            series,
            x_label="masked heads",
            y_label="share of answers kept",
            caption=f"{n} trials that the model answers without masks, all lengths together, with needles that "
            "detection never saw; bands are 95 % bootstrap intervals over trials.",
        )
    ]


def mask_lines(f: Findings) -> list[Figure]:
    """Accuracy against masked heads, one figure per length."""
    figures: list[Figure] = []
    for length, points in f.curves.items():
        none = curve(points, "none")[0]
        series = []
        for kind, label in (("retrieval", "top retrieval heads masked"), ("random", "random heads of the same layers")):
            c = {0: none, **curve(points, kind)}
            x = list(c)
            series.append(Series(label, x, [c[k][0] for k in x], [c[k][1] for k in x], [c[k][2] for k in x]))
        n = len(points[0].success)
        figures.append(
            Lines(
                f"Finding the needle with heads masked, {length} tokens",
                series,
                x_label="masked heads",
                y_label="share of trials answered",
                caption=f"All {n} trials of this length, also those that fail without masks; bands are 95 % bootstrap "
                "intervals.",
            )
        )
    return figures


def example(f: Findings) -> HtmlText:
    """Where the best head looks while one answer is produced."""
    best = f.pooled.scores_.ranked()[0][0]
    good = [o for o in f.pooled.outcomes_seen if o.recall > f.pooled.gate]
    outcome = max(good, key=lambda o: o.recall)
    weight = answer_attention(f.model, outcome.trial, best)
    trial = outcome.trial
    low = max(0, min(trial.needle) - 45)
    high = min(len(trial.ids), max(trial.needle) + 46)
    spans: list[tuple[str, float | None]] = [("... ", None)] if low else []
    spans += [(f.tokenizer.decode([trial.ids[i]]), float(weight[i])) for i in range(low, high)]
    spans += [(" ...", None), (f"\n\nQuestion: {trial.question}\nAnswer: {outcome.answer}", None)]
    inside = float(weight[list(trial.needle)].sum())
    return HtmlText(
        f"What {f.pooled.scores_.label(best)} looks at while the answer is written",
        spans,
        caption=f"Attention of the best head, averaged over answer steps; {inside:.0%} of it lies on the needle.",
    )


@torch.inference_mode()
def answer_attention(model: Any, trial: Trial, head: Head) -> np.ndarray:
    """Mean attention of a head over the rows that predict the gold answer, [prompt tokens]."""
    cache = prefill(model, trial)
    fed = [trial.ids[-1], *trial.gold[:-1]]
    rows = taps.Rows(range(len(fed)), heads=HeadSet([head]))
    with attach(model, rows):
        feed(model, fed, cache)
    p = rows.values[head[0]][0][0, head[1]].mean(0).float().cpu().numpy()
    whole = np.zeros(len(trial.ids) + len(fed))
    whole[len(whole) - 1 - len(p) : len(whole) - 1] = p[: len(whole) - 1]
    return whole


def activation(f: Findings) -> Scatter:
    """Score against activation frequency: always-on heads and context-dependent ones."""
    s = f.pooled
    heads = [h for h, x in s.scores_.ranked() if x > 0]
    series = Series(
        "heads", [s.activation_[h] for h in heads], [s.scores_[h] for h in heads],
        labels=[s.scores_.label(h) for h in heads],
    )  # fmt: skip
    return Scatter(
        "Always on, or only in some contexts",
        [series],
        x_label="share of trials in which the head copied",
        y_label="retrieval score",
        caption="Heads that never copied are left out.",
    )


def sparsity(f: Findings) -> Bars:
    """Share of heads per class of score."""
    s = f.pooled.sparsity()
    return Bars("How many heads copy", s, x_label="retrieval score", y_label="share of heads")


def success_bars(f: Findings) -> Bars:
    """Success per length, all heads at work."""
    rows = success_rows(f)
    labels = [str(r["length"]) for r in rows]
    series = Series(
        "answered", labels, [r["answered"] for r in rows], [r["low"] for r in rows], [r["high"] for r in rows]
    )
    return Bars(
        "Does the model find the needle at all?",
        [series],
        x_label="context length in tokens",
        y_label="share of trials answered",
        caption="Only answered trials are used to score heads.",
    )


def success_rows(f: Findings) -> list[dict[str, Any]]:
    """Trials and success per length, with a Wilson interval."""
    rows = []
    seen = f.pooled.outcomes_seen
    for length in sorted({o.trial.length for o in seen}):
        passed = [o.recall > f.pooled.gate for o in seen if o.trial.length == length]
        ci = stats.binomtest(sum(passed), len(passed)).proportion_ci(0.95, "wilson")
        rows.append(
            {
                "length": length, "trials": len(passed), "answered": float(np.mean(passed)),
                "low": float(ci.low), "high": float(ci.high),
                "mean recall": float(np.mean([o.recall for o in seen if o.trial.length == length])),
            }
        )  # fmt: skip
    return rows


def mask_rows(f: Findings) -> list[dict[str, Any]]:
    """The masking curves as a table."""
    rows = []
    for length, points in f.curves.items():
        none, top, random = (curve(points, kind) for kind in ("none", "retrieval", "random"))
        rows.append({"length": length, "masked": 0, "retrieval": none[0][0], "random": none[0][0]})
        rows += [
            {
                "length": length, "masked": k, "retrieval": top[k][0], "random": random[k][0],
                "random low": random[k][1], "random high": random[k][2],
            }
            for k in top
        ]  # fmt: skip
    return rows


def trial_rows(f: Findings) -> list[dict[str, Any]]:
    """Every detection trial: where the needle was and what the model said."""
    return [
        {
            "length": o.trial.length, "depth": o.trial.depth, "recall": o.recall, "counted": o.recall > f.pooled.gate,
            "needle": o.trial.needle_text, "answer": o.answer,
        }
        for o in f.pooled.outcomes_seen
    ]  # fmt: skip


def agreement(f: Findings) -> list[dict[str, Any]]:
    """Between procedures, between seeds, and with a second model."""
    s, rows = f.pooled, []

    def row(what: str, a: HeadScores, b: HeadScores) -> dict[str, Any]:
        k = 10
        same = set(a.sites) == set(b.sites)
        over = a.top(k).overlap(b.top(k)) if same else None
        return {"compared": what, "Pearson r": a.correlate(b), f"overlap of the top {k} (Jaccard)": over}

    rows.append(row("decoding and one pass", s.decode_scores_, s.one_pass_scores_))
    ranked = [r for r in f.runs if r.n_success_]
    rows += [row(f"seeds {a.seed} and {b.seed}", a.scores_, b.scores_) for a, b in combinations(ranked, 2)]
    if f.other is not None and f.other.n_success_:
        rows.append(row(f"{f.name} and {f.compare}", s.scores_, f.other.scores_))
    return rows


def remarks(f: Findings) -> list[str]:
    """What a reader must know."""
    s = f.pooled
    weak = [str(r["length"]) for r in success_rows(f) if r["answered"] < 0.5]
    out = [
        f"{s.n_success_} of {s.n_trials_} trials passed the gate (recall of the needle's own words above {s.gate:g}); "
        "only these score heads, so scores are conditional on success.",
        "Haystacks are generated prose and needles made-up facts; a short run shows the top heads, not fine ranks.",
    ]
    if f.read_back:
        out.append(
            f"{f.read_back} trials were finished by an earlier run and read back (--keep); the seconds leave them out."
        )
    if weak:
        out.append(f"At {', '.join(weak)} tokens the model answers fewer than half of the trials.")
    return out
