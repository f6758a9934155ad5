"""MIG as first published: on the aggregate posterior, by Monte Carlo (Chen et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.metrics.disentanglement.gaps import top_two
from unbraid.metrics.disentanglement.inputs import Score, Shared, as_codes, at_least, observe
from unbraid.metrics.disentanglement.resample import around

CHUNK = 60_000  # pairs at once: half a megabyte, so that they stay in the cache
STRIPE = 4_096
EXTREME = 200.0
LOG_2PI = float(np.log(2 * np.pi))


def mig_posterior(
    mean: Any,
    logvar: Any,
    factors: Any,
    *,
    samples: int = 10_000,
    exclude: Sequence[str] = (),
    **given: Unpack[Shared],
) -> Score:
    """The original estimator of MIG: ``I(z_j; v_k) = H(z_j) - H(z_j | v_k)`` under ``q(z_j) = mean_n q(z_j | x_n)``.

    It differs from `mig` in four ways: samples instead of means, densities instead of bins, log n_k instead of
    H(v_k), and dSprites' shape left out (``exclude=("shape",)``); published values differ accordingly.

    Args:
        mean: [N, J] posterior means over the whole data set.
        logvar: [N, J] logarithms of the posterior variances.
        factors: [N, K] discrete.
        samples: draws from the posterior of random rows, for the marginal and for each conditional density.
        exclude: names of factors to leave out.
        given: `Shared`; codes count one by one, and ``bootstrap`` resamples the draws.

    Returns:
        From 0 to 1; information is clamped at 0.

    Raises:
        UnbraidError: an argument has another form, or a log-variance is beyond 200 in size.
    """
    spread = as_codes(logvar, "logvar")
    if np.abs(spread).max() > EXTREME:
        raise UnbraidError(f"logvar holds {spread.flat[np.abs(spread).argmax()]:g}; clip it to between -20 and 20.")
    given["representation"] = "sampled"
    if given.get("blocks") is not None:
        raise UnbraidError("mig_posterior takes single codes; for blocks use mig with blocks=....")
    seen = observe(mean, factors, given)
    if spread.shape != as_codes(mean, "mean").shape:
        raise UnbraidError(f"logvar must have the shape of mean, not {spread.shape}.")
    unknown = [name for name in exclude if name not in seen.names]
    if unknown:
        raise UnbraidError(f"exclude names a factor {unknown[0]!r}; there are {', '.join(seen.names)}.")
    used = np.flatnonzero(seen.varying & ~np.isin(seen.names, list(exclude)) & ~seen.continuous)
    if not len(used):
        raise UnbraidError("no discrete factor is left that varies; exclude fewer, or give other data.")
    rng = np.random.default_rng([seen.seed, 0x316])
    drawn = rng.integers(len(seen.z), size=at_least(samples, 1, "samples"))
    log_scale = 0.5 * spread[:, seen.active]
    z = seen.z[drawn] + np.exp(log_scale[drawn]) * rng.standard_normal((len(drawn), seen.z.shape[1]))
    marginal = -_log_density(z, seen.z, log_scale)
    conditional = np.stack([-_within(z, drawn, seen.z, log_scale, seen.classes[:, k]) for k in used])
    gains = marginal[None] - conditional  # [K, S, J], its mean over samples is the information

    def score(rows: slice | np.ndarray) -> tuple[float, np.ndarray]:
        m = np.maximum(gains[:, rows].mean(axis=1), 0.0).T
        first, second = top_two(m, 0)
        return float(((first - second) / np.log(seen.sizes[used])).mean()), m

    value, m = score(slice(None))
    answer = seen.answer(value, "mig[posterior]", m, used=[seen.names[k] for k in used])
    if seen.bootstrap:
        draws = [score(rng.integers(len(z), size=len(z)))[0] for _ in range(seen.bootstrap)]
        answer["interval"] = around(value, np.array(draws))
    return answer


def _within(
    z: np.ndarray, drawn: np.ndarray, mean: np.ndarray, log_scale: np.ndarray, classes: np.ndarray
) -> np.ndarray:
    """[S, J] log q(z | v) with the value v that each sample's row has."""
    out = np.empty_like(z)
    labels = classes[drawn]
    for value in np.unique(labels):
        mine, members = labels == value, classes == value
        out[mine] = _log_density(z[mine], mean[members], log_scale[members])
    return out


def _log_density(z: np.ndarray, mean: np.ndarray, log_scale: np.ndarray) -> np.ndarray:
    """[S, J] log of the mixture's density at each sample; its own component is in it, so the sum is never 0."""
    out = np.empty_like(z)
    step = max(1, CHUNK // max(1, min(len(mean), STRIPE)))
    for j in range(z.shape[1]):
        sharp = np.exp(-log_scale[:, j])
        # exp(-a^2/2) with a = z/s - mu/s: two multiplications and one exponential per pair, in stripes that fit a cache
        scale, place = sharp * np.sqrt(0.5), mean[:, j] * sharp * np.sqrt(0.5)
        total = np.zeros(len(z))
        for at in range(0, len(mean), STRIPE):
            part = slice(at, at + STRIPE)
            for start in range(0, len(z), step):
                rows = slice(start, start + step)
                pairs = z[rows, j, None] * scale[None, part]
                pairs -= place[None, part]
                np.multiply(pairs, pairs, out=pairs)
                np.negative(pairs, out=pairs)
                np.exp(pairs, out=pairs)
                total[rows] += pairs @ sharp[part]
        out[:, j] = np.log(total) - np.log(len(mean)) - 0.5 * LOG_2PI
    return out
