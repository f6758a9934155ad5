"""The study behind `unbraid run deberta`: exactness, what each term is for, and pre-training on real text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from unbraid.core.errors import UnbraidError

if TYPE_CHECKING:
    from unbraid.core.result import Result

PARTS = ("exact", "worlds", "decoder", "pretraining")
ARMS = ("disentangled", "disentangled + decoder", "c2p", "p2c", "absolute", "T5")
TERMS = ("c2p", "p2c", "both")


@dataclass(eq=False)
class Findings:
    """What a study measured: rows of each part, a trained head of each world, pieces of an earlier run."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    read_back: int = 0


def run(
    parts: Sequence[str] = PARTS[:3],
    arms: Sequence[str] = ("disentangled", "disentangled + decoder", "absolute", "T5"),
    seeds: int = 3,
    size: Literal["tiny", "small", "medium", "paper"] = "small",
    steps: int | None = None,
    lr: float | None = None,
    precision: Literal["no", "bf16", "fp16"] = "no",
    device: str = "cpu",
    keep: Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Result:
    """Check the faster attention against transformers, and what each part of DeBERTa is for, on tasks with known truth.

    Args:
        parts: Out of exact (outputs and gradients against transformers' own, all configurations), worlds (two tasks
            that need one term each), decoder (places of equal words) and pretraining (masked language models on
            the text that ships with Python; five minutes a model at size small).
        arms: For pretraining, out of disentangled, disentangled + decoder, c2p, p2c, absolute and T5.
        seeds: Trainings of each; at least 2 for intervals.
        size: Of pretraining: tiny, small, medium or paper.
        steps: Of pretraining; by default those of the size.
        lr: Of pretraining, for all arms; by default 3e-3 (chosen on seed 100), with absolute positions 1e-3.
        precision: Of pretraining.
        device: Of pretraining.
        keep: Folder for finished pieces; a run that is started again with it goes on where it stopped.
        seed: First of the seeds; settings were chosen on seeds from 100 on.
        progress: Show progress on stderr; by default when that is a terminal.

    Returns:
        Losses over steps, accuracies, differences, and the claims.
    """
    given, start = dict(locals()), time.perf_counter()
    check(parts, arms, seeds, steps, lr, size)
    from unbraid.core.pieces import Pieces
    from unbraid.core.progress import bar
    from unbraid.systems.deberta.study.exactness import CASES, compare
    from unbraid.systems.deberta.study.pretraining import pretrain
    from unbraid.systems.deberta.study.report import make_result
    from unbraid.systems.deberta.study.worlds import parity, term
    from unbraid.zoo.loading import check_device

    check_device(device)
    store, f = Pieces(keep, {"study": 1}), Findings()
    numbers = range(seed, seed + seeds)
    jobs: list[tuple[str, dict[str, Any], Any]] = []
    if "exact" in parts:
        jobs += [("exact", {"case": c, "against": "double"}, partial(compare, c)) for c in CASES]
    if "worlds" in parts:
        jobs += [
            ("worlds", {"world": w, "terms": t, "seed": n}, partial(term, w, t, n))
            for n in numbers for w in ("query", "key") for t in TERMS
        ]  # fmt: skip
    if "decoder" in parts:
        jobs += [("decoder", {"decoder": d, "seed": n}, partial(parity, d, n)) for n in numbers for d in (True, False)]
    if "pretraining" in parts:
        how: dict[str, Any] = {"size": size, "steps": steps, "lr": lr, "device": device, "precision": precision}
        jobs += [
            ("pretraining", {"arm": a, "seed": n, **how}, partial(cast("Any", pretrain), a, seed=n, **how))
            for n in numbers for a in arms
        ]  # fmt: skip
    with bar(progress, "Checks and trainings", len(jobs)) as tick:
        for kind, key, make in jobs:
            if kind == "pretraining" and keep is not None:
                make = partial(make, checkpoint_dir=store.path("training", key, ""))
            f.rows.setdefault(kind, []).append(store.get(kind, key, make))
            tick()
    f.read_back = store.read_back
    return make_result(f, given, time.perf_counter() - start)


def check(
    parts: Sequence[str], arms: Sequence[str], seeds: int, steps: int | None, lr: float | None, size: str
) -> None:
    """Refuses what cannot be run, before anything is.

    Raises:
        UnbraidError: which argument, and what is accepted.
    """
    for what, listed, known in (("parts", parts, PARTS), ("arms", arms, ARMS)):
        unknown = [n for n in listed if n not in known]
        if unknown or not listed or len(set(listed)) < len(listed):
            raise UnbraidError(f"{what} is {', '.join(listed) or 'empty'}; choose from {', '.join(known)}, each once.")
    for name, value in {"seeds": seeds, "steps": 1 if steps is None else steps}.items():
        if value < 1:
            raise UnbraidError(f"{name} is {value}; it must be at least 1.")
    if lr is not None and not lr > 0:
        raise UnbraidError(f"lr is {lr}; it must be positive.")
    if size not in ("tiny", "small", "medium", "paper"):
        raise UnbraidError(f"size is {size!r}; it must be tiny, small, medium or paper.")
