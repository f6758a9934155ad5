"""The sample-complexity report: how the error on a user's own set-valued data falls with samples, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone

from unbraid.core.claim import Table
from unbraid.core.errors import UnbraidError
from unbraid.core.figures import Lines
from unbraid.core.heatmap import HeatMap
from unbraid.core.progress import bar
from unbraid.core.result import Result
from unbraid.core.series import Series
from unbraid.metrics.intervals import over
from unbraid.systems.random_feature_attention import CARD
from unbraid.systems.random_feature_attention.degrees import LIMIT, Degrees, degree_shares
from unbraid.systems.random_feature_attention.system import check_count
from unbraid.systems.random_feature_attention.tokens import presence, read, unflatten

PAIRS = 250_000_000  # of keys, that degrees are estimated from at most


def slope(sizes: Sequence[float], errors: Sequence[float]) -> float:
    """Least-squares slope of log error over log samples; NaN where it is not defined."""
    x, y = np.log(np.asarray(sizes, float)), np.log(np.maximum(np.asarray(errors, float), 1e-300))
    return float(np.polyfit(x, y, 1)[0]) if len(set(x.tolist())) > 1 and np.isfinite(y).all() else float("nan")


def crossing(sizes: Sequence[float], errors: Sequence[float], level: float) -> float:
    """Samples at which the error first falls to a level, by a line in logarithms; infinite where it never does."""
    for i, (n, e) in enumerate(zip(sizes, errors, strict=True)):
        if e <= level:
            if i == 0:
                return float(n)
            before, above = np.log(sizes[i - 1]), np.log(errors[i - 1])
            share = (above - np.log(level)) / (above - np.log(max(e, 1e-300)))
            return float(np.exp(before + share * (np.log(n) - before)))
    return float("inf")


@dataclass(frozen=True, eq=False)
class SampleComplexity:
    """What was measured on a data set.

    Attributes:
        sizes: training inputs, rising.
        errors: model -> [seeds, sizes] MSE over the variance of the tested labels.
        degrees: of the first output; None where they were not asked for.
        seeds: how many splits. They share the data, so intervals are those of the split, not of new data.
    """

    sizes: tuple[int, ...]
    errors: Mapping[str, np.ndarray]
    degrees: Degrees | None
    seeds: int
    notes: tuple[str, ...] = field(default=())

    def curve(self) -> Table:
        """A row per model and size: mean error and its 95 % interval over splits."""
        rows = []
        for model, table in self.errors.items():
            for k, n in enumerate(self.sizes):
                mean, bounds = over(table[:, k].tolist())
                low, high = bounds or (None, None)
                rows.append({"model": model, "n": n, "error": mean, "low": low, "high": high, "splits": len(table)})
        return Table.from_records(rows, "MSE over the variance of the tested labels.")

    def slopes(self) -> Table:
        """A row per model: slope of log error over log n, with its interval."""
        rows = []
        for model, table in self.errors.items():
            mean, bounds = over([slope(self.sizes, row) for row in table])
            low, high = bounds or (None, None)
            last = float(table[:, -1].mean())
            rows.append({"model": model, "slope": mean, "low": low, "high": high, f"error at {self.sizes[-1]}": last})
        return Table.from_records(rows, "Slope of log error over log n; the theorem's bound falls with -0.5.")

    def samples_for(self, error: float) -> dict[str, float]:
        """Samples at which each model's mean error falls to ``error``; infinite where it does not within the data.

        Raises:
            UnbraidError: the error is not positive.
        """
        if not error > 0:
            raise UnbraidError(f"error is {error!r}; it must be positive, 0.1 for a tenth of the variance.")
        return {model: crossing(self.sizes, table.mean(0).tolist(), error) for model, table in self.errors.items()}

    def statement(self) -> str:
        """What to conclude, in words."""
        best = min(self.errors, key=lambda model: self.errors[model][:, -1].mean())
        said = f"{best} has the least error at n = {self.sizes[-1]:,}: {self.errors[best][:, -1].mean():.3g}."
        return said + (f" {self.degrees.statement()}" if self.degrees is not None else "")

    def result(self, title: str = "How many samples this target needs") -> Result:
        """A page."""
        rows = self.curve().records
        series = []
        for model in self.errors:
            own = [row for row in rows if row["model"] == model]
            bounds: dict[str, Any] = {}
            if all(row["low"] is not None for row in own):
                bounds = {"low": [max(row["low"], 1e-12) for row in own], "high": [row["high"] for row in own]}  # type: ignore[type-var]
            series.append(Series(model, self.sizes, [row["error"] for row in own], **bounds))
        figures: list[Any] = [
            Lines("Error over samples", series, "training inputs", "MSE / variance", x_scale="log", y_scale="log",
                  references={"mean of the labels": 1.0})
        ]  # fmt: skip
        tables = {"curve": self.curve(), "slopes": self.slopes()}
        if self.degrees is not None:
            figures.append(degree_map(self.degrees, "Degrees of the target"))
            tables["degrees"] = self.degrees.table()
        return Result(
            CARD.slug, title, params={"sizes": self.sizes, "splits": self.seeds}, tables=tables, figures=figures,
            notes=[self.statement(), *self.notes], lead="figures",
        )  # fmt: skip


def degree_map(degrees: Degrees, title: str) -> HeatMap:
    """Shares as a heat map; those within the noise are empty."""
    shown = np.where(degrees.shares > LIMIT * degrees.noise, degrees.shares, np.nan)
    shown[0, 0] = np.nan
    names = [str(k) for k in range(len(shown))]
    return HeatMap(
        title, shown.tolist(), names, names, "degree in a key", "degree in the query",
        "Share of the variance; empty: not told from noise.", scale="sequential", limits=(0, 1),
    )  # fmt: skip


def default_models(heads: int, d: int, seed: int = 0) -> dict[str, Any]:
    """RFA, BRFA, the data-biased one, and RFMLP with as many trained numbers."""
    from unbraid.systems.random_feature_attention.baseline import RandomFeatureMLPRegressor
    from unbraid.systems.random_feature_attention.system import RandomFeatureAttentionRegressor

    made: dict[str, Any] = {
        name: RandomFeatureAttentionRegressor(heads=heads, bias=bias, seed=seed)
        for name, bias in (("RFA", "zero"), ("BRFA", "identity"), ("data-biased", "estimated"))
    }
    return {**made, "RFMLP": RandomFeatureMLPRegressor(neurons=heads * (d + 1), seed=seed)}


def sample_complexity(
    X: Any,
    y: Any,
    sizes: Sequence[int] | None = None,
    models: Mapping[str, Any] | None = None,
    splits: int = 5,
    test: float = 0.25,
    heads: int = 300,
    degree: int = 2,
    width: int | None = None,
    mask: Any = None,
    ragged: bool = False,
    seed: int = 0,
    progress: bool | None = None,
) -> SampleComplexity:
    """Learn from growing parts of a data set and test on the rest.

    Args:
        X: [n, 1 + N, d] inputs, query first; flat with ``width``; missing keys by ``mask`` or NaN with ``ragged``.
        y: [n] or [n, outputs] targets.
        sizes: training inputs; None: six from a sixteenth of what is there to all of it, in equal ratios.
        models: name -> estimator of scikit-learn that takes X; None: RFA, BRFA, data-biased and, where no key is
            missing, RFMLP. They choose their penalties from training inputs alone.
        splits: random splits, each with its own weights where an estimator has a ``seed``.
        test: share that is tested on.
        heads: of the default models.
        degree: highest degree that is looked for in the target; 0: none.
        width: d of flat inputs.
        mask: [n, N], true where there is a key.
        ragged: whether keys of NaN are not there.
        seed: of splits.
        progress: show a bar; None: on a terminal.

    Returns:
        Curves, slopes with intervals, and what the target is made of.

    Raises:
        UnbraidError: a shape, number or size cannot be used.
    """
    x = unflatten(X, width)
    there = presence(x, mask, ragged)
    y = np.asarray(y, np.float64)
    if y.ndim not in (1, 2) or len(y) != len(x) or not np.isfinite(y).all():
        raise UnbraidError(f"y must be [{len(x)}] or [{len(x)}, outputs] finite numbers, not {y.shape}.")
    for name, value in (("splits", splits), ("heads", heads)):
        check_count(name, value)
    if not 0 < test < 1:
        raise UnbraidError(f"test is {test!r}; it must be a share between 0 and 1.")
    if isinstance(degree, bool) or not isinstance(degree, int) or not 0 <= degree <= 6:
        raise UnbraidError(f"degree is {degree!r}; it must be 0 to 6.")
    tested = max(2, round(len(x) * test))
    used = _sizes(sizes, len(x) - tested)
    known = dict(models) if models is not None else default_models(heads, x.shape[2])
    if models is None and not there.all():
        known.pop("RFMLP")
    errors = {name: np.empty((splits, len(used))) for name in known}
    with bar(progress, "Learning from growing samples", splits * len(used) * len(known)) as tick:
        for split in range(splits):
            order = np.random.default_rng([seed, split]).permutation(len(x))
            held, rest = order[:tested], order[tested:]
            for name, model in known.items():
                for k, n in enumerate(used):
                    errors[name][split, k] = _error(model, x, y, there, rest[:n], held, seed + split)
                    tick()
    found = _degrees(x, y, there, degree, seed) if degree else None
    notes = () if there.all() else ("Some keys are missing, so RFMLP, which needs all tokens, was left out.",)
    return SampleComplexity(used, errors, found, splits, notes)


def _sizes(sizes: Sequence[int] | None, most: int) -> tuple[int, ...]:
    if sizes is None:
        sizes = np.unique(np.geomspace(max(8, most / 16), most, 6).astype(int)).tolist() if most >= 16 else []
    used = tuple(sorted(set(sizes)))
    if not used or any(isinstance(n, bool) or not isinstance(n, int | np.integer) for n in used):
        raise UnbraidError(
            f"sizes must be whole numbers of training inputs, 5 to {most}; too few inputs, or {sizes!r}."
        )
    if used[0] < 5 or used[-1] > most:
        raise UnbraidError(f"sizes are {list(used)}; they must be 5 to {most}, what is left after the test share.")
    return used


def _error(model: Any, x: Any, y: Any, there: Any, train: Any, held: Any, seed: int) -> float:
    made = clone(model)
    if "seed" in made.get_params():
        made.set_params(seed=seed)
    whole = there.all()
    made.fit(x[train], y[train], **({} if whole else {"mask": there[train]}))
    found = np.asarray(made.predict(x[held], **({} if whole else {"mask": there[held]})))
    return float(((found.reshape(len(held), -1) - y[held].reshape(len(held), -1)) ** 2).sum(0).mean() / _total(y[held]))


def _total(y: np.ndarray) -> float:
    columns = y.reshape(len(y), -1)
    return float(((columns - columns.mean(0)) ** 2).sum(0).mean()) or 1.0


def _degrees(x: np.ndarray, y: np.ndarray, there: np.ndarray, degree: int, seed: int) -> Degrees | None:
    count = min(len(x), max(10, int((PAIRS / there.shape[1] ** 2) ** 0.5)))
    rows = np.sort(np.random.default_rng(seed).permutation(len(x))[:count])
    first = y[rows].reshape(len(rows), -1)[:, 0]
    if count < 10 or x.shape[2] < 2 or not first.std() > 0:
        return None
    return degree_shares(read(np.nan_to_num(x[rows]), there[rows]), first, degree, seed=seed)


def report_file(
    path: Path, sizes: Sequence[int] | None, heads: int, splits: int, seed: int, progress: bool | None
) -> Result:
    """The report on a file with X, y and perhaps mask.

    Args:
        path: an .npz or .safetensors file.
        sizes: training inputs; None: six.
        heads: of the models.
        splits: random splits.
        seed: of these.
        progress: show a bar; None: on a terminal.

    Raises:
        UnbraidError: the file cannot be read, or has no X and y that fit.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            found = load_file(path)
        else:
            with np.load(path, allow_pickle=False) as archive:
                found = {name: archive[name] for name in archive.files}
    except Exception as error:  # numpy, zipfile and safetensors raise a dozen classes; all mean that it is no such file
        said = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        reason = said.splitlines()[0]
        raise UnbraidError(
            f"{path} cannot be read ({reason}); give an .npz or .safetensors file with X and y."
        ) from None
    if not {"X", "y"} <= set(found):
        raise UnbraidError(f"{path} has {', '.join(found) or 'nothing'}; it must have X [n, 1 + N, d] and y.")
    report = sample_complexity(
        found["X"], found["y"], sizes, splits=splits, heads=heads, mask=found.get("mask"), seed=seed, progress=progress
    )
    made = report.result(f"How many samples the target of {path.name} needs")
    made.params |= {"data": path.name, "heads": heads}
    made.meta["seed"] = seed
    return made
