"""Figures of the page: traversals, correlation maps, gaps over strength, the course of a training."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

import numpy as np
import torch

from unbraid.core.figures import Bars, Figure, Image, Lines, Scatter
from unbraid.core.heatmap import HeatMap
from unbraid.core.mosaic import mosaic
from unbraid.core.series import Series
from unbraid.systems.active_variables.claims import over_seeds
from unbraid.systems.active_variables.labels import KINDS
from unbraid.systems.active_variables.study import Findings
from unbraid.systems.active_variables.zoo import Model, heat

STEPS = 9  # of a traversal, from -2 to 2
SHOWN = 4  # latents of a kind


def figures(f: Findings) -> list[Figure]:
    """All of them, pictures first."""
    model = chosen(f.models)
    return [*traversals(model, f), *maps(model), *gap_lines(f), *course(f), *accuracy(f), plane(f)]


def chosen(models: Sequence[Model]) -> Model:
    """The model shown: of the first objective, with as many kinds of latents as can be, and clear passive ones."""
    first = [m for m in models if m.spec.objective == models[0].spec.objective]

    def rank(model: Model) -> tuple[int, float]:
        return len(set(model.active.labels_)), model.row["passive |corr| mean"] or 0.0

    return max(first, key=rank)


@torch.no_grad()
def traversals(model: Model, f: Findings) -> list[Figure]:
    """One picture per kind: each row moves one latent from -2 to 2, the others staying where one image put them."""
    assert f.example is not None
    a, vae = model.active, model.vae
    x = torch.from_numpy(f.example[len(f.example) // 2 + 36][None])
    code = vae.encode(x)[0]
    out: list[Figure] = []
    explain = {
        "active": "each row changes the picture",
        "mixed": "each row changes it somewhat: noisy latents, or informative for some images only",
        "passive": "nothing changes: the decoder ignores them, although their means correlate with others",
    }
    for kind in KINDS:
        members = sorted(a.indices(kind), key=lambda j: -a.kl_[j])[:SHOWN]
        if not members:
            continue
        rows = []
        for j in members:
            codes = code.repeat(STEPS, 1)
            codes[:, j] = torch.linspace(-2, 2, STEPS)
            rows.append(vae.decode(codes).numpy())
        names = ", ".join(f"z{j} ({a.kl_[j]:.2g} nats)" for j in members)
        what = f"{kind.capitalize()} latents of {model.spec.name}: {explain[kind]}"
        out.append(
            Image.from_array(
                mosaic(np.stack(rows)),
                f"Decoded images, {len(members)} rows of {STEPS}; from left to right one latent goes from -2 to 2.",
                what,
                f"Rows from above: {names}. From left to right the latent goes from -2 to 2.",
            )
        )
    return out


def maps(model: Model) -> list[Figure]:
    """Correlations of mean and of sampled codes of one model."""
    mean, sampled, order = heat(model)
    names = [f"z{j} {model.active.labels_[j]}" for j in order]
    out: list[Figure] = []
    for name, table, more in (
        ("mean", mean, "Passive latents correlate with others, although the decoder does not look at them."),
        ("sampled", sampled, "The noise of passive latents is independent of everything, and it is all they have."),
    ):
        off = np.abs(table[~np.eye(len(table), dtype=bool)]).max(initial=0)
        out.append(
            HeatMap(
                f"Correlations of {name} codes, {model.spec.name}", table, names, [n.split()[0] for n in names],
                caption=f"{more} The largest beside the diagonal is {off:.2f} in size.", scale="diverging",
                limits=(-1, 1),
            )
        )  # fmt: skip
    return out


def gap_lines(f: Findings) -> list[Figure]:
    """Gap of total correlation, and number of passive latents, over the strength's rank."""
    out: list[Figure] = []
    for column, title, unit, caption in (
        ("TC gap", "How much more correlated means look than samples", "nats",
         "Total correlation of mean codes minus that of sampled codes, all latents. Bands: 95 % intervals over seeds."),
        ("TC gap of informative", "The same without passive latents", "nats",
         "Total correlation of means minus that of samples, active and mixed latents only; mind the axis."),
        ("passive", "Latents that have collapsed", "passive latents", "Number of passive latents, mean over seeds."),
    ):  # fmt: skip
        series = []
        for objective in dict.fromkeys(m.spec.objective for m in f.models):
            rows = [m.row for m in f.models if m.spec.objective == objective]
            levels = sorted({r["level"] for r in rows})
            found = [over_seeds([r for r in rows if r["level"] == i], itemgetter(column)) for i in levels]
            bands = [[g[k] for g in found] for k in (1, 2)]
            shown = np.isfinite(bands).all()
            series.append(
                Series(objective, [i + 1 for i in levels], [g[0] for g in found], *(bands if shown else (None, None)))
            )
        if len(series[0].x) > 1:
            out.append(Lines(title, series, "rank of the regularisation's strength", unit, caption))
    return out


