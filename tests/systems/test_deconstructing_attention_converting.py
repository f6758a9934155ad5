"""Trained attention turned into variants, and a search for layers: what is learnt, left alone and refused."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from unbraid.core.errors import UnbraidError
from unbraid.data.text import corpus
from unbraid.systems.deconstructing_attention import convert, load, restore, run, search, variants_of
from unbraid.systems.deconstructing_attention.converting import loss_of
from unbraid.systems.deconstructing_attention.searching import ORDERS, Search, cheapest


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


@pytest.fixture
def given(tmp_path):
    """A study of a model in a folder."""
    corpus(512).tokenizer.save(str(tmp_path / "tokenizer.json"))
    PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json")).save_pretrained(tmp_path)
    model(size=512).save_pretrained(tmp_path)
    return {
        "model": str(tmp_path), "size": "tiny", "seeds": 2, "placements": ["hybrid"],
        "variants": ["static", "sequence"], "keep": tmp_path / "keep", "progress": False,
    }  # fmt: skip


def test_the_study_converts_a_model_in_a_folder(given):
    given["parts"] = ["conversion"]
    found = run(**given)
    table = found.tables["conversion"].records
    assert [(row["variant"], row["seed"], row["layers"]) for row in table] == [
        ("static", 0, 2), ("sequence", 0, 2), ("static", 1, 2), ("sequence", 1, 2),
    ]  # fmt: skip
    assert {f.title for f in found.figures} >= {"How near each converted layer comes"}
    assert "<html" in found.to_html()
    assert not found.claims
    assert run(**given).meta["pieces_read_back"] == 4


def test_the_study_searches_a_model_in_a_folder(given):
    given["parts"] = ["search"]
    found = run(**given)
    assert len(found.tables["costs of layers"].records) == 3 * 2
    assert {row["order"] for row in found.tables["layers in order"].records} == set(ORDERS)
    assert "What each layer costs alone" in found.to_html()
    assert run(**given).meta["pieces_read_back"] == 2


def test_a_search_is_what_putting_layers_in_by_hand_gives():
    net = model().eval()
    with torch.no_grad():
        net.model.layers[1].self_attn.o_proj.weight.zero_()  # attention that gives nothing costs nothing
    whole, held = copy.deepcopy(net.state_dict()), texts()[-4:]
    how = {"steps": 20, "lr": 3e-3, "progress": False}
    found = search(net, ["static", "approximate"], texts(), **how)
    assert variants_of(net) == ["standard"] * 3
    assert all(torch.equal(whole[name], weight) for name, weight in net.state_dict().items())
    costs = {(row["layer"], row["variant"]): row["cost"] for row in found.costs}
    assert costs[2, "static"] == costs[2, "approximate"] == 0
    assert all(costs[n, v] != 0 for n in (1, 3) for v in ("static", "approximate"))
    picked, order = cheapest(found.costs)
    assert picked == found.picked
    assert sorted(order) == [0, 1, 2]
    ends = [row["lost"] for row in found.curve if row["layers"] == 3]
    assert max(ends) - min(ends) < 1e-6
    assert found.plan(max(row["lost"] for row in found.curve)) == picked
    with pytest.raises(UnbraidError, match="costs more"):
        found.plan(-100.0)
    alone = search(net, ["static"], texts(), **how)
    convert(net, ["static"] * 3, texts(), **how)
    assert alone.curve[-1]["lost"] == pytest.approx(loss_of(net, held[1::2], 8) - alone.before, abs=1e-6)


def test_a_plan_takes_the_cheapest_layers_that_fit():
    costs = [
        {"layer": n, "variant": v, "cost": c}
        for n, v, c in [(1, "mlp", 0.5), (1, "static", 0.2), (2, "mlp", 0.1), (2, "static", 0.3), (3, "static", 0.4)]
    ]
    curve = [{"order": ORDERS[0], "layers": k, "lost": x} for k, x in [(1, 0.1), (2, 0.3), (3, 0.9)]]
    found = Search(costs, curve, 3.0)
    assert found.plan(0.5) == ["static", "mlp", "standard"]
    assert found.plan(0.15) == ["standard", "mlp", "standard"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"variants": []}, "each once"), ({"variants": "static"}, "list of names"),
        ({"variants": ["standard"]}, "choose from mlp"), ({"every": 0}, "every is 0"), ({"shuffles": 0}, "shuffles 0"),
        ({"texts": texts(10)}, "twenty at least"), ({"variants": ["sequence"]}, "needs tokens="),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_leaves_the_model_as_it_was(given, said):
    net = model()
    with pytest.raises(UnbraidError, match=said):
        search(net, **{"variants": ["static"], "texts": texts(), "progress": False, **given})
    assert variants_of(net) == ["standard"] * 3


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
