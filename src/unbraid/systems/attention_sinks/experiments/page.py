"""From findings to a page in the order of the survey."""

from __future__ import annotations

from typing import Any

import numpy as np

from unbraid.core.claim import Table
from unbraid.core.figures import Bars, Figure, HeadMap, Lines, Scatter
from unbraid.core.result import Result
from unbraid.core.series import Series
from unbraid.systems.attention_sinks import CARD, taxonomy
from unbraid.systems.attention_sinks.experiments import methods
from unbraid.systems.attention_sinks.experiments.claims import Findings, measure
from unbraid.systems.attention_sinks.experiments.detecting import scores
from unbraid.systems.attention_sinks.experiments.streams import after_eviction, curve


def make_result(f: Findings, params: dict[str, Any], seconds: float) -> Result:
    """Claims, the comparison, then branch by branch."""
    tables: dict[str, Any] = {}
    figures: list[Figure] = []
    if f.methods is not None:
        tables["what each method buys and costs"] = Table.from_records(methods.table(f.methods), METHODS)
        figures += [trade(f), cost_bars(f)]
    tables["taxonomy: what stands here for each branch of the survey"] = taxonomy.rows()
    tables["detection: the ten metrics"] = summaries(f)
    figures += detection_figures(f)
    for name, data in f.detection.items():
        if data["massive"]:
            tables[f"detection: massive activations of {name}"] = data["massive"]
        if data["tokens"]:
            tables[f"detection: sink tokens of {name} by place"] = data["tokens"]
    if f.streams:
        tables["streams: perplexity"] = stream_rows(f)
        figures.append(stream_lines(f))
    if f.probes is not None:
        tables |= probe_tables(f.probes)
        figures += probe_figures(f.probes)
    if f.trained is not None:
        tables |= {f"trained variants: {name}": table for name, table in f.trained.tables.items()}
        figures += f.trained.figures
    return Result(
        CARD.slug,
        f"Attention sinks of {f.name}: measured, used, changed and explained",
        params=params,
        claims=[*measure(f), *(() if f.trained is None else f.trained.claims)],
        tables=tables,
        figures=figures,
        arrays=arrays(f),
        notes=remarks(f, params),
        meta={"seed": params.get("seed", 0), "seconds": round(seconds, 1), "pieces_read_back": f.read_back},
    )


SHORT = {  # names that fit beside a bar
    "DuoAttention, half of the heads": "DuoAttention, 50 %",
    "half of the sink's mass to the others": "half the mass moved",
    "the same, uniformly": "moved uniformly",
    "ZeroTuning, 3 groups of heads": "ZeroTuning",
    "sink removed after 64 tokens": "removed after 64",
}
METHODS = (
    "Second half of each text, read in passes; losses in nats per token with 95 % intervals over texts. The sink rate "
    "is the share of heads that give more than 0.3 of their attention to the first key they have."
)


def summaries(f: Findings) -> list[dict[str, Any]]:
    """Metric by metric, one column per model."""
    names = list(next(iter(f.detection.values()))["summary"])
    return [{"metric": n, **{m: d["summary"].get(n) for m, d in f.detection.items()}} for n in names]


def detection_figures(f: Findings) -> list[Figure]:
    """Head maps, first-token share by layer, residual stream by block."""
    figures: list[Figure] = []
    shares, sizes = [], []
    for name, data in f.detection.items():
        alpha = scores(data, "alpha")
        assert alpha is not None
        rate = float(np.mean(data["rates"]["0.3"]))
        figures.append(
            HeadMap(
                f"Attention on the first token, {name}", alpha, scale="sequential", limits=(0.0, 1.0),
                caption=f"Mean over {data['texts']} texts of {data['length']} tokens; {rate:.0%} of heads exceed 0.3.",
            )
        )  # fmt: skip
        first = scores(data, "first")
        assert first is not None
        shares.append(
            Series(name, list(range(len(first.scores))), [float(np.nanmean(x)) for x in first.scores.values()])
        )
        sizes.append(Series(f"{name}: largest", *by_block(data, "largest")))
        sizes.append(Series(f"{name}: median", *by_block(data, "median")))
    figures.append(
        Lines(
            "Share of all attention that goes to the first token", shares, "layer", "share",
            caption="Mean over heads and texts (metric 3).",
        )
    )  # fmt: skip
    if any(s.x for s in sizes):
        figures.append(
            Lines(
                "Largest and median magnitude in the residual stream", [s for s in sizes if s.x], "block", "magnitude",
                y_scale="log", caption="Where massive activations emerge, stay and vanish (metrics 4 and 9).",
            )
        )  # fmt: skip
    return [*figures, *write_figure(f)]


