"""Descriptions of pictures, written from their data, for people who cannot see them."""

from __future__ import annotations

import numpy as np

from unbraid.core.figures import Bars, Figure, HeadMap, HtmlText, Lines, Scatter
from unbraid.core.heatmap import HeatMap
from unbraid.core.page.headmap import Scale, strongest
from unbraid.core.series import Series
from unbraid.core.show import show


def describe(figure: Figure) -> str:
    """The figure's own ``alt``, or a description from its data."""
    if figure.alt.strip():
        return figure.alt
    title = f"{figure.title}. " if figure.title else ""
    if isinstance(figure, HeadMap):
        return title + _map(figure)
    if isinstance(figure, HeatMap):
        return title + _table(figure)
    if isinstance(figure, Scatter):
        return (
            title
            + f"Scatter of {figure.y_label or 'y'} over {figure.x_label or 'x'}. "
            + " ".join(map(_cloud, figure.series))
        )
    if isinstance(figure, Lines):
        return (
            title
            + f"Lines of {figure.y_label or 'y'} over {figure.x_label or 'x'}. "
            + " ".join(map(_course, figure.series))
        )
    if isinstance(figure, Bars):
        return title + f"Bars of {figure.y_label or 'values'}. " + " ".join(map(_heights, figure.series))
    if isinstance(figure, HtmlText):
        return title + _weights(figure)
    return title + "Picture."


def _map(figure: HeadMap) -> str:
    array = figure.scores.array
    there = array[np.isfinite(array)]
    if not there.size:
        return f"Head map of {figure.scores.name} without values."
    named = ", ".join(f"{label} ({show(value)})" for label, _, value in strongest(figure, 3, Scale(figure).diverging))
    return (
        f"Head map of {figure.scores.name}: {len(figure.scores.sites)} sites by {array.shape[1]} heads, "
        f"from {show(float(there.min()))} to {show(float(there.max()))}; first are {named}."
    )


def _table(figure: HeatMap) -> str:
    array = figure.array
    told = []
    for name, row in zip(figure.rows, array, strict=True):
        if np.isfinite(row).any():
            at = int(np.nanargmax(np.abs(row)))
            told.append(f"{name}: {figure.columns[at]} ({show(float(row[at]))})")
    size = f"{len(figure.rows)} {figure.y_label or 'rows'} by {len(figure.columns)} {figure.x_label or 'columns'}"
    return f"Heat map of {size}; the greatest of each row: {'; '.join(told[:12]) or 'no values'}."


def _named(one: Series) -> str:
    return f"{one.name}: " if one.name else ""


def _course(one: Series) -> str:
    points = [(x, y) for x, y in zip(one.x, one.y, strict=True) if y is not None]
    if not points:
        return f"{_named(one)}no values."
    (x0, y0), (x1, y1) = points[0], points[-1]
    least, greatest = min(points, key=lambda p: p[1]), max(points, key=lambda p: p[1])
    return (
        f"{_named(one)}{len(points)} points, {show(y0)} at {show(x0)} to {show(y1)} at {show(x1)}; "
        f"least {show(least[1])} at {show(least[0])}, greatest {show(greatest[1])} at {show(greatest[0])}."
    )


def _cloud(one: Series) -> str:
    points = [(x, y) for x, y in zip(one.x, one.y, strict=True) if x is not None and y is not None]
    if not points:
        return f"{_named(one)}no points."
    xs, ys = (np.array(v, dtype=float) for v in zip(*points, strict=True))
    r = f", correlation {show(float(np.corrcoef(xs, ys)[0, 1]))}" if len(points) > 2 and xs.std() and ys.std() else ""
    across, up = (f"{show(float(v.min()))} to {show(float(v.max()))}" for v in (xs, ys))
    return f"{_named(one)}{len(points)} points, x {across}, y {up}{r}."


def _heights(one: Series) -> str:
    told = ", ".join(f"{x} {show(y)}" for x, y in zip(one.x[:12], one.y[:12], strict=True))
    return f"{_named(one)}{told}{f' and {len(one.x) - 12} more' if len(one.x) > 12 else ''}."


def _weights(figure: HtmlText) -> str:
    weighed = sorted(((w, t) for t, w in figure.spans if w is not None), key=lambda item: -item[0])
    heaviest = ", ".join(f"“{t.strip()}” ({show(w)})" for w, t in weighed[:3])
    return (
        f"Text of {len(figure.spans)} pieces coloured by weight{f'; the heaviest are {heaviest}' if heaviest else ''}."
    )
