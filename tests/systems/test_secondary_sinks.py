"""Secondary sinks: planted truth recovered exactly, numbers against dense attention, and what must be refused."""

import json

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import (
    BertConfig,
    BertModel,
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

import unbraid
from unbraid import attach
from unbraid.core.blocks import blocks, listening, residual
from unbraid.core.errors import UnbraidError
from unbraid.systems import secondary_sinks as ss
from unbraid.systems.secondary_sinks import study
from unbraid.systems.secondary_sinks.detect import Primary, decompose, label_bounds, massive, weak_sinks
from unbraid.systems.secondary_sinks.evidence import norm_sweep, planted_row
from unbraid.systems.secondary_sinks.levels import level_grid, same_levels, sink_levels
from unbraid.systems.secondary_sinks.monitor import Monitor
from unbraid.systems.secondary_sinks.origin import capture, mlp_stages, same_tokens, top_neurons
from unbraid.systems.secondary_sinks.planted import Plant, plant
from unbraid.systems.secondary_sinks.push import push_directions, side_inputs
from unbraid.systems.secondary_sinks.spectrum import matrix_entropy, window_entropy
from unbraid.systems.secondary_sinks.system import measure
from unbraid.systems.secondary_sinks.watch import Watch

PAPER_SCRIPT = {"candidates": 2, "guard": "none", "primary_ratio": 2.0}


@pytest.fixture(scope="module")
def world():
    return plant(0)


@pytest.fixture(scope="module")
def found(world):
    return unbraid.create("secondary_sinks", **PAPER_SCRIPT).fit(world.model, world.input_ids)


@pytest.mark.parametrize("seed", range(5))
def test_planted_sinks_are_recovered_exactly_and_attention_alone_does_not(seed):
    row = planted_row(seed)
    assert row["found exactly"] == 3
    assert row["false"] == 0
    assert row["window"] == "[2, 11)"
    assert row["origin named"] == 3
    assert row["blocks by attention alone"] < row["of"]
    assert row["mass lost when the write is set to 5"] > 0.7


def test_marks_left_in_ordinary_tokens_make_many_more_sinks():
    unclear = plant(0, clear=False)
    found = unbraid.create("secondary_sinks", **PAPER_SCRIPT).fit(unclear.model, unclear.input_ids)
    assert len(found.sinks_) > 12


def test_the_guards_change_nothing_where_sinks_are_clear(world):
    for guard in ("norm", "centre"):
        system = unbraid.create("secondary_sinks", **{**PAPER_SCRIPT, "guard": guard})
        assert {s.position: s.level for s in system.fit(world.model, world.input_ids).sinks_} == world.truth


def test_attention_grows_with_the_norm_of_the_write():
    rows = norm_sweep([5, 10, 20, 40, 80, 160])
    norm, mass = [r["norm"] for r in rows], [r["attention"] for r in rows]
    assert stats.spearmanr(norm, mass).statistic == pytest.approx(1)
    # a weak sink draws attention although it fails the direction test: what the attention-side test is for
    assert not rows[0]["passes the direction test"]
    assert rows[0]["attention"] > 0.03


def test_the_primary_sink_dips_where_secondaries_appear_and_recovers_when_they_die(world, found):
    mass = np.array(found.primary_mass_[0])
    assert mass[3] > 0.9  # read by the block after its creation at 2
    assert mass[5] < 0.7 * mass[4]  # (created at 4 is read at 5)
    assert mass[7] < mass[6] < mass[5]
    assert mass[10] > mass[8]


def test_origin_lies_in_the_mlp_of_the_first_block(world, found):
    profile, _ = measure(world.model, world.input_ids, 2, attention=False)
    primary = Primary(**found.primary_[0])
    for position, p in world.plants.items():
        parts = decompose(profile, primary, position)
        made = np.array(parts["rise"]) * np.array(parts["mlp"])
        assert made.argmax() == p.create
        assert parts["mlp"][p.create] == pytest.approx(1, abs=0.02)
        assert parts["rise"][p.create] == pytest.approx(p.norm, rel=0.05)
    by_position = {s.position: s for s in found.sinks_}
    assert all(by_position[t].mlp_share == pytest.approx(1, abs=0.02) for t in world.plants)


def test_the_stages_of_the_mlp_turn_towards_the_primary_sink_at_its_end(world, found):
    position, p = max(world.plants.items(), key=lambda x: x[1].norm)
    stages = mlp_stages(world.model, world.input_ids, p.create, [position], 0, [20, 21, 22])
    assert set(stages.names[:5]) == {"input", "gate_proj", "up_proj", "act_fn", "hidden"}
    assert stages.names[5:] == ["output", "written, primary's stream"]
    assert stages.sinks[-1, 0] > 0.99
    assert np.abs(stages.sinks[0]).max() < 0.9
    assert stages.controls.shape == (len(stages.names), 3)
    neurons = top_neurons(world.model, world.input_ids, p.create, position, 0, 3)
    assert neurons[0]["share"] > 0.95
    assert neurons[0]["neuron"] in (8, 9, 10)


def test_planted_neurons_are_even_amplifiers(world):
    position, p = next(iter(world.plants.items()))
    inputs = side_inputs(world.model, world.input_ids, p.create, [position, 20, 21, 22])
    mark = torch.zeros(4, 64)
    mark[:, 8] = torch.tensor([3.0, -1.0, -1.0, -1.0])  # one component: the mark of the first trigger
    write = capture(world.model, world.input_ids, [p.create])[p.create]["stream"][position]
    push = push_directions(world.model, mark, write, p.create, components=1)
    assert push.even.all()
    assert (push.cosine > 0.9).all()
    # far below zero the gate shuts: the amplifier is even near zero only
    assert (push.swept_cosine[:, push.scales > 0] > 0.9).all()
    assert inputs.shape == (4, 64)
    with pytest.raises(UnbraidError, match="three inputs or more"):
        push_directions(world.model, mark[:2], write, p.create)


def test_scores_are_those_of_the_dense_maps(world, found):
    world.model.set_attn_implementation("eager")
    maps = world.model(input_ids=world.input_ids, output_attentions=True).attentions
    world.model.set_attn_implementation("sdpa")
    dense = torch.stack([m[0].mean(0) for m in maps])  # [L, Q, K]
    half = dense.shape[1] // 2
    for s in found.sinks_:
        wanted = dense[[x for x in s.readers if x < 12], half:, s.position].mean()
        assert s.score == pytest.approx(float(wanted), abs=1e-5)
    _, scores = measure(world.model, world.input_ids, 2)
    later = scores.stacked(found.sites_, "later").mean(1)
    for t in (3, 17, 40):
        torch.testing.assert_close(
            torch.tensor(later[:, t]), dense[:, t + 1 :, t].mean(1), atol=1e-5, rtol=0, check_dtype=False
        )


def test_chunks_with_a_cache_give_the_profile_of_one_pass(world):
    whole, _ = measure(world.model, world.input_ids, 2, attention=False)
    cache = DynamicCache(config=world.model.config)
    with torch.no_grad(), Watch(world.model, 2) as watch:
        for part in world.input_ids.split(20, dim=1):
            world.model(input_ids=part, past_key_values=cache, use_cache=True)
    chunked = watch.profile()
    np.testing.assert_allclose(chunked.cosine, whole.cosine, atol=2e-4)
    np.testing.assert_allclose(chunked.norm, whole.norm, rtol=1e-3)


def test_left_padding_changes_nothing(world):
    whole, _ = measure(world.model, world.input_ids, 2, attention=False)
    ids = torch.cat([torch.full((1, 5), 7), world.input_ids], 1)
    mask = torch.ones_like(ids)
    mask[:, :5] = 0
    with torch.no_grad(), Watch(world.model, 2, attention_mask=mask) as watch:
        world.model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
    np.testing.assert_allclose(watch.profile().text(0).cosine, whole.cosine, atol=1e-3)


def test_the_monitor_flags_new_tokens_while_decoding(world):
    told = []
    cut = min(world.truth) - 1
    cache = DynamicCache(config=world.model.config)
    with (
        torch.no_grad(),
        Monitor(world.model, least=3, candidates=2, primary_ratio=2.0, on_sink=lambda *x: told.append(x)) as m,
    ):
        if cut < 4:
            cut = 4
        world.model(input_ids=world.input_ids[:, :cut], past_key_values=cache, use_cache=True)
        for t in range(cut, world.input_ids.shape[1]):
            world.model(input_ids=world.input_ids[:, t : t + 1], past_key_values=cache, use_cache=True)
    expected = {t for t in world.truth if t >= cut}
    assert expected <= set(m.flags)
    assert m.protected[0] == 0
    assert {x[0] for x in told} == set(m.flags)


def test_rescaling_meets_its_target_and_leaves_the_model_as_it_was(world):
    position, p = max(world.plants.items(), key=lambda x: x[1].norm)
    before = world.model(input_ids=world.input_ids).logits
    norms = []
    target = blocks(world.model)[p.create].module
    watch = {target: lambda m, a, k, y: norms.append(residual(y)[0, position, 0])}
    with ss.rescale(world.model, p.create, 30.0) as changed, listening(watch):
        world.model(input_ids=world.input_ids)
    assert [t for t, _ in changed] == [position]
    assert changed[0][1] == pytest.approx(p.norm, rel=0.05)
    assert float(norms[0]) == pytest.approx(30, rel=0.05)
    assert torch.equal(world.model(input_ids=world.input_ids).logits, before)


def test_a_norm_after_the_mlp_is_what_counts():
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=64, pad_token_id=0,
    )  # fmt: skip
    model = Gemma3ForCausalLM(config).eval()
    ids = torch.randint(1, 64, (1, 12))
    profile, _ = measure(model, ids, 2, attention=False)
    # of a block's rise along any direction, what the MLP adds is measured after Gemma's norm: rise = attention + mlp
    after_attention = {}
    for b in blocks(model):
        norm = dict(b.norms)["pre_feedforward_layernorm"]
        after_attention[b.index] = (norm, [])
    keep = {n: (lambda m, a, k, store=s: store.append(a[0])) for n, s in after_attention.values()}
    with listening(None, keep), torch.no_grad():
        out = model.model(input_ids=ids, output_hidden_states=True, use_cache=False)
    for layer in (0, 1):
        added = out.hidden_states[layer + 1] - after_attention[layer][1][0]
        np.testing.assert_allclose(profile.write_norm[layer, 0], added.norm(dim=-1)[0].detach(), rtol=1e-4, atol=1e-5)


