"""From findings to a page: pictures of swaps first, then numbers and claims."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from unbraid.core.claim import Claim, Table
from unbraid.core.figures import Bars, Figure, Image, Scatter
from unbraid.core.heatmap import HeatMap
from unbraid.core.mosaic import mosaic
from unbraid.core.result import Result
from unbraid.core.series import Series
from unbraid.systems.xfactors import CARD
from unbraid.systems.xfactors.study import WORLDS, Findings, world_of

SPEC = {c.name: c for c in CARD.claims}
OURS, CONTROL, EXCHANGE, NONE = "XFactors", "capacity", "exchange", "no contrast"
UNSUPERVISED = ("Ada-GVAE", "beta-VAE")
MEANS = ("transfer", "keep", "own block", "leak", "read", "d", "c", "i", "mse", "nats S", "nats blocks", "seconds")
KEPT, OWN, READ, APART, LEAKS = 0.88, 0.93, 0.95, 0.83, 0.05  # the method sheet's thresholds; a clear leak
Row = dict[str, Any]


def make_result(f: Findings, params: dict[str, Any], seconds: float) -> Result:
    """The page."""
    flat = [{k: v for k, v in r.items() if not isinstance(v, dict)} for r in f.rows]
    factors = [
        {"world": r["world"], "method": r["method"], "seed": r["seed"], "factor": name, "transfer": value}
        for r in f.rows
        for name, value in {**r["per factor"], **{f"{n} (by S)": v for n, v in r["rest"].items()}}.items()
    ]
    return Result(
        CARD.slug,
        "Swapping one factor of an image: codes in blocks",
        params={**params, "keep": None if params["keep"] is None else str(params["keep"])},
        claims=claims(f),
        tables={
            "methods": Table.from_records(
                summary(f), "Means over seeds, with 95 % intervals (t) of transfer and keep."
            ),
            "models": Table.from_records(flat, "A row per training, on held-out images."),
            "factors": Table.from_records(factors, "How often a swap gives the source's factor."),
        },
        figures=figures(f),
        notes=notes(f, params),
        lead="figures",
        meta={"seed": params["seed"], "seconds": round(seconds, 1), "pieces_read_back": f.read_back},
    )


def over(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % t-interval; without an interval, both ends NaN."""
    x = np.asarray(values, float)
    if len(x) < 2:
        return float(x.mean()) if len(x) else float("nan"), float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return float(x.mean()), float(x.mean()) - half, float(x.mean()) + half


def by_seed(rows: Sequence[Row], method: str, value: Callable[[Row], float]) -> dict[int, float]:
    """Mean over worlds per seed: models of one seed are not independent."""
    found: dict[int, list[float]] = {}
    for r in rows:
        if r["method"] == method:
            found.setdefault(r["seed"], []).append(value(r))
    return {seed: float(np.mean(v)) for seed, v in found.items()}


def summary(f: Findings) -> list[Row]:
    """One row per world and method."""
    out = []
    for world, method in dict.fromkeys((r["world"], r["method"]) for r in f.rows):
        mine = [r for r in f.rows if (r["world"], r["method"]) == (world, method)]
        row: Row = {"world": world, "method": method, "seeds": len(mine)}
        for name in MEANS:
            middle, low, high = over([r[name] for r in mine])
            row[name] = middle
            if name in ("transfer", "keep"):
                row |= {f"{name}: low": low, f"{name}: high": high}
        out.append(row)
    return out


def make(name: str, measured: Any, comparator: Any, holds: bool | None, note: str, **more: Any) -> Claim:
    """A claim of the card."""
    spec = SPEC[name]
    return Claim(name, spec.statement, spec.source, spec.paper or None, measured, comparator, holds, note, **more)


def untested(name: str, why: str) -> Claim:
    """A claim that this run cannot judge."""
    return make(name, None, None, None, why)


