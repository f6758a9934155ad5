"""Terms of VAE losses against closed forms, definitions run to the letter, and torch's own distributions."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Normal, kl_divergence

from unbraid.core.errors import UnbraidError
from unbraid.layers.vae import image_vae
from unbraid.losses import vae as terms
from unbraid.losses.objectives import DIPVAE, AnnealedVAE, BetaTCVAE, BetaVAE, FactorVAE, make_objective
from unbraid.losses.training import train_vae


def gaussians(batch: int, latents: int, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    mu = torch.randn(batch, latents, generator=g, dtype=torch.float64)
    logvar = torch.randn(batch, latents, generator=g, dtype=torch.float64) - 1
    z = mu + (logvar / 2).exp() * torch.randn(batch, latents, generator=g, dtype=torch.float64)
    return z, mu, logvar


def test_reconstruction_is_the_log_likelihood():
    x, logits = torch.rand(4, 1, 3, 3), torch.randn(4, 1, 3, 3)
    want = -Bernoulli(logits=logits, validate_args=False).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(terms.reconstruction(x, logits, reduction="none"), want)
    torch.testing.assert_close(terms.reconstruction(x, logits), want.mean())
    torch.testing.assert_close(terms.reconstruction(x, logits, reduction="mean"), want.mean() / 9)
    normal = -Normal(logits, 0.5).log_prob(x) - math.log(0.5 * math.sqrt(2 * math.pi))
    torch.testing.assert_close(terms.reconstruction(x, logits, "gaussian", scale=0.5), normal.sum((1, 2, 3)).mean())
    mse = torch.nn.functional.mse_loss(x, logits)
    torch.testing.assert_close(terms.reconstruction(x, logits, "squared", "mean"), mse)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 10_000))
def test_divergences_are_those_of_torch(batch, latents, seed):
    _, mu, logvar = gaussians(batch, latents, seed)
    _, other, olog = gaussians(batch, latents, seed + 1)
    mine, theirs = Normal(mu, (logvar / 2).exp()), Normal(other, (olog / 2).exp())
    prior = Normal(torch.zeros_like(mu), torch.ones_like(mu))
    torch.testing.assert_close(terms.gaussian_kl(mu, logvar), kl_divergence(mine, prior))
    torch.testing.assert_close(terms.kl_between(mu, logvar, other, olog), kl_divergence(mine, theirs))
    torch.testing.assert_close(terms.log_density(other, mu, logvar), mine.log_prob(other))


def test_gradients_of_the_divergences():
    z, mu, logvar = (t.requires_grad_() for t in gaussians(4, 3))
    _, other, olog = (t.requires_grad_() for t in gaussians(4, 3, 1))
    assert torch.autograd.gradcheck(terms.gaussian_kl, (mu, logvar))
    assert torch.autograd.gradcheck(terms.kl_between, (mu, logvar, other, olog))
    for estimator in ("mws", "mss"):
        assert torch.autograd.gradcheck(
            lambda a, b, c, e=estimator: terms.batch_total_correlation(a, b, c, 10, e), (z, mu, logvar)
        )
    for kind in ("i", "ii"):
        assert torch.autograd.gradcheck(lambda a, b, k=kind: terms.dip_penalty(a, b, k, 2.0, 3.0), (mu, logvar))


@pytest.mark.parametrize(("batch", "size"), [(2, 2), (2, 9), (5, 5), (5, 40), (64, 1000)])
def test_stratified_weights_by_their_definition(batch, size):
    weights = terms.mss_log_weights(batch, size).exp()
    m = batch - 1
    torch.testing.assert_close(weights.sum(1), torch.ones(batch, dtype=torch.float64))
    torch.testing.assert_close(weights.diagonal(), torch.full((batch,), 1 / size, dtype=torch.float64))
    for b in range(batch):
        rest = sorted(weights[b, [c for c in range(batch) if c != b]].tolist())
        want = sorted([(size - m) / (size * m)] + [1 / m] * (m - 1))
        np.testing.assert_allclose(rest, want)


def test_stratified_sampling_is_unbiased_over_all_batches():
    """Averaged over every ordered batch that begins with x*, the estimate is q(z) exactly (appendix C.2)."""
    size, batch = 6, 3
    _, mu, logvar = gaussians(size, 2)
    z = torch.tensor([[0.3, -0.4]], dtype=torch.float64)
    dense = terms.log_density(z, mu, logvar).sum(1).exp()
    want = float(dense.mean())
    weights = terms.mss_log_weights(batch, size).exp()[0]
    star = 2
    others = [n for n in range(size) if n != star]
    found = [float((weights * dense[[star, *rest]]).sum()) for rest in permutations(others, batch - 1)]
    # x* itself is drawn evenly too; its own share is 1/N of q(z|x*), the others' N-1 of N
    assert np.mean(found) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("estimator", ["mws", "mss"])
def test_aggregate_densities_by_loops(estimator):
    z, mu, logvar = gaussians(5, 3)
    size, batch = 12, 5
    found = terms.aggregate_log_density(z, mu, logvar, size, estimator)
    for b in range(batch):
        weight = [1 / (batch * size)] * batch
        if estimator == "mss":
            m = batch - 1
            weight = [1 / m] * batch
            weight[b], weight[(b + 1) % batch] = 1 / size, (size - m) / (size * m)
        dense = [[math.exp(Normal(mu[c, j], (logvar[c, j] / 2).exp()).log_prob(z[b, j])) for j in range(3)]
                 for c in range(batch)]  # fmt: skip
        joint = math.log(sum(w * math.prod(row) for w, row in zip(weight, dense, strict=True)))
        product = sum(math.log(sum(w * row[j] for w, row in zip(weight, dense, strict=True))) for j in range(3))
        assert float(found.joint[b]) == pytest.approx(joint, rel=1e-10)
        assert float(found.product[b]) == pytest.approx(product, rel=1e-10)


def test_the_three_parts_are_the_sampled_divergence():
    z, mu, logvar = gaussians(50, 4)
    for estimator in ("mws", "mss"):
        parts = terms.decompose_kl(z, mu, logvar, 500, estimator)
        prior = Normal(torch.zeros_like(z), torch.ones_like(z))
        sampled = (Normal(mu, (logvar / 2).exp()).log_prob(z) - prior.log_prob(z)).sum(1).mean()
        torch.testing.assert_close(sum(parts), sampled)


def test_total_correlation_sees_dependence():
    g = torch.Generator().manual_seed(0)
    base = torch.randn(400, 1, generator=g, dtype=torch.float64)
    logvar = torch.full((400, 2), -3.0, dtype=torch.float64)
    noise = (logvar / 2).exp() * torch.randn(400, 2, generator=g, dtype=torch.float64)
    tied = base.repeat(1, 2)
    free = torch.randn(400, 2, generator=g, dtype=torch.float64)
    high = terms.batch_total_correlation(tied + noise, tied, logvar, 400)
    low = terms.batch_total_correlation(free + noise, free, logvar, 400)
    rho = 1 / (1 + math.exp(-3.0))
    assert float(high) == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.15)
    assert abs(float(low)) < 0.2


def test_dip_by_the_covariance():
    _, mu, logvar = gaussians(30, 4)
    for kind in ("i", "ii"):
        cov = np.cov(mu.numpy().T, bias=True)
        if kind == "ii":
            cov = cov + np.diag(logvar.exp().mean(0).numpy())
        off = sum(cov[i, j] ** 2 for i in range(4) for j in range(4) if i != j)
        want = 2.0 * off + 5.0 * ((np.diag(cov) - 1) ** 2).sum()
        assert float(terms.dip_penalty(mu, logvar, kind, 2.0, 5.0)) == pytest.approx(want)


def test_permuted_dims_keep_each_marginal_and_break_what_ties_them():
    base = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0))
    z = base.repeat(1, 3)
    made = terms.permute_dims(z, torch.Generator().manual_seed(1))
    assert all(torch.equal(made[:, j].sort().values, z[:, j].sort().values) for j in range(3))
    corr = np.corrcoef(made.numpy().T)
    assert np.abs(corr[~np.eye(3, dtype=bool)]).max() < 0.08
    counts = {tuple(terms.permute_dims(torch.arange(3.0)[:, None]).flatten().tolist()) for _ in range(200)}
    assert len(counts) == 6  # every order occurs


@pytest.mark.parametrize(("step", "want"), [(0, 0.0), (50, 12.5), (100, 25.0), (1000, 25.0)])
def test_capacity_grows_linearly_and_stops(step, want):
    assert terms.capacity(step, 25.0, 100) == want


def net(seed: int = 0):
    return image_vae(1, 16, 3, width=8, seed=seed)


def loss_and_parts(objective, step: int = 0):
    vae, x = net(), torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    loss, numbers = objective(vae, x, step)
    torch.manual_seed(1)
    mu, logvar, z, logits = vae(x)
    kl = terms.gaussian_kl(mu, logvar).sum(1).mean()
    return loss.item(), terms.reconstruction(x, logits).item(), kl.item(), (z, mu, logvar), numbers


def test_objectives_are_the_sums_they_claim():
    loss, error, kl, _, _ = loss_and_parts(BetaVAE(7))
    assert loss == pytest.approx(error + 7 * kl, rel=1e-6)
    loss, error, kl, _, numbers = loss_and_parts(AnnealedVAE(10, 100, steps=50), 5)
    assert loss == pytest.approx(error + 100 * abs(kl - 1), rel=1e-6)
    assert float(numbers["capacity"]) == 1
    for estimator in ("mws", "mss"):
        loss, error, kl, codes, _ = loss_and_parts(BetaTCVAE(60, 5, estimator))
        tc = terms.batch_total_correlation(*codes, 60, estimator).item()
        assert loss == pytest.approx(error + kl + 4 * tc, rel=1e-5)
    for kind, factor in (("i", 10), ("ii", 1)):
        loss, error, kl, (_, mu, logvar), _ = loss_and_parts(DIPVAE(kind, 3))
        assert loss == pytest.approx(error + kl + terms.dip_penalty(mu, logvar, kind, 3, 3 * factor).item(), rel=1e-5)


def test_factor_vae_gradients_go_where_they_belong():
    """The TC term teaches the VAE only, the cross-entropy the discriminator only; by autograd on each term alone."""
    vae, objective = net(), FactorVAE(3, gamma=5, width=16, depth=2)
    x = torch.rand(8, 1, 16, 16)
    torch.manual_seed(3)
    loss, numbers = objective(vae, x)
    loss.backward()
    torch.manual_seed(3)
    mu, logvar, z, logits = vae(x)
    judged = objective.discriminator(z)
    tc = (judged[:, 0] - judged[:, 1]).mean()
    assert float(numbers["tc"]) == pytest.approx(float(tc), rel=1e-5)
    plain = terms.reconstruction(x, logits) + terms.gaussian_kl(mu, logvar).sum(1).mean() + 5 * tc
    mine = torch.autograd.grad(plain, list(vae.parameters()), retain_graph=True)
    for weight, want in zip(vae.parameters(), mine, strict=True):
        torch.testing.assert_close(weight.grad, want, rtol=1e-4, atol=1e-5)
    shuffled = terms.permute_dims(z.detach())
    real, fake = objective.discriminator(z.detach()).log_softmax(1), objective.discriminator(shuffled).log_softmax(1)
    learn = -0.5 * (real[:, 0].mean() + fake[:, 1].mean())
    assert float(numbers["discriminator"]) == pytest.approx(float(learn), rel=1e-5)
    theirs = torch.autograd.grad(learn, list(objective.discriminator.parameters()))
    for weight, want in zip(objective.discriminator.parameters(), theirs, strict=True):
        torch.testing.assert_close(weight.grad, want, rtol=1e-4, atol=1e-6)


def test_a_trained_discriminator_estimates_the_total_correlation():
    """Correlated Gaussian codes of known TC: the density ratio's mean comes close to -1/2 log(1 - rho^2)."""
    from unbraid.losses.objectives import Discriminator

    torch.manual_seed(0)
    rho, judge = 0.8, Discriminator(2, width=32, depth=2)
    chol = torch.linalg.cholesky(torch.tensor([[1, rho], [rho, 1]]))
    opt = torch.optim.Adam(judge.parameters(), 3e-3)
    for _ in range(400):
        z = torch.randn(512, 2) @ chol.T
        real, fake = judge(z).log_softmax(1), judge(terms.permute_dims(z)).log_softmax(1)
        opt.zero_grad()
        (-real[:, 0].mean() - fake[:, 1].mean()).backward()
        opt.step()
    z = torch.randn(20_000, 2) @ chol.T
    judged = judge(z)
    assert float((judged[:, 0] - judged[:, 1]).mean()) == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.1)


