"""Figures as data: a result keeps what a picture shows, so that the page can draw it as SVG and others with matplotlib.

Numbers that are not finite are kept as None: a gap in a line, an empty cell in a head map.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores, HeadSet
from unbraid.core.plain import number, numbers_of, plain, text
from unbraid.core.png import SIGNATURE, encode_png
from unbraid.core.series import Series, make_series
from unbraid.core.show import show
from unbraid.core.wav import decode_wav, encode_wav

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Figure:
    """What all figures share: plain data, equality by content, and a picture of them by matplotlib.

    Every figure has a ``title``, a ``caption`` (what to see in it) and ``alt``, a description for people who cannot see
    it; where ``alt`` is empty the page writes one from the data.
    """

    kind: ClassVar[str]
    title: str
    caption: str
    alt: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, with the kind of figure."""
        return {"kind": self.kind, **{f.name: _dump(getattr(self, f.name)) for f in fields(self)}}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(**{key: value for key, value in data.items() if key != "kind"})

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw on ``ax``, or on a new figure; needs matplotlib.

        Raises:
            UnbraidError: matplotlib is not installed.
        """
        from unbraid.core.plotting import draw

        return draw(self, ax)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, Figure) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def _check_texts(self) -> None:
        for name in ("title", "caption", "alt"):
            text(getattr(self, name), f"{type(self).__name__}.{name}")

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, eq=False)
class HeadMap(Figure):
    """A number per head as a coloured grid: sites downwards in the order of execution, heads to the right.

    Args:
        title: of the figure.
        scores: `HeadScores`, or a mapping site -> [heads].
        caption: what to see in it.
        alt: description for people who cannot see it; empty: written from the data.
        scale: "sequential", "diverging" (zero in the middle) or "auto": diverging if there are both signs.
        limits: values of the two ends of the colour scale, or None for those of the data.
        marked: heads to outline.

    Raises:
        UnbraidError: there is no head, or an argument has another form.
    """

    kind: ClassVar[str] = "head_map"
    title: str
    scores: Any
    caption: str = ""
    alt: str = ""
    scale: str = "auto"
    limits: Any = None
    marked: Any = ()

    def __post_init__(self) -> None:
        self._check_texts()
        if self.scale not in ("auto", "sequential", "diverging"):
            raise UnbraidError(f"HeadMap.scale is {self.scale!r}; it must be 'auto', 'sequential' or 'diverging'.")
        given = self.scores
        if isinstance(given, Mapping):
            given = HeadScores.from_dict(given) if given.get("kind") == "HeadScores" else HeadScores(given)
        if not isinstance(given, HeadScores) or not len(given):
            raise UnbraidError(f"HeadMap.scores must be HeadScores or site -> [heads], with a head, not {given!r}.")
        bounds = [None if b is None else _finite(b) for b in (given.low, given.high)]
        limits = None if self.limits is None else numbers_of(self.limits, "HeadMap.limits")
        if limits is not None and (len(limits) != 2 or None in limits or limits[0] >= limits[1]):  # type: ignore[operator]
            raise UnbraidError(f"HeadMap.limits must be two rising numbers, not {self.limits!r}.")
        self._set(
            scores=HeadScores(_finite(given.scores), given.name, *bounds),
            limits=limits,
            marked=tuple((site, head) for site, head in HeadSet(self.marked)),
        )


def _finite(table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {site: np.where(np.isfinite(row), row, np.nan) for site, row in table.items()}


@dataclass(frozen=True, eq=False)
class Lines(Figure):
    """Lines over a common axis, with bands where the series have intervals.

    Args:
        title: of the figure.
        series: one or more `Series` with numbers as x.
        x_label: with unit.
        y_label: with unit.
        caption: what to see in it.
        alt: description for people who cannot see it; empty: written from the data.
        x_scale: "linear" or "log".
        y_scale: "linear" or "log".
        references: name -> height of dashed horizontal lines, such as the paper's figure or chance.

    Raises:
        UnbraidError: an argument has another form.
    """

    kind: ClassVar[str] = "lines"
    title: str
    series: Any
    x_label: str = ""
    y_label: str = ""
    caption: str = ""
    alt: str = ""
    x_scale: str = "linear"
    y_scale: str = "linear"
    references: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_texts()
        name = type(self).__name__
        for axis in ("x_scale", "y_scale"):
            if getattr(self, axis) not in ("linear", "log"):
                raise UnbraidError(f"{name}.{axis} is {getattr(self, axis)!r}; it must be 'linear' or 'log'.")
        self._set(
            series=make_series(self.series, name, labels=False),
            references={str(k): number(v, f"{name}.references") for k, v in dict(self.references).items()},
        )


@dataclass(frozen=True, eq=False)
class Scatter(Lines):
    """Points; arguments as for `Lines`. ``labels`` of a series name its points."""

    kind: ClassVar[str] = "scatter"


@dataclass(frozen=True, eq=False)
class Bars(Figure):
    """Bars, grouped where there are several series, with whiskers where they have intervals.

    Args:
        title: of the figure.
        series: one or more `Series` whose x are labels, or a mapping label -> value.
        x_label: what the labels are.
        y_label: what the values are, with unit.
        caption: what to see in it.
        alt: description for people who cannot see it; empty: written from the data.
        horizontal: whether bars run to the right; None: where that makes the labels readable.
        references: name -> value of dashed lines, such as the paper's figure or chance.
        edges: [n + 1] numbers between which the n bars lie, for a histogram.

    Raises:
        UnbraidError: an argument has another form, or series have different labels.
    """

    kind: ClassVar[str] = "bars"
    title: str
    series: Any
    x_label: str = ""
    y_label: str = ""
    caption: str = ""
    alt: str = ""
    horizontal: bool | None = None
    references: Mapping[str, float] = field(default_factory=dict)
    edges: Any = None

    def __post_init__(self) -> None:
        self._check_texts()
        given = self.series
        if isinstance(given, Mapping):
            given = [Series("", [str(key) for key in given], list(given.values()))]
        made = make_series(given, "Bars", labels=True)
        if len({item.x for item in made}) > 1:
            raise UnbraidError("Bars needs the same labels, in the same order, in all its series.")
        references = {str(k): number(v, "Bars.references") for k, v in dict(self.references).items()}
        edges = None if self.edges is None else numbers_of(self.edges, "Bars.edges")
        if edges is not None and (len(edges) != len(made[0].x) + 1 or None in edges):
            raise UnbraidError(
                f"Bars.edges needs one number more than there are bars ({len(made[0].x)}), not {self.edges!r}."
            )
        self._set(series=made, references=references, edges=edges)

    @classmethod
    def histogram(cls, title: str, values: Iterable[float], bins: int = 20, **options: Any) -> Bars:
        """How often values fall into equal bins; values that are not finite are left out.

        Args:
            title: of the figure.
            values: numbers, flat or not.
            bins: how many.
            options: further arguments of `Bars`.

        Raises:
            UnbraidError: no value is finite.
        """
        data = np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype=np.float64)
        data = data[np.isfinite(data)]
        if not data.size:
            raise UnbraidError("Bars.histogram needs at least one finite value.")
        counts, edges = np.histogram(data, bins=bins)
        labels = [f"{show(low)} to {show(high)}" for low, high in pairwise(edges)]
        return cls(title, [Series("", labels, counts.tolist())], **{"y_label": "count", "edges": edges, **options})


@dataclass(frozen=True, eq=False)
class HtmlText(Figure):
    """Text whose pieces are coloured by weight: tokens with the attention they get.

    Args:
        title: of the figure.
        spans: pairs (text, weight); a weight of None leaves its piece uncoloured. Line breaks are kept.
        caption: what to see in it.
        alt: description for people who cannot see it; empty: written from the data.
        limits: weights of the two ends of the colour scale, or None: from 0 (or the least) to the greatest.

    Raises:
        UnbraidError: an argument has another form.
    """

    kind: ClassVar[str] = "text"
    title: str
    spans: Any
    caption: str = ""
    alt: str = ""
    limits: Any = None

    def __post_init__(self) -> None:
        self._check_texts()
        spans = []
        for item in self.spans:
            if not (isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], str)):
                raise UnbraidError(f"HtmlText.spans needs pairs (text, weight), not {item!r}.")
            spans.append((item[0], number(item[1], "a weight of HtmlText")))
        limits = None if self.limits is None else numbers_of(self.limits, "HtmlText.limits")
        if limits is not None and (len(limits) != 2 or None in limits or limits[0] >= limits[1]):  # type: ignore[operator]
            raise UnbraidError(f"HtmlText.limits must be two rising numbers, not {self.limits!r}.")
        self._set(spans=tuple(spans), limits=limits)


@dataclass(frozen=True, eq=False)
class Image(Figure):
    """A picture as PNG.

    Args:
        png: the bytes of a PNG file (or their base64 text).
        alt: what can be seen; needed, as no program can write it from the data.
        title: of the figure.
        caption: what to see in it.

    Raises:
        UnbraidError: the bytes are no PNG, or ``alt`` is empty.
    """

    kind: ClassVar[str] = "image"
    png: Any
    alt: str
    title: str = ""
    caption: str = ""

    def __post_init__(self) -> None:
        self._check_texts()
        text(self.alt, "Image.alt (a description for people who cannot see it)", needed=True)
        try:
            data = base64.b64decode(self.png, validate=True) if isinstance(self.png, str) else bytes(self.png)
        except (binascii.Error, TypeError, ValueError):
            data = b""
        if not data.startswith(SIGNATURE):
            raise UnbraidError("Image.png must be the bytes of a PNG file; Image.from_array makes them from pixels.")
        self._set(png=data)

    @classmethod
    def from_array(cls, pixels: Any, alt: str, title: str = "", caption: str = "") -> Image:
        """A picture from pixels: [height, width] or [height, width, 1, 3 or 4], uint8, or floats from 0 to 1.

        Raises:
            UnbraidError: the array has another shape.
        """
        data = np.asarray(pixels)
        data = data[..., None] if data.ndim == 2 else data
        if data.ndim != 3 or data.shape[2] not in (1, 3, 4) or 0 in data.shape:
            raise UnbraidError(f"Image.from_array needs [height, width(, 1, 3 or 4)], not the shape {data.shape}.")
        if data.dtype != np.uint8:
            data = (np.clip(np.nan_to_num(data.astype(np.float64)), 0.0, 1.0) * 255 + 0.5).astype(np.uint8)
        return cls(encode_png(data), alt, title, caption)


@dataclass(frozen=True, eq=False)
class Audio(Figure):
    """A sound that can be played, as WAV.

    Args:
        wav: the bytes of a WAV file, uncompressed, 8 or 16 bit (or their base64 text).
        alt: what can be heard; needed, as no program can write it from the data.
        title: of the figure.
        caption: what to listen for.

    Raises:
        UnbraidError: the bytes are no such file, or ``alt`` is empty.
    """

    kind: ClassVar[str] = "audio"
    wav: Any
    alt: str
    title: str = ""
    caption: str = ""

    def __post_init__(self) -> None:
        self._check_texts()
        text(self.alt, "Audio.alt (a description for people who cannot hear it)", needed=True)
        try:
            data = base64.b64decode(self.wav, validate=True) if isinstance(self.wav, str) else bytes(self.wav)
        except (binascii.Error, TypeError, ValueError):
            data = b""
        decode_wav(data)
        self._set(wav=data)

    @classmethod
    def from_array(cls, samples: Any, rate: int, alt: str, title: str = "", caption: str = "") -> Audio:
        """A sound from samples [n] between -1 and 1, so many a second.

        Raises:
            UnbraidError: the array has another shape.
        """
        data = np.asarray(samples)
        if data.ndim != 1 or not data.size or data.dtype.kind not in "fiu" or int(rate) < 1:
            raise UnbraidError(f"Audio.from_array needs [samples] and a rate, not the shape {data.shape} at {rate}.")
        return cls(encode_wav(data, rate), alt, title, caption)


def _dump(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, HeadScores):
        return value.to_dict()
    if isinstance(value, Series):
        return {f.name: _dump(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple) and value and isinstance(value[0], Series):
        return [_dump(item) for item in value]
    return plain(value, "figure")


KINDS: dict[str, type[Figure]] = {c.kind: c for c in (HeadMap, Lines, Scatter, Bars, HtmlText, Image, Audio)}


def figure_from_dict(data: Mapping[str, Any]) -> Figure:
    """The figure that `Figure.to_dict` described.

    Raises:
        UnbraidError: the data name a kind of figure that this version does not know.
    """
    kind = data.get("kind")
    if kind not in KINDS:
        raise UnbraidError(f"this result holds a figure of kind {kind!r}, which this version of Unbraid cannot draw.")
    try:
        return KINDS[kind].from_dict(data)
    except TypeError as error:
        raise UnbraidError(
            f"this result holds a {kind} figure that this version of Unbraid cannot read ({error})."
        ) from None
