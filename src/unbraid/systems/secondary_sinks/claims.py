"""The paper's claims put to the test: criteria fixed beforehand, comparators from the same run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from unbraid.core.claim import Claim
from unbraid.systems.secondary_sinks import CARD
from unbraid.systems.secondary_sinks.detect import Sink
from unbraid.systems.secondary_sinks.evidence import Evidence
from unbraid.systems.secondary_sinks.system import SecondarySinks

ALIGNED = 0.9
ON_ANY = ("mlp-origin", "norm-orders", "primary-dips", "levels")  # may be put to sinks of another phase
FEW = 8  # sinks below which rank correlations say nothing


@dataclass
class Found:
    """What claims are judged by."""

    name: str
    system: SecondarySinks | None
    evidence: Evidence
    seed: int


def measure_claims(f: Found) -> list[Claim]:
    """One `Claim` per claim of the card; untested where there was nothing to test it on."""
    tests = {
        "exist": exist, "mlp-origin": mlp_origin, "norm-orders": norm_orders, "primary-dips": primary_dips,
        "levels": levels, "earlier-phase": earlier_phase, "planted": planted,
    }  # fmt: skip
    out = []
    for spec in CARD.claims:
        found = tests[spec.name](f)
        if spec.name in ON_ANY and f.system is not None and not f.system.secondary_ and f.system.early_:
            found["note"] = f"on sinks of the earlier phase, as there are no secondary ones; {found['note']}"
        out.append(
            Claim(
                spec.name, spec.statement, f"arXiv {CARD.arxiv}: {spec.source}", spec.paper or None,
                found.get("measured"), found.get("comparator"), found.get("holds"), found.get("note", ""),
                found.get("interval"), found.get("n"),
            )
        )  # fmt: skip
    return out


def _none(note: str) -> dict[str, Any]:
    return {"note": note}


def exist(f: Found) -> dict[str, Any]:
    """Rate per 1,000 tokens of secondary sinks as the paper defines them."""
    return _none("no text has a primary sink") if f.system is None else _rate(f, f.system.secondary_, "secondary sinks")


def earlier_phase(f: Found) -> dict[str, Any]:
    """Rate per 1,000 tokens of sinks in other phases of the primary sink."""
    if f.system is None:
        return _none("no text has a primary sink")
    phases = sorted({tuple(x) for p in f.system.primary_ if p is not None for x in p["phases"]})
    if not phases:
        return _none("the first token stands out in its main window only")
    where = ", ".join(f"blocks {a} to {b - 1}" for a, b in phases[:3])
    return _rate(f, f.system.early_, f"sinks along the first token's direction in {where}")


def _rate(f: Found, sinks: list[Sink], what: str) -> dict[str, Any]:
    assert f.system is not None
    tokens = np.asarray(f.system.tokens_, float)
    each = np.bincount([s.text for s in sinks], minlength=len(tokens)).astype(float)
    pick = np.random.default_rng(f.seed).integers(0, len(tokens), (999, len(tokens)))
    rates = 1000 * each[pick].sum(1) / tokens[pick].sum(1)
    low, high = (float(x) for x in np.quantile(rates, [0.025, 0.975]))
    measured = float(1000 * each.sum() / tokens.sum())
    return {
        "measured": measured, "comparator": 0.0, "holds": low > 0, "interval": (low, high), "n": len(tokens),
        "note": f"{what}, per 1,000 tokens, in {len(tokens)} texts of {int(tokens.sum())} tokens; holds when the "
        "interval over texts lies above none at all",
    }  # fmt: skip


def mlp_origin(f: Found) -> dict[str, Any]:
    """Cosine of the MLP's output with the primary sink's stream; sinks against the same tokens elsewhere."""
    stages = f.evidence.stages
    if not stages or not sum(s.sinks.shape[1] for s in stages):
        return _none("no sink to look at")
    out = np.concatenate([s.sinks[-1] for s in stages])
    inside = np.concatenate([s.sinks[0] for s in stages])
    control = np.concatenate([s.controls[-1] for s in stages])
    measured = float(np.median(np.abs(out)))
    low, high = _median_interval(np.abs(out), f.seed)
    base = float(np.median(control)) if control.size else None
    return {
        "measured": measured,
        "comparator": "no other occurrence" if base is None else f"{base:.2f} for the same tokens elsewhere",
        "holds": measured > max(ALIGNED, 0.0 if base is None else base, float(np.median(np.abs(inside)))),
        "interval": (low, high),
        "n": len(out),
        "note": "median |cosine| of the MLP's output with the primary sink's residual stream; its input's with the "
        f"primary sink's input is {np.median(np.abs(inside)):.2f}; holds when the output is above {ALIGNED} and "
        "above the input",
    }  # fmt: skip


def norm_orders(f: Found) -> dict[str, Any]:
    """Spearman of the write's norm with score and lifetime."""
    sinks = [] if f.system is None else [s for s in f.system.main_ if np.isfinite(s.score)]
    if len(sinks) < FEW:
        return _none(f"{len(sinks)} sinks with a comparable score; {FEW} are needed")
    write, score, life = (
        np.array([v(s) for s in sinks]) for v in (lambda s: s.write, lambda s: s.score, lambda s: s.lifetime)
    )
    r, (low, high) = _spearman(write, score, f.seed)
    r2, (low2, _) = _spearman(write, life, f.seed)
    return {
        "measured": r, "comparator": 0.0, "interval": (low, high), "n": len(sinks),
        "holds": low > 0 and (low2 > 0 or len(set(life)) == 1),
        "note": f"Spearman of the write's norm with the score; with the lifetime {r2:.2f}"
        + (" (all lifetimes are equal)" if len(set(life)) == 1 else "") + "; holds when both lower bounds are above 0",
    }  # fmt: skip


