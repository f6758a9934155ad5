"""From findings to a page: pictures first, then identity against leakage, numbers and claims."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from unbraid.core.claim import Claim, Table
from unbraid.core.figures import Bars, Figure, Image, Lines, Scatter
from unbraid.core.result import Result
from unbraid.core.series import Series
from unbraid.diffusion.grids import grid
from unbraid.metrics.intervals import over
from unbraid.systems.disenbooth import CARD
from unbraid.systems.disenbooth.stopping import ALIKE
from unbraid.systems.disenbooth.study import LORA, METHODS, Findings

SPEC = {c.name: c for c in CARD.claims}
OURS = "DisenBooth"
RATIO = 0.8  # of background errors, the method sheet's threshold
HALF = 0.5  # of DreamBooth-LoRA's share of pictures with the subject, the same
SHOWN = 3  # subjects with pictures on the page
SHEET = 8  # pictures in a row
Row = dict[str, Any]
Unit = tuple[Any, ...]


def make_result(f: Findings, params: dict[str, Any], seconds: float) -> Result:
    """The page."""
    plain = {k: str(v) if k in ("images", "out", "keep") and v is not None else v for k, v in params.items()}
    tables = {}
    if f.rows:
        tables["methods"] = Table.from_records(
            summary(f.rows, "method"), "At the last look, means over subjects and seeds."
        )
        tables["looks"] = Table.from_records(f.rows, "A row per subject, method, seed and look.")
    if f.shares:
        tables["shares"] = Table.from_records(
            f.shares, "Error on the photos by what the denoiser is told, per share of noise."
        )
    if f.worlds:
        tables["vectors"] = Table.from_records(summary(f.worlds, "setting"), "The world of vectors at the last step.")
        tables["vectors at all steps"] = Table.from_records(f.worlds, "A row per setting, seed, subject and step.")
    return Result(
        CARD.slug, "A subject apart from its photos", params=plain, tables=tables,
        claims=claims(f) if params["images"] is None else (),
        figures=figures(f), notes=notes(f, params), lead="figures",
        meta={"seed": params["seed"], "seconds": round(seconds, 1), "pieces_read_back": f.read_back},
    )  # fmt: skip


def last(rows: Sequence[Row]) -> list[Row]:
    """The rows of each training's last look."""
    found: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = (row.get("setting"), row.get("method"), row["subject"], row["seed"])
        if key not in found or row["step"] > found[key]["step"]:
            found[key] = row
    return list(found.values())


def summary(rows: Sequence[Row], by: str) -> list[Row]:
    """Means of the last look over trainings."""
    out = []
    ends = last(rows)
    for name in dict.fromkeys(row[by] for row in ends):
        mine = [row for row in ends if row[by] == name]
        names = [key for key in mine[0] if key not in (by, "subject", "seed", "step")]
        row: Row = {by: name, "trainings": len(mine), "step": float(np.mean([r["step"] for r in mine]))}
        row |= {key: float(np.mean([r[key] for r in mine])) for key in names}
        out.append(row)
    keys = list(dict.fromkeys(key for row in out for key in row))
    return [{key: row.get(key) for key in keys} for row in out]


def unit(row: Row, by: str) -> Unit:
    """What is independent of others: a base model of the world of vectors, a training on a pipeline."""
    return (row["seed"],) if by == "setting" else (row["seed"], row["subject"])


def by_unit(rows: Sequence[Row], by: str, name: str, measure: str) -> dict[Unit, float]:
    """The last look's mean, per unit."""
    found: dict[Unit, list[float]] = {}
    for row in last(rows):
        if row[by] == name and row.get(measure) is not None:
            found.setdefault(unit(row, by), []).append(row[measure])
    return {one: float(np.mean(values)) for one, values in found.items()}


def make(name: str, measured: Any, comparator: Any, holds: bool | None, note: str, **more: Any) -> Claim:
    """A claim of the card."""
    spec = SPEC[name]
    return Claim(name, spec.statement, spec.source, spec.paper or None, measured, comparator, holds, note, **more)


def untested(name: str, why: str) -> Claim:
    """A claim that this run cannot judge."""
    return make(name, None, None, None, why)


def claims(f: Findings) -> list[Claim]:
    """All claims of the card, in its order."""
    if f.worlds:
        rows, by = f.worlds, "setting"
    else:
        rows, by = [row for row in f.rows if row.get("background") is not None], "method"
    return [
        background(rows, by),
        weak(rows, by),
        matched(rows, by),
        irrelevant(f.rows),
        ablation("contrast", rows, by, "contrast 0"),
        ablation("mask", rows, by, "no mask"),
        one_background(f),
    ]


