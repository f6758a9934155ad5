"""From findings to a page: losses over training and accuracies first, then claims."""

from __future__ import annotations

from typing import Any

import numpy as np

from unbraid.core.claim import Claim, Table
from unbraid.core.figures import Bars, Figure, Lines
from unbraid.core.result import Result
from unbraid.core.series import Series
from unbraid.data.text import SOURCE
from unbraid.metrics.intervals import over
from unbraid.systems.deberta import CARD
from unbraid.systems.deberta.study.exactness import FORWARD, GRADIENT
from unbraid.systems.deberta.study.study import TERMS, Findings

SPEC = {c.name: c for c in CARD.claims}
RIGHT, WRONG, TOLD, GUESSED = 0.97, 0.80, 0.98, 0.60  # the method sheet's
WORLD = {"content-to-position": ("query", "c2p", "p2c"), "position-to-content": ("key", "p2c", "c2p")}
OURS = "disentangled"
Row = dict[str, Any]


def make_result(f: Findings, params: dict[str, Any], seconds: float) -> Result:
    """The page."""
    captions = {
        "exact": "Largest differences against transformers over 7, 64 and 600 tokens, padding on both sides.",
        "worlds": "Accuracy of one layer with some of the terms; chance is 0.125.",
        "decoder": "Accuracy at telling even from odd places of equal tokens; chance is 0.5.",
        "pretraining": "Loss in nats per masked token of held-out text.",
    }
    tables = {
        kind: Table.from_records(
            [{k: v for k, v in r.items() if not isinstance(v, list)} for r in rows], captions[kind]
        )
        for kind, rows in f.rows.items()
    }
    return Result(
        CARD.slug,
        "Attention with content and place apart",
        params={**params, "keep": None if params["keep"] is None else str(params["keep"])},
        claims=claims(f),
        tables=tables,
        figures=figures(f),
        notes=notes(f, params),
        lead="figures",
        meta={"seed": params["seed"], "seconds": round(seconds, 1), "pieces_read_back": f.read_back},
    )


def claims(f: Findings) -> list[Claim]:
    """All of the card's."""
    return [
        exact(f),
        *(needs(f, name) for name in WORLD),
        told(f),
        learns(f, "absolute", "absolute"),
        learns(f, "relative bias", "T5"),
    ]


def claim(name: str, **found: Any) -> Claim:
    """A claim of the card."""
    spec = SPEC[name]
    return Claim(name, spec.statement, spec.source, spec.paper or None, **found)


def untested(name: str, why: str) -> Claim:
    """One that this run does not test."""
    return claim(name, measured=None, comparator=None, holds=None, note=why)


def exact(f: Findings) -> Claim:
    """Outputs and gradients are transformers'."""
    rows = f.rows.get("exact")
    if not rows:
        return untested("exact", "needs the part exact")
    tokens, padding, own, gradient = (
        max(r[kind] for r in rows) for kind in ("tokens", "padding", "transformers' own", "gradient")
    )
    return claim(
        "exact", measured=f"tokens {tokens:.1e}, padding {padding:.1e}, gradients {gradient:.1e}",
        comparator=f"transformers, {len(rows)} configurations",
        holds=max(tokens, padding) <= FORWARD and gradient <= GRADIENT,
        note=f"Largest differences; {FORWARD:g} of outputs and {GRADIENT:g} of a gradient relative to its norm are "
        "allowed. Padding is compared with transformers in double precision, from which its own single precision is "
        f"{own:.1e} away. Weights have five times the usual spread.",
    )  # fmt: skip


def needs(f: Findings, name: str) -> Claim:
    """One term solves its task, and the other does not."""
    world, right, wrong = WORLD[name]
    rows = [r for r in f.rows.get("worlds", []) if r["world"] == world]
    if not rows:
        return untested(name, "needs the part worlds")
    found = {t: [r["accuracy"] for r in rows if r["terms"] == t] for t in TERMS}
    middle, interval = over(np.subtract(found[right], found[wrong]).tolist())
    return claim(
        name, measured=middle, interval=interval, n=len(found[right]),
        comparator=", ".join(f"{t}: {np.mean(v):.3f}" for t, v in found.items()),
        holds=min(found[right]) >= RIGHT and max(found[wrong]) <= WRONG,
        note=f"Accuracy with {right} less that with {wrong}. Holds if {right} has at least {RIGHT} and {wrong} at most "
        f"{WRONG} on every seed.",
    )  # fmt: skip


