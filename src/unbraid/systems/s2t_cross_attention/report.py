"""From findings to a `Result`: claims, pictures and sound first, then the tables behind them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unbraid.core.figures import Audio, Bars, Figure, HeadMap, HtmlText, Lines
from unbraid.core.heads import HeadSet
from unbraid.core.result import Result
from unbraid.core.series import Series
from unbraid.data.speech.clips import Clip
from unbraid.systems.s2t_cross_attention import CARD
from unbraid.systems.s2t_cross_attention.claims import measure, warning_auroc
from unbraid.systems.s2t_cross_attention.explanation import Explanation
from unbraid.systems.s2t_cross_attention.maps import aggregate, bootstrap, by_token
from unbraid.systems.s2t_cross_attention.measure import Correlations, Times, Warned, wer
from unbraid.systems.s2t_cross_attention.pictures import matrix_image, true_word, word_image
from unbraid.systems.s2t_cross_attention.system import SpeechCrossAttention
from unbraid.systems.s2t_cross_attention.toy import auroc
from unbraid.systems.s2t_cross_attention.warn import flags

PAPER_HALF = {"the paper's range, low": 0.52, "the paper's range, high": 0.75}
SOUNDS = 3


@dataclass
class Findings:
    """What a study measured, before it is put into words."""

    name: str
    clips: list[Clip]
    system: SpeechCrossAttention
    explanations: list[Explanation] = field(default_factory=list)
    correlations: Correlations | None = None
    deletion: list[dict[str, dict[str, Any]]] = field(default_factory=list)
    times: dict[str, Times] = field(default_factory=dict)
    warned: list[Warned] = field(default_factory=list)
    contexts: dict[str, Any] = field(default_factory=dict)
    world: list[dict[str, float]] = field(default_factory=list)
    read_back: int = 0


def make_result(f: Findings, params: dict[str, Any], seconds: float, pictures: int) -> Result:
    """The page."""
    tables: dict[str, Any] = {"correlations": correlation_rows(f), "clips": clip_rows(f), "cost": cost_rows(f)}
    if f.times:
        tables["word times"] = [row for kind, t in f.times.items() for row in time_rows(kind, t)]
    if f.deletion:
        tables["deletion"] = deletion_rows(f)
    if f.warned:
        tables["warnings"] = warning_rows(f)
        tables["hypotheses"] = [
            {"clip": f.clips[w.clip].name, "audio": w.kind, "off the path": w.risk, "progress": w.progress,
             "padding": w.padding, "doubt": w.doubt, "text": w.text} for w in f.warned
        ]  # fmt: skip
    if f.contexts:
        tables["context"] = [{"what": k, "value": str(v) if isinstance(v, str) else round(float(v), 4)}
                             for k, v in f.contexts.items()]  # fmt: skip
    if f.world:
        tables["known world"] = f.world
    assert f.correlations is not None
    arrays = {f"head_{w}": f.correlations.head[w] for w in ("x", "h")}
    arrays |= {f"layer_{w}": f.correlations.layer[w] for w in ("x", "h")}
    arrays["head_weights"] = f.system.head_weights_
    return Result(
        CARD.slug,
        f"How far the cross-attention of {f.name} explains what it hears",
        params=params,
        claims=measure(f),
        tables=tables,
        figures=figures(f, pictures),
        arrays=arrays,
        notes=remarks(f),
        meta={"seed": params.get("seed", 0), "seconds": round(seconds, 1), "pieces_read_back": f.read_back},
    )


def figures(f: Findings, pictures: int) -> list[Figure]:
    """What a reader sees, in order."""
    shown = showcase(f)
    out: list[Figure] = []
    for number in shown[:SOUNDS]:
        clip = f.clips[number]
        e = f.explanations[number]
        out.append(
            Audio.from_array(clip.audio, clip.rate, f"Speech, {clip.seconds:.1f} s: {clip.text or e.text}",
                             f"Listen: {clip.name}", f"Heard by the model: “{e.text}”")
        )  # fmt: skip
    if shown:
        first = f.explanations[shown[0]]
        known = f.clips[shown[0]].words
        out += [word_image(first, k, true_word(first, k, known)) for k in range(min(pictures, len(first.words)))]
        out += [matrix_image(f.explanations[n]) for n in shown[:2]]
        out.append(trust_text(f.explanations[shown[0]]))
    out += [level_bars(f), *head_maps(f), layer_lines(f)]
    out += [time_bars(kind, t) for kind, t in f.times.items() if len(t.clip)]
    if f.deletion:
        out.append(deletion_lines(f))
    if f.warned:
        out.append(warning_bars(f))
    if f.world:
        out.append(world_bars(f))
    return out


def showcase(f: Findings) -> list[int]:
    """Clips to show: one with known words first, then one recorded, then another."""
    said = [i for i, e in enumerate(f.explanations) if e.words and f.clips[i].seconds <= 12]
    errors = wer(f.clips, f.explanations)
    said.sort(key=lambda i: errors[i] or 0.0)  # those that were understood are better to look at
    known = [i for i in said if f.clips[i].timing == "exact"]
    others = [i for i in said if f.clips[i].timing != "exact"]
    return [*known[:1], *others[:1], *known[1:2], *others[1:]]


def trust_text(e: Explanation) -> HtmlText:
    """The hypothesis, coloured by attention that lies off its path."""
    risk = flags(e).token_risk
    spans = [(e.tokens[row], float(risk[k])) for k, row in enumerate(e.rows)]
    agree = by_token(aggregate(e.heads()), e.saliency("h"))
    return HtmlText(
        f"{e.name}: where attention can be trusted",
        spans,
        caption="Share of each token's attention that lies off its stretch of the path through time (0: all of it is "
        f"where the token is said). Correlation with encoder-output saliency, token by token: {agree.min():.2f} to "
        f"{agree.max():.2f}.",
        limits=(0.0, 1.0),
    )


LEVELS = (
    ("head", "mean single head"), ("best head", "best head (per clip)"), ("head number", "layers averaged"),
    ("layer", "mean layer"), ("all", "all heads"), ("alignment heads", "alignment heads"),
    ("learned weights, held out", "learned weights"), ("norm-weighted, heads", "norm-weighted"),
    ("norm-weighted, layers", "norms of layers"), ("attention x gradient", "attention × grad."),
    ("all, Spearman", "all heads, Spearman"), ("all, without sinks", "all heads, without sink columns"),
    ("all, uncropped", "all heads, padding columns kept"),
    ("all, effects", "all heads, against effects by regression"),
)  # fmt: skip


def correlation_rows(f: Findings) -> list[dict[str, Any]]:
    """Correlations at every level with both saliencies."""
    assert f.correlations is not None
    v, rows = f.correlations.values, []
    for key, label in LEVELS:
        if f"x {key}" not in v:
            continue
        x, h = bootstrap(v[f"x {key}"]), bootstrap(v[f"h {key}"])
        rows.append(
            {"cross-attention": label, "input saliency": x[0], "low": x[1], "high": x[2],
             "encoder-output saliency": h[0], "low ": h[1], "high ": h[2]}
        )  # fmt: skip
    x, h = (bootstrap(v[f"{w} covered"], fisher=False) for w in ("x", "h"))
    rows.append(
        {"cross-attention": "share of saliency where attention lies (not a correlation)", "input saliency": x[0],
         "low": x[1], "high": x[2], "encoder-output saliency": h[0], "low ": h[1], "high ": h[2]}
    )  # fmt: skip
    return rows


def clip_rows(f: Findings) -> list[dict[str, Any]]:
    """Every clip: what was said, and how attention and saliency agree on it."""
    assert f.correlations is not None
    v, errors = f.correlations.values, wer(f.clips, f.explanations)
    return [
        {"clip": c.name, "seconds": round(c.seconds, 2), "heard": e.text, "WER": errors[i],
         "attention and input": v["x all"][i], "attention and encoder output": v["h all"][i],
         "input and encoder output": v["x and h"][i], "sink mass": v["sink mass"][i],
         "off the path": flags(e).risk, "flags": " ".join(flags(e).messages), "source": c.source}
        for i, (c, e) in enumerate(zip(f.clips, f.explanations, strict=True))
    ]  # fmt: skip


def cost_rows(f: Findings) -> list[dict[str, Any]]:
    """What the runs cost, and how exact their maps are."""
    rows = []
    for c, e in zip(f.clips, f.explanations, strict=True):
        for what, facts in e.cost.items():
            rows.append(
                {"clip": c.name, "occluded": what, **{k: v for k, v in facts.items() if k != "segments"},
                 "segments": ", ".join(map(str, facts["segments"]))}
            )  # fmt: skip
    return rows


def with_interval(name: str, x: list[Any], found: list[tuple[float, float, float]]) -> Series:
    """A series of (mean, low, high)."""
    return Series(name, x, [b[0] for b in found], [b[1] for b in found], [b[2] for b in found])


def level_bars(f: Findings) -> Bars:
    """The main comparison."""
    assert f.correlations is not None
    v = f.correlations.values
    keys = [(k, label) for k, label in LEVELS[:-4] if f"x {k}" in v]
    series = []
    for which, name in (("x", "with input saliency"), ("h", "with encoder-output saliency")):
        found = [bootstrap(v[f"{which} {k}"]) for k, _ in keys]
        series.append(with_interval(name, [label for _, label in keys], found))
    return Bars(
        "Agreement of cross-attention with saliency",
        series,
        y_label="correlation",
        caption=f"Means over {len(f.clips)} utterances, 95 % intervals. Layers averaged: head by head, then the mean. "
        "Learned weights: tried on clips that they were not learned on. Norms of layers: all heads of one together. "
        "Dashed: range of the paper's best case, .52-.75.",
        horizontal=True,
        references=PAPER_HALF,
    )


def head_maps(f: Findings) -> list[Figure]:
    """Correlation of every head."""
    out: list[Figure] = []
    for scores, what in ((f.system.input_scores_, "input"), (f.system.scores_, "encoder-output")):
        chosen = f.explanations[0].chosen
        marked = HeadSet(
            [] if chosen is None else [(scores.sites[i], int(h)) for i, h in zip(*np.nonzero(chosen), strict=True)]
        )
        said = " Outlined: the heads that the model's own configuration uses for alignment." if len(marked) else ""
        out.append(
            HeadMap(
                f"Correlation of each head with {what} saliency", scores, f"Mean over utterances.{said}", marked=marked
            )
        )
    return out


def layer_lines(f: Findings) -> Lines:
    """Correlation by layer."""
    assert f.correlations is not None
    series = []
    for which, name in (("x", "input saliency"), ("h", "encoder-output saliency")):
        layer = f.correlations.layer[which]
        found = [bootstrap(layer[:, i]) for i in range(layer.shape[1])]
        series.append(with_interval(name, list(range(1, len(found) + 1)), found))
    return Lines("Agreement by decoder layer", series, "decoder layer", "correlation",
                 "Heads of a layer averaged; bands are 95 % intervals over utterances.")  # fmt: skip


def time_rows(kind: str, t: Times) -> list[dict[str, Any]]:
    """Errors of word times by source."""
    rows = []
    for name, errors in t.errors.items():
        start, end = 1000 * errors["start"], 1000 * errors["end"]
        mean, low, high = bootstrap(start, fisher=False)
        rows.append(
            {"true times": kind, "aligned by": name, "mean error of starts, ms": mean, "low": low, "high": high,
             "median of starts, ms": float(np.median(start)) if len(start) else None,
             "mean error of ends, ms": float(end.mean()) if len(end) else None,
             "starts within 100 ms": float((start <= 100).mean()) if len(start) else None, "words": len(start),
             "words in the truth": t.words}
        )  # fmt: skip
    return rows


def time_bars(kind: str, t: Times) -> Bars:
    """Mean error of word starts by source."""
    found = {name: bootstrap(1000 * e["start"], fisher=False) for name, e in t.errors.items()}
    series = with_interval("", list(found), list(found.values()))
    return Bars(
        f"Error of word times (true times: {kind or 'given'})", [series], y_label="mean error of word starts, ms",
        horizontal=True,
        caption=f"{len(t.clip)} words of {len(set(t.clip))} clips, the same for all sources; intervals over words. "
        "Effects are by regression on the same runs as saliency. "
        '“transformers” is its own return_timestamps="word", on eager attention; all others run on fused attention.',
    )  # fmt: skip


def deletion_rows(f: Findings) -> list[dict[str, Any]]:
    """Deletion and size areas by ranking."""
    rows = []
    for name in f.deletion[0]:
        a = bootstrap([d[name]["area"] for d in f.deletion], fisher=False)
        size = float(np.mean([d[name]["size"] for d in f.deletion]))
        rows.append({"bins deleted by": name, "area under the word error": a[0], "low": a[1], "high": a[2],
                     "size (area, smaller is more compact)": size, "clips": len(f.deletion)})  # fmt: skip
    return rows


def deletion_lines(f: Findings) -> Lines:
    """Mean deletion curves."""
    series = []
    for name in f.deletion[0]:
        errors = np.stack([d[name]["errors"] for d in f.deletion])
        series.append(Series(name, [100 * s for s in f.deletion[0][name]["shares"]], errors.mean(0).tolist()))
    return Lines("Word error with the most relevant bins deleted", series, "share of bins deleted, %", "word error",
                 f"Mean over {len(f.deletion)} clips, decoded again by beam search; errors against the undisturbed "
                 "hypothesis, capped at 1. The faster a curve rises, the more faithful the ranking.")  # fmt: skip


KINDS = ("clean", "other text", "silence", "noise", "truncated")


def warning_rows(f: Findings) -> list[dict[str, Any]]:
    """AUROC of each warning sign for each way in which text can lack support."""
    signs = {"attention off the path": lambda w: w.risk, "no progress through time": lambda w: -w.progress,
             "attention on padding": lambda w: w.padding, "entropy of attention": lambda w: w.entropy,
             "minus mean log-probability (no attention)": lambda w: w.doubt}  # fmt: skip
    clean = [w for w in f.warned if w.kind == "clean"]
    rows = []
    for name, sign in signs.items():
        row: dict[str, Any] = {"sign": name}
        for kind in KINDS[1:4]:
            bad = [w for w in f.warned if w.kind == kind]
            values = np.array([sign(w) for w in [*clean, *bad]])
            row[f"AUROC, {kind}"] = auroc(values, np.array([False] * len(clean) + [True] * len(bad))) if bad else None
        rows.append(row)
    cut = [w for w in f.warned if w.unsupported is not None and 0 < w.unsupported.sum() < len(w.unsupported)]
    if cut:
        gone = np.concatenate([w.unsupported for w in cut if w.unsupported is not None])
        rows[0]["AUROC, tokens cut away"] = auroc(np.concatenate([w.token_risk for w in cut]), gone)
        rows[-1]["AUROC, tokens cut away"] = auroc(np.concatenate([w.token_doubt for w in cut]), gone)
    return rows


def warning_bars(f: Findings) -> Bars:
    """Attention off the path by kind of audio."""
    kinds = [k for k in KINDS if any(w.kind == k for w in f.warned)]
    found = [bootstrap([w.risk for w in f.warned if w.kind == k], fisher=False) for k in kinds]
    area, doubt, low, high, n = warning_auroc(f)
    return Bars(
        "Attention off the path through time", [with_interval("", kinds, found)],
        y_label="share of attention",
        caption=f"{n} hypotheses, clean or without support in the audio: AUROC {area:.2f} [{low:.2f}, {high:.2f}], "
        f"next to {doubt:.2f} for the mean log-probability. Truncated: half of the text has lost its sound.",
    )  # fmt: skip


def world_bars(f: Findings) -> Bars:
    """The made-up world: attention and saliency against the known segments."""
    labels = {"truth_attention": "attention", "truth_x": "input saliency", "truth_h": "encoder-output saliency",
              "truth_shifted": "attention, shifted to another word"}  # fmt: skip
    values = [[r[k] for r in f.world] for k in labels]
    series = Series("", list(labels.values()), [float(np.mean(v)) for v in values], [min(v) for v in values],
                    [max(v) for v in values])  # fmt: skip
    return Bars("Where the alignment is known", [series], y_label="correlation with the true segments", horizontal=True,
                caption=f"A tiny Whisper trained on made-up speech, {len(f.world)} seeds; whiskers are least and "
                "greatest.")  # fmt: skip


def remarks(f: Findings) -> list[str]:
    """What a reader must know."""
    s, e = f.system, f.explanations
    runs = sum(facts["runs"] for x in e for facts in x.cost.values())
    seconds = sum(facts["seconds"] for x in e for facts in x.cost.values())
    rel = {w: np.mean([x.cost[w]["reliability"] for x in e]) for w in ("input", "encoder")}
    out = [
        f"{runs:,} perturbation runs took {seconds:,.0f} s ({runs / max(seconds, 1e-9):.1f} a second). Maps made twice "
        f"would correlate {rel['input']:.2f} (input) and {rel['encoder']:.2f} (encoder output); no correlation "
        "with a map "
        "can exceed the root of that, so noise of few runs lowers all figures here. The paper made 20,000 runs per "
        "utterance.",
        "Columns are cropped to the audio before they are normalised, unless a row says otherwise; the end token "
        "and the "
        "prefix are left out. Correlations are averaged as Fisher's z; intervals are bootstrapped over utterances.",
        "How the paper groups encoder states for occlusion could not be read; here contiguous windows of "
        f"{', '.join(map(str, s.widths))} states are zeroed.",
    ]
    if s.context == "fit" and f.explanations[0].attention.shape[-1] < 1500:
        out.append(
            "The encoder heard only the audio and half a second more (context fit), not thirty seconds: the "
            "model that is "
            "explained is therefore not quite the one that users run; --context full is, and takes several times "
            "as long. "
            "The table “context” says how near the two are, where it was measured."
        )
    if any(not c.text for c in f.clips):
        out.append("Where no text of a recording is known, hypotheses are explained as they are, right or wrong.")
    if f.read_back:
        out.append(f"{f.read_back:,} pieces were read back from an earlier run (--keep).")
    return out