def wrong(rows: Sequence[Row], by: str, name: str) -> dict[Unit, float]:
    """How far backgrounds are from what was asked for: squared error of vectors, share of pictures."""
    found = by_unit(rows, by, name, "background")
    return found if by == "setting" else {one: 1 - value for one, value in found.items()}


def background(rows: Sequence[Row], by: str) -> Claim:
    """The error at the end of training against that without the image branch."""
    ours, theirs = wrong(rows, by, OURS), wrong(rows, by, LORA)
    both = [s for s in ours if theirs.get(s, 0) > 0]
    if not both:
        return untested("background", f"needs the methods {OURS} and {LORA}, and backgrounds that can be told")
    middle, interval = over([ours[s] / theirs[s] for s in both])
    said = f"{LORA}: {np.mean([theirs[s] for s in both]):.3f}, {OURS}: {np.mean([ours[s] for s in both]):.3f}"
    return make(
        "background", middle, said, None if interval is None else interval[1] <= 1 and middle <= RATIO,
        f"Ratio of background errors ({'squared error' if by == 'setting' else 'share of pictures'}) at the last step, "
        f"paired by base model or training. Holds if it is {RATIO} or less and its interval does not reach beyond 1.",
        interval=interval, n=len(both),
    )  # fmt: skip


def weak(rows: Sequence[Row], by: str) -> Claim:
    """Identity error against the weight of weak denoising."""
    names = [one for one in ("weak 0", OURS, "weak 0.1", "weak 1") if by_unit(rows, by, one, "identity")]
    if len(names) < 3:
        return untested("weak", f"needs {OURS} and the methods weak 0 and weak 0.1")
    sign = 1 if by == "setting" else -1  # an error of vectors, a score of pictures
    curves = [by_unit(rows, by, one, "identity") for one in names]
    units = [one for one in curves[0] if all(one in curve for curve in curves)]
    slopes = [float(stats.spearmanr(range(len(names)), [sign * c[one] for c in curves]).statistic) for one in units]
    drop, interval = over([sign * (curves[0][one] - curves[-1][one]) for one in units])
    said = ", ".join(f"{n}: {np.mean(list(c.values())):.3f}" for n, c in zip(names, curves, strict=True))
    return make(
        "weak", drop, said, None if interval is None else interval[0] > 0 and float(np.mean(slopes)) < -0.8,
        f"Identity {'error' if sign == 1 else 'score'} with the least weak denoising less that with the most; rank "
        f"correlation with its weight {np.mean(slopes):.2f}. Holds if the interval lies above 0 and the correlation "
        "below -0.8.", interval=interval, n=len(units),
    )  # fmt: skip


def matched(rows: Sequence[Row], by: str) -> Claim:
    """Leakage of both methods where their identity is equal, from the curves over steps."""
    measure, found = ("background", []) if by == "setting" else ("leak", [])
    trainings = list(dict.fromkeys((row["seed"], row["subject"]) for row in rows))
    for seed, subject in trainings:
        curves = []
        for name in (OURS, LORA):
            mine = [r for r in rows if (r[by], r["seed"], r["subject"]) == (name, seed, subject)]
            curves.append(sorted((r["identity"], r[measure]) for r in mine))
        if all(len(curve) > 1 for curve in curves):
            low, high = max(c[0][0] for c in curves), min(c[-1][0] for c in curves)
            if high > low:
                at = np.linspace(low, high, 9)
                ours, theirs = (np.interp(at, [x for x, _ in c], [y for _, y in c]).mean() for c in curves)
                found.append((unit({"seed": seed, "subject": subject}, by), float(ours), float(theirs)))
    if 2 * len(found) < len(trainings) or not found:
        return untested("matched", f"in {len(found)} of {len(trainings)} trainings both methods reach equal identities")
    units = list(dict.fromkeys(one for one, _, _ in found))
    gaps = [float(np.mean([a - b for s, a, b in found if s == one])) for one in units]
    middle, interval = over(gaps)
    said = f"{LORA}: {np.mean([b for _, _, b in found]):.3f}, {OURS}: {np.mean([a for _, a, _ in found]):.3f}"
    return make(
        "matched", middle, said, None if interval is None else interval[1] < 0,
        f"{'Background error' if by == 'setting' else 'Share of pictures with a background of the photos'} of {OURS} "
        f"less that of {LORA}, averaged over identities both reach ({len(found)} trainings). Holds if the interval "
        "lies below 0.", interval=interval, n=len(units),
    )  # fmt: skip


