"""The paper's statements against what was measured. A claim holds where the whole 95 % interval lies on its side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from unbraid.core.claim import Claim
from unbraid.metrics.intervals import over
from unbraid.systems.icl_linear_regression import CARD
from unbraid.systems.icl_linear_regression.patterns import report

if TYPE_CHECKING:
    from unbraid.systems.icl_linear_regression.study.study import Findings

Rows = list[dict[str, Any]]
LIMITS, PAPER_STEPS = (0.13, 3.5), 500_000
Judge = Callable[[float, float], bool]


def at_most(bound: float) -> Judge:
    """Whether the whole interval is at most `bound`."""
    return lambda low, high: high <= bound


def at_least(bound: float) -> Judge:
    """Whether the whole interval is at least `bound`; shares of 1 may miss it by rounding."""
    return lambda low, high: low >= bound - 1e-9


def pick(rows: Rows, field: str, **where: Any) -> np.ndarray:
    """A field of the rows that fit, in their order (by seed)."""
    return np.array([r[field] for r in rows if all(r[k] == v for k, v in where.items()) and r[field] is not None])


class Claims:
    """Gathers claims in the order of the card; what was not measured is said to be so."""

    def __init__(self) -> None:
        self._made: dict[str, Claim] = {}
        self._specs = {spec.name: spec for spec in CARD.claims}

    def add(self, name: str, values: Iterable[float], comparator: Any, judge: Judge | None, note: str) -> None:
        """A claim about values of several seeds."""
        spec, each = self._specs[name], [float(v) for v in values]
        mean, interval = over(each)
        holds = None if interval is None or judge is None else bool(judge(*interval))
        if interval is None and judge is not None:
            note += "; fewer than two values, so no interval"
        if comparator is None and holds is not None:
            holds, note = None, f"{note}; not tested: what it is compared with was not trained"
        self._made[name] = Claim(
            name, spec.statement, spec.source, spec.paper, mean, comparator, holds, note, interval, len(each) or None
        )

    def exact(self, name: str, measured: float, comparator: Any, holds: bool, note: str, n: int | None = None) -> None:
        """A claim about something that is no mean over seeds."""
        s = self._specs[name]
        self._made[name] = Claim(name, s.statement, s.source, s.paper, measured, comparator, holds, note, None, n)

    def all(self) -> list[Claim]:
        """All claims of the card."""
        return [
            self._made.get(s.name) or Claim(s.name, s.statement, s.source, s.paper, None, None, None, "not run")
            for s in CARD.claims
        ]


def make_claims(found: Findings, steps: int) -> list[Claim]:
    """All claims of the card."""
    claims = Claims()
    rows = found.rows
    if "heads" in rows:
        _pattern(claims, found)
        _one_head(claims, found)
        _limits(claims, rows["heads"], steps)
    if "lengths" in rows:
        _lengths(claims, rows)
    if "anisotropic" in rows:
        _anisotropic(claims, rows["anisotropic"])
    if "multitask" in rows:
        _multitask(claims, rows["multitask"])
    if "activations" in rows:
        _activations(claims, rows["activations"], rows.get("heads", []))
    if "approximation" in rows:
        _theory(claims, found)
    return claims.all()


def _pattern(claims: Claims, found: Findings) -> None:
    rows, trained = found.rows["heads"], found.trained["softmax"]
    if 2 not in trained.heads:
        return
    first = [report(trained.first(2, k), trained.task) for k in range(len(trained.seeds))]
    before = {n: float(np.mean([r.to_dict()[n] for r in first])) for n in ("diagonal_share", "label_share", "zero_sum",
                                                                           "homogeneity", "sign_match")}  # fmt: skip
    two = {name: pick(rows, name, heads=2) for name in rows[0]}
    if 1 in trained.heads:
        one = pick(rows, "loss", heads=1)
        claims.add("several heads", two["loss"] / one, f"one head {one.mean():.3f}, two {two['loss'].mean():.3f}",
                   at_most(0.70), "loss of two heads by that of one; at most 0.70")  # fmt: skip
    several = [h for h in trained.heads if h > 1]
    if len(several) > 1:
        each = np.array([pick(rows, "loss", heads=h) for h in several])
        gap = float((pick(rows, "loss", heads=1) / each.min(0)).mean() - 1) if 1 in trained.heads else None
        claims.add("same predictor", each.max(0) / each.min(0) - 1, gap, at_most(0.02),
                   f"largest over least loss of {several} heads, less 1; at most 0.02; comparator: one "
                   "head")  # fmt: skip
    for name, field, bound in (("diagonal KQ", "diagonal_share", 0.95), ("label OV", "label_share", 0.95)):
        claims.add(name, two[field], before[field], at_least(bound),
                   f"share of squared norm, two heads; at least {bound}; comparator: the same before "
                   "training")  # fmt: skip
    for name, field, bound in (("zero sum", "zero_sum", 0.05), ("equal size", "homogeneity", 0.10)):
        claims.add(name, two[field], before[field], at_most(bound),
                   f"two heads; at most {bound}; comparator: the same before training")  # fmt: skip
    more = [h for h in several if h > 2]
    for name, field, judge in (
        ("diagonal KQ", "diagonal_share", at_least(0.95)), ("equal size", "homogeneity", at_most(0.10)),
        ("manifold", "manifold", at_most(0.15)),
    ):  # fmt: skip
        each = np.array([pick(rows, field, heads=h) for h in more]) if more else np.zeros((0, 0))
        if each.size and each.ndim == 2:
            said = ", ".join(f"{h} heads {v.mean():.3f}" for h, v in zip(more, each, strict=True))
            worst = each.min(0) if name == "diagonal KQ" else each.max(0)
            claims.add(f"more heads: {name}", worst, float(two[field].mean()), judge,
                       f"the worst head count of each seed, the same bound; comparator: two heads; {said}")  # fmt: skip
    signs = np.array([pick(rows, "sign_match", heads=h) for h in trained.heads]).min(0)
    claims.add("signs", signs, before["sign_match"], at_least(1.0),
               f"share of heads, the worst of {list(trained.heads)} heads; comparator: two heads before "
               "training")  # fmt: skip
    naive = np.abs(two["mu_gamma"] * 2 * two["gamma"] - 1) / (two["mu_gamma"] * 2 * two["gamma"])
    claims.add("manifold", two["manifold"], float(naive.mean()), at_most(0.15),
               "|mu - mu_gamma| / mu_gamma of two heads; at most 0.15; comparator: 1/(2 gamma), a full step, in "
               "place of mu")  # fmt: skip
    other = "one head, exact"
    claims.add("debiased GD", two["R2 to debiased GD"], float(two[f"R2 to {other}"].mean()), at_least(0.98),
               "R2 of two heads' predictions to debiased GD with the best step; at least 0.98; comparator: to the "
               "best single head")  # fmt: skip
    cost = two["projected"] / two["loss"] - 1
    claims.add("projection", cost, f"{two['without the pattern'].mean():.3f} without the two numbers", at_most(0.02),
               f"loss of two heads projected on (omega, mu), by {two['loss'].mean():.3f} of the layer, less 1; at "
               "most 0.02")  # fmt: skip


def _one_head(claims: Claims, found: Findings) -> None:
    rows = [r for r in found.rows["heads"] if r["heads"] == 1]
    if not rows:
        return
    omega = np.array([r["gamma"] for r in rows])
    closed, exact = found.extra["single"]["closed"], found.extra["single"]["exact"]
    loss = {n: pick(rows, n).mean() for n in ("loss", "one head, closed form", "one head, exact")}
    note = (
        f"|omega| of one head; within 10 %; losses on the same sequences: layer {loss['loss']:.4f}, closed form "
        f"{loss['one head, closed form']:.4f}, best at this L {loss['one head, exact']:.4f}"
    )
    for name, goal in (("one head", closed), ("one head, finite L", exact)):
        claims.add(name, omega, goal, lambda low, high, g=goal: 0.9 * g <= low and high <= 1.1 * g, note)  # type: ignore[misc]


def _limits(claims: Claims, rows: Rows, steps: int) -> None:
    """The paper's limits, judged after as many steps as it takes; within a tenth, as of one head."""
    some = [r for r in rows if r["heads"] in (2, 3, 4)]
    if not some:
        return
    ends = {s: [(r["gamma"], r["step"] / (2 * r["gamma"])) for r in some if r["seed"] == s] for s in
            dict.fromkeys(r["seed"] for r in some)}  # fmt: skip
    omega, mu = np.mean([pair for each in ends.values() for pair in each], 0)
    far = [max(abs(x / limit - 1) for pair in each for x, limit in zip(pair, LIMITS, strict=True)) for each in
           ends.values()]  # fmt: skip
    after = f"after {steps:,} steps |omega| is {omega:.4f} and |mu| {mu:.3f} on average"
    enough = steps >= PAPER_STEPS
    claims.add("limits", far, f"{LIMITS[0]} and {LIMITS[1]}", at_most(0.1) if enough else None,
               f"farthest from either by its share, over 2, 3 and 4 heads; at most 0.1; {after}"
               + ("" if enough else "; still falling, so not tested: the paper takes 500,000"))  # fmt: skip


