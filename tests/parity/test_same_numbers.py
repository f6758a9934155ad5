"""Same numbers as each model's own eager attention, on every family, and nothing changed by looking."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unbraid import taps
from unbraid.core.attach import attach
from unbraid.core.seams import live

from .families import FAMILIES, Family, decoder, logits_of

TOLERANCE = 1e-5
NAMES = list(FAMILIES)


@pytest.fixture(scope="module")
def family(request) -> Family:
    return FAMILIES[request.param]()


def worst(f: Family, got: torch.Tensor, want: torch.Tensor) -> float:
    error = (got - want).abs()
    if f.rows is not None and error.shape[2] == f.rows.shape[1]:
        error = error[f.rows[:, None, :].expand(error.shape[:3])]
    return float(error.max())


@pytest.mark.parametrize("family", NAMES, indirect=True)
@torch.no_grad()
def test_maps_and_statistics_equal_eager(family: Family) -> None:
    want = family.reference()
    plain = logits_of(family.run())
    maps, entropy, received, best = taps.Maps(), taps.Entropy(), taps.Received(), taps.ArgMax()
    mass, entries, distance = (
        taps.Mass({"first": [0], "two": slice(1, 3)}),
        taps.Entries([(-1, 0), (2, 1)]),
        taps.Distance(),
    )
    observers = (maps, entropy, received, best, mass, entries, distance)
    with attach(family.model, *observers, check=4) as session:
        seen = logits_of(family.run())
    if "MultiheadAttention" not in str(type(family.model)) and family.model.__class__.__name__ != "TorchBlock":
        assert torch.equal(plain, seen)  # nn.MultiheadAttention leaves its fused eval path while it is tapped
    torch.testing.assert_close(plain, seen, atol=TOLERANCE, rtol=0)
    assert set(want) <= set(session.sites)
    assert {s: session.sites[s].kind for s in family.kinds} == family.kinds
    assert session.log.largest_error < TOLERANCE
    for site, p in want.items():
        assert worst(family, maps.values[site][0], p) < TOLERANCE
        assert worst(family, entropy.values[site][0], torch.special.entr(p).sum(-1)) < TOLERANCE
        assert worst(family, mass.values[site][0][..., 0], p[..., 0]) < TOLERANCE
        assert worst(family, mass.values[site][0][..., 1], p[..., 1:3].sum(-1)) < TOLERANCE
        assert worst(family, best.probabilities[site][0][..., 0], p.amax(-1)) < TOLERANCE
        if family.rows is None:
            position = torch.arange(p.shape[-1]).float()
            back = (
                torch.arange(p.shape[-2])[:, None]
                + (p.shape[-1] - p.shape[-2]) * (family.kinds[site] == "self")
                - position
            )
            mean = (p * back).sum(-1)
            if site not in family.kinds or "sinks" not in str(family.model):
                assert float((distance.values[site][0][..., 0] - mean).abs().max()) < 1e-4
            assert float((entries.values[site][0][..., 1] - p[:, :, 2, 1]).abs().max()) < TOLERANCE
    assert live.left_behind() == []


@pytest.mark.parametrize("family", NAMES, indirect=True)
@torch.no_grad()
def test_output_made_from_rows_equals_the_models_own(family: Family) -> None:
    class Same(taps.Observer):
        edits_rows = True

        def rows(self, c, p, start):
            return p * 1.0

    plain = logits_of(family.run())
    with attach(family.model, Same()):
        got = logits_of(family.run())
    error = (plain - got).abs()
    if family.rows is not None and error.shape[1] == family.rows.shape[1]:
        error = error[family.rows]
    assert float(error.max()) < TOLERANCE * max(1.0, float(plain.abs().max()))


@pytest.mark.parametrize("family", NAMES, indirect=True)
@pytest.mark.parametrize("recipe", ["rows", "fused"])
@torch.no_grad()
def test_both_recipes_give_the_received_attention(family: Family, recipe: str) -> None:
    want = family.reference()
    received = taps.Received()
    with attach(family.model, received, recipe=recipe):
        family.run()
    for site, p in want.items():
        valid = torch.ones(p.shape[0], 1, p.shape[2])
        if family.rows is not None:
            continue  # padded query rows are undefined in eager and count here; the engine tests cover masks
        assert float((received.values[site][0] - (p * valid[..., None]).sum(2)).abs().max()) < TOLERANCE * p.shape[2]


@settings(max_examples=12, deadline=None)
@given(
    heads=st.sampled_from([(2, 1), (4, 2), (4, 4), (6, 2)]),
    n=st.integers(2, 90),
    pad=st.sampled_from([None, "left", "right"]),
    seed=st.integers(0, 10**6),
)
@torch.no_grad()
def test_llama_of_any_shape(heads: tuple[int, int], n: int, pad: str | None, seed: int) -> None:
    f = decoder(
        "LlamaConfig", "LlamaForCausalLM", "model.layers.{}.self_attn", pad=None, hidden_size=heads[0] * 8,
        num_attention_heads=heads[0], num_key_value_heads=heads[1],
    )  # fmt: skip
    ids = torch.randint(3, 99, (2, n), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    if pad is not None and n > 4:
        mask[0, slice(0, n // 3) if pad == "left" else slice(-(n // 3), None)] = 0
    f.inputs.clear()
    f.inputs.update(input_ids=ids, attention_mask=mask)
    f.rows = mask.bool()
    want = f.reference()
    maps, entropy = taps.Maps(), taps.Entropy()
    with attach(f.model, maps, entropy):
        f.run()
    for site, p in want.items():
        assert worst(f, maps.values[site][0], p) < TOLERANCE
        assert worst(f, entropy.values[site][0], torch.special.entr(p).sum(-1)) < TOLERANCE


@pytest.mark.parametrize("name", ["llama-gqa", "gpt2", "t5", "whisper", "mistral-window", "gpt-oss"])
@pytest.mark.parametrize("beams", [1, 3])
@torch.no_grad()
def test_generate_is_unchanged_and_decode_rows_are_exact(name: str, beams: int) -> None:
    f = FAMILIES[name]()
    inputs = {k: v for k, v in f.inputs.items() if not k.startswith("decoder_")}
    options = {"max_new_tokens": 6, "do_sample": False, "num_beams": beams, "min_new_tokens": 6, "pad_token_id": 0}
    plain = f.model.generate(**inputs, **options)
    rows, entropy = taps.Rows([-1], keep="all"), taps.Entropy()
    with attach(f.model, rows, entropy, check=2) as session:
        got = f.model.generate(**inputs, **options)
    assert torch.equal(plain, got)
    assert session.log.largest_error < TOLERANCE
    for site, kept in rows.values.items():
        assert len(kept) == session.sites[site].calls
        total = kept[-1].sum(-1)
        assert float(total.max()) <= 1 + TOLERANCE
        if name != "gpt-oss":  # sink logits take mass away
            assert float((total - 1).abs().max()) < TOLERANCE


@torch.no_grad()
def test_decode_rows_equal_the_rows_of_one_pass() -> None:
    f = FAMILIES["llama-gqa"]()
    plain = f.model.generate(**f.inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)
    rows = taps.Rows([-1], keep="all")
    with attach(f.model, rows):
        f.model.generate(**f.inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)
    n = f.inputs["input_ids"].shape[1]
    mask = torch.cat([f.inputs["attention_mask"], torch.ones(2, plain.shape[1] - n, dtype=torch.long)], 1)
    maps = taps.Maps()
    with attach(f.model, maps):
        f.model(input_ids=plain, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    for site, kept in rows.values.items():
        for step, row in enumerate(kept):
            whole = maps.values[site][0][:, :, n - 1 + step, : row.shape[-1]]
            assert float((row[:, :, 0] - whole).abs().max()) < TOLERANCE


@pytest.mark.parametrize("name", ["llama-gqa", "unet", "t5"])
def test_bfloat16_and_autocast_within_the_documented_tolerance(name: str) -> None:
    f = FAMILIES[name]()
    want = f.reference()
    maps = taps.Maps()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        plain = logits_of(f.run())
        with attach(f.model, maps):
            got = logits_of(f.run())
    assert torch.equal(plain, got)
    for site, p in want.items():
        assert maps.values[site][0].dtype == torch.float32
        assert worst(f, maps.values[site][0], p) < 0.06  # docs/numerics.md: queries and keys have 8 bits


def test_inference_mode_works_with_every_recipe() -> None:
    f = FAMILIES["llama-gqa"]()
    want = f.reference()
    for recipe in ("rows", "fused"):
        entropy, received, mass = taps.Entropy(), taps.Received(), taps.Mass({"first": [0]})
        with torch.inference_mode(), attach(f.model, entropy, received, mass, recipe=recipe):
            f.run()
        for site, p in want.items():
            assert worst(f, entropy.values[site][0], torch.special.entr(p).sum(-1)) < TOLERANCE
