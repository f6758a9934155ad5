"""What the study found, as claims, tables and figures, beside the paper's own table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from unbraid.core.figures import Bars, Lines
from unbraid.core.heatmap import HeatMap
from unbraid.core.result import Claim, Result
from unbraid.core.series import Series
from unbraid.metrics.intervals import over
from unbraid.systems.deconstructing_attention import CARD
from unbraid.systems.deconstructing_attention.matrix import ability, matrix, picture
from unbraid.systems.deconstructing_attention.placement import place

# arXiv 2510.11602, 500M: WikiText perplexity uniform, hybrid, hybrid without its variant layers
PAPER: dict[str, tuple[float, float | None, float | None]] = {
    "standard": (38.1, None, None), "mlp": (993.5, 45.8, 2e5), "approximate": (47.9, 39.4, 2e6),
    "non_approximate": (9e4, 39.4, 5e5), "random": (84.8, 39.3, 2e4), "sequence": (79.1, 38.5, 2e5),
    "static": (79.9, 38.7, 7e4),
}  # fmt: skip
WILD = 1_000.0  # a logit that the paper finds in the last layers of what does not train
FIXED = ("random", "sequence", "static")
Key = tuple[str, str]


def make_result(
    rows: list[dict[str, Any]], cells: list[dict[str, Any]], turned: list[dict[str, Any]], sought: list[dict[str, Any]],
    given: dict[str, Any], seconds: float, read_back: int,
) -> Result:  # fmt: skip
    """The page of a study.

    Args:
        rows: of `pretrain`.
        cells: of `capabilities.train`, with what was predicted.
        turned: of `converting.converted`.
        sought: of `searching.searched`.
        given: parameters of the run.
        seconds: it took.
        read_back: pieces found finished.
    """
    losses = _by_kind(rows, "loss")
    skipped = {k: v for k, v in _by_kind(rows, "skipped").items() if None not in v}
    great = greatest(rows)
    notes = [
        "Losses are nats per token of held-out text: the language reference and the docstrings that ship with Python, "
        "or the file given as tokens; perplexities of other texts and tokenizers do not compare, their order does.",
        f"The base is a {given['base'].capitalize()} model, not Qwen2.5 (no biases in attention), with as many weights "
        "in all variants up to the rounding of the MLP's width; the table has the counts.",
        "Intervals are 95 %, Student's t over seeds. A claim holds where the whole interval lies on its side.",
    ] * bool(rows)  # fmt: skip
    wild = [", ".join(kind) for kind, each in great.items() if max((x or 0.0 for x in each), default=0.0) > WILD]
    if wild and given["base"] != "qwen3":
        notes.append(
            f"Logits beyond {WILD:,.0f} in {'; '.join(wild)}, which the paper takes for the cause of its failures: "
            "--base qwen3 norms queries and keys."
        )
    if cells:
        notes.append(
            "Probes are ours, not the paper's: Qwen2 models of two layers, 64 wide, on texts of 12 keys and 8 values. "
            "Mixing without binding is right as often as the best guess from the values seen, 0.3865 by counting."
        )
    if turned:
        notes.append(
            f"Conversion of {given['model']}: each variant is trained to give what the attention before it gave, on "
            "the language reference of Python; the last tenth of the texts is held out. Of this the paper says nothing."
        )
    tables = {
        **({"abilities": matrix(cells)} if cells else {}),
        **(_tables(rows, losses, skipped, great) if rows else {}),
    }
    if sought:
        notes.append(
            f"Search in {given['model']}: each variant is trained in all layers; then each layer takes each variant "
            "alone on half of the held-out texts, and layers take their cheapest one after another on the other half. "
            "The paper places variants by hand."
        )
    tables |= {"conversion": conversions(turned)} if turned else {}
    tables |= {"costs of layers": costs(sought), "layers in order": orders(sought)} if sought else {}
    return Result(
        "deconstructing_attention", "Language models with attention taken apart", params=given,
        claims=[*_claims(losses, skipped, great), ability(cells)] if rows or cells else [],
        tables=tables, figures=[*picture(cells), *_figures(rows, losses, skipped), *_turned(turned), *_sought(sought)],
        notes=notes, lead="figures", meta={"seed": given["seed"], "seconds": seconds, "pieces_read_back": read_back},
    )  # fmt: skip


def greatest(rows: list[dict[str, Any]]) -> dict[Key, list[float | None]]:
    """For each kind of model the greatest logit of its layers with a variant, by seed; None where they have none.

    Args:
        rows: of `pretrain`.
    """
    most = []
    for row in rows:
        names = place(row["variant"], row["placement"], len(row["logits"]))
        own = [x for x, name in zip(row["logits"], names, strict=True) if name == row["variant"] and x is not None]
        most.append({**row, "greatest": max(own, default=None)})
    return _by_kind(most, "greatest")


def _by_kind(rows: list[dict[str, Any]], what: str) -> dict[Key, list[Any]]:
    found: dict[Key, list[Any]] = {}
    for row in rows:
        found.setdefault((row["variant"], row["placement"]), []).append(row[what])
    return found


def _claims(losses: dict[Key, list[Any]], skipped: dict[Key, list[Any]], great: dict[Key, list[Any]]) -> list[Claim]:
    base = losses.get(("standard", "uniform"))
    pick = {k: np.asarray(v) for k, v in losses.items()}
    best = [pick[v, "uniform"] for v in FIXED if (v, "uniform") in pick]
    alone = [v for v in PAPER if (v, "uniform") in pick and (v, "hybrid") in pick]
    others = [pick[k] for k in pick if k[1] == "hybrid" and k[0] != "mlp"]
    gap: dict[str, tuple[Any, float, str]] = {}
    both = [great.get(("non_approximate", placement), []) for placement in ("uniform", "hybrid")]
    worst = [min(np.log10(u / WILD), np.log10(10 / h)) for u, h in zip(*both, strict=False)]
    if base is not None and ("mlp", "uniform") in pick:
        gap["mixing"] = (pick["mlp", "uniform"] - base, 0.0, "no mixing less standard, nats")
    if best and ("approximate", "uniform") in pick:
        gap["form"] = (
            np.min(best, 0) - pick["approximate", "uniform"],
            0.0,
            "best fixed or static less polynomial, nats",
        )
    if base is not None and ("random", "hybrid") in pick:
        # the paper's own distance is ln(39.3 / 38.1) = 0.03 nats; less than a tenth of a nat is called enough
        gap["sequence"] = (pick["random", "hybrid"] - base, 0.1, "random hybrid less standard, nats; must lie below")
    if alone:
        each = np.min([pick[v, "uniform"] - pick[v, "hybrid"] for v in alone], 0)
        gap["cooperation"] = (each, 0.0, f"uniform less hybrid, nats: the least over {len(alone)} variants")
    if others and ("mlp", "hybrid") in pick:
        gap["mixing in a part"] = (
            pick["mlp", "hybrid"] - np.max(others, 0),
            0.0,
            "no mixing less the worst other, nats",
        )
    if skipped and base is not None:
        # a nat is called a collapse: perplexity grows by a factor of e
        least = np.min([np.asarray(v) - np.asarray(losses[k]) for k, v in skipped.items()], 0)
        gap["training"] = (least, 1.0, "hybrid without its layers less whole, nats: the least over hybrids")
    if worst:
        gap["logits"] = (worst, 0.0, "decades: the lesser of uniform's greatest over 1,000 and 10 over the hybrid's")
    found = [_claim(spec, gap.get(spec.name)) for spec in CARD.claims if spec.name != "abilities"]
    if any(c.name == "mixing" and c.holds for c in found):
        return found
    return [_empty(c) if c.name == "sequence" and c.measured is not None else c for c in found]


def _claim(spec: Any, gap: tuple[Any, float, str] | None) -> Claim:
    if gap is None:
        return Claim(
            spec.name, spec.statement, spec.source, spec.paper, None, None, None, "its models were not trained"
        )
    values, bound, note = gap
    found = over(values)[1]
    holds = None if found is None else found[1] < bound if spec.name == "sequence" else found[0] > bound
    more = "" if found is not None else "; one seed gives no interval"
    return Claim(
        spec.name, spec.statement, spec.source, spec.paper, float(np.mean(values)), bound, holds, note + more, found,
        len(values),
    )  # fmt: skip


def _empty(claim: Claim) -> Claim:
    """Being as good as standard attention says nothing where standard attention is not seen to be of use."""
    more = "; not tested: standard attention is not better than no mixing in these trainings"
    return replace(claim, holds=None, note=claim.note + more)


def _tables(
    rows: list[dict[str, Any]], losses: dict[Key, list[Any]], skipped: dict[Key, list[Any]], great: dict[Key, list[Any]]
) -> dict[str, list[dict[str, Any]]]:
    weights = {k: v[0] for k, v in _by_kind(rows, "weights").items()}
    table = []
    for (variant, placement), each in losses.items():
        low, high = over(each)[1] or (None, None)
        column = {"uniform": 0, "hybrid": 1}.get(placement)
        left = skipped.get((variant, placement))
        table.append(
            {"variant": variant, "placement": placement, "loss": float(np.mean(each)), "low": low, "high": high,
             "perplexity": float(np.exp(np.mean(each))), "seeds": len(each),
             "paper: WikiText perplexity, 500M": None if column is None else PAPER[variant][column],
             "loss without variant layers": None if left is None else float(np.mean(left)),
             "paper: without": PAPER[variant][2] if placement == "hybrid" else None,
             "greatest logit": None if variant == "mlp" else float(np.mean(great[variant, placement])),
             "weights": weights[variant, placement]}
        )  # fmt: skip
    plain = ("variant", "placement", "seed", "loss", "skipped", "weights")
    each_layer = [
        {**{name: row[name] for name in plain[:3]}, "layer": number, "greatest logit": value}
        for row in rows for number, value in enumerate(row["logits"], 1)
    ]  # fmt: skip
    trainings = [{name: row[name] for name in plain} for row in rows]
    return {"losses": table, "trainings": trainings, "logits": each_layer}


def _figures(rows: list[dict[str, Any]], losses: dict[Key, list[Any]], skipped: dict[Key, list[Any]]) -> list[Any]:
    if not rows:
        return []
    names = [f"{v}, {p}" for v, p in losses]
    bounds = [over(v)[1] for v in losses.values()]
    whole = all(b is not None for b in bounds)
    main = Series(
        "whole model", names, [float(np.mean(v)) for v in losses.values()],
        [b[0] for b in bounds if b] if whole else None, [b[1] for b in bounds if b] if whole else None,
    )  # fmt: skip
    figures: list[Any] = [
        Bars("Loss on held-out text", [main], "variant", "nats per token", "Lower is better; whiskers over seeds.",
             horizontal=True, references={"standard": float(np.mean(losses["standard", "uniform"]))}
             if ("standard", "uniform") in losses else {})
    ]  # fmt: skip
    if skipped:
        names = [f"{v}, {p}" for v, p in skipped]
        both = [
            Series("whole", names, [float(np.mean(losses[k])) for k in skipped]),
            Series("without variant layers", names, [float(np.mean(s)) for s in skipped.values()]),
        ]
        figures.append(
            Bars("Hybrids with and without their variant layers", both, "variant", "nats per token", horizontal=True)
        )
    lines = []
    for (variant, placement), each in _by_kind(rows, "losses").items():
        steps = next(r["steps"] for r in rows if (r["variant"], r["placement"]) == (variant, placement))
        lines.append(Series(f"{variant}, {placement}", steps, np.mean(each, 0).tolist()))
    figures.append(Lines("Loss over training", lines, "step", "nats per token of held-out text"))
    return figures


def conversions(turned: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each conversion its losses, in nats per token, and the mean error of its layers' outputs.

    Args:
        turned: of `converting.converted`.
    """
    return [
        {"variant": row["variant"], "placement": row["placement"], "seed": row["seed"], "layers": len(row["layers"]),
         **row["losses"], "error before": float(np.mean([x["before"] for x in row["layers"]])),
         "error after": float(np.mean([x["after"] for x in row["layers"]]))}
        for row in turned
    ]  # fmt: skip