def irrelevant(rows: Sequence[Row]) -> Claim:
    """Weights (0, 1): the reference's background, and how often the subject is there."""
    name = "without: subject seen"
    ours, theirs = by_unit(rows, "method", OURS, name), by_unit(rows, "method", LORA, name)
    there = by_unit(rows, "method", OURS, "without: background")
    told = by_unit(rows, "method", LORA, "without: background")
    if not ours or not theirs:
        return untested("irrelevant", f"needs subjects of the scenes world, {OURS} and {LORA}")
    interval = over([there[s] - told[s] for s in there if s in told])[1]
    seen, other = (float(np.mean(list(x.values()))) for x in (ours, theirs))
    kept = float(np.mean(list(there.values())))
    return make(
        "irrelevant", f"background {kept:.2f}, subject {seen:.2f}",
        f"{LORA}, empty prompt: background {np.mean(list(told.values())):.2f}, subject {other:.2f}",
        None if interval is None else interval[0] > 0 and seen <= max(HALF * other, 0.05),
        "Share of pictures with the reference's background, and with the subject. Holds if the first is higher than "
        f"{LORA}'s (interval of the difference [{_ends(interval)}]) and the second half of its or less (or below .05).",
        n=len(there),
    )  # fmt: skip


def _ends(interval: tuple[float, float] | None) -> str:
    return "none" if interval is None else f"{interval[0]:.2f}, {interval[1]:.2f}"


def ablation(name: str, rows: Sequence[Row], by: str, without: str) -> Claim:
    """Background error and identity with one part left out."""
    ours, theirs = wrong(rows, by, OURS), wrong(rows, by, without)
    units = [one for one in ours if one in theirs]
    if not units:
        return untested(name, f"needs the methods {OURS} and {without}")
    middle, interval = over([theirs[one] - ours[one] for one in units])
    a, b = (np.mean(list(by_unit(rows, by, one, "identity").values())) for one in (OURS, without))
    return make(
        name, middle, f"{without}: {np.mean(list(theirs.values())):.3f}, {OURS}: {np.mean(list(ours.values())):.3f}",
        None if interval is None else interval[0] > 0,
        f"Background error without it less that with it. Identity {'error' if by == 'setting' else 'score'} {b:.3f} "
        f"without, {a:.3f} with. Holds if the interval lies above 0.", interval=interval, n=len(units),
    )  # fmt: skip


def one_background(f: Findings) -> Claim:
    """Photos in one place against photos in two."""
    name = "one background"
    ours, shared = wrong(f.worlds, "setting", OURS), wrong(f.worlds, "setting", name)
    if not ours or not shared:
        return untested(name, "needs the world of vectors (model miniature)")
    middle, interval = over([shared[s] - ours[s] for s in ours if s in shared])
    return make(
        name, middle, f"photos in two places: {np.mean(list(ours.values())):.3f}, in one: "
        f"{np.mean(list(shared.values())):.3f}", None if interval is None else interval[0] > 0,
        "Background error with photos in one place less that with photos in two. Holds if the interval lies above 0.",
        interval=interval, n=len(ours),
    )  # fmt: skip


def figures(f: Findings) -> list[Figure]:
    """Sheets per subject, then curves."""
    out: list[Figure] = []
    for name in list(f.scenes)[:SHOWN]:
        out += sheets(f, name)
    if f.rows:
        out += trade(f.rows, "method", [m for m in METHODS if any(r["method"] == m for r in f.rows)])
        out += course(f)
    if f.worlds:
        out += trade(f.worlds, "setting", [OURS, LORA, "weak 0", "weak 0.1", "weak 1", "no mask"])
    return out


def sheets(f: Findings, name: str) -> list[Figure]:
    """New scenes of all methods, and the other two modes of DisenBooth."""
    methods = [m for subject, m in f.shown if subject == name and m != "photos"]
    scenes = np.stack([f.shown[name, m]["scenes"][:SHEET] for m in methods])
    asked = [one.replace("{}", "...") for one in f.scenes[name]][:SHEET]
    photos = f.shown[name, "photos"]["photos"][:SHEET]
    pages: list[Figure] = [
        Image.from_array(
            grid(scenes, methods, asked), f"Pictures of {name} in new scenes, a row per method.",
            f"{name} in new scenes", "A row per method, a column per prompt; the same noise down a column.",
        )
    ]  # fmt: skip
    for method in methods:
        pictures = f.shown[name, method]
        if "without" in pictures:
            rows = np.stack([photos, pictures["without"][:SHEET], pictures["setting"][:SHEET]])
            labels = ["photos", "without the subject (0, 1)", "the class in its setting (1, 1)"]
            pages.append(
                Image.from_array(
                    grid(rows, labels),
                    f"Photos of {name}, each without its subject, and the plain class in its setting.",
                    f"{name}: the image branch of {method}", "Each column uses the embedding of the photo at its top.",
                )
            )  # fmt: skip
            break
    return pages


