"""Data, circuits, predictors and the reduced model against brute force, closed forms and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unbraid.core.errors import UnbraidError
from unbraid.systems.icl_linear_regression import predictors as known
from unbraid.systems.icl_linear_regression import reduced, superposition
from unbraid.systems.icl_linear_regression.circuits import ACTIVATIONS, Circuits, weigh
from unbraid.systems.icl_linear_regression.layer import (
    Attention,
    as_llama,
    as_multihead,
    attention_of,
    no_positions,
    strict_mask,
)
from unbraid.systems.icl_linear_regression.patterns import bands, report
from unbraid.systems.icl_linear_regression.projection import (
    Reduced,
    from_reduced,
    projection_cost,
    r_squared,
    remainder,
    to_reduced,
)
from unbraid.systems.icl_linear_regression.reading import per_head, read_circuits
from unbraid.systems.icl_linear_regression.sampling import Regression

TWO = Regression(6, 40, 0.1, supports=((0, 1, 2, 3), (2, 3, 4, 5)))


def layer(dimension: int = 5, heads: int = 3, tasks: int = 1, seed: int = 0) -> Attention:
    torch.manual_seed(seed)
    return Attention(dimension, heads, tasks)


def dense(module: Attention, batch) -> torch.Tensor:
    """The paper's formula as it stands: TF(Z) with the whole matrix of tokens, a mask and a residual."""
    d, n, h = module.dimension, module.tasks, module.heads
    width = d + n
    q, k, v = (p.weight.double().view(h, width, width) for p in (module.q_proj, module.k_proj, module.v_proj))
    o = module.o_proj.weight.double().view(n, h, width)
    found = []
    for i in range(len(batch.x)):
        z = torch.cat([batch.tokens[i], torch.cat([batch.query[i], torch.zeros(n)])[None]]).T.double()  # [D, L + 1]
        out = z.clone()
        for j in range(h):
            logits = z.T @ k[j].T @ q[j] @ z / math.sqrt(width)
            long = z.shape[1]
            seen = torch.ones(long, long).triu(1).bool()  # strictly earlier tokens, column by column
            weights = torch.softmax(logits.masked_fill(~seen, -torch.inf), 0).nan_to_num()
            full = torch.zeros(width, width, dtype=torch.float64)
            full[d:] = o[:, j]
            out = out + full @ v[j] @ z @ weights
        found.append(out[d:, -1])
    return torch.stack(found)


@pytest.mark.parametrize("tasks", [1, 2])
def test_circuits_are_the_layer_with_keys_queries_values_and_the_whole_matrix(tasks):
    task = Regression(4, 7, supports=None if tasks == 1 else ((0, 1), (1, 2, 3)))
    module, batch = layer(4, 3, tasks), task.sample(5, 1)
    truth = dense(module, batch)
    torch.testing.assert_close(module.predict(batch).double(), truth, atol=1e-6, rtol=0)
    torch.testing.assert_close(read_circuits(module).predict(batch).double(), truth, atol=1e-6, rtol=0)


def test_a_layer_rebuilt_from_circuits_in_torch_and_in_transformers_predicts_the_same():
    task, module = Regression(5, 9), layer()
    batch = task.sample(6, 2)
    truth, asked = module.predict(batch), torch.cat([batch.query, torch.zeros(6, 1)], -1)
    torch.testing.assert_close(attention_of(read_circuits(module)).predict(batch), truth, atol=1e-6, rtol=0)
    multi, embed, read = as_multihead(module)
    keys = batch.tokens @ embed.T
    out = multi((asked @ embed.T)[:, None], keys, keys, need_weights=False)[0][:, 0] @ read.T
    torch.testing.assert_close(out, truth, atol=1e-6, rtol=0)
    llama, embed2, read2 = as_llama(module)
    tokens = torch.cat([batch.tokens, asked[:, None]], 1) @ embed2.T
    out = llama(tokens, position_embeddings=no_positions(module, tokens), attention_mask=strict_mask(9))[0]
    torch.testing.assert_close(out[:, -1] @ read2.T, truth, atol=1e-6, rtol=0)
    mine = read_circuits(module)
    for other in (read_circuits(multi, embed=embed, read=read), read_circuits(llama, embed=embed2, read=read2)):
        torch.testing.assert_close(other.kq, mine.kq)
        torch.testing.assert_close(other.ov, mine.ov)


