"""DeBERTa: the faster attention is transformers' own, its decoder and objectives do what the paper says."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertModel, DebertaV2Config, DebertaV2ForMaskedLM, DebertaV2Model
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention

from unbraid.core.errors import UnbraidError
from unbraid.systems.deberta import (
    DebertaForEnhancedMaskedLM,
    DebertaV2ForEnhancedMaskedLM,
    DebertaV2ForReplacedTokens,
    ReplacedTokenDetection,
    accelerate,
    accelerated,
    fill_mask,
    mask_spans,
    restore,
    run,
    shares,
)
from unbraid.systems.deberta.positions import bucket
from unbraid.systems.deberta.study import exactness, worlds

CASE = ("v2", True, "both", 8, 3)
FIRST = ("v1", False, "both", -1, 0)


def config(**changes):
    usual = {
        "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 64, "relative_attention": True, "pos_att_type": ["c2p", "p2c"],
        "position_biased_input": False, "type_vocab_size": 0, "position_buckets": 8, "share_att_key": True,
        "norm_rel_ebd": "layer_norm", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.1,
    }  # fmt: skip
    return DebertaV2Config(**{**usual, **changes})


def out(model, length=40):
    ids, mask = exactness.ragged(length)
    return model(ids, attention_mask=mask).last_hidden_state


@pytest.mark.parametrize("case", exactness.CASES[::3], ids=str)
def test_outputs_and_gradients_are_those_of_transformers(case):
    found = exactness.compare(case, lengths=(7, 64))
    assert max(found["tokens"], found["padding"]) <= exactness.FORWARD
    assert found["gradient"] <= exactness.GRADIENT


@pytest.mark.parametrize("case", [("v2", True, "both", 256, 0), FIRST], ids=str)
def test_beyond_the_longest_trained_distance_too(case):
    found = exactness.compare(case, lengths=(600,))
    assert max(found["tokens"], found["padding"]) <= exactness.FORWARD
    assert found["gradient"] <= exactness.GRADIENT


def test_all_of_it_equals_the_equations():
    """Against K_r and Q_r written out for each pair of tokens, without transformers' code."""
    model = exactness.build(("v2", False, "both", 8, 0))
    part, n = model.encoder.layer[0].attention.self, 12
    x, table = torch.randn(1, n, 32), model.encoder.get_rel_embedding()
    with torch.no_grad():
        q, k, v = (p(x)[0].view(n, 4, 8) for p in (part.query_proj, part.key_proj, part.value_proj))
        kr, qr = (p(table).view(-1, 4, 8) for p in (part.pos_key_proj, part.pos_query_proj))
        row = (bucket(torch.arange(n)[:, None] - torch.arange(n), 8, 512) + 8).clamp(0, 15)
        logits = torch.einsum("ihd,jhd->hij", q, k)
        logits = logits + torch.einsum("ihd,ijhd->hij", q, kr[row]) + torch.einsum("jhd,ijhd->hij", k, qr[row])
        known = torch.einsum("hij,jhd->ihd", (logits / (3 * 8) ** 0.5).softmax(-1), v).flatten(1)
        accelerate(model)
        found, probs = part(x, torch.ones(1, n), True, rel_embeddings=table)
    assert torch.allclose(found[0], known, atol=1e-5)
    assert probs.shape == (1, 4, n, n)


@pytest.mark.parametrize("backend", ["crop", "skew", "blocks"])
def test_probabilities_when_asked_for(backend):
    model = exactness.build(CASE)
    ids, mask = exactness.ragged(20)
    with torch.no_grad():
        before = model(ids, attention_mask=mask, output_attentions=True).attentions
        after = accelerate(model, backend)(ids, attention_mask=mask, output_attentions=True).attentions
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(before, after, strict=True))


def test_the_model_is_as_it_was():
    model = exactness.build(CASE)
    keys, kinds = list(model.state_dict()), [type(m) for m in model.modules()]
    before = out(model)
    with accelerated(model, backend="skew"):
        assert list(model.state_dict()) == keys
        with accelerated(model, backend="crop"):
            pass
        assert {m.quick["backend"] for m in model.modules() if hasattr(m, "quick")} == {"skew"}
    assert [type(m) for m in model.modules()] == kinds
    assert not any("quick" in vars(m) for m in model.modules())
    assert torch.equal(out(model), before)


