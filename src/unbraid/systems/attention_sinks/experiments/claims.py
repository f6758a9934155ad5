"""The claims put to the test: criteria fixed beforehand, comparators from the same run, intervals over texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from unbraid.core.claim import Claim
from unbraid.core.result import Result
from unbraid.systems.attention_sinks import CARD
from unbraid.systems.attention_sinks.experiments.streams import after_eviction, bootstrap, label

EXPLODES = 2.0  # a plain window explodes where its loss exceeds the full cache's by ln of this factor ...
STAYS = 1.25  # ... and the sinks bring it back where theirs exceeds it by less than ln of this one


@dataclass
class Findings:
    """What a study measured, as plain data.

    Attributes:
        name: of the model.
        detection: model -> `plain` report.
        streams: condition -> stream -> losses.
        cache: tokens kept by the stream conditions.
        methods: what `compare` returned, or None.
        probes: what `probe` returned, or None.
        trained: result of a study of trained variants, or None.
        positions: as many as the model was trained on, or None where its configuration does not say.
        read_back: pieces of an earlier run.
    """

    name: str
    detection: dict[str, dict[str, Any]]
    streams: dict[str, list[list[float]]]
    cache: int
    sinks: tuple[int, ...]
    methods: dict[str, Any] | None = None
    probes: dict[str, Any] | None = None
    trained: Result | None = None
    read_back: int = 0
    positions: int | None = None


Found = dict[str, Any]
UNTESTED: Found = {"measured": None, "comparator": None, "holds": None}


def measure(f: Findings) -> list[Claim]:
    """One `Claim` per claim of the card; untested where this run left it out."""
    tests = {
        "window-explodes": window_explodes, "first-token": first_token, "no-op": no_op, "bias": bias,
        "circuit": circuit, "key-geometry": key_geometry, "overmixing": overmixing,
        "protected-quantisation": protected,
    }  # fmt: skip
    out = []
    for spec in CARD.claims:
        found = tests[spec.name](f)
        out.append(
            Claim(
                spec.name, spec.statement, f"arXiv {CARD.arxiv}: {spec.source}", spec.paper or None,
                found["measured"], found["comparator"], found["holds"], found.get("note", ""),
                found.get("interval"), found.get("n"),
            )
        )  # fmt: skip
    return out


def window_explodes(f: Findings) -> Found:
    """Perplexity after the first eviction: plain window, most sinks, full cache, on the same streams."""
    plain, most = label(0, f.cache), label(max(f.sinks, default=0), f.cache)
    full = f.streams.get(label(None, f.cache), [])
    if plain not in f.streams or most == plain or most not in f.streams or not full:
        return {**UNTESTED, "note": "Needs streams without sinks, with sinks, and with the full cache."}
    n = len(full)
    late = {name: np.array([after_eviction(r, f.cache) for r in f.streams[name]]) for name in f.streams}
    base, bad, good = late[label(None, f.cache)], late[plain][:n], late[most][:n]
    more, less = np.exp(bad - base), np.exp(good - base)
    far = len(f.streams[plain][0])
    within = ""
    if f.positions is not None and f.cache < f.positions < far:
        near = {k: np.exp(np.mean([after_eviction(r[: f.positions], f.cache) for r in f.streams[k][:n]])) for k in late}
        within = (
            f" Up to token {f.positions}, beyond which the model was not trained and the full cache fails by itself: "
        )
        within += ", ".join(f"{name} {value:.4g}" for name, value in near.items()) + "."
    return {
        "measured": f"perplexity {np.exp(late[plain].mean()):.4g} without sinks, {np.exp(late[most].mean()):.4g} with "
        f"{max(f.sinks)}",
        "comparator": f"full cache: {np.exp(base.mean()):.4g}", "n": len(late[plain]),
        "holds": bool((more > EXPLODES).all() and (less < STAYS).all()),
        "note": f"Tokens {f.cache} to {far} of each stream; times the full cache's perplexity on the same streams: "
        f"{', '.join(f'{x:.3g}' for x in more)} without sinks, {', '.join(f'{x:.3g}' for x in less)} with; holds above "
        f"{EXPLODES:g} and below {STAYS:g} on every stream.{within}",
    }  # fmt: skip


def first_token(f: Findings) -> Found:
    """Share of all attention, against what a causal head that looks at all keys alike would give."""
    data = f.detection[f.name]
    share, length = data["first share"], data["length"]
    uniform = float(np.mean(1 / np.arange(1, length + 1)))
    rates = data["rates"]["0.3"]
    low, high = bootstrap(rates) or (None, None)
    interval = "" if low is None else f" (95 % interval over texts {low:.3f} to {high:.3f})"
    return {
        "measured": round(share, 4), "comparator": f"equal attention to all keys in sight: {uniform:.4f}",
        "n": data["texts"], "holds": share > 2 * uniform,
        "note": f"{data['texts']} texts of {length} tokens; holds above twice equal attention. The sink rate at 0.3 is "
        f"{np.mean(rates):.3f}{interval}.",
    }  # fmt: skip


def loss_more(rows: list[dict[str, Any]], which: int) -> np.ndarray:
    """Loss of a condition minus the untouched model's, per text."""
    return np.array(rows[which]["losses"]) - np.array(rows[0]["losses"])


