"""What the study measures on explained utterances: correlations, word times, deletion, warnings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.core.pieces import Pieces
from unbraid.data.speech.clips import Clip, Word
from unbraid.systems.s2t_cross_attention.align import match_words, plain_word
from unbraid.systems.s2t_cross_attention.explanation import Explanation
from unbraid.systems.s2t_cross_attention.faithful import area, deletion_curve, size_area, spoken_words, word_errors
from unbraid.systems.s2t_cross_attention.listener import Listener
from unbraid.systems.s2t_cross_attention.maps import Pool, aggregate, correlation, levels, overlap
from unbraid.systems.s2t_cross_attention.perturb import fill_values
from unbraid.systems.s2t_cross_attention.system import SpeechCrossAttention
from unbraid.systems.s2t_cross_attention.warn import flags
from unbraid.systems.s2t_cross_attention.weights import fit_head_weights, held_out

NOISE = 0.05  # standard deviation of white noise that stands for speech


@dataclass(eq=False)
class Correlations:
    """Correlations per utterance: name of the figure -> [utterances]; and levels per head and layer."""

    values: dict[str, np.ndarray]
    head: dict[str, np.ndarray]
    layer: dict[str, np.ndarray]
    column: dict[str, np.ndarray]


def correlations(explanations: Sequence[Explanation], how: Pool) -> Correlations:
    """Every comparison of the sheet, per utterance."""
    rows: list[dict[str, float]] = []
    found: dict[str, list[dict[str, Any]]] = {"x": [], "h": []}
    for e in explanations:
        row: dict[str, float] = {}
        for which in ("x", "h"):
            level = levels(e.heads(), e.saliency(which, how))
            found[which].append(level)
            row |= {f"{which} {k}": v for k, v in one_utterance(e, which, how, level).items()}
        row["x all, mean pooling"] = correlation(aggregate(e.heads()), e.saliency("x", "mean"))
        row["x all, max pooling"] = correlation(aggregate(e.heads()), e.saliency("x", "max"))
        row["x and h"] = correlation(e.saliency("x", how), e.saliency("h"))
        row["sink mass"] = e.sink_mass()
        rows.append(row)
    for which in ("x", "h") if len(explanations) > 1 else ():
        learned = held_out([e.heads() for e in explanations], [e.saliency(which, how) for e in explanations])
        for row, value in zip(rows, learned, strict=True):
            row[f"{which} learned weights, held out"] = float(value)
    keys = list(dict.fromkeys(k for r in rows for k in r))
    return Correlations(
        {k: np.array([r.get(k, np.nan) for r in rows]) for k in keys},
        *({w: np.stack([f[part] for f in found[w]]) for w in ("x", "h")} for part in ("head", "layer", "column")),
    )


def one_utterance(e: Explanation, which: str, how: Pool, level: dict[str, Any]) -> dict[str, float]:
    """All figures of one utterance and one saliency."""
    s = e.saliency(which, how)
    mean = aggregate(e.heads())
    keep = ~e.sinks()
    out = {
        "head": float(np.nanmean(level["head"])),
        "best head": float(np.nanmax(level["head"])),
        "layer": float(np.nanmean(level["layer"])),
        "head number": float(np.nanmean(level["column"])),
        "all": level["all"],
        "all, Spearman": correlation(mean, s, "spearman"),
        "all, uncropped": correlation(aggregate(e.heads(crop=False)), e.saliency(which, how, crop=False)),
        "all, without sinks": correlation(mean[:, keep], s[:, keep]),
        "all, effects": correlation(mean, e.saliency(which, how, effects=True)),
        "covered": overlap(mean, s),
    }
    if e.chosen is not None:
        out["alignment heads"] = correlation(aggregate(e.heads(), e.chosen), s)
    if e.head_norms is not None and e.layer_norms is not None:
        out["norm-weighted, heads"] = correlation(aggregate(e.heads(what="norms")), s)
        out["norm-weighted, layers"] = correlation(e.layer_norms[:, e.rows, : e.valid].mean(0), s)
    if e.gradients is not None:
        out["attention x gradient"] = correlation(aggregate(e.heads(what="gradient")), s)
    return out


@dataclass(eq=False)
class Times:
    """Errors of word times: source -> {"start", "end"} -> [words] seconds, the same words for all sources.

    `clip` says which clip each word is of; `words` how many the truth has.
    """

    errors: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    clip: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    words: int = 0


def timing(clips: Sequence[Clip], sources: Sequence[dict[str, list[Word]]]) -> Times:
    """Errors over all words that every source of a clip has found.

    Args:
        clips: with known word times.
        sources: per clip, name of the source -> words.
    """
    out, clip = Times(), []
    for number, (true, found) in enumerate(zip(clips, sources, strict=True)):
        out.words += len(true.words)
        pairs = {name: {j: i for i, j in match_words(words, true.words)} for name, words in found.items()}
        common = sorted(set.intersection(*(set(p) for p in pairs.values()))) if pairs else []
        clip += [number] * len(common)
        for name, words in found.items():
            kept = out.errors.setdefault(name, {"start": np.zeros(0), "end": np.zeros(0)})
            for part in ("start", "end"):
                off = [abs(vars_of(words[pairs[name][j]], part) - vars_of(true.words[j], part)) for j in common]
                kept[part] = np.concatenate([kept[part], off])
    out.clip = np.array(clip, int)
    return out


def vars_of(word: Word, part: str) -> float:
    """Start or end of a word."""
    return word.start if part == "start" else word.end


def clip_times(explanations: Sequence[Explanation], number: int, full: Explanation | None) -> dict[str, list[Word]]:
    """Word times of one utterance by every map there is; learned weights come from the other utterances."""
    e = explanations[number]
    out = {"all heads": e.word_times("attention")}
    if e.chosen is not None:
        out["alignment heads"] = e.word_times("alignment_heads")
    if full is not None and full.chosen is not None:
        out["alignment, 30 s"] = full.word_times("alignment_heads")
    if e.saliency_h is not None:
        out["encoder saliency"] = e.word_times("saliency_h")
        out["encoder effects"] = e.word_times("effects_h")
        others = [o for i, o in enumerate(explanations) if i != number]
        if others:
            w = fit_head_weights([o.heads() for o in others], [o.saliency("h") for o in others])
            out["learned weights"] = e.word_times("weights", w)
    if e.saliency_x is not None:
        out["input saliency"] = e.word_times("saliency_x")
        out["input effects"] = e.word_times("effects_x")
    return out


def transformers_times(model: Any, processor: Any, audio: np.ndarray, rate: int) -> list[Word]:
    """What transformers itself says: `return_timestamps="word"` of its pipeline. It switches this model to eager."""
    from transformers import pipeline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        say = pipeline(
            "automatic-speech-recognition", model=model, tokenizer=processor.tokenizer,
            feature_extractor=processor.feature_extractor,
        )  # fmt: skip
        found: Any = say({"raw": audio.copy(), "sampling_rate": rate}, return_timestamps="word")
    out = []
    for chunk in found["chunks"]:
        start, end = chunk["timestamp"]
        if start is not None:
            out.append(Word(chunk["text"].strip(), float(start), float(end if end is not None else start)))
    return out


def delete(
    system: SpeechCrossAttention,
    listener: Listener,
    clip: Clip,
    e: Explanation,
    step: float,
    seed: int,
    store: Pieces,
) -> dict[str, dict[str, Any]]:
    """Deletion curves and areas, and sizes, of one utterance for every ranking."""
    heard = listener.hear(clip.at(listener.rate).audio, listener.rate)
    fill = fill_values(heard.grid, heard.valid, system.fill)
    states = listener.encode(heard.raw, heard.valid)
    read = reader(listener)
    reference = read(listener.transcribe(states, system.beams)[0])
    rankings = {
        "input saliency": e.ranking("saliency_x"),
        "input saliency at the resolution of attention": e.ranking("saliency_x_pooled", system.pool),
        "encoder-output saliency": e.ranking("saliency_h"),
        "cross-attention": e.ranking("attention"),
        "random": np.random.default_rng(seed).random(e.grid.shape),
    }
    out = {}
    for name, ranking in rankings.items():
        key = {"clip": clip.name, "ranking": float(np.abs(ranking).sum()), "name": name, "step": step,
               "beams": system.beams, "seed": seed}  # fmt: skip
        done = store.load("deletion", key)
        if done is None:
            shares, errors = deletion_curve(listener, heard, ranking, reference, read, step, system.beams, fill)
            done = {"shares": shares.tolist(), "errors": errors.tolist(), "area": area(shares, errors),
                    "size": size_area(ranking)}  # fmt: skip
            store.save("deletion", key, done)
        out[name] = done
    return out


def reader(listener: Listener) -> Callable[[list[int]], list[Any]]:
    """Tokens to the words that word error rates compare; the tokens themselves without a tokenizer."""

    def words(ids: list[int]) -> list[Any]:
        if listener.tokenizer is None:
            return [i for i in ids if i not in listener.ends]
        return spoken_words(listener.tokenizer.decode(ids, skip_special_tokens=True))

    return words


@dataclass(eq=False)
class Warned:
    """One hypothesis whose support in the audio is known.

    Attributes:
        clip: number of the clip.
        kind: "clean", "other text", "silence", "noise" or "truncated".
        text: what was said or forced.
        risk: attention off the path; progress, padding, entropy: see `Flags`.
        doubt: minus the mean log-probability of the text tokens, which needs no attention.
        token_risk: [I], token_doubt: [I], unsupported: [I] tokens whose sound was cut away (truncated only).
    """

    clip: int
    kind: str
    text: str
    risk: float
    progress: float
    padding: float
    entropy: float
    doubt: float
    token_risk: np.ndarray
    token_doubt: np.ndarray
    unsupported: np.ndarray | None = None


def warned(e: Explanation, clip: int, kind: str, unsupported: np.ndarray | None = None) -> Warned | None:
    """Figures of one hypothesis, or None where the model said nothing."""
    if not len(e.rows):
        return None
    f = flags(e)
    doubt = -e.log_probs[e.rows]
    return Warned(
        clip, kind, e.text, f.risk, f.progress, f.padding, f.entropy, float(doubt.mean()), f.token_risk, doubt,
        unsupported,
    )  # fmt: skip


def broken_audio(
    system: SpeechCrossAttention, model: Any, processor: Any, clips: Sequence[Clip], clean: Sequence[Explanation],
    seed: int, on_step: Callable[[], None],
) -> list[Warned]:  # fmt: skip
    """Clean hypotheses, and ones that the audio cannot support, of every clip.

    Other text: the next clip's hypothesis is forced on this audio. Silence and noise: the model's own hypothesis of
    them. Truncated: the second half of the audio is taken away and the hypothesis of the whole is forced.
    """
    plain = SpeechCrossAttention(**{**system.get_params(), "masks": 0, "encoder_masks": 0})
    rng, rate = np.random.default_rng(seed), Listener(model, processor).rate
    out: list[Warned | None] = []
    for number, (clip, e) in enumerate(zip(clips, clean, strict=True)):
        audio = clip.at(rate).audio
        out.append(warned(e, number, "clean"))
        other = clean[(number + 1) % len(clean)]
        cut = len(audio) // 2
        gone = late_tokens(e, cut / rate)
        tries: list[tuple[str, np.ndarray, list[int] | None, np.ndarray | None]] = [
            ("silence", 1e-3 * rng.standard_normal(len(audio)), None, None),
            ("noise", NOISE * rng.standard_normal(len(audio)), None, None),
            ("truncated", audio[:cut], e.ids, gone),
        ]
        if plain_word(other.text) != plain_word(e.text):
            tries.append(("other text", audio, other.ids, None))
        for kind, sound, ids, unsupported in tries:
            try:
                made = plain.explain(model, processor, sound.astype(np.float32), rate, ids=ids)
            except UnbraidError:  # the model said nothing at all: no text that could mislead
                continue
            out.append(warned(made, number, kind, unsupported))
        on_step()
    return [w for w in out if w is not None]


def late_tokens(e: Explanation, after: float) -> np.ndarray:
    """[I] text tokens of words that begin after a time, by the model's own alignment of the whole audio."""
    times = e.word_times("alignment_heads" if e.chosen is not None else "attention")
    out = np.zeros(len(e.rows), bool)
    for group, word in zip(e.words, times, strict=True):
        out[group.start : group.stop] = word.start >= after
    return out


