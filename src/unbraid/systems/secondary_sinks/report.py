"""From findings to a `Result`: tables, figures and claims."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from torch import Tensor

from unbraid.core.figures import Bars, Figure, HtmlText, Lines, Scatter
from unbraid.core.result import HeadMap, Result
from unbraid.core.series import Series
from unbraid.systems.secondary_sinks import CARD
from unbraid.systems.secondary_sinks.claims import Found, measure_claims
from unbraid.systems.secondary_sinks.detect import Sink
from unbraid.systems.secondary_sinks.evidence import Evidence, stage_rows
from unbraid.systems.secondary_sinks.levels import sink_levels
from unbraid.systems.secondary_sinks.system import SecondarySinks

TEXTWISE = (
    "tokens_", "primary_", "refused_", "weak_", "massive_", "primary_mass_", "primary_norm_", "median_norm_",
    "sink_norm_",
)  # fmt: skip
SHOWN = 160  # tokens around a sink that the page shows


@dataclass
class Source:
    """One kind of text, and what was found in it."""

    name: str
    system: SecondarySinks
    texts: list[Tensor]
    tokenizer: Any


@dataclass
class Study:
    """What a study measured, before it is put into words."""

    name: str
    sources: list[Source] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    evidence: Evidence = field(default_factory=Evidence)
    sweep: list[dict[str, float]] = field(default_factory=list)

    def add(self, name: str, system: SecondarySinks, texts: list[Tensor], tokenizer: Any) -> None:
        """One more source."""
        self.sources.append(Source(name, system, texts, tokenizer))

    def take(self, found: Evidence) -> None:
        """Origins join what was measured before."""
        found.planted, self.evidence = self.evidence.planted, found

    def main(self) -> Source | None:
        """All sources as one: claims are judged on every text that was searched."""
        if not self.sources:
            return None
        if len(self.sources) == 1:
            return self.sources[0]
        first = self.sources[0].system
        whole = SecondarySinks(**first.get_params())
        whole.layers_, whole.sites_ = first.layers_, first.sites_
        whole.records_, whole.tokens_, whole.primary_, whole.refused_ = [], [], [], []
        whole.weak_, whole.massive_, whole.primary_mass_ = [], [], []
        whole.primary_norm_, whole.median_norm_, whole.sink_norm_ = [], [], []
        whole.heads_ = next((s.system.heads_ for s in self.sources if s.system.heads_ is not None), None)
        for s in self.sources:
            shift = len(whole.tokens_)
            whole.records_ += [{**r, "text": r["text"] + shift} for r in s.system.records_]
            for name in TEXTWISE:
                vars(whole)[name] += vars(s.system)[name]
        whole.levels_ = sink_levels(whole.sinks_, whole.tokens_) if whole.records_ else []
        texts = [t for s in self.sources for t in s.texts]
        return Source("all texts", whole, texts, self.sources[0].tokenizer)


def make_result(study: Study, params: dict[str, Any], seconds: float) -> Result:
    """The page."""
    whole = study.main()
    system = None if whole is None else whole.system
    tables: dict[str, Any] = {"sources": [source_row(s) for s in study.sources]}
    figures: list[Figure] = []
    if whole is not None and system is not None:
        figures += [
            norms(whole),
            *level_bars(system),
            *text_with_sinks(whole),
            *mass_lines(whole),
            *norm_scatter(system),
        ]
        tables |= sink_tables(whole)
    e = study.evidence
    if e.stages:
        tables["inside the MLP"] = stage_rows(e.stages)
        figures.append(stage_bars(e))
    if e.neurons:
        tables["neurons"] = e.neurons
    if e.pushes:
        tables["directions"] = [{"block": p.layer, **row} for p in e.pushes for row in p.rows()]
        figures.append(push_lines(e))
    if e.causal:
        tables["sinks removed"] = e.causal
    if e.planted:
        tables["planted models"] = e.planted
        tables["planted norms"] = study.sweep
    if system is not None and system.heads_ is not None:
        caption = "Mean attention of each head on the secondary sinks that its block reads; empty: none."
        figures.append(
            HeadMap("Heads that look at secondary sinks", system.heads_, caption=caption, scale="sequential")
        )
    return Result(
        CARD.slug,
        f"Attention sinks in the middle of {study.name}",
        params=params,
        claims=measure_claims(Found(study.name, system, e, params.get("seed", 0))),
        tables={k: v for k, v in tables.items() if v},
        figures=figures,
        notes=remarks(study, system),
        meta={"seed": params.get("seed", 0), "seconds": round(seconds, 1)},
    )


def source_row(s: Source) -> dict[str, Any]:
    """What one kind of text holds."""
    known = [p for p in s.system.primary_ if p is not None]
    tokens = sum(s.system.tokens_)
    main = [x for x in s.system.sinks_ if x.window == "main"]
    by = {label: sum(x.label == label for x in main) for label in ("secondary", "BOS-like", "noise")}
    phases = sorted({f"{a} to {b - 1}" for p in known for a, b in p["phases"]})
    return {
        "texts": s.name, "n": len(s.system.tokens_), "tokens": tokens, "with a primary sink": len(known),
        "primary at": ", ".join(sorted({str(p["position"]) for p in known})),
        "its blocks": ", ".join(sorted({f"{p['start']} to {p['end'] - 1}" for p in known})),
        "its norm (x median)": float(np.median([p["ratio"] for p in known])), **by,
        "secondary per 1000": 1000 * by["secondary"] / tokens, "other phases": ", ".join(phases) or "none",
        "sinks there": len(s.system.early_), "shorter there": len(s.system.sinks_) - len(main) - len(s.system.early_),
        "weak, attention only": sum(not w["by direction too"] for rows in s.system.weak_ for w in rows),
    }  # fmt: skip


def sink_tables(whole: Source) -> dict[str, Any]:
    """Sinks, tokens, levels, weak sinks and massive activations."""
    system, decode = whole.system, whole.tokenizer.decode
    rows = [
        {
            "text": s.text, "position": s.position, "token": repr(decode([s.token])), "window": s.window,
            "label": s.label,
            "l_start": s.l_start, "lifetime": s.lifetime, "gaps": s.layers[-1] - s.layers[0] + 1 - s.lifetime,
            "sign": s.sign, "|cosine|": s.cosine, "norm": s.norm, "x median": s.ratio, "write": s.write,
            "by the MLP": s.mlp_share, "score": s.score if np.isfinite(s.score) else None,
        }
        for s in sorted(system.sinks_, key=lambda s: (s.label != "secondary", -s.write))
    ]  # fmt: skip
    names: dict[str, int] = {}
    for s in system.main_:
        names[repr(decode([s.token]))] = names.get(repr(decode([s.token])), 0) + 1
    weak = [
        {"text": i, "token": repr(decode([int(whole.texts[i][0, w["position"]])])), **w,
         "layers": f"{len(w['layers'])}: {w['layers'][0]} to {w['layers'][-1]}"}
        for i, found in enumerate(system.weak_) for w in found[:8]
    ]  # fmt: skip
    big = [
        {"text": i, "token": repr(decode([int(whole.texts[i][0, m["position"]])])), **m}
        for i, found in enumerate(system.massive_) for m in found[:6]
    ]  # fmt: skip
    return {
        "sinks": rows[:400],
        "tokens": [{"token": k, "sinks": v} for k, v in sorted(names.items(), key=lambda x: -x[1])[:20]],
        "levels": system.levels_, "weak sinks": weak[:60], "massive activations": big[:60],
    }  # fmt: skip


def norms(whole: Source) -> Lines:
    """Norms by block: the first token, the longest-lived sink, the median token, of the text that has that sink."""
    system = whole.system
    ranked = sorted(system.sinks_, key=lambda s: (s.lifetime, s.write))
    i = ranked[-1].text if ranked else 0
    curves = {
        "first token": system.primary_norm_[i], "longest-lived sink": system.sink_norm_[i],
        "median token": system.median_norm_[i],
    }  # fmt: skip
    return Lines(
        "Norm of the residual stream", [Series(n, list(range(len(y))), y) for n, y in curves.items() if y is not None],
        x_label="block", y_label="norm", y_scale="log",
        caption=f"Text {i}. The main window lies between the first token's largest rise and largest fall; where "
        "it stands out besides is another phase.",
    )  # fmt: skip


def level_bars(system: SecondarySinks) -> list[Figure]:
    """Counts per level."""
    rows = system.levels_[:14]
    if not rows:
        return []
    labels = [f"{r['l_start']}: {r['lifetime']} {r['label']}" for r in rows]
    rates = [[r[k] for r in rows] for k in ("per 1000 tokens", "low", "high")]
    return [
        Bars("Sink levels", [Series("", labels, *rates)], x_label="first block: lifetime",
             y_label="sinks per 1,000 tokens", caption="All tokens that pass the direction test, noise included; "
             "whiskers are 95 % bootstrap intervals over texts.")
    ]  # fmt: skip


def text_with_sinks(whole: Source) -> list[Figure]:
    """A stretch of text around the strongest sink, coloured by lifetime."""
    sinks = whole.system.main_ or whole.system.sinks_
    if not sinks:
        return []
    top: Sink = max(sinks, key=lambda s: (s.lifetime, s.write))
    ids = whole.texts[top.text][0].tolist()
    life = {s.position: s.lifetime for s in whole.system.sinks_ if s.text == top.text}
    low = max(0, top.position - SHOWN // 2)
    spans: list[tuple[str, float | None]] = [
        (whole.tokenizer.decode([ids[i]]), float(life[i]) if i in life else None)
        for i in range(low, min(len(ids), low + SHOWN))
    ]
    return [HtmlText("Where sinks lie in a text", spans, limits=(0, max(life.values())),
                     caption="Coloured: tokens that pass the direction test, by the number of blocks.")]  # fmt: skip


def mass_lines(whole: Source) -> list[Figure]:
    """The primary sink's share by block: texts with and without secondary sinks."""
    masses = [(i, m) for i, m in enumerate(whole.system.primary_mass_) if m is not None]
    if not masses:
        return []
    having = {s.text for s in whole.system.main_}
    series = []
    for label, group in (("texts with other sinks", True), ("texts without", False)):
        rows = np.array([m for i, m in masses if (i in having) == group])
        if len(rows):
            low, high = (rows.min(0), rows.max(0)) if len(rows) > 1 else (rows[0], rows[0])
            series.append(Series(label, list(range(rows.shape[1])), rows.mean(0).tolist(), low.tolist(), high.tolist()))
    return [Lines("Attention on the primary sink", series, x_label="block", y_label="mean share of attention",
                  caption="Mean over heads and the second half of the queries; bands: least and most.")]  # fmt: skip


