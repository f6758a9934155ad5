"""Real English that every Python has."""

import pytest
import torch

from unbraid.core.errors import UnbraidError
from unbraid.data.text import corpus, docstrings, english, stream, windows


class Characters:
    """A tokenizer of characters: what is tested is the cutting, not the vocabulary."""

    def __call__(self, texts, **_):
        return {"input_ids": [[ord(c) for c in t] for t in texts]}


def test_there_is_a_long_text_and_it_is_english():
    text = english()
    assert len(text) > 400_000
    assert text.split().count("the") > 3_000
    assert english(100) == text[:100]


def test_the_library_speaks_too():
    text = docstrings()
    assert len(text) > 500_000
    assert "def __init__(" not in text[:2000]
    assert docstrings() is text


def test_streams_follow_one_another():
    tokenizer = Characters()
    whole = stream(tokenizer, 300)
    assert whole.shape == (1, 300)
    assert torch.equal(stream(tokenizer, 100, skip=200), whole[:, 200:])


def test_windows_are_those_of_the_seed():
    a, b, c = (windows(Characters(), 50, 4, seed) for seed in (0, 0, 1))
    assert a.shape == (4, 50)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_corpus_is_cut_before_its_words_are_learnt():
    found = corpus(320, ("<s>", "[MASK]"))
    text = found.tokenizer.decode(found.valid.tolist())
    assert len(text.encode()) == found.valid_bytes
    assert 8 < found.train_bytes / found.valid_bytes < 10
    assert text[:2000] not in found.tokenizer.decode(found.train.tolist())
    assert found.train.max() < 320
    assert found.train.min() >= 2, "special tokens stand for no text"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: english(10**9), "choose 1 to"),
        (lambda: stream(Characters(), 0), "at least 1 token"),
        (lambda: stream(Characters(), 10**9), "there are"),
        (lambda: windows(Characters(), 10, 0, 0), "at least 1"),
    ],
)
def test_it_refuses_what_it_cannot_give(call, words):
    with pytest.raises(UnbraidError, match=words):
        call()
