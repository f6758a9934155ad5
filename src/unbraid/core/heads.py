"""Heads as data: `HeadSet` (which ones) and `HeadScores` (how much), with JSON on disk. Needs numpy only."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unbraid.core.errors import UnbraidError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Head = tuple[str, int]


class HeadSet:
    """An ordered set of attention heads, each a pair (site, head): site is a qualified module name.

    Example:
        >>> a = HeadSet([("layers.0.attn", 1), ("layers.2.attn", 0)])
        >>> b = HeadSet([("layers.2.attn", 0)])
        >>> len(a & b), a.overlap(b)
        (1, 0.5)
    """

    def __init__(self, heads: Iterable[Head] = ()) -> None:
        unique: dict[Head, None] = {}
        for item in heads:
            if not (isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], str)):
                raise UnbraidError(
                    f"A head is a pair (site, number) such as ('model.layers.3.self_attn', 5), not {item!r}."
                )
            number = int(item[1])
            if number < 0:
                raise UnbraidError(f"Heads are numbered from 0; {item!r} is negative.")
            unique[item[0], number] = None
        self._heads = tuple(unique)

    def __iter__(self) -> Iterator[Head]:
        return iter(self._heads)

    def __len__(self) -> int:
        return len(self._heads)

    def __contains__(self, head: object) -> bool:
        return head in set(self._heads)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HeadSet) and set(self._heads) == set(other._heads)

    def __hash__(self) -> int:
        return hash(frozenset(self._heads))

    def __or__(self, other: HeadSet) -> HeadSet:
        return HeadSet((*self, *other))

    def __and__(self, other: HeadSet) -> HeadSet:
        return HeadSet(h for h in self if h in other)

    def __sub__(self, other: HeadSet) -> HeadSet:
        return HeadSet(h for h in self if h not in other)

    def __repr__(self) -> str:
        shown = ", ".join(f"{site}:{head}" for site, head in self._heads[:4])
        return f"HeadSet({len(self)} heads: {shown}{', ...' if len(self) > 4 else ''})"

    @property
    def sites(self) -> frozenset[str]:
        """The sites that at least one head belongs to."""
        return frozenset(site for site, _ in self._heads)

    def by_site(self) -> dict[str, list[int]]:
        """Head numbers per site, in the order of the set."""
        found: dict[str, list[int]] = {}
        for site, head in self._heads:
            found.setdefault(site, []).append(head)
        return found

    def overlap(self, other: HeadSet) -> float:
        """Jaccard index |A and B| / |A or B|; 1.0 for two empty sets."""
        union = len(self | other)
        return len(self & other) / union if union else 1.0

    def to_json(self) -> str:
        """JSON text; `save` writes the same."""
        return json.dumps({"kind": "HeadSet", "heads": [list(h) for h in self._heads]})

    def save(self, path: str | Path) -> Path:
        """Writes JSON (to a temporary name first) and returns the path."""
        return _write(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> HeadSet:
        """Reads what `save` wrote.

        Raises:
            UnbraidError: the file is not a head set.
        """
        data = _read(path, "HeadSet")
        return cls((site, head) for site, head in data["heads"])


class HeadScores:
    """A number per (site, head): sites in the order of execution, heads from 0.

    Args:
        scores: site -> [heads].
        name: what the number is, for tables and pictures.
        low: lower interval bound, same shapes.
        high: upper interval bound, same shapes.
    """

    def __init__(
        self,
        scores: Mapping[str, Any],
        name: str = "score",
        low: Mapping[str, Any] | None = None,
        high: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.scores = _table(scores)
        self.low = None if low is None else _table(low)
        self.high = None if high is None else _table(high)
        for bound in (self.low, self.high):
            if bound is not None and {s: v.shape for s, v in bound.items()} != {
                s: v.shape for s, v in self.scores.items()
            }:
                raise UnbraidError("HeadScores: interval bounds need the same sites and heads as the scores.")

    @property
    def sites(self) -> list[str]:
        """Sites in the order of execution."""
        return list(self.scores)

    @property
    def array(self) -> np.ndarray:
        """[sites, heads]; sites with fewer heads are filled with NaN."""
        width = max((len(v) for v in self.scores.values()), default=0)
        out = np.full((len(self.scores), width), np.nan)
        for i, values in enumerate(self.scores.values()):
            out[i, : len(values)] = values
        return out

    def __len__(self) -> int:
        return sum(len(v) for v in self.scores.values())

    def __getitem__(self, head: Head) -> float:
        return float(self.scores[head[0]][head[1]])

    def __iter__(self) -> Iterator[Head]:
        return ((site, h) for site, values in self.scores.items() for h in range(len(values)))

    def __repr__(self) -> str:
        best = ", ".join(f"{self.label(h)}={v:.3g}" for h, v in self.ranked()[:3])
        return f"HeadScores({self.name}: {len(self.scores)} sites, {len(self)} heads; {best})"

    def ranked(self) -> list[tuple[Head, float]]:
        """Heads by falling score; NaN last, ties in the order of execution."""
        items = [(head, self[head]) for head in self]
        return sorted(items, key=lambda x: (np.isnan(x[1]), -x[1] if not np.isnan(x[1]) else 0.0))

    def top(self, k: int) -> HeadSet:
        """The k heads with the highest score (NaN never counts)."""
        return HeadSet(head for head, value in self.ranked()[: max(0, k)] if not np.isnan(value))

    def above(self, threshold: float) -> HeadSet:
        """Heads with score >= threshold, best first."""
        return HeadSet(head for head, value in self.ranked() if value >= threshold)

    def correlate(self, other: HeadScores) -> float:
        """Pearson's r over all heads; sites are matched by name, or by order where two models name them differently.

        Raises:
            UnbraidError: the two tables do not have the same numbers of sites and heads.
        """
        mine = list(self.scores.values())
        same_names = set(self.scores) == set(other.scores)
        yours = [other.scores[s] for s in self.scores] if same_names else list(other.scores.values())
        if [len(v) for v in mine] != [len(v) for v in yours]:
            raise UnbraidError(
                f"correlate needs two tables of one shape; these have {self.array.shape} and {other.array.shape} "
                "(sites, heads)."
            )
        x, y = np.concatenate(mine), np.concatenate(yours)
        keep = np.isfinite(x) & np.isfinite(y)
        if keep.sum() < 2 or np.std(x[keep]) == 0 or np.std(y[keep]) == 0:
            return float("nan")
        return float(np.corrcoef(x[keep], y[keep])[0, 1])

    def label(self, head: Head) -> str:
        """Short name such as L3H5: L counts sites in the order of execution, H heads, both from 0."""
        return f"L{self.sites.index(head[0])}H{head[1]}"

    def head(self, label: str) -> Head:
        """The head of a short name such as L3H5."""
        try:
            layer, number = label.upper().removeprefix("L").split("H")
            return self.sites[int(layer)], int(number)
        except (ValueError, IndexError):
            raise UnbraidError(f"{label!r} is no head of this table; write L<site>H<head>, e.g. L3H5.") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, NaN as None: what `save` writes."""
        out: dict[str, Any] = {"kind": "HeadScores", "name": self.name, "scores": _plain(self.scores)}
        if self.low is not None:
            out["low"] = _plain(self.low)
        if self.high is not None:
            out["high"] = _plain(self.high)
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> HeadScores:
        """The inverse of `to_dict`."""
        return cls(data["scores"], data.get("name", "score"), data.get("low"), data.get("high"))

    def save(self, path: str | Path) -> Path:
        """Writes JSON (to a temporary name first) and returns the path."""
        return _write(path, json.dumps(self.to_dict()))

    @classmethod
    def load(cls, path: str | Path) -> HeadScores:
        """Reads what `save` wrote.

        Raises:
            UnbraidError: the file holds no head scores.
        """
        return cls.from_dict(_read(path, "HeadScores"))

    def frame(self) -> pd.DataFrame:
        """One row per head (site, head, label, score, low, high), best first; needs pandas."""
        try:
            import pandas as pd
        except ImportError:
            raise UnbraidError('HeadScores.frame() needs pandas: pip install "unbraid[frames]".') from None
        rows: list[dict[str, Any]] = []
        for head, value in self.ranked():
            row: dict[str, Any] = {"site": head[0], "head": head[1], "label": self.label(head), self.name: value}
            if self.low is not None and self.high is not None:
                row |= {"low": self.low[head[0]][head[1]], "high": self.high[head[0]][head[1]]}
            rows.append(row)
        return pd.DataFrame(rows)

    def plot(self, ax: Axes | None = None) -> Axes:
        """A heat map, sites downwards and heads to the right, on `ax` or a new figure; needs matplotlib."""
        try:
            import matplotlib.pyplot as plt
        except ImportError:
            raise UnbraidError('HeadScores.plot() needs matplotlib: pip install "unbraid[viz]".') from None
        if ax is None:
            _, ax = plt.subplots(figsize=(4.5, 6), layout="constrained")
        image = ax.imshow(self.array, aspect="auto", cmap="viridis", interpolation="nearest")
        ax.set(xlabel="head", ylabel="site (order of execution)", title=self.name)
        ax.figure.colorbar(image, ax=ax)
        return ax


def _table(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    out = {}
    for site, row in values.items():
        array = np.asarray([np.nan if x is None else float(x) for x in row], dtype=np.float64)
        out[str(site)] = array
    return out


def _plain(table: Mapping[str, np.ndarray]) -> dict[str, list[float | None]]:
    return {s: [None if np.isnan(x) else float(x) for x in v] for s, v in table.items()}


def _write(path: str | Path, text: str) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return path


def _read(path: str | Path, kind: str) -> dict[str, Any]:
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UnbraidError(f"{path} cannot be read as {kind} JSON: {error}.") from None
    if not isinstance(data, dict) or data.get("kind") != kind:
        raise UnbraidError(f"{path} holds no {kind}; it should be a file that {kind}.save wrote.")
    return data