def test_windows_that_use_more_directions_have_more_entropy(world):
    one, many = torch.ones(1, 10, 8), torch.eye(8)[None].repeat(1, 2, 1)
    assert float(matrix_entropy(one)) == pytest.approx(0, abs=1e-4)
    assert float(matrix_entropy(many)) == pytest.approx(np.log(8), abs=1e-4)
    assert window_entropy(world.model, world.input_ids, 16).shape == (12, 4)
    with pytest.raises(UnbraidError, match="window=100"):
        window_entropy(world.model, world.input_ids)


def test_labels_follow_the_paper_on_deep_models_and_its_shares_on_shallow_ones():
    assert label_bounds(48) == (4, 33)
    assert label_bounds(36) == (4, 21)
    low, high = label_bounds(12)
    assert 0 < low < high < 12


def test_levels_count_with_intervals(found):
    rows = sink_levels(found.sinks_, found.tokens_)
    assert {(r["l_start"], r["lifetime"]) for r in rows} == {(4, 5), (5, 3), (6, 5)}
    assert sum(r["count"] for r in rows) == 3
    assert level_grid(found.sinks_, 12)[4, 4] == pytest.approx(np.log(2))
    assert same_levels(found.sinks_, found.sinks_, (12, 12)) == pytest.approx(1)


