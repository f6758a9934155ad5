"""The figures of an audit: tables of codes by factors, and what each code does to the decoded image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.core.figures import Bars, Figure, Image
from unbraid.core.heatmap import HeatMap
from unbraid.core.mosaic import mosaic
from unbraid.core.series import Series
from unbraid.metrics.disentanglement.inputs import Observed, Score, as_array

Decode = Callable[[np.ndarray], Any]
STEPS, ROWS = 9, 12
MAPS = (
    ("information", "Information of each code about each factor", "Share of the factor's entropy that a code tells."),
    ("importance", "Importance of each code for each factor", "Each column sums to 1."),
    ("correlation", "Correlation of codes with factors", "Pearson; blind to what is not monotone."),
    (
        "votes",
        "FactorVAE votes",
        "Share of a fixed factor's votes that named a code: one cell per column is best.",
    ),
)


def correlation(seen: Observed) -> np.ndarray:
    """[U, K] Pearson correlation of codes with factors; of a block, the greatest in size; NaN where one is constant."""
    z, v = seen.z - seen.z.mean(axis=0), seen.values - seen.values.mean(axis=0)
    below = np.sqrt(np.outer((z**2).sum(axis=0), (v**2).sum(axis=0)))
    r = np.divide(z.T @ v, below, out=np.full(below.shape, np.nan), where=below > 0)
    best = [r[b][np.abs(np.nan_to_num(r[b])).argmax(axis=0), np.arange(r.shape[1])] for b in seen.blocks]
    return np.stack(best)


def figures(
    seen: Observed, scores: Mapping[str, Score], arrays: Mapping[str, np.ndarray], rows: Sequence[Mapping[str, Any]]
) -> list[Figure]:
    """Bars of the scores, and the maps of what is in ``arrays``."""
    shown = [row for row in rows if row["best"] == 1 and row["value"] is not None]
    whiskers = [(r["low"], r["high"]) if r["low"] is not None else (r["value"], r["value"]) for r in shown]
    names, values = [row["metric"] for row in shown], [row["value"] for row in shown]
    low, high = [w[0] for w in whiskers], [w[1] for w in whiskers]
    out: list[Figure] = []
    if shown:
        bars = Series("", names, values, low, high)
        out.append(
            Bars("Scores that are best at 1", [bars], y_label="score", caption="95 % intervals.", horizontal=True)
        )
    for name, title, caption in MAPS:
        if name in arrays:
            columns = scores["factor_vae"]["factors"] if name == "votes" else seen.names
            scale = "diverging" if name == "correlation" else "sequential"
            limits = (-1, 1) if name == "correlation" else (0, 1)
            made = HeatMap(
                title, arrays[name], seen.labels, columns, "factors", "codes", caption, scale=scale, limits=limits
            )
            out.append(made)
    return out


def traversal(decode: Decode, seen: Observed, codes: np.ndarray, information: np.ndarray) -> Image:
    """What the decoder shows while one code goes from its 2nd to its 98th percentile, the others at their median.

    Args:
        decode: [n, J] codes -> [n, C, H, W], [n, H, W, C] or [n, H, W] images from 0 to 1.
        seen: checked data.
        codes: [N, J] all codes as given.
        information: [U, K]; codes are shown in the order of their factors.

    Raises:
        UnbraidError: decode returns something else.
    """
    places = np.flatnonzero(seen.active)
    order = sorted(range(len(seen.blocks)), key=lambda u: -float(np.nanmax(information[u])))[:ROWS]
    order.sort(key=lambda u: int(np.nanargmax(information[u])))
    columns = [int(places[b]) for u in order for b in seen.blocks[u]][: 2 * ROWS]
    base = np.median(codes, axis=0)
    wanted = np.repeat(base[None], len(columns) * STEPS, axis=0)
    for i, column in enumerate(columns):
        low, high = np.quantile(codes[:, column], [0.02, 0.98])
        wanted[i * STEPS : (i + 1) * STEPS, column] = np.linspace(low, high, STEPS)
    images = as_images(decode(wanted.astype(np.float32)), len(wanted))
    names = ", ".join(f"z{column}" for column in columns)
    told = f"Decoded images, one row per code ({names}), each from its 2nd percentile (left) to its 98th (right)."
    return Image.from_array(
        mosaic(images.transpose(0, 3, 1, 2), STEPS),
        told,
        "Traversals",
        f"Rows from the top: {names}; the other codes stay at their median.",
    )


def as_images(given: Any, count: int) -> np.ndarray:
    """[n, H, W, 1 or 3] from what a decoder returns.

    Raises:
        UnbraidError: these are no images, or not as many as codes.
    """
    images = as_array(given, "what decode(z) returns").astype(np.float64)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or len(images) != count or not (images.shape[1] in (1, 3) or images.shape[3] in (1, 3)):
        raise UnbraidError(
            f"decode(z) returned shape {images.shape} for {count} codes; it must return [n, C, H, W], [n, H, W, C] or "
            "[n, H, W] with 1 or 3 channels and values from 0 to 1."
        )
    return images if images.shape[3] in (1, 3) else images.transpose(0, 2, 3, 1)