def test_with_lora_autocast_and_checkpointing():
    from peft import LoraConfig, get_peft_model

    model = exactness.build(CASE)
    tuned = get_peft_model(model, LoraConfig(target_modules=["query_proj", "value_proj"], r=4, lora_alpha=8))
    with torch.no_grad():
        for name, p in tuned.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    tuned.eval()

    def slopes(scope):
        tuned.zero_grad()
        with scope():
            loss = out(tuned).float().square().sum()
        loss.backward()
        return {k: p.grad.clone() for k, p in tuned.named_parameters() if p.grad is not None}

    from contextlib import nullcontext

    known = slopes(nullcontext)
    half = slopes(lambda: torch.autocast("cpu", torch.bfloat16))
    tuned.gradient_checkpointing_enable()
    with accelerated(tuned):
        tuned.train()
        found, mixed = slopes(nullcontext), slopes(lambda: torch.autocast("cpu", torch.bfloat16))
        tuned.eval()
        for k, g in known.items():
            assert (found[k] - g).norm() <= 1e-4 * g.norm().clamp(min=1e-3), k
            assert (mixed[k] - half[k]).norm() <= 0.1 * g.norm(), k
        with torch.no_grad():
            one = out(tuned)
            assert torch.equal(out(tuned), one)
            with tuned.disable_adapter():
                plain = out(tuned)
            tuned.merge_adapter()
            assert torch.allclose(out(tuned), one, atol=1e-5)
    assert not torch.allclose(plain, one, atol=1e-3)


def test_what_is_kept_is_made_anew_when_a_weight_changes():
    model = accelerate(exactness.build(CASE))
    with torch.no_grad():
        before = out(model)
        model.encoder.layer[1].attention.self.key_proj.weight.data.mul_(1.5)
        after = out(model)
        assert torch.allclose(after, out(restore(model)), atol=1e-5)
    assert not torch.allclose(before, after, atol=1e-3)


def test_long_texts_as_the_official_code_has_them():
    kept = {}
    for rule in ("hf", "official"):
        model = accelerate(DebertaV2Model(config(max_relative_positions=32, max_position_embeddings=256)).eval())
        with torch.no_grad():
            model.encoder.rel_embeddings.weight.copy_(torch.randn(16, 32, generator=torch.Generator().manual_seed(1)))
        accelerate(model, long_range=rule)
        with torch.no_grad():
            kept[rule] = [out(model, 32), out(model, 100)]
            model.encoder.rel_embeddings.weight[0].neg_()  # a row that no training within 32 tokens has touched
            kept[rule].append(out(model, 100))
    assert torch.equal(kept["official"][1], kept["official"][2])
    assert not torch.allclose(kept["hf"][1], kept["hf"][2], atol=1e-3)