def claims(f: Findings) -> list[Claim]:
    """All claims of the card, in its order."""
    rows = f.rows
    have = {r["method"] for r in rows}
    if OURS not in have:
        return [untested(name, "needs the method XFactors") for name in SPEC]
    return [
        better("contrast", rows, OURS, [NONE], "transfer; the method sheet expects .5 more"),
        level("keep", rows, lambda r: r["keep"], KEPT, "share of other factors unchanged, mean over swaps"),
        level("blocks", rows, lambda r: r["d"], APART, "DCI disentanglement of blocks, the official code's learner"),
        constant(rows),
        better("better", rows, OURS, UNSUPERVISED, "transfer, less that of the better of the two per seed"),
        leaks(rows),
        better("control", rows, CONTROL, [OURS], "transfer, capacity less default strength"),
        better("exchange", rows, EXCHANGE, [OURS], "transfer, exchange and capacity less default strength"),
    ]


def better(name: str, rows: Sequence[Row], method: str, others: Sequence[str], what: str) -> Claim:
    """Transfer of one method against the best of others, paired by seed."""
    mine = by_seed(rows, method, lambda r: r["transfer"])
    their = [t for t in (by_seed(rows, o, lambda r: r["transfer"]) for o in others) if t]
    if not mine or len(their) < len(others):
        return untested(name, f"needs the methods {', '.join([method, *others])}")
    pairs = [mine[s] - max(t[s] for t in their) for s in mine]
    middle, low, high = over(pairs)
    interval = (low, high) if len(pairs) > 1 else None
    return make(
        name, middle, f"{' and '.join(others)}: {', '.join(f'{np.mean(list(t.values())):.2f}' for t in their)}",
        None if interval is None else low > 0,
        f"{what}; {method} {np.mean(list(mine.values())):.2f}. Paired by seed, means over worlds. Holds if the "
        "interval lies above 0.", interval=interval, n=len(pairs),
    )  # fmt: skip


def level(name: str, rows: Sequence[Row], value: Callable[[Row], float], bar: float, what: str) -> Claim:
    """The default's mean against a threshold of the sheet."""
    middle, low, high = over(list(by_seed(rows, OURS, value).values()))
    others = by_seed(rows, NONE, value)
    n = len(by_seed(rows, OURS, value))
    compared = f"no contrast: {np.mean(list(others.values())):.2f}" if others else f"threshold {bar}"
    return make(
        name, middle, compared, middle >= bar, f"{what}. Holds at {bar} or more.",
        interval=(low, high) if n > 1 else None, n=n,
    )  # fmt: skip


def constant(rows: Sequence[Row]) -> Claim:
    """Every world with the same settings: does each block tell its factor, and do reconstructions read right?"""
    worlds = list(dict.fromkeys(r["world"] for r in rows))
    if len(worlds) < 2:
        return untested("constant", "needs two or more worlds")
    said, fine = [], True
    for world in worlds:
        mine = [r for r in rows if r["world"] == world and r["method"] == OURS]
        own, read = (float(np.mean([r[k] for r in mine])) for k in ("own block", "read"))
        fine &= own >= OWN and read >= READ
        moved = float(np.mean([r["transfer"] for r in mine]))
        said.append(f"{world}: own block {own:.2f}, read {read:.2f}, transfer {moved:.2f}")
    return make(
        "constant", "; ".join(said), f"thresholds {OWN} and {READ}", fine,
        f"Probe of each factor's own block and the oracle's reading of reconstructions. Holds if both reach {OWN} and "
        f"{READ} on every world.", n=len({r["seed"] for r in rows}),
    )  # fmt: skip


