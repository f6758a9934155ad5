"""The card's claims put to the test, each over seeds with a comparator of the same run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from unbraid.core.claim import Claim
from unbraid.metrics.intervals import over
from unbraid.systems.random_feature_attention import CARD
from unbraid.systems.random_feature_attention.complexity import slope
from unbraid.systems.random_feature_attention.study import Findings

# bounds of the method sheet's checks, but MILD, which was set before anything was measured
KERNEL, EXACT, LEARNED, NOTHING, RATIO, LINEAR, MILD = 0.03, 1e-6, 0.35, 0.8, 0.7, 1.0, 0.5
ROOT = (-0.65, -0.35)  # exponents that count as one over a root
Rows = Sequence[dict[str, Any]]


def measure(f: Findings) -> list[Claim]:
    """All claims of the card."""
    made: dict[str, Claim] = {}
    for claim in (*_exact(f), *_curves(f), *_keys(f), *_mixing(f)):
        made[claim.name] = claim
    return [made.get(spec.name) or untested(spec.name, "its part of the study was not run") for spec in CARD.claims]


def untested(name: str, note: str) -> Claim:
    """A claim that this run says nothing about."""
    spec = next(s for s in CARD.claims if s.name == name)
    return Claim(spec.name, spec.statement, spec.source, spec.paper or None, None, None, None, note)


def claim(
    name: str, values: Sequence[float], comparator: Any, holds: Callable[[float, float], bool], note: str
) -> Claim:
    """A claim over seeds: it holds if its bound holds at both ends of the interval."""
    mean, bounds = over(values)
    if not len(values) or not np.isfinite(mean):
        return untested(name, note + "; nothing was measured")
    verdict = None if bounds is None else bool(holds(*bounds))
    more = "" if bounds is not None else "; one seed gives no interval"
    made = replace(untested(name, note + more), measured=mean, comparator=comparator, holds=verdict)
    return replace(made, interval=bounds, n=len(values))


def of(rows: Rows, **where: Any) -> dict[int, float]:
    """Seed -> error of the rows that match."""
    return {r["seed"]: r["error"] for r in rows if all(r[k] == v for k, v in where.items())}


def ratios(rows: Rows, above: str, below: str, **where: Any) -> list[float]:
    """Logarithms of the ratio of two models' errors, one for each seed."""
    a, b = of(rows, model=above, **where), of(rows, model=below, **where)
    return [float(np.log(a[s] / b[s])) for s in sorted(set(a) & set(b))]


def _geometric(name: str, logs: Sequence[float], holds: Callable[[float, float], bool], at: float, note: str) -> Claim:
    """A claim on a ratio, whose mean and interval are those of its logarithm."""
    made = claim(name, logs, at, lambda low, high: holds(float(np.exp(low)), float(np.exp(high))), note)
    if made.measured is None:
        return made
    bounds = None if made.interval is None else tuple(float(np.exp(b)) for b in made.interval)
    return replace(made, measured=float(np.exp(made.measured)), interval=bounds)


def _exact(f: Findings) -> list[Claim]:
    if not f.kernel:
        return []
    most = max(r["heads"] for r in f.kernel)
    seeds = sorted({r["seed"] for r in f.kernel})
    worst = [max(r["error"] for r in f.kernel if r["heads"] == most and r["seed"] == s) for s in seeds]
    slopes = []
    for s in seeds:
        own = [[r for r in f.kernel if r["seed"] == s and r["model"] == m] for m in ("RFA", "BRFA")]
        slopes.append(float(np.mean([slope([r["heads"] for r in o], [r["error"] for r in o]) for o in own])))
    exponent = float(np.mean(slopes))
    root = ROOT[0] <= exponent <= ROOT[1]
    note = (
        f"relative error at M = {most:,}, the worse of RFA and BRFA, each over 8 draws of weights; exponent of M "
        f"{exponent:.2f}, must be near -0.5"
    )
    permuted = [r["permuted"] for r in f.symmetry]
    swapped = min(r["swapped"] for r in f.symmetry)
    held = max(permuted) <= EXACT and swapped > 100 * EXACT
    symmetry = replace(
        untested("symmetry", "greatest change over deviation when keys are permuted, must be below 1e-6; comparator: "
                 "least change when the query and a key change places"),
        measured=max(permuted), comparator=swapped, holds=held, n=len(seeds),
    )  # fmt: skip
    return [claim("kernel", worst, KERNEL, lambda low, high: high <= KERNEL and root, note), symmetry]


