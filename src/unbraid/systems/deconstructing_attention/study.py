"""The study behind `unbraid run deconstructing_attention`: all variants, uniform and interleaved, trained alike."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unbraid.core.errors import UnbraidError
from unbraid.systems.deconstructing_attention.placement import PLACEMENTS, VARIANTS

if TYPE_CHECKING:
    from unbraid.core.pieces import Pieces
    from unbraid.core.result import Result
    from unbraid.systems.deconstructing_attention.capabilities import Cell

PARTS = ("losses", "abilities", "matrix", "conversion", "search")
LARGE = ("70m", "160m", "paper", "1.7b")
CONVERSION = {"tiny": (2, 16, 20), "small": (150, 128, 400)}  # steps, tokens of a text, texts


def run(
    variants: Sequence[str] = VARIANTS,
    placements: Sequence[str] = ("uniform", "hybrid"),
    seeds: int = 3,
    size: Literal["tiny", "small", "medium", "70m", "160m", "paper", "1.7b"] = "small",
    steps: int | None = None,
    lr: float | None = None,
    tokens: Path | None = None,
    base: Literal["llama", "qwen3"] = "llama",
    precision: Literal["no", "bf16", "fp16"] = "no",
    device: str | None = None,
    keep: Path | None = None,
    parts: Sequence[str] = PARTS[:2],
    model: str = "smollm2",
    seed: int = 0,
    progress: bool | None = None,
) -> Result:
    """Train language models that differ in their attention alone, and hold their losses against the paper's ordering.

    Args:
        variants: Out of standard, mlp, approximate, non_approximate, random, sequence and static.
        placements: Out of uniform, hybrid (variant in odd layers) and the paper's ablations even, odd, top, middle,
            bottom, quarter, first, last, bilateral.
        seeds: Trainings of each; at least 2 for intervals.
        size: Tiny (seconds), small (ten seconds a model), medium (an hour a model), 70m, 160m, paper (its 500M) and
            1.7b; the last four need tokens.
        steps: Of the optimizer; by default those of the size.
        lr: Greatest learning rate; by default the size's.
        tokens: A .npy file of token numbers, [tokens], to train on; by default the text that ships with Python.
        base: Of the language models: llama, or qwen3, which norms queries and keys as the paper's 1.7B does.
        precision: Of training.
        device: Where to train; by default where accelerate says.
        keep: Folder for finished pieces; a run that is started again with it goes on where it stopped.
        parts: Out of losses (the language models), abilities (small models trained on probes that a variant can or
            cannot solve by its definition, half a minute each; size tiny takes three steps of them), matrix (the same
            with all variants on all probes: half an hour a seed), conversion (a trained model's attention turned
            into variants, some minutes each) and search (which layers of a trained model can do with which variant: a
            training of each variant, then a reading of the model for every layer and variant).
        model: Of the parts conversion and search: a name of the zoo, a hub id or a folder, of a Llama, Qwen2, Qwen3 or
            Mistral.
        seed: First of the seeds.
        progress: Show progress on stderr; by default when that is a terminal.

    Returns:
        Losses, with and without the variant layers, beside the paper's, and the claims.
    """
    given, start = dict(locals()), time.perf_counter()
    check(variants, placements, parts, seeds, steps, lr, size, tokens, base)
    from unbraid.core.pieces import Pieces
    from unbraid.core.progress import bar
    from unbraid.systems.deconstructing_attention.capabilities import chosen
    from unbraid.systems.deconstructing_attention.pretraining import pretrain
    from unbraid.systems.deconstructing_attention.report import make_result
    from unbraid.zoo.loading import check_device

    if device is not None:
        check_device(device)
    whole = "matrix" in parts
    wanted = chosen(variants, placements, whole) if whole or "abilities" in parts else []
    if not wanted and not {"losses", "conversion", "search"} & set(parts):
        raise UnbraidError(
            f"no probe has a prediction for {', '.join(variants)} placed {', '.join(placements)}: abilities has "
            "standard, mlp, random and static; the part matrix has all variants, uniform and hybrid."
        )
    store = Pieces(keep, {"study": 1})
    kinds = [(v, p) for v in variants for p in placements if v != "standard"]
    kinds = ([("standard", "uniform")] if "standard" in variants else []) + kinds if "losses" in parts else []
    how: dict[str, Any] = {"steps": steps, "lr": lr, "own": tokens, "device": device, "precision": precision,
                           "base": base}  # fmt: skip
    numbers, rows, cells = range(seed, seed + seeds), [], []
    if kinds:
        with bar(progress, "Trainings", seeds * len(kinds)) as tick:
            for number, (variant, placement) in product(numbers, kinds):
                key = {"variant": variant, "placement": placement, "seed": number, "size": size, **how}
                folder = None if keep is None or size in ("tiny", "small") else store.path("training", key, "")
                make = partial(pretrain, variant, placement, size, number, checkpoint_dir=folder, **how)
                rows.append(store.get("language model", key, make))
                tick()
    if wanted:
        cells = _cells(store, numbers, wanted, size, device, progress)
    turned, sought = _of_a_trained_model(
        model, variants, placements, parts, numbers, steps, size, device, store, progress
    )
    return make_result(rows, cells, turned, sought, given, time.perf_counter() - start, store.read_back)


def _of_a_trained_model(
    model: str, variants: Sequence[str], placements: Sequence[str], parts: Sequence[str], numbers: range,
    steps: int | None, size: str, device: str | None, store: Pieces, progress: bool | None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:  # fmt: skip
    """Conversions and searches, as far as they are among the parts."""
    from unbraid.systems.deconstructing_attention.converting import converted
    from unbraid.systems.deconstructing_attention.searching import searched

    trained, length, count = CONVERSION["tiny" if size == "tiny" else "small"]
    how = (numbers, steps or trained, length, count, device, store, progress)
    tried = [v for v in variants if v != "standard"]
    turned = converted(model, list(product(tried, placements)), *how) if "conversion" in parts else []
    return turned, searched(model, tried, *how) if "search" in parts else []


def _cells(
    store: Pieces, numbers: range, wanted: list[Cell], size: str, device: str | None, progress: bool | None
) -> list[dict[str, Any]]:
    """Probes of the configurations with a prediction; at size tiny a few steps, which show that it runs."""
    from unbraid.core.progress import bar
    from unbraid.systems.deconstructing_attention.capabilities import longer, train

    def made(cell: Cell, number: int) -> dict[str, Any]:
        key = {k: v for k, v in cell._asdict().items() if k != "predicted"} | {"seed": number}
        return {**store.get("probe", key, partial(train, cell, number, device)), "predicted": cell.predicted}

    rows = []
    with bar(progress, "Probes", len(numbers) * len(wanted)) as tick:
        for number, cell in product(numbers, wanted):
            row = made(cell._replace(steps=3) if size == "tiny" else cell, number)
            more = longer(cell, row["accuracy"]) if size != "tiny" else None
            rows.append(row if more is None else made(more, number))
            tick()
    return rows


def check(
    variants: Sequence[str], placements: Sequence[str], parts: Sequence[str], seeds: int, steps: int | None,
    lr: float | None, size: str, tokens: Path | None, base: str,
) -> None:  # fmt: skip
    """Refuses what cannot be run, before anything is.

    Raises:
        UnbraidError: which argument, and what is accepted.
    """
    for what, listed, known in (
        ("variants", variants, VARIANTS), ("placements", placements, PLACEMENTS), ("parts", parts, PARTS),
    ):  # fmt: skip
        unknown = [n for n in listed if n not in known]
        if isinstance(listed, str) or unknown or not listed or len(set(listed)) < len(listed):
            said = listed if isinstance(listed, str) else ", ".join(listed) or "empty"
            raise UnbraidError(f"{what} is {said}; choose from {', '.join(known)}, each once.")
    if set(variants) == {"standard"} and {"conversion", "search"} & set(parts):
        raise UnbraidError("variants is standard alone; give one that is to take its place.")
    for name, value in {"seeds": seeds, "steps": 1 if steps is None else steps}.items():
        if value < 1:
            raise UnbraidError(f"{name} is {value}; it must be at least 1.")
    if lr is not None and not lr > 0:
        raise UnbraidError(f"lr is {lr}; it must be positive.")
    if size not in ("tiny", "small", "medium", *LARGE):
        raise UnbraidError(f"size is {size!r}; it must be tiny, small, medium or one of {', '.join(LARGE)}.")
    if base not in ("llama", "qwen3"):
        raise UnbraidError(f"base is {base!r}; it must be llama or qwen3.")
    if size in LARGE and tokens is None and "losses" in parts:
        raise UnbraidError(
            f"size {size} reads 15 billion tokens; the text that ships with Python has less than a million: give "
            "--tokens FILE.npy of your own, or take the size medium."
        )
    if tokens is not None and not tokens.is_file():
        raise UnbraidError(f"tokens {tokens} is no file; give a .npy file of token numbers.")