def told(f: Findings) -> Claim:
    """The decoder knows places, the last layer does not."""
    rows = f.rows.get("decoder")
    if not rows:
        return untested("decoder", "needs the part decoder")
    found = {d: [r["accuracy"] for r in rows if r["decoder"] is d] for d in (True, False)}
    middle, interval = over(np.subtract(found[True], found[False]).tolist())
    return claim(
        "decoder", measured=middle, interval=interval, n=len(found[True]),
        comparator=f"with: {np.mean(found[True]):.3f}, without: {np.mean(found[False]):.3f}",
        holds=min(found[True]) >= TOLD and max(found[False]) <= GUESSED,
        note=f"Accuracy with the decoder less that without. Holds if it is at least {TOLD} with and at most {GUESSED} "
        "without on every seed.",
    )  # fmt: skip


def learns(f: Findings, name: str, other: str) -> Claim:
    """Loss of another arm less that of disentangled attention, paired by seed."""
    rows = f.rows.get("pretraining", [])
    loss = {(r["arm"], r["seed"]): r["loss"] for r in rows}
    seeds = [s for a, s in loss if a == other and (OURS, s) in loss]
    if not seeds:
        return untested(name, f"needs the part pretraining with the arms {OURS} and {other}")
    middle, interval = over([loss[other, s] - loss[OURS, s] for s in seeds])
    return claim(
        name, measured=middle, interval=interval, n=len(seeds),
        comparator=f"{OURS}: {np.mean([loss[OURS, s] for s in seeds]):.3f}, "
        f"{other}: {np.mean([loss[other, s] for s in seeds]):.3f} nats",
        holds=None if interval is None else interval[0] > 0,
        note="Loss per masked token of held-out text with it less that with disentangled attention; equal numbers of "
        "weights, steps, windows and masks. Holds if the interval lies above 0.",
    )  # fmt: skip


def figures(f: Findings) -> list[Figure]:
    """Losses, accuracies, differences."""
    made: list[Figure] = []
    rows = f.rows.get("pretraining", [])
    if rows:
        lines = []
        for arm in dict.fromkeys(r["arm"] for r in rows):
            mine = np.array([r["losses"] for r in rows if r["arm"] == arm])
            steps = next(r["steps"] for r in rows if r["arm"] == arm)
            low, high = mine.min(0), mine.max(0)
            lines.append(Series(arm, steps, mine.mean(0), low, high))
        made.append(
            Lines(
                "Pre-training on real text", lines, "step", "nats per masked token",
                caption="Held-out text; the band is from the least to the largest of the seeds.",
                alt="Loss of held-out text over steps for each kind of position.",
            )
        )  # fmt: skip
    rows = f.rows.get("worlds", [])
    if rows:
        bars = [
            Series(
                f"{t} alone" if t != "both" else t, ["the query asks", "the key answers"],
                [float(np.mean([r["accuracy"] for r in rows if r["world"] == w and r["terms"] == t]))
                 for w in ("query", "key")],
            )
            for t in TERMS
        ]  # fmt: skip
        made.append(
            Bars(
                "Which term a task needs", bars, "", "accuracy", caption="Chance is 0.125.",
                alt="Accuracy of each term on the two tasks.",
            )
        )  # fmt: skip
    rows = f.rows.get("decoder", [])
    if rows:
        told_ = [float(np.mean([r["accuracy"] for r in rows if r["decoder"] is d])) for d in (False, True)]
        made.append(
            Bars(
                "Even or odd place among equal words", [Series("accuracy", ["last layer", "mask decoder"], told_)], "",
                "accuracy", caption="Chance is 0.5.", alt="Accuracy with and without the enhanced mask decoder.",
            )
        )  # fmt: skip
    rows = f.rows.get("exact", [])
    if rows:
        names = [k.removeprefix("tokens ") for k in rows[0] if k.startswith("tokens ")]
        made.append(
            Bars(
                "Largest difference from transformers",
                [Series("outputs at tokens", names, [max(r[f"tokens {n}"] for r in rows) for n in names])], "back-end",
                "difference", caption=f"Over {len(rows)} configurations; {FORWARD:g} is allowed.",
                alt="Largest difference of outputs for each back-end.",
            )
        )  # fmt: skip
    return made


def notes(f: Findings, params: dict[str, Any]) -> list[str]:
    """What a reader has to know."""
    made = []
    if "pretraining" in f.rows:
        made.append(
            f"Text: {SOURCE}, and the docstrings of its library, the last tenth of each held out; tokens are a "
            "byte-level BPE learnt on the rest; 15 % of tokens masked in spans of up to three whole words."
        )
        made.append("Feed-forward layers are widened so that all arms have as many weights, to 0.1 %.")
    if params["seeds"] < 2:
        made.append("One seed gives no interval.")
    return made
