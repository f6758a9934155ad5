"""Each variant against its equation written as loops, in models with padding, placement, files and wrong inputs."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from unbraid.core.errors import UnbraidError
from unbraid.systems.deconstructing_attention import (
    deconstruct,
    indicators,
    load,
    logits,
    maps,
    place,
    pooled,
    restore,
    run,
    skip,
    taylor,
    variants_of,
)
from unbraid.systems.deconstructing_attention.placement import VARIANTS
from unbraid.systems.deconstructing_attention.report import greatest, make_result

SIZE = {
    "vocab_size": 50, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 12, "eos_token_id": None,
}  # fmt: skip
CHANGED = VARIANTS[1:]


def model(kind=LlamaForCausalLM, config=LlamaConfig, **more):
    torch.manual_seed(0)
    made = kind(config(**{**SIZE, **more})).eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "proj" in name or "embed" in name:
                weight.mul_(8)  # maps that are far from uniform
    return made


def ids(rows=3, length=12, seed=1):
    return torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(seed))


def swapped(variant, placement="hybrid", **more):
    return deconstruct(model(**more), place(variant, placement, 4), tokens=torch.arange(40))


def draws(*shape, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float32) * scale


@pytest.mark.parametrize("block", [1, 3, 16])
@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("carry", [True, False])
def test_the_polynomial_is_its_double_sum(block, joint, carry):
    q, k, v = draws(3, 2, 2, 11, 4).unbind(0)
    ours = taylor(q, k, v, joint=joint, block=block, carry=carry)
    for i in range(11):
        u = torch.stack([(q[:, :, i] * k[:, :, j]).sum(-1) / 2 for j in range(i + 1)], -1)
        powers = [1 + u + u * u / 2] if joint else [torch.ones_like(u), u, u * u]
        want = sum(
            (w[..., None] * v[:, :, : i + 1]).sum(-2) / w.sum(-1, keepdim=True)
            for w in map(torch.Tensor.double, powers)
        )
        torch.testing.assert_close(ours[:, :, i].double(), want, rtol=2e-3 if not joint else 1e-4, atol=1e-4)


@pytest.mark.parametrize("block", [1, 3, 16])
@pytest.mark.parametrize("scale", [1.0, 3000.0])
def test_pooling_is_a_softmax_of_scores_so_far_however_great(block, scale):
    s, v = draws(2, 2, 11, scale=scale), draws(2, 2, 11, 5)
    ours = pooled(s, v, block=block)
    for i in range(11):
        want = (s[:, :, : i + 1].double().softmax(-1)[..., None] * v[:, :, : i + 1]).sum(-2)
        torch.testing.assert_close(ours[:, :, i].double(), want, rtol=1e-4, atol=1e-5)


def test_gradients_of_both_forms_are_those_of_the_sums():
    s, v = draws(1, 2, 9).double().requires_grad_(), draws(1, 2, 9, 3).double().requires_grad_()
    grown = s[:, :, None].expand(-1, -1, 9, -1).masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
    want = torch.autograd.grad((grown.softmax(-1) @ v).square().sum(), (s, v))
    ours = torch.autograd.grad(pooled(s, v, block=4).square().sum(), (s, v))
    torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-5)
    q, k = (draws(2, 1, 2, 9, 4)[n].clone().requires_grad_() for n in (0, 1))
    u = q @ k.transpose(-1, -2) / 2
    w = (1 + u + u * u / 2).tril()
    want = torch.autograd.grad(((w / w.sum(-1, keepdim=True)) @ v.float()).square().sum(), (q, k))
    for carry in (True, False):
        ours = torch.autograd.grad(taylor(q, k, v.float(), block=4, carry=carry).square().sum(), (q, k))
        torch.testing.assert_close(ours, want, rtol=1e-3, atol=1e-4)


def rotated(x, places, base=10000.0):
    """Rotary positions by complex numbers: pairs (i, i + D/2)."""
    half = x.shape[-1] // 2
    angle = places[:, None] / base ** (torch.arange(half) * 2 / x.shape[-1])
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], -1)


@pytest.mark.parametrize("variant", [v for v in CHANGED if v != "mlp"])
def test_a_layer_is_its_equation(variant):
    net, x = swapped(variant, "uniform", num_hidden_layers=4), ids(2)
    layer, seen = net.model.layers[1], {}
    layer.self_attn.register_forward_pre_hook(lambda m, a, k: seen.update(h=k["hidden_states"]), with_kwargs=True)
    layer.self_attn.register_forward_hook(lambda m, a, o: seen.update(o=o[0]))
    with torch.no_grad():
        net(input_ids=x)
        h, own, n = seen["h"], layer.self_attn, 12
        source = h
        if variant == "static":
            source = layer.input_layernorm(net.model.embed_tokens(x))
        if variant in ("random", "sequence"):
            assert len(h) == 3  # the stream runs beside two texts
            source = h[2:].expand(3, -1, -1)
        q, k, v = (p(s).unflatten(-1, (-1, 12)).transpose(1, 2) for p, s in
                   ((own.q_proj, source), (own.k_proj, source), (own.v_proj, h)))  # fmt: skip
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        if variant == "non_approximate":
            u = (torch.nn.functional.silu(q) * k).sum(-1)[:, :, None].expand(-1, -1, n, -1) / 12**0.5
        else:
            u = rotated(q, torch.arange(n)) @ rotated(k, torch.arange(n)).transpose(-1, -2) / 12**0.5
        w = 1 + u + u**2 / 2 if variant == "approximate" else (u - u.amax(-1, True)).exp()
        w = w.tril()
        want = own.o_proj(((w / w.sum(-1, keepdim=True)) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(seen["o"], want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))
    assert logits(net, x, block=5)[1] == pytest.approx(float(u.tril().abs().max()), rel=1e-4)


def test_without_mixing_a_token_says_nothing_to_the_next():
    net, a = swapped("mlp", "uniform"), ids(1)
    b = a.clone()
    b[0, 3] = (b[0, 3] + 1) % 50
    with torch.no_grad():
        apart = (net(input_ids=a).logits - net(input_ids=b).logits).abs().amax((0, 2)) > 0
    assert apart.tolist() == [i == 3 for i in range(12)]


@pytest.mark.parametrize("variant", CHANGED)
def test_causal_padded_generated_saved_and_taken_out(variant, tmp_path):
    net, x = swapped(variant), ids()
    plain = model()(input_ids=x).logits
    whole = net(input_ids=x).logits
    assert (whole - plain).abs().max() > 1e-2
    assert whole.isfinite().all()
    with torch.no_grad():
        torch.testing.assert_close(net(input_ids=x[:, :7]).logits, whole[:, :7], rtol=1e-3, atol=1e-3)
        padded = torch.cat([torch.zeros(3, 5, dtype=torch.long), x], 1)
        mask = torch.ones_like(padded)
        mask[:, :5] = 0
        places = (mask.cumsum(1) - 1).clamp(min=0)
        left = net(input_ids=padded, attention_mask=mask, position_ids=places).logits[:, 5:]
        torch.testing.assert_close(left, whole, rtol=1e-3, atol=1e-3)
    more = net.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=3, do_sample=False)
    for end in (12, 13, 14):
        torch.testing.assert_close(net(input_ids=more[:, :end]).logits[:, -1].argmax(-1), more[:, end])
    net.save_pretrained(tmp_path)
    torch.testing.assert_close(load(tmp_path)(input_ids=x).logits, whole)
    torch.testing.assert_close(copy.deepcopy(net)(input_ids=x).logits, whole)
    with pytest.raises(UnbraidError, match="use_cache=False"):
        net(input_ids=x, use_cache=True)
    torch.testing.assert_close(restore(net)(input_ids=x).logits, plain)
    assert variants_of(net) == ["standard"] * 4
    assert net.config.use_cache


@pytest.mark.parametrize(("kind", "config"), [(Qwen2ForCausalLM, Qwen2Config), (Qwen3ForCausalLM, Qwen3Config)])
@pytest.mark.parametrize("variant", CHANGED)
def test_other_families_and_equal_weights(kind, config, variant):
    net = model(kind, config, use_sliding_window=False)
    before = sum(p.numel() for p in net.parameters())
    deconstruct(net, place(variant, "uniform", 4), tokens=torch.arange(40))
    after = sum(p.numel() for p in net.parameters())
    assert abs(after - before) <= 4 * 3 * 48 / 2 if variant == "mlp" else after == before
    net.train()
    net.gradient_checkpointing_enable()
    net(input_ids=ids(), use_cache=False).logits.square().mean().backward()
    lacking = [n for n, p in net.named_parameters() if p.grad is None]
    assert not lacking


class Largest(TorchDispatchMode):
    """Most elements of any tensor that an operation makes."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor):
                self.most = max(self.most, x.numel())
        return out


