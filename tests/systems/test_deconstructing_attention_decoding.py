"""A text that grows token by token, with a memory: as the whole text at once, for each variant that has one."""

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from unbraid.core.errors import UnbraidError
from unbraid.systems.deconstructing_attention import deconstruct, memory, place, pooled, restore, taylor

KEPT = ("mlp", "approximate", "non_approximate", "static", "random", "sequence")


def model(variant, placement="uniform", joint=True):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=48, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=600, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    net = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if "proj" in name or "embed" in name:
                weight.mul_(4)
    fixed = torch.arange(64) % 50 if variant == "sequence" else None
    return deconstruct(net, place(variant, placement, 4), joint=joint, tokens=fixed, longest=64)


def ids(rows=3, length=14):
    return torch.randint(1, 50, (rows, length), generator=torch.Generator().manual_seed(1))


def draws(*shape, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3)) * scale


@pytest.mark.parametrize("parts", [(1,) * 12, (5, 1, 6), (12,)])
@pytest.mark.parametrize("joint", [True, False])
def test_the_polynomial_in_parts_is_the_whole(parts, joint):
    q, k, v = draws(3, 2, 2, 12, 4).abs().unbind(0)  # above zero: as printed, the first order has no sum near zero
    state, found = [], []
    for a, b, c in zip(*(x.split(parts, 2) for x in (q, k, v)), strict=True):
        found.append(taylor(a, b, c, joint=joint, block=3, state=state))
    torch.testing.assert_close(torch.cat(found, 2), taylor(q, k, v, joint=joint), rtol=1e-5, atol=1e-5)
    assert sum(x.numel() for x in state) == 2 * 2 * (1 + 4 + 10) * 5


def test_sums_are_carried_under_autocast():
    q, k, v = draws(3, 2, 2, 12, 4).unbind(0)
    state, found = [], []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for a, b, c in zip(*(x.split(4, 2) for x in (q, k, v)), strict=True):
            found.append(taylor(a, b, c, state=state))
    torch.testing.assert_close(torch.cat(found, 2), taylor(q, k, v), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("parts", [(1,) * 12, (5, 1, 6), (12,)])
@pytest.mark.parametrize("scale", [1.0, 3000.0])
def test_pooling_in_parts_is_the_whole(parts, scale):
    s, v = draws(2, 2, 12, scale=scale), draws(2, 2, 12, 5)
    state, found = [], []
    for a, c in zip(*(x.split(parts, 2) for x in (s, v)), strict=True):
        found.append(pooled(a, c, block=3, state=state))
    torch.testing.assert_close(torch.cat(found, 2), pooled(s, v), rtol=1e-5, atol=1e-5)
    assert [x.numel() for x in state] == [2 * 2 * 6, 2 * 2]


@pytest.mark.parametrize("placement", ["uniform", "hybrid"])
@pytest.mark.parametrize("variant", KEPT)
def test_a_model_with_memory_says_what_it_says_of_the_whole_text(variant, placement):
    net, x = model(variant, placement), ids()
    mask = torch.ones_like(x)
    mask[1, :4] = 0
    places = (mask.cumsum(1) - 1).clamp(min=0)
    kept, found, at = memory(net), [], 0
    with torch.no_grad():
        whole = net(input_ids=x, attention_mask=mask, position_ids=places).logits
        for length in (6, 1, 3, 1, 1, 1, 1):
            part = slice(at, at := at + length)
            out = net(
                input_ids=x[:, part],
                attention_mask=mask[:, :at],
                position_ids=places[:, part],
                past_key_values=kept,
                use_cache=True,
            )
            found.append(out.logits)
    close = {"rtol": 1e-5, "atol": 1e-5 * float(whole.abs().max())}
    torch.testing.assert_close(torch.cat(found, 1)[mask.bool()], whole[mask.bool()], **close)
    assert kept.get_seq_length() == 14


@pytest.mark.parametrize("variant", KEPT)
@pytest.mark.parametrize("beams", [1, 3])
def test_generate_with_memory_gives_the_same_text(variant, beams):
    net, x = model(variant, "hybrid"), ids(2, 5)
    how = {"attention_mask": torch.ones_like(x), "max_new_tokens": 8, "do_sample": False, "num_beams": beams}
    lengths = []
    net.model.register_forward_pre_hook(lambda m, a, k: lengths.append(k["inputs_embeds"].shape[1]), with_kwargs=True)
    slow = net.generate(x, **how)
    kept = memory(net)
    lengths.clear()
    assert torch.equal(net.generate(x, **how, past_key_values=kept, use_cache=True), slow)
    assert max(lengths[1:]) == 1


@pytest.mark.parametrize("variant", ["mlp", "approximate", "non_approximate"])
def test_what_is_kept_does_not_grow(variant):
    net, sizes = model(variant), []
    for length in (5, 300):
        kept = memory(net)
        with torch.no_grad():
            net(input_ids=ids(1, length), past_key_values=kept, use_cache=True)
        sizes.append(kept.numel())
    per_head = {"mlp": 0, "approximate": (1 + 12 + 78) * 13, "non_approximate": 13 + 1}[variant]
    assert sizes == [4 * 4 * per_head] * 2
    kept.reset()
    assert (kept.numel(), kept.get_seq_length()) == (0, 0)


@pytest.mark.parametrize("variant", ["random", "sequence"])
def test_fixed_maps_are_computed_once_and_values_alone_are_kept(variant):
    net = model(variant).train()
    kept = memory(net, longest=20)
    assert net.training
    assert all(layer.training for layer in net.model.layers)
    rows = []
    net.model.layers[0].register_forward_hook(
        lambda m, a, out: rows.append(len(out[0] if isinstance(out, tuple) else out))
    )
    for _ in range(2):
        with torch.no_grad():
            net(input_ids=ids(3, 14), past_key_values=kept, use_cache=True)
        assert kept.numel() == 4 * 3 * 14 * (48 + 1)  # layers, texts, tokens: a value and the number of its place
        kept.reset()
    assert rows == [3, 3]  # no row beside the batch


def test_a_memory_of_fixed_maps_has_the_gradients_of_values():
    net, x = model("random"), ids()
    out = net(input_ids=x, past_key_values=memory(net), use_cache=True)
    out.logits.sum().backward()
    assert net.model.layers[0].self_attn.v_proj.weight.grad.abs().sum() > 0
    assert net.model.layers[0].self_attn.q_proj.weight.grad is None  # maps are as they were when it was made


def refused(variant, cache):
    net = model(variant)
    return net(input_ids=ids(), past_key_values=cache(net), use_cache=True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: memory(model("random"), longest=65), "end at 64"),
        (lambda: memory(model("random"), longest=0), "at least 1"),
        (lambda: refused("random", lambda net: memory(net, longest=9)), "grown to 14"),
        (lambda: memory(restore(model("mlp"))), "not deconstructed"),
        (lambda: refused("mlp", lambda net: DynamicCache()), "memory"),
        (lambda: refused("mlp", lambda net: memory(model("approximate"))), "other variants"),
        (lambda: memory(model("mlp")).layers[0].crop(-1), "taken back"),
        (lambda: memory(model("mlp")).layers[0].update(None, None), "no keys"),
    ],
)  # fmt: skip
def test_wrong_memories_get_a_sentence(wrong, said):
    with pytest.raises(UnbraidError, match=said):
        wrong()
