"""Random-feature attention: scikit-learn, torch, reports and the study."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from torch import nn

from unbraid.core.errors import UnbraidError
from unbraid.core.result import Result
from unbraid.systems.random_feature_attention import (
    RandomFeatureAttention,
    RandomFeatureAttentionRegressor,
    RandomFeatureMLPRegressor,
    compare_frozen,
    degree_shares,
    freeze_query_key,
    run,
    sample_complexity,
    sphere_tokens,
    target,
)
from unbraid.systems.random_feature_attention.claims import exponents, measure
from unbraid.systems.random_feature_attention.complexity import crossing, slope
from unbraid.systems.random_feature_attention.degrees import cost, dimension, harmonics
from unbraid.systems.random_feature_attention.report import slopes
from unbraid.systems.random_feature_attention.study import Findings
from unbraid.systems.random_feature_attention.targets import directions
from unbraid.systems.random_feature_attention.tokens import read

torch.set_num_threads(1)


def data(n, name="power:2", keys=4, d=3, seed=0):
    x = sphere_tokens(n, keys, d, seed)
    return x, target(name)(x, *directions(d, seed))


# ---------------------------------------------------------------- scikit-learn


@pytest.mark.parametrize(
    "made",
    [
        RandomFeatureAttentionRegressor(heads=32, width=1),
        RandomFeatureAttentionRegressor(heads=None, width=1),
        RandomFeatureMLPRegressor(neurons=64, width=1),
    ],
    ids=["heads", "kernel", "mlp"],
)
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_own_checks(made):
    """Flat inputs, every column a token of width one."""
    failed = [c["check_name"] for c in check_estimator(made, on_fail=None, on_skip=None) if c["status"] == "failed"]
    assert failed == []


def test_pipelines_and_grid_search_on_three_and_two_dimensions():
    x, y = data(150)
    grid = {"bias": ["zero", "identity"], "heads": [5, 60]}
    found = GridSearchCV(RandomFeatureAttentionRegressor(), grid, cv=3).fit(x, y)
    assert found.best_params_["heads"] == 60
    assert found.best_score_ > 0.8
    line = make_pipeline(StandardScaler(), RandomFeatureAttentionRegressor(heads=60, width=3))
    search = GridSearchCV(line, {"randomfeatureattentionregressor__scaling": ["common", "none"]}, cv=3)
    assert search.fit(x.reshape(150, -1), y).best_score_ > 0.5
    flat = RandomFeatureAttentionRegressor(heads=60, width=3).fit(x.reshape(150, -1), y)
    np.testing.assert_array_equal(flat.predict(x), RandomFeatureAttentionRegressor(heads=60).fit(x, y).predict(x))


# ---------------------------------------------------------------- torch


def test_the_layer_is_the_estimator_and_saves_no_weights():
    x, y = data(60)
    fitted = RandomFeatureAttentionRegressor(70, "identity").fit(x, np.stack([y, -y], 1))
    layer, offset = RandomFeatureAttention.from_regressor(fitted)
    tokens = torch.from_numpy(x / fitted.common_)
    torch.testing.assert_close(
        layer(tokens[:, 0], tokens[:, 1:]) + offset, torch.from_numpy(fitted.predict(x)), atol=1e-6, rtol=1e-6
    )
    assert set(layer.state_dict()) == {"values", "seed", "mean"}
    other = RandomFeatureAttention(3, 70, 2, seed=99).double()
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(tokens[:, 0], tokens[:, 1:]), layer(tokens[:, 0], tokens[:, 1:]))


def test_the_layer_trains_its_values_and_masks_keys():
    layer = RandomFeatureAttention(3, 20, seed=1)
    query, keys = torch.randn(5, 3), torch.randn(5, 4, 3)
    nn.init.normal_(layer.values)
    layer(query, keys).sum().backward()
    assert layer.values.grad is not None
    assert [name for name, _ in layer.named_parameters()] == ["values"]
    mask = torch.tensor([[True, True, False, False]]).expand(5, 4)
    torch.testing.assert_close(layer(query, keys, mask), layer(query, keys[:, :2]))
    for wrong in ((query[:, :2], keys), (query, keys[:, :0]), (query, query)):
        with pytest.raises(UnbraidError, match="keys"):
            layer(*wrong)
    with pytest.raises(UnbraidError, match="heads is 0"):
        RandomFeatureAttention(3, 0)


@pytest.mark.parametrize("other", [False, True])
def test_freezing_multihead_attention(other):
    options = {"kdim": 12, "vdim": 12} if other else {}
    made = nn.MultiheadAttention(8, 2, batch_first=True, **options)
    with torch.no_grad():
        made.out_proj.bias.normal_()
    x = torch.randn(3, 5, 8)
    key = torch.randn(3, 5, 12) if other else x
    before = made(x, key, key)[0]
    kept = copy.deepcopy(made)
    freeze_query_key(kept, redraw=False)
    torch.testing.assert_close(kept(x, key, key)[0], before)
    kept.eval()
    torch.testing.assert_close(kept(x, key, key)[0], before)
    drawn = copy.deepcopy(made)
    freeze_query_key(drawn, seed=3)
    assert not torch.allclose(drawn(x, key, key)[0], before)
    optimizer = torch.optim.AdamW(drawn.parameters(), lr=0.1, weight_decay=0.5)
    weights = (drawn.q_proj_weight, drawn.k_proj_weight) if other else (drawn.in_proj_weight,)
    first = [w.detach().clone() for w in weights]
    drawn(x, key, key)[0].square().sum().backward()
    optimizer.step()
    after = (drawn.q_proj_weight, drawn.k_proj_weight) if other else (drawn.in_proj_weight,)
    for old, new in zip(first, after, strict=True):
        torch.testing.assert_close(new[:16], old[:16])  # neither the gradient nor weight decay moves them
    values = drawn.v_proj_weight if other else drawn.in_proj_weight[16:]
    assert not torch.allclose(values, made.v_proj_weight if other else made.in_proj_weight[16:])


def test_freezing_a_hugging_face_block():
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    model = BertModel(
        BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    )
    before = copy.deepcopy(model.state_dict())
    frozen = freeze_query_key(model)
    assert len(frozen) == 4
    for name, weight in model.named_parameters():
        queries = ".query." in name or ".key." in name
        assert weight.requires_grad != queries
        if queries and name.endswith("weight"):
            assert not torch.equal(weight, before[name])
            assert float(weight.detach().std()) == pytest.approx(float(before[name].std()), rel=0.2)
        elif not queries:
            assert torch.equal(weight, before[name])
    with pytest.raises(UnbraidError, match="has no MultiheadAttention"):
        freeze_query_key(nn.Linear(3, 3))


def test_comparing_frozen_layers_leaves_the_layer_alone():
    torch.manual_seed(0)
    made = nn.MultiheadAttention(8, 2, batch_first=True)
    before = copy.deepcopy(made.state_dict())
    x = np.random.default_rng(0).standard_normal((200, 5, 8)).astype(np.float32)
    rows = compare_frozen(made, x, x[:, 1:, 0].mean(1), steps=120, batch=32, seeds=(0,))
    errors = {row["arm"]: row["error"] for row in rows}
    assert list(errors) == ["random", "pretrained", "trained"]
    assert errors["random"] < 0.5
    counts = {row["arm"]: row["trained weights"] for row in rows}
    assert counts["trained"] - counts["random"] == 2 * (8 * 8 + 8)
    for name, value in made.state_dict().items():
        assert torch.equal(value, before[name])
    assert rows[0] == compare_frozen(made, x, x[:, 1:, 0].mean(1), steps=120, batch=32, seeds=(0,), arms=("random",))[0]
    with pytest.raises(UnbraidError, match="no arm"):
        compare_frozen(made, x, x[:, 0, 0], arms=("other",))
    with pytest.raises(UnbraidError, match="at least 8"):
        compare_frozen(made, x[0], x[0, :, 0])


# ---------------------------------------------------------------- degrees and the report


def test_harmonics_are_reproducing_kernels():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40_000, 4))
    x = torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True))
    t = x @ x[:1].T
    found = torch.cat(harmonics(t, 3, 4), 1)
    assert [dimension(k, 4) for k in range(4)] == [1, 4, 9, 16]
    assert found[0].tolist() == pytest.approx([1, 4, 9, 16])
    gram = (found.T @ found / len(x)).numpy()
    np.testing.assert_allclose(gram, np.diag([1, 4, 9, 16]), atol=0.6)
    assert cost(1) == 4
    assert cost(2) == pytest.approx(362, rel=0.01)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("power:1", {(0, 1): 1.0}),
        ("power:2", {(0, 2): 1.0}),
        ("mixed:0:1", {(1, 1): 1.0}),
        ("mixed:1:1", {(1, 1): 1.0}),
    ],
)
def test_degrees_are_those_of_the_target(name, expected):
    x, y = data(700, name, keys=3, d=4)
    found = degree_shares(read(x), y, degree=2)
    assert found.present == list(expected)
    for at, share in expected.items():
        assert found.shares[at] == pytest.approx(share, abs=0.2)
    assert found.correlated[0] == pytest.approx(
        1.0 if name == "mixed:0:1" else 0.0, abs=0.1 if name != "mixed:1:1" else 1
    )
    assert "C_" in found.statement()


def test_degrees_of_a_query_alone_and_of_noise():
    x = sphere_tokens(600, 3, 4, 0)
    found = degree_shares(read(x), x[:, 0, 0] + x[:, 1:, 1].mean(1) * 3**0.5, degree=2)
    assert set(found.present) == {(1, 0), (0, 1)}
    assert found.shares[1, 0] == pytest.approx(0.5, abs=0.15)
    assert found.shares[0, 1] == pytest.approx(0.5, abs=0.15)
    noise = degree_shares(read(x), np.random.default_rng(0).standard_normal(600), degree=2)
    assert noise.shares.max() < 0.2
    with pytest.raises(UnbraidError, match="10 inputs"):
        degree_shares(read(x[:5]), x[:5, 0, 0])


def test_slopes_and_crossings():
    assert slope([10, 100, 1000], [1, 0.1, 0.01]) == pytest.approx(-1)
    assert crossing([10, 100], [1, 0.01], 0.1) == pytest.approx(10**1.5)
    assert crossing([10, 100], [1, 0.9], 0.5) == np.inf
    assert crossing([10, 100], [0.2, 0.1], 0.5) == 10
    rows = [{"target": "power:1", "model": "RFA", "heads": 1, "seed": s, "n": n, "error": n ** -(1.0 + s)}
            for s in (0, 1) for n in (1000, 10, 100)]  # fmt: skip
    assert slopes(rows)[0]["slope"] == pytest.approx(-1.5)


def test_the_sample_complexity_of_a_users_data():
    x, y = data(260, "power:2")
    found = sample_complexity(x, y, sizes=(20, 60, 180), splits=3, heads=60, progress=False)
    assert set(found.errors) == {"RFA", "BRFA", "data-biased", "RFMLP"}
    assert found.errors["RFA"][:, -1].mean() < 0.2 < found.errors["RFMLP"][:, -1].mean()
    assert all(row["slope"] < 0 for row in found.slopes().records if row["model"] == "RFA")
    assert found.samples_for(0.5)["RFA"] < found.samples_for(0.5)["RFMLP"]
    assert (0, 2) in found.degrees.present
    page = found.result()
    assert isinstance(page, Result)
    assert "<svg" in page.to_html()
    assert "RFA" in found.statement()


def test_the_report_on_ragged_sets_many_outputs_and_own_models():
    x, y = data(120, "power:1")
    x[::3, -1] = np.nan
    both = np.stack([y, 2 * y], 1)
    found = sample_complexity(x, both, sizes=(40, 80), splits=2, heads=30, ragged=True, progress=False)
    assert "RFMLP" not in found.errors
    assert found.notes
    own = sample_complexity(
        x[1::3], y[1::3], sizes=(20,), splits=1, progress=False, degree=0,
        models={"mine": RandomFeatureAttentionRegressor(10)},
    )  # fmt: skip
    assert list(own.errors) == ["mine"]
    assert own.degrees is None
    cases = ({"sizes": (2,)}, {"sizes": (200,)}, {"splits": 0}, {"test": 1.5}, {"degree": 9}, {"heads": 0})
    for wrong in cases:
        with pytest.raises(UnbraidError, match=next(iter(wrong))):
            sample_complexity(x[1::3], y[1::3], progress=False, **wrong)
    with pytest.raises(UnbraidError, match="y must be"):
        sample_complexity(x[1::3], y, progress=False)


def test_the_report_on_a_file(tmp_path):
    x, y = data(100, "power:1")
    np.savez(tmp_path / "mine.npz", X=x, y=y)
    page = run(data=tmp_path / "mine.npz", sizes=(20, 60), heads=(20,), seeds=2, progress=False)
    assert page.params["data"] == "mine.npz"
    assert {"curve", "slopes", "degrees"} == set(page.tables)
    np.savez(tmp_path / "other.npz", x=x)
    (tmp_path / "text.npz").write_text("none")
    for name, said in (("other", "must have X"), ("text", "cannot be read"), ("missing", "cannot be read")):
        with pytest.raises(UnbraidError, match=said):
            run(data=tmp_path / f"{name}.npz", progress=False)


# ---------------------------------------------------------------- the study


def test_the_study_runs_resumes_and_reads_back(tmp_path):
    first = run(size="tiny", seeds=2, keep=tmp_path, progress=False)
    assert first.lead == "figures"
    assert {c.name for c in first.claims if c.holds is not None} >= {"kernel", "symmetry", "mixing", "data_bias"}
    again = run(size="tiny", seeds=2, keep=tmp_path, progress=False)
    assert again.meta["pieces_read_back"] > 30
    assert again.tables == first.tables
    assert again.claims == first.claims
    assert "<svg" in first.to_html()
    other = run(size="tiny", seeds=1, parts=("curves",), sizes=(40,), seed=7, progress=False)
    assert {c.verdict for c in other.claims} == {"not tested"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"parts": ("other",)}, "no part 'other'"),
        ({"models": ("MLP",)}, "no model 'MLP'"),
        ({"targets": ("power:0",)}, "powers must be"),
        ({"targets": ("power:1", "power:1")}, "different ones"),
        ({"sizes": (0,)}, "sizes is 0"),
        ({"sizes": ()}, "sizes is empty"),
        ({"heads": (0,)}, "heads is 0"),
        ({"d": 1}, "d is 1"),
        ({"keys": 0}, "keys is 0"),
        ({"seeds": 0}, "seeds is 0"),
        ({"device": "abacus"}, "no device 'abacus'"),
        ({"models": ("RFA kernel",), "sizes": (9000,)}, "sizes up to 5000"),
        ({"size": "huge"}, "size is 'huge'"),
    ],
)
def test_bad_options_are_one_sentence(wrong, said):
    with pytest.raises(UnbraidError, match=said):
        run(**{"size": "tiny", "progress": False, **wrong})


def claims_of(**parts):
    return {c.name: c for c in measure(Findings(**parts))}


def test_claims_can_fail():
    def rows(rfa, mlp):
        return [
            {"model": m, "target": "power:2", "n": 800, "heads": 500, "seed": s, "error": e + 0.001 * s, "penalty": 1.0}
            for m, e in (("RFA", rfa), ("RFMLP", mlp)) for s in range(3)
        ]  # fmt: skip

    assert claims_of(rows=rows(0.2, 1.2))["rfa_over_rfmlp"].holds is True
    assert claims_of(rows=rows(0.4, 1.2))["rfa_over_rfmlp"].holds is False
    assert claims_of(rows=rows(0.2, 0.5))["rfa_over_rfmlp"].holds is False
    assert claims_of()["rfa_over_rfmlp"].holds is None

    def needed(growth):
        return [
            {"model": m, "keys": k, "d": 4, "seed": s, "samples": 100.0 * k ** (g + 0.01 * s), "at most": False}
            for m, g in zip(("RFA", "RFMLP kernel"), growth, strict=True) for k in (4, 8) for s in range(3)
        ]  # fmt: skip

    good, bad = claims_of(needed=needed((0.1, 1.5))), claims_of(needed=needed((0.8, 0.9)))
    assert (good["keys_rfa"].holds, good["keys_rfmlp"].holds) == (True, True)
    assert (bad["keys_rfa"].holds, bad["keys_rfmlp"].holds) == (False, False)
    assert good["keys_rfmlp"].measured == pytest.approx(1.51)
    cut = needed((0.1, 1.5))
    cut[-1]["samples"] = None  # a trial without an end is not counted, and said
    assert len(exponents(cut, "RFMLP kernel")) == 2
    assert "of 3 seeds" in claims_of(needed=cut)["keys_rfmlp"].note
