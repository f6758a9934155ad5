"""Steps 1 to 3: the primary sink and its window of blocks, the direction test, and what to call what it finds.

Arrays only, no model. Reference: arXiv 2512.22213 and its script `hidden_state_base.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.systems.secondary_sinks.watch import Profile

Guard = Literal["norm", "centre", "none"]
PAPER_DEPTH = 28  # the paper's bounds on lifetimes (4 and L - 15) leave nothing in between on much shallower models


@dataclass(frozen=True)
class Primary:
    """The primary sink of a text.

    Attributes:
        position: of its token.
        candidate: which of the candidates it is.
        start: first block of its window.
        end: block after the last.
        decays: whether its norm falls by more than half of its peak at `end`; if not, `end` is the number of blocks.
        peak: its largest norm.
        ratio: the largest ratio of its norm to the median token's.
        phases: other ranges (first block, block after the last) in which it stands out: in some models it rises, falls,
            and rises again along another direction.
    """

    position: int
    candidate: int
    start: int
    end: int
    decays: bool
    peak: float
    ratio: float
    phases: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Sink:
    """A token, other than the primary sink, that takes the primary sink's direction.

    Attributes:
        text: which text of those given.
        position: of the token.
        token: its id; -1 where unknown.
        l_start: the block after which it first passes the test.
        layers: every block at which it passes; gaps are possible.
        window: "main" inside the primary sink's window (where the paper looks), "other" inside another of its phases.
        sign: +1 along the primary sink's direction, -1 against it.
        label: "secondary", "BOS-like" or "noise", by lifetime.
        cosine: mean |cosine| over its layers.
        norm: largest norm over its layers.
        ratio: largest ratio of its norm to the median token's.
        write: norm of what the MLP of block l_start added at this token.
        write_cosine: cosine of that with the primary sink's residual stream after the block.
        mlp_share: share of the step towards the primary direction in block l_start that the MLP made; the rest is the
            attention's.
        score: mean attention that it receives from the common queries, over all heads of the blocks that read it (those
            after its layers); NaN: not measured.
    """

    text: int
    position: int
    token: int
    l_start: int
    layers: tuple[int, ...]
    window: str
    sign: int
    label: str
    cosine: float
    norm: float
    ratio: float
    write: float
    write_cosine: float
    mlp_share: float
    score: float = field(default=float("nan"))

    @property
    def lifetime(self) -> int:
        """Number of blocks at which it passes."""
        return len(self.layers)

    @property
    def readers(self) -> list[int]:
        """The blocks whose attention reads it as a sink: each reads what the block before left."""
        return [layer + 1 for layer in self.layers]

    @property
    def level(self) -> tuple[int, int]:
        """(l_start, lifetime)."""
        return self.l_start, self.lifetime

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {**asdict(self), "layers": list(self.layers), "lifetime": self.lifetime}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Sink:
        """The inverse of `to_dict`."""
        given = {k: v for k, v in data.items() if k != "lifetime"}
        return cls(**{**given, "layers": tuple(given["layers"])})


def primary_sink(profile: Profile, min_ratio: float = 10.0, drop: float = 0.5, phase_ratio: float = 3.0) -> Primary:
    """Step 1: which of the first tokens is the primary sink, and between which blocks it lives.

    Args:
        profile: of one text (`Profile.text`).
        min_ratio: the primary sink's norm must reach this multiple of the median token's norm at some block.
        drop: the window ends where the norm falls most, if that fall is more than this share of the peak; else never.
        phase_ratio: outside the window, it stands out where its norm exceeds this multiple of the median token's.

    Raises:
        UnbraidError: no first token stands out, so there is no direction to compare with.
    """
    norm = profile.norm[:, 0]
    count = min(profile.cosine.shape[2], norm.shape[1])
    candidate = int(norm[:, :count].mean(0).argmax())
    n = norm[:, candidate].astype(float)
    others = np.delete(norm, range(count), axis=1) if norm.shape[1] > count else norm
    times = n / np.maximum(np.median(others, axis=1), 1e-12)
    ratio = float(times.max())
    if ratio < min_ratio:
        raise UnbraidError(
            f"No first token is a sink: the largest norm among the first {count} is {ratio:.1f} x the median token's, "
            f"and {min_ratio:g} x is asked for; this model or text has no primary sink to compare with (try a text "
            "that begins with the model's BOS token, or a smaller primary_ratio)."
        )
    d = np.diff(n)
    start = int(d.argmax()) + 1
    fall = start + int(d[start:].argmin()) if start < len(d) else len(n) - 1
    decays = fall < len(d) and -d[fall] > drop * n.max()
    end = fall + 1 if decays else len(n)
    inside = (np.arange(len(n)) >= start) & (np.arange(len(n)) < end)
    phases = _runs((times > phase_ratio) & ~inside)
    return Primary(candidate, candidate, start, end, bool(decays), float(n.max()), ratio, phases)


def _runs(hit: np.ndarray) -> tuple[tuple[int, int], ...]:
    """(first, after last) of every run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], hit, [False]]).astype(int)))
    return tuple((int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True))