def no_op(f: Findings) -> Found:
    """What the write costs, against what the attention costs."""
    if f.probes is None:
        return {**UNTESTED, "note": "Probes were left out."}
    rows = f.probes["no-op"]
    write, control, attention = (loss_more(rows, i) for i in (1, 2, 3))
    gap = attention - write
    return {
        "measured": f"loss + {write.mean():.3f} without the write, + {attention.mean():.3f} without the attention",
        "comparator": f"as much less of the others' write: + {control.mean():.3f}", "n": len(write),
        "interval": None,
        "holds": bool(write.mean() < control.mean() and (bootstrap(gap) or (0,))[0] > 0),
        "note": f"Nats per token over {len(write)} texts; attention minus write {gap.mean():.3f}, 95 % interval "
        f"{span(bootstrap(gap))}; holds where that is above 0 and the write costs less than the control. The first "
        "four queries of a text are left as they are: hidden from them too, the first token is merely replaced by the "
        f"second, and that costs {loss_more(rows, 4).mean():.3f}.",
    }  # fmt: skip


def bias(f: Findings) -> Found:
    """How much of the loss the mean write makes good."""
    if f.probes is None:
        return {**UNTESTED, "note": "Probes were left out."}
    rows = f.probes["bias"]
    without, mean, wrong = (loss_more(rows, i) for i in (1, 2, 3))
    gain = without - mean
    recovered = 1 - mean.mean() / without.mean() if without.mean() else float("nan")
    return {
        "measured": f"loss + {mean.mean():.3f} with the mean write, + {without.mean():.3f} with none",
        "comparator": f"minus the mean write: + {wrong.mean():.3f}", "n": len(gain),
        "holds": bool((bootstrap(gain) or (0,))[0] > 0 and mean.mean() < wrong.mean() and recovered > 0.5),
        "note": f"{recovered:.0%} of the lost nats come back; gain per text {gain.mean():.3f}, 95 % interval "
        f"{span(bootstrap(gain))}; holds where that is above 0, over half comes back, and the wrong sign is worse.",
    }  # fmt: skip


def circuit(f: Findings) -> Found:
    """Sink rate with the massive channel held at zero, against other channels."""
    found = (f.probes or {}).get("circuit")
    if found is None:
        return {**UNTESTED, "note": (f.probes or {}).get("why", {}).get("circuit", "Probes were left out.")}
    rows = found["zeroed"]
    before, after = rows[0]["sink rate"], rows[1]["sink rate"]
    others = [r["sink rate"] for r in rows[2:]]
    return {
        "measured": round(after, 4), "n": len(others),
        "comparator": f"{before:.4f} as it is; {min(others):.4f} to {max(others):.4f} with other channels at zero",
        "holds": bool(after < 0.5 * before and after < min(others)),
        "note": f"Channel {found['channel']} at token {found['token']} reaches {found['value']:.4g}; block "
        f"{found['block']} writes it first; in the layers behind it the sink rate falls from "
        f"{rows[0]['sink rate behind the block']:.3f} to {rows[1]['sink rate behind the block']:.3f}. Holds where the "
        "rate of all layers falls below half, and below every control.",
    }  # fmt: skip


def key_geometry(f: Findings) -> Found:
    """Rank correlation of key distinctiveness and attention."""
    ranks = f.detection[f.name]["keys per group"]
    if not ranks:
        return {**UNTESTED, "note": "No rank correlation was measured."}
    low, high = np.quantile(ranks, [0.25, 0.75])
    return {
        "measured": round(float(np.mean(ranks)), 4), "comparator": "no relation: 0", "n": len(ranks),
        "holds": bool(np.mean(ranks) >= 0.9),
        "note": f"Mean over heads of Spearman's correlation over keys, averaged over texts; quartiles of heads "
        f"{low:.2f} and {high:.2f}. Holds at 0.9 or more, near the paper's figure.",
    }  # fmt: skip


def overmixing(f: Findings) -> Found:
    """Spread of a change at the last block, without BOS minus with."""
    rows = (f.probes or {}).get("mixing")
    if not rows:
        return {**UNTESTED, "note": (f.probes or {}).get("why", {}).get("mixing", "Probes were left out.")}
    last = rows[-1]
    gap = np.array(last["texts without BOS"]) - np.array(last["texts with BOS"])
    interval = bootstrap(gap)
    return {
        "measured": round(last["without BOS"], 4), "comparator": f"with BOS: {last['with BOS']:.4f}", "n": len(gap),
        "holds": bool(interval is not None and interval[0] > 0),
        "note": f"Relative change of later tokens after the last block when the second token of a text is replaced; "
        f"difference {gap.mean():.4f}, 95 % interval {span(interval)} over texts; holds above 0.",
    }  # fmt: skip


def protected(f: Findings) -> Found:
    """Loss of quantised caches with and without exact sinks, at the fewest bits."""
    if f.methods is None:
        return {**UNTESTED, "note": "The comparison was left out."}
    rows = f.methods["rows"]
    if not all(f"{bits} bits{x}" in rows for bits in (4, 2) for x in ("", ", 4 sinks exact")):
        return {**UNTESTED, "note": "The quantised caches were left out."}
    parts, gaps = [], {}
    for bits in (4, 2):
        base = np.array([r["late"] for r in rows["full cache"]])
        plain, exact = (np.array([r["late"] for r in rows[f"{bits} bits{x}"]]) for x in ("", ", 4 sinks exact"))
        gaps[bits] = plain - exact
        parts.append(f"{bits} bits: + {(plain - base).mean():.4f} without, + {(exact - base).mean():.4f} with")
    intervals = {bits: bootstrap(gap) for bits, gap in gaps.items()}
    return {
        "measured": "; ".join(parts), "comparator": "loss of the full cache in full precision: + 0",
        "n": len(gaps[2]), "holds": all(i is not None and i[0] > 0 for i in intervals.values()),
        "note": "Nats per token; gain by exact sinks " + ", ".join(
            f"{gaps[b].mean():.4f} at {b} bits (95 % interval {span(intervals[b])})" for b in gaps
        ) + "; holds where both are above 0.",
    }  # fmt: skip


def span(interval: tuple[float, float] | None) -> str:
    """An interval in words."""
    return "not known" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"
