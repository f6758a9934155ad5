"""Bar charts and histograms as SVG, upright or, where labels are long, lying."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from unbraid.core.figures import Bars
from unbraid.core.page.axes import Axis, make_axis
from unbraid.core.page.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, frame, point_text, reference, style, svg
from unbraid.core.page.limits import Limits
from unbraid.core.page.markup import Markup, el

_CHARACTER = 8.0  # about the width of one, at the larger size that narrow screens get


def bars(figure: Bars, limits: Limits, alt: str) -> tuple[Markup, str]:
    """A bar chart; also what was left out, as a sentence or ""."""
    labels = figure.series[0].x
    count = min(len(labels), max(4, limits.points // 5))
    flat = figure.horizontal
    if flat is None:
        room = (RIGHT - LEFT) / max(1, count)
        flat = figure.edges is None and any(len(label) * _CHARACTER > room for label in labels[:count])
    note = "" if count == len(labels) else f"Shows the first {count:,} of {len(labels):,} bars; all are in result.json."
    return (_lying if flat else _upright)(figure, count, alt), note


@dataclass(frozen=True)
class _Layout:
    """Where the bars stand: group k takes ``room`` from ``start + k * room``, of which they fill the share ``fill``."""

    value: Axis
    start: float
    room: float
    fill: float
    flat: bool


def _value_axis(figure: Bars, count: int, start: float, stop: float) -> Axis:
    values = [v for s in figure.series for part in (s.y, s.low or (), s.high or ()) for v in part[:count]]
    return make_axis([*values, *figure.references.values()], start, stop, zero=True)


def _marks(figure: Bars, count: int, at: _Layout) -> Iterator[Markup]:
    """The bars with their whiskers: along the value axis from zero, across it side by side."""
    many = len(figure.series)
    thick = at.room * at.fill / many
    zero = at.value(0)
    for i, one in enumerate(figure.series):
        for k in range(count):
            value = one.y[k]
            if value is None:
                continue
            side = round(at.start + (k + 0.5) * at.room + (i - many / 2) * thick, 2)
            width = round(max(thick - 1, 0.6), 2)
            end = at.value(value)
            near, long = round(min(end, zero), 2), round(max(abs(end - zero), 0.6), 2)
            box = (near, side, long, width) if at.flat else (side, near, width, long)
            place = dict(zip(("x", "y", "width", "height"), box, strict=True))
            yield el("rect", **place, cls=f"bar {style(i)}", data_tip=point_text(one, k))
            if one.low is not None and one.high is not None and one.low[k] is not None and one.high[k] is not None:
                yield _whisker(at.value(one.low[k]), at.value(one.high[k]), round(side + width / 2, 2), at.flat)


def _whisker(low: float, high: float, middle: float, flat: bool) -> Markup:
    if flat:
        return el("line", x1=low, x2=high, y1=middle, y2=middle, cls="whisker")
    return el("line", x1=middle, x2=middle, y1=low, y2=high, cls="whisker")


def _upright(figure: Bars, count: int, alt: str) -> Markup:
    y = _value_axis(figure, count, BOTTOM, TOP)
    room = (RIGHT - LEFT) / max(1, count)
    if figure.edges is not None:
        x = Axis(figure.edges[0], figure.edges[count], LEFT, RIGHT)
        ticks = x.ticks()
    else:
        x = Axis(0, max(1, count), LEFT, RIGHT)
        labels = [_short(label, 22) for label in figure.series[0].x[:count]]
        every = max(1, -(-int(max(map(len, labels), default=1) * _CHARACTER) // max(1, int(room))))
        ticks = [(k + 0.5, label) for k, label in enumerate(labels) if k % every == 0]
    parts = frame(x, y, figure.x_label, figure.y_label, ticks)
    parts += _marks(figure, count, _Layout(y, LEFT, room, 1.0 if figure.edges is not None else 0.78, False))
    parts += [reference(name, v, y(v), LEFT, RIGHT) for name, v in figure.references.items() if v is not None]
    parts.append(el("line", x1=LEFT, x2=RIGHT, y1=y(0), y2=y(0), cls="axis"))
    return svg(WIDTH, HEIGHT, alt, *parts)


def _lying(figure: Bars, count: int, alt: str) -> Markup:
    room = max(9, 20 - 3 * len(figure.series)) * len(figure.series) + 8
    labels = [_short(label, 24) for label in figure.series[0].x[:count]]
    left, right, top = min(200, 14 + max(map(len, labels), default=0) * _CHARACTER), WIDTH - 20, 22
    bottom = top + 4 + room * count
    x = _value_axis(figure, count, left, right)
    parts = []
    for value, text in x.ticks(4):
        parts.append(el("line", x1=x(value), x2=x(value), y1=top, y2=bottom, cls="grid"))
        parts.append(el("text", text, x=x(value), y=bottom + 16, cls="tick centre"))
    for k, label in enumerate(labels):
        parts.append(el("text", label, x=left - 7, y=top + 2 + room * (k + 0.5), cls="tick end middle"))
    parts += _marks(figure, count, _Layout(x, top + 2, room, 1 - 8 / room, True))
    parts += [reference(n, v, x(v), top, bottom, upright=True) for n, v in figure.references.items() if v is not None]
    parts.append(el("line", x1=x(0), x2=x(0), y1=top, y2=bottom, cls="axis"))
    if figure.x_label:
        parts.append(el("text", figure.x_label, x=4, y=13, cls="label"))
    if figure.y_label:
        parts.append(el("text", figure.y_label, x=right, y=bottom + 36, cls="label end"))
    return svg(WIDTH, bottom + (46 if figure.y_label else 26), alt, *parts)


def _short(label: str, length: int) -> str:
    return label if len(label) <= length else label[: length - 1] + "…"
