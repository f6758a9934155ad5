"""Moments of posterior means and variances, in one pass, float64; everything the classification needs."""

from __future__ import annotations

from typing import Self

import numpy as np

from unbraid.core.errors import UnbraidError


class Moments:
    """Count, means, covariances and divergences of J latents, built up batch by batch (Welford, Chan et al. 1983).

    Two passes would need the codes kept; sums of squares would lose the digits in which passive latents live (their
    means vary by 0.01 around 0, and their variances by 0.01 around 1).

    Args:
        latents: J.

    Attributes:
        n: points seen.
        mu_mean: [J] means of the posterior means.
        mu_cov: [J, J] their covariance (division by n).
        var_mean: [J] means of the posterior variances.
        kl: [J] mean divergence from N(0, 1) in nats.
    """

    def __init__(self, latents: int) -> None:
        self.n = 0
        self.mu_mean = np.zeros(latents)
        self.var_mean = np.zeros(latents)
        self._kl = np.zeros(latents)
        self._mu_scatter = np.zeros((latents, latents))
        self._var_scatter = np.zeros(latents)

    @classmethod
    def of(cls, mu: np.ndarray, var: np.ndarray) -> Moments:
        """The moments of a table of means and variances, [N, J] each."""
        made = cls(mu.shape[-1])
        made.update(mu, var)
        return made

    def update(self, mu: np.ndarray, var: np.ndarray) -> None:
        """Take in more points.

        Args:
            mu: [n, J] posterior means.
            var: [n, J] posterior variances.

        Raises:
            UnbraidError: shapes differ, a value is not finite, or a variance is not positive.
        """
        check(mu, var, len(self.mu_mean))
        if not len(mu):
            return
        mu, var = np.asarray(mu, np.float64), np.asarray(var, np.float64)
        other = Moments(mu.shape[1])
        other.n = len(mu)
        other.mu_mean, other.var_mean = mu.mean(0), var.mean(0)
        centred = mu - other.mu_mean
        other._mu_scatter = centred.T @ centred
        other._var_scatter = np.square(var - other.var_mean).sum(0)
        other._kl = (0.5 * (mu**2 + var - 1 - np.log(var))).mean(0)
        self.merge(other)

    def merge(self, other: Moments) -> Self:
        """Take in what another one has seen; the order does not matter but for rounding."""
        total = self.n + other.n
        if not other.n:
            return self
        share = other.n / total
        weight = self.n * share
        step = other.mu_mean - self.mu_mean
        self._mu_scatter = self._mu_scatter + other._mu_scatter + weight * np.outer(step, step)
        self.mu_mean = self.mu_mean + share * step
        step = other.var_mean - self.var_mean
        self._var_scatter = self._var_scatter + other._var_scatter + weight * step**2
        self.var_mean = self.var_mean + share * step
        self._kl = self._kl + share * (other._kl - self._kl)
        self.n = total
        return self

    @property
    def mu_cov(self) -> np.ndarray:
        """[J, J] covariance of the means."""
        return self._mu_scatter / max(1, self.n)

    @property
    def sampled_cov(self) -> np.ndarray:
        """[J, J] covariance of samples z = mu + sigma eps, in closed form: that of the means plus diag E[sigma^2]."""
        return self.mu_cov + np.diag(self.var_mean)

    @property
    def mu_var(self) -> np.ndarray:
        """[J] variance of the means."""
        return self.mu_cov.diagonal().copy()

    @property
    def var_var(self) -> np.ndarray:
        """[J] variance of the variances (division by n, as in the paper's code)."""
        return self._var_scatter / max(1, self.n)

    @property
    def kl(self) -> np.ndarray:
        """[J] mean divergence from the prior."""
        return self._kl.copy()

    @property
    def signal(self) -> np.ndarray:
        """[J] signal fraction r = Var(mu) / (Var(mu) + E[sigma^2]): 1 for a noiseless latent, 0 for a collapsed one."""
        total = self.mu_var + self.var_mean
        return self.mu_var / total


def correlation(cov: np.ndarray) -> np.ndarray:
    """[J, J] correlations of a covariance; rows and columns of constant codes are NaN, but their diagonal is 1."""
    scale = np.sqrt(cov.diagonal())
    with np.errstate(divide="ignore", invalid="ignore"):
        corr = cov / np.outer(scale, scale)
    corr = np.clip(corr, -1, 1)
    np.fill_diagonal(corr, 1)
    return corr


def predicted_correlation(moments: Moments) -> np.ndarray:
    """corr(z_i, z_j) = corr(mu_i, mu_j) sqrt(r_i r_j), which holds for every Gaussian posterior, trained or not."""
    corr = np.nan_to_num(correlation(moments.mu_cov)) * np.sqrt(np.outer(moments.signal, moments.signal))
    np.fill_diagonal(corr, 1)
    return corr


def check(mu: np.ndarray, var: np.ndarray, latents: int) -> None:
    """Refuse what is no table of means and variances.

    Raises:
        UnbraidError: shapes differ, a value is not finite, or a variance is not positive.
    """
    if mu.ndim != 2 or mu.shape != var.shape or mu.shape[1] != latents:
        raise UnbraidError(
            f"means and variances must both be [n, {latents}]; given are {tuple(mu.shape)} and {tuple(var.shape)}."
        )
    for name, values in (("means", mu), ("variances", var)):
        if not np.isfinite(values).all():
            raise UnbraidError(f"the posterior {name} hold NaN or infinity; look at the model or its inputs.")
    if var.size and var.min() <= 0:
        raise UnbraidError(
            f"a posterior variance is {var.min():g}; variances are positive: say output='logvar' if the model returns "
            "their logarithms."
        )
