"""A result as one self-contained page: nothing is loaded from elsewhere, and only the page's own script may run.

The page carries a content security policy that names its script and style by their hashes. Text from users and models
is escaped by `markup.el`; were a piece ever to slip through, the browser would still refuse to run or fetch anything.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any

from unbraid.core.claim import Table
from unbraid.core.errors import UnbraidError
from unbraid.core.figures import Audio, Bars, Figure, HeadMap, HtmlText, Image, Lines
from unbraid.core.heatmap import HeatMap
from unbraid.core.page import tables
from unbraid.core.page.bars import bars
from unbraid.core.page.charts import legend as make_legend
from unbraid.core.page.colour import stylesheet
from unbraid.core.page.describe import describe
from unbraid.core.page.headmap import headmap
from unbraid.core.page.heatmap import heatmap
from unbraid.core.page.limits import Limits, clip
from unbraid.core.page.lines import lines
from unbraid.core.page.markup import Markup, el, join
from unbraid.core.page.text import coloured, picture, sound
from unbraid.core.show import show

if TYPE_CHECKING:
    from unbraid.core.result import Result

LEAST_BUDGET = 100_000
_SHRINK = (1.0, 0.5, 0.25, 0.1, 0.04, 0.01)
_ALT = 1_000


def render(result: Result, budget: int) -> str:
    """The page of a result in at most ``budget`` bytes; see `Result.to_html`."""
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < LEAST_BUDGET:
        raise UnbraidError(
            f"the budget of a page is {budget!r} bytes; it must be a whole number of at least {LEAST_BUDGET:,}."
        )
    alts = [describe(figure) for figure in result.figures]
    for factor in _SHRINK:
        limits = Limits().scaled(factor)
        page = _page(result, list(_sections(result, alts, limits)), limits)
        if len(page.encode("utf-8")) <= budget:
            return page
    return _drop(result, alts, budget, limits)


def _drop(result: Result, alts: list[str], budget: int, limits: Limits) -> str:
    """A page of a result with so many parts that even the shortest form of each is too much: the first that fit."""
    kept: list[tuple[str, str, list[Markup]]] = []
    room = budget - len(_page(result, [], limits).encode("utf-8")) - 2_000
    for key, title, parts in _sections(result, alts, limits):
        fitting = []
        for part in parts:
            room -= len(part.encode("utf-8"))
            if room < 0:
                break
            fitting.append(part)
        left = len(parts) - len(fitting)
        if left:
            fitting.append(el("p", f"{left:,} more are in result.json: this page has reached its size.", cls="cut"))
        kept.append((key, title, fitting))
        if room < 0:
            break
    return _page(result, kept, limits)


def _sections(result: Result, alts: list[str], limits: Limits) -> Iterator[tuple[str, str, list[Markup]]]:
    """(anchor, title, parts) of what there is."""
    first: list[tuple[str, str, list[Markup]]] = []
    if result.claims:
        first.append(("claims", "Claims", [tables.claims(result.claims, limits)]))
    if result.figures:
        figures = [_figure(*item, limits) for item in zip(result.figures, alts, strict=True)]
        first.append(("figures", "Figures", figures))
    yield from first if result.lead == "claims" else reversed(first)
    if result.tables:
        yield "tables", "Tables", [tables.table(name, table, limits) for name, table in result.tables.items()]
    if result.notes:
        yield "notes", "Notes", [el("p", clip(note, limits), cls="prose") for note in result.notes]
    details = []
    if result.params:
        details.append(el("section", el("h3", "Parameters"), tables.pairs(result.params, limits)))
    if result.arrays:
        rows = [
            (name, " × ".join(map(str, a.shape)) or "one number", str(a.dtype)) for name, a in result.arrays.items()
        ]
        details.append(
            tables.table("Arrays", Table(("array", "shape", "type"), rows, "In arrays.safetensors."), limits)
        )
    details.append(el("section", el("h3", "Where this comes from"), tables.pairs(_origin(result.meta), limits)))
    yield "details", "How it was made", details


def _origin(meta: Mapping[str, Any]) -> dict[str, Any]:
    first = {key: meta[key] for key in ("seed", "seeds", "seconds", "created", "command") if key in meta}
    return first | dict(meta)


Drawer = Callable[[Any, Limits, str], tuple[Markup, str]]
_DRAWERS: tuple[tuple[type[Figure], Drawer], ...] = (
    (HeadMap, headmap),
    (HeatMap, heatmap),
    (Lines, lines),
    (Bars, bars),
    (HtmlText, coloured),
    (Image, picture),
    (Audio, sound),
)


def _figure(figure: Figure, alt: str, limits: Limits) -> Markup:
    draw = next(draw for kind, draw in _DRAWERS if isinstance(figure, kind))
    alt = clip(alt, limits)[:_ALT]
    drawing, note = draw(figure, limits, alt)
    legend = values = None
    if isinstance(figure, Lines | Bars):
        legend = make_legend(figure)
        hint = f"{figure.title}: arrow keys go from value to value"
        drawing = el("div", drawing, cls="rove", tabindex=0, role="group", aria_label=hint)
        total = sum(len(one.x) for one in figure.series)
        values = el("details", el("summary", "Values"), tables.table("", _values(figure, limits), limits, total))
    return el(
        "figure",
        el("h3", figure.title) if figure.title else None,
        legend,
        drawing,
        el("figcaption", figure.caption) if figure.caption else None,
        el("p", note, cls="cut") if note else None,
        values,
        cls="wide" if isinstance(figure, HeadMap | HtmlText) else None,
    )


def _values(figure: Lines | Bars, limits: Limits) -> Table:
    """The first numbers behind a chart, for those who would rather read them, and for the next paper's plot."""
    rows: list[tuple[Any, ...]] = []
    for one in figure.series:
        names, low, high = one.labels or repeat(""), one.low or repeat(None), one.high or repeat(None)
        cells = zip(repeat(one.name), names, one.x, one.y, low, high, strict=False)
        rows += islice(cells, min(len(one.x), limits.rows - len(rows)))
    columns = ["series", "point", figure.x_label or "x", figure.y_label or "y", "low", "high"]
    used = [j for j in range(6) if j in (2, 3) or any(row[j] not in ("", None) for row in rows)]
    names_used: list[str] = []
    for j in used:  # labels of axes may be the same, or the name of another column
        name = columns[j]
        while name in names_used:
            name += " "
        names_used.append(name)
    return Table(names_used, [[row[j] for j in used] for row in rows])


