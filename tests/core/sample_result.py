"""One result that holds every kind of thing, and one whose every text tries to break out of the page."""

from __future__ import annotations

import numpy as np

from unbraid.core.heads import HeadScores
from unbraid.core.result import Bars, Claim, HeadMap, HtmlText, Image, Lines, Result, Scatter, Series, Table

EVIL = '</script><script>window.pwned=1</script><img src=x onerror="window.pwned=2">\'"&<b>'


def head_scores(sites: int = 6, heads: int = 4) -> HeadScores:
    values = np.random.default_rng(0).beta(0.5, 5, (sites, heads))
    values[2, 1] = 0.9
    table = {f"model.layers.{i}.self_attn": row for i, row in enumerate(values)}
    low = {site: row - 0.05 for site, row in table.items()}
    high = {site: row + 0.05 for site, row in table.items()}
    return HeadScores(table, "retrieval score", low, high)


def claims() -> list[Claim]:
    source = "arXiv 2404.15574, figure 3"
    return [
        Claim("Few", "Few heads copy.", source, "< 5 %", 0.037, "chance: 0.002", True, "A note.", (0.03, 0.044), 5),
        Claim("Causal", "Masking them hurts.", source, 0.23, 0.9, "random heads: 0.92", False),
        Claim("Intrinsic", "Descendants share them.", source, 0.9, None, "", None),
    ]


def sample(sites: int = 6, heads: int = 4) -> Result:
    scores = head_scores(sites, heads)
    x = [0, 5, 10, 20]
    random = Series("random", x, [1, 0.97, 0.95, None], [0.98, 0.9, 0.9, None], [1, 1, 1, None])
    top = Series("top", x, [1.0, 0.5, 0.2, float("nan")])
    rows = [{"head": scores.label(h), "score": v, "sink": v < 0.01, "gap": None} for h, v in scores.ranked()]
    return Result(
        "retrieval_heads",
        "Which heads copy",
        params={"lengths": (512, 1024), "mask": {"mode": "mean"}, "rate": np.float32(0.5)},
        claims=claims(),
        tables={"Heads": Table.from_records(rows, "All heads."), "Lengths": [{"tokens": 512, "found": 1.0}]},
        figures=[
            HeadMap("Score per head", scores, "Few are dark.", marked=scores.top(2)),
            HeadMap("Effect", {"a": [0.1, -0.3], "b": [None, 0.2]}),
            Lines("Masked", [top, random], "heads masked", "found", references={"chance": 0.1}),
            Scatter("Agreement", [Series("heads", [0.1, 0.2], [0.1, 0.3], labels=["L0H0", "L0H1"])], "one", "other"),
            Bars("Modes", {"zero": 0.2, "mean": 0.3}, y_label="found"),
            Bars.histogram("Scores", scores.array, 8),
            HtmlText("Where it looks", [("The", 0.1), (" needle", 0.9), ("\n", None), (".", 0.0)]),
            Image.from_array(np.zeros((4, 6, 3)), "A black rectangle"),
        ],
        arrays={"scores": scores.array.astype(np.float32), "mask": np.array([True, False]), "none": np.array(np.nan)},
        notes=["Two paragraphs.", "No more."],
        meta={"seed": 0, "seconds": 118.4, "command": "unbraid run retrieval_heads"},
    )


def evil() -> Result:
    """Every text that reaches the page is hostile."""
    e = EVIL
    scores = HeadScores({e: [0.1, 0.9]}, e)
    return Result(
        "evil",
        e,
        params={e: e, "list": [e]},
        claims=[Claim(e, e, e + " arXiv 2404.15574", e, e, e, True, e)],
        tables={e: Table([e, "n"], [[e, 1], [e, None]], e)},
        figures=[
            HeadMap(e, scores, e, e),
            Lines(e, [Series(e, [1, 2], [1, 2], labels=[e, e]), Series("b", [1], [1])], e, e, e, e, references={e: 1}),
            Scatter(e, [Series(e, [1, 2], [1, 2], labels=[e, e])], e, e, e),
            Bars(e, [Series(e, [e, "x"], [1, 2]), Series("b", [e, "x"], [1, 2])], e, e, e, references={e: 1}),
            HtmlText(e, [(e, 0.5), (e, None)], e),
            Image.from_array(np.zeros((2, 2)), e, e, e),
        ],
        arrays={e: np.zeros(2)},
        notes=[e],
        meta={"seed": e, "model": e, "versions": {"unbraid": e}},
    )