def test_weak_and_massive_tests_see_what_was_planted(world, found):
    _, scores = measure(world.model, world.input_ids, 2)
    mean = scores.stacked(found.sites_).mean(1)
    rows = weak_sinks(mean, found.sinks_, Primary(**found.primary_[0]), scores.common)
    assert set(world.truth) <= {r["position"] for r in rows}
    profile, _ = measure(world.model, world.input_ids, 2, attention=False)
    top = massive(profile, least=50, ratio=50)
    assert top[0]["position"] == 0
    assert top[0]["channel"] == 0


def test_controls_are_other_occurrences_of_the_same_tokens():
    ids = torch.tensor([[0, 5, 6, 5, 7, 5, 6, 5]])
    assert same_tokens(ids, [3], [3]) == [5, 7]
    assert same_tokens(ids, [3], [3], limit=1) == [5]


def test_what_is_learned_can_be_saved_and_exported(world, found, tmp_path):
    found.save_pretrained(tmp_path / "system")
    again = unbraid.System.from_pretrained(tmp_path / "system")
    assert again.sinks_ == found.sinks_
    assert again.protected() == [0, *sorted(world.truth)]
    data = json.loads(found.export(tmp_path / "deep" / "sinks.json").read_text(encoding="utf-8"))
    assert data["protect"] == [found.protected()]
    assert len(found.frame()) == 3