def _page(result: Result, sections: list[tuple[str, str, list[Markup]]], limits: Limits) -> str:
    style, script = _asset("page.css") + stylesheet(), _asset("page.js")
    body = [
        el("section", el("h2", title), el("div", *parts, cls=f"parts {key}"), id=key) for key, title, parts in sections
    ]
    links = [el("a", title, href=f"#{key}") for key, title, _ in sections]
    filled = {
        "title": el("title", clip(result.title, limits)),
        "policy": el("meta", http_equiv="Content-Security-Policy", content=_policy(style, script)),
        "style": Markup(style),
        "script": Markup(script),
        "slug": el("span", result.slug),
        "heading": el("h1", clip(result.title, limits)),
        "facts": el("p", " · ".join(_facts(result.meta)), cls="muted facts"),
        "tally": tables.tally(result.claims) if result.claims else "",
        "links": join(links),
        "body": join(body),
        "version": el("span", f"unbraid {result.meta.get('versions', {}).get('unbraid', '')}".strip()),
    }
    return "".join(filled[piece] if k % 2 else piece for k, piece in enumerate(_asset("page.html").split("%%")))


def _facts(meta: Mapping[str, Any]) -> list[str]:
    facts = []
    for key in ("model", "seed", "seeds"):
        if meta.get(key) not in (None, "", []):
            value = meta[key]
            facts.append(f"{key} {', '.join(map(show, value)) if isinstance(value, list) else show(value)}")
    seconds = meta.get("seconds")
    if isinstance(seconds, int | float):
        facts.append(f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60)} s")
    if isinstance(meta.get("created"), str):
        facts.append(meta["created"][:10])
    return facts


def _policy(style: str, script: str) -> str:
    def digest(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii") + "'"

    allowed = f"img-src data:; media-src data:; style-src {digest(style)}; script-src {digest(script)}"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


@cache
def _asset(name: str) -> str:
    return files("unbraid.core.page").joinpath(name).read_text(encoding="utf-8").strip()
