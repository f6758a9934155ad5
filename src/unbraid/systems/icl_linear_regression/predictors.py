"""What the layer is compared with: ridge, steps of gradient descent, single kernels, and their exact risks at finite L.

All risks contain the noise of the answer. Risks are for one task that reads all coordinates unless said otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from unbraid.core.errors import UnbraidError
from unbraid.systems.icl_linear_regression.circuits import Activation, weigh
from unbraid.systems.icl_linear_regression.sampling import Batch, Regression


def gradient_step(batch: Batch, step: Tensor | float, *, debiased: bool = True) -> Tensor:
    """One step of gradient descent on the context from zero: sum_l y_l x_l' W x_q / L.

    Args:
        batch: sequences.
        step: W: a number eta, [d, d] for all tasks, or [N, d] for the diagonal of each task.
        debiased: whether x_l is taken less its mean over the context.

    Returns:
        [B, N].
    """
    x = batch.x - batch.x.mean(-2, keepdim=True) if debiased else batch.x
    found = batch.y.transpose(-1, -2) @ x / x.shape[-2]  # [B, N, d]
    w = torch.as_tensor(step).to(found)
    if w.dim() == 2 and w.shape[0] == w.shape[1] == x.shape[-1]:
        return torch.einsum("bni,ij,bj->bn", found, w, batch.query)
    return torch.einsum("bni,bi->bn", found * w, batch.query)


def ridge(batch: Batch, task: Regression) -> Tensor:
    """The Bayes predictor [B, N]: ridge with penalty d sigma^2; of tasks that share their b all labels are read."""
    d, n, masks = task.dimension, task.tasks, task.masks().to(batch.x)
    seen = batch.x[:, :, None] * masks  # [B, L, N, d]
    if task.shared:
        seen, y = seen.flatten(1, 2), batch.y.flatten(1, 2)
        return torch.einsum("bd,nd,bd->bn", batch.query, masks, _solve(seen, y, d * task.noise))
    each = [_solve(seen[:, :, k], batch.y[:, :, k], d * task.noise) for k in range(n)]
    return torch.stack([(batch.query * masks[k] * each[k]).sum(-1) for k in range(n)], -1)


def _solve(x: Tensor, y: Tensor, penalty: float) -> Tensor:
    gram = x.transpose(-1, -2) @ x + max(penalty, 1e-9) * torch.eye(x.shape[-1]).to(x)
    return torch.linalg.solve(gram, x.transpose(-1, -2) @ y[..., None])[..., 0]


def kernels(batch: Batch, omega: Tensor, mu: Tensor, activation: Activation = "softmax") -> Tensor:
    """Signed sum of kernel regressors, the reduced model: sum_h mu_h <y, w(X diag(omega_h) x_q)>.

    Args:
        batch: sequences.
        omega: [H] or [H, d].
        mu: [H] or [H, N].
        activation: of the weights.

    Returns:
        [B, N].
    """
    omega = omega[:, None] if omega.dim() == 1 else omega
    mu = mu[:, None] if mu.dim() == 1 else mu
    asked = omega.to(batch.x) * batch.query[:, None]
    weights = weigh(asked.expand(-1, -1, batch.x.shape[-1]) @ batch.x.transpose(-1, -2), activation)
    return torch.einsum("hn,bhl,bln->bn", mu.to(batch.x), weights, batch.y)


def best_step(task: Regression, *, debiased: bool = False, length: int | None = None) -> float:
    """The step of least exact risk among multiples of the identity, isotropic x."""
    if task.rho:
        raise UnbraidError("best_step is for isotropic x; take preconditioner(task) for others.")
    d, long = task.dimension, length or task.length
    n = long - 1 if debiased else long
    return long / (n + 1 + d + d * task.noise)


def preconditioner(task: Regression, *, debiased: bool = False) -> Tensor:
    """[d, d] Omega of least exact risk: ((1 + 1/L) S + (tr S + d sigma^2)/L I)^-1, S the covariance; double."""
    s, long = task.covariance(), task.length
    n = long - 1 if debiased else long
    eye = torch.eye(task.dimension, dtype=s.dtype)
    return torch.linalg.inv((n + 1) / long * s + (s.trace() + task.dimension * task.noise) / long * eye)


def gradient_risk(
    task: Regression, step: Tensor | float, *, debiased: bool = False, length: int | None = None
) -> float:
    """Exact risk of `gradient_step` at finite L, with second moments of Wishart matrices; one task.

    Args:
        task: one task, any covariance.
        step: eta, or [d, d].
        debiased: as in `gradient_step`; the context's mean costs one degree of freedom.
        length: L; None: the task's.
    """
    s, d, long = task.covariance(), task.dimension, length or task.length
    n = long - 1 if debiased else long
    w = torch.as_tensor(step, dtype=s.dtype)
    w = w * torch.eye(d, dtype=s.dtype) if w.dim() == 0 else w
    a = w @ s @ w.T
    quadratic = (n * (n + 1) * (s @ a @ s).trace() + n * (a @ s).trace() * s.trace()) / long**2
    signal = s.trace() - 2 * n / long * (s @ w @ s).trace() + quadratic
    return float(task.noise + signal / d + task.noise * n / long**2 * (a @ s).trace())


def bayes_risk(task: Regression, draws: int = 20_000, seed: int = 0, length: int | None = None) -> float:
    """Risk of `ridge` at finite L; the mean over contexts of its posterior variance, which is exact given the context.

    Args:
        task: one task.
        draws: contexts.
        seed: of the contexts.
        length: L; None: the task's.
    """
    x = task.sample(draws, seed, length, torch.float64).x
    gram = x.transpose(-1, -2) @ x + task.dimension * max(task.noise, 1e-9) * torch.eye(task.dimension, dtype=x.dtype)
    inside = torch.linalg.solve(gram, task.covariance().expand_as(gram)).diagonal(dim1=1, dim2=2).sum(-1)
    return float(task.noise * (1 + inside.mean()))


def limiting_bayes_risk(noise: float, xi: float) -> float:
    """Risk of ridge with penalty d sigma^2 as d / L -> xi, the answer's noise included.

    Args:
        noise: sigma^2.
        xi: d / L.
    """
    return 0.5 * (noise + (xi - 1) / xi + math.sqrt(4 * noise + (noise + (1 - xi) / xi) ** 2))


def limiting_step_risk(noise: float, xi: float) -> float:
    """Risk of the best step of gradient descent as d / L -> xi; its eta is 1 / (1 + (1 + sigma^2) xi)."""
    return noise + (1 + noise) * xi / (1 + (1 + noise) * xi)


def bayes_ratio_bound(noise: float, xi: float) -> float:
    """The theorem's bound of risk(GD) / risk(Bayes), for sigma^2 + 1/xi > 1."""
    return 1 + 1 / (noise * (1 + xi * noise) * (1 + noise + 1 / xi))