def find_sinks(
    profile: Profile,
    primary: Primary,
    *,
    threshold: float = 0.9,
    guard: Guard = "norm",
    guard_ratio: float = 3.0,
    bounds: tuple[int, int] | None = None,
    tokens: np.ndarray | None = None,
    text: int = 0,
) -> list[Sink]:
    """Steps 2 and 3: tokens whose residual stream points along the primary sink's while that stands out.

    Args:
        profile: of one text.
        primary: from `primary_sink`.
        threshold: on |cosine|.
        guard: against late blocks whose tokens share a direction: "norm" asks for a norm of `guard_ratio` times the
            block's median as well, "centre" takes the mean of ordinary tokens off before the cosine, "none" (the
            paper's script) does neither.
        guard_ratio: for guard="norm".
        bounds: lifetimes above the first and below the second are "secondary"; None: `label_bounds`.
        tokens: [T] ids.
        text: number that the sinks will carry.

    Raises:
        UnbraidError: the threshold or the guard is none.
    """
    if not 0 < threshold <= 1:
        raise UnbraidError(f"threshold is {threshold}; a cosine threshold lies between 0 and 1.")
    if guard not in ("norm", "centre", "none"):
        raise UnbraidError(f"guard={guard!r} is unknown; choose 'norm', 'centre' or 'none'.")
    c, norm = primary.candidate, profile.norm[:, 0]
    cosine = (profile.centred if guard == "centre" else profile.cosine)[:, 0, c]
    middle = np.maximum(np.median(norm, axis=1, keepdims=True), 1e-12)
    passes = np.abs(cosine) > threshold
    if guard == "norm":
        passes &= norm > guard_ratio * middle
    passes[:, : primary.position + 1] = False
    low, high = label_bounds(profile.layers) if bounds is None else bounds
    found = []
    ranges = [("main", primary.start, primary.end), *(("other", a, b) for a, b in primary.phases)]
    for window, t, layers in _passing(passes, ranges):
        first = int(layers[0])
        write = profile.write_norm[first, 0, t]
        label = "noise" if len(layers) <= low else "secondary" if len(layers) < high else "BOS-like"
        found.append(
            Sink(
                text=text, position=int(t), token=-1 if tokens is None else int(tokens[t]), l_start=first,
                layers=tuple(int(x) for x in layers), window=window,
                sign=1 if cosine[layers, t].mean() > 0 else -1, label=label,
                cosine=float(np.abs(cosine[layers, t]).mean()), norm=float(norm[layers, t].max()),
                ratio=float((norm[layers, t] / middle[layers, 0]).max()),
                write=float(write), write_cosine=float(profile.write_along[first, 0, c, t] / max(write, 1e-12)),
                mlp_share=decompose(profile, primary, int(t))["mlp"][first],
            )
        )  # fmt: skip
    return found