@pytest.mark.parametrize("name", ["beta", "annealed", "beta_tc", "factor", "dip_i", "dip_ii"])
def test_every_objective_trains_resumes_and_repeats(name, tmp_path):
    x = torch.rand(40, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    options = {"width": 16, "depth": 2} if name == "factor" else None

    def run(steps=8, keep=None):
        vae = net()
        history = train_vae(
            vae, x, name, size="tiny", steps=steps, batch=16, options=options, keep=keep, progress=False
        )
        return vae, history

    whole, history = run()
    assert not whole.training
    assert history.extra["reconstruction"][-1] < history.extra["reconstruction"][0]
    assert {"reconstruction", "kl"} <= set(history.extra)
    if name == "annealed":
        return  # its schedule follows the number of steps, so a shorter run is another run
    run(4, tmp_path / "run")
    again, resumed = run(8, tmp_path / "run")
    assert resumed.resumed_from == 4
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_callbacks_see_the_vae_and_may_stop():
    x, seen, vae = torch.rand(40, 1, 16, 16), [], net()

    def stop(step, model, numbers):
        seen.append((step, model is vae, "kl" in numbers))
        return step == 3

    history = train_vae(vae, x, size="tiny", callbacks=stop, progress=False)
    assert seen == [(1, True, True), (2, True, True), (3, True, True)]
    assert history.stopped == "callback"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: terms.reconstruction(torch.zeros(2, 3), torch.zeros(2, 4)), "must be alike"),
        (lambda: terms.reconstruction(torch.zeros(2, 3), torch.zeros(2, 3), "poisson"), "no likelihood"),
        (lambda: terms.mss_log_weights(1, 10), "stratified sampling needs"),
        (lambda: terms.mss_log_weights(8, 4), "stratified sampling needs"),
        (lambda: terms.dip_penalty(torch.zeros(2, 2), torch.zeros(2, 2), "iii", 1, 1), "kinds 'i' and 'ii'"),
        (lambda: terms.capacity(3, -1, 10), "positive c_max"),
        (lambda: BetaVAE(-1), "beta is -1"),
        (lambda: make_objective("vq", latents=2, data_size=3), "no objective 'vq'"),
        (lambda: make_objective("beta", latents=2, data_size=3, options={"gama": 1}), "does not take"),
        (lambda: train_vae(net(), torch.full((4, 1, 16, 16), math.nan)), "NaN or infinity"),
        (lambda: train_vae(net(), torch.zeros(4, 3, 16, 16)), "is needed here"),
        (lambda: train_vae(net(), torch.zeros(4, 1, 16, 16), size="giant"), "size is 'giant'"),
        (lambda: train_vae(net(), torch.zeros(4, 1, 16, 16), steps=0), "steps is 0"),
        (lambda: train_vae(torch.nn.Linear(2, 2), torch.zeros(4, 2)), "a Linear is no VAE"),
        (lambda: FactorVAE(3, width=0), "positive sizes"),
        (lambda: train_vae(net(), torch.zeros(4, 1, 16, 16), BetaVAE(1), 3.0), "given by name"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(make, words):
    with pytest.raises(UnbraidError, match=words):
        make()
