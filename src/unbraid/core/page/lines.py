"""Line charts with bands, and scatters, as SVG."""

from __future__ import annotations

from unbraid.core.figures import Lines, Scatter
from unbraid.core.page.axes import Axis, make_axis, tight_axis
from unbraid.core.page.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    frame,
    marker,
    point_text,
    reference,
    style,
    svg,
)
from unbraid.core.page.limits import Limits, keep_extremes, keep_some
from unbraid.core.page.markup import Markup, el
from unbraid.core.series import Series


def lines(figure: Lines, limits: Limits, alt: str) -> tuple[Markup, str]:
    """A line chart or a scatter; also what was left out, as a sentence or ""."""
    picked = [_pick(figure, one, limits) for one in figure.series]
    x, y = _axes(figure)
    parts = frame(x, y, figure.x_label, figure.y_label, x.ticks())
    parts += [
        reference(name, v, y(v), LEFT, RIGHT) for name, v in figure.references.items() if v is not None and y.shows(v)
    ]
    drawn = list(zip(range(len(picked)), figure.series, picked, strict=True))
    if not isinstance(figure, Scatter):
        parts += [_band(one, keep, x, y, i) for i, one, keep in drawn if one.low is not None]
        parts += [_line(one, keep, x, y, i) for i, one, keep in drawn]
    for i, one, keep in drawn:
        parts += _points(one, keep, x, y, i, figure)
    return svg(WIDTH, HEIGHT, alt, *parts), _left_out(figure, picked)


def _axes(figure: Lines) -> tuple[Axis, Axis]:
    xs = [v for s in figure.series for v in s.x]
    ys = [v for s in figure.series for part in (s.y, s.low or (), s.high or ()) for v in part]
    if isinstance(figure, Scatter):
        x = make_axis(xs, LEFT, RIGHT - 8, log=figure.x_scale == "log")
    else:
        x = tight_axis(xs, LEFT + 8, RIGHT - 8, log=figure.x_scale == "log")
    return x, make_axis([*ys, *figure.references.values()], BOTTOM, TOP, log=figure.y_scale == "log")


def _pick(figure: Lines, one: Series, limits: Limits) -> list[int]:
    if isinstance(figure, Scatter):
        return keep_some(len(one.x), limits.points)
    order = sorted(range(len(one.x)), key=lambda i: (one.x[i] is None, one.x[i] or 0))
    return [order[i] for i in keep_extremes([one.y[j] for j in order], limits.points)]


def _left_out(figure: Lines, picked: list[list[int]]) -> str:
    drawn, there = sum(map(len, picked)), sum(len(s.x) for s in figure.series)
    if drawn == there:
        return ""
    how = "drawn at random" if isinstance(figure, Scatter) else "the least and the greatest of each stretch"
    return f"Shows {drawn:,} of {there:,} points ({how}); all are in result.json."


def _runs(one: Series, keep: list[int], x: Axis, y: Axis, *needed: str) -> list[list[int]]:
    """Stretches of points that have all the needed values: lines and bands have gaps where a value is missing."""
    runs: list[list[int]] = [[]]
    for i in keep:
        values = [getattr(one, name)[i] for name in needed]
        if x.shows(one.x[i]) and all(y.shows(v) for v in values):
            runs[-1].append(i)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _line(one: Series, keep: list[int], x: Axis, y: Axis, i: int) -> Markup:
    steps = [
        " ".join(f"{'L' if k else 'M'}{x(one.x[j])} {y(one.y[j])}" for k, j in enumerate(run))
        for run in _runs(one, keep, x, y, "y")
    ]
    return el("path", d=" ".join(steps), cls=f"line {style(i)}")


def _band(one: Series, keep: list[int], x: Axis, y: Axis, i: int) -> Markup:
    low, high = one.low or (), one.high or ()
    shapes = []
    for run in _runs(one, keep, x, y, "low", "high"):
        corners = [f"{x(one.x[j])} {y(high[j])}" for j in run] + [f"{x(one.x[j])} {y(low[j])}" for j in reversed(run)]
        shapes.append(f"M{'L'.join(corners)}Z")
    return el("path", d=" ".join(shapes), cls=f"band {style(i)}")


def _points(one: Series, keep: list[int], x: Axis, y: Axis, i: int, figure: Lines) -> list[Markup]:
    cloud = isinstance(figure, Scatter)
    shown = [j for j in keep if x.shows(one.x[j]) and y.shows(one.y[j])]
    crowded = not cloud and len(shown) > 40
    if crowded:  # only every k-th point can be asked for its value, and its shape is not drawn
        shown = shown[:: -(-len(shown) // 80)]
    parts = []
    for j in shown:
        if cloud and one.low is not None and one.high is not None and y.shows(one.low[j]) and y.shows(one.high[j]):
            at = x(one.x[j])
            parts.append(el("line", x1=at, x2=at, y1=y(one.low[j]), y2=y(one.high[j]), cls=f"whisker {style(i)}"))
        tip = point_text(one, j, figure.x_label, figure.y_label)
        extra = {"cls": f"point quiet {style(i)}"} if crowded else {}
        parts.append(marker(i, x(one.x[j]), y(one.y[j]), data_tip=tip, **extra))
    return parts
