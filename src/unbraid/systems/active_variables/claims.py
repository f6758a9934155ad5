"""The paper's claims with what came out here, the comparator of the same run, and an interval over seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from unbraid.core.claim import Claim
from unbraid.systems.active_variables import CARD
from unbraid.systems.active_variables.labels import KL_FLOOR
from unbraid.systems.active_variables.study import Findings

SPEC = {c.name: c for c in CARD.claims}
Row = dict[str, Any]
SHARE = 0.1  # "as correlated as": a gap below this share of the full one
CLEAR = 0.5  # nats of an informative latent; and the correlation that counts as strong
NONE = 0.05  # correlation that counts as none; accuracy that counts as unchanged


def measure(f: Findings) -> list[Claim]:
    """All claims of the card, in its order; what was not measured is not tested."""
    rows = [m.row for m in f.models]
    paper = [r for r in rows if r["objective"] != "dip_i"] or rows
    return [
        agree("active_agree", paper, "TC gap of active"),
        differ(paper),
        agree("passive_explain", paper, "TC gap of informative"),
        grows(paper),
        downstream(f),
        apart(rows),
        identity([*rows, *(m.row for m in f.checks)]),
        matches(paper),
        discs(f),
    ]


def make(name: str, **values: Any) -> Claim:
    """A claim of the card."""
    spec = SPEC[name]
    empty = {"measured": None, "comparator": None, "holds": None}
    return Claim(name, spec.statement, spec.source, spec.paper, **{**empty, **values})


def over_seeds(rows: Iterable[Row], value: Callable[[Row], float | None]) -> tuple[float, float, float, int]:
    """Mean over models, a 95 % t-interval over the seeds' means, and how many seeds.

    Models of one seed are not independent, so a seed counts once. Rows without a finite value are left
    out. With one seed there is no interval: both ends are NaN.
    """
    per: dict[int, list[float]] = {}
    for row in rows:
        found = value(row)
        if found is not None and np.isfinite(found):
            per.setdefault(row["seed"], []).append(found)
    means = np.array([np.mean(v) for v in per.values()])
    if not len(means):
        return float("nan"), float("nan"), float("nan"), 0
    middle = float(means.mean())
    if len(means) < 2:
        return middle, float("nan"), float("nan"), 1
    half = float(stats.t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means)))
    return middle, middle - half, middle + half, len(means)


def agree(name: str, rows: Sequence[Row], column: str) -> Claim:
    """The gap between mean and sampled codes of some latents, against that of all latents of the same models."""
    used = [r for r in rows if r[column] is not None]
    middle, low, high, seeds = over_seeds(used, lambda r: r[column])
    full, *_ = over_seeds(used, lambda r: r["TC gap"])
    if not seeds:
        return make(name, note="no model has two such latents")
    return make(
        name, measured=middle, interval=None if seeds < 2 else (low, high), comparator=full, n=seeds,
        holds=None if seeds < 2 else high < SHARE * full,
        note=f"Total correlation of means minus that of samples, nats, {len(used)} models with at least two such "
        f"latents; comparator: the same with all latents. Holds if the interval ends below a tenth of it. n: seeds.",
    )  # fmt: skip


def differ(rows: Sequence[Row]) -> Claim:
    """The strongest correlation of a passive latent with any other, in means against samples."""
    used = [r for r in rows if r["passive |corr| mean"] is not None]
    middle, low, high, seeds = over_seeds(used, lambda r: r["passive |corr| mean"])
    other, _, top, _ = over_seeds(used, lambda r: r["passive |corr| sampled"])
    if not seeds:
        return make("passive_differ", note="no model has a passive latent")
    share = np.mean([r["passive |corr| mean"] >= CLEAR and r["passive |corr| sampled"] <= NONE for r in used])
    return make(
        "passive_differ", measured=middle, interval=None if seeds < 2 else (low, high), comparator=other, n=seeds,
        holds=None if seeds < 2 else low >= CLEAR and top <= NONE,
        note=f"Largest |correlation| of a passive latent with any other, mean codes; comparator: sampled codes, closed "
        f"form. {len(used)} models; {share:.0%} of them have at least {CLEAR} and at most {NONE}. Holds if the "
        f"interval lies above {CLEAR} and that of samples below {NONE}.",
    )  # fmt: skip


def grows(rows: Sequence[Row]) -> Claim:
    """Rank correlation of strength and gap, and of strength and the number of passive latents."""
    if max(r["level"] for r in rows) < 1:
        return make("gap_grows", note="needs --levels 2 or more")
    found, said = [], []
    for objective in dict.fromkeys(r["objective"] for r in rows):
        own = [r for r in rows if r["objective"] == objective and np.isfinite(r["TC gap"])]
        rho = [_spearman(own, column) for column in ("TC gap", "passive")]
        found.append(rho[0])
        ends = [np.mean([r["TC gap"] for r in own if r["level"] == e]) for e in (0, max(r["level"] for r in own))]
        said.append(
            f"{objective} {rho[0]:+.2f} (gap {ends[0]:.2f} to {ends[1]:.2f} nats; passive latents {rho[1]:+.2f})"
        )
    seeds = sorted({r["seed"] for r in rows})

    def per_seed(seed: int) -> float:
        objectives = dict.fromkeys(r["objective"] for r in rows)
        own = [[r for r in rows if r["objective"] == o and r["seed"] == seed] for o in objectives]
        return float(np.nanmean([_spearman(o, "TC gap") for o in own]))

    middle, low, high, n = over_seeds([{"seed": s} for s in seeds], lambda r: per_seed(r["seed"]))
    return make(
        "gap_grows", measured=middle, interval=None if n < 2 else (low, high), comparator=0.0, n=n or None,
        holds=None if n < 2 else bool(low > 0 and min(found) > 0),
        note=f"Spearman's rank correlation of strength and gap, mean over objectives: {'; '.join(said)}. Comparator: "
        "no relation. Holds if the interval lies above 0 and each objective's is positive. n: seeds.",
    )  # fmt: skip


def _spearman(rows: Sequence[Row], column: str) -> float:
    x, y = [r["level"] for r in rows], [r[column] for r in rows]
    if len(set(x)) < 2 or len(set(y)) < 2:
        return 0.0
    return float(stats.spearmanr(x, y).statistic)


def downstream(f: Findings) -> Claim:
    """What removing passive latents costs a learner."""
    rows = [r for r in f.downstream if r["objective"] != "dip_i"] or f.downstream
    if not rows:
        return make("downstream", note="not measured: --downstream none")
    learners = list(dict.fromkeys(r["learner"] for r in rows))

    def lost(learner: str, codes: str) -> list[Row]:
        pick = {
            (r["objective"], r["strength"], r["seed"], r["codes"]): r["mean"] for r in rows if r["learner"] == learner
        }
        return [
            {"seed": k[2], "loss": value - pick[*k[:3], codes]}
            for k, value in pick.items()
            if k[3] == "all means" and (*k[:3], codes) in pick
        ]

    cuts = {learner: over_seeds(lost(learner, "active+mixed means"), lambda r: r["loss"]) for learner in learners}
    said = "; ".join(f"{k} {m:+.3f} ({low:+.3f} to {high:+.3f})" for k, (m, low, high, _) in cuts.items())
    level = {c: np.mean([r["mean"] for r in rows if r["codes"] == c]) for c in dict.fromkeys(r["codes"] for r in rows)}
    middle, low, high, seeds = over_seeds(
        [r for learner in learners for r in lost(learner, "active+mixed means")], lambda r: r["loss"]
    )
    return make(
        "downstream", measured=middle, interval=None if seeds < 2 else (low, high),
        comparator=float(level["all means"]), n=seeds or None,
        holds=None if seeds < 2 else all(max(abs(lo), abs(hi)) <= NONE for _, lo, hi, _ in cuts.values()),
        note=f"Accuracy lost, mean over factors, by leaving passive means out: {said}. Comparator: accuracy with all "
        f"means. Levels: {', '.join(f'{k} {v:.3f}' for k, v in level.items())}. Holds if each learner's interval lies "
        f"within {NONE} of 0.",
    )  # fmt: skip


def apart(rows: Sequence[Row]) -> Claim:
    """DIP-VAE I against the others."""
    dip, rest = ([r for r in rows if (r["objective"] == "dip_i") == want] for want in (True, False))
    if not dip or not rest:
        return make("dip_i_apart", note="needs dip_i and another objective")
    middle, low, high, seeds = over_seeds(dip, lambda r: r["TC gap"])
    other, bottom, _, _ = over_seeds(rest, lambda r: r["TC gap"])
    return make(
        "dip_i_apart", measured=middle, interval=None if seeds < 2 else (low, high), comparator=other, n=seeds,
        holds=None if seeds < 2 else high < bottom,
        note=f"Gap of total correlation, nats, all latents; comparator: the other objectives. Passive latents of "
        f"DIP-VAE I: {np.mean([r['passive'] for r in dip]):.1f} on average. Holds if the intervals do not meet.",
    )  # fmt: skip


def identity(rows: Sequence[Row]) -> Claim:
    """Share of pairs whose sampled correlation lies where the identity says."""
    pairs = sum(r["identity: pairs"] for r in rows)
    inside = sum(r["identity: within 3/sqrt(N)"] * r["identity: pairs"] for r in rows)
    share, expected = inside / pairs, float(stats.norm.cdf(3) - stats.norm.cdf(-3))
    allowed = float(stats.binom.ppf(0.01, pairs, expected)) / pairs
    worst = max(r["identity: largest"] / r["identity: 3/sqrt(N)"] for r in rows)
    return make(
        "identity", measured=share, comparator=expected, holds=bool(share >= allowed), n=len(rows),
        interval=tuple(stats.binomtest(round(inside), pairs).proportion_ci(method="wilson")),
        note=f"Share of {pairs} pairs of {len(rows)} models whose correlation in one draw of samples lies within "
        f"3/sqrt(N) of the closed form; comparator: what pure noise leaves there. The largest difference is "
        f"{worst:.2f} of that bound. Holds if no more pairs lie outside than noise explains (1 % level). n: models.",
    )  # fmt: skip


def matches(rows: Sequence[Row]) -> Claim:
    """Whether labels and divergences tell the same latents."""

    def fits(row: Row) -> float:
        high, low = row["largest KL of a passive"], row["smallest KL of the others"]
        return float((high is None or high < KL_FLOOR) and (low is None or low > CLEAR))

    middle, low, high, seeds = over_seeds(rows, fits)
    top = [r["largest KL of a passive"] for r in rows if r["largest KL of a passive"] is not None]
    least = [r["smallest KL of the others"] for r in rows if r["smallest KL of the others"] is not None]
    return make(
        "labels_match_kl", measured=middle, interval=None if seeds < 2 else (max(0.0, low), min(1.0, high)), n=seeds,
        comparator=1.0, holds=bool(middle == 1),
        note=f"Share of {len(rows)} models in which every passive latent has less than {KL_FLOOR} nats and every other "
        f"more than {CLEAR}. Largest of a passive one: {max(top, default=float('nan')):.3g}, smallest of another: "
        f"{min(least, default=float('nan')):.3g} nats. Comparator and bar: all models.",
    )  # fmt: skip


def discs(f: Findings) -> Claim:
    """The five checks of the method's sheet on discs."""
    rows = check_rows(f)
    if not rows:
        return make("discs_checks", note="not measured: --checks 0")
    names = [k for k in rows[0] if k.startswith("(")]
    passed = [bool(r[k]) for r in rows for k in names]
    failed = [f"{k} at beta {r['beta']:g}, seed {r['seed']}" for r in rows for k in names if not r[k]]
    au = np.mean([r["kept by Var mu > 0.01"] == r["kept"] for r in rows])
    return make(
        "discs_checks", measured=float(np.mean(passed)), comparator=1.0, holds=all(passed), n=len(rows),
        note=f"Share of checks that hold, {len(names)} on each of {len(rows)} models. "
        + (f"Failed: {'; '.join(failed)}. " if failed else "")
        + f"The rule Var(mu) > 0.01 keeps as many latents in {au:.0%} of the models. n: models.",
    )  # fmt: skip