def _lengths(claims: Claims, rows: dict[str, Rows]) -> None:
    at = rows["lengths"]
    soft = {length: pick(at, "loss", setting="softmax", heads=2, L=length) for length in (40, 100, 200)}
    line = {length: pick(at, "loss", setting="linear", heads=1, L=length) for length in (40, 100, 200)}
    free = pick(at, "loss with 1/L of the sequence", setting="linear", heads=1, L=200) if line[40].size else line[40]
    if soft[100].size:
        one = pick(at, "loss", setting="softmax", heads=1, L=100)
        other = f"one head {one.mean():.3f}" if one.size else "at most 0.19"
        claims.add("longer contexts", soft[100], other, at_most(0.19),
                   f"MSE of two heads at L = 100; at most 0.19; {soft[40].mean():.3f} at 40 and "
                   f"{soft[200].mean():.3f} at 200")  # fmt: skip
        claims.add("linear at its length", line[40] / soft[40] - 1, float(soft[40].mean()),
                   lambda low, high: max(-low, high) <= 0.03,
                   "loss of one linear head by that of two softmax heads at L = 40, less 1; within 0.03")  # fmt: skip
    claims.add("linear elsewhere", line[200] / line[40] - 1,
               float((soft[200] / soft[40] - 1).mean()) if soft[40].size else None,
               at_least(0.0) if soft[40].size else None,
               "MSE at L = 200 by that at 40, less 1, with the 1/40 of training kept; comparator: two softmax heads; "
               f"with the 1/L of the sequence instead it falls to {free.mean():.3f}")  # fmt: skip