@pytest.mark.parametrize("form", ["carried", "pairs", "pooled"])
def test_no_tensor_grows_with_the_square_of_length_forth_or_back(form):
    found = []
    for n in (1024, 2048):
        q, v = draws(1, 1, n, 4).requires_grad_(), draws(1, 1, n, 4)
        with Largest() as seen:
            out = (
                pooled(q[..., 0], v, block=32) if form == "pooled" else taylor(q, q, v, block=32, carry=form[0] == "c")
            )
            out.sum().backward()
        found.append(seen.most)
    assert found[1] <= 2 * found[0]
    assert found[1] <= 2048 * 2048 / 64


@pytest.mark.parametrize("carry", [True, False])
def test_what_the_polynomial_keeps_for_the_way_back_grows_with_length_alone(carry):
    kept = []
    for n in (512, 1024):
        q, seen = draws(1, 1, n, 4).requires_grad_(), {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, seen=seen: seen.update({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()}) or x,
            lambda x: x,
        ):
            out = taylor(q, q, q, block=32, carry=carry)
        kept.append(sum(seen.values()))
        out.sum().backward()
    assert kept[1] <= 2.2 * kept[0]


def test_a_model_of_pools_makes_no_matrix_either():
    for variant in ("mlp", "approximate", "non_approximate", "static", "random"):
        net = deconstruct(model(max_position_embeddings=1024), place(variant, "uniform", 4))
        with Largest() as seen, torch.no_grad():
            net(input_ids=ids(1, 1024), logits_to_keep=1)
            assert len(logits(net, ids(1, 1024), block=32)) == 4
        assert seen.most < 1024 * 1024, variant


