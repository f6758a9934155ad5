"""Retrieval heads: the detector against brute force, the needle's place, the causal test, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.parity.families import FAMILIES, build
from unbraid import taps
from unbraid.core.attach import attach
from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores, HeadSet
from unbraid.core.pieces import Pieces
from unbraid.systems.retrieval_heads import (
    Monitor,
    Needle,
    RetrievalHeads,
    build_trial,
    export_kvpress,
    haystack,
    needle,
)
from unbraid.systems.retrieval_heads.detect import run_trial
from unbraid.systems.retrieval_heads.export import load_kvpress
from unbraid.systems.retrieval_heads.masking import control, mask, mask_curve, mean_outputs
from unbraid.systems.retrieval_heads.prose import read_haystack, read_needles
from unbraid.systems.retrieval_heads.trial import Trial, recall


@pytest.fixture(scope="module")
def tokenizer():
    """A real fast tokenizer (byte-level BPE) trained on our own prose."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    text = [" ".join(haystack(s, 200)) for s in range(3)] + [n for s in range(40) for n in needle(s).sentences]
    raw = ByteLevelBPETokenizer()
    raw.train_from_iterator(text, vocab_size=500, special_tokens=["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=raw._tokenizer, bos_token="<s>", eos_token="</s>")


def tiny(kind: str = "llama", vocab: int = 500):
    import transformers

    size = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": vocab,
    }
    if kind == "mistral":
        cfg = transformers.MistralConfig(**size, num_key_value_heads=2, sliding_window=24, head_dim=8)
        return build(transformers.MistralForCausalLM(cfg))
    groups = 2 if kind == "gqa" else 4
    cfg = transformers.LlamaConfig(**size, num_key_value_heads=groups, max_position_embeddings=1024, eos_token_id=1)
    return build(transformers.LlamaForCausalLM(cfg))


def brute_force(model, trial: Trial, budget: int, gold: bool) -> tuple[np.ndarray, list[int]]:
    """The definition, from `output_attentions=True` of whole forwards without any cache."""
    model.set_attn_implementation("eager")
    ids, said = list(trial.ids), []
    flags = np.zeros((2, 4, len(trial.needle)), bool)
    for step in range(len(trial.gold) if gold else budget):
        with torch.no_grad():
            out = model(input_ids=torch.tensor([ids]), output_attentions=True)
        token = trial.gold[step] if gold else int(out.logits[0, -1].argmax())
        if not gold and token == 1:
            break
        for layer, a in enumerate(out.attentions):
            for h in range(4):
                j = int(a[0, h, -1].argmax())
                for i, position in enumerate(trial.needle):
                    flags[layer, h, i] |= j == position and ids[position] == token
        said.append(token)
        ids.append(token)
    model.set_attn_implementation("sdpa")
    return flags, said


@pytest.mark.parametrize("kind", ["mha", "gqa", "mistral"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_both_procedures_equal_brute_force(tokenizer, kind: str, seed: int) -> None:
    model = tiny(kind)
    trial = build_trial(tokenizer, needle(seed), haystack(seed, 60), 90, 0.5, seed=seed)
    # random models hardly ever copy by chance: put needle tokens where heads look, so that flags are not all False
    got = run_trial(model, tokenizer, trial, 8)
    want, _ = brute_force(model, trial, 8, gold=False)
    assert np.array_equal(got.flags, want)
    want, _ = brute_force(model, trial, 8, gold=True)
    assert np.array_equal(got.one_pass, want)


def test_copying_is_seen_on_a_model_that_must_copy(tokenizer) -> None:
    """With a one-token vocabulary of answers the arg-max rule is met often: flags are not trivially empty."""
    model = tiny("mha")
    hits = 0
    for seed in range(12):
        trial = build_trial(
            tokenizer, Needle(("a a a a a a a a a a a a a a a a",), "a?", "a"), haystack(seed, 30), 80, 0.9
        )
        got = run_trial(model, tokenizer, trial, 4)
        want, _ = brute_force(model, trial, 4, gold=True)
        assert np.array_equal(got.one_pass, want)
        hits += int(got.one_pass.sum())
    assert hits > 0


@pytest.mark.parametrize("difficulty", ["single", "multi", "passkey"])
@pytest.mark.parametrize("depth", [0.0, 0.37, 1.0])
def test_needle_positions_are_exact(tokenizer, difficulty: str, depth: float) -> None:
    fact = needle(5, difficulty)
    trial = build_trial(tokenizer, fact, haystack(3, 80), 160, depth)
    assert len(trial.ids) <= 160
    text = tokenizer.decode([trial.ids[i] for i in trial.needle])
    for sentence in fact.sentences:
        assert sentence.replace(" ", "") in text.replace(" ", "")
    assert tokenizer.decode(trial.gold).strip() == " ".join(fact.sentences)
    whole = tokenizer.decode(trial.ids)
    assert whole.count(fact.sentences[0]) == 1
    assert fact.question in tokenizer.decode(trial.ids[trial.context :])
    assert "N/A" in tokenizer.decode(trial.calibration)
    assert fact.question not in tokenizer.decode(trial.calibration)


def test_depth_moves_the_needle(tokenizer) -> None:
    at = [build_trial(tokenizer, needle(1), haystack(1, 90), 200, d).needle[0] for d in (0.0, 0.5, 1.0)]
    assert at[0] < at[1] < at[2]
    assert at[0] < 5


def test_a_repeated_token_counts_once_per_position() -> None:
    flags = np.zeros((1, 1, 4), bool)
    for position in (2, 2, 2):
        flags[0, 0, position] = True
    assert flags.mean(-1)[0, 0] == 0.25


def test_recall_ignores_what_the_question_gives_away() -> None:
    question, gold = "What is the pass key?", "The pass key is 907537."
    assert recall("The pass key is a small wooden box.", gold, question) == 0
    assert recall("The pass key is 907537.", gold, question) == 1
    assert recall("", gold, question) == 0


def fitted(tokenizer, **options) -> tuple[RetrievalHeads, torch.nn.Module]:
    model = tiny("gqa")
    system = RetrievalHeads(lengths=(80,), depths=2, trials=3, gate=0.0, budget=4, **options)
    facts = [Needle(("a a a a a a a a",), "what?", "a")]
    system.gate = 0.0
    return system.fit(model, tokenizer, None, facts), model


def test_no_success_means_no_ranking(tokenizer) -> None:
    system = RetrievalHeads(lengths=(80,), trials=2, budget=2).fit(tiny(), tokenizer)
    assert system.n_trials_ == 2
    assert system.n_success_ == 0
    with pytest.raises(UnbraidError, match="None of 2 trials succeeded"):
        system.retrieval_heads()
    with pytest.raises(UnbraidError, match="not fitted"):
        RetrievalHeads().ranking()


def pretend(tokenizer, scores: np.ndarray) -> HeadScores:
    return HeadScores({f"model.layers.{i}.self_attn": row for i, row in enumerate(scores)}, "retrieval score")


def test_controls_are_low_scoring_heads_of_the_same_layers(tokenizer) -> None:
    x = np.zeros((4, 8))
    x[1, :3] = [0.9, 0.5, 0.2]
    x[3, :2] = [0.8, 0.15]
    scores = pretend(tokenizer, x)
    top = scores.top(5)
    for draw in range(20):
        other = control(scores, top, 0.1, np.random.default_rng(draw))
        assert len(other) == 5
        assert not len(other & top)
        assert all(scores[h] < 0.1 for h in other)
        assert {s: len(v) for s, v in other.by_site().items()} == {s: len(v) for s, v in top.by_site().items()}
    with pytest.raises(UnbraidError, match="draw a control"):
        control(
            pretend(tokenizer, np.ones((1, 2))),
            HeadSet([("model.layers.0.self_attn", 0)]),
            0.1,
            np.random.default_rng(0),
        )


@pytest.mark.parametrize("mode", ["zero", "mean", "uniform", "sink"])
@pytest.mark.parametrize("phase", ["decode", "all"])
def test_mask_curve_in_every_mode_leaves_the_model_as_it_was(tokenizer, mode: str, phase: str, tmp_path: Path) -> None:
    model = tiny("gqa")
    trials = RetrievalHeads(lengths=(80,), trials=2).make_trials(tokenizer)
    scores = pretend(tokenizer, np.array([[0.5, 0, 0, 0], [0, 0.4, 0, 0]]))
    mean = mean_outputs(model, trials) if mode == "mean" else None
    store = Pieces(tmp_path, {"model": "tiny"})
    options = {"controls": 2, "mode": mode, "phase": phase, "budget": 3, "mean": mean}
    points = mask_curve(model, tokenizer, scores, trials, (1, 2), **options, store=store)
    assert [(p.kind, p.masked) for p in points] == [
        ("none", 0), ("retrieval", 1), ("random", 1), ("random", 1), ("retrieval", 2), ("random", 2), ("random", 2)
    ]  # fmt: skip
    again = mask_curve(model, tokenizer, scores, trials, (1, 2), **options)
    assert [p.answers for p in again] == [p.answers for p in points]
    saved = mask_curve(None, tokenizer, scores, trials, (1, 2), **options, store=store)  # everything is on disk
    assert [p.answers for p in saved] == [p.answers for p in points]
    with pytest.raises(UnbraidError, match="choose 'zero'"):
        mask(HeadSet(), "median")
    with pytest.raises(UnbraidError, match="choose 'decode'"):
        mask(HeadSet(), "zero", "prefill")


def test_uniform_masking_does_not_leak_the_future() -> None:
    model = tiny("gqa")
    ids = torch.randint(3, 200, (1, 12))
    changed = ids.clone()
    changed[0, 9:] = 7
    heads = HeadSet((f"model.layers.{i}.self_attn", h) for i in range(2) for h in range(4))
    with torch.no_grad(), attach(model, mask(heads, "uniform", "all")):
        a, b = model(input_ids=ids).logits, model(input_ids=changed).logits
    assert torch.equal(a[:, :9], b[:, :9])


def test_finished_trials_are_kept_and_resumed(tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unbraid.systems.retrieval_heads import system as home

    store = Pieces(tmp_path / "keep", {"model": "tiny"})
    first = RetrievalHeads(lengths=(80,), trials=3, budget=2).fit(tiny(), tokenizer, store=store)
    monkeypatch.setattr(home, "run_trial", lambda *a, **k: pytest.fail("ran a finished trial again"))
    second = RetrievalHeads(lengths=(80,), trials=3, budget=2).fit(tiny(), tokenizer, store=store)
    for a, b in zip(first.outcomes_seen, second.outcomes_seen, strict=True):
        assert a.answer == b.answer
        assert np.array_equal(a.flags, b.flags)
    assert not list((tmp_path / "keep").glob(".*"))


def test_scores_intervals_early_stop_and_saving(tokenizer, tmp_path: Path) -> None:
    from unbraid.systems.retrieval_heads.detect import Outcome

    rng = np.random.default_rng(0)
    system = RetrievalHeads(stop_top=2, stop_after=3)
    trial = RetrievalHeads(lengths=(80,), trials=1).make_trials(tokenizer)[0]
    system.outcomes_seen = []
    truth = np.array([[0.9, 0.0, 0.6, 0.05], [0.0, 0.0, 0.02, 0.0]])
    stopped = None
    for i in range(20):
        flags = rng.random((2, 4, 200)) < truth[..., None]
        flat = np.zeros((2, 4))
        system.outcomes_seen.append(Outcome(trial, "x", 1.0, flags, flags, flat, flat, flat, flat, flat))
        if stopped is None and system._stable():
            stopped = i + 1
    assert stopped == 4
    system.group_count_ = 2
    system._summarise(["a", "b"])
    assert float(np.abs(system.scores_.array - truth).max()) < 0.05
    assert (system.scores_.low["a"] <= system.scores_.scores["a"]).all()
    assert (system.scores_.high["a"] >= system.scores_.scores["a"]).all()
    assert list(system.retrieval_heads()) == [("a", 0), ("a", 2)]
    assert system.sparsity()["0"] == 0.5
    assert sum(system.sparsity().values()) == pytest.approx(1)
    assert len(system.groups_["a"]) == 2
    folder = system.save_pretrained(tmp_path / "saved")
    again = RetrievalHeads.from_pretrained(folder)
    assert again.scores_.to_dict() == system.scores_.to_dict()
    assert again.get_params() == system.get_params()


def test_export_is_read_back_as_kvpress_reads_it(tmp_path: Path) -> None:
    x = np.arange(24).reshape(3, 8) / 10
    folder = export_kvpress(HeadScores({f"s{i}": r for i, r in enumerate(x)}), tmp_path / "pattern", key_heads=4)
    sink, recent, table = load_kvpress(folder)
    assert (sink, recent) == (128, 256)
    assert table.shape == (3, 4)
    assert np.allclose(table, np.clip(x.reshape(3, 4, 2).max(-1), 0, 1))
    # DuoAttention's own layout: tab-separated, one layer a row
    assert len((folder / "full_attention_heads.tsv").read_text().splitlines()) == 3
    assert json.loads((folder / "config.json").read_text()) == {"sink_size": 128, "recent_size": 256}
    with pytest.raises(UnbraidError, match="cannot be divided"):
        export_kvpress(HeadScores({"s": np.zeros(8)}), tmp_path / "x", key_heads=3)


def test_monitor_sees_every_step_of_generate() -> None:
    f = FAMILIES["llama-gqa"]()
    heads = HeadSet([("model.layers.0.self_attn", 1), ("model.layers.1.self_attn", 2)])
    shown: list = []
    monitor, rows = Monitor(heads, on_step=shown.append), taps.Rows([-1], keep="all")
    ids = f.inputs["input_ids"][1:]
    with attach(f.model, monitor, rows):
        f.model.generate(input_ids=ids, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)
    assert len(monitor.steps) == len(shown) == 4
    for t, step in enumerate(monitor.steps):
        both = torch.stack([rows.values[s][t][0, h, 0] for s, h in heads]).mean(0)
        assert step.sink == pytest.approx(float(both[0]), abs=1e-6)
        assert step.context == pytest.approx(float(both[1:].sum()), abs=1e-5)


def test_own_haystack_and_needles(tmp_path: Path) -> None:
    text, facts = tmp_path / "book.txt", tmp_path / "facts.json"
    text.write_text("One sentence. Another one! A third?\nAnd more.", encoding="utf-8")
    assert read_haystack(text) == ["One sentence.", "Another one!", "A third?", "And more."]
    facts.write_text('{"needle": "X is Y.", "question": "What is X?"}\n{"needle": ["A.", "B."], "question": "?"}')
    assert [n.difficulty for n in read_needles(facts)] == ["single", "multi"]
    for content, message in (
        ("", "holds no needle"),
        ("[1]", 'needs the fields "needle"'),
        ("{", "cannot be read as JSON"),
    ):
        facts.write_text(content)
        with pytest.raises(UnbraidError, match=message):
            read_needles(facts)
    for content, message in ((b"", "0 sentences"), (b"\xff\xfe", "UTF-8")):
        text.write_bytes(content)
        with pytest.raises(UnbraidError, match=message):
            read_haystack(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "trials must be 1"),
        ({"lengths": ()}, "lengths is empty"),
        ({"lengths": (20,)}, "48 or more"),
        ({"gate": 1.5}, "gate must lie"),
        ({"procedure": "guess"}, "choose 'decode'"),
        ({"difficulty": "hard"}, "choose 'single'"),
        ({"template": "chat"}, "no chat template"),
        ({"lengths": (4000,)}, "positions"),
        ({"match": "sound"}, "choose 'id'"),
    ],
)
def test_bad_options(tokenizer, options: dict, message: str) -> None:
    with pytest.raises(UnbraidError, match=message):
        RetrievalHeads(**{"lengths": (80,), "trials": 1, "budget": 1, **options}).fit(tiny(), tokenizer)


def test_models_that_cannot_do_it(tokenizer) -> None:
    for name in ("bert", "t5"):
        with pytest.raises(UnbraidError, match="decoder language model"):
            RetrievalHeads(lengths=(80,), trials=1).fit(FAMILIES[name]().model, tokenizer)


def test_claims_and_page_of_a_small_study(tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unbraid.systems.retrieval_heads import study
    from unbraid.systems.retrieval_heads import trial as trial_file

    monkeypatch.setattr(study, "load", lambda *a: (tiny("gqa"), tokenizer))
    monkeypatch.setattr(trial_file, "recall", lambda *a: 1.0)
    from unbraid.systems.retrieval_heads import detect

    monkeypatch.setattr(detect, "recall", lambda *a: 1.0)  # a random model answers nothing; the page needs successes
    result = study.run(
        lengths=(80,), trials=2, seeds=2, mask_heads=(1,), mask_trials=2, controls=2, budget=2, progress=False
    )
    assert [c.name for c in result.claims] == [
        "few-heads",
        "many-zero",
        "causal",
        "sample-efficient",
        "dynamic",
        "one-pass",
    ]
    assert result.tables["top heads"]
    folder = result.save(tmp_path / "page")
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "Retrieval score of every head" in page
    monkeypatch.setattr(detect, "recall", lambda *a: 0.0)
    nothing = study.run(lengths=(80,), trials=2, seeds=1, mask_heads=(1,), budget=2, progress=False)
    assert all(c.holds is None for c in nothing.claims)
    assert "not ranked" in nothing.notes[0]
    for bad in ({"trials": 0}, {"lengths": (10,)}, {"mask_heads": (0,)}, {"seeds": 0}):
        with pytest.raises(UnbraidError):
            study.run(**bad)


@pytest.mark.study
def test_copy_model_with_known_heads() -> None:
    from unbraid.systems.retrieval_heads.copy_model import check_copy_model

    # seed 0; over five seeds the detector finds exactly these heads on three: results/retrieval_heads/copy_model.json
    found = check_copy_model(0)
    assert found["accuracy"] >= 0.98
    assert found["precision"] == found["recall"] == 1.0
    assert found["drop_both"] >= 0.9
    assert found["drop_random"] <= 0.05
