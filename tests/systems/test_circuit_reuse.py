"""Circuit reuse: planted circuits recovered, the repair as taps, overlap against chance, and the study end to end."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from scipy import stats
from sklearn.metrics import roc_auc_score

from support.prompting import fast
from unbraid.core.attach import attach
from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores, HeadSet
from unbraid.core.pieces import Pieces
from unbraid.data.prompts import PromptSet, coloured_objects, indirect_object
from unbraid.systems.circuit_reuse import (
    CARD,
    PLAN,
    CircuitReuse,
    Stage,
    accuracy,
    attend_to,
    behaviour,
    block_keys,
    bootstrap_overlap,
    find_circuit,
    mending,
    overlap,
    overlap_curve,
    planted_edges,
    planted_tasks,
    repair,
)
from unbraid.systems.circuit_reuse.sharing import rank_correlation, shape_of
from unbraid.systems.circuit_reuse.study import run


@pytest.fixture(scope="module")
def tokenizer():
    return fast("bytes")


def tiny(kind: str, vocabulary: int):
    torch.manual_seed(0)
    size = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "vocab_size": vocabulary, "initializer_range": 0.2, "eos_token_id": 1, "bos_token_id": 0,
    }  # fmt: skip
    if kind == "gpt2":
        cfg = transformers.GPT2Config(
            n_embd=32, n_layer=3, n_head=4, vocab_size=vocabulary, n_positions=256, initializer_range=0.2,
            eos_token_id=1, bos_token_id=0,
        )  # fmt: skip
    elif kind == "gpt-oss":
        cfg = transformers.GptOssConfig(
            **size, num_key_value_heads=2, head_dim=8, num_local_experts=2, num_experts_per_tok=1, sliding_window=64,
            attn_implementation="eager",
        )  # fmt: skip
    else:
        cfg = transformers.LlamaConfig(**size, num_key_value_heads=2, max_position_embeddings=256)
    return transformers.AutoModelForCausalLM.from_config(cfg).eval()


# --- planted truth ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_edges_are_found_and_nothing_else(seed: int) -> None:
    planted = planted_edges(seed)
    everywhere = list(range(12))
    edges = planted.patcher(freeze_norm="clean").edges(positions=everywhere)
    true = planted.is_true(edges)
    assert len(edges) == 672
    assert true.sum() == 6
    size = np.abs(edges.patched - edges.clean).mean(1)
    assert roc_auc_score(true, size) == 1.0
    assert size[~true].max() < 1e-4 * size[true].min()


def test_live_norms_leak() -> None:
    """The paper's code leaves norms live; then paths that do not exist have effects."""
    planted = planted_edges()
    edges = planted.patcher(freeze_norm="none").edges(positions=list(range(12)))
    true, size = planted.is_true(edges), np.abs(edges.patched - edges.clean).mean(1)
    assert size[~true].max() > 1e-2 * size[true].min()


def numbers(heads: HeadSet) -> set[tuple[int, int]]:
    return {(int(site.split(".")[2]), head) for site, head in heads}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_reuse_is_recovered_exactly(seed: int) -> None:
    planted = planted_tasks(seed)
    system = CircuitReuse(fraction=0.05).fit(planted.model, None, planted.first, planted.second)
    for task, truth in zip((planted.first, planted.second), planted.heads, strict=True):
        assert numbers(system.circuits_[task.task]) == set(truth)
    assert system.overlap_["jaccard"] == pytest.approx(3 / 7)
    assert system.overlap_["p"] < 0.05
    assert system.overlap_["low"] == system.overlap_["high"] == pytest.approx(3 / 7)


def test_stages_are_what_they_are_called() -> None:
    planted = planted_tasks(0)
    circuit = find_circuit(planted.model, planted.first, fraction=0.05)
    found = {f.stage.name: numbers(f.kept) for f in circuit.found}
    assert found == {"movers": {(3, 2), (4, 7)}, "steering": {(2, 0)}, "feeding": {(1, 1)}, "early": {(0, 3)}}
    assert circuit.found[1].receivers == circuit.found[0].kept
    assert np.isnan(circuit.found[1].scores.array[3:]).all()  # senders lie below all receivers
    assert np.nanmax(np.abs(circuit.normalised()["steering"].array)) == 1


