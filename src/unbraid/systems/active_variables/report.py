"""From findings to a page."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from unbraid.core.result import Result, Table
from unbraid.systems.active_variables import CARD
from unbraid.systems.active_variables.claims import check_rows, measure, over_seeds
from unbraid.systems.active_variables.labels import agreement
from unbraid.systems.active_variables.pictures import chosen, figures
from unbraid.systems.active_variables.study import Findings

SUMMARISED = (
    "active", "mixed", "passive", "KL (nats)", "TC gap", "TC gap of informative", "passive |corr| mean",
    "passive |corr| sampled", "effective rank mean", "effective rank sampled", "reconstruction (nats)",
    "after pruning (nats)",
)  # fmt: skip


def make_result(f: Findings, params: dict[str, Any], seconds: float) -> Result:
    """The page."""
    shown = chosen(f.models)
    latents = [row for model in f.models for row in model.active.rows_]
    tables: dict[str, Any] = {
        "objectives": Table.from_records(summary(f), "Means over seeds. TC: nats; gap: means less samples."),
        "models": Table.from_records(
            [m.row for m in f.models], "A row per model. TC in nats; gap: means less samples."
        ),
        "latents": Table.from_records(shown.active.rows_, f"The model shown: {shown.spec.name}."),
        "index sets": Table.from_records(shown.sets, f"Scores of {shown.spec.name}; samples in closed form, but MI."),
        "criteria": Table.from_records(
            agreement(latents), "How many latents other criteria call informative, all models."
        ),
    }
    if f.downstream:
        tables["downstream"] = Table.from_records(f.downstream, "Accuracy per factor, index set and learner.")
    if f.checks:
        tables["checks on discs"] = Table.from_records(check_rows(f), "Checks (a) to (e) of the method's sheet.")
        tables["R2 on discs"] = Table.from_records(f.check_rows, "Linear R^2 of the continuous factors.")
    arrays: dict[str, Any] = {
        "mean_covariance": shown.active.mean_cov_,
        "sampled_covariance": shown.active.sampled_cov_,
    }
    if f.watched is not None:
        arrays |= {"watched_steps": f.watched.steps, "watched_kl": f.watched.kl, "watched_variance": f.watched.variance}
    return Result(
        CARD.slug,
        "What the mean codes of a VAE show that its samples do not",
        params=params,
        claims=measure(f),
        tables=tables,
        figures=figures(f),
        arrays=arrays,
        notes=notes(f, params),
        lead="figures",
        meta={"seed": params.get("seed", 0), "seconds": round(seconds, 1), "pieces_read_back": f.read_back},
    )


def summary(f: Findings) -> list[dict[str, Any]]:
    """One row per objective and strength: means over seeds."""
    rows: list[dict[str, Any]] = []
    for objective, strength in dict.fromkeys((m.spec.objective, m.spec.strength) for m in f.models):
        own = [m.row for m in f.models if (m.spec.objective, m.spec.strength) == (objective, strength)]
        row: dict[str, Any] = {"objective": objective, "strength": strength, "seeds": len(own)}
        for column in SUMMARISED:
            middle, low, high, _ = over_seeds(own, itemgetter(column))
            row[column] = middle
            if column in ("TC gap", "TC gap of informative"):
                row |= {f"{column}: low": low, f"{column}: high": high}
        rows.append(row)
    return rows


def notes(f: Findings, params: dict[str, Any]) -> list[str]:
    """What a reader must know."""
    side = 0 if f.example is None else f.example.shape[-1]
    said = [
        f"The paper measures 10,800 pre-trained models of 64 x 64 data sets; here {len(f.models)} small ones are "
        f"trained on {0 if f.data is None else len(f.data):,} procedural sprites of {side} x {side}. Strengths are "
        "this study's own, explored on seed 100, since a regulariser weighs more against fewer pixels.",
        "Covariances of samples are the closed form cov(mu) + diag E[sigma^2]. Mutual information is a histogram of "
        "one draw: independent codes get about (bins - 1)^2 / 2N nats, which is not dependence.",
        "Passive means not transmitted, not free of information: a probe that rescales a passive mean can read factors "
        "from it (row 'passive means' of the downstream table).",
    ]
    if params.get("size") == "small" and any(m.spec.objective == "annealed" for m in f.models):
        said.append(
            "AnnealedVAE was first run with gamma 60 and capacities of 25, 10 and 5 nats on seeds 0 to 2. It spent "
            "them on means that tell nothing (reconstruction 15 to 41 nats; others 11 to 18), and latents of up to 6 "
            "nats were labelled passive, since labels look at variances only. Gamma and capacities were changed after "
            "that look at reported seeds, so what AnnealedVAE says is weaker evidence than the rest."
        )
    if f.watched is not None and f.watched.alarms:
        said.append(f.watched.alarms[-1])
    return said
