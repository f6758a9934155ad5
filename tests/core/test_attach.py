"""attach: nothing is changed by looking, nothing is left behind, and what cannot be tapped says so."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest
import torch
import torch.nn.functional as F
from tests.parity.families import FAMILIES, logits_of
from torch import nn

from unbraid import taps
from unbraid.core.attach import attach
from unbraid.core.calls import Tap
from unbraid.core.errors import AttachError, UnbraidError
from unbraid.core.heads import HeadSet
from unbraid.core.seams import live

SITE = "model.layers.0.self_attn"


@pytest.fixture(scope="module")
def llama():
    return FAMILIES["llama-gqa"]()


def state(model: nn.Module) -> tuple:
    """Everything an attach could leave behind on a model or in the process."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

    hooks = [
        (n, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), len(m._backward_pre_hooks))
        for n, m in model.named_modules()
    ]
    own = [(n, m.forward) for n, m in model.named_modules() if "forward" in vars(m)]
    return (
        hooks, own, sorted(ALL_ATTENTION_FUNCTIONS), vars(AttentionInterface).get("get_interface"),
        vars(AttentionInterface).get("__getitem__"), F.scaled_dot_product_attention, F.softmax, torch.softmax,
        torch.Tensor.softmax, F.multi_head_attention_forward, torch.backends.mha.get_fastpath_enabled(),
        str(model.config) if hasattr(model, "config") else "", live.left_behind(), live.anyone(),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["llama-gqa", "unet", "torch-mha", "deberta-v2", "t5"])
@pytest.mark.parametrize("how", ["normal", "exception", "interrupt"])
def test_nothing_is_left_behind(name: str, how: str) -> None:
    f = FAMILIES[name]()
    before = state(f.model)
    error = {"exception": RuntimeError, "interrupt": KeyboardInterrupt}.get(how)

    class Breaks(Tap):
        def out(self, c, y):
            if error:
                raise error("on purpose")

        def out_as_rows(self, c, p, start):
            return self.out(c, p)

    raises = pytest.raises(error, match="on purpose") if error else contextlib.nullcontext()
    with raises, torch.no_grad(), attach(f.model, taps.Entropy(), Breaks()):
        f.run()
    assert state(f.model) == before


@pytest.mark.parametrize("name", list(FAMILIES))
@torch.no_grad()
def test_empty_attach_is_bit_for_bit_the_model(name: str) -> None:
    f = FAMILIES[name]()
    plain = logits_of(f.run())
    with attach(f.model):
        seen = logits_of(f.run())
    assert torch.equal(plain, seen)


@torch.no_grad()
def test_empty_attach_costs_little(llama) -> None:
    # ratio of the fastest of many short runs; the bar of 3 % is measured by benchmarks/ on a full-size model
    def fastest(times: int = 30) -> float:
        best = float("inf")
        for _ in range(times):
            start = time.perf_counter()
            llama.run()
            best = min(best, time.perf_counter() - start)
        return best

    plain = fastest()
    with attach(llama.model):
        tapped = fastest()
    assert tapped < plain * 1.25


@torch.no_grad()
def test_nested_attaches_act_in_the_order_of_entry(llama) -> None:
    heads = HeadSet([(SITE, 0)])
    outer, inner = taps.Outputs(keep="last"), taps.Outputs(keep="last")
    with attach(llama.model, taps.scale(heads, 2.0), outer), attach(llama.model, taps.ablate(heads), inner):
        llama.run()
    plain = taps.Outputs(keep="last")
    with attach(llama.model, plain):
        llama.run()
    torch.testing.assert_close(outer.values[SITE][0][:, 0], plain.values[SITE][0][:, 0] * 2)
    assert float(inner.values[SITE][0][:, 0].abs().max()) == 0


@torch.no_grad()
def test_a_part_of_a_model_has_its_own_names(llama) -> None:
    whole, part = taps.Entropy(), taps.Entropy()
    with attach(llama.model, whole), attach(llama.model.model.layers[1], part):
        llama.run()
    assert list(whole.values) == [SITE, "model.layers.1.self_attn"]
    assert list(part.values) == ["self_attn"]
    assert torch.equal(part.values["self_attn"][0], whole.values["model.layers.1.self_attn"][0])