def _passing(passes: np.ndarray, ranges: list[tuple[str, int, int]]) -> Iterator[tuple[str, int, np.ndarray]]:
    """Tokens that pass in a range of blocks, and the blocks at which they do."""
    for window, start, end in ranges:
        for t in np.flatnonzero(passes[start:end].any(0)):
            yield window, int(t), start + np.flatnonzero(passes[start:end, t])


def decompose(profile: Profile, primary: Primary, position: int) -> dict[str, list[float]]:
    """How each block moves a token along the primary sink's direction: the rise, and who made it.

    Holds for every block that adds to the residual stream; the attention's part is the rise less the MLP's.

    Returns:
        "rise", "mlp" and "attention", each [L]: the first in units of the stream, the others as shares of the rise.
    """
    c = primary.candidate
    rise = profile.along[:, 0, c, position] - profile.before[:, 0, c, position]
    mlp = profile.write_along[:, 0, c, position]
    safe = np.where(np.abs(rise) > 1e-9, rise, np.inf)
    return {"rise": rise.tolist(), "mlp": (mlp / safe).tolist(), "attention": ((rise - mlp) / safe).tolist()}


def label_bounds(layers: int) -> tuple[int, int]:
    """Lifetimes of secondary sinks: more than the first, less than the second.

    The paper's script says 4 and L - 15, for models of 28 to 64 blocks. Below 28 blocks the same shares of 48 blocks
    (its main model) are taken, as L - 15 would call everything BOS-like.
    """
    if layers >= PAPER_DEPTH:
        return 4, layers - 15
    return round(4 * layers / 48), layers - round(15 * layers / 48)


def weak_sinks(
    scores: np.ndarray, known: list[Sink], primary: Primary, common: int, ratio: float = 5.0, least: float = 0.0
) -> list[dict[str, Any]]:
    """Attention-side test: tokens that get far more attention than others of their block, whatever their direction.

    Args:
        scores: [L, T] mean attention received from the same queries, over heads.
        known: sinks that the direction test found.
        primary: its own position is left out.
        common: first of the common queries; keys from there on are not comparable and left out.
        ratio: how many times the block's median score a token must get.
        least: and at least this much.

    Returns:
        One row per token: position, layers, best ratio and score, and whether the direction test found it too.
    """
    at = np.arange(primary.position + 1, common)
    if not len(at):
        return []
    part = scores[:, at]
    middle = np.maximum(np.median(part, axis=1, keepdims=True), 1e-12)
    hit = (part > ratio * middle) & (part > least)
    by_direction = {s.position for s in known}
    rows = []
    for i in np.flatnonzero(hit.any(0)):
        layers = np.flatnonzero(hit[:, i])
        rows.append(
            {
                "position": int(at[i]), "layers": [int(x) for x in layers], "score": float(part[layers, i].max()),
                "times median": float((part[:, i] / middle[:, 0])[layers].max()),
                "by direction too": int(at[i]) in by_direction,
            }
        )  # fmt: skip
    return sorted(rows, key=lambda r: -r["score"])


def massive(profile: Profile, least: float = 100.0, ratio: float = 1000.0) -> list[dict[str, Any]]:
    """Massive activations (arXiv 2402.17762): |h| above `least` and above `ratio` times the block's median |h|.

    Returns:
        One row per token and channel: position, channel, first and last block, largest value.
    """
    peak, middle = profile.peak[:, 0], profile.middle[:, 0][:, None]
    hit = (peak > least) & (peak > ratio * middle)
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for layer, t in zip(*np.nonzero(hit), strict=True):
        key = (int(t), int(profile.channel[layer, 0, t]))
        row = rows.setdefault(key, {"position": key[0], "channel": key[1], "first block": int(layer), "value": 0.0})
        row["last block"] = int(layer)
        row["value"] = max(row["value"], float(peak[layer, t]))
    return sorted(rows.values(), key=lambda r: -r["value"])
