"""The study of trained variants: `python -m unbraid.systems.attention_sinks.training.study --help`.

Its result is a folder like any other; `unbraid run attention_sinks --trained FOLDER` puts its tables on the page of a
model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from unbraid.core.claim import Claim, Table
from unbraid.core.errors import UnbraidError
from unbraid.core.figures import Bars, Figure, Scatter
from unbraid.core.pieces import Pieces
from unbraid.core.progress import bar
from unbraid.core.result import Result
from unbraid.core.series import Series
from unbraid.systems.attention_sinks import CARD
from unbraid.systems.attention_sinks.training.compare import CONTROL, compare, names_of, summary
from unbraid.systems.attention_sinks.training.lm import WIDTHS
from unbraid.systems.attention_sinks.training.toy import train_toy
from unbraid.systems.attention_sinks.variants.catalogue import REGISTERS, describe_variants

SINK = 0.1  # first-token share of the control below which there is no sink to remove


def run_variants(
    variants: Sequence[str] = (),
    seeds: int = 3,
    size: str = "mini",
    steps: int = 1500,
    batch: int = 16,
    length: int = 128,
    lr: float = 8e-3,
    repeats: bool = True,
    toy_seeds: int = 2,
    keep: Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Result:
    """Trains the toy and small language models with every variant, and says what each buys and costs.

    Args:
        variants: names; none: all of them.
        seeds: seeds per variant.
        size: of the language models.
        steps: of their training.
        batch: windows per step.
        length: tokens per window.
        lr: peak learning rate.
        repeats: train on repeated passages of text, which makes sinks in minutes; False: on plain text.
        toy_seeds: seeds of the toy; 0 leaves it out.
        keep: folder for finished rows; a run started again with it goes on where it stopped.
        seed: the first seed.
        progress: show progress.

    Returns:
        Tables of variants, of the toy and of the language models, figures, and claims.
    """
    given, start = dict(locals()), time.perf_counter()
    names = names_of(variants)
    toys, store = [], Pieces(keep)
    with bar(progress, "Toys", toy_seeds * len(names)) as tick:
        for name in [n for n in names if n != REGISTERS]:
            for number in range(toy_seeds):
                row = store.get("toy", [name, seed + number], partial(toy_row, name, seed + number))
                toys.append({"variant": name, "seed": seed + number, **row})
                tick()
    with bar(progress, "Language models", seeds * len(names)) as tick:
        rows = compare(
            names, range(seed, seed + seeds), size, steps, batch, length, lr, repeats, keep, lambda _: tick()
        )  # fmt: skip
    table = summary(rows)
    shape = "width {}, {} blocks, {} heads".format(*WIDTHS[size])
    kind = "repeated passages of real English" if repeats else "real English"
    caption = f"{shape}; {steps} steps of {batch} x {length} tokens of {kind}. +- are 95 % intervals over seeds."
    tables = {"toy": toy_rows(toys), "runs": rows, "variants": describe_variants()}
    return Result(
        CARD.slug,
        "Attention with and without a place for nothing: trained variants",
        params={**given, "keep": None if keep is None else str(keep), "variants": names},
        claims=claims(table, rows),
        tables={"language models": Table.from_records(table, caption), **{k: v for k, v in tables.items() if v}},
        figures=figures(table),
        notes=remarks(table),
        meta={"seed": seed, "seconds": round(time.perf_counter() - start, 1)},
    )  # fmt: skip


def toy_row(name: str, seed: int) -> dict[str, float]:
    """One trained toy, measured."""
    return train_toy(name, seed)[1]


def toy_rows(toys: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds, variant by variant."""
    rows = []
    for name in dict.fromkeys(r["variant"] for r in toys):
        mine = [r for r in toys if r["variant"] == name]
        keys = [k for k in mine[0] if k not in ("variant", "seed")]
        rows.append({"variant": name, "seeds": len(mine), **{k: float(np.mean([r[k] for r in mine])) for k in keys}})
    return rows