def trade(rows: Sequence[Row], by: str, names: Sequence[str]) -> list[Figure]:
    """Identity against leakage as tuning goes on, means over subjects and seeds."""
    if any(row.get("background") is None for row in rows):
        measures = ("CLIP-I", "CLIP-T", "likeness to the photos (CLIP-I)", "agreement with the prompt (CLIP-T)")
    elif by == "setting":
        measures = ("identity", "background", "identity error", "background error")
    else:
        measures = ("identity", "leak", "identity (0 to 1)", "share of pictures with a background of the photos")
    if any(row.get(key) is None for row in rows for key in measures[:2]):
        return []
    series = []
    for name in names:
        mine = [row for row in rows if row[by] == name]
        steps = sorted({row["step"] for row in mine})
        xs, ys = ([float(np.mean([r[m] for r in mine if r["step"] == s])) for s in steps] for m in measures[:2])
        if steps:
            series.append(Series(name, xs, ys, labels=[f"step {s}" for s in steps]))
    return [
        Scatter(
            "As tuning goes on" if by == "method" else "As tuning goes on, world of vectors", series,
            x_label=measures[2], y_label=measures[3],
            caption="A point per look. Methods are compared where they are equally far to the right.",
        )
    ]  # fmt: skip


def course(f: Findings) -> list[Figure]:
    """Losses of the first subject, errors by what the denoiser is told, and the automatic stop's looks."""
    out: list[Figure] = []
    name = next(iter(f.scenes))
    lines = [Series(m, *_smooth(curve)) for (s, m), curve in f.curves.items() if s == name and curve.get("steps")]
    if lines:
        out.append(Lines(f"Loss, {name}", lines, x_label="step", y_label="loss", caption="Running means."))
    if f.shares:
        told = list(dict.fromkeys(row["told"] for row in f.shares))
        noise = list(dict.fromkeys(row["noise"] for row in f.shares))
        mean: Callable[[str, str], float] = lambda t, n: float(  # noqa: E731
            np.mean([r["error"] for r in f.shares if (r["told"], r["noise"]) == (t, n)])
        )
        bars = [Series(t, noise, [mean(t, n) for n in noise]) for t in told]
        out.append(
            Bars(
                "Who explains the photos", bars, "share of noise", "error", "Told text and image, one of them, or "
                "nothing. What the text alone explains is the subject's, what the image adds is the photo's.",
            )
        )  # fmt: skip
    looks = [
        Series(s, [r["step"] for r in rows], [r["likeness"] for r in rows]) for (s, _), rows in f.looks.items() if rows
    ]
    if looks:
        out.append(Lines("The automatic stop's looks", looks, x_label="step", y_label="likeness to the nearest photo"))
    return out


def _smooth(curve: dict[str, list[Any]]) -> tuple[list[Any], list[float]]:
    x, width = np.asarray(curve["losses"], float), max(1, len(curve["losses"]) // 20)
    kept = np.convolve(x, np.ones(width) / width, "valid")
    return curve["steps"][width - 1 :], [float(v) for v in kept]


def notes(f: Findings, params: dict[str, Any]) -> list[str]:
    """What a reader must know."""
    said = []
    close = [name for name, value in f.alike.items() if value > ALIKE]
    if close:
        said.append(
            f"The photos of {', '.join(close)} are nearly equal to the image encoder: what they share beside the "
            "subject, such as one background, cannot be told from it."
        )
    if any(np.isnan(value) for value in f.alike.values()):
        said.append("There is one photo: what in it is subject and what background, one photo cannot say.")
    if f.files:
        said.append(
            f"Written: {', '.join(f.files)}. `pipe.load_lora_weights` reads the folders of adapters, "
            "`pipe.load_textual_inversion` the word; `adapter.safetensors` is the image branch."
        )
    if f.worlds:
        said.append(
            "The world of vectors: points [subject; background] of 16 numbers, a denoiser of 3 layers with a rank-4 "
            f"adapter, five photos in two of eight places, asked for in the six others; {params['seeds']} base models."
        )
    if f.rows and params["images"] is None:
        said.append(
            "Photos are drawn, and the oracle of the scenes world reads subject and background back; CLIP scores are "
            f"those of {params['encoder']}."
        )
    return said
