"""What is measured of sinks once they are found: where they come from, what feeds them, what they do to the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unbraid.core.attach import attach
from unbraid.core.blocks import blocks
from unbraid.core.errors import UnbraidError
from unbraid.core.inputs import lean_inputs
from unbraid.systems.secondary_sinks.columns import ColumnScores
from unbraid.systems.secondary_sinks.handle import rescale
from unbraid.systems.secondary_sinks.origin import Stages, capture, mlp_stages, same_tokens, top_neurons
from unbraid.systems.secondary_sinks.planted import Planted, attention_only, plant
from unbraid.systems.secondary_sinks.push import Push, push_directions, side_inputs
from unbraid.systems.secondary_sinks.system import SecondarySinks


@dataclass
class Evidence:
    """Findings on a real model.

    Attributes:
        stages: of the MLP, per block with sinks; sinks and controls of all texts side by side.
        neurons: of the strongest sink of each block.
        pushes: principal components of inputs of sinks and controls, per block.
        causal: one row per sink whose write was removed, and per control.
        planted: one row per planted model.
    """

    stages: list[Stages] = field(default_factory=list)
    neurons: list[dict[str, Any]] = field(default_factory=list)
    pushes: list[Push] = field(default_factory=list)
    causal: list[dict[str, Any]] = field(default_factory=list)
    planted: list[dict[str, Any]] = field(default_factory=list)


def origins(model: nn.Module, texts: Sequence[Tensor], system: SecondarySinks, limit: int = 24) -> Evidence:
    """Stages, neurons and pushes for the blocks where most secondary sinks appear (three at the most)."""
    found = Evidence()
    sinks = system.main_ or system.sinks_
    starts = sorted({s.l_start for s in sinks}, key=lambda start: -sum(s.l_start == start for s in sinks))[:3]
    if any(b.mlp is None for b in blocks(model)):
        return found
    for layer in starts:
        here = [s for s in sinks if s.l_start == layer][:limit]
        parts, inputs, direction = [], [], None
        for text in sorted({s.text for s in here}):
            ids = texts[text].to(next(model.parameters()).device)
            at = [s.position for s in here if s.text == text]
            primary = int((system.primary_[text] or {})["position"])
            every = [s.position for s in system.sinks_ if s.text == text]
            others = same_tokens(ids, at, every, 64)
            parts.append(mlp_stages(model, ids, layer, at, primary, others))
            inputs.append(side_inputs(model, ids, layer, [*at, *others[: len(at)]]))
            direction = capture(model, ids, [layer])[layer]["stream"][primary] if direction is None else direction
        found.stages.append(
            Stages(layer, parts[0].names, np.concatenate([p.sinks for p in parts], 1),
                   np.concatenate([p.controls for p in parts], 1))
        )  # fmt: skip
        top = max(here, key=lambda s: s.write)
        ids = texts[top.text].to(next(model.parameters()).device)
        primary = int((system.primary_[top.text] or {})["position"])
        found.neurons += [{"block": layer, **row} for row in top_neurons(model, ids, layer, top.position, primary, 5)]
        pooled = torch.cat(inputs)
        if len(pooled) >= 4 and direction is not None:
            found.pushes.append(push_directions(model, pooled, direction, layer))
    return found


def without_write(
    model: nn.Module,
    texts: Sequence[Tensor],
    system: SecondarySinks,
    limit: int = 12,
    seed: int = 0,
    on_step: Callable[[], None] | None = None,
) -> list[dict[str, Any]]:
    """Removes the write of each sink, and of another occurrence of the same token, and looks at the attention again.

    Returns:
        Rows: kind ("sink" or "control"), text, position, block, change of the primary sink's mean share over the sink's
        blocks (removed less intact), and the sink's own score before and after.
    """
    rng, rows = np.random.default_rng(seed), []
    sites, known = [b.site for b in blocks(model)], dict[int, np.ndarray]()
    usable = [s for s in system.main_ if np.isfinite(s.score)]
    for k in sorted(rng.permutation(len(usable))[:limit]):
        s = usable[k]
        ids = texts[s.text].to(next(model.parameters()).device)
        primary = int((system.primary_[s.text] or {})["position"])
        every = [x.position for x in system.sinks_ if x.text == s.text]
        if s.text not in known:
            known[s.text] = column_means(model, ids, sites)
        intact = known[s.text]
        others = [t for t in same_tokens(ids, [s.position], every) if t < ids.shape[1] // 2]
        for kind, position in [("sink", s.position), *([("control", int(rng.choice(others)))] if others else [])]:
            with rescale(model, s.l_start, 0.0, threshold=-1.1, primary=primary, positions=[position]):
                after = column_means(model, ids, sites)
            layers = [layer for layer in s.readers if layer < len(sites)]
            rows.append(
                {
                    "kind": kind, "text": s.text, "position": position, "block": s.l_start, "lifetime": s.lifetime,
                    "primary intact": float(intact[layers, primary].mean()),
                    "primary removed": float(after[layers, primary].mean()),
                    "change": float((after - intact)[layers, primary].mean()),
                    "score intact": float(intact[layers, position].mean()),
                    "score removed": float(after[layers, position].mean()),
                }
            )  # fmt: skip
        if on_step is not None:
            on_step()
    return rows


def column_means(model: nn.Module, ids: Tensor, sites: list[str]) -> np.ndarray:
    """[L, T] mean attention that each token receives from the second half of the queries, over heads."""
    scores = ColumnScores(common=ids.shape[1] // 2)
    with torch.no_grad(), attach(model, scores):
        model(**lean_inputs(model, ids))
    return scores.stacked(sites).mean(1)


def planted_row(seed: int) -> dict[str, Any]:
    """Plants three sinks, looks for them, and says how well detector, baseline, origin test and handle do."""
    world = plant(seed)
    system = SecondarySinks(candidates=2, guard="none", primary_ratio=2.0).fit(world.model, world.input_ids)
    found = {s.position: s.level for s in system.sinks_}
    mean = column_means(world.model, world.input_ids, system.sites_)
    # what block l leaves is read by block l + 1
    truth = {t: set(range(p.create + 1, p.kill + 1)) for t, p in world.plants.items()}
    by_attention = sum(len(set(attention_only(torch.tensor(mean), t)) & blocks_) for t, blocks_ in truth.items())
    origin = [max(range(12), key=_rise(system, world, t)) == p.create for t, p in world.plants.items()]
    position, p = max(world.plants.items(), key=lambda item: item[1].norm)
    with rescale(world.model, p.create, 5.0, positions=[position]):
        after = column_means(world.model, world.input_ids, system.sites_)
    at = list(range(p.create + 1, p.kill + 1))
    negative = SecondarySinks(candidates=2, guard="none", primary_ratio=2.0)
    try:
        unclear = plant(seed, clear=False)
        extra = len(negative.fit(unclear.model, unclear.input_ids).sinks_)
    except UnbraidError:
        extra = 0
    lost = float(1 - after[at, position].mean() / mean[at, position].mean())
    primary = system.primary_[0] or {}
    return {
        "seed": seed, "planted": len(truth), "found exactly": sum(found.get(t) == v for t, v in world.truth.items()),
        "false": len(set(found) - set(truth)), "window": f"[{primary.get('start')}, {primary.get('end')})",
        "blocks by attention alone": by_attention, "of": sum(len(v) for v in truth.values()),
        "origin named": sum(origin), "mass lost when the write is set to 5": lost,
        "sinks found when marks are not cleared": extra,
    }  # fmt: skip


def _rise(system: SecondarySinks, world: Planted, position: int) -> Callable[[int], float]:
    from unbraid.systems.secondary_sinks.detect import Primary, decompose
    from unbraid.systems.secondary_sinks.system import measure

    profile, _ = measure(world.model, world.input_ids, 2, attention=False)
    parts = decompose(profile, Primary(**(system.primary_[0] or {})), position)
    return lambda layer: parts["rise"][layer] * parts["mlp"][layer]


def norm_sweep(norms: Sequence[float], seed: int = 0) -> list[dict[str, float]]:
    """Planted models whose one secondary sink is written with different norms: norm against attention received."""
    from unbraid.systems.secondary_sinks.planted import Plant

    rows = []
    for r in norms:
        world = plant(seed, [Plant(4, 9, r)])
        position = next(iter(world.truth))
        mean = column_means(world.model, world.input_ids, [b.site for b in blocks(world.model)])
        found = SecondarySinks(candidates=2, guard="none", attention=False, primary_ratio=2.0).fit(
            world.model, world.input_ids
        )
        passed = position in {s.position for s in found.sinks_}
        rows.append(
            {"norm": float(r), "attention": float(mean[5:9, position].mean()), "passes the direction test": passed}
        )
    return rows


def stage_rows(stages: Sequence[Stages]) -> list[dict[str, Any]]:
    """Median cosine with the primary sink at each point of the MLPs, sinks against controls."""
    rows = []
    for s in stages:
        for i, name in enumerate(s.names):
            control = s.controls[i]
            rows.append(
                {
                    "block": s.layer, "point": name, "sinks": float(np.median(s.sinks[i])), "n": s.sinks.shape[1],
                    "controls": float(np.median(control)) if control.size else None, "n controls": int(control.size),
                }
            )  # fmt: skip
    return rows
