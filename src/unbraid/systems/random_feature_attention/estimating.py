"""What the estimators share: reading inputs as scikit-learn does, the dual or the primal problem, predictions."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_array, check_is_fitted, column_or_1d, validate_data
from torch import Tensor

from unbraid.core.errors import UnbraidError
from unbraid.systems.random_feature_attention.features import (
    Features,
    batches,
    design,
    gram,
    normal_equations,
    project,
    values,
)
from unbraid.systems.random_feature_attention.ridge import (
    Chosen,
    check_device,
    check_penalties,
    factor,
    held,
    held_out,
    leave_one_out,
    refit,
)
from unbraid.systems.random_feature_attention.tokens import Tokens, augment, presence, unflatten

DTYPES = {"float32": torch.float32, "float64": torch.float64}
SCALINGS = ("common", "unit", "none")
LARGEST = 60_000  # side of the matrix that is solved: 29 GB


class StreamingRidge(RegressorMixin, BaseEstimator):
    """Ridge regression on random features in blocks, or on their kernel; see its subclasses for the arguments."""

    penalty: float | None
    penalties: tuple[float, ...]
    validation: float | None
    width: int | None
    ragged: bool
    scaling: str
    dtype: str
    device: str
    seed: int

    @abstractmethod
    def _features(self, tokens: Tokens, y: np.ndarray) -> Features | None:
        """The map for these training data; None: its kernel; sets what is learned for it."""

    @abstractmethod
    def _fitted_features(self) -> Features:
        """The map after `fit`; of size 1 for a kernel."""

    def __sklearn_tags__(self) -> Any:
        """Flat inputs are scikit-learn's; missing keys are NaN where ``ragged``."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.input_tags.three_d_array = True
        tags.input_tags.allow_nan = bool(self.ragged)
        return tags

    def fit(self, X: Any, y: Any, mask: Any = None) -> Any:
        """Learn the values of the heads.

        Args:
            X: [n, 1 + N, d]: query first, then keys; or [n, (1 + N) d] where ``width`` is d.
            y: [n] or [n, outputs] targets.
            mask: [n, N], true where there is a key; None: all are there.

        Returns:
            Itself.

        Raises:
            UnbraidError: an argument, a shape or a number cannot be used.
        """
        self._check()
        x, target = self._inputs(X, y)
        there = presence(x, mask, self.ragged)
        self.common_ = self._common(x, there)
        tokens = self._tokens(x, there)
        columns = target.reshape(len(x), -1)
        self.offset_, spread = columns.mean(0), columns.std(0)
        self.scale_ = np.where(spread > 0, spread, 1.0)
        self.flat_ = target.ndim == 1
        order = np.random.default_rng(self.seed).permutation(len(x))  # which inputs are held out
        standard = torch.from_numpy(((columns - self.offset_) / self.scale_)[order]).to(self.device)
        mapped = self._features(tokens, columns - self.offset_)
        tokens = tokens[torch.from_numpy(order)].to(self.device, DTYPES[self.dtype])
        if mapped is not None and len(x) > mapped.size * mapped.per(tokens):
            self._primal(mapped, tokens, standard)
        else:
            self._dual(mapped, tokens, standard)
        return self

    def predict(self, X: Any, mask: Any = None, return_std: bool = False) -> Any:
        """Predictions for inputs of the same width; the number of keys may differ.

        Args:
            X: as for `fit`.
            mask: as for `fit`.
            return_std: also the posterior's standard deviation, for a kernel (``heads=None``) only: the ridge is the
                mean of a Gaussian process whose amplitude maximises the evidence.

        Returns:
            [n] or [n, outputs]; with ``return_std`` a pair of these.

        Raises:
            UnbraidError: see `fit`; or a deviation was asked of finitely many heads.
        """
        check_is_fitted(self, "offset_")
        x, _ = self._inputs(X)
        tokens = self._tokens(x, presence(x, mask, self.ragged)).to(self.device, DTYPES[self.dtype])
        trained = torch.from_numpy(self.trained_).to(self.device)
        features = self._fitted_features()
        if self.support_ is None:
            if return_std:
                raise UnbraidError("a standard deviation needs the kernel of infinitely many heads: heads=None.")
            found = project(features, tokens, trained)
        else:
            cross = features.kernel(tokens, self._support()).double()
            found = cross @ trained
        mean = self._shaped(found.cpu().numpy() * self.scale_ + self.offset_)
        return mean if not return_std else (mean, self._shaped(self._deviation(tokens, cross)))

    def score(self, X: Any, y: Any, sample_weight: Any = None, mask: Any = None) -> float:
        """R^2 of the predictions; arguments as for `fit` and in scikit-learn."""
        from sklearn.metrics import r2_score

        return float(r2_score(y, self.predict(X, mask), sample_weight=sample_weight))

    def _check(self) -> None:
        check_penalties(self.penalty, self.penalties, self.validation)
        for name, value, accepted in (("scaling", self.scaling, SCALINGS), ("dtype", self.dtype, tuple(DTYPES))):
            if value not in accepted:
                raise UnbraidError(f"{name} is {value!r}; it must be one of {', '.join(accepted)}.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int | np.integer) or self.seed < 0:
            raise UnbraidError(f"seed is {self.seed!r}; it must be a whole number of at least 0.")
        check_device(self.device)

    def _inputs(self, X: Any, y: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """[n, 1 + N, d] and, when fitting, targets."""
        fitting = y is not None or "offset_" not in vars(self)
        flat = self.width is not None and dimensions(X) != 3
        x = None if flat else unflatten(X, self.width)
        try:
            if flat:
                finite = "allow-nan" if self.ragged else True
                options = {"dtype": np.float64, "ensure_all_finite": finite, "reset": fitting}
                if fitting:
                    X, y = validate_data(self, X, y, multi_output=True, y_numeric=True, ensure_min_samples=2, **options)
                else:
                    X = validate_data(self, X, **options)
            elif fitting:
                if y is None:
                    raise ValueError("requires y to be passed, but the target y is None")
                y = check_array(y, ensure_2d=False, dtype=np.float64)
        except ValueError as error:
            raise UnbraidError(str(error)) from None
        x = unflatten(X, self.width) if x is None else x
        if fitting:
            y = column_or_1d(y, warn=True) if np.ndim(y) == 2 and np.shape(y)[1] == 1 and flat else np.asarray(y)
            self._fits(x, y)
            self.n_features_in_, self.width_ = x.shape[1] * x.shape[2], x.shape[2]
        elif x.shape[2] != self.width_:
            raise UnbraidError(f"X has tokens of width {x.shape[2]}; this estimator was fitted with {self.width_}.")
        return x, np.asarray(y, np.float64) if fitting else np.empty(0)

    @staticmethod
    def _fits(x: np.ndarray, y: np.ndarray) -> None:
        if y.ndim not in (1, 2) or len(y) != len(x) or (y.ndim == 2 and not y.shape[1]):
            raise UnbraidError(f"y must be [{len(x)}] or [{len(x)}, outputs], one for each input, not {y.shape}.")
        if len(x) < 2:
            raise UnbraidError("one input (n_samples=1) is nothing to learn from; give two at least.")

    def _common(self, x: np.ndarray, there: np.ndarray) -> float:
        """The root mean square norm of all tokens, by which all are divided."""
        if self.scaling != "common":
            return 1.0
        squares = np.concatenate([(x[:, 0] ** 2).sum(1), (x[:, 1:][there] ** 2).sum(1)])
        return float(np.sqrt(squares.mean())) or 1.0

    def _tokens(self, x: np.ndarray, there: np.ndarray) -> Tokens:
        if self.scaling == "unit":
            x = x / np.maximum(np.linalg.norm(x, axis=2, keepdims=True), 1e-300)
        return augment(x / self.common_, there)

    def _choose(self) -> tuple[float, ...]:
        return tuple(self.penalties) if self.penalty is None else (self.penalty,)

    def _dual(self, features: Features | None, tokens: Tokens, y: Tensor) -> None:
        self._refuse(len(y))
        matrix = (self._fitted_features().kernel(tokens) if features is None else gram(features, tokens)).double()
        tried = self._choose()
        if len(tried) == 1:
            scale = float(matrix.diagonal().mean())
            chosen = Chosen(np.zeros(y.shape[1], int), np.full((1, y.shape[1]), np.nan))
            dual = refit(lambda mu: factor(matrix, mu * scale), y, tried, chosen)
        elif self.validation is None:
            chosen, dual = leave_one_out(matrix, y, tried)
        else:
            chosen, dual = held_out(matrix, y, tried, self.validation)
        self._note(chosen, tried)
        if features is not None:
            self._keep(values(features, tokens, dual), None)
            return
        self._keep(dual, tokens)
        self._evidence(matrix, dual, y)

    def _primal(self, features: Features, tokens: Tokens, y: Tensor) -> None:
        """More inputs than features: normal equations."""
        self._refuse(features.size * features.per(tokens))
        tried, n = self._choose(), len(y)
        kept = n if self.validation is None or len(tried) == 1 else n - held(n, self.validation)
        squares, moments = normal_equations(features, tokens[:kept], y[:kept])
        scale = float(squares.diagonal().sum()) / kept
        errors = []
        for penalty in tried if len(tried) > 1 else ():
            lower = factor(squares, penalty * scale)
            if lower is None:
                errors.append(torch.full_like(y[0], torch.inf))
                continue
            trained = torch.cholesky_solve(moments, lower)
            rest = slice(kept, n) if kept < n else slice(0, n)
            wrong = y[rest] - project(features, tokens[rest], trained)
            errors.append(((wrong / (1.0 if kept < n else 1 - _hat(features, tokens, lower))) ** 2).mean(0))
        nothing = Chosen(np.zeros(y.shape[1], int), np.full((1, y.shape[1]), np.nan))
        chosen = Chosen.of(errors) if errors else nothing
        if kept < n:
            more, other = normal_equations(features, tokens[kept:], y[kept:])
            squares, moments = squares.add_(more), moments + other
            scale = float(squares.diagonal().sum()) / n
        self._note(chosen, tried)
        self._keep(refit(lambda mu: factor(squares, mu * scale), moments, tried, chosen), None)

    @staticmethod
    def _refuse(side: int) -> None:
        if side > LARGEST:
            raise UnbraidError(f"this asks for a matrix of {side:,} rows; give fewer inputs or heads ({LARGEST:,}).")

    def _note(self, chosen: Chosen, tried: tuple[float, ...]) -> None:
        self.penalty_ = np.array([tried[at] for at in chosen.at])
        self.penalty_errors_ = chosen.errors

    def _keep(self, trained: Tensor, support: Tokens | None) -> None:
        self.trained_ = trained.cpu().numpy()
        self._factors: dict[float, Tensor | None] | None = None
        self.support_: dict[str, np.ndarray] | None = None
        if support is not None:
            parts = {"query": support.query, "keys": support.keys, "inverse": support.inverse}
            self.support_ = {name: part.cpu().numpy() for name, part in parts.items()}

    def _support(self) -> Tokens:
        assert self.support_ is not None
        parts = (torch.from_numpy(self.support_[name]) for name in ("query", "keys", "inverse"))
        return Tokens(*parts).to(self.device, DTYPES[self.dtype])

    def _evidence(self, matrix: Tensor, dual: Tensor, y: Tensor) -> None:
        """Amplitude of the Gaussian process for the greatest evidence, and its logarithm, for each output."""
        n = len(y)
        amplitude = (y * dual).sum(0).cpu().numpy() / n
        mu = self.penalty_ * float(matrix.diagonal().mean())
        halves = []
        for value in mu:
            lower = factor(matrix, float(value))
            halves.append(float(lower.diagonal().log().sum()) if lower is not None else np.nan)
        self.amplitude_, self.noise_ = amplitude, mu
        self.log_evidence_ = -0.5 * n * (np.log(2 * np.pi * np.maximum(amplitude, 1e-300)) + 1) - np.array(halves)
        self.log_evidence_ -= n * np.log(self.scale_)

    def _deviation(self, tokens: Tokens, cross: Tensor) -> np.ndarray:
        factors = vars(self).get("_factors")  # not saved
        if factors is None:
            matrix = self._fitted_features().kernel(self._support()).double()
            factors = self._factors = {float(mu): factor(matrix, float(mu)) for mu in set(self.noise_.tolist())}
        features = self._fitted_features()
        prior = torch.cat([features.kernel(tokens[i : i + 1])[0] for i in range(len(tokens))]).double()
        found = np.empty((len(tokens), len(self.noise_)))
        for k, mu in enumerate(self.noise_.tolist()):
            lower = factors[mu]
            assert lower is not None
            explained = torch.linalg.solve_triangular(lower, cross.T, upper=False).square().sum(0)
            variance = (prior - explained).clamp_min(0).cpu().numpy() * self.amplitude_[k]
            found[:, k] = np.sqrt(variance) * self.scale_[k]
        return found

    def _shaped(self, found: np.ndarray) -> np.ndarray:
        return found[:, 0] if self.flat_ else found


def dimensions(x: Any) -> int:
    """Of an array, of what becomes one, or -1 of what does not."""
    try:
        return int(np.asarray(x).ndim)
    except (TypeError, ValueError):
        return -1


def _hat(features: Features, tokens: Tokens, lower: Tensor) -> Tensor:
    """[n, 1] diagonal of the hat matrix."""
    parts = []
    for rows in batches(len(tokens), 512):
        phi = design(features, tokens[rows]).double()
        parts.append(torch.linalg.solve_triangular(lower, phi.T, upper=False).square().sum(0))
    return torch.cat(parts)[:, None]
