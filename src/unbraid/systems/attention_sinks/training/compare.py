"""What each variant buys and costs: one row per variant and seed, kept as they are made, and their summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from unbraid.core.errors import UnbraidError
from unbraid.core.pieces import Pieces
from unbraid.systems.attention_sinks.training.lm import train_lm
from unbraid.systems.attention_sinks.variants.catalogue import REGISTERS, VARIANTS

SETTINGS: dict[str, dict[str, Any]] = {"registers": {"count": 1}}
CONTROL = "softmax"
MEASURES = (
    "loss", "repeated loss", "sink heads", "strongest head", "first-token share", "kurtosis", "largest / median",
    "row sum", "tokens per second",
)  # fmt: skip


def compare(
    variants: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    size: str = "mini",
    steps: int = 1500,
    batch: int = 16,
    length: int = 128,
    lr: float = 8e-3,
    repeats: bool = True,
    keep: Path | None = None,
    on_row: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Trains every variant with every seed.

    Args:
        variants: names; None: all of them. The control, plain softmax, is always among them.
        seeds: of weights and windows; the same windows for all variants.
        size: of the models.
        steps: of training.
        batch: windows per step.
        length: tokens per window.
        lr: peak learning rate, the same for all.
        repeats: train on repeated passages, see `train_lm`.
        keep: folder for finished rows; a later call reads them back.
        on_row: called with each row as it is there.

    Returns:
        One row per variant and seed.

    Raises:
        UnbraidError: an unknown variant, or no seed.
    """
    names = names_of(variants)
    if not seeds or steps < 1 or length < 8 or batch < 1:
        raise UnbraidError(
            f"seeds={list(seeds)}, steps={steps}, length={length}, batch={batch}: give a seed, 1 step, 8 tokens."
        )
    rows = []
    store = Pieces(keep)
    setting = {"size": size, "steps": steps, "batch": batch, "length": length, "lr": lr, "repeats": repeats}
    for seed in seeds:  # all variants of a seed before the next, so that a run cut short compares all of them
        for name in names:
            key = {"variant": name, "seed": seed, **setting}
            rows.append(store.get("variant", key, partial(_row, name, seed, setting)))
            if on_row is not None:
                on_row(rows[-1])
    return rows


def names_of(variants: Sequence[str] | None) -> list[str]:
    """The variants to compare, the control first; all where none is named.

    Raises:
        UnbraidError: an unknown variant.
    """
    names = list(dict.fromkeys([CONTROL, *(variants or [*VARIANTS, REGISTERS])]))
    unknown = [n for n in names if n not in VARIANTS and n != REGISTERS]
    if unknown:
        raise UnbraidError(f"There is no attention variant {unknown[0]!r}; known: {', '.join([*VARIANTS, REGISTERS])}.")
    return names


def _row(name: str, seed: int, setting: dict[str, Any]) -> dict[str, Any]:
    began = time.perf_counter()
    _, measured = train_lm(name, seed=seed, progress=False, **setting, **SETTINGS.get(name, {}))
    seconds = time.perf_counter() - began
    return {
        "variant": name, "seed": seed, **measured, "seconds": round(seconds, 2),
        "tokens per second": round(setting["steps"] * setting["batch"] * setting["length"] / seconds),
    }  # fmt: skip


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per variant: means over seeds with 95 % intervals (t), and loss against the control of the same seed."""
    control = {r["seed"]: r["loss"] for r in rows if r["variant"] == CONTROL}
    out = []
    for name in dict.fromkeys(r["variant"] for r in rows):
        mine = [r for r in rows if r["variant"] == name]
        line: dict[str, Any] = {"variant": name, "seeds": len(mine)}
        for m in MEASURES:
            mean, half = _interval([r[m] for r in mine])
            line[m] = mean
            if m in ("loss", "first-token share"):
                line[f"{m} +-"] = half
        paired = [r["loss"] - control[r["seed"]] for r in mine if r["seed"] in control]
        if paired and name != CONTROL:
            line["loss less control"], line["loss less control +-"] = _interval(paired)
        else:
            line["loss less control"], line["loss less control +-"] = 0.0, 0.0
        out.append(line)
    return out


def _interval(values: Sequence[float]) -> tuple[float, float | None]:
    x = np.asarray(values, float)
    if len(x) < 2:
        return float(x.mean()), None
    return float(x.mean()), float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