class Largest(TorchDispatchMode):
    """The largest tensor that is made."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.numbers = max(self.numbers, made.numel())
        return made


@pytest.mark.parametrize("drop", [0.0, 0.4])
@pytest.mark.parametrize("kept", [0, 512])
def test_slopes_of_blocks(kept, drop, monkeypatch):
    """Against differences, with the same places dropped each time, and blocks shorter than the text."""
    from unbraid.systems.deberta import blockwise
    from unbraid.systems.deberta.positions import rows

    monkeypatch.setattr(blockwise, "BLOCK", 2)
    monkeypatch.setattr(blockwise, "KEPT", kept)
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()

    given = [drawn(2, 2, 5, 3), drawn(2, 2, 4, 3), drawn(2, 2, 4, 3), drawn(2, 6, 3), drawn(2, 6, 3)]
    seen = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)

    def once(*parts):
        torch.manual_seed(1)
        return blockwise.attend(*parts, rows(5, 4, 3, -1, 3), seen, drop)

    assert torch.autograd.gradcheck(once, given)


def test_memory_is_linear_in_the_length():
    model = DebertaV2Model(config(num_hidden_layers=1, max_position_embeddings=4096, position_buckets=16)).eval()
    seen = {}
    for length in (1024, 2048):
        with accelerated(model, backend="blocks"), torch.no_grad(), Largest() as watch:
            model(torch.ones(1, length, dtype=torch.long), attention_mask=torch.ones(1, length))
        seen[length] = watch.numbers
    assert seen[2048] < 2.2 * seen[1024]
    assert seen[2048] < 4 * 2048 * 2048 / 2


def test_shares_of_each_term():
    model = exactness.build(("v2", True, "both", 8, 0))
    ids, mask = exactness.ragged(30)
    found = shares(model, {"input_ids": ids, "attention_mask": mask})
    assert np.allclose(sum(x.array for x in found.values()), 1)
    assert found["position to content"].array.shape == (2, 4)
    with torch.no_grad():
        model.encoder.rel_embeddings.weight.zero_()
        model.encoder.LayerNorm.bias.zero_()
    gone = shares(model, {"input_ids": ids, "attention_mask": mask})
    assert np.allclose(gone["content to position"].array, 0)
    assert type(model.encoder.layer[0].attention.self) is DisentangledSelfAttention


@pytest.mark.parametrize("first", [True, False])
def test_the_decoder_does_the_work_of_masked_tokens_alone(first, tmp_path):
    from transformers import DebertaConfig

    usual = {k: v for k, v in config().to_dict().items() if k not in ("model_type", "architectures")}
    made = DebertaForEnhancedMaskedLM(DebertaConfig(**usual)) if first else DebertaV2ForEnhancedMaskedLM(config())
    model = made.eval()
    ids, mask = exactness.ragged(20)
    chosen = (torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.3) & mask.bool()
    labels = torch.where(chosen, ids, -100)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
        assert torch.allclose(model.predict_rows(ids, mask, chosen), logits[chosen], atol=1e-5)
        usual_loss = model(ids, attention_mask=mask, labels=labels).loss
        trained = model.train()(ids, attention_mask=mask, labels=labels)
        assert trained.logits is None
        assert torch.allclose(trained.loss, usual_loss, atol=1e-5)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.allclose(type(model).from_pretrained(tmp_path)(ids, attention_mask=mask).logits, logits)
    if first:
        with pytest.raises(UnbraidError, match="accelerate"):
            restore(model.eval())(ids, attention_mask=mask)
    else:
        with torch.no_grad():
            assert torch.allclose(restore(model.eval())(ids, attention_mask=mask).logits, logits, atol=1e-5)


def test_a_checkpoint_without_the_head_is_refused(tmp_path):
    DebertaV2ForMaskedLM(config(legacy=True)).save_pretrained(tmp_path)
    with pytest.raises(UnbraidError, match="lm_predictions"):
        DebertaV2ForEnhancedMaskedLM.from_pretrained(tmp_path)
    with pytest.raises(UnbraidError, match="mask_predictions"):
        DebertaV2ForReplacedTokens.from_pretrained(tmp_path)


class Letters:
    """A tokenizer of single letters: what is tested is what the function does with gaps."""

    mask_token, mask_token_id = "_", 3

    def __call__(self, texts, **_):
        from transformers import BatchEncoding

        size = max(map(len, texts))
        rows = [[3 if c == "_" else 5 + ord(c) % 40 for c in t] + [0] * (size - len(t)) for t in texts]
        masks = [[1] * len(t) + [0] * (size - len(t)) for t in texts]
        return BatchEncoding({"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)})

    def decode(self, ids):
        return f"w{ids[0]}"


def test_gaps_are_filled():
    model = DebertaV2ForEnhancedMaskedLM(config())
    found = fill_mask(model, Letters(), ["a_b_c", "xy_"], top=3)
    assert [len(gaps) for gaps in found] == [2, 1]
    assert all(len(words) == 3 and 0 < words[-1][1] <= words[0][1] < 1 for gaps in found for words in gaps)
    assert model.training
    with pytest.raises(UnbraidError, match="put one where"):
        fill_mask(model, Letters(), "abc")
    with pytest.raises(UnbraidError, match="65 tokens and the decoder 64"):
        fill_mask(model, Letters(), "_" * 65)


def test_masked_spans():
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 60, (200, 100))
    goes_on = rng.random(ids.shape) < 0.3
    special = np.zeros(ids.shape, bool)
    special[:, [0, -1]] = True
    inputs, labels = mask_spans(
        ids, mask_id=3, vocabulary=60, rng=rng, special=special, continues=goes_on, lowest=5
    )  # fmt: skip
    asked = labels != -100
    assert np.array_equal(labels[asked], ids[asked])
    assert np.array_equal(inputs[~asked], ids[~asked])
    assert abs(asked.mean() / 0.98 - 0.15) < 0.01
    assert not asked[special].any()
    kinds = Counter(np.where(inputs[asked] == 3, "mask", np.where(inputs[asked] == ids[asked], "same", "other")))
    assert abs(kinds["mask"] / asked.sum() - 0.8) < 0.02
    assert abs(kinds["same"] / asked.sum() - 0.1) < 0.02
    inner = goes_on.copy()
    inner[:, [0, 1, -1]] = False
    assert np.array_equal(asked[:, 1:][inner[:, 1:]], asked[:, :-1][inner[:, 1:]]), "words are masked whole"
    with pytest.raises(UnbraidError, match="cannot be"):
        mask_spans(ids, mask_id=3, vocabulary=60, rng=rng, share=1.5)


@pytest.mark.parametrize("sharing", ["gdes", "es", "none"])
def test_replaced_tokens_and_whose_gradient_reaches_which_table(sharing):
    torch.manual_seed(0)
    pair = ReplacedTokenDetection(
        DebertaV2ForEnhancedMaskedLM(config(num_hidden_layers=1)), DebertaV2ForReplacedTokens(config()), sharing
    )
    ids, mask = exactness.ragged(30)
    ids = ids + 5
    chosen = (torch.rand(ids.shape) < 0.3) & mask.bool()
    given = {"input_ids": ids.masked_fill(chosen, 3), "attention_mask": mask, "labels": torch.where(chosen, ids, -100)}
    found = pair(**given)
    assert torch.equal(found.corrupted[~chosen], ids[~chosen])
    assert torch.equal(found.replaced, found.corrupted != ids)
    found.discriminator_loss.backward()
    table = pair.generator.deberta.embeddings.word_embeddings.weight
    own = pair.discriminator.deberta.embeddings.word_embeddings.weight
    assert (table.grad is None or not bool(table.grad.any())) == (sharing != "es")
    assert bool(own.grad.any())
    if sharing == "gdes":
        assert not bool(own.any()), "the change starts at zero"
        with torch.no_grad():
            own.normal_()
    pair.eval()
    whole = pair.release()
    with torch.no_grad():
        kept = pair.discriminator(found.corrupted, attention_mask=mask).logits
        assert torch.allclose(whole(found.corrupted, attention_mask=mask).logits, kept, atol=1e-6)
    assert type(whole.deberta.embeddings.word_embeddings) is torch.nn.Embedding
    assert set(whole.state_dict()) == set(DebertaV2ForReplacedTokens(config()).state_dict())


def test_pairs_that_cannot_be():
    small = DebertaV2ForEnhancedMaskedLM(config())
    with pytest.raises(UnbraidError, match="one vocabulary"):
        ReplacedTokenDetection(small, DebertaV2ForReplacedTokens(config(vocab_size=70)))
    with pytest.raises(UnbraidError, match="sharing"):
        ReplacedTokenDetection(small, DebertaV2ForReplacedTokens(config()), "all")
    pair = ReplacedTokenDetection(small, DebertaV2ForReplacedTokens(config()))
    with pytest.raises(UnbraidError, match="no token is masked"):
        pair(torch.ones(1, 8, dtype=torch.long))


def test_tasks_have_one_answer_each():
    tokens, labels = worlds.draw("key", 300, torch.Generator().manual_seed(0))
    place = torch.arange(worlds.LENGTH)
    query = (labels != -100).nonzero()[:, 1:]
    value, reach = (tokens - 1) // worlds.REACH, (tokens - 1) % worlds.REACH + 1
    hits = (place + reach == query) & (place != query)
    assert bool((hits.sum(1) == 1).all())
    assert torch.equal(value[hits], labels.max(1).values)
    tokens, labels = worlds.draw("query", 300, torch.Generator().manual_seed(0))
    rows, at = (labels != -100).nonzero().T
    assert torch.equal(tokens[rows, at - (tokens[rows, at] - worlds.VALUES)] - 1, labels[rows, at])


def test_each_term_has_its_task_and_the_decoder_its_own():
    assert worlds.term("query", "c2p", 100, steps=300)["accuracy"] >= 0.97
    assert worlds.term("key", "c2p", 100, steps=300)["accuracy"] <= 0.80
    assert worlds.parity(True, 100, steps=150)["accuracy"] >= 0.98
    assert worlds.parity(False, 100, steps=150)["accuracy"] <= 0.60


def test_a_short_study_goes_on_where_it_stopped(tmp_path):
    given = {"parts": ("pretraining",), "size": "tiny", "steps": 2, "seeds": 2, "keep": tmp_path, "progress": False}
    first = run(**given)
    again = run(**given)
    assert again.meta["pieces_read_back"] == 8
    assert again.tables["pretraining"].records == first.tables["pretraining"].records
    weights = {r["weights"] for r in first.tables["pretraining"].records}
    assert max(weights) / min(weights) < 1.01
    assert {c.name: c.holds for c in first.claims}["exact"] is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parts": ("all",)}, "choose from exact"),
        ({"arms": ("rotary",)}, "choose from disentangled"),
        ({"seeds": 0}, "at least 1"),
        ({"steps": 0}, "at least 1"),
        ({"lr": 0.0}, "positive"),
        ({"size": "huge"}, "tiny, small"),
    ],
)
def test_a_study_refuses_what_it_cannot_run(changes, words):
    with pytest.raises(UnbraidError, match=words):
        run(**changes)


def test_models_and_settings_that_cannot_be():
    bert = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))
    with pytest.raises(UnbraidError, match="BertModel has no DeBERTa attention"):
        accelerate(bert)
    with pytest.raises(UnbraidError, match="crop"):
        accelerate(exactness.build(CASE), backend="triton")
    with pytest.raises(UnbraidError, match="long_range"):
        accelerate(exactness.build(CASE), long_range="none")
    with pytest.raises(UnbraidError, match="no DeBERTa attention"):
        shares(bert, {"input_ids": torch.ones(1, 4, dtype=torch.long)})
    plain = DebertaV2Model(config(relative_attention=False, pos_att_type=[], norm_rel_ebd="none"))
    with pytest.raises(UnbraidError, match="no relative positions"):
        shares(plain, {"input_ids": torch.ones(1, 4, dtype=torch.long)})
