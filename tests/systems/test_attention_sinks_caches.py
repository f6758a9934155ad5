"""Caches for `generate()`: against a Llama by hand, and against short texts where one layer makes that exact."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import transformers
from transformers import DynamicCache

from tests.parity.families import FAMILIES, build
from tests.systems import attention_sinks_reference as truth
from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores
from unbraid.systems.attention_sinks import (
    A2SFCache,
    DuoCache,
    H2OCache,
    KeyDiffCache,
    ProtectedQuantizedCache,
    SnapKVCache,
    StreamingCache,
    cache_bytes,
    cache_losses,
    stream_losses,
)
from unbraid.systems.attention_sinks.caches.kept import ends
from unbraid.systems.attention_sinks.caches.quantised import pack, unpack
from unbraid.systems.attention_sinks.caches.scored import best

SIZE = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 99,
    "max_position_embeddings": 256,
}  # fmt: skip


def make(config: str, model: str, layers: int = 2, **more):
    cfg = getattr(transformers, config)(**{**SIZE, "num_hidden_layers": layers, **more})
    return build(getattr(transformers, model)(cfg))


def llama(layers: int = 2, groups: int = 2):
    return make("LlamaConfig", "LlamaForCausalLM", layers, num_key_value_heads=groups)


def text(n: int, batch: int = 1, seed: int = 3) -> torch.Tensor:
    return torch.randint(3, 99, (batch, n), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def token_by_token(model, ids, cache, first: int = 1, **more) -> torch.Tensor:
    """Logits [B, n, V] of a first pass of `first` tokens and single ones after it."""
    parts = [x for x in (ids[:, :first], *ids[:, first:].split(1, dim=1)) if x.shape[1]]
    return torch.cat([model(input_ids=x, past_key_values=cache, use_cache=True, **more).logits for x in parts], 1)


def close(a: torch.Tensor, b: torch.Tensor, atol: float = 2e-4) -> None:
    torch.testing.assert_close(a.float(), b.float(), atol=atol, rtol=0)


@pytest.mark.parametrize(("sinks", "window"), [(4, 6), (1, 5), (0, 7), (4, 2)])
def test_streaming_is_a_llama_that_sees_sinks_and_window_at_cache_indices(sinks: int, window: int) -> None:
    model, ids = llama(), text(24)
    want = truth.by_hand(model, ids[0].tolist(), truth.streaming(sinks, window), at_index=True)
    cache = StreamingCache(model, sinks, window)
    close(token_by_token(model, ids, cache)[0], want)
    assert cache.kept == sinks + window
    assert cache.get_seq_length() == 24
    indexed = StreamingCache(model, sinks, window)
    with indexed.indexed(model):
        close(token_by_token(model, ids, indexed)[0], want)
    close(exact_logits(model, ids, sinks, window, 7)[0], want)


def exact_logits(model, ids, sinks: int, window: int, chunk: int) -> torch.Tensor:
    """Logits of the long passes behind `stream_losses`."""
    from unbraid.core.attach import attach
    from unbraid.systems.attention_sinks.caches.exact import ExactLayer, ExactStream
    from unbraid.systems.attention_sinks.caches.kept import KeptCache
    from unbraid.systems.attention_sinks.caches.streaming import keys_of

    turned = keys_of(model)
    cache = KeptCache(model, lambda i: ExactLayer(sinks, window, turned[i]))
    with torch.no_grad(), attach(model, ExactStream(cache)):
        parts = [model(input_ids=x, past_key_values=cache, use_cache=True).logits for x in ids.split(chunk, dim=1)]
    return torch.cat(parts, 1)


def test_the_hand_made_llama_is_the_library_s() -> None:
    model, ids = llama(), text(20)
    with torch.no_grad():
        close(model(input_ids=ids).logits[0], truth.by_hand(model, ids[0].tolist(), truth.everything))


FAMILY = {
    "llama": lambda n: llama(n),
    "yarn": lambda n: make(
        "LlamaConfig", "LlamaForCausalLM", n, num_key_value_heads=2,
        rope_parameters={"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0},
    ),
    "neox, partly rotated": lambda n: make("GPTNeoXConfig", "GPTNeoXForCausalLM", n, rotary_pct=0.25),
    "phi, partly rotated": lambda n: make("PhiConfig", "PhiForCausalLM", n, partial_rotary_factor=0.5),
    "cohere, neighbours": lambda n: make("CohereConfig", "CohereForCausalLM", n, num_key_value_heads=2),
    "glm, neighbours and partly": lambda n: make(
        "GlmConfig", "GlmForCausalLM", n, num_key_value_heads=2, head_dim=16, pad_token_id=0
    ),
    "smollm3, some layers without positions": lambda n: make(
        "SmolLM3Config", "SmolLM3ForCausalLM", n, num_key_value_heads=2, pad_token_id=0
    ),
    "gemma3, all layers full": lambda n: make(
        "Gemma3TextConfig", "Gemma3ForCausalLM", n, num_key_value_heads=1, head_dim=16,
        layer_types=["full_attention"] * n,
    ),
    "mpt, ALiBi": lambda n: build(
        transformers.MptForCausalLM(
            transformers.MptConfig(d_model=64, n_heads=4, n_layers=n, vocab_size=99, max_seq_len=64)
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILY)
def test_streaming_on_one_layer_is_the_text_with_its_middle_cut_out(name: str) -> None:
    """In one layer keys depend on their own token only, so the truth needs nothing but the model itself."""
    model, ids = FAMILY[name](1), text(20, batch=2)
    want = []
    for t in range(ids.shape[1]):
        seen = [j for j in range(t + 1) if j < 3 or j > t - 5]
        with torch.no_grad():
            want.append(model(input_ids=ids[:, seen], use_cache=False).logits[:, -1])
    got = token_by_token(model, ids, StreamingCache(model, 3, 5))
    close(got, torch.stack(want, 1))


@pytest.mark.parametrize("name", [n for n in FAMILY if "ALiBi" not in n])
def test_both_ways_of_counting_and_long_passes_agree(name: str) -> None:
    model, ids = FAMILY[name](2), text(23)
    plain = token_by_token(model, ids, StreamingCache(model, 3, 6))
    indexed = StreamingCache(model, 3, 6)
    with indexed.indexed(model):
        close(token_by_token(model, ids, indexed), plain)
    for chunk in (1, 4, 23):
        close(exact_logits(model, ids, 3, 6, chunk), plain)


def test_bloom_streams_in_cache_indices() -> None:
    cfg = transformers.BloomConfig(hidden_size=64, n_layer=1, n_head=4, vocab_size=99)
    model, ids = build(transformers.BloomForCausalLM(cfg)), text(18)
    cache = StreamingCache(model, 2, 5)
    with cache.indexed(model):
        got = token_by_token(model, ids, cache)
    with torch.no_grad():
        for t in range(18):
            seen = [j for j in range(t + 1) if j < 2 or j > t - 5]
            close(got[:, t], model(input_ids=ids[:, seen], use_cache=False).logits[:, -1])


@pytest.mark.parametrize("pads", [(0, 5), (3, 1), (9, 0)])
def test_streaming_a_padded_batch_is_streaming_each_text(pads: tuple[int, int]) -> None:
    model, length = llama(), 12
    mask = torch.ones(2, length, dtype=torch.int64)
    prompt = text(length, batch=2)
    for row, pad in enumerate(pads):
        mask[row, :pad] = 0
    for indexed in (False, True):
        cache = StreamingCache(model, 2, 5, attention_mask=mask)
        seen = mask
        with cache.indexed(model) if indexed else nullcontext():
            logits = feed_padded(model, prompt, mask, cache)
            more = text(9, batch=2, seed=8)
            steps = []
            for t in range(9):
                seen = torch.cat([seen, seen.new_ones(2, 1)], 1)
                at = (seen.cumsum(-1) - 1)[:, -1:]
                with torch.no_grad():
                    steps.append(
                        model(
                            input_ids=more[:, t : t + 1], attention_mask=seen, position_ids=at, past_key_values=cache
                        ).logits
                    )
        for row, pad in enumerate(pads):
            alone = StreamingCache(model, 2, 5)
            with torch.no_grad():
                first = model(input_ids=prompt[row : row + 1, pad:], past_key_values=alone).logits
                close(logits[row, pad:], first[0])
                for t in range(9):
                    want = model(input_ids=more[row : row + 1, t : t + 1], past_key_values=alone).logits
                    close(steps[t][row], want[0])


def feed_padded(model, prompt, mask, cache) -> torch.Tensor:
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(input_ids=prompt, attention_mask=mask, position_ids=places, past_key_values=cache).logits


def test_layers_with_a_window_of_their_own_stay_as_they_are() -> None:
    model = make(
        "Gemma3TextConfig", "Gemma3ForCausalLM", 2, num_key_value_heads=1, head_dim=16, sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    cache = StreamingCache(model, 2, 40)
    assert cache.ours == [1]
    ids = text(20)
    close(token_by_token(model, ids, cache), token_by_token(model, ids, DynamicCache(config=model.config)))
    close(stream_losses(model, ids, sinks=2, window=40, chunk=6), stream_losses(model, ids, window=None, chunk=6))
    with pytest.raises(UnbraidError, match="window of its own"), cache.indexed(model):
        pass


def test_generate_goes_on_for_ever_in_constant_memory() -> None:
    model = llama()
    ids = text(5)
    cache = StreamingCache(model, 4, 12)
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=60,
        min_new_tokens=60, do_sample=False, pad_token_id=0,
    )  # fmt: skip
    assert out.shape == (1, 65)
    assert cache.kept == 16
    again = StreamingCache(model, 4, 12)
    logits = token_by_token(model, out, again, first=5)
    assert torch.equal(logits[:, 4:-1].argmax(-1), out[:, 5:])
    small = cache_bytes(cache)
    full = DynamicCache(config=model.config)
    token_by_token(model, out, full)
    assert small < 0.5 * cache_bytes(full)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert torch.equal(token_by_token(model, out, cache, first=5), logits)


def test_generate_with_padding_beams_and_every_cache() -> None:
    model = llama()
    ids = text(30, batch=2)
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    common = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    scores = np.random.default_rng(0).random((2, 2))
    for cache in (
        StreamingCache(model, 4, 12, mask), KeyDiffCache(model, 16, 4, mask), H2OCache(model, 8, 8, mask),
        A2SFCache(model, 8, 8, 0.9, mask), SnapKVCache(model, 16, 4, 3, mask), DuoCache(model, scores, 0.5, 2, 6, mask),
        ProtectedQuantizedCache(model, (0, 1), 8, residual_length=4, attention_mask=mask),
    ):  # fmt: skip
        watched = not isinstance(cache, (StreamingCache, KeyDiffCache, ProtectedQuantizedCache))
        with cache.watching(model) if watched else nullcontext():
            out = model.generate(past_key_values=cache, **common)
        assert out.shape[0] == 2, type(cache)
        assert cache.get_seq_length() == out.shape[1] - 1
    beams = StreamingCache(model, 4, 12)
    out = model.generate(
        input_ids=ids[1:], attention_mask=mask[1:], num_beams=3, max_new_tokens=6, past_key_values=beams,
        do_sample=False, pad_token_id=0,
    )  # fmt: skip
    full = model.generate(
        input_ids=ids[1:, -10:], attention_mask=mask[1:, -10:], num_beams=3, max_new_tokens=6, do_sample=False,
        past_key_values=StreamingCache(model, 4, 60), pad_token_id=0,
    )  # fmt: skip
    plain = model.generate(
        input_ids=ids[1:, -10:], attention_mask=mask[1:, -10:], num_beams=3, max_new_tokens=6, do_sample=False,
        pad_token_id=0,
    )  # fmt: skip
    assert torch.equal(full, plain)
    assert out.shape[1] > 30


@pytest.mark.parametrize("decay", [1.0, 0.8])
def test_heavy_hitters_are_those_of_a_llama_by_hand(decay: float) -> None:
    model, ids = llama(), text(22)
    want = truth.by_hand(model, ids[0].tolist(), truth.everything, truth.heavy(5, 4), decay=decay)
    cache = H2OCache(model, 5, 4) if decay == 1 else A2SFCache(model, 5, 4, decay)
    with cache.watching(model):
        close(token_by_token(model, ids, cache)[0], want)
    assert cache.kept == 9
    # the same from a prompt: sums over its queries are what single steps would have added up
    prompt = H2OCache(model, 5, 4) if decay == 1 else A2SFCache(model, 5, 4, decay)
    with prompt.watching(model):
        first = token_by_token(model, ids[:, :9], prompt, first=9)
    close(first[0], want[:9])
    layer = prompt.layers[1]
    assert layer.scores is not None
    assert layer.scores.shape == (1, 2, 9)


def test_keydiff_is_that_of_a_llama_by_hand() -> None:
    model, ids = llama(), text(22)
    want = truth.by_hand(model, ids[0].tolist(), truth.everything, truth.unlike(8))
    close(token_by_token(model, ids, KeyDiffCache(model, 8))[0], want)


def test_duo_heads_see_what_a_llama_by_hand_sees() -> None:
    model, ids = llama(), text(22)
    scores = np.array([[0.9, 0.1], [0.2, 0.8]])
    full = torch.tensor(scores > 0.5)
    # streaming heads keep 2 + 5 tokens between passes, and the newest one comes on top
    want = truth.by_hand(model, ids[0].tolist(), truth.duo(full, 2, 6))
    cache = DuoCache(model, scores, 0.5, 2, 5)
    with cache.watching(model):
        close(token_by_token(model, ids, cache)[0], want)
    plain = DynamicCache(config=model.config)
    token_by_token(model, ids, plain)
    assert cache_bytes(cache) < cache_bytes(plain)
    per_query_head = HeadScores({f"model.layers.{i}.self_attn": [a, 0.0, b, 0.0] for i, (a, b) in enumerate(scores)})
    other = DuoCache(model, per_query_head, 0.5, 2, 5)
    assert all(torch.equal(a.full, b.full) for a, b in zip(cache.layers, other.layers, strict=True))


def test_snapkv_keeps_what_its_last_queries_look_at() -> None:
    model, ids = llama(layers=1), text(40)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        p = model(input_ids=ids, output_attentions=True).attentions[0]
    model.set_attn_implementation("sdpa")
    votes = torch.nn.functional.avg_pool1d(p[0, :, -8:, :-8].mean(1), 5, 1, 2).view(2, 2, -1).mean(1)
    cache = SnapKVCache(model, budget=20, observe=8, pool=5)
    with cache.watching(model):
        full = DynamicCache(config=model.config)
        with torch.no_grad():
            model(input_ids=ids, past_key_values=full)
            model(input_ids=ids, past_key_values=cache)
    for g in range(2):
        keep = sorted(votes[g].topk(12).indices.tolist()) + list(range(32, 40))
        close(cache.layers[0].keys[0, g], full.layers[0].keys[0, g][keep])
        close(cache.layers[0].values[0, g], full.layers[0].values[0, g][keep])


def test_scores_are_those_of_kvpress_where_it_is_installed() -> None:
    """kvpress 0.5.5 needs pandas below 3, and its hooks an argument that transformers 5 has dropped; its scores run."""
    kvpress = pytest.importorskip("kvpress")
    from unbraid.systems.attention_sinks.detection.metrics import key_distinctiveness

    model, ids = llama(layers=1), text(40)
    keys = torch.randn(1, 2, 40, 16, generator=torch.Generator().manual_seed(0))
    close(key_distinctiveness(keys) - 1, kvpress.KeyDiffPress(0.5).score(None, None, keys, keys, None, {}))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        p = model(input_ids=ids, output_attentions=True).attentions[0]
    model.set_attn_implementation("sdpa")
    module = model.model.layers[0].self_attn
    theirs = kvpress.SnapKVPress(0.5, window_size=8).score(module, ids[..., None], keys, keys, p, {})
    mine, full = SnapKVCache(model, 20, 8, 5), DynamicCache(config=model.config)
    with torch.no_grad(), mine.watching(model):
        model(input_ids=ids, past_key_values=mine)
        model(input_ids=ids, past_key_values=full)
    for g in range(2):
        keep = theirs[0, g].topk(20).indices.sort().values
        close(mine.layers[0].keys[0, g], full.layers[0].keys[0, g][keep])


def test_the_slots_that_stay() -> None:
    pads = torch.tensor([0, 2, 9])
    assert ends(10, 6, 2, pads).tolist() == [[0, 1, 6, 7, 8, 9], [2, 3, 6, 7, 8, 9], [4, 5, 6, 7, 8, 9]]
    scores = torch.tensor([[[5.0, 1, 4, 3, 0, 0]]])
    assert best(scores, 4, 2, torch.tensor([0])).tolist() == [[[0, 2, 4, 5]]]
    assert best(scores, 4, 2, torch.tensor([1])).tolist() == [[[2, 3, 4, 5]]]
    assert best(scores, 4, 1, torch.tensor([4])).tolist() == [[[2, 3, 4, 5]]]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packing_is_lossless_and_small(bits: int) -> None:
    whole = torch.randint(0, 2**bits, (2, 3, 13), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    packed = pack(whole, bits)
    assert packed.shape[-1] == -(-13 * bits // 8)
    assert torch.equal(unpack(packed, bits, 13), whole)


@pytest.mark.parametrize(("bits", "most"), [(8, 0.02), (4, 0.3)])
def test_quantised_keys_are_near_and_protected_ones_exact(bits: int, most: float) -> None:
    model, ids = llama(), text(40, batch=2)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    plain, cache = (
        DynamicCache(config=model.config),
        ProtectedQuantizedCache(model, (0, 2), bits, q_group_size=16, residual_length=8, attention_mask=mask),
    )
    for c in (plain, cache):
        feed_padded(model, ids, mask, c)
    k, v = torch.randn(2, 2, 1, 16), torch.randn(2, 2, 1, 16)
    keys, values = cache.layers[0].update(k, v)
    for got, want in ((keys, plain.layers[0].keys), (values, plain.layers[0].values)):
        close(got[0, :, [3, 5]], want[0, :, [3, 5]], 0)
        close(got[1, :, [0, 2]], want[1, :, [0, 2]], 0)
        error = (got[:, :, :40] - want).abs()
        assert 0 < float(error.max()) < most * float(want.abs().max())
    assert torch.equal(keys[:, :, -1:], k)


def test_an_outlier_costs_its_neighbours_their_digits_unless_protected() -> None:
    model, ids = llama(layers=1), text(33)
    found = {}
    for protect in ((), (0,)):
        cache = ProtectedQuantizedCache(model, protect, 4, q_group_size=32, residual_length=8)
        k, v = torch.randn(1, 2, 32, 16, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 2, 32, 16)
        k[:, :, 0] *= 100
        cache.layers[0].update(k, v)
        keys, _ = cache.layers[0].update(k[:, :, :1], v[:, :, :1])
        found[protect] = float((keys[:, :, 1:32] - k[:, :, 1:]).abs().mean())
    assert found[(0,)] < 0.1 * found[()]
    assert ids.shape[1] == 33


def test_quantised_memory_is_that_of_its_bits() -> None:
    model, ids = llama(), text(128)
    sizes = {}
    for bits in (8, 4, 2):
        cache = ProtectedQuantizedCache(model, (), bits, q_group_size=64, residual_length=128)
        with torch.no_grad():
            model(input_ids=ids, past_key_values=cache)
        sizes[bits] = cache_bytes(cache)
    plain = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=ids, past_key_values=plain)
    assert sizes[2] < sizes[4] < sizes[8] < 0.5 * cache_bytes(plain)


def test_losses_are_those_of_one_pass() -> None:
    model, ids = llama(), text(30, batch=2)
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    want = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    for chunk in (1, 7, 30, 29):
        close(stream_losses(model, ids, window=None, chunk=chunk), want.view(2, -1))
    seen: list[int] = []
    close(stream_losses(model, ids, sinks=2, window=40, chunk=8, step=seen.append), want.view(2, -1))
    assert seen == [8, 8, 8, 6]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: StreamingCache(m, -1, 8), "sinks is -1"),
        (lambda m: StreamingCache(m, 4, 1), "at least 2"),
        (lambda m: StreamingCache(m, 0, 1), "nothing besides itself"),
        (lambda m: StreamingCache(m, 1, 8, torch.tensor([[1, 1, 0]])), "padding_side"),
        (lambda m: StreamingCache(m, 1, 8, torch.zeros(1, 3)), "no token"),
        (lambda m: StreamingCache(m, 1, 8, torch.ones(3)), "must be \\[batch, tokens\\]"),
        (lambda m: H2OCache(m, -1, 8), "heavy is -1"),
        (lambda m: H2OCache(m, 4, 0), "recent is 0"),
        (lambda m: A2SFCache(m, 4, 4, 0.0), "decay is 0.0"),
        (lambda m: SnapKVCache(m, 8, 8), "must exceed"),
        (lambda m: SnapKVCache(m, 16, 8, 4), "must be odd"),
        (lambda m: KeyDiffCache(m, 4, 4), "must exceed recent"),
        (lambda m: DuoCache(m, np.zeros((2, 3)), 0.5), "2 layers of 4 heads"),
        (lambda m: DuoCache(m, np.zeros((2, 2)), 1.5), "share is 1.5"),
        (lambda m: ProtectedQuantizedCache(m, (0,), 3), "nbits is 3"),
        (lambda m: ProtectedQuantizedCache(m, (-1,)), "positions from 0"),
        (lambda m: ProtectedQuantizedCache(m, (), backend="zip"), "choose affine"),
        (lambda m: stream_losses(m, text(1)), "at least 2 tokens"),
        (lambda m: stream_losses(m, text(8), chunk=0), "chunk is 0"),
        (lambda m: stream_losses(m, text(8), sinks=2, window=1), "window is 1"),
    ],
)
def test_what_is_refused(call, message: str) -> None:
    with pytest.raises(UnbraidError, match=message):
        call(llama())


def test_models_that_keep_no_keys_or_cannot_be_moved() -> None:
    for name in ("bert", "t5", "vit"):
        with pytest.raises(UnbraidError, match="decoder language model"):
            StreamingCache(FAMILIES[name]().model, 4, 8)
    with pytest.raises(UnbraidError, match="needs a transformers model"):
        StreamingCache(torch.nn.Linear(2, 2), 4, 8)
    with pytest.raises(UnbraidError, match="no rotation"):
        StreamingCache(FAMILIES["gpt2"]().model, 4, 8)
    dynamic = make(
        "LlamaConfig", "LlamaForCausalLM",
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0},
    )  # fmt: skip
    with pytest.raises(UnbraidError, match="'dynamic'"):
        StreamingCache(dynamic, 4, 8)
    window = make("MistralConfig", "MistralForCausalLM", num_key_value_heads=2, sliding_window=8, head_dim=16)
    with pytest.raises(UnbraidError, match="no layer with full attention"):
        StreamingCache(window, 4, 8)


def test_misuse_is_told_in_a_sentence() -> None:
    model, ids = llama(), text(12)
    with pytest.raises(UnbraidError, match="watching"):
        token_by_token(model, ids, H2OCache(model, 2, 2))
    cache = StreamingCache(model, 2, 4)
    token_by_token(model, ids, cache)
    with pytest.raises(UnbraidError, match="always or never"), cache.indexed(model):
        token_by_token(model, ids, cache)
    with pytest.raises(UnbraidError, match="cannot go back"):
        cache.crop(-1)
    wrong = StreamingCache(model, 2, 4, torch.ones(3, 5))
    with pytest.raises(UnbraidError, match="made for 3 texts"):
        token_by_token(model, ids, wrong)
    capped = make(
        "Gemma2Config", "Gemma2ForCausalLM", num_key_value_heads=2, head_dim=16, layer_types=["full_attention"] * 2,
        attn_implementation="eager",
    )  # fmt: skip
    with pytest.raises(UnbraidError, match="adds a bias or a cap"):
        stream_losses(capped, ids, sinks=2, window=4, chunk=4)


def test_any_cache_with_room_for_all_changes_nothing() -> None:
    model, ids = llama(), text(16)
    want = cache_losses(model, ids, DynamicCache(config=model.config), 4)
    for cache in (StreamingCache(model, 4, 30), KeyDiffCache(model, 30)):
        close(cache_losses(model, ids, cache, 4), want)
    for cache in (H2OCache(model, 20, 20), SnapKVCache(model, 30, 4), DuoCache(model, np.ones((2, 2)), 0.5, 10, 20)):
        close(cache_losses(model, ids, cache, 4, cache.watching(model)), want)


@pytest.mark.study
def test_long_passes_are_token_by_token_streaming_on_a_real_model() -> None:
    from unbraid import zoo
    from unbraid.data.text import stream

    loaded = zoo.load("smollm2", progress=False)
    ids = stream(loaded.tokenizer, 200)
    for sinks in (0, 4):
        cache = StreamingCache(loaded.model, sinks, 64 - sinks)
        single = cache_losses(loaded.model, ids, cache, 1)
        long = stream_losses(loaded.model, ids, sinks=sinks, window=64 - sinks, chunk=90)
        close(long, single, 2e-3)
        assert abs(float(long.mean() - single.mean())) < 1e-4