@torch.no_grad()
def test_two_models_at_once_do_not_mix(llama) -> None:
    other = FAMILIES["unet"]()
    a, b = taps.Entropy(), taps.Entropy()
    with attach(llama.model, a), attach(other.model, b):
        llama.run()
        other.run()
    assert set(a.values) == {SITE, "model.layers.1.self_attn"}
    assert set(b.values) == set(other.kinds)


def test_two_threads_with_their_own_taps_on_one_model(llama) -> None:
    found: dict[int, tuple] = {}
    barrier = threading.Barrier(2)

    def work(number: int) -> None:
        with torch.no_grad():
            entropy = taps.Entropy(keep="all")
            with attach(llama.model, entropy, *([taps.ablate(HeadSet([(SITE, 0)]))] if number else [])):
                barrier.wait()
                for _ in range(5):
                    out = logits_of(llama.run())
                barrier.wait()
            found[number] = (len(entropy.values[SITE]), out)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    with torch.no_grad():
        plain = logits_of(llama.run())
        with attach(llama.model, taps.ablate(HeadSet([(SITE, 0)]))):
            edited = logits_of(llama.run())
    assert found[0][0] == found[1][0] == 5
    assert torch.equal(found[0][1], plain)
    assert torch.equal(found[1][1], edited)
    assert live.left_behind() == []


def test_a_thread_without_taps_of_its_own_is_seen(llama) -> None:
    entropy = taps.Entropy()
    with attach(llama.model, entropy):
        thread = threading.Thread(target=lambda: llama.model(input_ids=llama.inputs["input_ids"]))
        thread.start()
        thread.join()
    assert set(entropy.values) == {SITE, "model.layers.1.self_attn"}


class TestRefusals:
    def test_pattern_that_matches_nothing(self, llama) -> None:
        with pytest.raises(AttachError, match=r"matches no module of LlamaForCausalLM.*self_attn"):
            attach(llama.model, taps.Entropy(), sites="model.layers.0.self_atn")

    def test_head_that_does_not_exist(self, llama) -> None:
        with pytest.raises(UnbraidError, match="heads 0 to 3"), attach(llama.model, taps.ablate(HeadSet([(SITE, 4)]))):
            llama.run()

    def test_site_that_does_not_exist(self, llama) -> None:
        with pytest.raises(AttachError, match="Did you mean"):
            attach(llama.model, taps.ablate(HeadSet([("model.layers.0.attn", 0)])))

    def test_unsupported_backend(self, llama) -> None:
        llama.model.set_attn_implementation("flex_attention")
        try:
            with pytest.raises(AttachError, match="set_attn_implementation"), attach(llama.model, taps.Entropy()):
                llama.run()
        finally:
            llama.model.set_attn_implementation("sdpa")

    def test_model_without_attention(self) -> None:
        model = nn.Sequential(nn.Linear(3, 3))
        with pytest.raises(AttachError, match="no module with attention"), attach(model, taps.Entropy()):
            model(torch.ones(1, 3))

    def test_attention_that_reaches_no_seam(self) -> None:
        class Attention(nn.Module):
            def forward(self, x):
                return torch.softmax(x @ x.transpose(-1, -2), -1) @ x

        model = Attention()
        with pytest.raises(AttachError, match='seams="softmax"'), attach(model, taps.Entropy()):
            model(torch.randn(1, 2, 5, 4))
        entropy = taps.Entropy()
        with attach(model, entropy, seams="softmax"):
            model(torch.randn(1, 2, 5, 4))
        assert entropy.values[""][0].shape == (1, 2, 5)

    def test_compiled_model(self, llama) -> None:
        with pytest.raises(AttachError, match=r"torch\.compile"):
            attach(torch.compile(FAMILIES["llama-mha"]().model), taps.Entropy())

    def test_compiled_in_place(self) -> None:
        model = FAMILIES["llama-mha"]().model
        model.model.layers[0].compile()
        with pytest.raises(AttachError, match=r"'model\.layers\.0' is compiled"):
            attach(model, taps.Entropy())

    def test_scripted_model(self) -> None:
        with pytest.raises(AttachError, match="compiled"):
            attach(torch.jit.script(nn.Linear(2, 2)), taps.Entropy())

    def test_pipelines_taps_and_options(self, llama) -> None:
        with pytest.raises(UnbraidError, match=r"pipe\.unet"):
            attach(object(), taps.Entropy())
        with pytest.raises(UnbraidError, match="takes taps"):
            attach(llama.model, "entropy")
        with pytest.raises(UnbraidError, match="seams='flash'"):
            attach(llama.model, taps.Entropy(), seams="flash")
        with pytest.raises(UnbraidError, match="recipe="):
            attach(llama.model, taps.Entropy(), recipe="magic")

    def test_unknown_argument_of_a_model(self, llama) -> None:
        from unbraid.core.seams.transformers import check

        with pytest.raises(AttachError, match="'new_trick'"):
            check("sdpa", llama.model, {"new_trick": 3}, None)
        check("sdpa", llama.model, {"new_trick": None}, None)

    def test_opening_twice(self, llama) -> None:
        session = attach(llama.model, taps.Entropy(), strict=False)
        with session, pytest.raises(UnbraidError, match="open already"):
            session.__enter__()


