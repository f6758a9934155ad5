"""The learners behind DCI, by name: what fits a factor, what it thinks of each code, and how well it predicts."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.metrics.disentanglement.inputs import one_of

Learner = Literal["gbt", "rf", "rf_regression", "lasso", "logistic", "hist", "lightgbm", "xgboost"]
LEARNERS: tuple[str, ...] = get_args(Learner)
REGRESSORS = ("rf_regression", "lasso")
LINEAR = ("lasso", "logistic")
DEFAULTS: dict[str, dict[str, Any]] = {
    "gbt": {},  # 100 trees of depth 3 at rate 0.1: scikit-learn's own defaults, as in disentanglement_lib
    "rf": {},
    "rf_regression": {"n_estimators": 20, "max_depth": 20},  # as the XFactors code has it
    "lasso": {"alpha": 0.02},
    "logistic": {"C": 1.0},
    "hist": {},
    "lightgbm": {"importance_type": "gain", "verbosity": -1},  # its own default counts splits, which is another metric
    "xgboost": {"importance_type": "gain"},
}
_PACKAGES = {"lightgbm": ("LGBMClassifier", "LGBMRegressor"), "xgboost": ("XGBClassifier", "XGBRegressor")}


def predicts_classes(learner: str, continuous: bool) -> bool:
    """Whether this learner treats such a factor as classes."""
    return not continuous and learner not in REGRESSORS


def make(learner: str, classes: bool, options: Mapping[str, Any], seed: int, jobs: int) -> Any:
    """An unfitted estimator.

    Raises:
        UnbraidError: the learner is unknown, its package is missing, or it takes no such option.
    """
    one_of(learner, LEARNERS, "learner")
    kind = _kind(learner, classes)
    wanted = {**DEFAULTS[learner], **options}
    taken = inspect.signature(kind).parameters
    free = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in taken.values())
    unknown = [name for name in options if name not in taken and not free]
    if unknown:
        raise UnbraidError(f"learner {learner!r} takes no option {unknown[0]!r}; it takes {', '.join(taken)}.")
    if learner == "logistic":
        wanted = {**_lasso_penalty(), "solver": "saga", "max_iter": 1_000, **wanted}
    if "random_state" in taken or free:
        wanted.setdefault("random_state", seed)
    if "n_jobs" in taken and learner != "logistic":
        wanted.setdefault("n_jobs", jobs)
    return kind(**wanted)


def _kind(learner: str, classes: bool) -> Any:
    if learner in _PACKAGES:
        try:
            return vars(importlib.import_module(learner))[_PACKAGES[learner][0 if classes else 1]]
        except ImportError:
            raise UnbraidError(f"learner {learner!r} needs its package: pip install {learner}.") from None
    from sklearn import ensemble, linear_model

    kinds: dict[str, tuple[Any, Any]] = {
        "gbt": (ensemble.GradientBoostingClassifier, ensemble.GradientBoostingRegressor),
        "rf": (ensemble.RandomForestClassifier, ensemble.RandomForestRegressor),
        "rf_regression": (ensemble.RandomForestRegressor, ensemble.RandomForestRegressor),
        "lasso": (linear_model.Lasso, linear_model.Lasso),
        "logistic": (linear_model.LogisticRegression, linear_model.Lasso),
        "hist": (ensemble.HistGradientBoostingClassifier, ensemble.HistGradientBoostingRegressor),
    }
    return kinds[learner][0 if classes else 1]


def _lasso_penalty() -> dict[str, Any]:
    """L1 for a logistic regression, whose argument was renamed in scikit-learn 1.8."""
    import sklearn

    newer = tuple(int(part) for part in sklearn.__version__.split(".")[:2]) >= (1, 8)
    return {"l1_ratio": 1.0} if newer else {"penalty": "l1"}


def fit(model: Any, x: np.ndarray, y: np.ndarray) -> Any:
    """The fitted model, without the chatter about steps that did not converge."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(x, y)


def importances(model: Any, learner: str, x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """[J] importance of each code: impurity, gain, size of coefficients, or loss by permutation ("hist").

    Args:
        model: fitted.
        learner: its name.
        x: [N, J] points on which "hist" is permuted.
        y: [N] their targets.
        seed: of the permutations.
    """
    if learner == "hist":
        from sklearn.inspection import permutation_importance

        found = permutation_importance(model, x, y, n_repeats=5, random_state=seed).importances_mean
        return np.maximum(found, 0.0)  # below 0: shuffling helped by chance
    if learner in LINEAR:
        return np.abs(np.atleast_2d(model.coef_)).sum(axis=0)
    return np.asarray(model.feature_importances_, dtype=np.float64)
