"""SiFT as a callback: what it adds to a loss, and that a model is as it was afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import BertConfig, DebertaV2Config

from unbraid.core.errors import UnbraidError
from unbraid.systems.deberta import SiFT, accelerate, consistency


def config(**changes):
    usual = {
        "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 64, "relative_attention": True, "pos_att_type": ["c2p", "p2c"],
        "position_biased_input": False, "type_vocab_size": 0, "position_buckets": 8, "share_att_key": True,
        "norm_rel_ebd": "layer_norm", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    return DebertaV2Config(**{**usual, **changes})


def classifier(kind="deberta"):
    from transformers import BertForSequenceClassification, DebertaV2ForSequenceClassification

    torch.manual_seed(0)
    if kind == "bert":
        small = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        return BertForSequenceClassification(BertConfig(intermediate_size=32, num_labels=3, **small))
    return DebertaV2ForSequenceClassification(config(num_labels=3))


def examples(count=16):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 60, (count, 10), generator=generator)
    return [{"input_ids": row, "attention_mask": torch.ones(10), "labels": row[0] % 3} for row in ids]


@pytest.mark.parametrize("kind", ["deberta", "bert"])
def test_sift_in_a_trainer(kind, tmp_path):
    from transformers import Trainer, TrainingArguments

    model = accelerate(classifier()) if kind == "deberta" else classifier(kind)
    sift = SiFT(weight=2.0, steps=2)
    args = TrainingArguments(
        str(tmp_path), max_steps=3, per_device_train_batch_size=4, gradient_accumulation_steps=2, logging_steps=1,
        report_to=[], use_cpu=True, bf16=kind == "bert", disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model, args, train_dataset=examples(), callbacks=[sift])
    trainer.train()
    logged = [entry["consistency"] for entry in trainer.state.log_history if "consistency" in entry]
    assert len(logged) == 3
    assert logged == sift.losses_
    assert all(0 < value < 2 * np.log(3) + 0.1 for value in logged), "near equality it is twice an entropy"
    assert "forward" not in vars(model) or vars(model)["forward"].__name__ != "wrapped"
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_sift_adds_what_the_paper_says():
    model = classifier().train()
    given = {k: torch.stack([e[k] for e in examples(6)]) for k in ("input_ids", "attention_mask", "labels")}
    plain = model(**given)
    sift = SiFT(weight=3.0, start=0.0, step=0.0)
    sift.attach(model)
    try:
        found = model(**given)
        entropy = -(found.logits.softmax(-1) * found.logits.log_softmax(-1)).sum(-1).mean()
        clean = torch.nn.functional.cross_entropy(found.logits, given["labels"])
        assert torch.allclose(found.loss, clean + 3 * 2 * entropy, atol=1e-4)
        # the norm before the norm changes the clean answer by rounding of its epsilon alone
        assert torch.allclose(found.logits, plain.logits, atol=1e-3)
        assert "wrapped" in model.forward.__name__
        with torch.no_grad():
            assert torch.equal(model(**given).loss, model(**given).loss), "in evaluation nothing is added"
    finally:
        sift.detach()
    assert torch.equal(model(**given).loss, plain.loss)
    assert "forward" not in vars(model)


def test_consistency_is_symmetric_and_each_side_moves_towards_the_other_held_fixed():
    logits = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    known = (
        -(logits[1].softmax(-1).detach() * logits[0].log_softmax(-1)).sum(-1).mean()
        - (logits[0].softmax(-1).detach() * logits[1].log_softmax(-1)).sum(-1).mean()
    )
    assert torch.allclose(consistency(*logits), known)
    consistency(*logits).backward()
    assert all(bool(x.grad.any()) for x in logits)
    number = torch.ones(4, 1), torch.zeros(4, 1)
    assert float(consistency(*number)) == 2.0


def test_sift_refuses():
    with pytest.raises(UnbraidError, match="0 modules"):
        SiFT(where="*nothing").attach(classifier())
    with pytest.raises(UnbraidError, match="symmetric-kl"):
        SiFT(push="js").attach(classifier())
