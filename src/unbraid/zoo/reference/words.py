"""A CLIP tokenizer whose tokens are the words of the scenes' captions; any other text falls into letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
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
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    if words is None:
        from unbraid.data.scenes import vocabulary

        words = vocabulary()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    for word in words:
        if not word or set(word) - set(letters):
            raise UnbraidError(f"the word {word!r} would not be one token; give words of letters or marks alone.")
    merges = _merges(words, letters)
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


def _merges(words: Sequence[str], letters: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges until each word is one token; of pairs seen equally often the one whose parts are older.

    The trainers of the tokenizers library settle such ties otherwise in each process, and a model that goes on learning
    would then hear other words by the same names.
    """
    age = {token: number for number, token in enumerate([*letters, *(letter + SUFFIX for letter in letters)])}
    split = [[*word[:-1], word[-1] + SUFFIX] for word in words]
    merges: list[tuple[str, str]] = []
    while any(len(parts) > 1 for parts in split):
        counts = Counter(pair for parts in split for pair in pairwise(parts))
        first, second = min(counts, key=lambda pair: (-counts[pair], age[pair[0]], age[pair[1]]))
        merges.append((first, second))
        age.setdefault(first + second, len(age))
        split = [_merged(parts, first, second) for parts in split]
    return merges


def _merged(parts: list[str], first: str, second: str) -> list[str]:
    found: list[str] = []
    for part in parts:
        if found and found[-1] == first and part == second:
            found[-1] = first + second
        else:
            found.append(part)
    return found
