"""Variants of attention: exact against brute force with gradients, drop-in, saved, lossless; the toy's truth."""

import math

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from unbraid.core.errors import UnbraidError
from unbraid.core.train import fit_loop
from unbraid.systems.attention_sinks.training import lm, toy
from unbraid.systems.attention_sinks.training.compare import compare, summary
from unbraid.systems.attention_sinks.variants import base, losses
from unbraid.systems.attention_sinks.variants.base import Sizes
from unbraid.systems.attention_sinks.variants.catalogue import LOSSLESS, VARIANTS, describe_variants, make_variant
from unbraid.systems.attention_sinks.variants.convert import convert, load_converted, recording

B, H, G, T, D = 2, 4, 2, 7, 6
N = H * D
SIZES = Sizes(H, G, D, N)


def scalar(name, variant, z, q, b, h, i, seen, scale):
    """Weights of one row by the formula of the sheet, one key at a time."""
    e = {j: math.exp(z[j]) for j in seen}
    total = sum(e.values())
    if name in ("softmax", "quantizable_gate", "output_gate", "value_gate", "scaling_factor"):
        return {j: e[j] / total for j in seen}
    if name == "clipped":
        gamma = max(-1.0, -12.0 / len(seen))
        return {j: min(1.0, max(0.0, (1 - gamma) * e[j] / total + gamma)) for j in seen}
    if name == "softmax1":
        return {j: e[j] / (1 + total) for j in seen}
    if name == "sink_logit":
        return {j: e[j] / (math.exp(float(variant.sink[h])) + total) for j in seen}
    if name in ("key_bias", "kv_bias"):
        extra = math.exp(scale * float(q[b, h, i] @ variant.key[h]))
        return {j: e[j] / (extra + total) for j in seen} | {"extra": extra / (extra + total)}
    if name == "softpick":
        bottom = sum(abs(x - 1) for x in e.values()) + 1e-8
        return {j: max(0.0, e[j] - 1) / bottom for j in seen}
    if name == "elastic":
        f = {j: math.exp(z[j] / 2.0) for j in seen}
        return {j: f[j] / sum(f.values()) for j in seen}
    if name == "sigmoid":
        return {j: 1 / (1 + math.exp(-(z[j] - math.log(len(seen))))) for j in seen}
    assert name == "relu"
    return {j: max(0.0, z[j]) for j in seen}


