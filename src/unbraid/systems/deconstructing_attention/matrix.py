"""What came out of the probes: a claim, a table and a coloured grid."""

from __future__ import annotations

from typing import Any

import numpy as np

from unbraid.core.heatmap import HeatMap
from unbraid.core.result import Claim
from unbraid.metrics.intervals import over
from unbraid.systems.deconstructing_attention import CARD
from unbraid.systems.deconstructing_attention.capabilities import LAYERS, PROBES, STEPS, as_predicted, bag

LEVELS = {
    "solved": "at least 0.97", "bag": "0.3865 within 0.03", "chance": "at most 0.20", "below": "below 0.9",
    "left": "at most 0.30",
}  # fmt: skip
Key = tuple[str, str, str, str]


def measured(cells: list[dict[str, Any]]) -> dict[Key, list[tuple[float, bool]]]:
    """Accuracy over seeds and whether it is as predicted, by variant, placement, probe and what was predicted.

    A hybrid that solved a probe of binding is predicted to lose it with its variant layers.

    Args:
        cells: of `capabilities.train`, with what was predicted.
    """
    found: dict[Key, list[tuple[float, bool]]] = {}
    for row in cells:
        whole = as_predicted(row["accuracy"], row["predicted"])
        at = _at(row)
        found.setdefault((*at, row["predicted"]), []).append((row["accuracy"], whole))
        if row["skipped"] is not None and row["probe"] != "copy" and row["predicted"] == "solved" and whole:
            left = as_predicted(row["skipped"], "left")
            found.setdefault((at[0], f"{at[1]}, skipped", at[2], "left"), []).append((row["skipped"], left))
    return found


def _at(row: dict[str, Any]) -> tuple[str, str, str]:
    placed = row["placement"] if row["layers"] == LAYERS else f"{row['placement']}, {row['layers']} layers"
    return row["variant"], placed, row["probe"]


def ability(cells: list[dict[str, Any]]) -> Claim:
    """The claim that abilities follow from definitions: it holds if every cell of every seed is as predicted.

    Args:
        cells: see `measured`.
    """
    spec = next(s for s in CARD.claims if s.name == "abilities")
    if not cells:
        return Claim(
            spec.name, spec.statement, spec.source, spec.paper, None, None, None, "its models were not trained"
        )
    found, seeds = measured(cells), sorted({row["seed"] for row in cells})
    each_seed = [
        [ok for each in measured([r for r in cells if r["seed"] == n]).values() for _, ok in each] for n in seeds
    ]
    kept = [ok for each in each_seed for ok in each]
    lost = [
        f"{', '.join(at[:3])} ({sum(not ok for _, ok in each)} of {len(each)})"
        for at, each in found.items()
        if not all(ok for _, ok in each)
    ]
    note = f"share of {len(kept)} accuracies that are as predicted, {len(found)} cells"
    holds: bool | None = all(kept)
    if min(row["steps"] for row in cells) < STEPS:
        holds, note = None, f"{note}; not tested: fewer than {STEPS} steps"
    elif lost:
        note = f"{note}; not as predicted: {'; '.join(lost)}"
    elif len(seeds) < 2:
        holds, note = None, f"{note}; one seed gives no interval"
    return Claim(
        spec.name, spec.statement, spec.source, spec.paper, float(np.mean(kept)), 1.0, holds, note,
        over([float(np.mean(each)) for each in each_seed])[1], len(seeds),
    )  # fmt: skip


def matrix(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy of each configuration at each probe: mean, least and greatest over seeds, and texts trained on at most.

    Args:
        cells: see `measured`.
    """
    texts: dict[tuple[str, str, str], int] = {}
    for row in cells:
        texts[_at(row)] = max(texts.get(_at(row), 0), row["steps"] * row["batch"])
    return [
        {"variant": v, "placement": p, "probe": probe, "predicted": LEVELS[predicted],
         "accuracy": float(np.mean([x for x, _ in each])), "least": min(x for x, _ in each),
         "greatest": max(x for x, _ in each), "as predicted": sum(ok for _, ok in each), "seeds": len(each),
         "texts": texts[v, p.removesuffix(", skipped"), probe]}
        for (v, p, probe, predicted), each in measured(cells).items()
    ]  # fmt: skip


def picture(cells: list[dict[str, Any]]) -> list[HeatMap]:
    """Configurations downwards, probes to the right; nothing where no probe was trained.

    Args:
        cells: see `measured`.
    """
    if not cells:
        return []
    means = {at[:3]: float(np.mean([x for x, _ in each])) for at, each in measured(cells).items()}
    rows = sorted({at[:2] for at in means}, key=[at[:2] for at in means].index)
    columns = [p for p in PROBES if any(at[2] == p for at in means)]
    caption = (
        f"1 is solved; {bag():.3f} is the best guess of a model that mixes but does not bind; without mixing 0.125 is "
        "left, 0.083 at copy. Empty cells were not trained. Means over seeds."
    )
    values = [[means.get((*row, probe), float("nan")) for probe in columns] for row in rows]
    return [
        HeatMap("What each variant can do", values, [", ".join(row) for row in rows], columns, "probe", "",
                caption, scale="sequential", limits=(0, 1))
    ]  # fmt: skip
