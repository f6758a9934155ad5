"""Active variables: labels by hand, moments and scores against plain loops, the identity, pruning, adapters, study."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import unbraid
from unbraid.core.errors import UnbraidError
from unbraid.data.worlds import make
from unbraid.layers.vae import encode_all, image_vae, load_vae, signal_vae
from unbraid.losses.training import train_vae
from unbraid.metrics.disentanglement.unsupervised import mi_score, wasserstein_correlation
from unbraid.metrics.disentanglement.unsupervised import total_correlation as tc_of_codes
from unbraid.systems.active_variables import (
    ActiveVariables,
    Dynamics,
    Moments,
    accuracies,
    classify,
    gauss,
    index_sets,
    labels,
    linear_r2,
    posterior,
    prune,
    scores,
    statistics,
)


def discs(n: int):
    return make("discs", 16, n=n)


def posteriors(n: int = 500, latents: int = 6, seed: int = 0):
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((latents, latents))
    scale = np.array([1.0, 1.0, 0.6, 0.01, 0.02, 1e-3])[:latents]
    mu = rng.standard_normal((n, latents)) @ mix * scale
    var = np.exp(rng.standard_normal((n, latents)) * 0.1) * np.array([0.02, 0.05, 0.4, 1.0, 0.99, 1.0])[:latents]
    return mu, var


# labels


def test_labels_of_a_hand_made_table():
    mean = [0.02, 0.1, 0.15, 0.5, 0.89, 0.91, 1.0, 1.09, 1.2, 0.05, 1.0]
    var = [0.0, 0.05, 0.0, 0.05, 0.0, 0.01, 0.0, 0.0, 0.0, 0.2, 0.1]
    want = ["active", "active", "mixed", "mixed", "mixed", "passive", "passive", "passive", "mixed", "mixed", "mixed"]
    assert classify(np.array(mean), np.array(var)) == want


def test_a_latent_that_is_active_for_half_the_inputs_is_mixed():
    mu, var = np.zeros((100, 3)), np.ones((100, 3))
    var[:, 0], var[:50, 1] = 0.01, 0.01
    found = Moments.of(mu, var)
    assert classify(found.var_mean, found.var_var) == ["active", "mixed", "passive"]
    assert found.var_var[1] == pytest.approx(0.99**2 / 4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 1), st.floats(0.01, 0.49))
def test_labels_partition_the_latents(seed, tau, delta):
    rng = np.random.default_rng(seed)
    found = classify(rng.random(20) * 1.5, rng.random(20), tau, delta)
    sets = index_sets(found, least=1)
    parts = [sets.get(kind, []) for kind in labels.KINDS]
    assert sorted(j for part in parts for j in part) == list(range(20))
    for a, b in combinations(labels.KINDS, 2):
        union = sets.get(f"{a}+{b}")
        assert (union is None) == (a not in sets or b not in sets)
        assert union is None or set(union) == set(sets[a]) | set(sets[b])


def test_sets_with_fewer_than_two_latents_are_left_out():
    assert set(index_sets(["active", "passive", "passive"])) == {"full", "passive", "active+passive"}


# moments


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 60), st.lists(st.integers(0, 60), max_size=4), st.integers(0, 1000))
def test_moments_in_pieces_are_those_of_the_whole(n, cuts, seed):
    mu, var = posteriors(n, 4, seed)
    mu[:, 3] += 1e6  # a code far from zero, where sums of squares would lose everything
    made = Moments(4)
    for part in np.split(np.arange(n), sorted(min(c, n) for c in cuts)):
        made.update(mu[part], var[part])
    assert made.n == n
    np.testing.assert_allclose(made.mu_cov, np.cov(mu.T, bias=True), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(made.var_mean, var.mean(0))
    np.testing.assert_allclose(made.var_var, var.var(0), atol=1e-12)
    np.testing.assert_allclose(made.kl, (0.5 * (mu**2 + var - 1 - np.log(var))).mean(0))
    half = Moments.of(mu[: n // 2], var[: n // 2]).merge(Moments.of(mu[n // 2 :], var[n // 2 :]))
    np.testing.assert_allclose(half.mu_cov, made.mu_cov, rtol=1e-6, atol=1e-9)


def test_the_closed_form_is_the_covariance_of_many_samples():
    mu, var = posteriors(400, 4)
    found = Moments.of(mu, var)
    rng = np.random.default_rng(1)
    many = np.concatenate([mu + np.sqrt(var) * rng.standard_normal(mu.shape) for _ in range(400)])
    np.testing.assert_allclose(np.cov(many.T), found.sampled_cov, atol=0.02)
    np.testing.assert_allclose(found.signal, mu.var(0) / (mu.var(0) + var.mean(0)))


def test_bootstrap_shares_are_those_of_resampled_rows():
    rng = np.random.default_rng(0)
    var = np.stack([np.full(200, 0.02), 0.1 + 0.1 * rng.standard_normal(200) ** 2 - 0.02, np.ones(200)], 1)
    boot = labels.Bootstrap(3, 2_000, 0)
    for part in np.split(var, 4):
        boot.update(part)
    found = boot.shares(0.1, 0.1)
    plain = [classify(v.mean(0), v.var(0)) for v in (var[rng.integers(0, 200, 200)] for _ in range(2_000))]
    want = np.array([[np.mean([p[j] == kind for p in plain]) for kind in labels.KINDS] for j in range(3)])
    assert found[0, 0] == found[2, 2] == 1
    np.testing.assert_allclose(found, want, atol=0.06)


# scores


def test_scores_from_a_covariance_are_those_of_the_metrics_from_codes():
    mu, var = posteriors(1_000, 5)
    found = Moments.of(mu, var)
    assert gauss.total_correlation(found.mu_cov) == pytest.approx(tc_of_codes(mu)["score"], rel=1e-6)
    assert gauss.total_correlation(found.sampled_cov) == pytest.approx(tc_of_codes(mu, variance=var)["score"], rel=1e-2)
    assert gauss.wasserstein(np.cov(mu.T)) == pytest.approx(wasserstein_correlation(mu)["score"], rel=1e-6)
    mine = gauss.mutual_information(mu)
    assert scores.off_diagonal_mean(mine) == pytest.approx(mi_score(mu)["score"], rel=1e-6)


def test_scores_of_known_covariances():
    rho = 0.6
    pair = np.array([[4.0, 2 * rho], [2 * rho, 1.0]])
    assert gauss.total_correlation(pair) == pytest.approx(-0.5 * np.log(1 - rho**2))
    assert gauss.total_correlation(pair, standardise=False) == pytest.approx(-0.5 * np.log(1 - rho**2))
    assert gauss.total_correlation(np.ones((2, 2))) == np.inf
    assert gauss.total_correlation(np.diag([1.0, 0.0])) == np.inf
    assert gauss.effective_rank(np.eye(5)) == pytest.approx(5)
    assert gauss.effective_rank(np.diag([3.0, 1e-300, 0])) == pytest.approx(1)
    assert gauss.effective_rank(np.zeros((2, 2))) == 0
    assert gauss.wasserstein(np.diag([1.0, 7.0])) == pytest.approx(0, abs=1e-9)
    assert scores.largest(pair) == pytest.approx(rho)


def test_covariance_and_correlation_give_one_total_correlation_also_for_tiny_codes():
    mu, var = posteriors(2_000, 6)
    cov = Moments.of(mu, var).mu_cov
    assert gauss.total_correlation(cov) == pytest.approx(gauss.total_correlation(cov, standardise=False), rel=1e-6)


# the identity: for any VAE, trained or not


@pytest.mark.parametrize("make", [
    lambda: image_vae(1, 16, 6, width=32, seed=0),
    lambda: image_vae(1, 16, 4, kind="conv", width=8, norm="batch", seed=1),
    lambda: image_vae(1, 16, 5, kind="resnet", width=4, seed=2),
    lambda: signal_vae((1, 16, 16), 8, hidden=(32,), seed=3),
])  # fmt: skip
def test_the_identity_holds_for_untrained_vaes(make):
    found = ActiveVariables(seed=1).fit(make(), discs(5_000)).identity()
    assert found["largest"] <= found["bound"] == pytest.approx(3 / np.sqrt(5_000))
    assert found["within"] == 1


def test_the_identity_by_its_formula():
    mu, var = posteriors(300, 4)
    found = Moments.of(mu, var)
    want = np.corrcoef(mu.T) * np.sqrt(np.outer(found.signal, found.signal))
    np.fill_diagonal(want, 1)
    np.testing.assert_allclose(statistics.predicted_correlation(found), want, atol=1e-12)
    np.testing.assert_allclose(statistics.correlation(found.sampled_cov), want, atol=1e-12)


# the paper's direction, on a model trained in seconds


@pytest.fixture(scope="module")
def trained():
    data = discs(6_000)
    vae, watch = image_vae(1, 16, 8, width=64, seed=0), Dynamics(data, every=100, points=300, warm=100)
    train_vae(vae, data, "beta", 2, steps=900, batch=64, lr=2e-3, callbacks=watch, progress=False)
    return vae, data, watch, ActiveVariables(bootstrap=50).fit(vae, data)


def test_a_trained_vae_has_passive_latents_whose_means_correlate_and_whose_samples_do_not(trained):
    _, _, _, found = trained
    passive, rest = found.indices("passive"), found.indices()
    assert len(passive) >= 3
    assert 2 <= len(rest) <= 5
    assert max(found.kl_[passive]) < min(0.05, *found.kl_[rest])  # after so few steps
    assert (found.kl_[rest] > 0.5).sum() >= 2
    assert scores.largest_with(found.mean_cov_, passive) >= 0.5
    assert scores.largest_with(found.sampled_cov_, passive) <= 0.05
    table = {(r["set"], r["codes"]): r["total correlation"] for r in found.scores().records}
    assert table["full", "mean"] - table["full", "sampled"] > 0.5
    clear = [j for j in rest if found.kl_[j] > 0.5]  # after so few steps one mixed latent is nearly collapsed
    kept = np.ix_(clear, clear)
    gap = gauss.total_correlation(found.mean_cov_[kept]) - gauss.total_correlation(found.sampled_cov_[kept])
    assert abs(gap) < 0.05
    assert found.soft_.shape == (8, 3)
    assert found.table().columns[:3] == ("latent", "label", "sure")


def test_pruned_reconstructions_are_the_same_and_the_smaller_model_is_one(trained, tmp_path):
    vae, data, _, found = trained
    before = [w.clone() for w in vae.parameters()]
    made = found.prune(vae, data, tolerance=0.01)
    assert all(torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))
    keep = found.indices()
    assert made.vae.latents == len(keep)
    assert abs(made.loss_after / made.loss_before - 1) < 0.01
    assert made.mean_change < 0.005
    small, whole = encode_all(made.vae, data), encode_all(vae, data)
    for a, b in zip(small, whole, strict=True):
        np.testing.assert_allclose(a, b[:, keep], atol=1e-5)
    made.vae.save(tmp_path / "small")
    np.testing.assert_allclose(encode_all(load_vae(tmp_path / "small"), data)[0], small[0], atol=1e-6)


def test_pruning_folds_the_mean_of_what_is_dropped():
    """A constant latent can be dropped without any change at all, whatever its value."""
    vae = image_vae(1, 16, 3, width=16, seed=0)
    with torch.no_grad():
        last = vae.encoder[1][-1]
        last.weight[1] = 0
        last.bias[1] = 7.0
    made = prune(vae, [2, 0], discs(200))
    assert made.largest_change < 1e-5
    x = torch.from_numpy(discs(200).x)
    mu = vae.encode(x)[0]
    torch.testing.assert_close(made.vae.encode(x)[0], mu[:, [2, 0]])
    with pytest.raises(UnbraidError, match="more than the tolerance"):
        prune(image_vae(1, 16, 2, width=16, seed=4), [0], 5 * [np.eye(16)[None]], tolerance=-1)


def test_the_course_of_a_training_is_told(trained):
    _, _, watch, found = trained
    assert watch.steps == [1, *range(100, 901, 100)]
    assert all(len(k) == 8 for k in watch.kl)
    assert watch.counts()["passive"][-1] == watch.labels[-1].count("passive")
    assert watch.labels[-1] == found.labels_ or watch.labels[-1].count("passive") >= 3
    for j, step in enumerate(watch.settled()):
        at = watch.steps.index(step)
        assert {course[j] for course in watch.labels[at:]} == {watch.labels[-1][j]}
        assert at == 0 or watch.labels[at - 1][j] != watch.labels[-1][j]


def test_a_collapsed_training_raises_an_alarm_and_may_end():
    data = discs(300)
    watch = Dynamics(data, every=10, points=100, warm=20, stop=True)
    vae = image_vae(1, 16, 3, width=8, seed=0)
    history = train_vae(vae, data, "beta", 500, steps=400, lr=5e-3, callbacks=watch, progress=False)
    assert history.stopped == "callback"
    assert "all 3 latents are passive" in watch.alarms[0]


def test_labels_per_subpopulation_tell_where_a_mixed_latent_is_active():
    group = np.repeat([0, 1], 50)
    x = torch.stack([torch.arange(100.0), torch.from_numpy(group)], 1)

    def encode(rows):
        return torch.zeros(len(rows), 2), torch.where(rows[:, 1:] == 1, 0.02, 1.0).repeat(1, 2).index_fill(
            1, torch.tensor([1]), 1.0
        )

    found = ActiveVariables(output="var", bootstrap=0, batch=33).fit(encode, x, by=group)
    assert found.labels_ == ["mixed", "passive"]
    assert found.by_ == {"0": ["passive", "passive"], "1": ["active", "passive"]}


# adapters


@pytest.mark.parametrize("output", ["logvar", "var", "std"])
def test_functions_may_return_any_of_the_three(output):
    var = torch.rand(50, 3) + 0.1
    told = {"logvar": var.log(), "var": var, "std": var.sqrt()}[output]
    mu, found = posterior(lambda x: (torch.zeros(50, 3), told), output)(torch.zeros(50, 1))
    assert mu.shape == (50, 3)
    np.testing.assert_allclose(found, var.numpy(), rtol=1e-5)


def test_diffusers_auto_encoders_by_channel_and_by_position():
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=3, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16,
    )  # fmt: skip
    x = discs(40)
    found = ActiveVariables(bootstrap=20, batch=16).fit(vae, x)
    assert len(found.labels_) == 3
    assert found.n_ == 40 * 64
    dist = vae.eval().encode(torch.from_numpy(x.x)).latent_dist
    np.testing.assert_allclose(
        [r["mean of variance"] for r in found.rows_], dist.var.mean((0, 2, 3)).detach(), rtol=1e-4
    )
    per = ActiveVariables(bootstrap=0, spatial="position").fit(vae, x)
    assert len(per.labels_) == 3 * 64
    assert per.n_ == 40
    np.testing.assert_allclose(
        [r["mean of variance"] for r in per.rows_], dist.var.mean(0).flatten().detach(), rtol=1e-4
    )


def test_pythaes_output_and_encoders_without_variances():
    class Output(dict):
        pass

    table = torch.randn(60, 2)
    mu, var = posterior(lambda x: Output(embedding=table, log_covariance=table - 1))(torch.zeros(60, 1))
    np.testing.assert_allclose(var, (table - 1).double().exp())
    np.testing.assert_allclose(mu, table.double())
    codes = table * torch.tensor([1.0, 1e-3])
    found = ActiveVariables(output="none").fit(lambda x: codes, torch.zeros(60, 1))
    assert found.labels_ == ["active", "passive"]
    assert "no variances" in found.notes_[0]
    with pytest.raises(UnbraidError, match="encoders without variances"):
        found.scores()


def test_a_model_is_asked_in_evaluation_mode_and_left_as_it_was():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return self.drop(x), torch.zeros_like(x)

    model = Dropping().train()
    x = torch.randn(30, 4)
    ActiveVariables(bootstrap=0).fit(model, x)
    assert model.training
    assert model.drop.training
    found = ActiveVariables(bootstrap=0).fit(model, x)
    np.testing.assert_allclose(found.mean_cov_, np.cov(x.numpy().T, bias=True), rtol=1e-5)


def test_variances_taken_for_logarithms_are_doubted():
    made = (torch.zeros(50, 2), torch.full((50, 2), 0.98) + 0.01 * torch.rand(50, 2))
    assert "output='var'" in ActiveVariables().fit(lambda x: made, torch.zeros(50, 1)).notes_[0]


# downstream


def test_accuracy_and_r2_of_codes_that_hold_the_factors():
    rng = np.random.default_rng(0)
    factors = np.stack([rng.integers(0, 3, 400), rng.integers(0, 2, 400), np.zeros(400, int)], 1)
    codes = factors[:, :1] + 0.05 * rng.standard_normal((400, 1))
    for learner in ("logistic", "boosting"):
        found = accuracies(codes[:300], factors[:300], codes[300:], factors[300:], learner)
        assert found[0] > 0.95
        assert 0.3 < found[1] < 0.7
        assert np.isnan(found[2])
    truth = rng.random((400, 2))
    r2 = linear_r2(truth[:300] @ [[1.0], [0]], truth[:300], truth[300:] @ [[1.0], [0]], truth[300:])
    assert r2[0] == pytest.approx(1)
    assert abs(r2[1]) < 0.05


# saving, study


def test_what_was_found_is_saved_but_not_the_codes(tmp_path):
    found = ActiveVariables(bootstrap=10).fit(image_vae(1, 16, 3, width=8, seed=0), discs(200))
    found.save_pretrained(tmp_path / "saved")
    back = unbraid.System.from_pretrained(tmp_path / "saved")
    assert back.labels_ == found.labels_
    assert back.table() == found.table()
    np.testing.assert_array_equal(back.mean_cov_, found.mean_cov_)
    with pytest.raises(UnbraidError, match="needs the posteriors"):
        back.scores()


def test_the_study_runs_small_and_goes_on_where_it_stopped(tmp_path):
    from unbraid.systems.active_variables import run

    def go(**more):
        return run(
            objectives=("beta", "dip_i"), levels=2, seeds=2, size="tiny", steps=40, points=500, latents=4, checks=1,
            downstream="none", keep=tmp_path / "keep", progress=False, **more,
        )  # fmt: skip

    result = go()
    assert [c.name for c in result.claims] == [c.name for c in unbraid.describe("active_variables").claims]
    assert len(result.tables["models"]) == 8
    assert result.figures[0].kind == "image"
    assert {c.name: c.holds for c in result.claims}["identity"] is True
    assert {c.name: c.holds for c in result.claims}["downstream"] is None
    again = go(watch=False)
    assert again.meta["pieces_read_back"] > 0
    assert again.tables["models"] == result.tables["models"]
    again.save(tmp_path / "out")


def test_downstream_rows_name_every_set_and_learner():
    from unbraid.systems.active_variables.zoo import Spec, downstream, measured

    world = make("sprites", 16, sizes={"scale": 1, "orientation": 1, "posX": 4, "posY": 8})
    spec = Spec("sprites", "beta", 0, 1.0, 0, 1, width=16, latents=3)
    model = measured(spec, image_vae(1, 16, 3, width=16, seed=0), world, world.x, 1_000)
    rows = downstream(model, world, world.x, 40, 30)
    assert {r["learner"] for r in rows} == {"logistic", "boosting"}
    assert {"all means", "all samples", "uniform guess"} <= {r["codes"] for r in rows if r["learner"] == "logistic"}
    assert all(0 <= r[name] <= 1 for r in rows for name in ("shape", "posX", "posY", "mean", "least"))


@pytest.mark.study
def test_the_checks_of_the_sheet_hold_on_discs():
    from unbraid.systems.active_variables import run

    result = run(levels=1, seeds=1, downstream="none", checks=1, watch=False, progress=False)
    assert {c.name: c.holds for c in result.claims}["discs_checks"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: classify([0.1], [0.1], tau=0), "tau=0"),
        (lambda: ActiveVariables(delta=0.7).fit(image_vae(1, 16, 2), discs(5)), "delta=0.7"),
        (lambda: ActiveVariables(batch=0).fit(image_vae(1, 16, 2), discs(5)), "batch is 0"),
        (lambda: ActiveVariables().fit(3, discs(5)), "a int cannot be asked"),
        (lambda: ActiveVariables().fit(image_vae(1, 16, 2), np.full((4, 1, 16, 16), np.nan)), "NaN"),
        (lambda: ActiveVariables().fit(image_vae(1, 20, 2), discs(5)), "is needed here"),
        (lambda: ActiveVariables().fit(lambda x: x, discs(5)), "holds no"),
        (lambda: ActiveVariables(output="var").fit(lambda x: (x, x - 5), torch.zeros(5, 2)), "is it logvar"),
        (lambda: ActiveVariables().fit(lambda x: (x, x * torch.nan), torch.zeros(5, 2)), "NaN or infinity"),
        (lambda: ActiveVariables().fit(lambda x: (x, x[:, :1]), torch.zeros(5, 2)), "returned means"),
        (lambda: ActiveVariables().fit(lambda x: (x, x), torch.zeros(5, 2), by="shape"), "names a factor"),
        (lambda: ActiveVariables().fit(lambda x: (x, x), torch.zeros(5, 2), by=np.zeros(4, int)), "5 whole numbers"),
        (lambda: ActiveVariables(output="log").fit(lambda x: (x, x), torch.zeros(5, 2)), "output='log'"),
        (lambda: ActiveVariables().table(), r"call fit\(model, data\)"),
        (lambda: prune(image_vae(1, 16, 3), [], discs(5)), "at least one of the latents"),
        (lambda: prune(image_vae(1, 16, 3), [0, 3], discs(5)), "latents 0 to 2"),
        (lambda: prune(nn.Linear(2, 2), [0], discs(5)), "only a GaussianVAE"),
        (lambda: prune(image_vae(1, 16, 3), 2, discs(5)), "list of latents"),
        (lambda: ActiveVariables(points=0).fit(image_vae(1, 16, 2), discs(5)), "points is 0"),
        (lambda: ActiveVariables().fit(image_vae(1, 16, 2), discs(5), by="x"), "continuous"),
        (lambda: ActiveVariables().fit(image_vae(1, 16, 1), discs(5)).scores(), "one latent"),
        (lambda: ActiveVariables().fit(image_vae(1, 16, 2), discs(5)).transform(np.zeros((3, 4))), r"\[n, 2\]"),
        (lambda: classify([np.nan], [0.1]), "with NaN"),
        (lambda: index_sets(["actve"]), "'actve'"),
        (lambda: Moments.of(np.zeros((3, 2)), np.zeros((3, 2))), "variances are positive"),
        (lambda: accuracies(*(np.full((4, 1), np.nan),) * 4), "NaN or infinity"),
        (lambda: Dynamics(discs(5), every=0), "every=0"),
        (lambda: accuracies(np.zeros((5, 2)), np.zeros((4, 1)), np.zeros((3, 2)), np.zeros((3, 1))), "do not fit"),
        (lambda: unbraid.systems.active_variables.run(objectives=("vq",)), "no objective 'vq'"),
        (lambda: unbraid.systems.active_variables.run(levels=9), "levels is 9"),
        (lambda: unbraid.systems.active_variables.run(steps=0), "steps is 0"),
        (lambda: unbraid.systems.active_variables.run(train=3_000), "lower them"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(make, words):
    with pytest.raises(UnbraidError, match=words):
        make()