def wer(clips: Sequence[Clip], explanations: Sequence[Explanation]) -> list[float | None]:
    """Word error rate of each hypothesis against the known text, or None where there is none."""
    return [
        word_errors(spoken_words(c.text), spoken_words(e.text)) if c.text else None
        for c, e in zip(clips, explanations, strict=True)
    ]


def contexts(
    system: SpeechCrossAttention, model: Any, processor: Any, clip: Clip, fitted: Explanation, store: Pieces,
    on_runs: Callable[[int], None] | None,
) -> dict[str, Any]:  # fmt: skip
    """One utterance heard with all thirty seconds: how far the fitted encoder is the same model."""
    full = SpeechCrossAttention(**{**system.get_params(), "context": "full"})
    e = full.explain(model, processor, clip, ids=fitted.ids, store=store, on_runs=on_runs)
    n = min(e.valid, fitted.valid)

    def same(a: np.ndarray, b: np.ndarray) -> float:
        return correlation(a[:, :n], b[:, :n])

    out: dict[str, Any] = {
        "clip": clip.name,
        "attention, fitted against full": same(aggregate(e.heads()), aggregate(fitted.heads())),
        "mean log-probability, full": float(e.log_probs[e.rows].mean()),
        "mean log-probability, fitted": float(fitted.log_probs[fitted.rows].mean()),
        "sink mass and padding, full": e.sink_mass(),
        "runs of the input, full": float(e.cost["input"]["runs"]),
        "runs of the input, fitted": float(fitted.cost["input"]["runs"]),
    }
    for which in ("x", "h"):
        s = e.saliency(which, system.pool)
        out[f"saliency {which}, fitted against full"] = same(s, fitted.saliency(which, system.pool))
        out[f"attention and {which}, full"] = correlation(aggregate(e.heads()), s)
        out[f"attention and {which}, full, uncropped"] = correlation(
            aggregate(e.heads(crop=False)), e.saliency(which, system.pool, crop=False)
        )
        out[f"attention and {which}, fitted"] = correlation(
            aggregate(fitted.heads()), fitted.saliency(which, system.pool)
        )
    return out