def test_a_search_is_the_same_from_a_store(tmp_path) -> None:
    planted = planted_tasks(0)
    store = Pieces(tmp_path, {"model": "planted"})
    first = find_circuit(planted.model, planted.first, fraction=0.05, batch=7, store=store)
    assert store.read_back == 0
    again = find_circuit(planted.model, planted.first, fraction=0.05, batch=7, store=store)
    assert store.read_back == 4 * len(range(0, 24, 7))
    for a, b in zip(first.found, again.found, strict=True):
        np.testing.assert_array_equal(a.effects.patched, b.effects.patched)
    assert first.heads == again.heads


# --- overlap ---------------------------------------------------------------------------------------------------------


def test_overlap_against_simulated_chance() -> None:
    shape = {f"s{i}": 6 for i in range(4)}
    a = HeadSet([("s0", 0), ("s0", 1), ("s1", 2), ("s3", 5)])
    b = HeadSet([("s0", 1), ("s0", 2), ("s1", 2), ("s2", 0), ("s3", 5)])
    o = overlap(a, b, shape)
    assert (o.shared, o.union, o.jaccard) == (3, 6, 0.5)
    assert o.p == pytest.approx(stats.hypergeom(24, 4, 5).sf(2))
    rng, draws, layered = np.random.default_rng(0), [], []
    for _ in range(20_000):
        x, y = set(rng.choice(24, 4, replace=False)), set(rng.choice(24, 5, replace=False))
        draws.append(len(x & y) / len(x | y))
        shared = sum(
            len(set(rng.choice(6, m, replace=False)) & set(rng.choice(6, n, replace=False)))
            for m, n in ((2, 2), (1, 1), (0, 1), (1, 1))
        )
        layered.append(shared)
    assert o.expected == pytest.approx(np.mean(draws), abs=0.005)
    assert o.p_by_layer == pytest.approx(np.mean(np.array(layered) >= 3), abs=0.005)
    assert overlap(HeadSet(), HeadSet(), shape).jaccard == 1.0
    with pytest.raises(UnbraidError):
        overlap(a, HeadSet([("s0", 6)]), shape)


def test_curve_ranks_and_bootstrap(tokenizer) -> None:
    model = tiny("llama", len(tokenizer))
    a = find_circuit(model, indirect_object(tokenizer, 8), fraction=0.1)
    b = find_circuit(model, coloured_objects(tokenizer, 8), fraction=0.1)
    rows = overlap_curve(a, b, (0.1, 0.5, 1.0))
    assert [r["kept"] for r in rows if r["stage"] == "all"] == [0.1, 0.5, 1.0]
    whole = next(r for r in rows if r["stage"] == "movers" and r["kept"] == 1.0)
    assert whole["shared"] == whole["union"] == 12  # all heads kept, all heads shared: it proves nothing
    assert whole["p"] == pytest.approx(1.0)
    ranks = rank_correlation(a, a)
    assert all(r["spearman"] == pytest.approx(1.0) for r in ranks)
    low, high = bootstrap_overlap(a, b, 50)
    assert 0 <= low <= high <= 1
    assert shape_of(a) == {f"model.layers.{i}.self_attn": 4 for i in range(3)}


# --- taps ------------------------------------------------------------------------------------------------------------


def rows_of(model, ids, *edits):
    """Dense attention maps of the model as its own eager code makes them, with the edit applied by hand."""
    with attach(model, *edits), torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt-oss"])
