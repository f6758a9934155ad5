"""Attention sinks: ten metrics against eager attention, padding and packed texts, the system, the study and page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from tests.parity.families import FAMILIES, build
from unbraid import attach, create, taps
from unbraid.core.errors import UnbraidError
from unbraid.systems import attention_sinks
from unbraid.systems.attention_sinks import TAXONOMY, AttentionSinks, report
from unbraid.systems.attention_sinks.detection import metrics
from unbraid.systems.attention_sinks.detection.layout import Layout, one_hot_columns
from unbraid.systems.attention_sinks.training.study import run_variants


def close(a, b, atol: float = 1e-4) -> None:
    torch.testing.assert_close(torch.as_tensor(a).float(), torch.as_tensor(b).float(), atol=atol, rtol=0)


def dense_alpha(p: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor, first: torch.Tensor):
    """(sink metric, first-token share) per text and head from whole maps [B, H, Q, K]."""
    seen = (p > 0).any(1) if p.shape[2] == p.shape[3] else torch.ones_like(p[:, 0], dtype=torch.bool)
    if not bool(torch.triu(p[:, 0], 1).any()):  # causal: keys are seen from their own place on
        seen = torch.ones(p.shape[2:], dtype=torch.bool).tril()[None].expand(p.shape[0], -1, -1)
    p = p * queries[:, None, :, None]
    watched = (seen & queries[..., None] & keys[:, None]).sum(1)
    alpha = (p.sum(2) / watched.clamp(min=1)[:, None]) * first[:, None]
    share = (p.sum(2) * first[:, None]).sum(-1) / queries.sum(-1)[:, None]
    return alpha.sum(-1) / first.sum(-1)[:, None], share


@pytest.mark.parametrize("name", ["llama-mha", "llama-gqa", "llama-nopad", "llama-right", "gpt2", "bert", "vit",
                                  "clip-vision"])  # fmt: skip
def test_sink_metric_and_first_token_share_are_those_of_eager_attention(name: str) -> None:
    family = FAMILIES[name]()
    maps = family.reference()
    found = report(family.model, family.inputs)
    for site, p in maps.items():
        b, q = p.shape[0], p.shape[2]
        mask = family.inputs.get("attention_mask")
        valid = torch.ones(b, q, dtype=torch.bool) if mask is None or mask.shape != (b, q) else mask.bool()
        first = valid & (valid.cumsum(-1) == 1)
        alpha, share = dense_alpha(p, valid, valid, first)
        close(found.samples[site], alpha)
        close(found.first_share.scores[site], share.mean(0))
    assert found.sink_rate(0.3) == np.mean(np.concatenate([x.ravel() for x in found.samples.values()]) > 0.3)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gets_a_report(name: str) -> None:
    family = FAMILIES[name]()
    found = report(family.model, family.inputs)
    assert set(found.samples) == set(family.kinds)
    assert 0 <= found.sink_rate() <= 1
    assert found.texts >= 1
    for x in found.samples.values():
        assert np.isfinite(x).all()
        assert (x >= -1e-6).all()
        assert (x <= 1 + 1e-4).all()
    assert len(found.summary()) >= 10


def llama(**more):
    cfg = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=99, max_position_embeddings=256, **more,
    )  # fmt: skip
    return build(transformers.LlamaForCausalLM(cfg))


def text(n: int, batch: int = 1, seed: int = 3) -> torch.Tensor:
    return torch.randint(3, 99, (batch, n), generator=torch.Generator().manual_seed(seed))


def same(a, b) -> None:
    """Two reports of the same texts."""
    for name in ("alpha", "first_share", "mass", "value_ratio", "write", "sink_key", "other_keys"):
        for site, x in vars(a)[name].scores.items():
            close(x, vars(b)[name].scores[site])
    for x, y in zip(a.layers, b.layers, strict=True):
        for key in x:
            assert x[key] == pytest.approx(y[key], rel=1e-3, abs=1e-4), key


def test_left_padding_changes_no_metric() -> None:
    model, ids = llama(), text(18)
    plain = report(model, {"input_ids": ids}, floor=0.1, ratio=2)
    padded = torch.cat([torch.full((1, 6), 5), ids], 1)
    mask = torch.ones_like(padded)
    mask[:, :6] = 0
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    found = report(model, {"input_ids": padded, "attention_mask": mask, "position_ids": places}, floor=0.1, ratio=2)
    same(plain, found)
    assert [m["token"] for m in found.massive] == [m["token"] for m in plain.massive]


def test_packed_texts_have_a_sink_each() -> None:
    model, ids = llama(), text(24)
    parts = (ids[:, :10], ids[:, 10:])
    places = torch.cat([torch.arange(10), torch.arange(14)])[None]
    found = report(model, {"input_ids": ids, "position_ids": places})
    alone = [report(model, {"input_ids": x}) for x in parts]
    for site in found.samples:
        close(found.samples[site], (alone[0].samples[site] + alone[1].samples[site]) / 2)
        mean = (10 * alone[0].first_share.scores[site] + 14 * alone[1].first_share.scores[site]) / 24
        close(found.first_share.scores[site], mean)


def test_values_keys_and_writes_are_those_of_eager_attention() -> None:
    model, ids = llama(), text(15)
    found = report(model, {"input_ids": ids}, sinks=(0, 2))
    calls = {}

    class Keep(taps.Observer):
        def out(self, c, y):
            calls[c.site] = (c, y)

    maps = taps.Maps()
    with torch.no_grad(), attach(model, Keep(), maps):
        model(input_ids=ids)
    for number, (site, (c, y)) in enumerate(calls.items()):
        p, v, k = maps.values[site][0], c.expand(c.value), c.key
        write = p[..., [0, 2]] @ v[:, :, [0, 2]]
        w = model.model.layers[number].self_attn.o_proj.weight.view(64, 4, 16).permute(1, 2, 0)
        ratio = (write @ w).norm(dim=-1) / (y @ w).norm(dim=-1)
        close(found.write.scores[site], ratio.mean((0, 2)), 1e-3)
        unit = torch.nn.functional.normalize(write, dim=-1)
        cosines = unit @ unit.transpose(-1, -2)
        n = ids.shape[1]
        close(found.constancy.scores[site], ((cosines.sum((-1, -2)) - n) / (n * (n - 1)))[0], 1e-3)
        norms = c.value.norm(dim=-1)
        want = norms[..., [0, 2]].mean(-1) / norms.median(-1).values
        close(found.value_ratio.scores[site], want[0].repeat_interleave(2), 1e-3)
        unit = torch.nn.functional.normalize(k, dim=-1)
        away = 1 - torch.nn.functional.cosine_similarity(unit, unit.mean(2, keepdim=True), dim=-1)
        close(found.sink_key.scores[site], away[..., [0, 2]].mean(-1)[0].repeat_interleave(2), 1e-3)
        close(found.mass.scores[site], p[..., [0, 2]].sum(-1).mean((0, 2)), 1e-3)


def test_a_planted_massive_activation_is_reported_with_its_life() -> None:
    model, ids = llama(), text(12, batch=2)

    def plant(layer, value):
        def hook(module, args, output):
            h = output[0] if isinstance(output, tuple) else output
            h[:, 3, 17] += value
            return output

        return model.model.layers[layer].register_forward_hook(hook)

    handles = [plant(0, 1e6), plant(1, -1e6)]
    try:
        found = report(model, {"input_ids": ids})
    finally:
        for handle in handles:
            handle.remove()
    at_first = [m for m in found.massive if m["layer"] == 0]
    assert {(m["text"], m["token"], m["channel"]) for m in at_first} == {(0, 3, 17), (1, 3, 17)}
    assert found.lifecycle["emerges"] == 0
    assert found.layers[0]["kurtosis"] > 100
    quiet = report(model, {"input_ids": ids})
    assert quiet.massive == []
    assert quiet.lifecycle == {"emerges": None, "last": None, "gone": None}


def test_metrics_as_functions() -> None:
    alpha = torch.tensor([[0.9, 0.01, 0.01, 0.02], [0.25, 0.25, 0.25, 0.25]])
    marks = metrics.cumulative_sinks(alpha, torch.ones_like(alpha, dtype=torch.bool), 3)
    assert marks.tolist() == [[True, False, False, False], [False] * 4]
    hidden = torch.ones(1, 4, 10)
    hidden[0, 2, 5] = 50
    assert metrics.channel_sinks(hidden, [5], 2.5).tolist() == [[False, False, True, False]]
    assert metrics.channel_sinks(hidden, [4], 2.5).any().item() is False
    gauss = torch.randn(1, 200, 300, generator=torch.Generator().manual_seed(0))
    whole, tokens = metrics.kurtosis(gauss, torch.ones(1, 200, dtype=torch.bool))
    assert abs(whole - 3) < 0.1
    assert abs(tokens - 3) < 0.2
    assert metrics.lifecycle([2, 3, 4], 8) == {"emerges": 2, "last": 4, "gone": 5}
    assert metrics.lifecycle([2, 7], 8)["gone"] is None
    maxima = torch.rand(6, 100, generator=torch.Generator().manual_seed(0))
    maxima[2, 7], maxima[0, 0] = 500.0, torch.nan
    assert metrics.super_experts(maxima).nonzero().tolist() == [[2, 7]]
    a = torch.tensor([[1.0, 5, 3, 9]])
    close(metrics.rank_correlation(a, a**3), [1.0])
    close(metrics.rank_correlation(a, -a), [-1.0])


def test_a_planted_super_expert_is_found() -> None:
    cfg = transformers.Qwen3MoeConfig(
        hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_experts=8, num_experts_per_tok=2, vocab_size=99,
    )  # fmt: skip
    model, ids = build(transformers.Qwen3MoeForCausalLM(cfg)), text(40, batch=2)
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[3] *= 1e4
    found = report(model, {"input_ids": ids})
    assert found.experts is not None
    assert [(e["module"], e["expert"]) for e in found.experts] == [("model.layers.1.mlp.experts", 3)]
    assert report(llama(), {"input_ids": ids}).experts is None


def test_columns_and_layouts() -> None:
    marks = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0]]).bool()
    columns, index, real = one_hot_columns(marks)
    assert columns.shape == (2, 1, 4, 2)
    assert columns.sum(-1)[:, 0].tolist() == marks.float().tolist()
    assert index[0].tolist() == [0, 2]
    assert real.tolist() == [[True, True], [True, False]]
    packed = Layout.of(text(6), None, torch.tensor([[0, 1, 2, 0, 1, 0]]))
    assert packed.first[0].tolist() == [True, False, False, True, False, True]


def test_batches_are_pooled() -> None:
    model, ids = llama(), text(14, batch=6)
    whole = report(model, {"input_ids": ids}, floor=0.1, ratio=2)
    parts = report(model, ({"input_ids": ids[i : i + 2]} for i in range(0, 6, 2)), floor=0.1, ratio=2)
    assert {m["text"] for m in whole.massive} == {m["text"] for m in parts.massive} == set(range(6))
    for site in whole.samples:
        close(whole.samples[site], parts.samples[site])
    assert parts.texts == 6
    assert parts.rate_per_text(0.1).shape == (6,)


def test_long_texts_stay_linear_in_memory() -> None:
    """One map of 4 heads takes 4 MiB at 512 tokens; with 1 MiB allowed the report is the same."""
    model, ids = llama(), text(512)
    with_limit = report(model, {"input_ids": ids}, memory=1 << 20)
    same(report(model, {"input_ids": ids}), with_limit)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: report(m, {"input_ids": text(0)}), "empty"),
        (lambda m: report(m, []), "list is empty"),
        (lambda m: report(m, {"input_ids": text(5)}, sinks=(7,)), "position 7"),
        (lambda m: report(m, {"input_ids": text(5)}, sinks=()), "positions from 0"),
        (lambda m: report(m, {"input_ids": text(5)}, sinks=(-1,)), "positions from 0"),
        (lambda m: report(m, {"input_ids": text(5)}, epsilon=1.5), "epsilon is 1.5"),
        (lambda m: report(m, {"input_ids": text(5)}, tau=0), "tau is 0"),
        (lambda m: report(m, {"input_ids": text(5), "attention_mask": torch.ones(1, 4)}), "one 0 or 1 per token"),
        (lambda m: report(m, {"input_ids": text(5), "attention_mask": torch.zeros(1, 5)}), "no token"),
        (lambda m: AttentionSinks().heads_, "not fitted"),
    ],
)
def test_what_is_refused(call, message: str) -> None:
    with pytest.raises(UnbraidError, match=message):
        call(llama())


def test_the_system_keeps_and_saves_what_it_found(tmp_path: Path) -> None:
    model, ids = llama(), text(20, batch=3)
    system = create("attention_sinks", epsilon=0.05).fit(model, {"input_ids": ids})
    assert 0 < len(system.heads_) <= 8
    assert system.sink_rate_ == system.seen.sink_rate()
    again = AttentionSinks.from_pretrained(system.save_pretrained(tmp_path / "saved"))
    assert again.heads_ == system.heads_
    assert again.summary_ == system.summary_
    assert again.layers_ == system.layers_


def test_the_taxonomy_names_what_there_is() -> None:
    for branch in TAXONOMY:
        for name in branch.names:
            assert callable(getattr(attention_sinks, name)), name
    named = {name for branch in TAXONOMY for name in branch.names}
    public = set(attention_sinks._HOME) - {"TAXONOMY", "SinkReport", "run"}
    helpers = {
        "AffineQuantizedLayer", "cache_bytes", "cache_losses", "channel_sinks", "first_tokens", "head_groups",
        "key_distinctiveness", "stream_losses", "var_sites",
    }  # fmt: skip
    assert public - helpers <= named
    with pytest.raises(AttributeError, match="no attribute"):
        attention_sinks.nothing


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    from unbraid.data.text import english

    raw = ByteLevelBPETokenizer()
    raw.train_from_iterator([english(60_000)], vocab_size=400, special_tokens=["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=raw._tokenizer, bos_token="<s>", eos_token="</s>")


SMALL = {
    "texts": 6, "length": 16, "stream_tokens": 80, "stream_cache": 20, "chunk": 16, "compare_tokens": 64,
    "compare_texts": 2, "compare_chunk": 8, "budget": 16, "probe_texts": 3, "probe_length": 16, "progress": False,
}  # fmt: skip


def test_a_small_study_makes_a_page_and_resumes(tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unbraid.systems.attention_sinks.experiments import study

    model = build(
        transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, vocab_size=400, max_position_embeddings=256,
            )
        )
    )  # fmt: skip
    monkeypatch.setattr(study, "load", lambda *a: (model, tokenizer))
    result = study.run(**SMALL, others=("other",), streams=2, keep=tmp_path / "keep")
    assert [c.name for c in result.claims] == [c.name for c in attention_sinks.CARD.claims]
    names = list(result.tables)
    assert names[0] == "what each method buys and costs"
    rows = result.tables[names[0]].records
    assert len(rows) >= 18
    assert all(r["perplexity"] > 1 for r in rows)
    assert {r["branch"] for r in rows} == {"baseline", "3.1", "3.2", "3.4"}
    folder = result.save(tmp_path / "page")
    assert "Attention on the first token" in (folder / "index.html").read_text(encoding="utf-8")
    variants = run_variants(["softmax1"], 1, "tiny", 2, 2, 16, toy_seeds=0, progress=False).save(tmp_path / "variants")
    again = study.run(**SMALL, others=("other",), streams=2, keep=tmp_path / "keep", trained=variants)
    assert any("read back" in note for note in again.notes)
    assert any(name.startswith("trained variants: ") for name in again.tables)
    assert any(figure.title == "What each variant buys and costs" for figure in again.figures)
    assert again.claims[-1].name == "trained-softmax1"
    assert again.tables[names[0]] == result.tables[names[0]]
    short = study.run(**{**SMALL, "stream_tokens": 0, "compare_tokens": 0, "probe_texts": 0})
    assert sum(c.holds is None for c in short.claims) == 6
    for bad in (
        {"texts": 0}, {"stream_sinks": (30,)}, {"stream_sinks": ()}, {"stream_tokens": 10}, {"compare_tokens": 20},
        {"budget": 2}, {"chunk": 0},
    ):  # fmt: skip
        with pytest.raises(UnbraidError, match="--"):
            study.run(**{**SMALL, **bad})


def test_a_model_without_text_or_keys_is_refused(tmp_path: Path) -> None:
    from unbraid.systems.attention_sinks.experiments.study import run

    FAMILIES["bert"]().model.save_pretrained(tmp_path / "bert")
    with pytest.raises(UnbraidError, match="decoder language model"):
        run(model=str(tmp_path / "bert"), progress=False)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UnbraidError, match=r"--keep .* cannot be used"):
        run(keep=tmp_path / "file", progress=False)
    llama().save_pretrained(tmp_path / "llama")
    with pytest.raises(UnbraidError, match="no tokenizer"):
        run(model=str(tmp_path / "llama"), progress=False)