@torch.no_grad()
def test_sites_can_be_globs_lists_and_functions(llama) -> None:
    for sites in ("*layers.1*", ["model.layers.1.self_attn"], lambda n: n.startswith("model.layers.1")):
        entropy = taps.Entropy()
        with attach(llama.model, entropy, sites=sites) as session:
            llama.run()
        assert list(entropy.values) == list(session.sites) == ["model.layers.1.self_attn"]


@torch.no_grad()
def test_prediction_before_the_run(llama) -> None:
    session = attach(llama.model, taps.Mass({"first": [0]}), taps.Entropy(), recipe="fused")
    told = session.predict(llama.inputs)
    with session:
        llama.run()
    assert told.fused_calls == session.log.fused_calls > 0
    assert told.bytes == session.log.predicted_bytes
    longer = session.predict(llama.inputs, length=2048)
    assert longer.bytes > told.bytes
    assert "sites" in str(longer)


def test_gradients_flow_through_rows_and_edits_and_checkpointing() -> None:
    f = FAMILIES["llama-gqa"]()
    heads = HeadSet([(SITE, 1), ("model.layers.1.self_attn", 2)])

    def gradients(checkpoint: bool, *taps_: Tap) -> list[torch.Tensor]:
        f.model.zero_grad()
        f.model.train(checkpoint)
        if checkpoint:
            f.model.gradient_checkpointing_enable({"use_reentrant": False})
        with attach(f.model, *taps_):
            logits_of(f.model(**f.inputs, use_cache=False)).square().mean().backward()
        f.model.gradient_checkpointing_disable()
        f.model.eval()
        return [p.grad.clone() for p in f.model.parameters() if p.grad is not None]

    class Same(Tap):
        edits_rows = True

        def rows(self, c, p, start):
            return p * 1.0

    plain = gradients(False, taps.Entropy())
    for other in (gradients(True, taps.Entropy()), gradients(False, Same()), gradients(True, Same())):
        for a, b in zip(plain, other, strict=True):
            assert float((a - b).abs().max()) < 1e-5 * max(1.0, float(a.abs().max()))
    edited = gradients(False, taps.scale(heads, 0.5))
    again = gradients(True, taps.scale(heads, 0.5))
    assert any(not torch.allclose(a, b) for a, b in zip(plain, edited, strict=True))
    for a, b in zip(edited, again, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_statistics_with_gradients() -> None:
    f = FAMILIES["llama-gqa"]()
    p_of = f.model.model.layers[0].self_attn.k_proj.weight
    grads = {}
    for tap in (
        taps.Mass({"first": [0]}, grad=True),
        taps.Rows([-1], grad=True),
        taps.Entropy(grad=True),
        taps.Maps(grad=True),
    ):
        f.model.zero_grad()
        with attach(f.model, tap, sites=SITE):
            f.run()
        live_value = tap.live[SITE]
        if isinstance(tap, taps.Mass | taps.Maps):
            live_value[..., 0].sum().backward()
        else:
            live_value.square().sum().backward()
        grads[type(tap).__name__] = p_of.grad.clone()
        assert float(p_of.grad.abs().max()) > 0
    torch.testing.assert_close(grads["Mass"], grads["Maps"], atol=1e-5, rtol=1e-3)


@torch.no_grad()
def test_tokens_choose_what_is_averaged() -> None:
    f = FAMILIES["llama-right"]()
    mask = f.inputs["attention_mask"].bool()
    whole, kept = taps.Entropy(), taps.Entropy()
    with attach(f.model, whole):
        f.run()
    with attach(f.model, kept, tokens=mask):
        f.run()
    raw = whole.values[SITE][0]
    want = (raw * mask[:, None]).sum((0, 2)) / mask.sum()
    torch.testing.assert_close(torch.tensor(kept.scores().scores[SITE]).float(), want, atol=1e-5, rtol=1e-4)
    with pytest.raises(UnbraidError, match="batch"), attach(f.model, taps.Entropy(), tokens=torch.ones(3, 21)):
        f.run()


@pytest.mark.parametrize("name", ["llama-gqa", "llama-nopad", "gpt2", "bert", "unet", "t5"])
@torch.no_grad()
def test_outputs_made_from_blocks_stay_within_rounding(name: str) -> None:
    f = FAMILIES[name]()
    plain = logits_of(f.run())
    with attach(f.model, taps.Entropy(), taps.ArgMax(), bitwise=False, recipe="rows"):
        seen = logits_of(f.run())
    error = (plain - seen).abs()
    if f.rows is not None and error.shape[1] == f.rows.shape[1]:
        error = error[f.rows]
    assert float(error.max()) < 1e-5 * max(1.0, float(plain.abs().max()))


@torch.no_grad()
def test_static_caches_are_tapped_alike(llama) -> None:
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    dynamic, static = taps.Rows([-1], keep="all"), taps.Rows([-1], keep="all")
    with attach(llama.model, dynamic):
        a = llama.model.generate(**llama.inputs, **options)
    with attach(llama.model, static):
        b = llama.model.generate(**llama.inputs, **options, cache_implementation="static", disable_compile=True)
    assert torch.equal(a, b)
    for x, y in zip(dynamic.values[SITE], static.values[SITE], strict=True):
        n = x.shape[-1]
        assert float((x - y[..., :n]).abs().max()) < 1e-5
        assert float(y[..., n:].abs().max() if y.shape[-1] > n else 0.0) == 0


def test_a_function_imported_by_name_is_seen(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    (tmp_path / "own_attention.py").write_text(
        "from torch import nn\n"
        "from torch.nn.functional import scaled_dot_product_attention\n"
        "class Own(nn.Module):\n"
        "    def forward(self, x):\n"
        "        return scaled_dot_product_attention(x, x, x)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    file = importlib.import_module("own_attention")
    before = file.scaled_dot_product_attention
    entropy = taps.Entropy()
    with attach(file.Own(), entropy) as session:
        session.model(torch.randn(2, 3, 7, 4))
    assert entropy.values[""][0].shape == (2, 3, 7)
    assert file.scaled_dot_product_attention is before


def test_three_dimensional_operands_are_one_head() -> None:
    class Own(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x, is_causal=True)

    model, x = Own(), torch.randn(2, 7, 4)
    maps = taps.Maps()
    with attach(model, maps):
        y = model(x)
    assert torch.equal(y, model(x))
    torch.testing.assert_close(maps.values[""][0][:, 0] @ x, y)
