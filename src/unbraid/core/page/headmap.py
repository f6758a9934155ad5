"""Head maps as SVG: one cell per head, whose name and value the page's script tells on hover and with arrow keys."""

from __future__ import annotations

import numpy as np

from unbraid.core.figures import HeadMap
from unbraid.core.heatmap import HeatMap, colour_range
from unbraid.core.page.charts import svg
from unbraid.core.page.colour import LEVELS
from unbraid.core.page.limits import Limits
from unbraid.core.page.markup import Markup, el
from unbraid.core.show import show

LEFT, TOP, WIDTH = 46, 40, 480
LISTED = 10


class Scale:
    """From values to the classes of colours: q0..q63 from low to high, or d0..d64 around zero."""

    def __init__(self, figure: HeadMap | HeatMap) -> None:
        values = figure.array if isinstance(figure, HeatMap) else figure.scores.array
        self.low, self.high, self.diverging = colour_range(values, figure.scale, figure.limits)

    def level(self, value: float) -> str:
        """The class of a value; values beyond the ends have the colour of the end."""
        if np.isnan(value):
            return "none"
        share = min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))
        return f"d{round(share * LEVELS)}" if self.diverging else f"q{min(LEVELS - 1, int(share * LEVELS))}"

    def bar(self, name: str) -> Markup:
        """The legend: the colours from the low to the high end, with their values."""
        steps = np.linspace(self.low, self.high, LEVELS)
        cells = [el("rect", x=i * 3, y=0, width=6, height=10, cls=self.level(float(v))) for i, v in enumerate(steps)]
        bar = el(
            "svg",
            *cells,
            viewBox=f"0 0 {LEVELS * 3} 10",
            preserveAspectRatio="none",
            aria_hidden="true",
            shape_rendering="crispEdges",
        )
        ends = [el("span", show(self.low)), bar, el("span", show(self.high))]
        return el("div", el("span", name, cls="muted"), *ends, cls="colourbar")


def headmap(figure: HeadMap, limits: Limits, alt: str) -> tuple[Markup, str]:
    """The map with its colour bar and a list of the strongest heads; also what was left out, as a sentence or ""."""
    scores, scale = figure.scores, Scale(figure)
    rows = [(f"L{i}", site, values) for i, (site, values) in enumerate(scores.scores.items())]
    pooled = -(-scores.array.size // limits.cells)
    note = ""
    if pooled > 1:
        rows = [_pool(rows[i : i + pooled]) for i in range(0, len(rows), pooled)]
        note = f"Each row stands for {pooled} sites and shows the strongest value of them; all are in result.json."
    drawing = _grid(figure, scale, rows, pooled > 1, alt)
    columns = max(len(values) for _, _, values in rows)
    hint = f"{figure.title or scores.name}: arrow keys go from head to head"
    grid = el("div", drawing, cls="rove map", tabindex=0, role="group", aria_label=hint, data_columns=columns)
    return el("div", el("div", scale.bar(scores.name), grid), _strongest(figure, scale), cls="headmap"), note


Row = tuple[str, str, np.ndarray]


def _pool(rows: list[Row]) -> Row:
    if len(rows) == 1:
        return rows[0]
    width = max(len(values) for _, _, values in rows)
    table = np.full((len(rows), width), np.nan)
    for i, (_, _, values) in enumerate(rows):
        table[i, : len(values)] = values
    size = np.where(np.isnan(table), -1.0, np.abs(table))
    strongest = table[size.argmax(axis=0), np.arange(width)]
    return f"{rows[0][0]}–{rows[-1][0]}", f"{rows[0][1]} to {rows[-1][1]}", strongest


def _grid(figure: HeadMap, scale: Scale, rows: list[Row], pooled: bool, alt: str) -> Markup:
    heads = max(len(values) for _, _, values in rows)
    wide = min(46.0, (WIDTH - LEFT - 8) / heads)
    tall = min(max(min(22.0, 560 / len(rows)), 5.0), max(wide, 5.0))
    gap = 1 if min(wide, tall) > 6 else 0.4
    height = TOP + tall * len(rows) + 8
    marked = {(site, head) for site, head in figure.marked}
    parts = [el("text", "head", x=LEFT, y=12, cls="label"), el("text", "site", x=4, y=TOP - 10, cls="label")]
    parts += [
        el("text", f"H{j}", x=round(LEFT + (j + 0.5) * wide, 2), y=TOP - 8, cls="tick centre")
        for j in range(0, heads, _every(heads, wide, 30 if heads <= 10 else 40))
    ]
    outlines = []
    for i, (label, site, values) in enumerate(rows):
        y = round(TOP + i * tall, 2)
        if i % _every(len(rows), tall, 15) == 0:
            parts.append(el("text", label.partition("–")[0], x=LEFT - 7, y=y + tall / 2, cls="tick end middle"))
        size = f'width="{wide - gap:.2f}" height="{tall - gap:.2f}"'
        cells = []
        for j, value in enumerate(values.tolist()):
            x = round(LEFT + j * wide, 2)
            bounds = "" if pooled else _interval(figure, site, j)
            told = show(None if np.isnan(value) else value)
            cells.append(f'<rect class="{scale.level(value)}" x="{x}" y="{y}" {size} data-v="{told}"{bounds}/>')
            if (site, j) in marked and not pooled:
                outlines.append(
                    el("rect", x=x - gap / 2, y=y - gap / 2, width=round(wide, 2), height=round(tall, 2), cls="marked")
                )
        parts.append(el("g", Markup("".join(cells)), data_row=label, data_site=site))
    return svg(WIDTH, height, alt, *parts, *outlines)


def _every(count: int, room: float, needed: float) -> int:
    """Label every k-th row or column: the least k of 1, 2, 4, 5, 8, 10, ... that leaves room for the text."""
    steps = (1, 2, 4, 5, 8, 10, 16, 20, 32, 40, 50, 64, 100, 128, 200)
    return next((k for k in steps if k * room >= needed), count)


def _interval(figure: HeadMap, site: str, head: int) -> str:
    low, high = figure.scores.low, figure.scores.high
    if low is None or high is None or np.isnan(low[site][head]) or np.isnan(high[site][head]):
        return ""
    return f' data-i="{show(float(low[site][head]))}, {show(float(high[site][head]))}"'


def strongest(figure: HeadMap, count: int, diverging: bool) -> list[tuple[str, str, float]]:
    """(label, site, value) of the heads with the highest values; on a diverging scale, with the greatest magnitude."""
    ranked = [(head, value) for head, value in figure.scores.ranked() if not np.isnan(value)]
    if diverging:
        ranked.sort(key=lambda item: -abs(item[1]))
    return [(figure.scores.label(head), head[0], value) for head, value in ranked[:count]]


def _strongest(figure: HeadMap, scale: Scale) -> Markup:
    listed = strongest(figure, LISTED, scale.diverging)
    body = []
    for label, site, value in listed:
        swatch = el(
            "svg",
            el("rect", width=10, height=10, rx=2, cls=scale.level(value)),
            viewBox="0 0 10 10",
            aria_hidden="true",
        )
        body.append(el("tr", el("td", swatch, " ", label, title=site), el("td", show(value), cls="number")))
    title = "Strongest heads" if scale.diverging else "Highest heads"
    count = len(figure.marked)
    outlined = (
        el("p", f"Outlined: {count:,} chosen {'head' if count == 1 else 'heads'}.", cls="caption") if count else None
    )
    return el("div", el("table", el("caption", title), el("tbody", *body), cls="mini"), outlined, cls="strongest")
