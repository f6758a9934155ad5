"""The comparator: a two-layer MLP with frozen random neurons on the tokens side by side (RFMLP)."""

from __future__ import annotations

from typing import Any

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.systems.random_feature_attention.estimating import StreamingRidge, dimensions
from unbraid.systems.random_feature_attention.features import NeuronFeatures
from unbraid.systems.random_feature_attention.ridge import PENALTIES
from unbraid.systems.random_feature_attention.system import check_count
from unbraid.systems.random_feature_attention.tokens import Tokens


class RandomFeatureMLPRegressor(StreamingRidge):
    """Ridge regression on random ReLU neurons of z = [x_0; ...; x_N; 1] / sqrt(N + 2), in the order given.

    Args:
        neurons: how many; M(d + 1) have as many trained numbers as M heads. None: infinitely many, by the kernel.
        penalty: as in `RandomFeatureAttentionRegressor`, and so on.
        penalties: to choose from.
        validation: share held out to choose; None: leave-one-out.
        width: d, where inputs are flat.
        scaling: "common", "unit" or "none".
        dtype: "float64" or "float32".
        device: where to work.
        seed: of the weights and of what is held out.
    """

    ragged = False  # tokens side by side must all be there

    def __init__(
        self,
        neurons: int | None = 17_000,
        penalty: float | None = None,
        penalties: tuple[float, ...] = PENALTIES,
        validation: float | None = None,
        width: int | None = None,
        scaling: str = "common",
        dtype: str = "float64",
        device: str = "cpu",
        seed: int = 0,
    ) -> None:
        self.neurons = neurons
        self.penalty = penalty
        self.penalties = penalties
        self.validation = validation
        self.width = width
        self.scaling = scaling
        self.dtype = dtype
        self.device = device
        self.seed = seed

    def predict(self, X: Any, mask: Any = None, return_std: bool = False) -> Any:
        """As `RandomFeatureAttentionRegressor.predict`, for the number of tokens that were fitted.

        Raises:
            UnbraidError: another number of tokens, or see there.
        """
        wide = np.shape(X)[1] * np.shape(X)[2] if dimensions(X) == 3 else None
        if "n_features_in_" in vars(self) and wide not in (None, self.n_features_in_):
            raise UnbraidError(f"X has {wide} numbers an input; this MLP was fitted with {self.n_features_in_}.")
        return super().predict(X, mask, return_std)

    def _check(self) -> None:
        super()._check()
        check_count("neurons", self.neurons, none="None (infinitely many)")

    def _tokens(self, x: np.ndarray, there: np.ndarray) -> Tokens:
        if not there.all():
            raise UnbraidError("tokens side by side must all be there; an MLP takes no mask (attention does).")
        return super()._tokens(x, there)

    def _features(self, tokens: Tokens, y: np.ndarray) -> NeuronFeatures | None:
        return None if self.neurons is None else self._fitted_features()

    def _fitted_features(self) -> NeuronFeatures:
        return NeuronFeatures(self.neurons or 1, self.seed)
