"""Tables, claims, and lists of names and values as HTML."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from unbraid.core.claim import Claim, Table
from unbraid.core.page.limits import Limits, clip
from unbraid.core.page.markup import Markup, el, escape, join
from unbraid.core.plain import Scalar
from unbraid.core.show import SYMBOLS, is_numeric, show

_ARXIV = re.compile(r"(?i)\barxiv[:\s]*(\d{4}\.\d{4,5})")
_VERDICTS = {True: "yes", False: "no", None: "open"}


def table(name: str, given: Table, limits: Limits, total: int | None = None) -> Markup:
    """A table that can be sorted, in a box of its own that scrolls where it is wide or long.

    Args:
        name: its heading, or "".
        given: the rows.
        limits: how many of them are shown.
        total: number of rows, where ``given`` holds the first of them only.
    """
    total = len(given) if total is None else total
    shown = given.rows[: limits.rows]
    numeric = [is_numeric([row[j] for row in given.rows]) for j in range(len(given.columns))]
    head = [
        el("th", el("button", clip(column, limits), type="button"), scope="col", cls="number" if numeric[j] else None)
        for j, column in enumerate(given.columns)
    ]
    body = [el("tr", *(_cell(cell, numeric[j], limits) for j, cell in enumerate(row))) for row in shown]
    grid = el("table", el("thead", el("tr", *head)), el("tbody", *body), cls="data")
    note = f"Shows the first {len(shown):,} of {total:,} rows; all are in result.json." if len(shown) < total else ""
    count = f"{total:,} {'row' if total == 1 else 'rows'}"
    return el(
        "section",
        el("h3", name, " ", el("span", count, cls="muted")) if name else None,
        el("p", given.caption, cls="caption") if given.caption else None,
        el("div", grid, cls="scroll", tabindex=0, role="region", aria_label=name or "values"),
        el("p", note, cls="cut") if note else None,
        cls="table",
    )


def _cell(cell: Scalar, numeric: bool, limits: Limits) -> Markup:
    if isinstance(cell, bool):
        return el("td", show(cell), data_v=int(cell))
    if cell is None:
        return el("td", "–", data_v="", cls="number none" if numeric else "none")
    if isinstance(cell, str):
        return el("td", el("bdi", clip(cell, limits)), cls="long" if len(cell) > 40 else None)
    return el("td", show(cell), data_v=repr(cell), cls="number")


def claims(given: Sequence[Claim], limits: Limits) -> Markup:
    """What the paper says, what was measured, against what, and whether it holds: in words and with a sign."""
    labels = ("Verdict", "Claim", "The paper says", "Measured here", "Compared with")
    head = el("thead", el("tr", *(el("th", label, scope="col") for label in labels), role="row"))
    rows = [
        el(
            "tr",
            *(
                el("td", cell, data_label=label, role="cell")
                for label, cell in zip(labels, _claim(c, limits), strict=True)
            ),
            role="row",
        )
        for c in given
    ]
    # the roles are said, as a table laid out as cards on a phone otherwise loses its meaning for screen readers
    return el("table", head, el("tbody", *rows), cls="claims", role="table")


def _claim(claim: Claim, limits: Limits) -> tuple[Markup, ...]:
    sign = el("span", SYMBOLS[claim.holds], aria_hidden="true", cls="sign")
    words = [
        el("strong", clip(claim.name, limits)),
        el("p", clip(claim.statement, limits)),
        el("p", linked(clip(claim.source, limits)), cls="muted"),
    ]
    if claim.note:
        words.append(el("p", clip(claim.note, limits), cls="note"))
    return (
        el("span", sign, " ", claim.verdict, cls=f"verdict {_VERDICTS[claim.holds]}"),
        el("div", *words),
        _figure(claim.paper, limits),
        el("div", _figure(claim.measured, limits, "not measured"), _spread(claim)),
        _figure(claim.comparator, limits),
    )


def _figure(value: Scalar, limits: Limits, missing: str = "–") -> Markup:
    if value in (None, ""):
        return el("span", missing, cls="muted")
    return el("span", clip(show(value), limits), cls=None if isinstance(value, str) else "figure")


def _spread(claim: Claim) -> Markup | None:
    parts = []
    if claim.interval is not None:
        parts.append(el("div", f"[{show(claim.interval[0])}, {show(claim.interval[1])}]"))
    if claim.n is not None:
        parts.append(el("div", f"n = {claim.n:,}"))
    return el("div", *parts, cls="muted spread") if parts else None


def linked(text: str) -> Markup:
    """A text in which arXiv ids are links; a link loads nothing until it is followed."""
    parts: list[Markup] = []
    at = 0
    for found in _ARXIV.finditer(text):
        parts.append(escape(text[at : found.start()]))
        parts.append(el("a", found.group(0), href=f"https://arxiv.org/abs/{found.group(1)}", rel="noreferrer"))
        at = found.end()
    return join([*parts, escape(text[at:])])


def tally(given: Sequence[Claim]) -> Markup:
    """How many claims hold, do not hold and were not tested."""
    parts = []
    for holds, words in (
        (True, ("holds", "hold")),
        (False, ("does not hold", "do not hold")),
        (None, ("not tested",) * 2),
    ):
        count = sum(claim.holds is holds for claim in given)
        if count:
            sign = el("span", SYMBOLS[holds], aria_hidden="true", cls="sign")
            parts.append(el("li", sign, " ", el("b", count), " ", words[count != 1], cls=f"verdict {_VERDICTS[holds]}"))
    return el("ul", *parts, cls="tally", aria_label="Claims")


def pairs(values: Mapping[str, Any], limits: Limits) -> Markup:
    """Names and values, one pair a line; what is nested is named by a path such as ``machine.cores``."""
    flat = list(_flatten(values))
    shown = flat[: limits.rows]
    items = [join([el("dt", name), el("dd", el("bdi", clip(value, limits)))]) for name, value in shown]
    note = (
        el("p", f"Shows {len(shown):,} of {len(flat):,}; all are in result.json.", cls="cut")
        if len(shown) < len(flat)
        else None
    )
    return join([el("dl", *items, cls="pairs"), note])


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Any:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield (
                f"{prefix}{key}",
                ", ".join(show(v) if not isinstance(v, list | Mapping) else str(v) for v in value) or "none",
            )
        else:
            yield f"{prefix}{key}", show(value) if not isinstance(value, Mapping) else "none"