def by_block(data: dict[str, Any], name: str) -> tuple[list[int], list[float]]:
    """(blocks, a number of each)."""
    return [int(r["block"]) for r in data["layers"]], [float(r[name]) for r in data["layers"]]


def write_figure(f: Findings) -> list[Figure]:
    """High attention, small write: a point per head."""
    series = []
    for name, data in f.detection.items():
        alpha, write = scores(data, "alpha"), scores(data, "write")
        if alpha is None or write is None:
            continue
        heads = [h for h in alpha if np.isfinite(alpha[h]) and np.isfinite(write[h])]
        labels = [alpha.label(h) for h in heads]
        series.append(Series(name, [alpha[h] for h in heads], [write[h] for h in heads], labels=labels))
    if not series:
        return []
    return [
        Scatter(
            "Much attention, small write?", series, "attention on the first token",
            "what it writes over what the head writes",
            caption="One point per head (metric 5). Heads in the lower right look at the sink in order to do little.",
        )
    ]  # fmt: skip


def stream_rows(f: Findings) -> list[dict[str, Any]]:
    """Perplexity before and after the first eviction, per condition."""
    rows = []
    for name, losses in f.streams.items():
        late = [after_eviction(r, f.cache) for r in losses]
        near = {}
        if f.positions is not None and f.cache < f.positions < len(losses[0]):
            mean = np.mean([after_eviction(r[: f.positions], f.cache) for r in losses])
            near = {f"after it, to token {f.positions}": float(np.exp(mean))}
        rows.append({
            "condition": name, "streams": len(losses), "tokens each": len(losses[0]) + 1,
            f"perplexity to token {f.cache}": float(np.exp(np.mean([np.mean(r[: f.cache]) for r in losses]))),
            **near, "after it, all": float(np.exp(np.mean(late))),
            "lowest stream": float(np.exp(min(late))), "highest stream": float(np.exp(max(late))),
        })  # fmt: skip
    return rows


def stream_lines(f: Findings) -> Lines:
    """Perplexity along the streams."""
    series = []
    for name, losses in f.streams.items():
        at, middle, low, high = curve(losses)
        series.append(Series(name, at, middle, low, high))
    return Lines(
        f"A stream of {len(next(iter(f.streams.values()))[0]) + 1:,} tokens through a cache of {f.cache:,}", series,
        "tokens read", "perplexity", y_scale="log",
        caption="Bands are the lowest and highest of the streams. All conditions but the full cache keep equally much.",
    )  # fmt: skip


def trade(f: Findings) -> Scatter:
    """The one picture: memory against perplexity."""
    assert f.methods is not None
    rows = methods.table(f.methods)
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["branch"], []).append(row)
    names = {"baseline": "full cache", "3.1": "preserved sinks (3.1)", "3.2": "redistribution (3.2)",
             "3.4": "repurposing (3.4)"}  # fmt: skip
    series = [
        Series(names.get(b, b), [r["cache MB"] for r in rs], [r["perplexity"] for r in rs],
               labels=[r["method"] for r in rs])
        for b, rs in groups.items()
    ]  # fmt: skip
    return Scatter(
        "What is bought, what is paid",
        series,
        "size of the cache in MB",
        "perplexity",
        x_scale="log",
        y_scale="log",
        caption="Lower left is better. One point per method; the table has its name, its sink rate and its speed.",
    )


def cost_bars(f: Findings) -> Bars:
    """Extra loss of each method, with intervals."""
    assert f.methods is not None
    rows = [r for r in methods.table(f.methods) if r["method"] != "full cache"]
    series = Series(
        "loss", [SHORT.get(r["method"], r["method"]) for r in rows], [r["loss more than full cache"] for r in rows],
        [r["low"] for r in rows] if rows[0]["low"] is not None else None,
        [r["high"] for r in rows] if rows[0]["low"] is not None else None,
    )  # fmt: skip
    return Bars(
        "Loss in addition to the full cache", [series], "method", "nats per token",
        caption="Second half of the texts; whiskers are 95 % intervals over texts.", horizontal=True,
    )  # fmt: skip