def test_bad_input_is_refused_in_one_sentence(world):
    random = LlamaForCausalLM(
        LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, vocab_size=64)
    ).eval()
    create = lambda **k: unbraid.create("secondary_sinks", **k)  # noqa: E731
    with pytest.raises(UnbraidError, match="No first token is a sink"):
        create().fit(random, torch.randint(0, 64, (1, 20)))
    with pytest.raises(UnbraidError, match="threshold is 2"):
        create(threshold=2).fit(random, torch.randint(0, 64, (1, 20)))
    with pytest.raises(UnbraidError, match="4 tokens or more"):
        create().fit(random, torch.zeros(1, 0, dtype=torch.int64))
    with pytest.raises(UnbraidError, match="There is no text"):
        create().fit(random, [])
    with pytest.raises(UnbraidError, match="guard='x'"):
        create(**{**PAPER_SCRIPT, "guard": "x"}).fit(world.model, world.input_ids)
    with pytest.raises(UnbraidError, match="Block 99 does not exist"), ss.rescale(random, 99):
        pass
    with pytest.raises(UnbraidError, match="a norm is 0 or more"), ss.rescale(random, 0, -1.0):
        pass
    with pytest.raises(UnbraidError, match="has seen no token"):
        Watch(random).profile()
    with pytest.raises(UnbraidError, match="common queries must begin"):
        ss.ColumnScores(0)
    with pytest.raises(UnbraidError, match="choose an earlier query"), attach(random, ss.ColumnScores(50)):
        random(input_ids=torch.randint(0, 64, (1, 20)))
    with pytest.raises(UnbraidError, match="do not fit"):
        plant(0, [Plant(4, 9, 1.0)] * 4)
    bert = BertModel(
        BertConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, vocab_size=64)
    )
    with pytest.raises(UnbraidError, match="No first token is a sink"):
        create().fit(bert.eval(), torch.randint(0, 64, (1, 20)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tokens": 3}, "--tokens must be 16"),
        ({"traces": -1}, "--traces must be 0"),
        ({"trace_tokens": 0}, "--trace-tokens"),
        ({"traces": 0, "english": 0}, "nothing to search"),
        ({"text": "no-such-file.txt"}, "is no file"),
        ({"threshold": 0.0}, "--threshold"),
        ({"primary_ratio": 0.0}, "--primary-ratio"),
    ],
)
def test_the_study_refuses_before_it_works(options, words):
    with pytest.raises(UnbraidError, match=words):
        study.run(**options)


def test_own_traces_are_kept_and_read_back(tmp_path):
    from unbraid import zoo

    loaded = zoo.load("smollm2")
    made = ss.own_traces(loaded.model, loaded.tokenizer, 1, 4, keep=tmp_path)
    again = ss.own_traces(None, None, 1, 4, keep=tmp_path)
    assert torch.equal(made[0], again[0])
    with pytest.raises(UnbraidError, match="counts are 1 or more"):
        ss.own_traces(None, None, 0)


def test_a_small_study_on_a_real_model_has_claims_tables_and_a_page(tmp_path):
    text = tmp_path / "note.txt"
    text.write_text("The tower was built in 1904. It has 12 floors, and 3 of them are empty. " * 12, encoding="utf-8")
    result = study.run(text=text, tokens=96, planted=1, causal=1, progress=False)
    assert {c.name for c in result.claims} == {c.name for c in ss.CARD.claims}
    assert result.tables["sources"].rows
    assert "secondary" in result.to_html(tmp_path / "page.html") or (tmp_path / "page.html").is_file()


def test_what_a_norm_after_the_mlp_leaves_is_what_is_compared_with_the_stream():
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=64, pad_token_id=0,
    )  # fmt: skip
    model = Gemma3ForCausalLM(config).eval()
    with torch.no_grad():
        dict(blocks(model)[1].norms)["post_feedforward_layernorm"].weight.normal_()
    ids = torch.randint(1, 64, (1, 12))
    seen = capture(model, ids, [1])[1]
    profile, _ = measure(model, ids, 2, attention=False)
    np.testing.assert_allclose(seen["written"].norm(dim=-1), profile.write_norm[1, 0], rtol=1e-5)
    stages = mlp_stages(model, ids, 1, [5], 0)
    wanted = profile.write_along[1, 0, 0, 5] / profile.write_norm[1, 0, 5]
    assert stages.sinks[-1, 0] == pytest.approx(wanted, abs=1e-5)
