"""Section 4 of the sheet: where libraries differ or err, each as a named option or as a fault we do not share."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from metrics import reference
from metrics.worlds import SIZES, encoder, grid_of, sample
from unbraid.metrics import disentanglement as dis


@pytest.fixture(scope="module")
def perfect():
    return sample("perfect", 2_000)


def test_1_active_codes_are_counted_not_the_mask(perfect):
    z, v = perfect
    with_passive = np.column_stack([z, 1e-4 * np.random.default_rng(0).standard_normal((len(z), 3))])
    found = dis.factor_vae(with_passive, v, votes=200, test_votes=100)
    assert found["num_active"] == 5
    assert len(found["active"]) == 8
    assert dis.irs(np.column_stack([z, np.ones(len(z))]), v)["num_active"] == 5


def test_2_a_passive_code_is_pruned_by_default_and_may_win_without():
    sizes = (2, 4)
    v = grid_of(sizes)
    # factor 1 is in no active code; a passive code of deviation 0.001 carries it
    grid = np.column_stack([v[:, 0] - 0.5, 0.001 * (v[:, 1] - 1.5)])
    pruned = dis.factor_vae(grid=grid, sizes=sizes, votes=400, test_votes=400)
    unpruned = dis.factor_vae(grid=grid, sizes=sizes, votes=400, test_votes=400, prune=0)
    assert float(pruned) < 0.65
    assert float(unpruned) > 0.95
    assert pruned["matrix"][1].sum() == 0 < unpruned["matrix"][1].sum()


def test_3_one_code_of_many_suffices_and_the_votes_show_it():
    sizes = (3, 4)
    rng = np.random.default_rng(0)
    v = grid_of(sizes)
    mix = v @ rng.standard_normal((2, 126)) + rng.standard_normal((12, 126))
    grid = np.column_stack([mix, v * 1.0])
    found = dis.factor_vae(grid=grid, sizes=sizes, votes=500, test_votes=300)
    assert float(found) > 0.95
    assert set(np.flatnonzero(found["matrix"].sum(axis=1))) == {126, 127}


def test_4_zero_importance_ends_nothing_and_the_other_rescalings_are_options(perfect):
    z, v = perfect
    table = np.array([[1.0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]])  # ubisoft's loop ends at the second row
    assert dis.disentanglement(table) == pytest.approx(1, abs=1e-6)
    assert dis.completeness(table) == pytest.approx(1, abs=1e-6)
    doubled = np.column_stack([z, z[:, 0] + z[:, 1]])
    m = dis.mutual_information(doubled, v)["matrix"]
    top, second = np.sort(m, axis=0)[-1], np.sort(m, axis=0)[-2]
    placed, _ = dis.discretise(doubled)
    codes = [reference.entropy(placed[:, j].tolist()) for j in m.argmax(axis=0)]
    found = dis.mig(doubled, v, normaliser="code")
    assert float(found) == pytest.approx(np.mean((top - second) / codes))
    assert "code" in found["estimator"]
    plain = dis.factor_vae(doubled, v, votes=300, test_votes=300)
    scaled = dis.factor_vae(doubled, v, votes=300, test_votes=300, rescale=True)
    assert float(scaled) == pytest.approx((float(plain) - 0.2) / 0.8)
    plain, scaled = (dis.explicitness(z, v, rescale=r) for r in (False, True))
    assert float(scaled) == pytest.approx(2 * (float(plain) - 0.5))
    ubisoft = dis.dci(z, v, learner="rf_regression", informativeness="ubisoft", options={"n_estimators": 3})
    assert 0.9 < ubisoft[ubisoft["keys"][2]] <= 1
    dead = np.column_stack([z, np.zeros(len(z))])
    assert dis.modularity(dead, v)["per_code"][-1] == 0  # not NaN


def test_5_the_learner_stands_in_the_key(perfect):
    z, v = (part[:300] for part in perfect)
    assert "dci_d[lasso]" in dis.dci(z, v, learner="lasso")
    assert "dci_d[gbt,n_estimators=2]" in dis.dci(z, v, options={"n_estimators": 2})
    merged = dis.dci(z, v, options={"n_estimators": 2}, max_classes=4)
    assert "dci_i[gbt,n_estimators=2,classes<=4]" in merged
    for learner in ("xgboost", "lightgbm"):
        if importlib.util.find_spec(learner) is None:
            with pytest.raises(ValueError, match=f"pip install {learner}"):
                dis.dci(z, v, learner=learner)
        else:
            assert float(dis.dci(z, v, learner=learner, options={"n_estimators": 5})) > 0.5


def test_6_irs_can_merge_values_as_the_original_library_does():
    rng = np.random.default_rng(0)
    v = rng.integers(40, size=(4_000, 1))
    z = v + 0.01 * rng.standard_normal(v.shape)
    exact, merged = dis.irs(z, v), dis.irs(z, v, rediscretise=20)
    assert float(exact) == pytest.approx(reference.irs(z, v), abs=1e-9)
    assert float(merged) < float(exact) - 0.01
    assert "rebinned-20" in merged["estimator"]
    v2 = np.minimum(v // 2, 19)
    assert float(merged) == pytest.approx(reference.irs(z, v2), abs=0.01)


def test_7_sap_can_be_corrected_for_the_majority():
    rng = np.random.default_rng(0)
    v = (rng.random((1_500, 1)) < 0.15).astype(int)  # 85 % in one class
    z = np.column_stack([v[:, 0] + 0.6 * rng.standard_normal(1_500), rng.standard_normal(1_500)])
    raw, corrected = dis.sap(z, v), dis.sap(z, v, chance_corrected=True)
    assert corrected["matrix"].min() == 0  # the useless code
    assert corrected["matrix"].max() < raw["matrix"].max()


def test_8_plug_in_bias_is_as_predicted_and_the_corrections_remove_it():
    rng = np.random.default_rng(0)
    v = rng.integers(40, size=(10_000, 1))
    z = rng.uniform(size=(10_000, 6))
    raw = dis.mutual_information(z, v)["matrix"].mean()
    assert raw == pytest.approx(19 * 39 / 20_000, rel=0.1)  # 0.037 nats
    for correction in ("miller-madow", "permutation"):
        assert dis.mutual_information(z, v, correction=correction)["matrix"].mean() < 0.1 * raw
    noisy, factors = sample("noise", 5_000)
    found = dis.modularity(noisy, factors, floor=20)
    assert found["kept"].tolist() == [True] * 5 + [False] * 5
    assert float(found) > 0.99 > 0.9 > float(dis.modularity(noisy, factors))
    assert np.isnan(float(dis.modularity(*sample("random", 3_000), floor=20)))
    assert float(dis.mi_score(z, correction="miller-madow")) < 0.2 * float(dis.mi_score(z))


def test_9_outliers_empty_equal_bins_and_not_equal_counts(perfect):
    z, v = perfect
    spoilt = z.copy()
    spoilt[:3] *= 100
    assert float(dis.mig(spoilt, v)) < 0.5
    assert float(dis.mig(spoilt, v, discretiser="quantile")) > 0.9
    assert float(dis.mig(z, v, discretiser="adaptive", bins=60)) > 0.9
    assert dis.mig(z, v, discretiser="quantile", bins=30)["estimator"] == "mig[quantile-30]"
    _, counts = dis.discretise(np.column_stack([z[:, 0], np.ones(len(z))]), 60, "adaptive")
    assert counts[0] > 1
    assert counts[1] == 1


def test_11_turned_tables_are_refused(perfect):
    z, v = perfect
    with pytest.raises(ValueError, match="as many rows"):
        dis.mig(z.T, v)


def test_12_mean_and_sampled_codes_are_told_apart_and_the_closed_form_is_exact():
    rng = np.random.default_rng(0)
    mean = rng.standard_normal((4_000, 4)) @ rng.standard_normal((4, 4)) * [1, 1, 0.01, 0.01]  # two passive
    variance = np.array([0.05, 0.05, 1, 1])
    draws = mean + np.sqrt(variance) * rng.standard_normal(mean.shape)
    of_means, of_draws = dis.total_correlation(mean), dis.total_correlation(draws, representation="sampled")
    exact = dis.total_correlation(mean, variance=variance)
    assert (of_means["representation"], exact["representation"]) == ("mean", "sampled")
    assert float(of_means) > 2 * float(of_draws)
    assert float(exact) == pytest.approx(float(of_draws), abs=0.05)
    assert dis.mig(mean, np.arange(4_000) % 3, representation="sampled")["representation"] == "sampled"


def test_14_classes_absent_from_a_split_are_skipped():
    rng = np.random.default_rng(0)
    v = np.where(np.arange(300) == 7, 2, rng.integers(2, size=300))  # class 2 occurs once
    z = v[:, None] + 0.1 * rng.standard_normal((300, 1))
    assert float(dis.explicitness(z, v)) > 0.95
    assert float(dis.infomec(z, v)["infoe"]) > 0.5


def test_15_cyclic_factors_need_two_codes_or_two_views():
    rng = np.random.default_rng(0)
    v = np.column_stack([rng.integers(12, size=3_000), rng.integers(3, size=3_000)])
    angle = 2 * np.pi * v[:, 0] / 12
    z = np.column_stack([np.cos(angle), np.sin(angle), v[:, 1]]) + 0.02 * rng.standard_normal((3_000, 3))
    assert float(dis.sap(z, v, kind="r2")) < 0.85  # a perfect model
    values, names, continuous = dis.cyclic_view(v, {"angle": 12}, ["angle", "size"])
    assert float(dis.sap(values[:, [0, 1, 2]], values, kind="r2", names=names, continuous=continuous)) > 0.95
    assert float(dis.sap(z, values, kind="r2", names=names, continuous=continuous)) > 0.95
    assert float(dis.mig(z, v)) < 0.8 < float(dis.mig(z, v, blocks=[(0, 2), (2, 3)]))
    fourfold, _, _ = dis.cyclic_view([[0.0], [90.0], [180.0]], {"f0": 90})
    np.testing.assert_allclose(fourfold[0], fourfold[2], atol=1e-12)


def test_blocks(perfect):
    """A rotation inside a block is no entanglement between blocks."""
    z, v = perfect
    mix = np.linalg.qr(np.random.default_rng(0).standard_normal((2, 2)))[0]
    turned = z.copy()
    turned[:, :2] = z[:, :2] @ mix
    blocks = [(0, 2), (2, 3), [3], [4]]
    found = dis.dci(turned[:900], v[:900], blocks=blocks, options={"n_estimators": 8})
    assert found["matrix"].shape == (4, 5)
    assert found["codes"] == ["z0-1", "z2", "z3", "z4"]
    assert found[found["keys"][1]] > 0.95 > found[found["keys"][0]]  # complete, and one block holds two factors
    for metric in (dis.irs, dis.mig, dis.infomec):
        assert metric(turned[:900], v[:900], blocks=blocks)["matrix"].shape == (4, 5), metric
    r2 = dis.sap(turned, v, kind="r2", blocks=blocks)["matrix"]
    assert r2[0, :2].min() > 0.95
    votes = dis.factor_vae(encode=encoder("perfect"), sizes=SIZES, blocks=blocks, votes=400, test_votes=200)
    assert votes["matrix"].shape == (4, 5)
    assert dis.beta_vae(turned, v, blocks=blocks, train=300, test=100)["matrix"].shape == (4, 5)
    inside = np.column_stack([z[:, 0], z[:, 0] + 0.1 * z[:, 1], z[:, 2]])
    assert float(dis.total_correlation(inside, blocks=[(0, 2), (2, 3)])) < 0.01 < float(dis.total_correlation(inside))
