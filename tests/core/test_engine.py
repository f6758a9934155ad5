"""Every statistic without the matrix against dense float32, under every kind of mask, by both recipes; prices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unbraid.core.calls import Ask, AttentionCall
from unbraid.core.engine import fused
from unbraid.core.engine.answers import Log, Options, Question, ask_together
from unbraid.core.engine.cost import Rates, rates
from unbraid.core.engine.logits import dense, top_of, two_level_max
from unbraid.core.engine.plan import Shape, Wanted, plan
from unbraid.core.engine.rows import sweep
from unbraid.core.errors import UnbraidError

MASKS = [
    "none",
    "causal",
    "bool",
    "blind-row",
    "left-pad",
    "window",
    "additive",
    "per-head",
    "sinks",
    "softcap",
    "bias",
]


def make(
    mask: str, b: int = 2, h: int = 6, g: int = 2, q: int = 70, k: int = 70, d: int = 16, seed: int = 0
) -> AttentionCall:
    torch.manual_seed(seed)
    more: dict = {}
    i, j = torch.arange(q)[:, None], torch.arange(k)[None]
    if mask in ("causal", "sinks", "softcap", "bias"):
        more["causal"] = True
    if mask == "bool":
        more["mask"] = (torch.rand(b, 1, q, k) > 0.4) | (i == j)
    elif mask == "blind-row":
        more["mask"] = torch.rand(b, 1, q, k) > 0.4
        more["mask"][:, :, 3] = False
    elif mask == "left-pad":
        more["mask"] = ((j <= i) & (j >= 9)).expand(b, 1, q, k).clone()
    elif mask == "window":
        more["mask"] = ((j <= i) & (j > i - 8)).expand(b, 1, q, k)
    elif mask == "additive":
        more["mask"] = torch.randn(b, 1, q, k)
    elif mask == "per-head":
        more["mask"] = torch.randn(1, h, q, k).masked_fill(j > i, torch.finfo(torch.float32).min)
    elif mask == "sinks":
        more["sinks"] = torch.randn(h)
    elif mask == "softcap":
        more["softcap"] = 2.0
    elif mask == "bias":
        more["key_bias"] = torch.randn(1, h, k)
    query, key, value = torch.randn(b, h, q, d), torch.randn(b, g, k, d), torch.randn(b, g, k, d)
    return AttentionCall("site", 0, "self", query, key, value, scale=0.5, **more)


class Keep:
    """Stands for a tap: only hears."""

    def take(self, c, answer) -> None:
        self.answer = answer


def answer_of(c: AttentionCall, ask: Ask, **options):
    log, tap = Log(), Keep()
    ask_together(c, [Question(tap, c, ask)], Options(**options), log, want_output=False)
    return tap.answer, log


@pytest.mark.parametrize("recipe", ["rows", "fused", None])
@pytest.mark.parametrize("mask", MASKS)
def test_every_statistic_equals_dense(mask: str, recipe: str | None) -> None:
    c = make(mask)
    p = dense(c)
    q, k = c.queries, c.keys
    indicator = torch.zeros(k, 2)
    indicator[5:9, 0] = 1.0
    indicator[::3, 1] = 1.0
    pairs = torch.randint(0, q, (40,)), torch.randint(0, k, (40,))
    for e in (indicator, torch.randn(k, 3), torch.randn(c.batch, c.heads, k, 2), torch.randn(k, 20)):
        w = torch.rand(c.batch, 1, q, 2)
        ask = Ask(moments=e, weights=w, entries=pairs, entropy=True, lse=True, rows=torch.tensor([0, 3, q - 1]))
        got, log = answer_of(c, ask, recipe=recipe, check=8)
        size = max(1.0, float(e.abs().max()))
        assert float((got.moments - p @ e).abs().max()) < 1e-5 * size
        assert float((got.weights - p.transpose(-1, -2) @ w).abs().max()) < 1e-5
        assert float((got.entropy - torch.special.entr(p).sum(-1)).abs().max()) < 1e-5
        assert float((got.entries - p[:, :, pairs[0], pairs[1]]).abs().max()) < 1e-5
        assert float((got.rows - p[:, :, [0, 3, q - 1]]).abs().max()) < 1e-5
        assert log.largest_error < 1e-5
        assert log.checked_rows == 8 * c.batch * c.heads
        if mask not in ("sinks", "blind-row"):
            torch.testing.assert_close(got.lse, logits_of(c).logsumexp(-1), atol=1e-5, rtol=0)


def logits_of(c: AttentionCall) -> Tensor:
    s = c.query @ c.expand(c.key).transpose(-1, -2) * c.scale
    if c.softcap:
        s = c.softcap * torch.tanh(s / c.softcap)
    if c.key_bias is not None:
        s = s + c.key_bias[..., None, :]
    if c.mask is not None:
        s = s.masked_fill(~c.mask, -torch.inf) if c.mask.dtype == torch.bool else s + c.mask
    if c.causal:
        s = s.masked_fill(torch.ones(c.queries, c.keys, dtype=torch.bool).triu(1), -torch.inf)
    return s


@pytest.mark.parametrize("elements", [1 << 20, 3 * 128 * 7, 100])
@pytest.mark.parametrize("mask", MASKS)
def test_any_block_size_gives_the_same(mask: str, elements: int) -> None:
    c = make(mask)
    p = dense(c)
    w = torch.ones(c.batch, 1, c.queries, 1)
    got, y, blocks = sweep(c, Ask(weights=w, entropy=True, top=3), [torch.eye(c.keys)[:, :2]], elements, output=True)
    assert blocks == (1 if elements == 1 << 20 else blocks)
    assert blocks >= 1
    best = p.topk(3, -1)
    assert float((got.top[0] - best.values).abs().max()) < 1e-5
    hit = got.top[1][..., 0]
    seen = p.amax(-1) > 0
    assert torch.equal(hit[seen], p.argmax(-1)[seen])
    assert bool((hit[~seen] == -1).all())
    assert float((y - p @ c.expand(c.value)).abs().max()) < 1e-5
    assert float((got.weights[..., 0] - p.sum(2)).abs().max()) < 1e-4


@settings(max_examples=40, deadline=None)
@given(
    q=st.integers(1, 130), extra=st.integers(0, 70), h=st.integers(1, 4), rep=st.integers(1, 3), b=st.integers(1, 3),
    mask=st.sampled_from(["none", "causal", "bool", "additive"]), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_random_shapes(q: int, extra: int, h: int, rep: int, b: int, mask: str, seed: int) -> None:
    c = make(mask, b=b, h=h * rep, g=h, q=q, k=q + (0 if mask == "causal" else extra), d=8, seed=seed)
    if c.mask is not None and c.mask.dtype == torch.bool:
        c = c.replace(mask=c.mask | (torch.arange(c.keys) == 0))
    p = dense(c)
    for recipe in ("rows", "fused"):
        got, _ = answer_of(
            c, Ask(entropy=True, top=1, moments=torch.eye(c.keys)[:, :1], weights=torch.ones(q, 1)), recipe=recipe
        )
        assert float((got.entropy - torch.special.entr(p).sum(-1)).abs().max()) < 1e-5
        assert float((got.moments[..., 0] - p[..., 0]).abs().max()) < 1e-5
        assert float((got.weights[..., 0] - p.sum(2)).abs().max()) < 1e-4
        assert float((got.top[0][..., 0] - p.amax(-1)).abs().max()) < 1e-5


def test_ties_go_to_the_lowest_key() -> None:
    s = torch.zeros(2, 3, 128)
    s[0, 0, [70, 9, 100]] = 1.0
    s[1, 2, [127, 64]] = 2.0
    _, chunks = two_level_max(s)
    best = top_of(s, chunks, 1)[..., 0]
    assert best[0, 0] == 9
    assert best[1, 2] == 64
    assert best[0, 1] == 0


def test_questions_of_several_taps_are_one_sweep_and_merged_fused_calls() -> None:
    c = make("causal")
    asks = [Ask(moments=torch.randn(70, 3)), Ask(moments=torch.randn(70, 5)), Ask(moments=torch.randn(70, 8))]
    taps = [Keep() for _ in asks]
    for recipe, fused_calls, sweeps in (("fused", 1, 0), ("rows", 0, 1)):
        log = Log()
        ask_together(
            c,
            [Question(t, c, a) for t, a in zip(taps, asks, strict=True)],
            Options(recipe=recipe),
            log,
            want_output=False,
        )
        assert (log.fused_calls, log.sweeps) == (fused_calls, sweeps)
        for tap, ask in zip(taps, asks, strict=True):
            assert float((tap.answer.moments - dense(c) @ ask.moments).abs().max()) < 1e-5


@pytest.mark.parametrize("mask", ["none", "causal", "bool", "sinks"])
def test_predicted_calls_equal_the_calls_made(mask: str) -> None:
    c = make(mask)
    for ask in (
        Ask(moments=torch.randn(70, 20)),
        Ask(entropy=True),
        Ask(weights=torch.ones(70, 1)),
        Ask(entropy=True, lse=True, moments=torch.randn(70, 1)),
    ):
        _, log = answer_of(c, ask, recipe="fused")
        extra = 0 if mask != "sinks" else 1  # a sink asks for the log-sum-exp once more
        assert log.predicted_fused <= log.fused_calls <= log.predicted_fused + extra


@pytest.mark.parametrize("recipe", ["rows", "fused"])
def test_predicted_memory_bounds_what_is_used(recipe: str) -> None:
    c = make("causal", b=1, h=8, g=8, q=1024, k=1024, d=64)
    ask = Ask(entropy=True, moments=torch.eye(1024)[:, :4], weights=torch.ones(1024, 1))
    answer_of(c, ask, recipe=recipe)  # warm
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        _, log = answer_of(c, ask, recipe=recipe)
    alive = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    assert peak > 0
    assert peak <= log.predicted_bytes * 1.25
    twice = make("causal", b=1, h=8, g=8, q=2048, k=2048, d=64)
    _, longer = answer_of(
        twice, Ask(entropy=True, moments=torch.eye(2048)[:, :4], weights=torch.ones(2048, 1)), recipe=recipe
    )
    assert longer.predicted_bytes < 2.2 * log.predicted_bytes  # linear, where the matrix grows fourfold
    assert log.predicted_bytes <= 4 * peak  # a bound that says something


def test_memory_budget_shrinks_blocks_and_refuses_the_impossible() -> None:
    c = make("causal", q=256, k=256)
    _, wide = answer_of(c, Ask(entropy=True))
    _, tight = answer_of(c, Ask(entropy=True), memory=400_000)
    assert tight.blocks > wide.blocks
    with pytest.raises(UnbraidError, match="MiB allowed"):
        answer_of(c, Ask(rows=torch.arange(256)), memory=100_000)


def test_the_cost_model_prefers_what_is_cheaper() -> None:
    shape = Shape.of(make("causal", q=70))
    slow_kernel, fast_kernel = Rates(fused=10.0, fused_back=30.0), Rates(fused=0.01, fused_back=0.02)
    for wanted in (Wanted(moments=2), Wanted(entropy=True), Wanted(weights=1)):
        name = "moments" if wanted.moments else "entropy" if wanted.entropy else "weights"
        assert plan(shape, wanted, slow_kernel, 1 << 20).recipe[name] == "rows"
        assert plan(shape, wanted, fast_kernel, 1 << 20).recipe[name] == "fused"
    assert plan(shape, Wanted(top=1, entropy=True), fast_kernel, 1 << 20).recipe["top"] == "rows"


def test_rates_are_measured_once_and_kept(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unbraid.core.engine import cost

    monkeypatch.setenv("UNBRAID_CACHE", str(tmp_path))
    monkeypatch.setattr(cost, "_known", {})
    first = rates(torch.device("cpu"))
    assert first.fused > 0
    monkeypatch.setattr(cost, "_known", {})
    monkeypatch.setattr(cost, "measure", lambda device: pytest.fail("measured twice"))
    assert rates(torch.device("cpu")) == first


def test_padding_of_values_keeps_memory_linear() -> None:
    c = make("causal", b=1, h=4, g=4, q=2048, k=2048, d=64)
    before = fused.Counter.calls
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        fused.attend(c, torch.ones(1, 4, 2048, 1))
    largest = max(e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]")
    assert fused.Counter.calls == before + 1
    assert largest < 4 * 2048 * 2048 * 4 / 8


def test_shapes_are_checked_under_pytest() -> None:
    with pytest.raises(Exception, match="chunks"):
        top_of(torch.zeros(2, 3, 128), torch.zeros(5, 2), 1)