def claims(table: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[Claim]:
    """What the survey reports of a few variants, put to these small models."""
    paper = {
        "output_gate": ("46.7 % to 4.8 % of attention on the first token", "survey 5.1; arXiv 2505.06708"),
        "softmax1": ("65 % to 3.3 % (with OrthoAdam)", "survey 5.2; arXiv 2410.17174"),
        "softpick": ("sink rate 63.4 % to 0 %", "survey 5.2; arXiv 2504.20966"),
        "sigmoid": ("no sinks up to 1B parameters", "survey 5.2; arXiv 2410.10781"),
    }
    control = next(r for r in table if r["variant"] == CONTROL)
    out = []
    for name, (figure, source) in paper.items():
        mine = next((r for r in table if r["variant"] == name), None)
        if mine is None:
            continue
        pairs = paired(rows, name)
        bounds = interval(pairs) if len(pairs) > 1 else None
        tested = control["first-token share"] >= SINK and bounds is not None
        why = "" if tested else "; not tested: softmax itself has no sink here, or there is one seed only"
        out.append(
            Claim(
                f"trained-{name}", f"Trained with {name}, a model puts less attention on the first token.", source,
                figure, float(np.mean(pairs)), f"softmax: {control['first-token share']:.3f}",
                bounds is not None and bounds[1] < 0 if tested else None,
                "difference in the share of attention on the first token, paired by seed; loss "
                f"{mine['loss less control']:+.3f} nats{why}", bounds, len(pairs),
            )
        )  # fmt: skip
    return out


def paired(rows: list[dict[str, Any]], name: str) -> list[float]:
    """First-token share less that of the control with the same seed."""
    base = {r["seed"]: r["first-token share"] for r in rows if r["variant"] == CONTROL}
    return [r["first-token share"] - base[r["seed"]] for r in rows if r["variant"] == name and r["seed"] in base]


def interval(values: list[float]) -> tuple[float, float]:
    """95 % interval of a mean (t)."""
    from scipy import stats

    x = np.asarray(values)
    half = float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return float(x.mean()) - half, float(x.mean()) + half


def figures(table: list[dict[str, Any]]) -> list[Figure]:
    """The one picture: what each variant buys and costs; and the shares as bars."""
    points = [
        Series(r["variant"], [r["first-token share"]], [r["loss less control"]], labels=[r["variant"]]) for r in table
    ]
    names = [r["variant"] for r in table]
    return [
        Scatter(
            "What each variant buys and costs", points, x_label="share of attention on the first token",
            y_label="loss less that of softmax (nats)", caption="Lower left: fewer sinks and a better model.",
        ),
        Bars(
            "Attention on the first token", [Series("", names, [r["first-token share"] for r in table])],
            y_label="share of all attention", horizontal=True,
        ),
        Bars(
            "Kurtosis of the residual stream", [Series("", names, [r["kurtosis"] for r in table])],
            y_label="largest over blocks", horizontal=True,
        ),
    ]  # fmt: skip


def remarks(table: list[dict[str, Any]]) -> list[str]:
    """What a reader must know."""
    control = next(r for r in table if r["variant"] == CONTROL)
    out = [
        "Rows of variants with a null key may sum to less than one, of unnormalised ones to anything: shares of the "
        "first token are what it really gets, nothing is renormalised.",
        "On the toy the attention that must go nowhere is shared by BOS and earlier triggers, whose values may be zero "
        "too.",
    ]
    if control["first-token share"] < SINK:
        out.insert(
            0,
            f"Softmax itself puts {control['first-token share']:.1%} of its attention on the first token at this size "
            "and length of training: sinks have not emerged yet, so nothing can be said of what removes them.",
        )
    return out


def main(
    variants: Annotated[str, typer.Option(help="Names, commas between; none: all.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds per variant.")] = 3,
    size: Annotated[str, typer.Option(help=f"Of the language models: {', '.join(WIDTHS)}.")] = "mini",
    steps: Annotated[int, typer.Option(min=1, help="Of their training.")] = 1500,
    batch: Annotated[int, typer.Option(min=1, help="Windows per step.")] = 16,
    length: Annotated[int, typer.Option(min=8, help="Tokens per window.")] = 128,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 8e-3,
    repeats: Annotated[bool, typer.Option(help="Train on repeated passages, which makes sinks in minutes.")] = True,
    toy_seeds: Annotated[int, typer.Option(min=0, help="Seeds of the toy.")] = 2,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    keep: Annotated[Path, typer.Option(help="Folder for finished rows.")] = Path("runs/studies/attention_variants"),
    out: Annotated[Path, typer.Option(help="Folder of the result.")] = Path("results/attention_sinks/variants"),
) -> None:
    """Train small language models with every variant of attention, and say what each buys and costs.

    Example: python -m unbraid.systems.attention_sinks.training.study --variants softmax1,softpick --size tiny
    """
    names = [v.strip() for v in variants.split(",") if v.strip()]
    try:
        result = run_variants(names, seeds, size, steps, batch, length, lr, repeats, toy_seeds, keep, seed)
    except UnbraidError as error:
        typer.echo(f"unbraid: {error}", err=True)
        raise typer.Exit(2) from None
    result.summary()
    print(result.save(out))


if __name__ == "__main__":
    typer.run(main)
