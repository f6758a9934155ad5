"""What all charts share. They are drawn in a box of 480 units, so that they can be read at the width of a phone."""

from __future__ import annotations

from unbraid.core.figures import Bars, Lines, Scatter
from unbraid.core.page.axes import Axis
from unbraid.core.page.markup import Markup, el, join
from unbraid.core.series import Series
from unbraid.core.show import show

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 466, 34, 252
HALF = 3.6  # of a character's width
COLOURS = 6
MARKERS = ("circle", "square", "triangle", "diamond", "down", "cross")
_SHAPES = {
    "circle": "M-3.4 0a3.4 3.4 0 1 0 6.8 0a3.4 3.4 0 1 0 -6.8 0z",
    "square": "M-3 -3h6v6h-6z",
    "triangle": "M0 -4l4 7h-8z",
    "diamond": "M0 -4.4l4.2 4.4l-4.2 4.4l-4.2 -4.4z",
    "down": "M0 4l4 -7h-8z",
    "cross": "M-3.6 -2l1.6 -1.6l2 2l2 -2l1.6 1.6l-2 2l2 2l-1.6 1.6l-2 -2l-2 2l-1.6 -1.6l2 -2z",
}


def style(i: int) -> str:
    """Classes of the i-th series: a colour, and from the seventh on a dash too."""
    return f"s{i % COLOURS}" + (f" dash{min(i // COLOURS, 2)}" if i >= COLOURS else "")


def marker(i: int, x: float, y: float, **attributes: object) -> Markup:
    """The i-th series' own shape, so that colour is never the only difference."""
    shape = _SHAPES[MARKERS[i % len(MARKERS)]]
    return el("path", d=shape, transform=f"translate({x} {y})", **{"cls": f"point {style(i)}", **attributes})


def svg(width: float, height: float, alt: str, *children: object) -> Markup:
    """A drawing with its description; the description of a drawing is never left out."""
    return el("svg", *children, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=alt)


def legend(figure: Lines | Bars) -> Markup | None:
    """Names beside their line, shape or bar; None where there is nothing to tell apart."""
    items = []
    for i, one in enumerate(figure.series):
        if not one.name or (len(figure.series) == 1 and not figure.references):
            continue
        if isinstance(figure, Bars):
            sign: object = el("rect", x=4, y=2, width=12, height=12, rx=2, cls=f"bar {style(i)}")
        elif isinstance(figure, Scatter):
            sign = marker(i, 10, 8)
        else:
            sign = join([el("line", x1=0, x2=20, y1=8, y2=8, cls=f"line {style(i)}"), marker(i, 10, 8)])
        items.append(el("li", el("svg", sign, viewBox="0 0 20 16", aria_hidden="true"), one.name))
    for name in figure.references:
        line = el("line", x1=0, x2=20, y1=8, y2=8, cls="reference")
        items.append(el("li", el("svg", line, viewBox="0 0 20 16", aria_hidden="true"), name))
    return el("ul", *items, cls="legend") if items else None


def frame(x: Axis, y: Axis, x_label: str, y_label: str, x_ticks: list[tuple[float, str]]) -> list[Markup]:
    """Grid, axes, ticks and labels of an upright chart; ``x_ticks`` are (value, text)."""
    parts = []
    for value, text in y.ticks():
        at = y(value)
        parts.append(el("line", x1=LEFT, x2=RIGHT, y1=at, y2=at, cls="grid"))
        parts.append(el("text", text, x=LEFT - 7, y=at, cls="tick end middle"))
    for value, text in x_ticks:
        parts.append(el("line", x1=x(value), x2=x(value), y1=BOTTOM, y2=BOTTOM + 4, cls="axis"))
        inside = min(x(value), round(WIDTH - HALF * len(text), 1))  # a long last number would reach beyond the drawing
        parts.append(el("text", text, x=inside, y=BOTTOM + 18, cls="tick centre"))
    parts.append(el("line", x1=LEFT, x2=RIGHT, y1=BOTTOM, y2=BOTTOM, cls="axis"))
    if y_label:
        parts.append(el("text", y_label, x=4, y=15, cls="label"))
    if x_label:
        parts.append(el("text", x_label, x=RIGHT, y=HEIGHT - 8, cls="label end"))
    return parts


def reference(name: str, value: float | int, at: float, start: float, stop: float, *, upright: bool = False) -> Markup:
    """A dashed line across the chart at the height (or, upright, the place) of a value."""
    ends = {"x1": at, "x2": at, "y1": start, "y2": stop} if upright else {"x1": start, "x2": stop, "y1": at, "y2": at}
    return el("line", **ends, cls="reference", data_tip=f"{name}: {show(value)}")


def point_text(one: Series, i: int, x_label: str = "", y_label: str = "") -> str:
    """What is said of a point: its series and name, x and y, and its interval."""
    x = one.x[i] if isinstance(one.x[i], str) else f"{x_label or 'x'} {show(one.x[i])}"
    y = f"{y_label or 'y'} {show(one.y[i])}" if not isinstance(one.x[i], str) else show(one.y[i])
    if one.low is not None and one.high is not None and one.low[i] is not None:
        y += f" [{show(one.low[i])}, {show(one.high[i])}]"
    return " · ".join(part for part in (one.name, one.labels[i] if one.labels else "", x, y) if part)