def single_head(task: Regression) -> tuple[float, float]:
    """(omega, mu) of one head in closed form: 1/sqrt(d) and sqrt(d) / (1 + (1 + sigma^2)(d/L) e); isotropic."""
    d = task.dimension
    return d**-0.5, math.sqrt(d) / (1 + (1 + task.noise) * d / task.length * math.e)


class KernelRisk:
    """Risk of signed kernel regressors at finite L, isotropic x, all but L + 1 numbers of a sequence integrated out.

    Given a query of norm r, its products with the context are r g with g ~ N(0, I_L), so the weights s_h =
    softmax(omega_h r g) need no x. Means over b, the noise and directions across the query are exact:
    risk = 1 + sigma^2 - 2/d mu'E[r A] + mu'E[A A'/d + ((d - 1)/d + sigma^2) S S']mu with A_h = <s_h, g> and S_h = s_h.

    Args:
        task: one isotropic task.
        draws: of (r, g).
        seed: of the draws.
        length: L; None: the task's.

    Raises:
        UnbraidError: the task is not isotropic, or has several tasks.
    """

    def __init__(self, task: Regression, draws: int = 20_000, seed: int = 0, length: int | None = None) -> None:
        if task.rho or task.tasks > 1:
            raise UnbraidError("KernelRisk is for one task with isotropic x; simulate others.")
        from scipy import stats

        generator = torch.Generator().manual_seed(seed)
        self.d, self.noise = task.dimension, task.noise
        self.g = torch.randn(draws, length or task.length, generator=generator, dtype=torch.float64)
        places = (np.arange(draws) + 0.5) / draws  # r has no sampling error to speak of
        self.r = torch.as_tensor(np.sqrt(stats.chi2.ppf(places, self.d)))
        self.base = task.noise + float(self.r.square().mean()) / self.d

    def moments(self, omega: Sequence[float] | Tensor) -> tuple[Tensor, Tensor]:
        """The linear [H] and the quadratic [H, H] coefficients of the risk in mu."""
        w = torch.as_tensor(omega, dtype=torch.float64)
        s = torch.softmax(w[:, None] * (self.r[:, None] * self.g)[:, None], -1)
        a = (s * self.g[:, None]).sum(-1)
        share = (self.d - 1) / self.d + self.noise
        quadratic = torch.einsum("bh,bk->hk", a, a) / self.d + share * torch.einsum("bhl,bkl->hk", s, s)
        return (self.r[:, None] * a).mean(0) / self.d, quadratic / len(self.r)

    def risk(self, omega: Sequence[float] | Tensor, mu: Sequence[float] | Tensor) -> float:
        """Of given omega [H] and mu [H]."""
        linear, quadratic = self.moments(omega)
        m = torch.as_tensor(mu, dtype=torch.float64)
        return float(self.base - 2 * m @ linear + m @ quadratic @ m)

    def best(self, omega: Sequence[float] | Tensor) -> tuple[Tensor, float]:
        """The best mu [H] for given omega, and the risk."""
        linear, quadratic = self.moments(omega)
        mu = torch.linalg.solve(quadratic, linear)
        return mu, float(self.base - linear @ mu)

    def best_single(self) -> tuple[float, float, float]:
        """omega, mu and risk of the best single head, by a search over omega on these draws."""
        from scipy.optimize import minimize_scalar

        found = minimize_scalar(lambda w: self.best([w])[1], bounds=(0.02, 2.0), method="bounded")
        mu, risk = self.best([float(found.x)])
        return float(found.x), float(mu[0]), risk

    def best_pair(self, gamma: float) -> tuple[float, float]:
        """mu and risk of the best two heads with omega = gamma, -gamma and label weights mu, -mu."""
        linear, quadratic = self.moments([gamma, -gamma])
        signs = torch.tensor([1.0, -1.0], dtype=torch.float64)
        gain, curve = signs @ linear, signs @ quadratic @ signs
        return float(gain / curve), float(self.base - gain**2 / curve)


