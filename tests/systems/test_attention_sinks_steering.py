"""Redistribution in closed form against the matrix, tuning, registers, and the five probes."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.parity.families import FAMILIES, build, logits_of
from unbraid import HeadScores, HeadSet, attach, taps
from unbraid.core.calls import AttentionCall
from unbraid.core.engine import fused
from unbraid.core.engine.logits import dense
from unbraid.core.errors import UnbraidError
from unbraid.systems.attention_sinks import (
    bias_probe,
    calibrate_sinks,
    find_register_neurons,
    first_tokens,
    geometry,
    head_groups,
    mixing,
    noop_probe,
    outlier_circuit,
    redistribute,
    registers_at_test_time,
    report,
    scale_sinks,
    var_sites,
    visual_redistribution,
    zero_tune,
)


def close(a, b, atol: float = 1e-5) -> None:
    torch.testing.assert_close(a.float(), b.float(), atol=atol, rtol=0)


def a_call(seed: int = 0, causal: bool = True, heads: int = 4, groups: int = 2, n: int = 11, sinks: bool = False):
    g = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, heads, n, 8, generator=g), torch.randn(2, groups, n, 8, generator=g)
    return AttentionCall(
        "site", 0, "self", q, k, torch.randn(2, groups, n, 8, generator=g), causal=causal, scale=0.6,
        sinks=torch.randn(heads, generator=g) if sinks else None,
    )  # fmt: skip


def output(c, p):
    return p @ c.expand(c.value)


def given_weights(c, p):
    """The dense output of weights, in float64."""
    return (p.double() @ c.expand(c.value).double()).float()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.booleans(), st.floats(0.05, 4), st.sets(st.integers(0, 10), min_size=1, max_size=4))
def test_scaling_sinks_is_scaling_their_weights(seed: int, causal: bool, gamma: float, keys: set[int]) -> None:
    c = a_call(seed, causal)
    p = dense(c, torch.float64)
    new = p.clone()
    new[..., sorted(keys)] *= gamma
    new = new / new.sum(-1, keepdim=True)
    tap = scale_sinks(gamma, sorted(keys))
    close(tap.out(c, output(c, p.float())), given_weights(c, new), 1e-4)
    close(tap.out_as_rows(c, p.float(), 0), new)
    # and the same as a bias on their logits: ZeroTuning
    close(taps.bias(sorted(keys), math.log(gamma)).call(c).key_bias[0, 0, min(keys)], torch.tensor(math.log(gamma)))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.booleans(), st.floats(0, 1), st.sampled_from(["proportional", "uniform"]), st.booleans())
def test_redistribution_is_equation_20(seed: int, causal: bool, beta: float, how: str, some: bool) -> None:
    c = a_call(seed, causal)
    p = dense(c, torch.float64)
    sinks, targets = [0, 3], ([1, 2, 5, 6] if some else [1, 2, 4, 5, 6, 7, 8, 9, 10])
    mass = p[..., sinks].sum(-1, keepdim=True)
    new = p.clone()
    new[..., sinks] *= 1 - beta
    seen = (p > 0)[..., targets].double()
    share = seen if how == "uniform" else p[..., targets]
    room = share.sum(-1, keepdim=True)
    new[..., targets] += beta * mass * share / room.clamp(min=1e-9)
    sound = room >= (0.5 if how == "uniform" else 1e-3)
    new = torch.where(sound, new, p)
    tap = redistribute(beta, sinks, targets if some else None, how)
    if beta:
        close(tap.out(c, output(c, p.float())), given_weights(c, new), 1e-4)
        close(tap.out_as_rows(c, p.float(), 0), new, 1e-4)
    close(new.sum(-1), torch.ones_like(new.sum(-1)))


def test_rows_that_look_at_nothing_else_are_left_alone() -> None:
    c = a_call(causal=True)
    c.key[:, :, 0] *= 0
    p = dense(c)
    y = output(c, p)
    out = scale_sinks(0.0).out(c, y)
    close(out[:, :, 0], y[:, :, 0], 0)  # the first query sees the sink only
    assert torch.isfinite(out).all()
    out = redistribute(1.0).out(c, y)
    close(out[:, :, 0], y[:, :, 0], 0)


def test_with_a_sink_logit_rows_keep_their_mass() -> None:
    c = a_call(sinks=True)
    p = dense(c, torch.float64)
    beta, mass = 0.4, p[..., :1]
    rest = p[..., 1:].sum(-1, keepdim=True)
    new = torch.cat([(1 - beta) * mass, p[..., 1:] * (1 + beta * mass / rest.clamp(min=1e-3))], -1)
    new = torch.where(rest >= 1e-3, new, p)
    close(redistribute(beta).out(c, output(c, p.float())), given_weights(c, new), 1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.floats(-20, 5))
def test_softmax_one_and_sink_logits_are_plain_attention_times_a_sigmoid(seed: int, s: float) -> None:
    """o (softmax with one more logit s and no value) = o (softmax) * sigmoid(lse - s)."""
    c = a_call(seed)
    z = (c.query.double() * c.scale) @ c.expand(c.key).double().transpose(-1, -2)
    z = z.masked_fill(torch.ones(11, 11, dtype=torch.bool).triu(1), -torch.inf)
    extra = torch.cat([z, torch.full_like(z[..., :1], s)], -1).softmax(-1)[..., :-1]
    want = extra @ c.expand(c.value).double()
    gate = torch.sigmoid(fused.lse(c) - s)
    close(fused.attend(c, c.value) * gate[..., None], want, 1e-5)


def test_visual_redistribution_is_its_definition() -> None:
    c = a_call(5, n=20)
    p = dense(c, torch.float64)
    visual, sinks = list(range(4, 15)), [0, 6]
    others = [j for j in visual if j not in sinks]
    on_visual, on_sink = p[..., visual].sum(-1), p[..., [6]].sum(-1)
    room = p[..., others].sum(-1)
    central = (on_visual >= 0.2) & (on_sink <= 0.5 * on_visual) & (room >= 1e-3)
    assert 0 < int(central.sum()) < central.numel()
    new = p.clone()
    freed = 0.4 * p[..., sinks].sum(-1)
    new[..., sinks] *= 0.6
    new[..., others] += freed[..., None] * p[..., others] / room.clamp(min=1e-3)[..., None]
    new = torch.where(central[..., None], new, p)
    tap = visual_redistribution(visual, sinks)
    close(tap.out(c, output(c, p.float())), given_weights(c, new), 1e-4)
    assert var_sites([f"layer {i}" for i in range(6)]) == ["layer 2", "layer 3", "layer 4"]


def test_calibration_damps_excessive_keys_of_each_head() -> None:
    c = a_call(2, n=30, causal=False)
    c.key[:, 0, 7] = 16 * c.query[:, :2].mean((1, 2))
    p = dense(c, torch.float64)
    alpha = p.mean(2)
    marks = alpha > 3 / 30
    marks[..., 0] = False
    assert marks.any()
    assert not torch.equal(marks[:, 0], marks[:, 3])
    w = marks[:, :, None].double()
    mass = (p * w).sum(-1, keepdim=True)
    new = p * w * 0.4 + p * (1 - w) * (1 + 0.6 * mass / (1 - mass).clamp(min=1e-3))
    new = torch.where(1 - mass >= 1e-3, new, p)
    tap = calibrate_sinks(excess=3.0, keep=0.4)
    close(tap.out(c, output(c, p.float())), given_weights(c, new), 1e-4)
    assert torch.equal(tap.found["site"], marks)


@pytest.mark.parametrize("name", ["llama-gqa", "llama-right", "bert", "vit", "t5", "gemma2-softcap", "deberta-v2"])
def test_edits_change_models_of_every_kind_and_one_is_the_identity(name: str) -> None:
    family = FAMILIES[name]()
    with torch.no_grad():
        plain = logits_of(family.run())
        rows = slice(None) if family.rows is None else family.rows
        for tap in (scale_sinks(0.3), redistribute(0.5)):
            with attach(family.model, tap):
                changed = logits_of(family.run())
            assert not torch.allclose(changed[rows], plain[rows])
            assert torch.isfinite(changed[rows]).all()
        with attach(family.model, scale_sinks(1.0), redistribute(0.0)):
            close(logits_of(family.run())[rows], plain[rows], 2e-5)


def test_padded_texts_are_scaled_at_their_own_first_token() -> None:
    family = FAMILIES["llama-gqa"]()
    mask = family.inputs["attention_mask"]
    pad = int((mask[0] == 0).sum())
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        with attach(family.model, scale_sinks(0.2, first_tokens(mask))):
            both = family.model(**family.inputs, position_ids=places).logits
        with attach(family.model, scale_sinks(0.2)):
            alone = family.model(input_ids=family.inputs["input_ids"][:1, pad:]).logits
    close(both[0, pad:], alone[0], 1e-4)


def llama(layers: int = 2, vocab: int = 99):
    cfg = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=vocab, max_position_embeddings=256,
    )  # fmt: skip
    return build(transformers.LlamaForCausalLM(cfg))


def text(n: int, batch: int = 1, seed: int = 3) -> torch.Tensor:
    return torch.randint(3, 99, (batch, n), generator=torch.Generator().manual_seed(seed))


def test_tuning_takes_the_best_factor_of_each_group() -> None:
    model, ids = llama(), text(16, 3)
    groups = head_groups(report(model, {"input_ids": ids}).alpha, 2)
    assert sorted(len(g) for g in groups.values()) == [4, 4]
    assert not len(groups["group 1 of 2"] & groups["group 2 of 2"])

    def loss() -> float:
        with torch.no_grad():
            return float(model(input_ids=ids, labels=ids).loss)

    found = zero_tune(model, loss, groups, (0.5, 2.0, 4.0))
    assert len(found.trials) == 1 + 2 * 3
    assert found.loss == min(t["loss"] for t in found.trials) <= found.before
    with attach(model, *found.taps()):
        assert loss() == pytest.approx(found.loss, abs=1e-5)
    per_head = HeadScores({s: [1.0, 0.5, 2.0, 1.0] for s in report(model, {"input_ids": ids}).alpha.sites})
    with attach(model, scale_sinks(per_head)):
        a = loss()
    with attach(
        model, *[scale_sinks(g, heads=HeadSet((s, h) for s in per_head.sites)) for h, g in ((1, 0.5), (2, 2.0))]
    ):
        assert loss() == pytest.approx(a, abs=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: redistribute(1.5), "beta is 1.5"),
        (lambda: redistribute(0.5, how="evenly"), "choose 'proportional'"),
        (lambda: visual_redistribution([1], [0], keep=2), "keep is 2"),
        (lambda: calibrate_sinks(excess=0), "excess is 0"),
        (lambda: zero_tune(llama(), lambda: 0.0, {}), "at least one group"),
        (lambda: zero_tune(llama(), lambda: 0.0, {"a": HeadSet()}, (-1.0,)), "factors of 0 or more"),
        (lambda: head_groups(HeadScores({"a": [0.1]}), 2), "there are 1 heads"),
        (lambda: scale_sinks(-1.0).out(a_call(), torch.zeros(2, 4, 11, 8)), "0 or more"),
        (lambda: scale_sinks(0.5, [40]).out(a_call(), torch.zeros(2, 4, 11, 8)), "Key 40 does not exist"),
        (lambda: scale_sinks({"site": torch.ones(3)}).out(a_call(), torch.zeros(2, 4, 11, 8)), "3 numbers"),
        (lambda: first_tokens(torch.zeros(1, 3)), "no token"),
        (lambda: find_register_neurons(llama(), []), "list is empty"),
        (lambda: find_register_neurons(llama(), [{"input_ids": text(5)}], layer=9), "blocks 0 to 1"),
        (lambda: find_register_neurons(llama(), [{"input_ids": text(5)}], threshold=1e9), "no token of block"),
        (lambda: mixing(llama(), text(8), None), "no BOS"),
        (lambda: mixing(llama(), text(3), 1), "at least 4 tokens"),
        (lambda: noop_probe(llama(), {"input_ids": text(3)}), "start is 4"),
        (lambda: noop_probe(llama(), {"input_ids": text(9)}, start=0), "at least 1"),
        (lambda: noop_probe(FAMILIES["vit"]().model, FAMILIES["vit"]().inputs), "texts \\(input_ids\\)"),
        (lambda: noop_probe(FAMILIES["bert"]().model, FAMILIES["bert"]().inputs), "predicts no next token"),
        (lambda: outlier_circuit(llama(), {"input_ids": text(9)}), "no massive activation"),
    ],
)
def test_what_is_refused(call, message: str) -> None:
    with pytest.raises(UnbraidError, match=message):
        call()


def vit():
    cfg = transformers.ViTConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=16, patch_size=4
    )
    return build(transformers.ViTModel(cfg))


def clip():
    cfg = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=16, patch_size=4
    )
    return build(transformers.CLIPVisionModel(cfg))


def plant(model: nn.Module, down: nn.Linear, up: nn.Linear, neuron: int) -> None:
    """One neuron that fires at some tokens and writes a large channel."""
    with torch.no_grad():
        up.weight[neuron] *= 20
        down.weight[:, neuron] = 0
        down.weight[5, neuron] = 60.0


@pytest.mark.parametrize("make", [vit, clip])
def test_register_neurons_are_found_and_moved(make) -> None:
    model = make()
    images = {"pixel_values": torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
    from unbraid.core.blocks import blocks

    stack = blocks(model)
    ups = [m for m in stack[1].module.modules() if isinstance(m, nn.Linear) and m.out_features == 48]
    plant(model, stack[1].down, ups[0], 11)
    found = find_register_neurons(model, [images], threshold=None, top=3)
    assert found.neurons[0][:2] == (1, 11)
    assert found.outliers > 0
    norms = {}

    def watch(module, args, kwargs, out):
        h = out[0] if isinstance(out, tuple) else out
        norms["all"] = h.norm(dim=-1)

    from unbraid.core.blocks import listening

    with torch.no_grad():
        plain = model(**images).last_hidden_state
        with listening({stack[1].module: watch}):
            model(**images)
        before = norms["all"]
        with registers_at_test_time(model, found), listening({stack[1].module: watch}):
            moved = model(**images).last_hidden_state
        after = norms["all"]
        assert torch.equal(model(**images).last_hidden_state, plain)
    assert moved.shape == plain.shape
    assert after.shape[1] == before.shape[1] + 1
    assert float(after[:, :-1].max()) < 0.5 * float(before.max())
    assert float(after[:, -1].min()) > 0.5 * float(before.max(1).values.min())
    close(after[:, -1].max(), before.max(), 0.2 * float(before.max()))


def test_registers_of_a_decoder_stand_in_front_and_tell_no_future() -> None:
    model, ids = llama(3), text(12, 2)
    plant(model, model.model.layers[0].mlp.down_proj, model.model.layers[0].mlp.up_proj, 7)
    found = find_register_neurons(model, [{"input_ids": ids}], layer=0, threshold=300.0, top=1)
    assert found.neurons[0][:2] == (0, 7)
    changed = ids.clone()
    changed[:, 8:] = 5
    with torch.no_grad(), registers_at_test_time(model, found):
        a, b = model(input_ids=ids).logits, model(input_ids=changed).logits
        assert a.shape == (2, 12, 99)
        close(a[:, :8], b[:, :8], 1e-5)
        mask = torch.ones_like(ids)
        close(model(input_ids=ids, attention_mask=mask).logits, a, 1e-5)
        from transformers import DynamicCache

        cache = DynamicCache(config=model.config)
        cache.update(torch.zeros(2, 2, 1, 16), torch.zeros(2, 2, 1, 16), 0)
        with pytest.raises(UnbraidError, match="not for steps with a cache"):
            model(input_ids=ids, past_key_values=cache)


def test_a_bias_is_made_good_by_its_mean_and_a_no_op_costs_nothing() -> None:
    model, ids, other = llama(), text(20, 4), text(20, 4, seed=9)
    with torch.no_grad():
        rows = noop_probe(model, {"input_ids": ids})
        with attach(model, scale_sinks(0.0)):
            want = float(model(input_ids=ids, labels=ids).loss)
        with attach(model, scale_sinks(0.0, start=4)):
            late = float(model(input_ids=ids, labels=ids).loss)
            early = model(input_ids=ids).logits[:, :4]
        close(early, model(input_ids=ids).logits[:, :4])
    assert rows[0]["condition"] == "as it is"
    assert rows[4]["loss"] == pytest.approx(want, abs=1e-4)
    assert rows[3]["loss"] == pytest.approx(late, abs=1e-4)
    assert late != pytest.approx(want, abs=1e-4)
    assert len(rows[0]["losses"]) == 4
    quiet = llama()
    with torch.no_grad():  # a first token with no value is a no-op by construction
        for layer in quiet.model.layers:
            layer.self_attn.v_proj.weight.zero_()
    silent = noop_probe(quiet, {"input_ids": ids})
    assert silent[1]["loss"] == pytest.approx(silent[0]["loss"], abs=1e-6)
    rows = bias_probe(model, {"input_ids": ids}, {"input_ids": other})
    assert len(rows) == 4
    # where attention is equal to all keys, the sink's write is nearly the same at neighbouring queries
    even = llama()
    with torch.no_grad():
        for layer in even.model.layers:
            layer.self_attn.q_proj.weight.zero_()
    flat = {"input_ids": text(30, 1).repeat(2, 1)}
    again = [r["loss"] for r in bias_probe(even, flat, flat, start=24)]
    assert abs(again[2] - again[0]) < 0.3 * abs(again[1] - again[0]) < 0.3 * abs(again[3] - again[0])
    padded = torch.cat([torch.full((4, 3), 5), ids], 1)
    mask = torch.ones_like(padded)
    mask[:, :3] = 0
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    more = noop_probe(model, {"input_ids": padded, "attention_mask": mask, "position_ids": places}, first_tokens(mask))
    plain = noop_probe(model, {"input_ids": ids})
    for a, b in zip(more, plain, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-3)


def test_the_circuit_of_a_planted_massive_activation() -> None:
    model, ids = llama(3), text(16, 2)
    ids[:, 0] = 1
    mlp = model.model.layers[0].mlp
    with torch.no_grad():
        mlp.down_proj.weight[:, 9] = 0
        mlp.down_proj.weight[40, 9] = 30.0
    found = report(model, {"input_ids": ids}, floor=5, ratio=5)
    circuit = outlier_circuit(model, {"input_ids": ids}, found, controls=3)
    assert circuit.channel == 40
    assert circuit.block == 0
    assert circuit.neurons[0][0] == 9
    assert abs(circuit.neurons[0][2]) > 0.5
    assert [r["condition"] for r in circuit.zeroed][:2] == ["as it is", "channel 40 zeroed"]
    assert len(circuit.zeroed) == 5
    assert circuit.zeroed[1]["loss"] != circuit.zeroed[0]["loss"]
    assert set(circuit.alignment.sites) == {f"model.layers.{i}.self_attn" for i in range(3)}


def test_angles_and_mixing() -> None:
    model, ids = llama(3), text(14, 3)
    rows = geometry(model, {"input_ids": ids})
    with torch.no_grad():
        h = model.model.layers[1].input_layernorm(model(input_ids=ids, output_hidden_states=True).hidden_states[1])
    cosine = torch.nn.functional.cosine_similarity(h[:, 1:], h[:, :1], dim=-1)
    assert rows[0]["cosine with the sink"] == pytest.approx(float(cosine.mean()), abs=1e-4)
    assert rows[0]["orthogonality"] == pytest.approx(float((1 - cosine.abs()).mean()), abs=1e-4)
    spread = mixing(model, ids, 1)
    assert len(spread) == 3
    assert all(r["with BOS"] > 0 and r["without BOS"] > 0 for r in spread)
    assert mixing(model, ids, 1) == spread