def _curves(f: Findings) -> list[Claim]:
    if not f.rows:
        return []
    heads = min((r["heads"] for r in f.rows if r["heads"]), default=None)
    rows = [r for r in f.rows if r["heads"] in (heads, None)]
    found = []
    asked = {
        "rfa_over_rfmlp": ("power:2", 800),
        "brfa_over_rfa": ("correlated:1:1", 2000),
        "bias_costs": ("power:1", 200),
    }
    found += [untested(name, f"needs {t} at n = {n}, which was not run") for name, (t, n) in asked.items()]
    where = {"target": "power:2", "n": 800}
    rfa, mlp = of(rows, model="RFA", **where), of(rows, model="RFMLP", **where)
    if rfa and mlp:
        mean, bounds = over(list(mlp.values()))
        least = bounds[0] if bounds else mean
        note = f"relative error at n = 800, at most {LEARNED}; comparator: RFMLP's, must lie above {NOTHING}"
        found.append(
            claim(
                "rfa_over_rfmlp", list(rfa.values()), mean, lambda _, high: high <= LEARNED and least >= NOTHING, note
            )
        )
    logs = ratios(rows, "BRFA", "RFA", target="correlated:1:1", n=2000)
    if logs:
        note = "error of BRFA over that of RFA on <x0,xi><b,xi> at n = 2,000, geometric mean; must lie below 0.7"
        found.append(_geometric("brfa_over_rfa", logs, lambda _, high: high <= RATIO, 1.0, note))
    logs = ratios(rows, "BRFA", "RFA", target="power:1", n=200)
    if logs:
        note = "error of BRFA over that of RFA on <b,xi> at n = 200, geometric mean; must lie above 1"
        found.append(_geometric("bias_costs", logs, lambda low, _: low > 1, 1.0, note))
    return found


def exponents(needed: Rows, model: str) -> list[float]:
    """Slope of log samples over log keys, for each seed in which every number of keys came to an end."""
    found = []
    for s in sorted({r["seed"] for r in needed}):
        own = sorted((r for r in needed if r["seed"] == s and r["model"] == model), key=lambda r: r["keys"])
        ended = [r for r in own if r["samples"] is not None and not r["at most"]]
        if len(ended) == len(own) and len(own) > 1:
            found.append(slope([r["keys"] for r in own], [r["samples"] for r in own]))
    return found


def _keys(f: Findings) -> list[Claim]:
    if not f.needed:
        return []
    rfa, mlp = exponents(f.needed, "RFA"), exponents(f.needed, "RFMLP kernel")
    seeds = len({r["seed"] for r in f.needed})
    d = f.needed[0]["d"]
    counts = ", ".join(map(str, sorted({r["keys"] for r in f.needed})))
    about = f"exponent of N in the samples for half the variance, N = {counts}, d = {d}"
    if min(len(rfa), len(mlp)) < seeds:
        about += f"; {len(rfa)} and {len(mlp)} of {seeds} seeds (RFA, RFMLP) came to an end for every N"
    other = float(np.mean(mlp)) if mlp else None
    made = [claim("keys_rfmlp", mlp, LINEAR, lambda low, _: low >= LINEAR, f"{about}; must lie above 1")]
    if other is None:
        return [*made, untested("keys_rfa", f"{about}; RFMLP came to no end")]
    note = f"{about}; must lie below {MILD} (set beforehand) and below RFMLP's, the comparator"
    return [*made, claim("keys_rfa", rfa, other, lambda _, high: high < min(MILD, other), note)]


def _mixing(f: Findings) -> list[Claim]:
    if not f.mixing:
        return []
    names = sorted({r["target"] for r in f.mixing})
    gammas = sorted({float(name.split(":")[1]) for name in names})
    powers = sorted({name.split(":")[2] for name in names})
    seeds = sorted({r["seed"] for r in f.mixing})
    rises = []
    for s in seeds:
        own = [r for r in f.mixing if r["seed"] == s]
        each = [
            np.polyfit(gammas, [ratios(own, "BRFA", "RFA", target=f"mixed:{g:g}:{p}")[0] for g in gammas], 1)[0]
            for p in powers
        ]
        rises.append(float(np.mean(each)))
    n = f.mixing[0]["n"]
    note = f"rise of log(BRFA / RFA) from gamma 0 to 1, powers {' and '.join(powers)}, n = {n}; must lie above 0"
    made = [claim("mixing", rises, 0.0, lambda low, _: low > 0, note)]
    where = {"target": f"mixed:{gammas[-1]:g}:{powers[-1]}"}
    logs = ratios(f.mixing, "data-biased", "RFA", **where)
    biased = float(np.exp(np.mean(ratios(f.mixing, "BRFA", "RFA", **where))))
    note = (
        f"error with an estimated bias over that without, <x0,S xi>^{powers[-1]} with a random S, n = {n}, geometric "
        f"mean; must lie below 1; the identity as bias gives {biased:.2f}"
    )
    return [*made, _geometric("data_bias", logs, lambda _, high: high < 1, 1.0, note)]