def check_rows(f: Findings) -> list[Row]:
    """The checks per model of the discs, with the numbers behind them."""
    out = []
    for model in f.checks:
        r, a = model.row, model.active
        own = [d for d in f.check_rows if (d["strength"], d["seed"]) == (model.spec.strength, model.spec.seed)]
        r2 = {d["codes"]: [d[name] for name in ("x", "y", "radius", "intensity")] for d in own}
        kept = r2.get("active+mixed means", [float("nan")] * 4)
        loss = max(x - y for x, y in zip(r2["all means"], kept, strict=True))
        passive = {k: r[f"passive |corr| {k}"] for k in ("mean", "sampled")}
        out.append(
            {
                "beta": model.spec.strength, "seed": model.spec.seed, "active": r["active"], "mixed": r["mixed"],
                "passive": r["passive"], "kept": len(a.indices()),
                "kept by Var mu > 0.01": sum(row["active unit (Var mu > 0.01)"] for row in a.rows_),
                "(a) labels match KL": _below(r["largest KL of a passive"], KL_FLOOR)
                and _below(CLEAR, r["smallest KL of the others"]),
                "(b) passive in means only": _below(CLEAR, passive["mean"]) and _below(passive["sampled"], NONE),
                "(c) passive explain the gap": r["TC gap"] >= 1 and _below(r["TC gap of informative"], 0.01),
                "(d) identity": r["identity: largest"] <= r["identity: 3/sqrt(N)"],
                "(e) R2 kept": bool(loss <= NONE),
                "TC gap": r["TC gap"], "TC gap of informative": r["TC gap of informative"],
                "largest R2 lost": loss, "passive |corr| mean": passive["mean"],
                "passive |corr| sampled": passive["sampled"],
                "largest KL of a passive": r["largest KL of a passive"],
                "smallest KL of the others": r["smallest KL of the others"],
            }
        )  # fmt: skip
    return out


def _below(low: float | None, high: float | None) -> bool:
    return low is not None and high is not None and low <= high
