"""What was found while the core was documented, and mended: each failed once."""

import pytest
import torch
from tests.parity.families import FAMILIES

from unbraid import HeadSet, attach, taps
from unbraid.core.calls import AttentionCall
from unbraid.core.engine.answers import Log, Options, Question, ask_together
from unbraid.core.engine.logits import dense
from unbraid.core.errors import UnbraidError

SITE = "model.layers.0.self_attn"


@pytest.fixture(scope="module")
def llama():
    return FAMILIES["llama-gqa"]()


def test_fast_path_switch_with_overlapping_sessions():
    """A opens, B opens, A closes: B must still see nn.MultiheadAttention, and the switch must come back in the end."""
    g, h = FAMILIES["torch-mha"](), FAMILIES["torch-mha"]()
    a, b = attach(g.model, taps.Entropy(), strict=False), attach(h.model, taps.Entropy())
    try:
        with torch.no_grad():
            a.__enter__()
            b.__enter__()
            a.__exit__(None, None, None)
            h.run()
            b.__exit__(None, None, None)
        assert set(b.sites) == {"encoder.self_attn", "cross"}
        assert torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


@torch.no_grad()
def test_inner_options_are_ignored_in_silence(llama):
    """A nested attach's check= counts, and its report has its calls."""
    with attach(llama.model, taps.Entropy()), attach(llama.model, taps.Mass({"a": [0]}), check=4) as inner:
        llama.run()
    assert inner.report()["calls"] == 2
    assert inner.report()["spot_check"]["rows"] > 0


@torch.no_grad()
def test_prediction_counts_every_call_of_a_site(llama):
    """Observers on both sides of an edit are two plans of one site."""
    session = attach(llama.model, taps.Entropy(), taps.bias([0], 1.0), taps.Entropy(), recipe="fused")
    told = session.predict(llama.inputs)
    with session:
        llama.run()
    assert told.fused_calls == session.log.fused_calls


@torch.no_grad()
def test_decode_phase_of_cross_attention():
    """Steps of generation include cross-attention."""
    t = FAMILIES["t5"]()
    cross = HeadSet((f"decoder.block.{i}.layer.1.EncDecAttention", h) for i in range(2) for h in range(4))
    options = {
        "max_new_tokens": 4,
        "min_new_tokens": 4,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    inputs = {k: v for k, v in t.inputs.items() if not k.startswith("decoder")}
    plain = t.model.generate(**inputs, **options).logits
    with attach(t.model, taps.ablate(cross, phase="decode")):
        edited = t.model.generate(**inputs, **options).logits
    assert max(float((x - y).abs().max()) for x, y in zip(plain, edited, strict=True)) > 0


@torch.no_grad()
def test_received_without_raw_answers(llama):
    """Scores need no raw answers."""
    received = taps.Received(keep="none")
    with attach(llama.model, received):
        llama.run()
    assert len(received.scores()) == 8


@torch.no_grad()
def test_mass_with_a_mask_per_text(llama):
    """A mask per text is a group."""
    mask = llama.inputs["attention_mask"].bool()
    mass = taps.Mass({"text": mask, "all": slice(None)})
    with attach(llama.model, mass, sites=SITE):
        llama.run()
    rows = llama.rows[:, None].expand(2, 4, 21)
    torch.testing.assert_close(mass.values[SITE][0][..., 0][rows], mass.values[SITE][0][..., 1][rows])
    with pytest.raises(UnbraidError, match="for 3 texts"), attach(llama.model, taps.Mass({"x": torch.ones(3, 21)})):
        llama.run()


@torch.no_grad()
def test_prediction_names_the_tap(llama):
    """Errors in predict() name the tap."""
    with pytest.raises(UnbraidError, match=r"^Entropy"):
        attach(llama.model, taps.Entropy(HeadSet([(SITE, 9)]))).predict(llama.inputs)


@torch.no_grad()
def test_rows_blinded_by_an_edit_are_not_averaged():
    """Rows that an edit leaves without a key are not averaged as zeros."""
    f = FAMILIES["llama-nopad"]()
    entropy = taps.Entropy()
    with attach(f.model, taps.allow(range(10, 20)), entropy, sites=SITE):
        f.run()
    raw = entropy.values[SITE][0]  # rows 0 to 9 see nothing
    want = raw[:, :, 10:].mean((0, 2))
    torch.testing.assert_close(torch.tensor(entropy.scores().scores[SITE]).float(), want, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_rms_distance_of_near_sighted_rows():
    """Squares of positions must not cancel in float32."""
    from unbraid.taps import Distance

    g = torch.Generator().manual_seed(0)
    n = 4096
    q, k, v = (torch.randn(1, 1, n, 64, generator=g) for _ in range(3))
    c = AttentionCall("site", 0, "self", q * 2, k, v, causal=True, scale=64**-0.5)
    tap = Distance()
    ask_together(c, [Question(tap, c, tap.ask(c))], Options(), Log(), want_output=False)
    p, x = dense(c, torch.float64), torch.arange(n, dtype=torch.float64)
    want = (((x[:, None] - x) ** 2) * p).sum(-1).sqrt()
    assert float((tap.values["site"][0][..., 1] - want).abs().max()) < 0.1


@pytest.mark.parametrize("name", ["llama-gqa", "unet", "torch-mha", "deberta-v2"])
def test_calls_are_freed_without_the_garbage_collector(name):
    """A cycle from call to kernel to call kept every layer's queries alive until the next collection."""
    import gc
    import weakref

    f, calls = FAMILIES[name](), []

    class Note(taps.Observer):
        def ask(self, c):
            calls.append(weakref.ref(c))

    gc.disable()
    try:
        with torch.no_grad(), attach(f.model, Note(), taps.Entropy(), taps.scale(None, 0.5)):
            f.run()
        assert calls
        assert all(ref() is None for ref in calls)
    finally:
        gc.enable()
