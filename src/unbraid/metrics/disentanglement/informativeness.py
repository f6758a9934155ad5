"""DCI: disentanglement, completeness and informativeness from the importances of a learner per factor."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Unpack, get_args

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.metrics.disentanglement import learners
from unbraid.metrics.disentanglement.inputs import Observed, Score, Shared, at_least, observe, one_of
from unbraid.metrics.disentanglement.learners import Learner
from unbraid.metrics.disentanglement.resample import around, halves

TINY = 1e-11
Accuracy = Literal["accuracy", "r2", "nrmse", "ubisoft"]


@dataclass(frozen=True)
class _Plan:
    learner: str
    options: Mapping[str, Any]
    how: str | None
    max_classes: int | None
    jobs: int
    test_share: float
    seed: int


def dci(
    z: Any,
    factors: Any,
    *,
    learner: Learner = "gbt",
    options: Mapping[str, Any] | None = None,
    informativeness: Accuracy | None = None,
    max_classes: int | None = None,
    test_share: float = 1 / 3,
    jobs: int = 1,
    **given: Unpack[Shared],
) -> Score:
    """DCI (Eastwood and Williams 2018, as in disentanglement_lib).

    A learner per factor; its importances R [codes, factors]. D: how much each code is about one factor, weighted by
    its share of all importance; C: how much each factor sits in one code; I: how well factors are predicted. The
    learner changes all three, so it stands in the keys. Fitting it takes all the time.

    Args:
        z: [N, J] codes.
        factors: [N, K].
        learner: "gbt" (gradient-boosted trees, impurity), "rf" (random forest), "rf_regression" (on class numbers, R^2;
            depends on their order), "lasso", "logistic" (L1), "hist" (histogram boosting with permutation
            importances), "lightgbm" (gain), "xgboost" (gain; the latter two if installed).
        options: arguments for the learner, such as ``{"n_estimators": 30}``.
        informativeness: "accuracy" (classes), "r2" (clipped to 0..1), "nrmse" (the paper's: error over that of the
            mean, lower is better) or "ubisoft" (1 - 12 MSE after scaling to 0..1); None: what suits the learner.
        max_classes: merge neighbouring classes of larger factors down to so many, as boosting fits a tree per class.
        test_share: share of the rows to score on.
        jobs: factors (or trees) fitted at once.
        given: `Shared`; importances are summed over blocks; ``bootstrap`` refits on so many random halves of the rows.

    Returns:
        ``dci_d[learner]``, ``dci_c[learner]``, ``dci_i[learner]``, ``score`` (that is D), ``matrix`` R, ``intervals``
        of the three, ``per_factor`` informativeness, ``seconds``.

    Raises:
        UnbraidError: an argument has another form.
    """
    began = time.perf_counter()
    seen = observe(z, factors, given)
    one_of(learner, learners.LEARNERS, "learner")
    if informativeness is not None:
        one_of(informativeness, get_args(Accuracy), "informativeness")
    if max_classes is not None:
        at_least(max_classes, 2, "max_classes")
    plan = _Plan(
        learner, options or {}, informativeness, max_classes, at_least(jobs, 1, "jobs"), share(test_share), seen.seed
    )
    found, matrix, per_factor = _dci(seen, plan)
    tag = learner + "".join(f",{k}={v}" for k, v in sorted(plan.options.items()))
    tag += f",classes<={max_classes}" if max_classes else ""
    answer = seen.answer(found[0], f"dci_d[{tag}]", matrix, learner=learner, per_factor=per_factor)
    answer |= {f"dci_{part}[{tag}]": float(value) for part, value in zip("dci", found, strict=True)}
    answer["intervals"] = {}
    if seen.bootstrap:
        draws = np.array([_dci(seen.rows(rows), plan)[0] for rows in halves(len(seen.z), seen.bootstrap, seen.seed)])
        bounds = (0.0, np.inf) if informativeness == "nrmse" else (0.0, 1.0)
        for i, part in enumerate("dci"):
            limits = bounds if part == "i" else (0.0, 1.0)
            answer["intervals"][f"dci_{part}[{tag}]"] = around(found[i], draws[:, i], limits)
        answer["interval"] = answer["intervals"][f"dci_d[{tag}]"]
    answer["keys"] = tuple(f"dci_{part}[{tag}]" for part in "dci")
    answer["seconds"] = time.perf_counter() - began
    return answer


def share(value: Any) -> float:
    """A share of rows for a test.

    Raises:
        UnbraidError: it is no number between 0 and 1.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise UnbraidError(f"test_share is {value!r}; it must lie between 0 and 1.")
    return float(value)