def norm_scatter(system: SecondarySinks) -> list[Figure]:
    """Norm of the write against score."""
    sinks = [s for s in system.sinks_ if np.isfinite(s.score)]
    if len(sinks) < 2:
        return []
    series = []
    for label, window in product(("secondary", "BOS-like", "noise"), ("main", "other")):
        some = [s for s in sinks if s.label == label and s.window == window]
        if some:
            series.append(
                Series(
                    label if window == "main" else f"{label}, other phase",
                    [s.write for s in some],
                    [s.score for s in some],
                )
            )
    return [Scatter("The stronger the write, the stronger the sink?", series, x_label="norm of the MLP's write",
                    y_label="mean attention received", x_scale="log", caption="One point per sink; the same queries "
                    "for all sinks of a text.")]  # fmt: skip


def stage_bars(e: Evidence) -> Bars:
    """Cosine with the primary sink along the MLP of the first block with sinks."""
    s = e.stages[0]
    series = [Series(f"sinks (n = {s.sinks.shape[1]})", s.names, np.median(s.sinks, 1).tolist())]
    if s.controls.shape[1]:
        series.append(
            Series(f"same tokens elsewhere (n = {s.controls.shape[1]})", s.names, np.median(s.controls, 1).tolist())
        )
    return Bars(f"Where the direction appears inside the MLP of block {s.layer}", series, x_label="point of the MLP",
                y_label="median cosine with the primary sink", horizontal=True)  # fmt: skip


