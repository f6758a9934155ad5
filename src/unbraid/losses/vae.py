"""Terms of variational auto-encoder losses: reconstruction, divergences, total correlation, covariance penalties.

Everything is in nats, summed over dimensions and averaged over the batch where a scalar is returned.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unbraid.core.errors import UnbraidError

Reduction = Literal["sum", "mean", "none"]
Estimator = Literal["mws", "mss"]
LOG_2PI = math.log(2 * math.pi)


def reconstruction(
    x: Tensor,
    prediction: Tensor,
    likelihood: Literal["bernoulli", "gaussian", "squared"] = "bernoulli",
    reduction: Reduction = "sum",
    scale: float = 1.0,
) -> Tensor:
    """Negative log-likelihood of observations, up to a constant for the Gaussian.

    Args:
        x: [B, ...] observations; from 0 to 1 for a Bernoulli.
        prediction: [B, ...] logits for "bernoulli"; expected observations for the others.
        likelihood: "bernoulli" (cross-entropy), "gaussian" (half the squared error over ``scale``^2) or "squared"
            (the squared error itself).
        reduction: "sum" over an observation and mean over the batch (what beta refers to in the literature), "mean"
            over everything (XFactors), or "none": [B] sums.
        scale: standard deviation of the Gaussian.

    Raises:
        UnbraidError: shapes differ, or an unknown likelihood or reduction.
    """
    if x.shape != prediction.shape:
        raise UnbraidError(f"observations {tuple(x.shape)} and predictions {tuple(prediction.shape)} must be alike.")
    if likelihood == "bernoulli":
        each = F.binary_cross_entropy_with_logits(prediction, x, reduction="none")
    elif likelihood in ("gaussian", "squared"):
        each = (prediction - x).square() * (0.5 / scale**2 if likelihood == "gaussian" else 1.0)
    else:
        raise UnbraidError(f"there is no likelihood {likelihood!r}; choose bernoulli, gaussian or squared.")
    if reduction == "mean":
        return each.mean()
    sums = each.flatten(1).sum(1)
    if reduction not in ("sum", "none"):
        raise UnbraidError(f"reduction is {reduction!r}; it must be 'sum', 'mean' or 'none'.")
    return sums.mean() if reduction == "sum" else sums


def vae_reconstruction(vae: Any, x: Tensor, logits: Tensor, reduction: Reduction = "sum") -> Tensor:
    """`reconstruction` with the likelihood, activation and scale of a `GaussianVAE`."""
    prediction = logits if vae.likelihood == "bernoulli" else vae.activate(logits)
    return reconstruction(x, prediction, vae.likelihood, reduction, vae.scale)


def gaussian_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp logvar) || N(0, 1)) per dimension, of the same shape as ``mu``."""
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar)


def kl_between(mu: Tensor, logvar: Tensor, other_mu: Tensor, other_logvar: Tensor) -> Tensor:
    """KL(N(mu, exp logvar) || N(other_mu, exp other_logvar)) per dimension; the direction matters.

    The first argument's distribution is averaged over: with SCAN (arXiv 1707.03389) it is the posterior of the
    observation, detached, so that the label's posterior covers it.
    """
    spread = ((logvar - other_logvar).exp() + (mu - other_mu).square() * (-other_logvar).exp()) - 1
    return 0.5 * (spread + other_logvar - logvar)


