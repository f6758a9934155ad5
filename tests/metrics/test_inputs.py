"""Bad input is one sentence; what is 0/0 has a documented value; intervals cover what they should."""

from __future__ import annotations

import numpy as np
import pytest

from metrics.worlds import SIZES, sample
from unbraid.core.errors import UnbraidError
from unbraid.metrics import disentanglement as dis

Z, V = sample("perfect", 300)
TABLE_METRICS = [
    dis.mig, dis.mig_sup, dis.dcimig, dis.jemmig, dis.modularity, dis.irs, dis.sap, dis.explicitness, dis.infomec,
    dis.dci, dis.factor_vae, dis.beta_vae, dis.downstream, dis.mutual_information,
]  # fmt: skip
NAN = np.where(np.arange(Z.size).reshape(Z.shape) == 7, np.nan, Z)


@pytest.mark.parametrize("metric", TABLE_METRICS, ids=lambda m: m.__name__)
@pytest.mark.parametrize(
    ("z", "v", "given", "told"),
    [
        (NAN, V, {}, "row 1, code 2"),
        (Z, V[:-1], {}, "as many rows"),
        (Z, np.zeros_like(V), {}, "every factor is constant"),
        (Z[:, 0], V, {}, "of shape"),
        (Z, V.astype(str), {}, "must hold numbers"),
        (Z, np.where(V == 0, -1, V), {}, "missing label"),
        (Z, V, {"names": ["a"]}, "different names"),
        (Z, V, {"active_mask": [True]}, "5 booleans"),
        (Z, V, {"active_mask": [False] * 5}, "no code"),
        (Z, V, {"representation": "median"}, "'mean' or 'sampled'"),
        (Z, V, {"seed": -1}, "seed"),
        (Z, V, {"bootstraps": 3}, "there is no argument"),
        (Z, V, {"blocks": [(0, 9)]}, "a block is"),
        (Z, V, {"blocks": [(0, 2), (1, 3)]}, "two blocks"),
        (Z, V, {"continuous": ["hue"]}, "hue"),
    ],
)
def test_bad_input_is_one_sentence(metric, z, v, given, told):
    with pytest.raises(UnbraidError, match=told) as found:
        metric(z, v, **given)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: dis.mig(Z, V, bins=1), "bins"),
        (lambda: dis.mig(Z, V, discretiser="tree"), "discretiser"),
        (lambda: dis.mig(Z, V, exclude=["hue"]), "hue"),
        (lambda: dis.mig(Z, V, estimator="knn", correction="miller-madow"), "permutation"),
        (lambda: dis.mig(Z, V, estimator="bins", blocks=[(0, 2)]), "knn"),
        (lambda: dis.jemmig(Z, V, estimator="knn"), "bins"),
        (lambda: dis.modularity(Z, V[:, :1]), "at least two"),
        (lambda: dis.irs(Z, V, quantile=2), "quantile"),
        (lambda: dis.sap(Z, V, kind="tree"), "kind"),
        (lambda: dis.dci(Z, V, learner="tree"), "learner"),
        (lambda: dis.dci(Z, V, options={"leaves": 3}), "no option 'leaves'"),
        (lambda: dis.dci(Z[:4], V[:4]), "too few"),
        (lambda: dis.explicitness(Z, V, test_share=1.5), "test_share"),
        (lambda: dis.downstream(Z, V, labels=(5_000,)), "fewer labels"),
        (lambda: dis.factor_vae(), "one source"),
        (lambda: dis.factor_vae(Z), "without factors"),
        (lambda: dis.factor_vae(grid=Z, sizes=(3, 4)), "300 rows"),
        (lambda: dis.factor_vae(grid=Z), "sizes"),
        (lambda: dis.factor_vae(encode=lambda f: np.zeros((3, 2)), sizes=(3, 4)), "returned shape"),
        (lambda: dis.factor_vae(Z, V, prune=-1), "prune"),
        (lambda: dis.z_max_var(Z, np.arange(900).reshape(300, 3) // [1, 9, 90] % [300, 10, 9]), "encode="),
        (lambda: dis.total_correlation(np.zeros((5, 2))), "collapsed"),
        (lambda: dis.total_correlation(Z, variance=[1, 2]), "variance"),
        (lambda: dis.udr([Z]), "at least two"),
        (lambda: dis.udr([Z, Z[:, :2]]), "one shape"),
        (lambda: dis.udr([Z, Z], kl=[[1]]), "kl"),
        (lambda: dis.infomec(Z, V, active_ratio=0), "active_ratio"),
        (lambda: dis.mig_posterior(Z, Z[:, :2], V), "shape of mean"),
        (lambda: dis.mig_posterior(Z, Z * 0 - 2_000, V), "clip"),
        (lambda: dis.cyclic_view(V, {"hue": 1}), "hue"),
        (lambda: dis.cyclic_view(V, {"f0": 0}), "above 0"),
        (lambda: dis.active_codes(Z, -1), "threshold"),
        (lambda: dis.encode_grid(lambda f: f * 1.0, [2_000, 2_000]), "encode="),
    ],
)
def test_bad_options_are_one_sentence(call, told):
    with pytest.raises(UnbraidError, match=told):
        call()