@pytest.mark.parametrize(("mass", "keep"), [("one", ()), ("own", ()), ("one", (0,)), ("own", (0, 3))])
def test_attend_to_is_the_overwritten_row(kind: str, mass: str, keep: tuple[int, ...]) -> None:
    from unbraid import taps

    model = tiny(kind, 60)
    ids = torch.randint(0, 60, (3, 9), generator=torch.Generator().manual_seed(1))
    site = "transformer.h.1.attn" if kind == "gpt2" else "model.layers.1.self_attn"
    where = [[1, 2], [4], [3, 6, 7]]
    seen, values, before = taps.Rows([-1]), taps.Outputs(keep="last"), taps.Rows([-1])
    with attach(model, before), torch.no_grad():
        plain = model(input_ids=ids, use_cache=False).logits
    own = before.values[site][0][:, 2, 0]
    edit = attend_to([(site, 2)], where, mass=mass, keep=keep)
    calls = []

    class Keep(taps.Outputs):
        def out(self, c, y):
            calls.append((c.site, c.expand(c.value)))
            super().out(c, y)

    values = Keep(keep="last")
    with attach(model, edit, seen, values), torch.no_grad():
        edited = model(input_ids=ids, use_cache=False).logits
    v = next(value for s, value in calls if s == site)
    for b, places in enumerate(where):
        p = torch.zeros(9)
        for k in keep:
            if k not in places:
                p[k] = own[b, k]
        total = float(own[b].sum()) if mass == "own" else 1.0
        p[places] = (total - float(p.sum())) / len(places)
        assert float(p.sum()) == pytest.approx(total, abs=1e-5)
        torch.testing.assert_close(values.values[site][0][b, 2, -1], p @ v[b, 2], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(edited[:, -1], plain[:, -1])
    torch.testing.assert_close(edited[:, :-1], plain[:, :-1], atol=1e-5, rtol=1e-4)  # other rows are the model's own
    assert (own.sum(-1) < 0.999).any() == (kind == "gpt-oss")  # sink logits take mass


def test_blocking_is_a_mask_before_the_softmax() -> None:
    from unbraid import taps

    model = tiny("llama", 60)
    ids = torch.randint(0, 60, (2, 9), generator=torch.Generator().manual_seed(2))
    head = ("model.layers.2.self_attn", 1)
    mask = torch.ones(2, 1, 9, 9, dtype=torch.bool)
    mask[0, 0, -1, [2, 5]] = False
    mask[1, 0, -1, 4] = False
    got = rows_of(model, ids, block_keys([head], [[2, 5], [4]]))
    want = rows_of(model, ids, taps.allow(mask, HeadSet([head])))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_behaviour_of_heads_that_are_known(tokenizer) -> None:
    model = tiny("gpt2", len(tokenizer))
    found = behaviour.repeated(model, length=12, count=3)
    ids = torch.arange(24)[None] % 12
    with attach(model), torch.no_grad():
        model.set_attn_implementation("eager")
        maps = model(input_ids=ids, output_attentions=True).attentions
        model.set_attn_implementation("sdpa")
    assert maps[0].shape == (1, 4, 24, 24)
    assert set(found) == {"previous", "duplicate", "induction"}
    assert all(isinstance(s, HeadScores) and s.array.shape == (3, 4) for s in found.values())
    made = indirect_object(tokenizer, 6)
    seen = behaviour.looks(model, made)
    p = made[2]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        dense = model(input_ids=torch.tensor([p.clean]), output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    want = np.stack([a[0, :, -1, list(p.places["IO"])].sum(-1).numpy() for a in dense])
    np.testing.assert_allclose(seen["IO"][2], want, atol=1e-5)
    rows = behaviour.roles(model, made, HeadSet([("transformer.h.1.attn", 3)]), found)
    assert rows[0]["head"] == "L1H3"
    assert {"to IO", "to S1", "to S2", "copies (r)", "induction"} <= set(rows[0])


def test_a_mover_copies_and_a_negative_mover_does_the_opposite() -> None:
    rng = np.random.default_rng(0)
    attention = rng.random((50, 3))
    attribution = np.stack([2 * attention[:, 0], -attention[:, 1], rng.random(50)], 1)
    r = behaviour.slopes({"attention": attention, "attribution": attribution})
    assert r[0] == pytest.approx(1.0)
    assert r[1] == pytest.approx(-1.0)
    assert abs(r[2]) < 0.5


def test_repair_with_controls(tokenizer) -> None:
    model = tiny("llama", len(tokenizer))
    made = coloured_objects(tokenizer, 6)
    circuit = find_circuit(model, made, fraction=0.6, search="below_any")
    steering, negative = mending.repair_heads(circuit, 2, 1)
    heads = steering | negative
    done = repair(model, made, heads, parts={"steering": steering}, scores=circuit.found[0].scores, draws=3)
    assert len(done.random) == len(done.draws) == 3
    layers = sorted(site for site, _ in heads)
    for draw in done.draws:
        assert not len(draw & heads)
        assert len(draw) == len(heads)
    assert sorted(s for s, _ in done.draws[0]) == layers or len(layers) > 4
    assert done.after["all"].log_odds.mean() != done.before.log_odds.mean()
    assert done.after["steering"].log_odds.mean() != done.after["all"].log_odds.mean()
    share, low, high = done.before.share()
    assert low <= share <= high
    assert done.new_mistakes() >= 0
    plain = accuracy(model, made)
    p = made[0]
    with torch.no_grad():
        row = model(input_ids=torch.tensor([p.clean])).logits[0, -1]
    assert plain.top1[0] == (int(row.argmax()) in p.answers)
    assert plain.log_odds[0] == pytest.approx(float(row[p.answers[0]] - row[p.distractors[0]]), abs=1e-4)


# --- the study -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_study_runs_on_any_decoder_in_a_folder(tokenizer, tmp_path, kind: str) -> None:
    """GPT-2 of the class that GPT-2 Medium has (and another): the documented command with a folder for a name."""
    model = tiny(kind, len(tokenizer))
    assert kind != "gpt2" or type(model).__name__ == "GPT2LMHeadModel"
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    result = run(
        str(tmp_path / "model"), controls=("capitals",), prompts=4, held_out=4, seeds=1, most_shots=1, draws=2, batch=4,
        fraction=0.5, search="below_any", keep=tmp_path / "keep", progress=False,
    )  # fmt: skip
    assert [c.name for c in result.claims] == [c.name for c in CARD.claims]
    assert result.claims[0].measured is not None
    page = result.to_html(tmp_path / "page.html")
    assert "Jaccard" in page
    assert {"accuracy", "circuits", "overlap", "overlap of tasks", "rank correlation", "interventions"} <= set(
        result.tables
    )
    again = run(
        str(tmp_path / "model"), controls=("capitals",), prompts=4, held_out=4, seeds=1, most_shots=1, draws=2, batch=4,
        fraction=0.5, search="below_any", keep=tmp_path / "keep", progress=False,
    )  # fmt: skip
    assert again.meta["pieces_read_back"] > 0
    assert again.tables["circuits"] == result.tables["circuits"]
    assert json.loads(json.dumps(result.to_dict()))["slug"] == "circuit_reuse"


def test_learned_things_are_saved(tmp_path) -> None:
    planted = planted_tasks(0, 8)
    system = CircuitReuse(fraction=0.05).fit(planted.model, None, planted.first, planted.second)
    back = CircuitReuse.from_pretrained(system.save_pretrained(tmp_path / "x"))
    assert back.circuits_ == system.circuits_
    assert back.overlap_["jaccard"] == system.overlap_["jaccard"]


@pytest.mark.study
@pytest.mark.weights
def test_real_weights_equal_the_definition_and_the_repair_works() -> None:
    from unbraid import zoo
    from unbraid.core.patching import LOGITS, PathPatcher, PlainPatcher, receive

    loaded = zoo.load("smollm2", progress=False)
    made = indirect_object(loaded.tokenizer, 60)
    length = len(made[0].clean)
    some = [p for p in made if len(p.clean) == length][:4]
    data = {
        "clean": [list(p.clean) for p in some], "corrupt": [list(p.corrupt) for p in some],
        "answers": [p.answers[0] for p in some], "distractors": [p.distractors[0] for p in some],
    }  # fmt: skip
    quick, plain = PathPatcher(loaded.model, **data), PlainPatcher(loaded.model, **data)
    site = "model.layers.{}.self_attn"
    for ends in ([LOGITS], receive([(site.format(23), 0)], "q")):
        got = quick.effects(ends, [(site.format(20), 0), (site.format(12), 4)])
        for row, sender in zip(got.patched, [(site.format(20), 0), (site.format(12), 4)], strict=True):
            np.testing.assert_allclose(row, plain.effect(sender, ends), atol=1e-3)
    circuit = find_circuit(loaded.model, made.take(12))
    steering, negative = mending.repair_heads(circuit)
    done = repair(
        loaded.model, coloured_objects(loaded.tokenizer, 24, 7), steering | negative,
        scores=circuit.found[0].scores, draws=4,
    )  # fmt: skip
    assert done.after["all"].share()[0] > done.spread()[2]


# --- what is refused -------------------------------------------------------------------------------------------------


def planted_first() -> PromptSet:
    return planted_tasks(0, 4).first


REFUSED = {
    "fraction": lambda m, t: find_circuit(m, planted_first(), fraction=0),
    "search": lambda m, t: find_circuit(m, planted_first(), search="up"),
    "plan": lambda m, t: find_circuit(m, planted_first(), plan=PLAN[1:]),
    "place": lambda m, t: find_circuit(m, planted_first(), plan=[Stage("x", "logits", "S9")]),
    "early place": lambda m, t: find_circuit(m, indirect_object(t, 4), plan=[Stage("x", "logits", "S1")]),
    "prompts": lambda m, t: find_circuit(m, "ioi"),
    "task": lambda m, t: CircuitReuse().fit(m, t, "induction"),
    "same task": lambda m, t: CircuitReuse(prompts=4).fit(m, t, "ioi", "ioi"),
    "no tokenizer": lambda m, t: CircuitReuse().fit(m),
    "no rows": lambda m, t: attend_to([("a", 0)], [1], rows=()),
    "no positions": lambda m, t: attend_to([("a", 0)], [[1], []]),
    "mass": lambda m, t: attend_to([("a", 0)], [1], mass="two"),
    "mixture": lambda m, t: attend_to([("a", 0)], [1, [2]]),
    "batch": lambda m, t: rows_of(m, torch.zeros(3, 6).long(), attend_to([("transformer.h.0.attn", 0)], [[1], [2]])),
    "future": lambda m, t: rows_of(
        m, torch.zeros(1, 6).long(), attend_to([("transformer.h.0.attn", 0)], [4], rows=[2])
    ),
    "outside": lambda m, t: rows_of(m, torch.zeros(1, 6).long(), attend_to([("transformer.h.0.attn", 0)], [6])),
    "row": lambda m, t: rows_of(m, torch.zeros(1, 6).long(), attend_to([("transformer.h.0.attn", 0)], [1], rows=[6])),
    "repair place": lambda m, t: repair(m, indirect_object(t, 4), HeadSet([("transformer.h.0.attn", 0)])),
    "option prompts": lambda m, t: run(prompts=1),
    "option fraction": lambda m, t: run(fraction=2.0),
    "option controls": lambda m, t: run(controls=("ioi",)),
    "option dtype": lambda m, t: run(dtype="int8"),
    "option model": lambda m, t: run("no-such-model"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_wrong_input_is_refused_in_one_sentence(tokenizer, what: str) -> None:
    model = tiny("gpt2", len(tokenizer))
    with pytest.raises(UnbraidError) as caught:
        REFUSED[what](model, tokenizer)
    assert len(str(caught.value)) > 30
