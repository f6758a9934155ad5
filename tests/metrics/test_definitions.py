"""Each metric against its definition written out in loops (reference.py), on codes that are neither good nor bad."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_selection import mutual_info_classif, mutual_info_regression
from sklearn.metrics import mutual_info_score, roc_auc_score

from metrics import reference
from metrics.worlds import grid_of
from unbraid.metrics import disentanglement as dis
from unbraid.metrics.disentanglement.knn import knn_information, knn_regression


def mixed(rows=400, codes=4, seed=0, sizes=(3, 5, 4)):
    rng = np.random.default_rng(seed)
    v = np.stack([rng.integers(n, size=rows) for n in sizes], axis=1)
    z = v @ rng.standard_normal((len(sizes), codes)) + 0.4 * rng.standard_normal((rows, codes))
    return z, v


FORMULAS = {
    "mig": dis.mig,
    "mig_sup": dis.mig_sup,
    "dcimig": dis.dcimig,
    "jemmig": dis.jemmig,
    "modularity": dis.modularity,
    "irs": dis.irs,
}


@pytest.mark.parametrize("name", FORMULAS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), codes=st.integers(2, 5))
def test_formulas(name, seed, codes):
    z, v = mixed(150, codes, seed)
    assert float(FORMULAS[name](z, v)) == pytest.approx(getattr(reference, name)(z, v), abs=1e-9)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), codes=st.integers(2, 5))
def test_scores_without_factors_and_correlation(seed, codes):
    z, v = mixed(150, codes, seed)
    assert float(dis.sap(z, v, kind="r2")) == pytest.approx(reference.sap_r2(z, v), abs=1e-9)
    assert float(dis.total_correlation(z)) == pytest.approx(reference.total_correlation(z), abs=1e-6)
    assert float(dis.wasserstein_correlation(z)) == pytest.approx(reference.wasserstein(z), abs=1e-6)
    whole = float(dis.wasserstein_correlation(z)) / np.trace(np.cov(z, rowvar=False))
    assert float(dis.wasserstein_correlation(z, normalised=True)) == pytest.approx(whole)
    assert float(dis.mi_score(z)) == pytest.approx(reference.mi_score(z), abs=1e-9)


def test_information_is_that_of_scikit_learn_also_for_lattice_codes():
    z, v = mixed()
    z[:, 0] = np.round(z[:, 0])  # codes on the edges of bins
    placed, _ = dis.discretise(z)
    for j in range(z.shape[1]):
        edges = np.histogram(z[:, j], 20)[1]
        np.testing.assert_array_equal(placed[:, j] + 1, np.digitize(z[:, j], edges[:-1]))
        for k in range(v.shape[1]):
            expected = mutual_info_score(placed[:, j], v[:, k])
            assert dis.mutual_information(z, v)["matrix"][j, k] == pytest.approx(expected, abs=1e-12)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), neighbours=st.integers(1, 12))
def test_nearest_neighbours_are_scikit_learns(seed, neighbours):
    z, v = mixed(200, 1, seed)
    column = z[:, 0] / z[:, 0].std()
    expected = mutual_info_classif(z, v[:, 0], n_neighbors=neighbours, random_state=0)[0]
    assert knn_information(column, v[:, 0], neighbours) == pytest.approx(expected, abs=1e-9)


def test_nearest_neighbours_of_continuous_factors_are_scikit_learns():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(300)
    code = values + 0.5 * rng.standard_normal(300)
    expected = mutual_info_regression(code[:, None], values, n_neighbors=5, random_state=0)[0]
    assert knn_regression(code / code.std(), values, 5) == pytest.approx(expected, abs=0.01)


def test_a_block_of_one_code_is_that_code_by_tree_or_by_sorting():
    z, v = mixed()
    doubled = np.column_stack([z[:, 0], z[:, 0]])  # the same points, through the tree
    assert knn_information(doubled, v[:, 1], 7) == pytest.approx(knn_information(z[:, 0], v[:, 1], 7), abs=1e-12)


def test_disentanglement_and_completeness_of_an_importance_table():
    rng = np.random.default_rng(0)
    for _ in range(5):
        table = rng.random((6, 4))
        table /= table.sum(axis=0)
        assert dis.disentanglement(table) == pytest.approx(reference.one_sided(table), abs=1e-9)
        assert dis.completeness(table) == pytest.approx(reference.one_sided(table.T), abs=1e-9)


def test_dci_is_scikit_learns_boosting_factor_by_factor():
    from sklearn.ensemble import GradientBoostingClassifier

    from unbraid.metrics.disentanglement.informativeness import parts

    z, v = mixed(300)
    found = dis.dci(z, v, options={"n_estimators": 5})
    train, test = parts(300, 1 / 3, 0)
    importances, right = [], []
    for k in range(v.shape[1]):
        model = GradientBoostingClassifier(n_estimators=5, random_state=0).fit(z[train], v[train, k])
        importances.append(model.feature_importances_)
        right.append(model.score(z[test], v[test, k]))
    table = np.array(importances).T
    np.testing.assert_allclose(found["matrix"], table, atol=1e-12)
    expected = [reference.one_sided(table), reference.one_sided(table.T), np.mean(right)]
    assert [found[key] for key in found["keys"]] == pytest.approx(expected, abs=1e-9)


def test_interventions_agree_with_loops():
    sizes = (3, 4, 3)
    rng = np.random.default_rng(3)
    v = grid_of(sizes)
    grid = v @ rng.standard_normal((3, 4)) + 0.3 * rng.standard_normal((len(v), 4))
    grid[:, 3] *= 0.001  # pruned
    slow = reference.factor_vae(grid, sizes, 500, 400, 16, np.random.default_rng(0))
    fast = dis.factor_vae(grid=grid, sizes=sizes, batch=16)
    assert float(fast) == pytest.approx(slow, abs=0.08)
    assert fast["matrix"][3].sum() == 0
    assert float(dis.factor_vae(grid, v, batch=16)) == pytest.approx(float(fast), abs=0.03)  # a table that is a grid
    assert dis.factor_vae(grid, v)["estimator"] == "factor_vae[grid]"
    slow = reference.beta_vae(grid, sizes, 600, 500, 16, np.random.default_rng(0))
    fast = dis.beta_vae(grid=grid, sizes=sizes, batch=16, train=600, test=2_000)
    assert float(fast) == pytest.approx(slow, abs=0.08)


def test_what_is_held_fixed_is_fixed_and_the_rest_is_even():
    sizes = (3, 4, 5)
    v = grid_of(sizes).astype(float)
    from unbraid.metrics.disentanglement.sampling import BucketSampler, GridSampler, make_sampler

    repeated = np.repeat(v, 40, axis=0)[np.random.default_rng(0).permutation(len(v) * 40)]
    buckets, _ = make_sampler(repeated, repeated, None, None, None, {})
    assert isinstance(buckets, BucketSampler)
    for sampler in (GridSampler(v, sizes), buckets):
        rng = np.random.default_rng(0)
        which = rng.integers(3, size=300)
        fixed = sampler.fixed(which, 20, rng)
        one, two = sampler.pairs(which, 20, rng)
        varied = sampler.varied(which, 20, rng)
        for m, k in enumerate(which):
            others = [i for i in range(3) if i != k]
            assert len(set(fixed[m, :, k])) == 1
            assert (one[m, :, k] == two[m, :, k]).all()
            assert len(set(one[m, :, k])) > 1
            assert all(len(set(varied[m, :, i])) == 1 for i in others)
        for k in range(3):
            other = (k + 1) % 3
            seen = np.bincount(fixed[which == k][:, :, other].astype(int).ravel(), minlength=sizes[other])
            assert seen / seen.sum() == pytest.approx(1 / sizes[other], abs=0.04)


def test_the_posterior_mig_is_the_loops():
    rng = np.random.default_rng(0)
    v = np.stack([rng.integers(3, size=60), rng.integers(2, size=60)], axis=1)
    mean = v + 0.2 * rng.standard_normal((60, 2))
    logvar = rng.normal(-2, 0.5, (60, 2))
    found = dis.mig_posterior(mean, logvar, v, samples=50, seed=3)
    draw = np.random.default_rng([3, 0x316])
    rows = draw.integers(60, size=50)
    z = mean[rows] + np.exp(0.5 * logvar[rows]) * draw.standard_normal((50, 2))
    m = reference.mig_posterior_gains(mean, logvar, v, (rows, z))
    np.testing.assert_allclose(found["matrix"], m, atol=1e-9)
    gaps = np.abs(m[0] - m[1]) / np.log([3, 2])
    assert float(found) == pytest.approx(gaps.mean(), abs=1e-9)


def test_explicitness_is_scikit_learns_auc():
    z, v = mixed(600)
    found = dis.explicitness(z, v)
    from sklearn.linear_model import LogisticRegression

    from unbraid.metrics.disentanglement.informativeness import parts

    train, test = parts(600, 1 / 3, 0)
    x = (z - z[train].mean(0)) / z[train].std(0)
    aucs = []
    for k in range(v.shape[1]):
        model = LogisticRegression(max_iter=1000).fit(x[train], v[train, k])
        chance = model.predict_proba(x[test])
        aucs.append(np.mean([roc_auc_score(v[test, k] == c, chance[:, i]) for i, c in enumerate(model.classes_)]))
    assert float(found) == pytest.approx(np.mean(aucs), abs=1e-9)


def test_infomec_is_its_formula():
    z, v = mixed(500)
    found = dis.infomec(z, v)
    nmi = np.array([mutual_info_classif(z, v[:, k], n_neighbors=10, random_state=0) for k in range(3)]).T
    nmi /= [reference.entropy(v[:, k].tolist()) for k in range(3)]
    np.testing.assert_allclose(found["matrix"], nmi, atol=1e-8)
    m = np.mean([max(row) / sum(row) for row in nmi])
    c = np.mean([max(column) / sum(column) for column in nmi.T])
    assert found["infom"] == pytest.approx((m - 1 / 3) / (1 - 1 / 3), abs=1e-7)
    assert found["infoc"] == pytest.approx((c - 1 / 4) / (1 - 1 / 4), abs=1e-7)


def test_infoe_is_the_loss_against_that_on_zeros():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    z, v = mixed(300)
    shares = []
    for k in range(3):

        def loss(x, k=k):
            model = LogisticRegression(C=np.inf, class_weight="balanced", max_iter=500).fit(x, v[:, k])
            return log_loss(v[:, k], model.predict_proba(x))

        null = loss(np.zeros_like(z))
        shares.append((null - loss((z - z.mean(0)) / z.std(0))) / null)
    assert dis.infomec(z, v)["infoe"] == pytest.approx(np.mean(shares), abs=0.01)


def test_sap_svm_is_scikit_learns():
    from sklearn.svm import LinearSVC

    from unbraid.metrics.disentanglement.informativeness import parts

    z, v = mixed(400)
    train, test = parts(400, 1 / 3, 0)
    gaps = []
    for k in range(3):
        scores = []
        for j in range(4):
            model = LinearSVC(C=0.01, class_weight="balanced", random_state=0).fit(z[train][:, [j]], v[train, k])
            scores.append((model.predict(z[test][:, [j]]) == v[test, k]).mean())
        scores.sort()
        gaps.append(scores[-1] - scores[-2])
    assert float(dis.sap(z, v)) == pytest.approx(np.mean(gaps))


def test_udr_agrees_with_loops_and_sees_order_and_sign_only():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((500, 4))
    same = [truth, -truth[:, ::-1], truth[:, [2, 0, 1, 3]] * [1, -1, 1, 1], truth[:, [3, 0, 2, 1]]]
    mix = [truth @ np.linalg.qr(rng.standard_normal((4, 4)))[0] for _ in range(2)]
    found = dis.udr([*same, *mix], method="spearman")
    assert found["scores"][:4].min() > 0.75 > found["scores"][4:].max()
    from scipy.stats import spearmanr

    relation = np.array([[abs(spearmanr(truth[:, a], mix[0][:, b])[0]) for b in range(4)] for a in range(4)])
    assert found["matrix"][0, 4] == pytest.approx(reference.udr_pair(relation), abs=1e-9)
    lasso = dis.udr([*same, *mix])
    assert set(np.argsort(-lasso["scores"])[:4]) == {0, 1, 2, 3}
    passive = dis.udr([*same, np.zeros((500, 4))])
    assert passive["scores"][4] == 0
    assert dis.udr(same, kl=[[1, 1, 1, 0.001]] * 4)["active"].sum() == 12


def test_downstream_learns_from_labels():
    z, v = mixed(3_000)
    found = dis.downstream(z, v, labels=(10, 100, 1_000, 10_000), bootstrap=20)
    assert list(found["accuracy"]) == [10, 100, 1_000]  # 10,000 are not there
    assert found["accuracy"][1_000] > found["accuracy"][10]
    assert found["efficiency"] == pytest.approx(found["accuracy"][100] / found["accuracy"][1_000])
    low, high = found["interval"]
    assert low < float(found) < high
    assert float(dis.downstream(z[:300], v[:300], labels=(100,), learner="gbt")) > 0.3


@pytest.mark.parametrize(("learner", "options"), [
    ("rf", {"n_estimators": 10}), ("rf_regression", {}), ("lasso", {}), ("logistic", {"max_iter": 50}),
    ("hist", {"max_iter": 10}), ("gbt", {"n_estimators": 5}),
])  # fmt: skip
def test_every_learner_finds_the_code_of_each_factor(learner, options):
    rng = np.random.default_rng(0)
    v = np.stack([rng.integers(2, size=400), rng.integers(2, size=400)], axis=1)
    z = v + 0.05 * rng.standard_normal((400, 2))
    found = dis.dci(z, v, learner=learner, options=options)
    d, c, i = (found[key] for key in found["keys"])
    # a forest's trees see one of the two codes at each split: half of their first splits are on the wrong one
    assert min(d, c, i) > (0.3 if learner.startswith("rf") else 0.8)
    assert found["keys"][0].startswith(f"dci_d[{learner}")
    order = list(itertools.chain(*found["matrix"].argmax(axis=0)[None]))
    assert order == [0, 1]