def brute(name, variant, q, k, v, x, visible, scale):
    """Loops over batch, head, query and key."""
    out = torch.zeros(B, H, q.shape[2], D, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            g = h // (H // G)
            values = v[b, g].clone()
            if name == "value_gate":
                values = torch.sigmoid(values @ variant.weight[h] + variant.bias[h]) * values
            for i in range(q.shape[2]):
                seen = [j for j in range(k.shape[2]) if visible[b, i, j]]
                if not seen:
                    continue
                z = {j: scale * float(q[b, h, i] @ k[b, g, j]) for j in seen}
                w = scalar(name, variant, z, q, b, h, i, seen, scale)
                row = sum(w[j] * values[j] for j in seen)
                if name == "kv_bias":
                    row = row + w["extra"] * variant.value[h]
                if name == "quantizable_gate":
                    part = x[b, i, h * D : (h + 1) * D]
                    row = row * torch.sigmoid(part @ variant.weight[h] + variant.bias[h])
                if name == "output_gate":
                    row = row * torch.sigmoid(x[b, i] @ variant.gate.weight[h * D : (h + 1) * D].T)
                if name == "scaling_factor":
                    row = row * (x[b, i] @ variant.weight[h] + variant.bias[h])
                out[b, h, i] = row
    return out


def tensors(seed=0):
    g = torch.Generator().manual_seed(seed)
    make = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    return make(B, H, T, D), make(B, G, T, D), make(B, G, T, D), make(B, T, N)


def made(name, seed=1):
    torch.manual_seed(seed)
    variant = make_variant(name, SIZES).double()
    with torch.no_grad():
        for p in variant.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return variant


def masks(kind):
    causal = torch.ones(T, T).tril().bool()
    if kind == "causal":
        return None, causal.expand(B, T, T)
    padded = causal.expand(B, T, T).clone()
    padded[1, :, :2] = False  # the second text has two tokens of padding on the left; its first rows see nothing
    if kind == "bool":
        return padded[:, None], padded
    return torch.zeros(B, 1, T, T, dtype=torch.float64).masked_fill(
        ~padded[:, None], torch.finfo(torch.float64).min
    ), padded


@pytest.mark.parametrize("kind", ["causal", "bool", "float"])
@pytest.mark.parametrize("name", VARIANTS)
def test_outputs_are_those_of_the_formula(name, kind):
    q, k, v, x = tensors()
    variant = made(name)
    variant.source = x
    mask, visible = masks(kind)
    with torch.no_grad():
        ours = variant(q, k, v, mask, 0.4)
        wanted = brute(name, variant, q, k, v, x, visible, 0.4)
    rows = visible.any(-1)  # what becomes of rows that see nothing is nobody's business but NaN's
    torch.testing.assert_close(ours.transpose(1, 2)[rows], wanted.transpose(1, 2)[rows], atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_are_right_in_all_inputs_and_parameters(name):
    q, k, v, x = (
        t[:, :, :4].clone().requires_grad_() if t.dim() == 4 else t[:, :4].clone().requires_grad_() for t in tensors(3)
    )
    variant = made(name)
    parameters = [p for p in variant.parameters() if p.requires_grad]

    def run(q, k, v, x, *_):
        variant.source = x
        return variant(q, k, v, None, 0.4)

    assert torch.autograd.gradcheck(run, (q, k, v, x, *parameters), atol=1e-6)


@pytest.mark.parametrize("name", ["softpick", "sigmoid", "clipped"])
def test_blocks_and_recomputation_change_nothing(name, monkeypatch):
    q, k, v, _ = tensors()
    variant = made(name)
    whole = variant(q, k, v, None, 0.4)
    leaf = q.clone().requires_grad_()
    variant(leaf, k, v, None, 0.4).square().sum().backward()
    monkeypatch.setattr(base, "BLOCK", 3)
    monkeypatch.setattr(base, "CHECKPOINT_FROM", 1)
    torch.testing.assert_close(variant(q, k, v, None, 0.4), whole)
    again = q.clone().requires_grad_()
    variant(again, k, v, None, 0.4).square().sum().backward()
    torch.testing.assert_close(again.grad, leaf.grad)


def test_sink_logits_are_plain_attention_times_a_sigmoid_of_the_lse():
    q, k, v, _ = tensors()
    variant = made("sink_logit")
    plain = made("softmax")(q, k, v, None, 0.4)
    z, visible = base.logits(q, k.repeat_interleave(2, 1), None, 0.4, 0, T)
    lse = z.masked_fill(~visible, -torch.inf).logsumexp(-1)
    torch.testing.assert_close(
        variant(q, k, v, None, 0.4),
        plain * torch.sigmoid(lse - variant.sink[:, None])[..., None],
        atol=1e-12,
        rtol=1e-10,
    )


def llama(**changes):
    torch.manual_seed(0)
    size = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 64,
    }
    return LlamaForCausalLM(LlamaConfig(**{**size, "num_key_value_heads": 2, "pad_token_id": 0, **changes})).eval()


OTHERS = {
    "llama": llama,
    "qwen3": lambda: Qwen3ForCausalLM(
        Qwen3Config(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, head_dim=8, vocab_size=64)
    ).eval(),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64)).eval(),
}  # fmt: skip


