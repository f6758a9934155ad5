"""SAP, explicitness and accuracy downstream: how well simple models read factors from codes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal, Unpack

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.metrics.disentanglement.gaps import top_two
from unbraid.metrics.disentanglement.informativeness import parts, share
from unbraid.metrics.disentanglement.inputs import Observed, Score, Shared, at_least, observe, one_of
from unbraid.metrics.disentanglement.resample import around, halves, row_weights

FLAT = 1e-12
DOWNSTREAM = (10, 100, 1_000, 10_000)


def sap(
    z: Any,
    factors: Any,
    *,
    kind: Literal["auto", "svm", "r2"] = "auto",
    chance_corrected: bool = False,
    test_share: float = 1 / 3,
    **given: Unpack[Shared],
) -> Score:
    """SAP (Kumar et al. 2018, arXiv:1711.00848): the gap between the two codes that predict a factor best.

    "svm" is disentanglement_lib's form for discrete factors: accuracy of a linear SVM (C 0.01, balanced) on one raw
    code. It never reaches 1 for factors of several classes, since one line cannot cut out a middle class (0.36 for a
    perfect code); fitting it takes all the time. "r2" is the squared correlation.

    Args:
        z: [N, J] codes.
        factors: [N, K].
        kind: "svm", "r2", or "auto": "r2" for continuous factors and "svm" for the others.
        chance_corrected: (accuracy - majority) / (1 - majority), clipped at 0, instead of the accuracy.
        test_share: share of the rows to score on, for "svm".
        given: `Shared`. Of a block, "svm" takes all codes and "r2" is that of a linear regression.

    Returns:
        From 0 to 1; ``matrix`` [codes, factors].

    Raises:
        UnbraidError: an argument has another form.
    """
    one_of(kind, ("auto", "svm", "r2"), "kind")
    seen = observe(z, factors, given)
    svm = ~seen.continuous if kind == "auto" else np.full(len(seen.sizes), kind == "svm")
    held = share(test_share)

    def gap(table: np.ndarray) -> float:
        first, second = top_two(table[:, seen.varying], 0)
        return float((first - second).mean())

    table = _sap(seen, svm, chance_corrected, held)
    name = "+".join(word for word, there in (("svm", svm.any()), ("r2", not svm.all())) if there)
    answer = seen.answer(gap(table), f"sap[{name}{',corrected' if chance_corrected else ''}]", table)
    if seen.bootstrap and not svm.any() and seen.single:
        draw = row_weights(len(seen.z), seen.seed)
        draws = [gap(_correlations(seen, draw())) for _ in range(seen.bootstrap)]
        answer["interval"] = around(answer["score"], np.array(draws))
    elif seen.bootstrap:
        drawn = halves(len(seen.z), seen.bootstrap, seen.seed)
        draws = [gap(_sap(seen.rows(rows), svm, chance_corrected, held)) for rows in drawn]
        answer["interval"] = around(answer["score"], np.array(draws))
    return answer


def _sap(seen: Observed, svm: np.ndarray, corrected: bool, test_share: float) -> np.ndarray:
    if not svm.any() and seen.single:
        return _correlations(seen, None)
    table = np.zeros((len(seen.blocks), len(seen.sizes)))
    train, test = parts(len(seen.z), test_share, seen.seed)
    for k in np.flatnonzero(seen.varying):
        for u, block in enumerate(seen.blocks):
            if svm[k]:
                table[u, k] = _svm(seen.z[:, block], seen.classes[:, k], train, test, corrected, seen.seed)
            else:
                table[u, k] = _r2(seen.z[:, block], seen.values[:, k])
    return table


def _correlations(seen: Observed, weights: np.ndarray | None) -> np.ndarray:
    """[U, K] squared correlations of single codes with factors, all at once."""
    w = np.full(len(seen.z), 1 / len(seen.z)) if weights is None else weights / weights.sum()
    z, v = seen.z - w @ seen.z, seen.values - w @ seen.values
    weighed = (z, v) if weights is None else (z * w[:, None], v * w[:, None])
    scale = len(z) if weights is None else 1.0
    at = [int(block[0]) for block in seen.blocks]
    cross = (weighed[0].T @ v / scale)[at]
    z_var = np.einsum("nj,nj->j", weighed[0], z)[at] / scale
    v_var = np.einsum("nk,nk->k", weighed[1], v) / scale
    below = np.outer(z_var, v_var)
    fine = (z_var > FLAT)[:, None] & (v_var > 0)[None]
    return np.divide(cross**2, below, out=np.zeros_like(cross), where=fine)


def _r2(codes: np.ndarray, values: np.ndarray) -> float:
    if not (codes.var(axis=0) > FLAT).any() or values.var() == 0:
        return 0.0
    inputs = np.column_stack([codes, np.ones(len(codes))])
    left = values - inputs @ np.linalg.lstsq(inputs, values, rcond=None)[0]
    return float(np.clip(1 - left.var() / values.var(), 0, 1))


def _svm(
    codes: np.ndarray, classes: np.ndarray, train: np.ndarray, test: np.ndarray, corrected: bool, seed: int
) -> float:
    from sklearn.svm import LinearSVC

    y, y_test = classes[train], classes[test]
    if len(np.unique(y)) < 2:
        return float((y_test == y[0]).mean())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LinearSVC(C=0.01, class_weight="balanced", random_state=seed).fit(codes[train], y)
    accuracy = float((model.predict(codes[test]) == y_test).mean())
    if not corrected:
        return accuracy
    majority = float((y_test == np.bincount(y).argmax()).mean())
    return max(0.0, (accuracy - majority) / (1 - majority)) if majority < 1 else 0.0


def explicitness(
    z: Any,
    factors: Any,
    *,
    rescale: bool = False,
    test_share: float = 1 / 3,
    **given: Unpack[Shared],
) -> Score:
    """Explicitness (Ridgeway and Mozer 2018): mean one-against-rest ROC-AUC of a logistic regression per factor.

    Codes are z-scored with the training rows' statistics. Classes that are absent from a split are skipped there.
    Continuous factors count in their bins. Fitting the regressions takes all the time.

    Args:
        z: [N, J] codes.
        factors: [N, K].
        rescale: 2 (AUC - 1/2), from 0 to 1, as ubisoft's library does.
        test_share: share of the rows to score on.
        given: `Shared`; ``bootstrap`` resamples the test rows (the fits stay).

    Returns:
        On test rows, about 0.5 to 1; ``train`` the same on training rows; ``per_factor`` [K].

    Raises:
        UnbraidError: an argument has another form.
    """
    from sklearn.linear_model import LogisticRegression

    seen = observe(z, factors, given)
    train, test = parts(len(seen.z), share(test_share), seen.seed)
    spread = seen.z[train].std(axis=0)
    x = (seen.z - seen.z[train].mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    judged: list[tuple[int, np.ndarray, np.ndarray]] = []
    per_factor, on_train = np.full(len(seen.sizes), np.nan), []
    for k in np.flatnonzero(seen.varying):
        y = seen.classes[:, k]
        if len(np.unique(y[train])) < 2:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = LogisticRegression(max_iter=1_000).fit(x[train], y[train])
        chance, on = model.predict_proba(x[test]), model.predict_proba(x[train])
        judged.append((int(k), chance, model.classes_))
        per_factor[k] = one_against_rest(chance, y[test], model.classes_)
        on_train.append(one_against_rest(on, y[train], model.classes_))

    def scaled(auc: Any) -> Any:
        return 2 * (auc - 0.5) if rescale else auc

    score = float(np.nanmean(per_factor)) if np.isfinite(per_factor).any() else float("nan")
    name = f"explicitness[logistic{',rescaled' if rescale else ''}]"
    answer = seen.answer(scaled(score), name, None, train=float(scaled(np.mean(on_train))), per_factor=per_factor)
    rng = np.random.default_rng([seen.seed, 0xB007])
    draws = []
    for _ in range(seen.bootstrap):
        rows = rng.integers(len(test), size=len(test))
        found = [one_against_rest(c[rows], seen.classes[test[rows], k], known) for k, c, known in judged]
        draws.append(float(np.nanmean(found)))
    answer["interval"] = around(float(answer["score"]), scaled(np.array(draws)), (-1.0 if rescale else 0.0, 1.0))
    return answer


def one_against_rest(chance: np.ndarray, y: np.ndarray, classes: np.ndarray) -> float:
    """Mean ROC-AUC over the classes that occur in ``y`` and are not all of it; NaN if there is none.

    Args:
        chance: [N, C] probabilities.
        y: [N].
        classes: [C] the classes of the columns.
    """
    from scipy.stats import rankdata

    ranks = rankdata(chance, axis=0)
    scores = []
    for c, label in enumerate(classes):
        mine = y == label
        inside, outside = int(mine.sum()), int((~mine).sum())
        if inside and outside:
            scores.append((ranks[mine, c].sum() - inside * (inside + 1) / 2) / (inside * outside))
    return float(np.mean(scores)) if scores else float("nan")


def downstream(
    z: Any,
    factors: Any,
    *,
    learner: Literal["logistic", "gbt"] = "logistic",
    labels: Sequence[int] = DOWNSTREAM,
    test: int = 5_000,
    folds: int = 5,
    **given: Unpack[Shared],
) -> Score:
    """Accuracy of a classifier on the codes, learned from 10, 100, 1,000 and 10,000 labels.

    Args:
        z: [N, J] codes.
        factors: [N, K]; continuous ones count in their bins.
        learner: "logistic" (its penalty chosen by cross-validation where each class has a few rows) or "gbt".
        labels: numbers of labelled rows; those that leave fewer than two test rows are left out.
        test: test rows at most.
        folds: of the cross-validation; disentanglement_lib takes 10.
        given: `Shared`; ``bootstrap`` resamples the test rows.

    Returns:
        ``score`` at the most labels, ``accuracy`` {labels: mean over factors}, ``per_factor`` {labels: [K]},
        ``intervals`` {labels: (low, high)}, ``efficiency``: accuracy at 100 over that at the most labels.

    Raises:
        UnbraidError: an argument has another form.
    """
    one_of(learner, ("logistic", "gbt"), "learner")
    seen = observe(z, factors, given)
    sizes = sorted({at_least(n, 2, "a number of labels") for n in labels})
    order = np.random.default_rng([seen.seed, 0xD0]).permutation(len(seen.z))
    held = order[: min(at_least(test, 2, "test"), max(2, len(order) // 3))]
    rest = order[len(held) :]
    sizes = [n for n in sizes if n <= len(rest)]
    if not sizes:
        raise UnbraidError(
            f"{len(order)} rows leave {len(rest)} to learn from; ask for fewer labels, or give more rows."
        )
    used = np.flatnonzero(seen.varying)
    right = {n: np.stack([_right(seen, int(k), rest[:n], held, learner, folds) for k in used]) for n in sizes}
    accuracy = {n: float(hits.mean()) for n, hits in right.items()}
    top = sizes[-1]
    more: dict[str, Any] = {"accuracy": accuracy, "per_factor": {n: hits.mean(axis=1) for n, hits in right.items()}}
    more["efficiency"] = accuracy[100] / accuracy[top] if 100 in accuracy and accuracy[top] else None
    answer = seen.answer(accuracy[top], f"downstream_{top}[{learner}]", None, intervals={}, **more)
    rng = np.random.default_rng([seen.seed, 0xB007])
    if seen.bootstrap:
        drawn = rng.integers(len(held), size=(seen.bootstrap, len(held)))
        for n, hits in right.items():
            answer["intervals"][n] = around(accuracy[n], hits.mean(axis=0)[drawn].mean(axis=1))
        answer["interval"] = answer["intervals"][top]
    return answer


def _right(seen: Observed, k: int, train: np.ndarray, test: np.ndarray, learner: str, folds: int) -> np.ndarray:
    """[test] which rows are classified rightly."""
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV

    x, y = seen.z, seen.classes[:, k]
    counts = np.bincount(y[train])
    if (counts > 0).sum() < 2:
        return np.asarray(y[test] == y[train][0])
    least = int(counts[counts > 0].min())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if learner == "gbt":
            model: Any = GradientBoostingClassifier(random_state=seen.seed)
        elif least >= folds:
            model = LogisticRegressionCV(Cs=5, cv=folds, max_iter=300)
        else:  # too few of a class to hold some back
            model = LogisticRegression(max_iter=300)
        return np.asarray(model.fit(x[train], y[train]).predict(x[test]) == y[test])
