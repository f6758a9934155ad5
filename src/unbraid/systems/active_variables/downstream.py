"""Accuracy of predicting the true factors from codes: all latents, some of them, or none (a uniform guess)."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np

from unbraid.core.errors import UnbraidError

Learner = Literal["logistic", "boosting"]
LEARNERS: tuple[Learner, ...] = ("logistic", "boosting")


def make_learner(name: Learner, seed: int, folds: int = 5) -> Any:
    """The paper's learners with scikit-learn's defaults.

    Args:
        name: "logistic" (LogisticRegressionCV over ten strengths and five folds) or "boosting".
        seed: of folds and trees.
        folds: of the cross-validation.

    Raises:
        UnbraidError: another name.
    """
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.model_selection import KFold

    if name == "logistic":
        splits = KFold(folds, shuffle=True, random_state=seed)
        return LogisticRegressionCV(Cs=10, cv=splits, max_iter=300)
    if name == "boosting":
        return GradientBoostingClassifier(random_state=seed)
    raise UnbraidError(f"there is no learner {name!r}; choose from {', '.join(LEARNERS)}.")


def accuracies(
    train: np.ndarray,
    train_factors: np.ndarray,
    test: np.ndarray,
    test_factors: np.ndarray,
    learner: Learner = "logistic",
    seed: int = 0,
) -> np.ndarray:
    """[K] accuracy on the test points per factor; NaN for a factor that has one value only.

    Args:
        train: [n, J] codes.
        train_factors: [n, K] whole numbers.
        test: [m, J].
        test_factors: [m, K].
        learner: "logistic" or "boosting".
        seed: of the learner.

    Raises:
        UnbraidError: shapes do not fit, or values are not finite.
    """
    _check(train, train_factors, test, test_factors)
    found = []
    for y, y_test in zip(train_factors.T, test_factors.T, strict=True):
        if len(np.unique(y)) < 2:
            found.append(np.nan)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # folds without a rare class, and fits that end before they converge
            model = make_learner(learner, seed).fit(train, y)
            found.append(float((model.predict(test) == y_test).mean()))
    return np.array(found)


def guess(train_factors: np.ndarray, test_factors: np.ndarray, seed: int = 0) -> np.ndarray:
    """[K] accuracy of `DummyClassifier(strategy="uniform")`, the paper's baseline."""
    from sklearn.dummy import DummyClassifier

    found = []
    for y, y_test in zip(train_factors.T, test_factors.T, strict=True):
        model = DummyClassifier(strategy="uniform", random_state=seed).fit(np.zeros((len(y), 1)), y)
        found.append(float((model.predict(np.zeros((len(y_test), 1))) == y_test).mean()))
    return np.array(found)


def linear_r2(train: np.ndarray, train_factors: np.ndarray, test: np.ndarray, test_factors: np.ndarray) -> np.ndarray:
    """[K] R^2 on the test points of a linear regression with intercept; for continuous factors.

    Raises:
        UnbraidError: shapes do not fit, or values are not finite.
    """
    _check(train, train_factors, test, test_factors)
    ones = [np.concatenate([z, np.ones((len(z), 1))], 1) for z in (train, test)]
    weights = np.linalg.lstsq(ones[0], train_factors, rcond=None)[0]
    error = np.square(test_factors - ones[1] @ weights).mean(0)
    spread = test_factors.var(0)
    return np.where(spread > 0, 1 - error / np.where(spread > 0, spread, 1), np.nan)


def _check(train: np.ndarray, train_factors: np.ndarray, test: np.ndarray, test_factors: np.ndarray) -> None:
    shapes = [np.shape(a) for a in (train, train_factors, test, test_factors)]
    fits = all(len(s) == 2 for s in shapes) and shapes[0][0] == shapes[1][0] and shapes[2][0] == shapes[3][0]
    if not fits or shapes[0][1] != shapes[2][1] or shapes[1][1] != shapes[3][1] or 0 in shapes[0]:
        raise UnbraidError(f"codes [n, J] and factors [n, K] of training and test points do not fit: {shapes}.")
    if not all(np.isfinite(a).all() for a in (train, train_factors, test, test_factors)):
        raise UnbraidError("codes or factors hold NaN or infinity; drop these points, or look at the model.")