def test_circuits_of_grouped_heads_and_of_plain_tensors():
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaAttention

    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=8, num_attention_heads=4, num_key_value_heads=2, head_dim=3, attention_bias=False)
    module = LlamaAttention(config, 0)
    found = read_circuits(module)
    q, k = module.q_proj.weight.view(4, 3, 8), module.k_proj.weight.view(2, 3, 8)
    v, o = module.v_proj.weight.view(2, 3, 8), module.o_proj.weight.view(8, 4, 3)
    for h in range(4):
        torch.testing.assert_close(found.kq[h], k[h // 2].T @ q[h] / math.sqrt(3))
        torch.testing.assert_close(found.ov[h], (o[:, h] @ v[h // 2])[-1:])
    lens = per_head(
        q.transpose(1, 2), k[[0, 0, 1, 1]].transpose(1, 2), v[[0, 0, 1, 1]].transpose(1, 2), o.permute(1, 2, 0)
    )
    torch.testing.assert_close(lens.kq, found.kq)
    torch.testing.assert_close(lens.ov, found.ov)


def test_weights_of_every_activation_by_hand():
    v = torch.tensor([0.2, -0.3, 0.5])
    hand = {
        "softmax": v.exp() / v.exp().sum(), "affine": (1 + v) / (1 + v).sum(),
        "square": (1 + v) ** 2 / ((1 + v) ** 2).sum(),
        "tanh": (1 + v.tanh()) / (1 + v.tanh()).sum(), "linear": v / 40, "linear mean": v / 3,
    }  # fmt: skip
    assert set(hand) == set(ACTIVATIONS)
    for name, truth in hand.items():
        torch.testing.assert_close(weigh(v, name, 40), truth)


def test_data_have_the_moments_that_are_said():
    task = Regression(4, 6, 0.3, 0.5)
    b = task.sample(40_000, 3, dtype=torch.float64)
    x = b.x.flatten(0, 1)
    torch.testing.assert_close(x.T @ x / len(x), task.covariance(), atol=0.02, rtol=0)
    assert float(b.answer.square().mean()) == pytest.approx(1.3, abs=0.03)
    once, again = task.sample(3, 5), task.sample(3, 5)
    assert all(torch.equal(a, c) for a, c in zip(once, again, strict=True))
    noiseless = Regression(6, 8, 0.0, supports=TWO.supports).sample(2, 1, dtype=torch.float64)
    beta = torch.linalg.lstsq(
        torch.cat([noiseless.x * TWO.masks()[0], noiseless.x * TWO.masks()[1]], 1),
        torch.cat([noiseless.y[..., :1], noiseless.y[..., 1:]], 1),
    ).solution[..., 0]
    torch.testing.assert_close((noiseless.query[:, None] * TWO.masks() * beta[:, None]).sum(-1), noiseless.answer)


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_the_exact_risk_of_a_step_is_what_simulation_finds_and_omega_minimises_it(rho, debiased):
    task = Regression(4, 12, 0.2, rho)
    b = task.sample(100_000, 7, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    odd = torch.randn(4, 4, generator=generator, dtype=torch.float64) * 0.3
    for step in (0.7, odd, known.preconditioner(task, debiased=debiased)):
        simulated = (known.gradient_step(b, step, debiased=debiased) - b.answer).square()
        error = float(simulated.std() / math.sqrt(len(simulated)))
        assert known.gradient_risk(task, step, debiased=debiased) == pytest.approx(
            float(simulated.mean()), abs=4 * error
        )
    best = known.preconditioner(task, debiased=debiased)
    least = known.gradient_risk(task, best, debiased=debiased)
    for k in range(10):
        near = best + 0.05 * torch.randn(4, 4, generator=generator, dtype=torch.float64)
        assert known.gradient_risk(task, near, debiased=debiased) > least, k


def test_a_gradient_step_is_the_formula_and_its_figures_are_the_sheets():
    task = Regression()
    b = task.sample(3, 0, dtype=torch.float64)
    for i in range(3):
        x, y, q = b.x[i], b.y[i, :, 0], b.query[i]
        plain = 0.9 / 40 * sum(y[j] * x[j] @ q for j in range(40))
        assert float(known.gradient_step(b, 0.9, debiased=False)[i]) == pytest.approx(float(plain))
        centred = plain - 0.9 / 40 * y.sum() * (x.mean(0) @ q)
        assert float(known.gradient_step(b, 0.9)[i]) == pytest.approx(float(centred))
    eta = 2 * 0.13 * 3.45
    assert known.gradient_risk(task, eta) == pytest.approx(0.241, abs=5e-4)
    assert known.gradient_risk(task, 0.8) == pytest.approx(1.1 - 1.6 + 0.64 * (1 + 6.5 / 40))
    assert known.best_step(task) == pytest.approx(float(known.preconditioner(task)[0, 0]))


def test_ridge_is_the_bayes_predictor_and_has_its_risk():
    task = Regression(3, 8, 0.3)
    b = task.sample(60_000, 1, dtype=torch.float64)
    x, y = b.x[0], b.y[0, :, 0]
    by_hand = b.query[0] @ torch.linalg.inv(x.T @ x + 0.9 * torch.eye(3)) @ x.T @ y
    assert float(known.ridge(b, task)[0, 0]) == pytest.approx(float(by_hand))
    simulated = (known.ridge(b, task) - b.answer).square()
    assert known.bayes_risk(task) == pytest.approx(float(simulated.mean()), abs=0.01)
    for other in (0.3, 2.7):
        worse = known.ridge(b, Regression(3, 8, other / 3))
        assert float((worse - b.answer).square().mean()) > float(simulated.mean())
    large = Regression(120, 240, 0.4)
    assert known.bayes_risk(large, 50) == pytest.approx(known.limiting_bayes_risk(0.4, 0.5), rel=0.01)
    assert known.gradient_risk(large, known.best_step(large)) == pytest.approx(
        known.limiting_step_risk(0.4, 0.5), rel=0.01
    )


def test_ridge_of_two_tasks_pools_their_labels_only_where_b_is_shared():
    own = Regression(6, 10, 0.2, supports=TWO.supports, shared=False)
    b = own.sample(4, 2, dtype=torch.float64)
    one = Regression(4, 10, 0.2 * 6 / 4)  # the penalty d sigma^2 is that of six dimensions
    first = b._replace(x=b.x[..., :4], y=b.y[..., :1], query=b.query[..., :4])
    torch.testing.assert_close(known.ridge(b, own)[:, :1], known.ridge(first, one))
    together = Regression(6, 10, 0.2, supports=TWO.supports)
    c = together.sample(20_000, 3)
    pooled, alone = (float((known.ridge(c, t) - c.answer).square().mean()) for t in (together, own))
    assert pooled - 0.2 < 0.85 * (alone - 0.2)  # of the risk beyond the answer's noise


def test_risk_of_kernels_with_all_but_some_numbers_integrated_out_is_that_of_simulation():
    task = Regression(3, 10, 0.2)
    omega, mu = [0.5, -0.3, 0.1], [0.8, -0.9, 0.4]
    b = task.sample(200_000, 4)
    simulated = (known.kernels(b, torch.tensor(omega), torch.tensor(mu)) - b.answer).square()
    assert known.KernelRisk(task, 50_000).risk(omega, mu) == pytest.approx(float(simulated.mean()), abs=0.008)
    exact = known.KernelRisk(task, 5_000)
    best, least = exact.best(omega)
    assert exact.risk(omega, best) == pytest.approx(least)
    assert all(exact.risk(omega, best + 0.1 * torch.eye(3)[k]) > least for k in range(3))
    w, m, risk = exact.best_single()
    assert risk < min(exact.best([0.8 * w])[1], exact.best([1.2 * w])[1])
    assert exact.risk([w], [m]) == pytest.approx(risk)


def test_gradients_of_the_reduced_loss_are_autograds_and_finite_differences():
    task = Regression(5, 40, 0.1)
    generator = torch.Generator().manual_seed(0)
    omega, mu = (torch.randn(3, 4, generator=generator, dtype=torch.float64) * s for s in (0.2, 1.0))
    w, m = omega.clone().requires_grad_(), mu.clone().requires_grad_()
    (reduced.approximate_loss(w, m, task).sum() / 2).backward()
    in_omega, in_mu = reduced.gradients(omega, mu, task)
    torch.testing.assert_close(in_omega, w.grad)
    torch.testing.assert_close(in_mu, m.grad)
    step = torch.zeros_like(omega)
    step[1, 2] = 1e-6
    for a, b, found in ((step, 0 * step, in_omega), (0 * step, step, in_mu)):
        up, down = (reduced.approximate_loss(omega + s * a, mu + s * b, task)[1] / 2 for s in (1, -1))
        assert float((up - down) / 2e-6) == pytest.approx(float(found[1, 2]), rel=1e-5)
    torch.testing.assert_close(reduced.taylor_loss(omega, mu, task, 20), reduced.approximate_loss(omega, mu, task))


def test_best_mu_and_the_manifold_minimise_the_reduced_loss():
    task = Regression()
    omega = torch.tensor([0.3, -0.2, 0.15], dtype=torch.float64)
    mu = reduced.best_mu(omega, task)
    torch.testing.assert_close(
        reduced.gradients(omega, mu, task)[1], torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0
    )
    for gamma in (0.05, 0.13, 0.3):
        pair = torch.tensor([gamma, -gamma], dtype=torch.float64)
        goal = float(reduced.mu_of(gamma, task))
        torch.testing.assert_close(reduced.best_mu(pair, task), torch.tensor([goal, -goal], dtype=torch.float64))
    assert float(reduced.mu_of(0.17, task)) == pytest.approx(2.58, abs=0.01)  # the method sheet's figure
    losses = [reduced.manifold_loss(g, task) for g in (0.01, 0.05, 0.1, 0.2, 0.4)]
    assert losses == sorted(losses)
    w, m = known.single_head(task)
    assert (w, m) == (pytest.approx(0.447, abs=1e-3), pytest.approx(1.63, abs=0.01))
    at = [
        reduced.approximate_loss(torch.tensor([v]), reduced.best_mu(torch.tensor([v]), task), task)
        for v in (0.9 * w, w, 1.1 * w)
    ]
    assert at[1] < min(at[0], at[2])


def test_descent_matches_signs_and_balances_the_sum():
    flow = reduced.descend(Regression(), 4, seeds=(0, 1, 3), steps=12_000)
    assert (np.sign(flow.omega[-1]) == np.sign(flow.mu[-1])).all()
    assert (np.abs(flow.mu[-1].sum(-1)) < 0.05 * np.abs(flow.mu[-1]).max(-1)).all()
    assert (np.diff(flow.loss, axis=0) < 1e-12).all()
    alone = reduced.descend(Regression(), 4, seeds=(1,), steps=12_000)
    np.testing.assert_allclose(alone.omega[:, 0], flow.omega[:, 1], atol=1e-9)
    with pytest.raises(UnbraidError, match="diverges"):
        reduced.descend(Regression(), 2, steps=200, lr=50.0)


def test_linear_attention_is_softmax_attention_of_twice_the_heads():
    torch.manual_seed(0)
    linear = Circuits(torch.randn(2, 5, 5).double(), torch.randn(2, 1, 5).double(), "linear mean")
    b = Regression(4, 9).sample(20, 1, dtype=torch.float64)
    kq, tokens = linear.kq[:, :, :4], b.tokens
    logits = torch.einsum("bli,hij,bj->bhl", tokens, kq, b.query)
    centred = (logits - logits.mean(-1, keepdim=True)) / 9
    truth = torch.einsum("bhl,bld,hnd->bn", centred, tokens, linear.ov)
    near, far = (float((linear.as_softmax(g).predict(b) - truth).abs().max()) for g in (1e-4, 1e-2))
    assert near < 1e-5
    assert far > 100 * near
    assert linear.as_softmax().heads == 4


def test_small_gamma_is_debiased_gradient_descent():
    b = Regression().sample(500, 0, dtype=torch.float64)
    apart = []
    for gamma in (0.2, 0.02, 0.002):
        mu = 0.9 / (2 * gamma)
        own = known.kernels(b, torch.tensor([gamma, -gamma]), torch.tensor([mu, -mu]))
        apart.append(float((own - known.gradient_step(b, 0.9)).abs().max()))
    assert apart[0] > 30 * apart[1] > 900 * apart[2]  # second order, where the theorem promises first


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 7), st.integers(1, 4), st.integers(2, 6))
def test_the_solver_meets_the_conditions_from_rank_and_one_heads_on(seed, heads, tasks, d):
    steps = torch.randn(tasks, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = superposition.solve(steps, heads)
    left = superposition.conditions(found.omega, found.mu, steps)
    assert left["zero_sum"] < 1e-9
    values = torch.linalg.svdvals(steps)[heads - 1 :]
    assert left["residual"] == pytest.approx(float(values.norm() / steps.norm()), abs=1e-9)  # the best of this rank
    assert (left["residual"] < 1e-9) == (heads >= superposition.least_heads(steps))


def test_solved_heads_predict_as_separate_steps_do():
    own = Regression(6, 40, 0.1, supports=TWO.supports, shared=False)
    goal = superposition.targets(own)
    assert superposition.least_heads(goal) == 3
    found, b = superposition.solve(goal, 3, scale=0.02), own.sample(2_000, 1, dtype=torch.float64)
    assert r_squared(known.kernels(b, found.omega, found.mu), known.gradient_step(b, goal)) > 0.9995
    torch.testing.assert_close(
        superposition.computed(from_reduced(found)).diagonal(dim1=0, dim2=1).T, goal, atol=1e-9, rtol=0
    )
    weights, _ = known.best_linear(own, 40_000, cross=False)
    torch.testing.assert_close(weights.diagonal(dim1=0, dim2=1).T, goal, atol=0.05, rtol=0)
    _, pooled = known.best_linear(TWO, 40_000)
    assert sum(pooled) < 0.97 * sum(known.best_linear(TWO, 40_000, cross=False)[1])


def perfect(heads: int = 4, gamma: float = 0.15) -> Circuits:
    task = Regression()
    signs = torch.tensor([1.0, -1.0] * (heads // 2))
    mu = signs * float(reduced.mu_of(gamma, task)) / (heads / 2)
    return from_reduced(Reduced((signs * gamma)[:, None].expand(-1, 5), mu[:, None]))


def test_a_perfect_layer_has_perfect_scores_whatever_its_order_and_scaling():
    task, c = Regression(), perfect()
    order = torch.tensor([2, 0, 3, 1])
    rebuilt = attention_of(Circuits(c.kq[order], c.ov[order]))
    with torch.no_grad():
        rebuilt.q_proj.weight *= 4
        rebuilt.k_proj.weight /= 4
        rebuilt.v_proj.weight *= 3
        rebuilt.o_proj.weight /= 3
    for r in (report(c, task), report(rebuilt, task)):
        assert r.diagonal_share == pytest.approx(1)
        assert r.label_share == pytest.approx(1)
        assert r.sign_match == 1
        assert r.zero_sum == pytest.approx(0, abs=1e-6)
        assert r.homogeneity == pytest.approx(0, abs=1e-6)
        assert r.manifold == pytest.approx(0, abs=1e-6)
        assert (r.dummies, r.heads) == (0, 4)
        assert r.step == pytest.approx(2 * 0.15 * float(reduced.mu_of(0.15, task)))


def test_scores_see_what_is_wrong():
    task, c = Regression(), perfect()
    kq, ov = c.kq.clone(), c.ov.clone()
    kq[0, 1, 2] = 0.15
    r = report(Circuits(kq, ov), task)
    assert r.diagonal_share == pytest.approx(20 / 21)
    assert r.identity_cosine == pytest.approx(math.sqrt(5 / 6))
    kq, ov = c.kq.clone(), c.ov.clone()
    kq[:, 5, 0] = 0.15
    assert report(Circuits(kq, ov), task).label_row_share == pytest.approx(1 / 6)
    ov[0] = 0
    assert report(Circuits(kq, ov), task).zero_sum == pytest.approx(1)
    ov = c.ov.clone()
    ov[:, 0, 0] = ov[:, 0, 5]
    assert report(Circuits(c.kq, ov), task).label_share == pytest.approx(0.5)
    kq, ov = c.kq.clone(), c.ov.clone()
    kq[3], ov[3] = 0.01 * kq[3], 0.01 * ov[3]
    assert report(Circuits(kq, ov), task).dummies == 1
    kq, ov = c.kq.clone(), c.ov.clone()
    ov[0] *= -1
    assert report(Circuits(kq, ov), task).sign_match == 0.75
    slanted = Regression(rho=0.5)
    omega = known.preconditioner(slanted).float()
    kq = torch.zeros(2, 6, 6)
    kq[0, :5, :5], kq[1, :5, :5] = omega, -omega
    r = report(Circuits(kq, c.ov[:2]), slanted, target=omega)
    assert r.preconditioner_cosine == pytest.approx(1)
    assert r.identity_cosine < 0.97
    table = bands([report(c, task), report(Circuits(kq, c.ov[:2]), task)])
    assert {row["score"] for row in table.records} >= {"diagonal_share", "manifold", "zero_sum"}


def test_projection_and_back():
    task, c = Regression(), perfect()
    for level in ("diagonal", "scalar", "manifold"):
        back = from_reduced(to_reduced(c, level, task))
        torch.testing.assert_close(back.kq, c.kq)
        torch.testing.assert_close(back.ov, c.ov)
    noise = torch.Generator().manual_seed(0)
    rough = Circuits(
        c.kq + 0.05 * torch.randn(c.kq.shape, generator=noise), c.ov + 0.1 * torch.randn(c.ov.shape, generator=noise)
    )
    cost = projection_cost(rough, task, sequences=4_000)
    b = task.sample(4_000, 0)
    assert cost["loss"] == pytest.approx(float((rough.predict(b) - b.answer).square().mean()), rel=1e-5)
    assert cost["cost"] == pytest.approx(cost["projected"] - cost["loss"], rel=1e-5)
    rest = remainder(rough)
    assert float(rest.kq[:, range(5), range(5)].abs().max()) == 0
    assert float((rest.predict(b) - b.answer).square().mean()) > 1.0 > cost["projected"]
