"""Prompts in pairs: aligned token by token, places where they should be, for tokenizers of several kinds."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import unbraid.data.prompts as prompts_package
from support.prompting import fast
from unbraid.core.errors import UnbraidError
from unbraid.data.prompts import TASKS, coloured_objects, greater_than, indirect_object, world_capitals
from unbraid.data.prompts.tokens import Encoder


@pytest.fixture(scope="module")
def tokenizers_():
    return {kind: fast(kind) for kind in ("bytes", "digits", "metaspace", "lower")}


@pytest.mark.parametrize("kind", ["bytes", "digits"])
@pytest.mark.parametrize("task", ["ioi", "coloured_objects", "capitals"])
@pytest.mark.parametrize("shots", [0, 2])
def test_pairs_are_aligned_and_places_hold_what_they_say(tokenizers_, kind: str, task: str, shots: int) -> None:
    tokenizer = tokenizers_[kind]
    made = TASKS[task](tokenizer, 20, 3, shots)
    assert len(made) == 20
    for p in made:
        assert len(p.clean) == len(p.corrupt)
        differ = {i for i, (a, b) in enumerate(zip(p.clean, p.corrupt, strict=True)) if a != b}
        assert p.first_difference == min(differ)
        assert differ <= set(p.places["source"]) | set(p.places.get("country", ()))
        assert p.places["end"] == (len(p.clean) - 1,)
        assert all(0 <= i < len(p.clean) for at in p.places.values() for i in at)
        assert not set(p.answers) & set(p.distractors)
        assert set(p.answers) <= set(p.candidates)
        assert tokenizer.decode(p.clean) == p.text
        said = tokenizer(p.text + p.answer)["input_ids"]
        assert said[len(p.clean)] == p.answers[0]  # the answer really is the next token


def word(tokenizer, p, place: str) -> list[str]:
    return [tokenizer.decode([p.clean[i]]).strip() for i in p.places[place]]


def test_indirect_objects(tokenizers_) -> None:
    t = tokenizers_["bytes"]
    made = indirect_object(t, 40, 0)
    orders = set()
    for p in made:
        io, s1, s2 = (word(t, p, name) for name in ("IO", "S1", "S2"))
        assert s1 == s2 != io
        assert [p.answer.strip()] == io
        assert [p.distractor.strip()] == s1
        assert p.places["S1+1"][0] == p.places["S1"][0] + 1
        assert t.decode([p.corrupt[p.places["S2"][0]]]).strip() == io[0]
        orders.add(p.places["IO"] < p.places["S1"])
    assert orders == {True, False}  # either name may come first
    assert len({p.text for p in made}) > 30
    assert made[0].text == indirect_object(t, 40, 0)[0].text != indirect_object(t, 40, 1)[0].text
    other = indirect_object(t, 10, 0, twin="fresh")
    for p in other:
        assert p.first_difference <= min(p.places["S1"][0], p.places["IO"][0])
        assert not {p.answers[0], p.distractors[0]} & set(p.corrupt)


def test_coloured_objects(tokenizers_) -> None:
    t = tokenizers_["bytes"]
    for p in coloured_objects(t, 30, 0):
        assert p.text.count("What color") == 2  # one solved example, then the question
        asked, thing = word(t, p, "question"), word(t, p, "object")
        assert asked == thing
        assert [p.answer.strip().lower()] == word(t, p, "colour")
        wrong = word(t, p, "wrong")
        assert len(wrong) == 2
        assert p.answer.strip().lower() not in wrong
        assert p.distractor.strip().lower() in wrong
        assert word(t, p, "twin colour") == [p.distractor.strip().lower()]
        assert len(p.candidates) == 3


@pytest.mark.parametrize(("kind", "digits"), [("bytes", 2), ("digits", 1)])
def test_greater_than(tokenizers_, kind: str, digits: int) -> None:
    t = tokenizers_[kind]
    made = greater_than(t, 20, 0)
    assert made.about["digits"] == digits
    for p in made:
        start = int("".join(word(t, p, "start")))
        right, wrong = ([int(t.decode([x])) for x in some] for some in (p.answers, p.distractors))
        limit = start if digits == 2 else start // 10
        assert min(right) > limit
        assert max(wrong) <= limit
        assert len(right) + len(wrong) == (100 if digits == 2 else 9)


def test_prompts_are_grouped_by_length(tokenizers_) -> None:
    made = indirect_object(tokenizers_["bytes"], 50, 0)
    groups = made.groups(8)
    assert sorted(i for g in groups for i in g) == list(range(50))
    assert all(len(g) <= 8 and len({len(made[i].clean) for i in g}) == 1 for g in groups)
    assert [p.text for p in made.take(5, 10)] == [p.text for p in made.pairs[10:15]]
    with pytest.raises(UnbraidError):
        made.take(51)
    with pytest.raises(UnbraidError):
        made.groups(0)


def test_a_tokenizer_with_special_tokens_of_its_own(tokenizers_) -> None:
    from tokenizers.processors import TemplateProcessing

    t = fast("bytes")
    t.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", t.bos_token_id), ("</s>", t.eos_token_id)]
    )
    p = indirect_object(t, 5, 0)[0]
    assert p.clean[0] == t.bos_token_id  # as this tokenizer begins a text
    assert t.eos_token_id not in p.clean  # nothing is predicted after the end


def test_words_that_are_several_tokens_are_left_out(tokenizers_) -> None:
    e = Encoder(tokenizers_["bytes"])
    assert e.whole_words(["Mary", "Xqzwvutonk"]) == ["Mary"]
    assert Encoder(tokenizers_["metaspace"]).whole_words(["Mary"]) in (["Mary"], [])


class Slow:
    is_fast = False


REFUSED = {
    "slow tokenizer": lambda t: indirect_object(Slow(), 5),
    "no tokenizer": lambda t: coloured_objects(None, 5),
    "no prompts": lambda t: world_capitals(t["bytes"], 0),
    "negative shots": lambda t: greater_than(t["bytes"], 5, 0, -1),
    "twin": lambda t: indirect_object(t["bytes"], 5, twin="none"),
    "names": lambda t: indirect_object(t["bytes"], 5, names=("Xqzwvut", "Yprlgonk", "Zzyzx", "Qwrtp")),
    "colours": lambda t: coloured_objects(t["bytes"], 5, colours=("fuchsiaish", "mauvelike")),
    "countries": lambda t: world_capitals(t["bytes"], 5, capitals=(("Xqzwv", "Ygp"),)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_wrong_input_is_refused_in_one_sentence(tokenizers_, what: str) -> None:
    with pytest.raises(UnbraidError) as caught:
        REFUSED[what](tokenizers_)
    assert len(str(caught.value)) > 30


def test_the_data_layer_knows_no_system_and_needs_no_torch() -> None:
    for path in Path(prompts_package.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.startswith(("unbraid.systems", "unbraid.zoo", "torch"))], path
