"""A CLIP tokenizer whose tokens are the words of the scenes' captions; any other text falls into letters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unbraid.core.errors import UnbraidError
from unbraid.zoo.reference import LENGTH

START, END = "<|startoftext|>", "<|endoftext|>"
SUFFIX = "</w>"


def tokenizer(words: Sequence[str] | None = None, length: int = LENGTH) -> Any:
    """A `CLIPTokenizer` with one token for each word.

    Args:
        words: letters and marks only; None: the vocabulary of `unbraid.data.scenes`.
        length: tokens of a prompt, begin and end included.

    Raises:
        UnbraidError: a word would not be one token.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    if words is None:
        from unbraid.data.scenes import vocabulary

        words = vocabulary()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix=SUFFIX))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=100_000, min_frequency=1, initial_alphabet=letters, end_of_word_suffix=SUFFIX, show_progress=False
    )
    learner.train_from_iterator([list(words)], trainer)
    made = learner.to_str()
    merges = _merges(made)
    tokens = [*letters, *(letter + SUFFIX for letter in letters), *("".join(pair) for pair in merges), START, END]
    vocabulary_ = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    # transformers' annotation of merges says text; pairs are what it takes
    found = CLIPTokenizer(vocab=vocabulary_, merges=merges, model_max_length=length)  # type: ignore[arg-type]
    for word in words:
        if len(found(word).input_ids) != 3:
            raise UnbraidError(f"the word {word!r} would not be one token; give words of letters or marks alone.")
    return found


def t5_tokenizer(length: int = LENGTH) -> Any:
    """A `T5Tokenizer` of the same words, for the silent third encoder of tiny-sd3.

    Args:
        length: tokens of a prompt.
    """
    from transformers import T5Tokenizer

    from unbraid.data.scenes import vocabulary

    marks = [(word, -4.0) for word in vocabulary() if not word.isalpha()]
    known = [("\u2581" + word, -4.0) for word in vocabulary() if word.isalpha()]
    start = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0)]
    return T5Tokenizer(vocab=[*start, *known, *marks], extra_ids=0, model_max_length=length)


def _merges(made: str) -> list[tuple[str, str]]:
    import json

    pairs = json.loads(made)["model"]["merges"]
    return [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ", 1)) for pair in pairs]
