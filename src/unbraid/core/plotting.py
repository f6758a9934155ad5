"""Figures drawn by matplotlib, for papers and notebooks; the page draws its own."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.core.figures import Audio, Bars, Figure, HeadMap, HtmlText, Image, Lines, Scatter
from unbraid.core.heatmap import HeatMap
from unbraid.core.wav import decode_wav

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as PlotFigure


def draw(figure: Figure, ax: Axes | None = None) -> Axes:
    """Draw one figure on ``ax``, or on a new one; see `Figure.plot`."""
    plt = _pyplot()
    drawer = _drawer(figure)
    if drawer is None:
        raise UnbraidError(
            f"{type(figure).__name__} {figure.title!r} is text, which matplotlib does not draw; see to_html()."
        )
    if ax is None:
        _, ax = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    drawer(figure, ax)
    ax.set_title(_plain(figure.title), fontsize="medium", loc="left")
    return ax


def draw_all(figures: Sequence[Figure]) -> PlotFigure:
    """Draw all that can be drawn, two in a row; see `Result.plot`."""
    plt = _pyplot()
    there = [figure for figure in figures if _drawer(figure) is not None]
    if not there:
        raise UnbraidError("this result has no figure that matplotlib can draw; see to_html() and frame().")
    columns = min(2, len(there))
    rows = -(-len(there) // columns)
    canvas, axes = plt.subplots(rows, columns, figsize=(5.4 * columns, 3.8 * rows), layout="constrained", squeeze=False)
    for ax, figure in zip(axes.flat, there, strict=False):
        draw(figure, ax)
    for ax in axes.flat[len(there) :]:
        ax.set_axis_off()
    return canvas


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise UnbraidError('plot() needs matplotlib: pip install "unbraid[viz]".') from None
    return plt


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib would read what stands between two dollars as a formula


def _numbers(values: Sequence[Any]) -> np.ndarray:
    return np.array([np.nan if v is None else float(v) for v in values])


def _map(figure: HeadMap, ax: Axes) -> None:
    array = figure.scores.array
    there = array[np.isfinite(array)]
    low, high = figure.limits or ((there.min(), there.max()) if there.size else (0.0, 1.0))
    diverging = figure.scale == "diverging" or (figure.scale == "auto" and low < 0 < high)
    if diverging and figure.limits is None:
        low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
    image = ax.imshow(
        array, aspect="auto", interpolation="nearest", vmin=low, vmax=high, cmap="RdBu_r" if diverging else "viridis"
    )
    ax.set(xlabel="head", ylabel="site (order of execution)")
    ax.figure.colorbar(image, ax=ax, label=_plain(figure.scores.name))
    marked = [(head, figure.scores.sites.index(site)) for site, head in figure.marked if site in figure.scores.sites]
    if marked:
        across, down = zip(*marked, strict=True)
        ax.scatter(across, down, marker="s", facecolors="none", edgecolors="black", s=40)


_COLOURS = {True: "RdBu_r", False: "viridis"}


def _heat(figure: HeatMap, ax: Axes) -> None:
    low, high, diverging = figure.range
    image = ax.imshow(
        figure.array,
        aspect="auto",
        interpolation="nearest",
        vmin=low,
        vmax=high,
        cmap="RdBu_r" if diverging else "viridis",
    )
    ax.set_xticks(range(len(figure.columns)), [_plain(name) for name in figure.columns], rotation=30, ha="right")
    ax.set_yticks(range(len(figure.rows)), [_plain(name) for name in figure.rows])
    ax.set(xlabel=_plain(figure.x_label), ylabel=_plain(figure.y_label))
    ax.figure.colorbar(image, ax=ax)


def _lines(figure: Lines, ax: Axes) -> None:
    for one in figure.series:
        x, y = _numbers(one.x), _numbers(one.y)
        label = _plain(one.name) or None
        if isinstance(figure, Scatter):
            ax.scatter(x, y, s=14, label=label)
            continue
        order = np.argsort(x)
        ax.plot(x[order], y[order], marker="o" if len(x) <= 40 else None, markersize=4, label=label)
        if one.low is not None and one.high is not None:
            ax.fill_between(x[order], _numbers(one.low)[order], _numbers(one.high)[order], alpha=0.18)
    ax.set(xlabel=_plain(figure.x_label), ylabel=_plain(figure.y_label), xscale=figure.x_scale, yscale=figure.y_scale)
    _references(figure, ax.axhline)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize="small", frameon=False)


def _bars(figure: Bars, ax: Axes) -> None:
    labels = [_plain(label) for label in figure.series[0].x]
    flat = bool(figure.horizontal)
    thick = 0.8 / len(figure.series)
    for i, one in enumerate(figure.series):
        y = _numbers(one.y)
        at = np.arange(len(labels)) + (i - (len(figure.series) - 1) / 2) * thick
        error = None
        if one.low is not None and one.high is not None:
            error = np.abs(np.stack([y - _numbers(one.low), _numbers(one.high) - y]))
        label = _plain(one.name) or None
        if flat:
            ax.barh(at, y, thick, xerr=error, label=label)
        else:
            ax.bar(at, y, thick, yerr=error, label=label)
    ticks = np.arange(len(labels))[:: max(1, len(labels) // 10)]
    if flat:
        ax.set_yticks(ticks, [labels[k] for k in ticks])
        ax.invert_yaxis()
    else:
        ax.set_xticks(
            ticks, [labels[k] for k in ticks], rotation=30 if max(map(len, labels), default=0) > 6 else 0, ha="right"
        )
    ax.set(
        **dict(
            zip(
                ("ylabel", "xlabel") if flat else ("xlabel", "ylabel"),
                map(_plain, (figure.x_label, figure.y_label)),
                strict=True,
            )
        )
    )
    _references(figure, ax.axvline if flat else ax.axhline)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize="small", frameon=False)


def _references(figure: Lines | Bars, line: Callable[..., Any]) -> None:
    for name, value in figure.references.items():
        if value is not None:
            line(value, linestyle="--", linewidth=1, color="grey", label=_plain(name))


def _picture(figure: Image, ax: Axes) -> None:
    import matplotlib.image

    ax.imshow(matplotlib.image.imread(io.BytesIO(figure.png), format="png"), cmap="gray")
    ax.set_axis_off()


def _waveform(figure: Audio, ax: Axes) -> None:
    samples, rate = decode_wav(figure.wav)
    ax.plot(np.arange(len(samples)) / rate, samples, linewidth=0.5)
    ax.set(xlabel="seconds", ylim=(-1, 1))


def _drawer(figure: Figure) -> Callable[[Any, Axes], None] | None:
    known: tuple[tuple[type[Figure], Callable[[Any, Axes], None] | None], ...] = (
        (HeadMap, _map),
        (HeatMap, _heat),
        (Lines, _lines),
        (Bars, _bars),
        (Image, _picture),
        (Audio, _waveform),
        (HtmlText, None),
    )
    return next((drawer for kind, drawer in known if isinstance(figure, kind)), None)