def leaks(rows: Sequence[Row]) -> Claim:
    """How much S tells about factors that have a block, at the default strength."""
    found = by_seed(rows, OURS, lambda r: r["leak"])
    middle, low, high = over(list(found.values()))
    other = by_seed(rows, CONTROL, lambda r: r["leak"])
    return make(
        "leakage", middle, f"capacity: {np.mean(list(other.values())):.2f}" if other else "chance: 0",
        None if len(found) < 2 else low > LEAKS,
        f"Probe of S on factors with a block, chance 0, certainty 1. Holds if the interval lies above {LEAKS}.",
        interval=(low, high) if len(found) > 1 else None, n=len(found),
    )  # fmt: skip


def figures(f: Findings) -> list[Figure]:
    """Swaps of each world, then what blocks carry, then all methods."""
    out: list[Figure] = []
    worlds = list(dict.fromkeys(w for w, _ in f.shown))
    for world in worlds:
        methods = [m for w, m in f.shown if w == world]
        shown = [m for m in (OURS, CONTROL, EXCHANGE, NONE) if m in methods] or methods[:1]
        out += [swaps(world, method, f.shown[world, method]["swaps"]) for method in shown]
    for world in worlds:
        method = next(m for m in (OURS, *(m for w, m in f.shown if w == world)) if (world, m) in f.shown)
        names = list(world_of(world)[0].names)
        out.append(
            HeatMap(
                f"What each block tells, {world}, {method}", f.shown[world, method]["probe"],
                ["S", *WORLDS[world][2]], names, "factor", "block",
                "Accuracy of five nearest neighbours on held-out images. Best: a block tells its own factor, and S, "
                "the first row, only those without a block. Chance: "
                + ", ".join(f"{n} {c:.2f}" for n, c in zip(names, f.shown[world, method]["chance"], strict=True)) + ".",
            )
        )  # fmt: skip
    rows = summary(f)
    labels = [f"{r['method']}, {r['world']}" for r in rows]
    for name, what in (("transfer", "a swapped factor is the source's"), ("keep", "other factors stay")):
        ends = [[r[f"{name}: {e}"] for r in rows] for e in ("low", "high")]
        sure = all(np.isfinite(ends).ravel())
        series = Series(name, labels, [r[name] for r in rows], *(ends if sure else (None, None)))
        out.append(Bars(f"How often {what}", [series], y_label="share of swaps", horizontal=True))
    points = [
        Series(m, [r["leak"] for r in f.rows if r["method"] == m], [r["transfer"] for r in f.rows if r["method"] == m])
        for m in dict.fromkeys(r["method"] for r in f.rows)
    ]
    out.append(
        Scatter(
            "What leaks into S, and what swaps do", points, x_label="what S tells of factors with a block (0 to 1)",
            y_label="transfer", caption="One point per training. A factor that S carries too does not move in a swap.",
        )
    )  # fmt: skip
    return out


def swaps(world: str, method: str, images: np.ndarray) -> Image:
    """A row per pair: reference, source, then one swap per block, S last."""
    targets = WORLDS[world][2]
    order = f"reference, source, then the reference with {', '.join(targets)} of the source, and with S of the source"
    return Image.from_array(
        mosaic(images), f"Swaps on {world}: {len(images)} rows of {order}.", f"Swaps, {world}, {method}",
        f"From left to right: {order}. One thing should change at a time.",
    )  # fmt: skip


def notes(f: Findings, params: dict[str, Any]) -> list[str]:
    """What a reader must know."""
    said = [
        "The paper trains residual nets on 64 x 64 images for hours; these are small nets on small images of worlds "
        "with fewer values per factor, so its figures and these are not the same measurement.",
        "The oracle reads factors off decoded images; a swap counts where the nearest image of the world has what "
        "was wanted. Transfer counts pairs that differ in the factor; guessing would give about one over its classes.",
        "Ada-GVAE and the beta-VAE see no labels; latents were given to factors afterwards by mutual information.",
    ]
    if params["seeds"] < 3:
        said.append("Few seeds: intervals are wide, and the study of the Makefile has more.")
    if f.read_back:
        said.append(f"{f.read_back} pieces were read back from an earlier run (--keep).")
    return said