def _turned(turned: list[dict[str, Any]]) -> list[Any]:
    if not turned:
        return []
    kinds = list(dict.fromkeys((row["variant"], row["placement"]) for row in turned))
    of = {kind: [r for r in turned if (r["variant"], r["placement"]) == kind] for kind in kinds}
    names = [f"{v}, {p}" for v, p in kinds]
    stages = list(turned[0]["losses"])
    bars = [
        Series(stage, names, [float(np.mean([r["losses"][stage] for r in of[k]])) for k in kinds]) for stage in stages
    ]
    lines = [
        Series(
            name, [x["layer"] for x in of[k][0]["layers"]],
            np.mean([[x["after"] for x in r["layers"]] for r in of[k]], 0).tolist(),
        )
        for name, k in zip(names, kinds, strict=True)
    ]  # fmt: skip
    return [
        Bars("A trained model with its attention turned into variants", bars, "variant", "nats per token",
             "Held-out text. Variants put in without training say how much of attention's weights they can use.",
             horizontal=True),
        Lines("How near each converted layer comes", lines, "layer", "squared error over what attention gave",
              "Held-out text; 0 is attention's own output, 1 as wrong as zero."),
    ]  # fmt: skip


def costs(sought: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each layer costs as each variant alone, in nats per token: mean, least and greatest over seeds.

    Args:
        sought: of `searching.searched`.
    """
    return _over_seeds([x for row in sought for x in row["costs"]], ("layer", "variant"), "cost")


def orders(sought: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Nats per token lost by so many layers with a variant, in each order: mean, least and greatest over seeds.

    Args:
        sought: of `searching.searched`.
    """
    return _over_seeds([x for row in sought for x in row["curve"]], ("order", "layers"), "lost")


def _over_seeds(rows: list[dict[str, Any]], names: tuple[str, str], what: str) -> list[dict[str, Any]]:
    found: dict[tuple[Any, Any], list[float]] = {}
    for row in rows:
        found.setdefault((row[names[0]], row[names[1]]), []).append(row[what])
    return [
        {**dict(zip(names, at, strict=True)), what: float(np.mean(x)), "least": min(x), "greatest": max(x)}
        for at, x in found.items()
    ]


def _sought(sought: list[dict[str, Any]]) -> list[Any]:
    if not sought:
        return []
    each, points = costs(sought), orders(sought)
    variants = list(dict.fromkeys(row["variant"] for row in each))
    layers = sorted({row["layer"] for row in each})
    at = {(row["layer"], row["variant"]): row["cost"] for row in each}
    lines = [
        Series(
            name, [p["layers"] for p in points if p["order"] == name], [p["lost"] for p in points if p["order"] == name]
        )
        for name in dict.fromkeys(p["order"] for p in points)
    ]
    return [
        Lines("What layers cost together", lines, "layers with their cheapest variant", "nats per token lost",
              "Held-out text that the order was not chosen on. The cheapest first should lie lowest."),
        HeatMap("What each layer costs alone", [[at[n, v] for v in variants] for n in layers],
                [f"layer {n}" for n in layers], variants, "variant", "",
                "Nats per token lost where this layer alone has the variant, trained to give what its attention gave.",
                scale="sequential"),
    ]  # fmt: skip