def probe_tables(p: dict[str, Any]) -> dict[str, Any]:
    """One table per explanation."""
    tables: dict[str, Any] = {}
    for key, name in (("no-op", "4.1 no-op"), ("bias", "4.3 implicit bias")):
        base = p[key][0]["loss"]
        tables[name] = [
            {
                "condition": r["condition"],
                "loss": r["loss"],
                "more": r["loss"] - base,
                "perplexity": float(np.exp(r["loss"])),
            }
            for r in p[key]
        ]
    if "circuit" in p:
        tables["4.2 outlier circuit"] = p["circuit"]["zeroed"]
        tables["4.2 neurons that write the channel"] = [
            {"neuron": int(n), "activation": a, "share of the write": s} for n, a, s in p["circuit"]["neurons"]
        ]
    tables["4.4 geometry"] = p["geometry"]
    if "mixing" in p:
        keep = ("block", "with BOS", "without BOS")
        tables["4.5 spread of a change"] = [{k: r[k] for k in keep} for r in p["mixing"]]
    return tables


def probe_figures(p: dict[str, Any]) -> list[Figure]:
    """Angles by block, alignment by head, spread by block."""
    rows = p["geometry"]
    blocks = [r["block"] for r in rows]
    figures: list[Figure] = [
        Lines(
            "Angles to the sink", [
                Series("orthogonality, 1 - |cos|", blocks, [r["orthogonality"] for r in rows],
                       [r["low"] for r in rows], [r["high"] for r in rows]),
                Series("cosine with the sink", blocks, [r["cosine with the sink"] for r in rows]),
                Series("cosine of neighbours", blocks, [r["cosine of neighbours"] for r in rows]),
            ], "block", "", caption="Normed states; the band holds the middle half of the tokens (survey 4.4).",
        )
    ]  # fmt: skip
    if "circuit" in p:
        c = p["circuit"]
        figures.append(
            HeadMap(
                "Queries lean towards the sink's key", c["alignment"], scale="diverging",
                caption="Mean cosine of queries with the sink's key minus that with other keys (survey 4.2).",
            )
        )  # fmt: skip
    if "mixing" in p:
        m = p["mixing"]
        figures.append(
            Lines(
                "How far a change of one token spreads", [
                    Series(name, [r["block"] for r in m], [r[name] for r in m]) for name in ("with BOS", "without BOS")
                ], "block", "relative change of later tokens", caption="Mean over texts (survey 4.5).",
            )
        )  # fmt: skip
    return figures


def arrays(f: Findings) -> dict[str, Any]:
    """Per-head tables and the streams' losses, for other programs."""
    found: dict[str, Any] = {}
    for name, data in f.detection.items():
        for which in ("alpha", "first", "write", "value", "rank"):
            table = scores(data, which)
            if table is not None:
                found[f"{name}: {which}"] = table.array
    for name, losses in f.streams.items():
        found[f"losses: {name}"] = np.asarray(losses, dtype=np.float32)
    return found


def remarks(f: Findings, params: dict[str, Any]) -> list[str]:
    """What a reader must know."""
    out = [
        "Texts are the language reference that ships with Python: real, technical English.",
        "No training happens here; trained variants (survey section 5) are a study of their own, of small models "
        "trained from scratch, which --trained puts on this page.",
    ]
    if f.methods is not None:
        gammas = ", ".join(f"{k}: {v:g}" for k, v in f.methods["tuned"]["gammas"].items())
        out.append(
            f"The comparison reads {params['compare_tokens']} tokens in passes of {params['compare_chunk']}; every "
            "token of a pass sees the whole pass, and a cache evicts between passes. ZeroTuning chose on other texts: "
            f"{gammas}. Speed is tokens read per second there, choosing included."
        )
        out.append(
            f"Evicting caches keep {params['budget']} tokens; H2O, A2SF and KeyDiff half as recent ones, SnapKV "
            "32 as observers. DuoAttention ranks heads by how little they give to the first token, a stand-in for "
            "its own optimised scores. A removed sink is replaced: hidden from every query, the first token is as good "
            "as not there and the second takes over; the line after 64 tokens shows removal without that."
        )
        out += [f"{name} was left out: {why}" for name, why in f.methods["left out"].items()]
    if f.streams:
        out.append(
            "Streams are read in long passes with the numbers of token-by-token streaming (a test compares them)."
        )
    if f.probes is not None:
        out += [f"The probe of {k} was left out: {v}" for k, v in f.probes["why"].items()]
    if f.read_back:
        out.append(
            f"{f.read_back} pieces were finished by an earlier run and read back (--keep); the seconds leave them out."
        )
    return out
