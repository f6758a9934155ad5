"""Trained attention turned into variants: what is learnt, what is left alone, what is refused."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from unbraid.core.errors import UnbraidError
from unbraid.data.text import corpus
from unbraid.systems.deconstructing_attention import convert, load, restore, run, variants_of


def model(kind=LlamaForCausalLM, config=LlamaConfig, size=40):
    torch.manual_seed(0)
    net = kind(
        config(
            vocab_size=size, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, eos_token_id=None, pad_token_id=0,
        )
    )  # fmt: skip
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if "proj" in name:
                weight.mul_(15 if "q_proj" in name or "k_proj" in name else 5)
    return net


def texts(rows=40, length=12):
    return torch.randint(0, 40, (rows, length), generator=torch.Generator().manual_seed(1))


def test_the_polynomial_learns_what_attention_gave_and_the_model_comes_back():
    net = model().eval()
    whole, said = copy.deepcopy(net.state_dict()), net(input_ids=texts()).logits
    found = convert(net, ["approximate", "standard", "approximate"], texts(), steps=60, lr=3e-3, progress=False)
    assert [(row["layer"], row["variant"]) for row in found.layers] == [(1, "approximate"), (3, "approximate")]
    assert all(0 < row["after"] < 0.8 * row["before"] for row in found.layers)
    assert variants_of(net) == ["approximate", "standard", "approximate"]
    assert not net.training
    assert all(p.requires_grad for p in net.parameters())
    restore(net)
    assert all(torch.equal(whole[name], weight) for name, weight in net.state_dict().items())
    assert torch.equal(net(input_ids=texts()).logits, said)


@pytest.mark.parametrize("variant", ["mlp", "non_approximate", "random", "sequence", "static"])
def test_every_variant_gets_nearer(variant):
    net = model(Qwen2ForCausalLM, Qwen2Config)
    found = convert(net, [variant] * 3, texts(), steps=40, lr=3e-3, tokens=torch.arange(12), longest=12, progress=False)
    assert sum(row["after"] for row in found.layers) < sum(row["before"] for row in found.layers)
    assert set(found.losses) == {"as it was", "variants put in", "converted"}


def test_a_converted_model_is_saved_and_read(tmp_path):
    net = model().eval()
    convert(net, ["static"] * 3, texts(), steps=3, progress=False)
    net.save_pretrained(tmp_path)
    torch.testing.assert_close(load(tmp_path)(input_ids=texts()).logits, net(input_ids=texts()).logits)


def test_the_study_converts_a_model_in_a_folder(tmp_path):
    corpus(512).tokenizer.save(str(tmp_path / "tokenizer.json"))
    PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json")).save_pretrained(tmp_path)
    model(size=512).save_pretrained(tmp_path)
    given = {
        "parts": ["conversion"], "model": str(tmp_path), "size": "tiny", "seeds": 2, "placements": ["hybrid"],
        "variants": ["static", "sequence"], "keep": tmp_path / "keep", "progress": False,
    }  # fmt: skip
    found = run(**given)
    table = found.tables["conversion"].records
    assert [(row["variant"], row["seed"], row["layers"]) for row in table] == [
        ("static", 0, 2), ("sequence", 0, 2), ("static", 1, 2), ("sequence", 1, 2),
    ]  # fmt: skip
    assert {f.title for f in found.figures} >= {"How near each converted layer comes"}
    assert "<html" in found.to_html()
    assert run(**given).meta["pieces_read_back"] == 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"texts": texts(9)}, "ten at least"), ({"texts": texts().float()}, "tensor of tokens"),
        ({"texts": texts() + 30}, "the model has 40"), ({"variants": ["standard"] * 3}, "all layers are standard"),
        ({"variants": ["sequence"] * 3}, "needs tokens="), ({"variants": ["random"] * 3, "longest": 5}, "longer than"),
        ({"steps": 0}, "steps"),
    ],
)  # fmt: skip
def test_what_does_not_fit_leaves_the_model_as_it_was(given, said):
    net = model()
    with pytest.raises(UnbraidError, match=said):
        convert(net, **{"variants": ["static"] * 3, "texts": texts(), "progress": False, **given})
    assert variants_of(net) == ["standard"] * 3
    assert not hasattr(net.config, "deconstruction")