def course(f: Findings) -> list[Figure]:
    """How each latent's divergence, and passive latents' correlations, went during one training."""
    w, spec = f.watched, f.watched_spec
    if w is None or spec is None:
        return []
    last = w.labels[-1]
    kl = [
        Series(f"z{j} ({last[j]})", w.steps, [float(k[j]) for k in w.kl])
        for j in sorted(range(len(last)), key=lambda j: -w.kl[-1][j])
    ]
    corr = np.abs(np.nan_to_num(np.array(w.mean_correlation)))
    corr[:, range(len(last)), range(len(last))] = 0
    groups = {kind: [j for j, label in enumerate(last) if label == kind] for kind in KINDS}
    strongest = [
        Series(f"{kind} at the end", w.steps, corr[:, members].max((1, 2)).tolist())
        for kind, members in groups.items()
        if members
    ]
    settled = w.settled()
    when = f"{min(settled)} to {max(settled)}"
    return [
        Lines(
            f"Which latents come alive: {spec.name}", kl, "training step", "KL from the prior, nats",
            f"Each latent, every {w.every} steps. They keep their final labels from some step of {when} on.",
        ),
        Lines(
            f"When correlations of means appear: {spec.name}", strongest, "training step", "largest |correlation|",
            "Largest absolute correlation of one latent's mean with any other's, by the label at the end.",
        ),
    ]  # fmt: skip


def accuracy(f: Findings) -> list[Figure]:
    """Downstream accuracy per set of codes."""
    if not f.downstream:
        return []
    names = list(dict.fromkeys(r["codes"] for r in f.downstream))
    names = [n for n in names if n != "uniform guess"]
    series = []
    for learner in dict.fromkeys(r["learner"] for r in f.downstream):
        own = [r for r in f.downstream if r["learner"] == learner]
        found = [over_seeds([r for r in own if r["codes"] == n], lambda r: r["mean"]) for n in names]
        bands = [[g[k] for g in found] for k in (1, 2)]
        shown = np.isfinite(bands).all()
        shorter = [n.replace("means, standardised", "means, scaled") for n in names]
        series.append(Series(learner, shorter, [g[0] for g in found], *(bands if shown else (None, None))))
    floor = np.mean([r["mean"] for r in f.downstream if r["codes"] == "uniform guess"])
    return [
        Bars(
            "What a learner loses without passive means", series, "codes", "accuracy, mean over factors",
            "Passive means alone still tell something: a learner may rescale what the decoder cannot see.",
            references={"uniform guess": float(floor)},
        )
    ]  # fmt: skip


def plane(f: Findings) -> Figure:
    """All latents of all models: mean variance against divergence."""
    points: dict[str, list[tuple[float, float, str]]] = {kind: [] for kind in KINDS}
    for model in f.models:
        for row in model.active.rows_:
            name = f"{row['latent']}, {model.spec.name}"
            points[row["label"]].append((row["mean of variance"], row["KL (nats)"], name))
    series = [
        Series(kind, [p[0] for p in found], [max(p[1], 1e-5) for p in found], labels=[p[2] for p in found])
        for kind, found in points.items()
        if found
    ]
    return Scatter(
        "Labels and what they leave out", series, "mean of the posterior variance", "KL from the prior, nats",
        "Every latent of every model. Mixed is a wide class: look at the divergence beside the label.", y_scale="log",
        references={"0.01 nats": 0.01},
    )  # fmt: skip
