"""Known codes have known scores: the table of section 3 of the sheet, tolerance 0.02 and what more is said beside."""

from __future__ import annotations

import math

import pytest

from metrics.worlds import KINDS, SIZES, encoder, sample
from unbraid.metrics import disentanglement as dis

# bVAE, FacVAE, MIG, modularity, SAP-svm, SAP-R2, IRS, TC. The learned ones were made with 3,000 training points (as
# were DCI's): with 10,000, bVAE of "scaled" is 1.00 and SAP of a perfect code 0.43 to 0.5.
GOLDEN = {
    "perfect": (1.00, 1.00, 1.00, 1.00, 0.36, 1.00, 0.97, 0),
    "rotated": (0.88, 0.88, 0.22, 0.93, 0.10, 0.37, 0.50, 0),
    "duplicated": (1.00, 1.00, 0.00, 1.00, 0.00, 0.00, 0.97, math.inf),
    "noise": (1.00, 1.00, 1.00, 0.80, 0.36, 1.00, 0.53, 0),
    "scaled": (0.94, 1.00, 1.00, 1.00, 0.37, 1.00, 0.96, 0),
    "merged": (1.00, 0.80, 0.92, 0.99, 0.23, 0.80, 0.95, 0),
    "random": (0.21, 0.21, 0.00, 0.65, 0.00, 0.00, 0.38, 0),
}
INFOMEC = {
    "perfect": (0.99, 1, 0.99),
    "rotated": (0.50, 1, 0.58),
    "duplicated": (0.99, 1, 0.44),
    "noise": (0.77, 1, 0.99),
    "scaled": (0.99, 1, 1),
    "merged": (0.83, 0.80, 0.99),
}
DCI = {
    "perfect": (1, 1, 1),
    "rotated": (0.40, 0.41, 0.85),
    "duplicated": (1, 0.71, 1),
    "noise": (1, 1, 1),
    "scaled": (1, 1, 1),
    "merged": (0.83, 1, 1),
    "random": (0, 0, 0.21),
}


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_the_table(kind):
    z, v = sample(kind)
    bvae, facvae, mig, modularity, svm, r2, irs, tc = GOLDEN[kind]
    chosen = {"encode": encoder(kind, 5), "sizes": SIZES}
    # at a deviation of 0.01 the penalty decides: .87 to .99 over four seeds
    by_draw = 0.09 if kind == "scaled" else 0.03
    assert float(dis.beta_vae(**chosen, train=3_000, test=2_000)) == pytest.approx(bvae, abs=by_draw)
    # "scaled" has codes with a deviation of 0.01: the table's 1.00 is that of a score that never prunes
    assert float(dis.factor_vae(**chosen, prune=0)) == pytest.approx(facvae, abs=0.03)
    assert float(dis.mig(z, v)) == pytest.approx(mig, abs=0.02)
    # modularity and IRS of codes of noise are maxima over chance: they vary from draw to draw
    by_chance = 0.05 if kind in ("noise", "random") else 0.02
    assert float(dis.modularity(z, v)) == pytest.approx(modularity, abs=by_chance)
    # where the SVM puts its threshold among middle classes is chance: a class more or less is 0.1 of one factor
    assert float(dis.sap(z[:4_500], v[:4_500])) == pytest.approx(svm, abs=0.08)
    assert float(dis.sap(z, v, kind="r2")) == pytest.approx(r2, abs=0.02)
    assert float(dis.irs(z, v)) == pytest.approx(irs, abs=by_chance)
    assert float(dis.total_correlation(z)) == pytest.approx(tc, abs=0.02)


@pytest.mark.parametrize("kind", INFOMEC)
def test_infomec_of_the_table(kind):
    z, v = sample(kind)
    found = dis.infomec(z, v, explicitness_rows=1_500)
    # nearest neighbours see a little information in noise, so its share in InfoM varies
    tolerance = 0.06 if kind == "noise" else 0.03
    assert [found["infom"], found["infoe"], found["infoc"]] == pytest.approx(INFOMEC[kind], abs=tolerance)


@pytest.mark.parametrize(
    "kind", [k if k in ("rotated", "merged") else pytest.param(k, marks=pytest.mark.study) for k in KINDS]
)
def test_dci_of_the_table(kind):
    z, v = sample(kind, 4_500)
    found = dis.dci(z, v, options={"n_estimators": 30})
    assert [found[key] for key in found["keys"]] == pytest.approx(DCI[kind], abs=0.03)


def test_true_factors_as_codes_answer_perfectly():
    _, v = sample("perfect", 3_000)
    z = v - v.mean(axis=0)
    for metric in (dis.mig, dis.mig_sup, dis.dcimig, dis.modularity, dis.infomec):
        assert float(metric(z, v)) == pytest.approx(1, abs=0.03), metric
    found = dis.dci(z[:800], v[:800], options={"n_estimators": 5})
    assert [found[key] for key in found["keys"]] == pytest.approx([1, 1, 1], abs=0.02)
    assert float(dis.factor_vae(z, v, votes=500, test_votes=200)) == 1
    assert float(dis.beta_vae(z, v, train=800, test=200)) == 1
    assert float(dis.z_max_var(encode=lambda f: f * 1.0, sizes=SIZES, votes=500, test_votes=200)) == 1
    assert float(dis.explicitness(z[:1_000], v[:1_000])) > 0.97


def test_random_codes_answer_at_chance():
    z, v = sample("random", 3_000)
    for metric in (dis.mig, dis.mig_sup, dis.dcimig):
        assert float(metric(z, v)) < 0.05, metric
    assert float(dis.factor_vae(z, v, votes=1_000, test_votes=1_000)) == pytest.approx(0.2, abs=0.06)
    assert float(dis.explicitness(z, v)) == pytest.approx(0.5, abs=0.03)
    assert float(dis.sap(z, v, kind="r2")) < 0.01
    assert dis.infomec(z, v)["infoe"] < 0.02
    assert float(dis.downstream(z, v, labels=(100,))) < 0.3
