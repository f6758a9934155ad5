"""Many layers trained at once against one after the other, the system, the study, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import unbraid
from unbraid.core.errors import UnbraidError
from unbraid.core.training.batches import mix
from unbraid.systems.icl_linear_regression import superposition
from unbraid.systems.icl_linear_regression.circuits import Circuits
from unbraid.systems.icl_linear_regression.ensemble import Ensemble, train
from unbraid.systems.icl_linear_regression.layer import Attention, attention_of, load_attention
from unbraid.systems.icl_linear_regression.patterns import report
from unbraid.systems.icl_linear_regression.projection import Reduced, from_reduced, to_reduced
from unbraid.systems.icl_linear_regression.reading import per_head, read_circuits
from unbraid.systems.icl_linear_regression.sampling import Regression
from unbraid.systems.icl_linear_regression.study.claims import Claims, _limits
from unbraid.systems.icl_linear_regression.study.study import PARTS, run


def layers_of(model: Ensemble, heads: int, member: int) -> Attention:
    """The same first weights in a layer with linear projections."""
    start = sum(model.counts[: model.counts.index(heads)])
    part = {n: w.detach()[member, start : start + heads] for n, w in model.named_parameters()}
    made = Attention(model.task.dimension, heads, model.task.tasks)
    with torch.no_grad():
        for name in "qkv":
            made.get_submodule(f"{name}_proj").weight.copy_(part[f"w_{name}"].flatten(0, 1))
        made.o_proj.weight.copy_(part["w_o"].transpose(0, 1).flatten(1))
    return made


def test_all_seeds_and_head_counts_at_once_are_plain_loops_over_layers():
    task, seeds, counts, steps = Regression(3, 8), (4, 9), (1, 3), 25
    model, course = train(task, counts, seeds, steps=steps, batch=16, records=5)
    for k, seed in enumerate(seeds):
        for i, heads in enumerate(counts):
            single = layers_of(Ensemble(task, counts, seeds), heads, k)
            optimizer, losses = torch.optim.Adam(single.parameters(), lr=1e-3), []
            for step in range(steps):
                b = task.sample(16, mix(seed, 11, step))
                loss = (single.predict(b) - b.answer).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
            trained, plain = model.circuits(heads, k), read_circuits(single)
            for one, other in ((trained.kq, plain.kq), (trained.ov, plain.ov)):  # Adam makes much of small gradients
                torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-4)
            np.testing.assert_allclose(course["loss"][:, k, i], np.reshape(losses, (5, 5)).mean(1), rtol=1e-4)
    assert course["steps"] == [5, 10, 15, 20, 25]


@pytest.mark.parametrize("activation", ["softmax", "affine", "linear"])
def test_vmap_is_a_loop_over_members(activation):
    task = Regression(4, 6, supports=((0, 1), (1, 2, 3)))
    model = Ensemble(task, (2, 3), (0, 1), activation)
    drawn = [task.sample(5, s) for s in (1, 2)]
    batch = type(drawn[0])(*(torch.stack(p) for p in zip(*drawn, strict=True)))
    together = model(batch)
    for k in range(2):
        for i, heads in enumerate((2, 3)):
            torch.testing.assert_close(model.circuits(heads, k).predict(drawn[k]), together[k, :, i].detach())


def test_a_seed_does_not_depend_on_its_company_and_a_stopped_training_goes_on(tmp_path):
    task = Regression(3, 6)
    together, course = train(task, (2,), (0, 1), steps=20, batch=8, records=4)
    alone, _ = train(task, (2,), (1,), steps=20, batch=8, records=4)
    torch.testing.assert_close(together.circuits(2, 1).kq, alone.circuits(2).kq, atol=1e-6, rtol=1e-5)

    def stop(since: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(task, (2,), (0, 1), steps=20, batch=8, records=4, checkpoint_dir=tmp_path, tick=stop)
    resumed, again = train(task, (2,), (0, 1), steps=20, batch=8, records=4, checkpoint_dir=tmp_path)
    torch.testing.assert_close(resumed.circuits(2).kq, together.circuits(2).kq, atol=0, rtol=0)
    np.testing.assert_array_equal(again["loss"], course["loss"])


def test_four_heads_learn_the_pattern():
    task = Regression()
    model, course = train(task, (1, 4), (0,), steps=2_500, batch=192, records=10, lr=2e-3)
    one, four = course["loss"][-1, 0]
    assert four < 0.7 * one
    r = report(model.circuits(4), task)
    assert r.sign_match == 1
    assert r.zero_sum < 0.1
    assert r.label_share > 0.8
    assert min(r.omega) < 0 < max(r.omega)


def test_the_system_trains_predicts_explains_and_comes_back(tmp_path):
    system = unbraid.create("icl_linear_regression", dimension=3, length=8, steps=30, batch=16, seeds=2)
    with pytest.raises(UnbraidError, match="nothing is trained"):
        system.circuits()
    system.fit(progress=False)
    b = system.task.sample(4, 0)
    truth = system.circuits(1).predict(b)
    torch.testing.assert_close(system.predict(b.x, b.y[..., 0], b.query, member=1), truth)
    assert set(system.explained(b.x, b.y, b.query)) == {
        "ridge",
        "gradient step",
        "debiased gradient step",
        "single head",
    }
    assert len(system.reports()) == 2
    assert len(system.projection_costs(sequences=100)) == 4
    assert system.to_reduced(0).omega.shape == (2, 3)
    system.save_pretrained(tmp_path)
    back = unbraid.System.from_pretrained(tmp_path)
    torch.testing.assert_close(back.predict(b.x, b.y, b.query, member=1), truth)
    wrong = unbraid.System.from_pretrained(tmp_path, heads=3)
    with pytest.raises(UnbraidError, match="another architecture"):
        wrong.predict(b.x, b.y, b.query)
    again = unbraid.create("icl_linear_regression", dimension=3, length=8, steps=30, batch=16, seeds=2).fit(
        progress=False
    )
    assert torch.equal(again.kq_, system.kq_)


def test_several_tasks_and_correlated_covariates_in_the_system():
    two = unbraid.create("icl_linear_regression", dimension=3, length=8, supports=((0, 1), (1, 2)), steps=5, batch=8)
    two.fit(progress=False)
    b = two.task.sample(3, 0)
    assert two.predict(b.x, b.y, b.query).shape == (3, 2)
    assert set(two.explained(b.x, b.y, b.query)) == {"ridge", "gradient step", "debiased gradient step"}
    slanted = unbraid.create("icl_linear_regression", dimension=3, length=8, rho=0.5, steps=5, batch=8).fit(
        progress=False
    )
    assert slanted.reports()[0].preconditioner_cosine is not None


CHECKPOINT = {n: torch.zeros(*s) for n, s in {"attention_layer.q_proj.weight": (12, 6),
"attention_layer.k_proj.weight": (12, 6),
              "attention_layer.v_proj.weight": (12, 6), "attention_layer.o_proj.weight": (1, 12)}.items()}  # fmt: skip


def test_a_checkpoint_of_the_papers_code_is_read():
    made = load_attention(CHECKPOINT)
    assert (made.heads, made.dimension) == (2, 5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Regression(dimension=0), "dimension is 0"),
        (lambda: Regression(length=0), "length is 0"),
        (lambda: Regression(noise=-1.0), "noise is -1.0"),
        (lambda: Regression(noise=float("nan")), "noise is nan"),
        (lambda: Regression(rho=1.0), "rho is 1.0"),
        (lambda: Regression(supports=((0, 9),)), "supports holds"),
        (lambda: Regression(supports=()), "supports holds nothing"),
        (lambda: Regression().sample(0, 0), "batch is 0"),
        (lambda: Attention(5, 0), "heads is 0"),
        (lambda: Ensemble(Regression(), (2, 2)), "heads is"),
        (lambda: Ensemble(Regression(), (0,)), "heads is 0"),
        (lambda: Ensemble(Regression(), (1,), ()), "seeds is"),
        (lambda: Ensemble(Regression(), (1,), (0,), "relu"), "activation is 'relu'"),
        (lambda: train(Regression(), steps=0), "steps is 0"),
        (lambda: train(Regression(), lr=-1.0), "lr is -1.0"),
        (lambda: Circuits(torch.zeros(2, 6, 5), torch.zeros(2, 1, 6)), "shapes"),
        (lambda: Circuits(torch.full((2, 6, 6), torch.nan), torch.zeros(2, 1, 6)), "not finite"),
        (lambda: read_circuits(torch.nn.Linear(3, 3)), "no linear q_proj"),
        (lambda: read_circuits("layer"), "not a str"),
        (lambda: per_head(torch.zeros(2, 4, 3), torch.zeros(2, 4, 2), torch.zeros(2, 4, 3), torch.zeros(2, 3, 4)),
        "shapes"),
        (lambda: report(Circuits(torch.eye(6)[None], torch.ones(1, 1, 6)), Regression(4)), "dimension 4"),
        (lambda: to_reduced(Circuits(torch.eye(6)[None], torch.ones(1, 1, 6)), "square"), "level is"),
        (lambda: to_reduced(Circuits(torch.eye(6)[None], torch.ones(1, 1, 6)), "manifold", Regression()), "both signs"),
        (lambda: from_reduced(Reduced(torch.zeros(2), torch.zeros(2))), "shapes"),
        (lambda: attention_of(Circuits(torch.eye(6)[None], torch.ones(1, 1, 6), "tanh")), "tanh attention"),
        (lambda: load_attention({**CHECKPOINT, "mlp.weight": torch.zeros(3, 3)}), "another architecture"),
        (lambda: load_attention({"q_proj.weight": torch.zeros(6, 6)}), "another architecture"),
        (lambda: load_attention({**CHECKPOINT, "attention_layer.o_proj.weight": torch.zeros(6, 12)}),
        "another architecture"),
        (lambda: superposition.solve(torch.zeros(2, 3), 3), "steps has shape"),
        (lambda: superposition.solve(torch.ones(2, 3), 1), "heads is 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_sentence(make, said):
    with pytest.raises(UnbraidError) as refused:
        make()
    assert said in str(refused.value)


def test_biases_and_wrong_sequences_are_refused():
    multi = torch.nn.MultiheadAttention(6, 2)
    torch.nn.init.ones_(multi.in_proj_bias)
    with pytest.raises(UnbraidError, match="biases"):
        read_circuits(multi)
    system = unbraid.create("icl_linear_regression", dimension=3, length=8, steps=2, batch=4).fit(progress=False)
    b = system.task.sample(2, 0)
    with pytest.raises(UnbraidError, match="must be"):
        system.predict(b.x[..., :2], b.y, b.query)
    assert torch.equal(system.predict(b.x.numpy(), b.y.numpy(), b.query.numpy()), system.predict(b.x, b.y, b.query))
    with pytest.raises(UnbraidError, match="arrays of numbers"):
        system.predict("x", b.y, b.query)
    with pytest.raises(UnbraidError, match="not finite"):
        system.predict(b.x * torch.nan, b.y, b.query)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"parts": ("everything",)}, "parts is everything"),
        ({"parts": ("lengths",)}, "lengths without heads"),
        ({"heads": (0,)}, "heads is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"seeds": 0}, "seeds is 0"),
        ({"side_steps": -1}, "side_steps is -1"),
        ({"sequences": 5}, "sequences is 5"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"device": "nowhere"}, "nowhere"),
    ],
)
def test_the_study_refuses_before_it_works(given, said):
    with pytest.raises(UnbraidError) as refused:
        run(**given)
    assert said in str(refused.value)


def test_the_study_runs_goes_on_and_says_what_it_did_not_test(tmp_path):
    options = {
        "heads": (1, 2, 3),
        "steps": 6,
        "side_steps": 5,
        "batch": 4,
        "sequences": 200,
        "keep": tmp_path,
        "progress": False,
    }
    result = run(parts=PARTS[1:], **options)
    again = run(parts=PARTS[1:], **options)
    assert again.meta["pieces_read_back"] > 0
    assert [c.measured for c in again.claims] == [c.measured for c in result.claims]
    assert {c.name: c.verdict for c in result.claims}["descent"] == "not tested"
    assert {c.name: c.verdict for c in result.claims}["limits"] == "not tested"
    assert result.lead == "figures"
    kinds = [f.kind for f in result.figures]
    assert {"lines", "heat_map", "scatter", "bars"} <= set(kinds)
    one = run(parts=("heads",), heads=(1,), steps=2, side_steps=2, batch=4, sequences=100, seeds=1, progress=False)
    assert all(c.holds is None for c in one.claims)
    assert result.to_html()


def test_without_one_head_there_is_nothing_to_compare_several_with():
    held = {
        c.name: (c.holds, c.note)
        for c in run(parts=("heads",), heads=(2, 3), seeds=2, steps=2, sequences=200, progress=False).claims
    }
    assert held["same predictor"][0] is None
    assert "was not trained" in held["same predictor"][1]


@pytest.mark.parametrize(
    ("gamma", "steps", "held"), [(0.125, 500_000, True), (0.11, 500_000, False), (0.13, 499_999, None)]
)
def test_the_limits_are_judged_after_the_papers_steps(gamma, steps, held):
    claims = Claims()
    rows = [
        {"heads": h, "seed": s, "gamma": gamma + s * 1e-4, "step": 2 * gamma * 3.4}
        for h in (1, 2, 3, 4)
        for s in (0, 1)
    ]
    _limits(claims, rows, steps)
    claim = next(c for c in claims.all() if c.name == "limits")
    assert claim.holds is held
    assert claim.measured == pytest.approx(max(abs(gamma / 0.13 - 1), 1 - 3.4 / 3.5), abs=2e-3)