def _anisotropic(claims: Claims, rows: Rows) -> None:
    two = {
        n: pick(rows, n, heads=2)
        for n in ("preconditioner_cosine", "identity_cosine", "loss", "GD", "ridge", "debiased GD")
    }
    plain = two["identity_cosine"]
    claims.add("preconditioner", two["preconditioner_cosine"], float(plain.mean()),
               lambda low, high: low >= 0.95 and bool((two["preconditioner_cosine"] > plain).all()),
               "least |cosine| of the two heads' KQ with Omega*; at least 0.95 and above that with the identity "
               "(comparator)")  # fmt: skip
    known = two["debiased GD"]
    claims.add("preconditioned GD", two["loss"] / known - 1, float(known.mean()), at_most(0.02),
               "loss by that of debiased GD with Omega*, less 1; at most 0.02; ridge "
               f"{two['ridge'].mean():.3f}")  # fmt: skip


def _multitask(claims: Claims, rows: Rows) -> None:
    own, shared, three = "two tasks, own b", "two tasks, shared b", "three tasks, own b"

    def loss(setting: str, heads: int) -> np.ndarray:
        return pick(rows, "loss", setting=setting, heads=heads)

    ratio = pick(rows, "omega on shared over others", setting=shared, heads=1)
    claims.add("one head, tasks", ratio, 1.0, at_least(1.0),
               "|omega| on shared coordinates by that elsewhere; shared b")  # fmt: skip
    claims.add("two heads, tasks", pick(rows, "zero_sum", setting=shared, heads=2),
               float(pick(rows, "zero_sum", setting=shared, heads=1).mean()), at_most(0.05),
               "|sum of label weights| by the greatest; at most 0.05; comparator: one head; shared b")  # fmt: skip
    claims.add("superposition", loss(own, 3) / loss(own, 4) - 1, float((loss(own, 2) / loss(own, 4)).mean() - 1),
               at_most(0.02), "loss of three heads by that of four, less 1; at most 0.02; comparator: two heads; own "
               f"b. With shared b: {float((loss(shared, 3) / loss(shared, 4)).mean() - 1):.3f}")  # fmt: skip
    zero = float(pick(rows, "zero_sum", setting=own, heads=3).mean())
    claims.add("superposition: conditions", pick(rows, "residual to own labels", setting=own, heads=3),
               float(pick(rows, "residual to own labels", setting=own, heads=2).mean()), at_most(0.05),
               "distance of the computed steps from those of the best separate ones, by their norm; at most 0.05; "
               f"comparator: two heads; own b; sum of mu {zero:.3f} of the greatest")  # fmt: skip
    claims.add("separate steps", pick(rows, "R2 to separate steps", setting=own, heads=4),
               float(pick(rows, "R2 to separate steps", setting=own, heads=2).mean()), at_least(0.98),
               "R2 of four heads to a debiased step for each task; at least 0.98; comparator: two heads; own "
               "b")  # fmt: skip
    at = [r for r in rows if r["setting"] == shared]
    claims.add("own labels", pick(at, "share of other tasks' labels", heads=4),
               float(pick(rows, "share of other tasks' labels", setting=own, heads=4).mean()), at_most(0.05),
               "share of OV's squared label weights that read the other task, four heads; at most 0.05; comparator: "
               f"own b. Losses: layer {loss(shared, 4).mean():.3f}, best linear step on own labels "
               f"{at[0]['best linear, own labels']:.3f}, on all labels "
               f"{at[0]['best linear, all labels']:.3f}")  # fmt: skip
    claims.add("rank and one", loss(three, 4) / loss(three, 6) - 1, float((loss(three, 3) / loss(three, 6)).mean() - 1),
               at_most(0.02), "loss of four heads by that of six, less 1; at most 0.02; comparator: three heads; own "
                              "b")  # fmt: skip


