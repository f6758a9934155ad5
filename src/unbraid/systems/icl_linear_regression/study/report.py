"""The page of a study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from unbraid.core.claim import Table
from unbraid.core.result import Result
from unbraid.metrics.intervals import over
from unbraid.systems.icl_linear_regression.patterns import bands, report
from unbraid.systems.icl_linear_regression.study.claims import make_claims
from unbraid.systems.icl_linear_regression.study.figures import make_figures

if TYPE_CHECKING:
    from unbraid.systems.icl_linear_regression.study.study import Findings

FULL = (
    "unbraid run icl_linear_regression --parts theory,heads,lengths,anisotropic,multitask,activations --seeds 10 "
    "--heads 1,2,3,4,8 --steps 500000 --side-steps 500000 --keep runs/studies/icl_linear_regression --out "
    "results/icl_linear_regression/full"
)


def make_result(found: Findings, given: dict[str, Any], seconds: float) -> Result:
    """The page of a study.

    Args:
        found: what was measured.
        given: parameters of the run.
        seconds: it took.
    """
    from unbraid.systems.icl_linear_regression.predictors import single_head
    from unbraid.systems.icl_linear_regression.sampling import Regression
    from unbraid.systems.icl_linear_regression.study.trainings import best_single

    if "heads" in found.rows:
        found.extra["single"] = {"closed": single_head(Regression())[0], "exact": best_single(Regression())[0]}
    notes = [
        f"Trainings took {given['steps']:,} steps of Adam with {given['batch']} sequences, those of linear attention, "
        f"correlated covariates, a shared b, three tasks and other activations {given['side_steps']:,}; the "
        f"paper's took 500,000. The full scale: {FULL}",
        "d = 5, L = 40, sigma^2 = 0.1 unless said otherwise; losses contain the noise of the answer, so 0.1 is the "
        "least possible. Several tasks: d = 6, losses summed over tasks.",
        "Layers are tested on sequences drawn for the test, the same for all models of a seed. Intervals are 95 %, "
        "Student's t over seeds; a claim holds where the whole interval lies on its side.",
        "Thresholds are those of the method sheet. KQ includes the logits' scale; shares are of squared norms.",
        "The authors' post lets all tasks share one b, their code draws one for each. Both were run: with a shared b "
        "the best linear step of a task also reads the labels of the other.",
    ]
    return Result(
        "icl_linear_regression", "In-context linear regression: what the heads learn", params=given,
        claims=make_claims(found, given["steps"]), tables=_tables(found), figures=make_figures(found), notes=notes,
        arrays=_arrays(found), lead="figures",
        meta={"seed": given["seed"], "seconds": seconds, "pieces_read_back": found.read_back},
    )  # fmt: skip


def _tables(found: Findings) -> dict[str, Any]:
    tables: dict[str, Any] = {}
    if "heads" in found.rows:
        tables["layers"] = _means(found.rows["heads"] + found.rows.get("linear", []), ("setting", "heads"))
        trained = found.trained["softmax"]
        for h in trained.heads:
            made = bands([report(trained.circuits(h, k), trained.task) for k in range(len(trained.seeds))])
            tables[f"pattern, H = {h}"] = made
    for name, keys in (
        ("lengths", ("setting", "heads", "L")), ("anisotropic", ("setting", "heads")), ("multitask", ("setting",
        "heads")),
        ("activations", ("setting", "heads")), ("approximation", ("gamma",)),
    ):  # fmt: skip
        if name in found.rows:
            tables[name] = _means(found.rows[name], keys)
    for name in ("heads", "multitask"):
        if name in found.rows:
            tables[f"{name}, every seed"] = found.rows[name]
    for name in ("table", "ratios", "solver", "dynamics"):
        if name in found.rows:
            tables[{"table": "notebook's table"}.get(name, name)] = found.rows[name]
    return tables


def _means(rows: list[dict[str, Any]], keys: tuple[str, ...]) -> Table:
    """Means over seeds, and the interval of the loss."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in keys), []).append(row)
    made = []
    for key, group in groups.items():
        line: dict[str, Any] = dict(zip(keys, key, strict=True))
        for name in dict.fromkeys(n for row in group for n in row if n not in (*keys, "seed")):
            values = [row[name] for row in group if row.get(name) is not None]
            line[name] = float(np.mean(values)) if values else None
            if name == "loss":
                line["loss low"], line["loss high"] = over(values)[1] or (None, None)
        made.append({**line, "seeds": len(group)})
    return Table.from_records(made)


def _arrays(found: Findings) -> dict[str, Any]:
    return {f"{name}, {part}": t.arrays[part] for name, t in found.trained.items() for part in ("kq", "ov", "loss")}
