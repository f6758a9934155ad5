"""`RandomFeatureAttentionRegressor`: regression on sets by frozen random attention (arXiv 2307.11353)."""

from __future__ import annotations

from typing import Any

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.core.system import System
from unbraid.systems.random_feature_attention import CARD
from unbraid.systems.random_feature_attention.estimating import StreamingRidge
from unbraid.systems.random_feature_attention.features import AttentionFeatures
from unbraid.systems.random_feature_attention.ridge import PENALTIES
from unbraid.systems.random_feature_attention.tokens import Tokens, bias_matrix, estimated_bias


class RandomFeatureAttentionRegressor(System, StreamingRidge):
    """One attention layer with frozen random queries and keys and trained values: a convex regression on sets.

    f(x_0; x_1 .. x_N) = sum_m 1/N sum_i relu(x~_0' W_m x~_i) <v_m, x~_i> with x~ = [x; 1]; W_m is drawn and kept as a
    seed, v_m is ridge regression. Not the linear-time softmax of arXiv 2103.02143, which has the same name.

    Args:
        heads: M; None: infinitely many, by the kernel in closed form (n^2 N^2 work, so n up to about 5,000).
        bias: mean of the weights: "zero" (RFA), "identity" (BRFA), "estimated" from the data (the cross-moment of
            target, query and keys), or a [d, d] matrix.
        penalty: of the ridge, as a share of the kernel's mean diagonal; None chooses one of ``penalties``.
        penalties: to choose from.
        validation: share of the training inputs that are held out to choose; None: leave-one-out, exact.
        width: d, where inputs are flat [n, (1 + N) d] as pipelines of scikit-learn want them.
        ragged: whether a key that is NaN in all places is one that is not there.
        scaling: "common" divides all tokens by the root mean square of their norms (the theory has unit norms), "unit"
            each by its own norm, "none" leaves them.
        dtype: "float64" or "float32" for features and their products; systems are solved in float64.
        device: where to work: "cpu", "cuda", ...
        seed: of the weights and of what is held out.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).standard_normal((300, 5, 3))
        >>> y = (x[:, 1:, 0] ** 2).mean(1)
        >>> RandomFeatureAttentionRegressor(heads=100).fit(x[:200], y[:200]).score(x[200:], y[200:]) > 0.9
        True
    """

    card = CARD

    def __init__(
        self,
        heads: int | None = 1_000,
        bias: str | np.ndarray = "zero",
        penalty: float | None = None,
        penalties: tuple[float, ...] = PENALTIES,
        validation: float | None = None,
        width: int | None = None,
        ragged: bool = False,
        scaling: str = "common",
        dtype: str = "float64",
        device: str = "cpu",
        seed: int = 0,
    ) -> None:
        self.heads = heads
        self.bias = bias
        self.penalty = penalty
        self.penalties = penalties
        self.validation = validation
        self.width = width
        self.ragged = ragged
        self.scaling = scaling
        self.dtype = dtype
        self.device = device
        self.seed = seed

    def __sklearn_tags__(self) -> Any:
        """scikit-learn's data for checks give each column a meaning; this model does not see the order of keys."""
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True
        return tags

    @property
    def values_(self) -> np.ndarray:
        """[M, d + 1(, outputs)] trained values v_m, in units of the target; without the offset.

        Raises:
            UnbraidError: a kernel has no values.
        """
        if self.support_ is not None:
            raise UnbraidError("a kernel of infinitely many heads has no values; give a number of heads.")
        heads = self._fitted_features().heads
        found = (self.trained_ * self.scale_ / np.sqrt(heads)).reshape(heads, -1, len(self.scale_))
        return found[..., 0] if self.flat_ else found

    @property
    def norms_(self) -> tuple[float, float]:
        """Sums of the values' norms, sum_m |v_m| and M sum_m |v_m|^2, that the theorem bounds by K_1 and K_2.

        Raises:
            UnbraidError: a kernel has no values.
        """
        sizes = np.linalg.norm(self.values_.reshape(len(self.values_), -1), axis=1)
        return float(sizes.sum()), float(len(sizes) * (sizes**2).sum())

    def _check(self) -> None:
        super()._check()
        check_count("heads", self.heads, none="None (infinitely many)")
        if isinstance(self.bias, str) and self.bias not in ("zero", "identity", "estimated"):
            raise UnbraidError(
                f"bias is {self.bias!r}; it must be 'zero', 'identity', 'estimated' or a [d, d] matrix of numbers."
            )

    def _features(self, tokens: Tokens, y: np.ndarray) -> AttentionFeatures | None:
        given = estimated_bias(tokens, y) if isinstance(self.bias, str) and self.bias == "estimated" else self.bias
        self.bias_ = bias_matrix(given, tokens.width)
        return None if self.heads is None else self._fitted_features()

    def _fitted_features(self) -> AttentionFeatures:
        return AttentionFeatures(self.heads or 1, self.bias_, self.seed)


def check_count(name: str, value: Any, none: str = "") -> None:
    """Refuse what is no positive whole number.

    Raises:
        UnbraidError: it is none, and not None where that means something.
    """
    if value is None and none:
        return
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise UnbraidError(f"{name} is {value!r}; it must be a whole number of at least 1{none and ', or ' + none}.")