def test_constant_codes_have_documented_values():
    z = np.zeros((200, 2))
    v = V[:200, :3]
    for metric in (dis.mig, dis.mig_sup, dis.dcimig, dis.modularity, dis.irs):
        assert float(metric(z, v)) == 0, metric
    assert float(dis.sap(z, v, kind="r2")) == 0
    assert float(dis.factor_vae(z, v, votes=50, test_votes=50)) == 0
    assert dis.factor_vae(z, v, votes=50, test_votes=50)["num_active"] == 0
    assert np.isnan(float(dis.infomec(z, v)))
    found = dis.dci(z, v, options={"n_estimators": 2})
    assert (found[found["keys"][0]], found[found["keys"][1]]) == (0, 0)
    assert float(dis.explicitness(z, v)) == pytest.approx(0.5)


def test_a_constant_factor_is_left_out_of_means():
    still = np.column_stack([V, np.zeros(len(V))])
    for metric in (dis.mig, dis.modularity, dis.mig_sup, dis.dcimig, dis.irs, dis.infomec):
        assert float(metric(Z, still)) == pytest.approx(float(metric(Z, V)), abs=1e-9), metric
    assert float(dis.sap(Z, still, kind="r2")) == pytest.approx(float(dis.sap(Z, V, kind="r2")))
    assert float(dis.factor_vae(Z, still, votes=200, test_votes=100)) > 0.9


def test_a_code_without_information_has_no_share_and_nan_is_an_option():
    z = np.column_stack([V[:, :2], np.tile([0.0, 0.0, 1.0], 100)])
    assert dis.infomec(z, V[:, :2], codes="discrete")["infom"] > 0.8
    z[:, 2] = 0
    z[0, 2] = 1e-9
    loose = dis.infomec(z, V[:, :2], active_ratio=1e12)
    if (loose["matrix"][2] == 0).all():
        assert np.isnan(dis.infomec(z, V[:, :2], active_ratio=1e12, undefined="nan")["infom"])
    assert dis.infomec(z, V[:, :2])["num_active"] == 2


def test_continuous_factors():
    rng = np.random.default_rng(0)
    v = rng.uniform(size=(600, 2))
    z = v + 0.02 * rng.standard_normal(v.shape)
    assert float(dis.sap(z, v)) > 0.9
    assert dis.sap(z, v)["estimator"] == "sap[r2]"
    assert float(dis.mig(z, v)) > 0.6
    assert float(dis.mig(z, v, estimator="knn")) > 0.6
    found = dis.dci(z, v, options={"n_estimators": 10})
    assert min(found[key] for key in found["keys"]) > 0.75
    assert found["per_factor"].shape == (2,)
    assert float(dis.factor_vae(z, v, votes=300, test_votes=200)) > 0.95
    assert dis.infomec(z, v)["infoe"] > 0.9
    integers = np.column_stack([V[:, 0], V[:, 1]])
    assert dis.sap(Z, integers, continuous=["f1"])["estimator"] == "sap[svm+r2]"


def test_masks_and_grids():
    masked = dis.mig(Z, V, active_mask=[True, True, False, True, True])
    assert masked["matrix"].shape == (4, 5)
    assert masked["codes"] == ["z0", "z1", "z3", "z4"]
    assert float(masked) < float(dis.mig(Z, V))
    grid = dis.encode_grid(lambda f: f * 1.0, SIZES)
    assert grid.shape == (4_608, 5)
    assert grid[1].tolist() == [0, 0, 0, 0, 1]
    mask = [True, True, True, True, False]
    found = dis.factor_vae(grid=grid, sizes=SIZES, votes=300, test_votes=300, active_mask=mask)
    assert 0.7 < float(found) < 0.9
    assert dis.active_codes(Z * [1, 0.01, 1, 0, 1]).tolist() == [True, False, True, False, True]


@pytest.mark.parametrize("metric", [
    lambda z, v, **o: dis.mig(z, v, **o), lambda z, v, **o: dis.sap(z, v, kind="r2", **o),
    lambda z, v, **o: dis.irs(z, v, **o),
    lambda z, v, **o: dis.factor_vae(z, v, votes=300, test_votes=200, **o),
], ids=["mig", "sap", "irs", "factor_vae"])  # fmt: skip
def test_intervals_are_as_wide_as_fresh_data_vary(metric):
    fresh = [float(metric(*sample("rotated", 700, seed))) for seed in range(24)]
    z, v = sample("rotated", 700, 99)
    found = metric(z, v, bootstrap=100)
    low, high = found["interval"]
    assert low <= float(found) <= high
    assert 0.4 < (high - low) / (4 * np.std(fresh)) < 2.5


def test_every_kind_of_interval_is_there():
    z, v = Z[:, :3], V[:, :3]
    for found in (
        dis.modularity(z, v, bootstrap=50), dis.explicitness(z, v, bootstrap=10),
        dis.infomec(z, v, bootstrap=4), dis.dci(z, v, options={"n_estimators": 2}, bootstrap=3),
        dis.sap(z, v, bootstrap=3), dis.total_correlation(z, bootstrap=50), dis.mi_score(z, bootstrap=20),
        dis.wasserstein_correlation(z, bootstrap=20), dis.beta_vae(z, v, train=300, test=100, bootstrap=50),
        dis.mig(z, v, estimator="knn", bootstrap=4), dis.mig_posterior(z, 0 * z - 3, v, samples=100, bootstrap=20),
    ):  # fmt: skip
        low, high = found["interval"]
        assert low <= float(found) <= high, found["estimator"]
    assert dis.mig(z, v)["interval"] is None