def test_placements_are_those_of_the_paper():
    kept = {p: [i + 1 for i, v in enumerate(place("mlp", p, 24)) if v == "standard"] for p in
            ("even", "odd", "top", "middle", "bottom", "quarter", "first", "last", "bilateral", "uniform")}  # fmt: skip
    assert kept["even"] == list(range(2, 25, 2))
    assert kept["odd"] == list(range(1, 24, 2))
    assert kept["top"] == list(range(1, 13))
    assert kept["bottom"] == list(range(13, 25))
    assert kept["middle"] == [*range(1, 7), *range(19, 25)]
    assert kept["quarter"] == [4, 8, 12, 16, 20, 24]
    assert (kept["first"], kept["last"], kept["bilateral"], kept["uniform"]) == ([1], [24], [1, 24], [])


def test_skipping_leaves_the_standard_layers_alone():
    net, x = swapped("random"), ids()
    whole = model()
    whole.model.layers = torch.nn.ModuleList([whole.model.layers[i] for i in (1, 3)])
    for number, layer in enumerate(whole.model.layers):
        layer.self_attn.layer_idx = number
    whole.config.num_hidden_layers = 2
    left = skip(net)
    torch.testing.assert_close(left(input_ids=x).logits, whole(input_ids=x).logits)
    assert left.generate(x, max_new_tokens=2, pad_token_id=0, use_cache=True).shape == (3, 14)


