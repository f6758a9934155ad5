"""Heat maps as SVG: one cell per row and column, told on hover and with arrow keys."""

from __future__ import annotations

import math

from unbraid.core.heatmap import HeatMap
from unbraid.core.page.charts import svg
from unbraid.core.page.headmap import Scale
from unbraid.core.page.limits import Limits, clip
from unbraid.core.page.markup import Markup, el
from unbraid.core.show import show

WIDTH, TALLEST, WIDEST = 480, 26.0, 64.0
CHARACTER = 7.0
LONGEST, ROOMY = 18, 44  # characters of a name; of a row's where few columns leave room
CELL = 40.0  # a width at which cells are easy to tell apart


def heatmap(figure: HeatMap, limits: Limits, alt: str) -> tuple[Markup, str]:
    """The map with its colour bar; also what was left out, as a sentence or ""."""
    scale = Scale(figure)
    room = max(1, limits.cells // len(figure.columns))
    shown = min(len(figure.rows), room)
    note = "" if shown == len(figure.rows) else f"Shows the first {shown:,} of {len(figure.rows):,} rows."
    hint = f"{figure.title}: arrow keys go from cell to cell"
    grid = el(
        "div", _grid(figure, scale, shown, limits, alt), cls="rove map", tabindex=0, role="group", aria_label=hint
    )
    return el("div", scale.bar(""), grid), note


def _short(name: str, limits: Limits, longest: int = LONGEST) -> str:
    name = clip(name, limits)
    return name if len(name) <= longest else name[: longest - 1] + "…"


def _grid(figure: HeatMap, scale: Scale, shown: int, limits: Limits, alt: str) -> Markup:
    left_over = int((WIDTH - CELL * len(figure.columns)) / CHARACTER)
    longest = min(ROOMY, max(LONGEST, left_over))
    rows = [_short(name, limits, longest) for name in figure.rows[:shown]]
    columns = [_short(name, limits) for name in figure.columns]
    left = 14 + CHARACTER * max(map(len, rows))
    wide = min(WIDEST, (WIDTH - left - 8) / len(columns))
    level = all(len(name) * CHARACTER < wide - 4 for name in columns)
    if not level:  # slanted names reach beyond their column
        wide = min(WIDEST, (WIDTH - left - 8 - 0.7 * CHARACTER * len(columns[-1])) / len(columns))
    top = 40 if level else 30 + 0.75 * CHARACTER * max(map(len, columns))
    tall = max(5.0, min(TALLEST, 620 / shown))
    gap = 1 if min(wide, tall) > 6 else 0.3
    parts = [el("text", figure.y_label, x=4, y=12, cls="label")] if figure.y_label else []
    if figure.x_label:
        parts.append(el("text", figure.x_label, x=WIDTH - 8, y=12, cls="label end"))
    every = max(1, math.ceil((1 if level else 19) / wide))
    for j in range(0, len(columns), every):
        x = round(left + (j + 0.5) * wide, 2)
        if level:
            parts.append(el("text", columns[j], x=x, y=top - 8, cls="tick centre"))
        else:
            turn = f"rotate(-45 {x} {top - 6:.1f})"
            parts.append(el("text", columns[j], x=x, y=round(top - 6, 1), transform=turn, cls="tick"))
    for i, (name, values) in enumerate(zip(figure.rows[:shown], figure.array, strict=False)):
        y = round(top + i * tall, 2)
        if i % max(1, -(-13 // int(tall))) == 0:
            parts.append(el("text", rows[i], x=round(left - 7, 1), y=y + tall / 2, cls="tick end middle"))
        cells = []
        for j, value in enumerate(values.tolist()):
            said = show(None if math.isnan(value) else value)
            told = f"{clip(name, limits)} · {clip(figure.columns[j], limits)} · {said}"
            box = {"x": round(left + j * wide, 2), "y": y, "width": f"{wide - gap:.2f}", "height": f"{tall - gap:.2f}"}
            cells.append(el("rect", cls=scale.level(value), **box, data_tip=told))
        parts.append(el("g", *cells, data_row=str(i)))
    return svg(WIDTH, top + tall * shown + 8, alt, *parts)