@pytest.mark.parametrize("family", OTHERS)
@pytest.mark.parametrize("name", LOSSLESS)
def test_a_lossless_start_changes_no_output(name, family):
    model = OTHERS[family]()
    ids = torch.randint(1, 64, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    with torch.no_grad():
        before = model(input_ids=ids, attention_mask=mask).logits
        after = convert(model, name, lossless=True)(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(after[mask.bool()], before[mask.bool()], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [*VARIANTS, "registers"])
def test_it_trains_saves_loads_and_generates_with_a_cache(name, tmp_path):
    model = convert(llama(), name)
    ids = torch.randint(1, 64, (4, 12), generator=torch.Generator().manual_seed(0))
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    history = fit_loop(model, lm.next_token, lambda *_: ids, steps=12, lr=1e-2, progress=False)
    assert history.losses[-1] < history.losses[0]
    now = {n: p for n, p in model.named_parameters() if "variant" in n or "registers" in n}
    assert all(not torch.equal(p, start[n]) for n, p in now.items())  # what a variant learns is learned
    model.eval().save_pretrained(tmp_path)
    again = load_converted(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-6, rtol=1e-5)
        # token by token with a cache, as in one pass
        greedy = model.generate(
            ids[:2, :5], attention_mask=torch.ones(2, 5), max_new_tokens=6, do_sample=False, eos_token_id=None
        )
        step = ids[:2, :5]
        for _ in range(6):
            step = torch.cat([step, model(input_ids=step, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(greedy, step)


def test_recorded_weights_do_not_hide_what_went_to_the_null_key():
    model = convert(llama(), "softmax1")
    with recording(model) as kept, torch.no_grad():
        model(input_ids=torch.randint(1, 64, (1, 6)))
    sums = kept[0][0].sum(-1)
    assert kept[0][0].shape == (1, 4, 6, 6)
    assert float(sums.max()) < 1
    assert len(kept) == 2


def test_losses_have_the_values_of_their_formulas():
    h = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]])
    assert float(losses.decorrelation(h)) == pytest.approx(0.5)
    assert float(losses.distilled_registers(h, h + 1)) == pytest.approx(2)
    assert float(losses.sink_attraction(torch.tensor([0.25, 0.75]))) == pytest.approx(0.5)
    assert float(losses.sink_surgery(torch.tensor([0.5, 0.1]), torch.tensor([0.2, 0.3]), 2.0)) == pytest.approx(0.3)
    assert float(losses.tail_penalty(torch.tensor([3.0, 6.0]))) == pytest.approx((1 + 16) / 2)


def test_softmax_needs_a_sink_on_the_toy_and_relu_does_not():
    _, row = toy.train_toy("softmax", seed=0)
    # the methods sheet measured .97 and .71 on BOS alone; here triggers share the part, as their values are zero too
    assert row["BOS and triggers, ordinary"] >= 0.9
    assert row["first token, ordinary"] >= 5 * 0.05
    assert row["first token, triggers"] <= 0.05
    _, free = toy.train_toy("relu", seed=0)
    assert free["first token, ordinary"] < 0.02
    assert free["error, ordinary"] <= 1e-4


def test_a_comparison_is_kept_read_back_and_summed_up(tmp_path):
    setting = {"seeds": (0, 1), "size": "tiny", "steps": 2, "batch": 2, "length": 16, "keep": tmp_path}
    rows = compare(["softmax1", "registers"], **setting)
    assert [r["variant"] for r in rows] == ["softmax", "softmax1", "registers"] * 2
    again = compare(["softmax1", "registers"], **setting)
    assert [r["loss"] for r in again] == [r["loss"] for r in rows]
    table = summary(rows)
    assert table[0]["loss less control"] == 0
    assert table[1]["seeds"] == 2
    assert {r["variant"] for r in describe_variants()} >= set(VARIANTS)


def test_bad_input_is_refused_in_one_sentence(tmp_path):
    bert = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))
    for call, words in (
        (lambda: convert(llama(), "softpik"), "did you mean 'softpick'"),
        (lambda: convert(llama(), "sigmoid", scale=2), "has no option 'scale'"),
        (lambda: convert(convert(llama(), "softmax"), "sigmoid"), "converted to 'softmax' already"),
        (lambda: convert(llama(), "softpick", lossless=True), "no lossless start"),
        (lambda: convert(llama(), "elastic", temperature=0), "must be above 0"),
        (lambda: convert(llama(), "registers", count=0), "at least one register"),
        (lambda: convert(llama(), "quantizable_gate", pi=1.0), "between 0 and 1"),
        (lambda: convert(bert, "softpick"), "only decoders"),
        (lambda: recording(llama()).__enter__(), "no variant in it"),
        (lambda: load_converted(tmp_path / "nothing"), "holds no converted|nothing"),
        (lambda: compare(["nope"]), "no attention variant 'nope'"),
        (lambda: compare(seeds=()), "give a seed"),
        (lambda: lm.small_lm("softmax", "huge"), "size='huge'"),
    ):
        with pytest.raises((UnbraidError, OSError), match=words):
            call()