def primary_dips(f: Found) -> dict[str, Any]:
    """Change of the primary sink's share when a secondary's write is removed, against controls."""
    gain = np.array([r["change"] for r in f.evidence.causal if r["kind"] == "sink"])
    base = np.array([r["change"] for r in f.evidence.causal if r["kind"] == "control"])
    if len(gain) < 3:
        return _none(f"{len(gain)} sinks could be removed; 3 are needed")
    low, high = _mean_interval(gain, f.seed)
    top = float(base.mean()) if base.size else 0.0
    return {
        "measured": float(gain.mean()), "comparator": top, "interval": (low, high), "n": len(gain),
        "holds": low > max(0.0, top),
        "note": "gain of the primary sink's mean share at the sink's blocks when the sink's write is removed; "
        "comparator: another occurrence of the same token, removed likewise",
    }  # fmt: skip


def levels(f: Found) -> dict[str, Any]:
    """Distinct levels among secondary sinks."""
    sinks = [] if f.system is None else f.system.main_
    if len(sinks) < FEW:
        return _none(f"{len(sinks)} sinks; {FEW} are needed to count levels")
    count = len({s.level for s in sinks})
    starts = len({s.l_start for s in sinks})
    return {
        "measured": count, "comparator": f"{len(sinks)} sinks", "holds": count <= len(sinks) / 4, "n": len(sinks),
        "note": f"distinct (l_start, lifetime), {starts} distinct first blocks; holds when there "
        "are at least four sinks per level",
    }  # fmt: skip


def planted(f: Found) -> dict[str, Any]:
    """Exact recovery on planted models."""
    rows = f.evidence.planted
    if not rows:
        return _none("left out")
    exact, total = sum(r["found exactly"] for r in rows), sum(r["planted"] for r in rows)
    wrong = sum(r["false"] for r in rows)
    layers, of = sum(r["blocks by attention alone"] for r in rows), sum(r["of"] for r in rows)
    ci = stats.binomtest(exact, total).proportion_ci(0.95, "wilson")
    return {
        "measured": exact / total, "comparator": f"attention alone: {layers} of {of} blocks", "n": len(rows),
        "holds": exact == total and wrong == 0, "interval": (float(ci.low), float(ci.high)),
        "note": f"share of planted sinks found with exactly their first block and lifetime, {wrong} false ones, over "
        f"{len(rows)} seeds; origin block named for {sum(r['origin named'] for r in rows)} of {total}",
    }  # fmt: skip


def _spearman(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[float, tuple[float, float]]:
    if len(set(x)) == 1 or len(set(y)) == 1:
        return float("nan"), (float("nan"), float("nan"))
    rng, draws = np.random.default_rng(seed), []
    for _ in range(999):
        i = rng.integers(0, len(x), len(x))
        if len(set(x[i])) > 1 and len(set(y[i])) > 1:
            draws.append(stats.spearmanr(x[i], y[i]).statistic)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(stats.spearmanr(x, y).statistic), (float(low), float(high))


def _mean_interval(x: np.ndarray, seed: int) -> tuple[float, float]:
    pick = np.random.default_rng(seed).integers(0, len(x), (999, len(x)))
    low, high = np.quantile(x[pick].mean(1), [0.025, 0.975])
    return float(low), float(high)


def _median_interval(x: np.ndarray, seed: int) -> tuple[float, float]:
    pick = np.random.default_rng(seed).integers(0, len(x), (999, len(x)))
    low, high = np.quantile(np.median(x[pick], axis=1), [0.025, 0.975])
    return float(low), float(high)