def push_lines(e: Evidence) -> Lines:
    """Answers of an MLP to its strongest input directions."""
    p = e.pushes[0]
    series = [
        Series(f"component {i + 1}", p.scales.tolist(), p.swept_cosine[i].tolist()) for i in range(min(4, len(p.norm)))
    ]
    return Lines(f"What the MLP of block {p.layer} answers to scaled directions", series, x_label="scale",
                 y_label="cosine with the primary sink",
                 caption="An even (quadratic) amplifier answers +e and -e alike.")  # fmt: skip


def remarks(study: Study, system: SecondarySinks | None) -> list[str]:
    """What a reader must know."""
    out = [f"{name}: {why}" for name, why in study.refused.items()]
    if system is None:
        return out
    if not system.secondary_:
        short = sum(s.window == "main" for s in system.sinks_)
        out.append(
            f"{study.name} has no secondary sink in these texts as the paper defines them: in the main window of the "
            f"first token {short} tokens pass the direction test, none for as many blocks as asked for."
        )
    lengths = f"{min(system.tokens_)} to {max(system.tokens_)}"
    out.append(
        f"{len(system.tokens_)} texts of {lengths} tokens. Scores compare tokens of the first half of a text, by the "
        "queries of its second half."
    )
    if system.early_:
        out.append(
            f"But {len(system.early_)} tokens are sinks of the same kind outside that window, where the first token "
            "stands out along another direction; the paper's script does not look there. They are reported as those of "
            "another phase."
        )
    if any(system.refused_):
        out.append(f"{len(system.refused_)} texts have no primary sink and were left out.")
    return out