def test_indicators_of_maps_that_can_be_summed_by_hand():
    n = 10
    uniform = (torch.ones(n, n).tril() / torch.arange(1, n + 1)[:, None]).expand(3, n, n)
    found = indicators(uniform)
    harmonic = sum(1 / i for i in range(1, n + 1))
    assert found["sink"] == pytest.approx(harmonic / n)
    assert found["diversity"] == pytest.approx(0, abs=1e-9)
    assert found["focus_2"] == pytest.approx(sum(1 / i for i in range(3, n + 1)) / (n - 2))
    same = indicators(torch.eye(n)[None])
    assert (same["focus_0"], same["entropy"]) == (1, 0)
    assert same["concentration"] == pytest.approx(n**0.5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_maps_are_causal_and_sum_to_one(variant):
    net = swapped(variant)
    plain = model(attn_implementation="eager")(input_ids=ids(1), output_attentions=True).attentions
    for number, a in enumerate(maps(net, ids(1))):
        torch.testing.assert_close(a.sum(-1), torch.ones(a.shape[:2]), rtol=1e-4, atol=1e-4)
        assert float(a.triu(1).abs().max()) == 0
        if variant == "standard":
            torch.testing.assert_close(a, plain[number][0], rtol=1e-3, atol=1e-4)


def test_the_study_runs_resumes_and_reports(tmp_path):
    given = {"size": "tiny", "seeds": 2, "keep": tmp_path, "progress": False, "variants": ["standard", "mlp", "random"],
             "parts": ["losses"]}  # fmt: skip
    first = run(**given)
    again = run(**given)
    assert again.meta["pieces_read_back"] == 10
    assert again.tables["losses"] == first.tables["losses"]
    held = {c.name: c.holds for c in first.claims}
    assert held["form"] is None
    assert held["mixing"] is not None
    assert held["logits"] is None
    great = {(r["variant"], r["placement"], r["layer"]): r["greatest logit"] for r in first.tables["logits"].records}
    assert great["mlp", "hybrid", 1] is None
    assert great["mlp", "hybrid", 2] > 0
    assert "<html" in first.to_html()


def test_logits_out_of_bounds_are_counted_in_layers_with_the_variant_alone():
    def trained(placement, seed, *each):
        return {"variant": "non_approximate", "placement": placement, "seed": seed, "logits": each}

    wide = [trained("uniform", n, 5.0, 2_000.0) for n in (0, 1)]
    bound = [trained("hybrid", n, 5.0, 50.0) for n in (0, 1)]
    assert greatest(wide + bound) == {
        ("non_approximate", "uniform"): [2_000.0] * 2, ("non_approximate", "hybrid"): [5.0] * 2
    }  # fmt: skip
    assert greatest([{**wide[0], "variant": "mlp", "logits": [None, None]}]) == {("mlp", "uniform"): [None]}
    more = {"loss": 3.0, "losses": [3.0], "skipped": None, "weights": 1, "steps": [1]}
    given = {"base": "llama", "seed": 0}
    page = make_result([{**r, **more} for r in wide + bound], [], [], [], given, 0.0, 0)
    claim = next(c for c in page.claims if c.name == "logits")
    assert claim.holds
    assert claim.measured == pytest.approx(0.30103)  # uniform at 2,000, hybrid at 5: both twice as far as need be
    assert any("Logits beyond 1,000 in non_approximate, uniform" in note for note in page.notes)


def test_the_study_has_a_base_that_norms_queries_and_keys():
    given = {"size": "tiny", "seeds": 1, "progress": False, "variants": ["non_approximate"], "placements": ["uniform"],
             "parts": ["losses"]}  # fmt: skip
    plain, normed = (run(base=base, **given).tables["losses"].records[0] for base in ("llama", "qwen3"))
    assert normed["weights"] - plain["weights"] == 2 * 2 * 12  # two layers, queries and keys, of 12 numbers a head
    assert normed["loss"] != plain["loss"]


WRONG = [
    (lambda: place("flash", "hybrid", 4), "variant"), (lambda: place("mlp", "sideways", 4), "placement"),
    (lambda: place("mlp", "hybrid", 1), "one kind"), (lambda: place("mlp", "hybrid", 0), "at least 1"),
    (lambda: deconstruct(model(), ["mlp"]), "4 layers"), (lambda: deconstruct(model(), "mlp"), "list"),
    (lambda: deconstruct(torch.nn.Linear(2, 2), []), "llama"),
    (lambda: deconstruct(model(), ["sequence"] * 4), "tokens="),
    (lambda: deconstruct(model(), ["sequence"] * 4, tokens=torch.arange(60)), "50"),
    (lambda: deconstruct(swapped("mlp"), ["mlp"] * 4), "already"), (lambda: restore(model()), "not deconstructed"),
    (lambda: skip(swapped("mlp", "uniform")), "hybrid"), (lambda: load("nowhere"), "config.json"),
    (lambda: swapped("sequence")(input_ids=ids(1, 41)), "longer"), (lambda: maps(model(), ids(2)), "one text"),
    (lambda: swapped("random")(input_ids=ids(1), position_ids=torch.arange(5, 17)[None]), "position_ids"),
    (lambda: swapped("random")(input_ids=ids(1), attention_mask=torch.ones(1, 1, 12, 12)), "attention_mask"),
    (lambda: taylor(draws(1, 1, 3, 2), draws(1, 1, 4, 2), draws(1, 1, 3, 2)), "do not fit"),
    (lambda: pooled(draws(1, 1, 3), draws(1, 1, 3, 2), block=0), "block"), (lambda: indicators(torch.eye(3)), "heads"),
    (lambda: logits(torch.nn.Linear(2, 2), ids(1)), "llama"), (lambda: logits(model(), ids(1)[0]), "texts, tokens"),
    (lambda: logits(model(), ids(1), block=0), "block"),
    (lambda: run(parts=["search"], variants=["standard"]), "take its place"),
    (lambda: run(variants=["flash"]), "variants"), (lambda: run(seeds=0), "seeds"),
    (lambda: run(size="paper"), "15 billion"),
    (lambda: run(parts=["all"]), "parts"),
    (lambda: run(parts=["abilities"], variants=["sequence"]), "prediction"),
    (lambda: run(base="gpt2"), "qwen3"), (lambda: run(lr=-1.0), "positive"), (lambda: run(placements=[]), "placements"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "said"), WRONG)
def test_wrong_inputs_get_a_sentence(wrong, said):
    with pytest.raises(UnbraidError, match=said):
        wrong()