def parts(rows: int, test_share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random (train, test) rows.

    Raises:
        UnbraidError: there are too few rows.
    """
    if rows < 6:
        raise UnbraidError(f"{rows} rows are too few to learn from some and score on others; give at least 6.")
    order = np.random.default_rng([seed, 0x7E57]).permutation(rows)
    held = min(rows - 2, max(1, round(rows * test_share)))
    return order[held:], order[:held]


def disentanglement(importance: np.ndarray) -> float:
    """D of an importance table [codes, factors]: entropies over factors in base K, codes weighted by importance."""
    return _one_sided(importance)


def completeness(importance: np.ndarray) -> float:
    """C of an importance table [codes, factors]: entropies over codes in base J, factors weighted by importance."""
    return _one_sided(importance.T)


def _one_sided(table: np.ndarray) -> float:
    if table.shape[1] < 2 or not table.sum() > 0:
        return 1.0 if table.sum() > 0 else 0.0  # one column: nothing to be spread over; no importance: nothing there
    share = (table + TINY) / (table + TINY).sum(axis=1, keepdims=True)
    spread = -(share * np.log(share)).sum(axis=1) / np.log(table.shape[1])
    weight = table.sum(axis=1) / table.sum()
    return float((weight * (1 - spread)).sum())


def _dci(seen: Observed, plan: _Plan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    used = np.flatnonzero(seen.varying)
    train, test = parts(len(seen.z), plan.test_share, plan.seed)
    spread = seen.z[train].std(axis=0)
    z = seen.z
    if plan.learner in learners.LINEAR:  # their coefficients are comparable on standardised codes only
        z = (z - z[train].mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    one_at_a_time = plan.jobs == 1

    def one(k: int) -> tuple[np.ndarray, float]:
        return _factor(z, seen, int(k), train, test, plan, 1)

    if one_at_a_time:
        done = [one(int(k)) for k in used]
    else:
        from joblib import Parallel, delayed

        done = Parallel(n_jobs=plan.jobs, prefer="threads")(delayed(one)(int(k)) for k in used)
    each = np.stack([importance for importance, _ in done], axis=1)
    table = np.stack([each[block].sum(axis=0) for block in seen.blocks])
    normal = table / np.where(table.sum(axis=0) > 0, table.sum(axis=0), 1.0)
    per_factor = np.full(len(seen.sizes), np.nan)
    per_factor[used] = [score for _, score in done]
    whole = np.zeros((len(seen.blocks), len(seen.sizes)))
    whole[:, used] = normal
    found = np.array([disentanglement(normal), completeness(normal), np.nanmean(per_factor)])
    return found, whole, per_factor


def _factor(
    z: np.ndarray, seen: Observed, k: int, train: np.ndarray, test: np.ndarray, plan: _Plan, jobs: int
) -> tuple[np.ndarray, float]:
    """Importances [A] and informativeness of one factor."""
    as_classes = learners.predicts_classes(plan.learner, bool(seen.continuous[k]))
    y = seen.values[:, k] if seen.continuous[k] else merge(seen.classes[:, k], plan.max_classes)
    if as_classes and len(np.unique(y[train])) < 2:
        return np.zeros(z.shape[1]), float((y[test] == y[train][0]).mean())
    centre, scale = y[train].mean(), y[train].std() or 1.0
    target = y if as_classes else (y - centre) / scale
    if plan.learner == "xgboost" and as_classes:  # it wants classes without gaps
        target = np.unique(y[train], return_inverse=True)[1]
        target = np.searchsorted(np.unique(y[train]), y)
    model = learners.make(plan.learner, as_classes, plan.options, plan.seed, jobs)
    learners.fit(model, z[train], target[train])
    importance = learners.importances(model, plan.learner, z[test], target[test], plan.seed)
    how = plan.how or ("accuracy" if as_classes else "r2")
    return importance, _informativeness(model.predict(z[test]), target[test], how, as_classes)


def merge(classes: np.ndarray, most: int | None) -> np.ndarray:
    """Class numbers, neighbours merged into at most so many groups of about equal width."""
    top = int(classes.max()) + 1
    return classes if most is None or top <= most else classes * most // top


def _informativeness(predicted: np.ndarray, true: np.ndarray, how: str, as_classes: bool) -> float:
    if how == "accuracy":
        near = predicted if as_classes else _nearest(predicted, true)
        return float((near == true).mean())
    error = float(((predicted - true) ** 2).mean())
    variance = float(true.var())
    if how == "ubisoft":
        width = float(true.max() - true.min())
        return float(np.clip(1 - 12 * error / width**2, 0, 1)) if width > 0 else 0.0
    ratio = error / variance if variance > 0 else 1.0
    return float(np.sqrt(ratio)) if how == "nrmse" else float(np.clip(1 - ratio, 0, 1))


def _nearest(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Each prediction as the nearest value that occurs."""
    values = np.unique(true)
    return np.asarray(values[np.abs(predicted[:, None] - values[None]).argmin(axis=1)])