def best_linear(
    task: Regression, sequences: int = 100_000, seed: int = 0, *, cross: bool = True
) -> tuple[Tensor, list[float]]:
    """The best debiased gradient step with a weight for each coordinate, by least squares on drawn sequences.

    Args:
        task: one or several tasks.
        sequences: drawn.
        seed: of the draw.
        cross: whether the prediction of a task may read the labels of the others.

    Returns:
        Weights [N (of prediction), N (of labels), d]; risk of each task.
    """
    batch = task.sample(sequences, seed, dtype=torch.float64)
    x = batch.x - batch.x.mean(1, keepdim=True)
    features = (batch.y.transpose(1, 2) @ x / task.length * batch.query[:, None]).flatten(1)  # [B, N d]
    n, d, masks = task.tasks, task.dimension, task.masks()
    weights, risks = torch.zeros(n, n * d, dtype=torch.float64), []
    for k in range(n):
        read = torch.zeros(n, d)
        read[slice(None) if cross else k] = 1
        at = (read * masks[k]).flatten().nonzero()[:, 0]
        f = features[:, at]
        weights[k, at] = torch.linalg.solve(f.T @ f, f.T @ batch.answer[:, k])
        risks.append(float((batch.answer[:, k] - features @ weights[k]).square().mean()))
    return weights.unflatten(1, (n, d)), risks
