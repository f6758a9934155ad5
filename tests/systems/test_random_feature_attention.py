"""Random-feature attention: kernels, streaming sums, symmetries and claims against closed forms and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from sklearn.kernel_ridge import KernelRidge

import unbraid
from unbraid.core.errors import UnbraidError
from unbraid.core.pieces import Pieces
from unbraid.systems.random_feature_attention import (
    AttentionFeatures,
    NeuronFeatures,
    RandomFeatureAttentionRegressor,
    RandomFeatureMLPRegressor,
    relu_moment,
    rfa_kernel,
    rfmlp_kernel,
    sphere_tokens,
    target,
)
from unbraid.systems.random_feature_attention import curves as curving
from unbraid.systems.random_feature_attention.curves import World, curve, errors, features, grams
from unbraid.systems.random_feature_attention.features import design, gram, normal_equations, project, values
from unbraid.systems.random_feature_attention.kernels import arc_cosine
from unbraid.systems.random_feature_attention.measuring import kernel_errors, samples_needed, symmetries
from unbraid.systems.random_feature_attention.ridge import held_out, leave_one_out
from unbraid.systems.random_feature_attention.targets import Target, directions
from unbraid.systems.random_feature_attention.tokens import bias_matrix, estimated_bias, pad, read

torch.set_num_threads(1)


def inputs(n=20, keys=4, d=3, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 1 + keys, d))


def data(n, name="power:2", keys=4, d=3, seed=0):
    x = sphere_tokens(n, keys, d, seed)
    return x, target(name)(x, *directions(d, seed))


def nothing(share):
    pass


# ---------------------------------------------------------------- kernels


@pytest.mark.parametrize(("a", "b", "t"), [(0.3, -0.5, 0.7), (1.2, 0.4, -0.3), (0.0, 0.0, 0.5), (-1.0, 0.8, 0.95)])
def test_the_moment_of_two_relus_is_its_integral(a, b, t):
    s = np.sqrt(1 - t * t)

    def inner(v, u):
        return (a + u) * (b + t * u + s * v) * stats.norm.pdf(u) * stats.norm.pdf(v)

    exact, _ = integrate.dblquad(inner, -a, 9, lambda u: (-b - t * u) / s, 9)
    found = relu_moment(*(torch.tensor(v, dtype=torch.float64) for v in (a, b, t)))
    assert float(found) == pytest.approx(exact, abs=2e-7)


def test_without_a_mean_the_moment_is_the_arc_cosine_kernel_and_its_ends_are_known():
    t = torch.linspace(-1, 1, 41, dtype=torch.float64)
    zero = torch.zeros_like(t)
    torch.testing.assert_close(relu_moment(zero, zero, t), arc_cosine(t), atol=1e-7, rtol=0)
    a = torch.linspace(-2, 2, 9, dtype=torch.float64)
    same = (1 + a**2) * torch.special.ndtr(a) + a * torch.exp(-(a**2) / 2) / (2 * np.pi) ** 0.5
    torch.testing.assert_close(relu_moment(a, a, torch.ones_like(a)), same, atol=1e-6, rtol=0)


def test_the_sheets_quadrature_agrees():
    """E_u[relu(a + u) (s phi(m/s) + m Phi(m/s))], m = b + t u, by brute force on a fine grid."""
    u = np.linspace(-9, 9, 200_001)
    for a, b, t in ((0.2, 0.9, 0.4), (-0.6, 0.1, 0.8)):
        s, m = np.sqrt(1 - t * t), b + t * u
        inner = s * stats.norm.pdf(m / s) + m * stats.norm.cdf(m / s)
        exact = integrate.trapezoid(np.maximum(a + u, 0) * inner * stats.norm.pdf(u), u)
        found = relu_moment(*(torch.tensor(v, dtype=torch.float64) for v in (a, b, t)))
        assert float(found) == pytest.approx(exact, abs=1e-8)


@pytest.mark.parametrize("bias", ["zero", "identity", "other"])
@pytest.mark.parametrize("unit", [True, False])
def test_heads_converge_to_the_closed_form_for_any_norms(bias, unit):
    x = sphere_tokens(5, 6, 4, 0) if unit else inputs(5, 6, 4)
    given = np.random.default_rng(1).standard_normal((4, 4)) if bias == "other" else bias
    mean, tokens = bias_matrix(given, 4), read(x)
    limit = torch.from_numpy(rfa_kernel(x, bias=given))
    few, many = (gram(AttentionFeatures(m, mean, 3), tokens) for m in (300, 60_000))
    wrong = [float((g - limit).norm() / limit.norm()) for g in (few, many)]
    assert wrong[1] < 0.03
    assert wrong[1] < wrong[0] / 3
    torch.testing.assert_close(limit, limit.T)


def test_neurons_converge_to_their_kernel():
    x = inputs(5, 2, 3)
    limit = torch.from_numpy(rfmlp_kernel(x))
    found = gram(NeuronFeatures(100_000, 0), read(x))
    assert float((found - limit).norm() / limit.norm()) < 0.02


def test_kernel_blocks_do_not_matter_and_rectangles_agree_with_squares():
    x = inputs(23, 3, 2)
    for bias in ("zero", "identity"):
        whole = rfa_kernel(x, bias=bias)
        np.testing.assert_allclose(whole, rfa_kernel(x, x.copy(), bias=bias), atol=1e-12)
        np.testing.assert_allclose(whole[3:5, 7:], rfa_kernel(x[3:5], x[7:], bias=bias), atol=1e-12)
        assert np.linalg.eigvalsh(whole).min() > -1e-9


def test_check_1_of_the_sheet_kernel_identity():
    rows = kernel_errors(16, 16, 0, (2_000, 20_000))
    for model in ("RFA", "BRFA"):
        coarse, fine = (r["error"] for r in rows if r["model"] == model)
        assert fine <= 0.03
        assert 1.5 < coarse / fine < 8  # 3.2 for one over the root of the heads


# ---------------------------------------------------------------- features and streaming


def test_features_are_the_definition():
    x, heads, d = inputs(7, 4, 3), 70, 3
    map_ = AttentionFeatures(heads, bias_matrix("identity", d), 5)
    w = torch.cat([map_.weights(k, d + 1) for k in (0, 1)]).double().numpy()
    assert w.shape == (heads, d + 1, d + 1)
    found = design(map_, read(x)).numpy() * heads**0.5
    for n in range(7):
        tokens = np.hstack([x[n], np.ones((5, 1))])
        for m in range(heads):
            exact = sum(max(0.0, tokens[0] @ w[m] @ key) * key for key in tokens[1:]) / 4
            np.testing.assert_allclose(found[n, m * (d + 1) : (m + 1) * (d + 1)], exact, atol=1e-6)


def test_weights_have_the_papers_law_and_larger_maps_begin_like_smaller_ones():
    drawn = torch.cat([AttentionFeatures(6_400, None, 2).weights(k, 5) for k in range(100)])
    assert float(drawn.var()) == pytest.approx(0.25, rel=0.02)
    torch.testing.assert_close(AttentionFeatures(100, None, 2).weights(1, 5), drawn[64:100])
    assert not torch.equal(AttentionFeatures(64, None, 3).weights(0, 5), drawn[:64])


@pytest.mark.parametrize("map_", [AttentionFeatures(150, None, 1), NeuronFeatures(1_500, 1)])
def test_streaming_is_dense(map_, monkeypatch):
    tokens = read(inputs(50))
    phi = design(map_, tokens)
    torch.testing.assert_close(gram(map_, tokens), phi @ phi.T)
    y = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    squares, moments = normal_equations(map_, tokens, y)
    torch.testing.assert_close(squares, phi.T @ phi)
    torch.testing.assert_close(moments, phi.T @ y)
    trained = values(map_, tokens, y)
    torch.testing.assert_close(trained, phi.T @ y)
    torch.testing.assert_close(project(map_, tokens, trained), phi @ trained)
    monkeypatch.setattr("unbraid.systems.random_feature_attention.features.ROWS", 7)
    monkeypatch.setattr(
        "unbraid.systems.random_feature_attention.features.batches",
        lambda count, rows=7: (slice(i, min(i + 7, count)) for i in range(0, count, 7)),
    )
    torch.testing.assert_close(gram(map_, tokens), phi @ phi.T)
    torch.testing.assert_close(values(map_, tokens, y), phi.T @ y)


def test_float32_is_close():
    tokens = read(inputs(30))
    exact = gram(AttentionFeatures(200), tokens)
    rough = gram(AttentionFeatures(200), tokens.to("cpu", torch.float32))
    assert rough.dtype == torch.float64
    torch.testing.assert_close(rough, exact, atol=1e-4, rtol=1e-5)


# ---------------------------------------------------------------- ridge


def test_leave_one_out_is_leaving_out():
    x, y = data(25)
    matrix = torch.from_numpy(rfa_kernel(x))
    columns = torch.from_numpy(np.stack([y, -y + x[:, 0, 0]], 1))
    chosen, dual = leave_one_out(matrix, columns, (1e-3, 1e-1))
    scale = float(matrix.diagonal().mean())
    for k, penalty in enumerate((1e-3, 1e-1)):
        wrong = []
        for i in range(25):
            rest = [j for j in range(25) if j != i]
            system = matrix[rest][:, rest] + penalty * scale * torch.eye(24, dtype=torch.float64)
            wrong.append((columns[i] - matrix[i, rest] @ torch.linalg.solve(system, columns[rest])) ** 2)
        np.testing.assert_allclose(chosen.errors[k], torch.stack(wrong).mean(0), rtol=1e-8)
    for k, at in enumerate(chosen.at):
        system = matrix + (1e-3, 1e-1)[at] * scale * torch.eye(25, dtype=torch.float64)
        torch.testing.assert_close(dual[:, k], torch.linalg.solve(system, columns[:, k]))


def test_held_out_inputs_decide_and_are_then_learned_from():
    x, y = data(40)
    matrix, column = torch.from_numpy(rfa_kernel(x)), torch.from_numpy(y)[:, None]
    chosen, dual = held_out(matrix, column, (1e-4, 1e-1), 0.25)
    scale = float(matrix.diagonal().mean())
    eye = torch.eye(40, dtype=torch.float64)
    for k, penalty in enumerate((1e-4, 1e-1)):
        part = torch.linalg.solve((matrix + penalty * scale * eye)[:30, :30], column[:30])
        np.testing.assert_allclose(chosen.errors[k], ((matrix[30:, :30] @ part - column[30:]) ** 2).mean(0))
    best = (1e-4, 1e-1)[chosen.at[0]]
    torch.testing.assert_close(dual, torch.linalg.solve(matrix + best * scale * eye, column))


def test_kernel_is_scikit_learns_kernel_ridge():
    x, y = data(60)
    fitted = RandomFeatureAttentionRegressor(heads=None, penalty=1e-2, scaling="none").fit(x[:40], y[:40])
    k = rfa_kernel(x[:40])
    peer = KernelRidge(alpha=1e-2 * np.trace(k) / 40, kernel="precomputed").fit(k, y[:40] - y[:40].mean())
    exact = peer.predict(rfa_kernel(x[40:], x[:40])) + y[:40].mean()
    np.testing.assert_allclose(fitted.predict(x[40:]), exact, atol=1e-9)


# `validation` of the primal problem and of the dual one hold out the same inputs
@pytest.mark.parametrize("validation", [None, 0.25])
def test_primal_and_dual_are_the_same_regression(validation, monkeypatch):
    x, y = data(90)
    made = RandomFeatureAttentionRegressor(heads=12, validation=validation, penalties=(1e-3, 1e-1))
    primal = made.fit(x[:70], y[:70])  # 48 features
    monkeypatch.setattr(RandomFeatureAttentionRegressor, "_primal", RandomFeatureAttentionRegressor._dual)
    dual = RandomFeatureAttentionRegressor(heads=12, validation=validation, penalties=(1e-3, 1e-1)).fit(x[:70], y[:70])
    np.testing.assert_allclose(primal.penalty_errors_, dual.penalty_errors_, rtol=0.05 if validation else 1e-6)
    np.testing.assert_allclose(primal.predict(x[70:]), dual.predict(x[70:]), atol=1e-7)


def test_values_are_the_function():
    x, y = data(50)
    fitted = RandomFeatureAttentionRegressor(heads=30, bias="identity", scaling="none").fit(x, np.stack([y, 2 * y], 1))
    phi = design(AttentionFeatures(30, bias_matrix("identity", 3), 0), read(x)).numpy().reshape(50, 30, 4) * 30**0.5
    assert fitted.values_.shape == (30, 4, 2)
    np.testing.assert_allclose(
        np.einsum("nmd,mdo->no", phi, fitted.values_) + fitted.offset_, fitted.predict(x), atol=1e-8
    )
    sizes = np.sqrt((fitted.values_**2).sum((1, 2)))
    assert fitted.norms_ == pytest.approx((sizes.sum(), 30 * (sizes**2).sum()))


# ---------------------------------------------------------------- symmetries and masks


def test_check_2_of_the_sheet_symmetries():
    for row in symmetries(16, 16, 100, 0):
        assert row["permuted"] <= 1e-6
        assert row["swapped"] > 0.01


@pytest.mark.parametrize("heads", [80, None])
@pytest.mark.parametrize("bias", ["zero", "identity", "estimated"])
def test_missing_keys_are_as_if_they_were_not_there(heads, bias):
    rng = np.random.default_rng(0)
    sets = [rng.standard_normal((1 + int(rng.integers(1, 6)), 3)) for _ in range(40)]
    y = np.array([one[1:, 0].mean() for one in sets])
    x = pad(sets)
    made = RandomFeatureAttentionRegressor(heads, bias, ragged=True).fit(x, y)
    found = made.predict(x[:5])
    for one, exact in zip(sets[:5], found, strict=True):
        assert made.predict(one[None])[0] == pytest.approx(exact, abs=1e-9)  # without padding
    mask = ~np.isnan(x[:, 1:, 0])
    junk = np.where(np.isnan(x), 7.5, x)
    other = RandomFeatureAttentionRegressor(heads, bias).fit(junk, y, mask=mask)
    np.testing.assert_allclose(other.predict(junk[:5], mask=mask[:5]), found, atol=1e-9)
    assert other.score(junk, y, mask=mask) == pytest.approx(made.score(x, y))


def test_more_copies_of_a_set_change_nothing():
    x, y = data(40)
    fitted = RandomFeatureAttentionRegressor(50).fit(x, y)
    twice = np.concatenate([x, x[:, 1:]], 1)
    np.testing.assert_allclose(fitted.predict(twice), fitted.predict(x), atol=1e-9)


# ---------------------------------------------------------------- estimator


def test_the_gaussian_process_knows_what_it_does_not_know():
    x = sphere_tokens(420, 2, 3, 0)
    kernel = rfa_kernel(x)
    rng = np.random.default_rng(0)
    truth = np.linalg.cholesky(kernel + 1e-9 * np.eye(420)) @ rng.standard_normal(420)  # drawn from the prior
    y = truth + (0.01 * np.trace(kernel) / 420) ** 0.5 * rng.standard_normal(420)
    fitted = RandomFeatureAttentionRegressor(heads=None, penalty=0.01, scaling="none").fit(x[:120], y[:120])
    mean, std = fitted.predict(x[120:], return_std=True)
    assert 0.8 < np.sqrt((((mean - truth[120:]) / std) ** 2).mean()) < 1.25
    assert std.mean() < truth.std() / 2
    assert fitted.predict(x[:20], return_std=True)[1].mean() < std.mean()
    peer = rfa_kernel(x[:120])
    mu = fitted.noise_[0]
    standard = (y[:120] - y[:120].mean()) / y[:120].std()
    system = fitted.amplitude_[0] * (peer + mu * np.eye(120))
    exact = stats.multivariate_normal(cov=system).logpdf(standard) - 120 * np.log(y[:120].std())
    assert fitted.log_evidence_[0] == pytest.approx(exact, rel=1e-5)
    with pytest.raises(UnbraidError, match="heads=None"):
        RandomFeatureAttentionRegressor(20).fit(x, y).predict(x, return_std=True)


@pytest.mark.parametrize("heads", [40, None])
def test_what_was_learned_survives_saving(tmp_path, heads):
    x, y = data(40)
    for bias in ("identity", "estimated"):
        made = unbraid.create("random_feature_attention", heads=heads, bias=bias).fit(x, y)
        folder = made.save_pretrained(tmp_path / f"{bias}{heads}")
        again = unbraid.System.from_pretrained(folder)
        np.testing.assert_array_equal(again.predict(x), made.predict(x))
        if heads is None:
            np.testing.assert_array_equal(again.predict(x, return_std=True)[1], made.predict(x, return_std=True)[1])


def test_a_kernel_is_exact_in_any_dtype():
    x, y = data(40)
    made = [
        RandomFeatureAttentionRegressor(None, "identity", dtype=d).fit(x, y).predict(x) for d in ("float32", "float64")
    ]
    np.testing.assert_allclose(*made, atol=1e-4)


def test_the_same_seed_gives_the_same_numbers():
    x, y = data(40)
    a, b, c = (RandomFeatureAttentionRegressor(30, seed=s).fit(x, y).predict(x) for s in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_scaling():
    x, y = data(40)
    plain = RandomFeatureAttentionRegressor(30).fit(x, y).predict(x)
    np.testing.assert_allclose(RandomFeatureAttentionRegressor(30).fit(9 * x, y).predict(9 * x), plain, atol=1e-8)
    stretched = x * np.random.default_rng(0).uniform(0.5, 2, (40, 5, 1))
    unit = RandomFeatureAttentionRegressor(30, scaling="unit")
    np.testing.assert_allclose(unit.fit(stretched, y).predict(stretched), plain, atol=1e-8)


X, Y = inputs(8), np.arange(8.0)
BAD = {
    "no array": ({}, ["a", "b"], Y, "no array of numbers"),
    "two dimensions": ({}, X[:, 0], Y, "width=d"),
    "no key": ({}, X[:, :1], Y, "no key"),
    "nothing": ({}, X[:0], Y[:0], "holds nothing"),
    "NaN": ({}, np.where(X > 1, np.nan, X), Y, "finite"),
    "infinite target": ({}, X, np.where(Y > 3, np.inf, Y), "infinity"),
    "targets": ({}, X, Y[:5], r"y must be \[8\]"),
    "one input": ({}, X[:1], Y[:1], "two at least"),
    "heads": ({"heads": 0}, X, Y, "heads is 0"),
    "heads as text": ({"heads": "many"}, X, Y, "heads is 'many'"),
    "bias": ({"bias": "other"}, X, Y, "bias is 'other'"),
    "matrix": ({"bias": np.ones((2, 2))}, X, Y, r"\[3, 3\]"),
    "penalty": ({"penalty": -1.0}, X, Y, "a penalty is -1.0"),
    "penalties": ({"penalties": ()}, X, Y, "penalties are"),
    "validation": ({"validation": 1.5}, X, Y, "share between 0 and 1"),
    "scaling": ({"scaling": "other"}, X, Y, "scaling is 'other'"),
    "dtype": ({"dtype": "int8"}, X, Y, "dtype is 'int8'"),
    "width": ({"width": 4}, X.reshape(8, -1), Y, "whole number of tokens"),
    "seed": ({"seed": -1}, X, Y, "seed is -1"),
    "device": ({"device": "abacus"}, X, Y, "no device 'abacus'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case):
    options, x, y, said = BAD[case]
    with pytest.raises(UnbraidError, match=said):
        RandomFeatureAttentionRegressor(**{"heads": 5, **options}).fit(x, y)


def test_bad_masks_and_other_widths():
    made = RandomFeatureAttentionRegressor(5).fit(X, Y)
    with pytest.raises(UnbraidError, match="width 2"):
        made.predict(X[..., :2])
    with pytest.raises(UnbraidError, match="mask must be"):
        made.predict(X, mask=np.ones((8, 3), bool))
    with pytest.raises(UnbraidError, match="input 2 has no key"):
        made.predict(X, mask=np.arange(8)[:, None] != np.full((1, 4), 2))
    with pytest.raises(UnbraidError, match="of one d"):
        pad([np.ones((3, 2)), np.ones((3, 4))])
    with pytest.raises(UnbraidError, match="fitted with 15"):
        RandomFeatureMLPRegressor(20).fit(X, Y).predict(X[:, :3])
    with pytest.raises(UnbraidError, match="takes no mask"):
        RandomFeatureMLPRegressor(20).fit(X, Y, mask=np.arange(4)[None] < np.full((8, 1), 3))
    with pytest.raises(UnbraidError, match="one space"):
        rfa_kernel(X, X[..., :2])


# ---------------------------------------------------------------- targets and curves


def test_targets_are_their_formulas():
    x = sphere_tokens(6, 4, 3, 0)
    beta, noise = directions(3, 0)
    assert np.linalg.norm(beta) == pytest.approx(1)
    np.testing.assert_allclose(np.linalg.norm(x, axis=2), 1)
    np.testing.assert_array_equal(x, sphere_tokens(9, 4, 3, 0)[:6])
    exact = [np.mean([(q @ k) ** 2 * (beta @ k) for k in keys]) for q, *keys in x]
    np.testing.assert_allclose(target("correlated:2:1")(x, beta, noise), exact)
    exact = [np.mean([(q @ k) ** 3 for k in keys]) for q, *keys in x]
    np.testing.assert_allclose(target("mixed:0:3")(x, beta, noise), exact)
    for gamma in (0.0, 0.5, 1.0):
        assert np.linalg.norm(Target("mixed", 1, gamma=gamma).matrix(noise)) == pytest.approx(3**0.5)
    for name in ("power:4", "correlated:0:2", "mixed:0.25:3"):
        assert target(name).name == name
    assert target("correlated:0:2").formula == "<b,xi>^2"
    assert target("correlated:1:1").formula == "<x0,xi> <b,xi>"
    for wrong in ("power", "power:0", "mixed:2:1", "cubic:3", "power:99"):
        with pytest.raises(UnbraidError, match="target"):
            target(wrong)


def test_the_estimated_bias_finds_the_matrix():
    world = World(d=4, keys=4)
    x = world.draw(20_000, 0)[world.test :]
    beta, noise = directions(4, 0)
    for p in (1, 3):
        wanted = Target("mixed", p, gamma=0.7)
        y = wanted(x, beta, noise)
        found, truth = estimated_bias(read(x), y - y.mean()), wanted.matrix(noise)
        assert (found * truth).sum() / np.linalg.norm(found) / np.linalg.norm(truth) > 0.9
        assert np.linalg.norm(found) == pytest.approx(2)


def test_a_curve_is_what_the_estimators_do():
    world, name = World(d=4, keys=3, test=50), "power:2"
    for model, made in (
        ("RFA", RandomFeatureAttentionRegressor(40, scaling="none", seed=3)),
        ("RFMLP", RandomFeatureMLPRegressor(200, scaling="none", seed=3)),
    ):
        rows = curve(model, world, [target(name)], [30, 60], [40], 3, Pieces(None), nothing)
        x = world.draw(60, 3)
        y = world.labels(x, [target(name)], 3)[:, 0]
        for row in rows:
            train = slice(50, 50 + row["n"])
            fitted = made.set_params(penalty=row["penalty"]).fit(x[train], y[train])
            exact = ((fitted.predict(x[:50]) - y[:50]) ** 2).mean() / y[:50].var()
            assert row["error"] == pytest.approx(exact, rel=1e-6)


def test_growing_heads_and_resuming_give_the_same_sums(tmp_path, monkeypatch):
    world = World(d=3, keys=3, test=10)
    x = world.draw(30, 0)
    tokens, map_ = world.tokens(x), features("BRFA", 1, world, 0)
    monkeypatch.setattr(curving, "LARGE", 5)
    monkeypatch.setattr(curving, "CHECKPOINT", 0)
    store = Pieces(tmp_path)
    found = dict(grams(map_, tokens, [50, 100, 200], store, "key", nothing))
    for heads, matrix in found.items():
        torch.testing.assert_close(matrix, gram(map_.sized(heads), tokens))
    again = dict(grams(map_, tokens, [200], store, "key", nothing))  # goes on from the sum on disk
    assert store.read_back == 1
    torch.testing.assert_close(again[200], found[200], atol=1e-5, rtol=1e-5)
    rows = curve("RFA", world, [target("power:1")], [10, 20], [50, 100], 0, store, nothing)
    monkeypatch.setattr(curving, "errors", lambda *a: pytest.fail("computed again"))
    assert curve("RFA", world, [target("power:1")], [10, 20], [50, 100], 0, store, nothing) == rows


def test_errors_do_not_see_the_tested_labels():
    world = World(d=3, keys=3, test=40)
    x = world.draw(60, 0)
    y = world.labels(x, [target("power:2")], 0)
    matrix = gram(features("RFA", 64, world, 0), world.tokens(x))
    _, penalty = errors(matrix, y, 60, 40)
    other = y.copy()
    other[:40] = np.random.default_rng(0).standard_normal((40, 1))
    assert errors(matrix, other, 60, 40)[1] == penalty


# ---------------------------------------------------------------- checks 3 to 5 of the sheet


def test_checks_3_and_4_of_the_sheet_bias_and_mlp():
    world = World(test=500)
    names = ("power:1", "power:2", "correlated:1:1")
    wanted = [target(name) for name in names]
    found = {}
    for model, sizes in (("RFA", [200, 800, 2000]), ("BRFA", [200, 2000]), ("RFMLP", [800])):
        for row in curve(model, world, wanted, sizes, [500], 0, Pieces(None), nothing):
            found[model, row["target"], row["n"]] = row["error"]
    assert found["RFA", "power:2", 800] <= 0.35
    assert found["RFMLP", "power:2", 800] >= 0.8
    assert found["BRFA", "correlated:1:1", 2000] <= 0.7 * found["RFA", "correlated:1:1", 2000]
    assert found["BRFA", "power:1", 200] > found["RFA", "power:1", 200]


def test_check_5_of_the_sheet_growth_with_the_keys():
    needed = {
        (model, keys): samples_needed(model, World(d=5, keys=keys, test=500), 100, 2_000, 0, Pieces(None))["samples"]
        for model in ("RFA", "RFMLP kernel")
        for keys in (4, 8)
    }
    assert needed["RFMLP kernel", 8] > 1.6 * needed["RFMLP kernel", 4]
    assert needed["RFA", 8] < 1.6 * needed["RFA", 4]