def log_density(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """log N(z; mu, exp logvar) per element, shapes broadcast."""
    return -0.5 * (LOG_2PI + logvar + (z - mu).square() * (-logvar).exp())


def pairwise_log_density(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """[B, B, J]: entry (b, c, j) is log q(z_j of draw b | x_c)."""
    return log_density(z[:, None], mu[None], logvar[None])


def mss_log_weights(batch: int, data_size: int, device: torch.device | None = None) -> Tensor:
    """[B, B] logarithms of the weights of minibatch stratified sampling (arXiv 1802.04942, appendix C.2).

    Row b: 1/N for b itself, (N - M)/(N M) for one other column, 1/M for the rest, where M = B - 1; each row sums to 1.
    The paper's code fills the first two columns instead of the diagonal (its pull request 1).

    Raises:
        UnbraidError: a batch below 2, or larger than the data.
    """
    if batch < 2 or data_size < batch:
        raise UnbraidError(f"stratified sampling needs 2 <= batch <= data size, not {batch} and {data_size}.")
    m, n = batch - 1, data_size
    weights = torch.full((batch, batch), 1 / m, dtype=torch.float64, device=device)
    rows = torch.arange(batch, device=device)
    weights[rows, rows] = 1 / n
    weights[rows, (rows + 1) % batch] = (n - m) / (n * m)
    return weights.log()


class Marginals(NamedTuple):
    """Estimates, [B] each, of log q(z) and of log prod_j q(z_j)."""

    joint: Tensor
    product: Tensor


def aggregate_log_density(
    z: Tensor, mu: Tensor, logvar: Tensor, data_size: int, estimator: Estimator = "mss"
) -> Marginals:
    """log q(z) and log prod_j q(z_j) of the aggregate posterior, from one batch.

    Args:
        z: [B, J] draws, the b-th from the b-th posterior.
        mu: [B, J].
        logvar: [B, J].
        data_size: N, how many observations there are in all.
        estimator: "mws" (weighted, biased low) or "mss" (stratified, unbiased before the logarithm).

    Raises:
        UnbraidError: an unknown estimator, or a batch that does not fit.
    """
    pairs = pairwise_log_density(z, mu, logvar)
    count = len(z)
    if estimator == "mws":
        shift = math.log(count * data_size)
        joint = pairs.sum(2).logsumexp(1) - shift
        return Marginals(joint, (pairs.logsumexp(1) - shift).sum(1))
    if estimator != "mss":
        raise UnbraidError(f"there is no estimator {estimator!r}; choose mws or mss.")
    weights = mss_log_weights(count, data_size, z.device).to(pairs.dtype)
    joint = (weights + pairs.sum(2)).logsumexp(1)
    return Marginals(joint, (weights[..., None] + pairs).logsumexp(1).sum(1))


class Decomposition(NamedTuple):
    """KL = mutual information + total correlation + dimension-wise KL (arXiv 1802.04942, equation 2); scalars."""

    mutual_information: Tensor
    total_correlation: Tensor
    dimension_kl: Tensor


def decompose_kl(z: Tensor, mu: Tensor, logvar: Tensor, data_size: int, estimator: Estimator = "mss") -> Decomposition:
    """The three parts of the KL term; arguments as in `aggregate_log_density`."""
    own = log_density(z, mu, logvar).sum(1)
    prior = (-0.5 * (LOG_2PI + z.square())).sum(1)
    joint, product = aggregate_log_density(z, mu, logvar, data_size, estimator)
    return Decomposition((own - joint).mean(), (joint - product).mean(), (product - prior).mean())


def batch_total_correlation(
    z: Tensor, mu: Tensor, logvar: Tensor, data_size: int, estimator: Estimator = "mss"
) -> Tensor:
    """Total correlation of the aggregate posterior, a scalar; arguments as in `aggregate_log_density`.

    As a penalty "mws" pushes like "mss"; as a number to report it is off by about (J - 1) log(B N).
    """
    joint, product = aggregate_log_density(z, mu, logvar, data_size, estimator)
    return (joint - product).mean()


def batch_covariance(codes: Tensor) -> Tensor:
    """[J, J] covariance over the batch, with division by B, with gradient."""
    centred = codes - codes.mean(0)
    return centred.T @ centred / len(codes)


def dip_penalty(mu: Tensor, logvar: Tensor, kind: Literal["i", "ii"], off: float, diagonal: float) -> Tensor:
    """DIP-VAE's penalty (arXiv 1711.00848, equations 6 and 7): the codes' covariance should be the identity.

    Args:
        mu: [B, J].
        logvar: [B, J].
        kind: "i": covariance of the means; "ii": of the samples, which adds the mean variances to the diagonal.
        off: weight of the squared entries beside the diagonal.
        diagonal: weight of the squared differences of the diagonal from 1.

    Raises:
        UnbraidError: another kind.
    """
    if kind not in ("i", "ii"):
        raise UnbraidError(f"DIP-VAE has the kinds 'i' and 'ii', not {kind!r}.")
    cov = batch_covariance(mu)
    if kind == "ii":
        cov = cov + logvar.exp().mean(0).diag()
    own = cov.diagonal()
    return off * (cov.square().sum() - own.square().sum()) + diagonal * (own - 1).square().sum()


def permute_dims(z: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Each dimension of the codes [B, J] shuffled over the batch on its own: draws from prod_j q(z_j).

    Reference: FactorVAE, arXiv 1802.05983, algorithm 1.
    """
    order = torch.rand(z.shape, generator=generator, device=z.device).argsort(0)
    return z.gather(0, order)


def capacity(step: int, c_max: float, steps: int) -> float:
    """The annealed VAE's capacity at a step in nats: linear from 0 to ``c_max`` over ``steps`` (arXiv 1804.03599).

    Raises:
        UnbraidError: ``steps`` or ``c_max`` is not positive.
    """
    if steps < 1 or not c_max > 0:
        raise UnbraidError(f"capacity needs a positive c_max and steps, not {c_max} and {steps}.")
    return min(c_max, c_max * step / steps)