def _activations(claims: Claims, rows: Rows, softmax: Rows) -> None:
    soft = pick(softmax, "R2 to debiased GD", heads=2)
    for name in dict.fromkeys(r["setting"] for r in rows):
        own = {n: pick(rows, n, setting=name) for n in ("R2 to debiased GD", "zero_sum", "diagonal_share", "loss",
                                                        "effective step")}  # fmt: skip
        fits, split = own["R2 to debiased GD"], own["zero_sum"] <= 0.05
        among = f", with R2 {fits[split].mean():.3f}" if split.any() else ""
        note = (
            f"R2 of two heads to debiased GD; at least 0.98; comparator: softmax; {int(split.sum())} of {len(fits)} "
            "seeds "
            f"have split into opposite heads (|sum of mu| at most 0.05){among}; diagonal "
            f"{own['diagonal_share'].mean():.3f}, loss {own['loss'].mean():.3f}, step 2 C |omega| mu "
            f"{own['effective step'].mean():.3f}"
        )
        claims.add(f"activation {name}", fits, float(soft.mean()) if soft.size else "softmax was not run",
                   at_least(0.98), note)  # fmt: skip


def _theory(claims: Claims, found: Findings) -> None:
    rows = found.rows
    small = [r for r in rows["approximation"] if r["gamma"] <= 0.2]
    seeds = list(dict.fromkeys(r["seed"] for r in small))
    worst = [max(abs(r["error"]) for r in small if r["seed"] == s) for s in seeds]
    large = [abs(r["error"]) for r in rows["approximation"] if r["gamma"] == 0.4]
    exact = max(abs(r["error of the exact"]) for r in small)
    claims.add("approximate loss", worst, float(np.mean(large)), at_most(0.02),
               "largest |L~ / simulated - 1| for gamma up to 0.2; at most 0.02; comparator: at 0.4; without sampling "
               f"error it is {exact:.4f}. L~ leaves out terms of order 1/L, about eta^2 / L of the loss; at ten times "
               f"the length it is off by {abs(small[0]['error at 10 L, small gamma']):.4f}")  # fmt: skip
    flow, ends = found.extra["flow"], rows["dynamics"]
    good = [r["sign_match"] == 1 and r["zero_sum"] <= 0.05 and r["both signs"] for r in ends]
    w, m = flow.omega[0], flow.mu[0]
    before = ((np.sign(w) == np.sign(m)).all(1) & (np.abs(m.sum(1)) <= 0.05 * np.abs(m).max(1))).mean()
    claims.exact("descent", float(np.mean(good)), float(before), all(good),
                 f"share of {len(good)} starts with four heads that end with matched signs and |sum of mu| <= 0.05 of "
                 "the greatest; comparator: at the start; sizes are equal within 0.1 in "
                 f"{sum(r['homogeneity'] <= 0.1 for r in ends)} after 20,000 steps", len(good))  # fmt: skip
    slopes = [
        np.polyfit(np.log([r["gamma"] for r in small if r["seed"] == s]),
                   np.log([r["distance from debiased GD"] for r in small if r["seed"] == s]), 1)[0] for s in seeds
    ]  # fmt: skip
    bound = max(r["its 95th percentile"] / r["bound without its logarithms"] for r in small)
    claims.add("approximation", slopes, 1.0, at_least(1.0),
               "slope of log distance over log gamma up to 0.2; at least 1; the 95th percentile is at most "
               f"{bound:.2f} of sqrt(1 + sigma^2) gamma d")  # fmt: skip
    first = [r for r in rows["approximation"] if r["seed"] == seeds[0]]
    rising = bool((np.diff([r["approximate loss"] for r in first]) > 0).all())
    risk = {r["gamma"]: r["exact, best mu"] for r in first}
    said = ", ".join(f"{risk[g]:.4f} at {g:g}" for g in list(risk)[:: max(1, len(risk) // 4)])
    claims.exact("optimality", first[0]["approximate loss"], first[-1]["approximate loss"], rising,
                 f"L~ at gamma {first[0]['gamma']}; comparator: at {first[-1]['gamma']}; it rises throughout where "
                 f"this holds. The risk without approximations, with the best mu: {said}")  # fmt: skip
    kinds = [n for n in rows["ratios"][0] if n.startswith("ratio")]
    share = max(r[n] / r["bound"] for r in rows["ratios"] for n in kinds)
    claims.exact("Bayes ratio", share, 1.0, share <= 1, f"largest ratio by its bound over {len(rows['ratios'])} "
                 "settings, in the limit and at d = 60", len(rows["ratios"]))  # fmt: skip
    apart = max(abs(r["difference"]) for r in rows["table"])
    ours = max(abs(r["ours"] / r["exact"] - 1) for r in rows["table"] if r["exact"])
    claims.exact("notebook", apart, ours, apart <= 0.03, "largest relative difference from the notebook's figures; "
                 "at most 0.03; comparator: ours from exact risks", len(rows["table"]))  # fmt: skip
    enough = [r for r in rows["solver"] if r["heads"] >= r["least heads"]]
    few = [r["residual"] for r in rows["solver"] if r["heads"] < r["least heads"]]
    left = max(r["residual"] for r in enough)
    claims.exact("solver", left, min(few), left < 1e-6 < min(few), "largest residual of the steps with rank + 1 "
                 "heads or more, 2 to 5 tasks; comparator: least with one head fewer", len(enough))  # fmt: skip
