"""Real English text that every Python has: the language reference and the library's own words, as tokens."""

from __future__ import annotations

import ast
import re
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unbraid.core.errors import UnbraidError

if TYPE_CHECKING:
    from torch import Tensor

SKIPPED = {
    "test",
    "tests",
    "site-packages",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "turtledemo",
    "ensurepip",
    "__pycache__",
}
TRAINING = 0.9  # of each text of a corpus
SOURCE = "pydoc_data.topics, the language reference that ships with Python"


@cache
def _whole() -> str:
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    return re.sub(r"\*{3,}|={3,}|-{3,}|\"{3,}|~{3,}", "", text).replace("\r\n", "\n")


def english(characters: int | None = None) -> str:
    """Plain technical English, about 450,000 characters; the same text for the same version of Python.

    Args:
        characters: how many from the start; None for all.

    Raises:
        UnbraidError: there is less text than that.
    """
    text = _whole()
    if characters is None:
        return text
    if not 0 < characters <= len(text):
        raise UnbraidError(f"characters={characters}: choose 1 to {len(text)}, which is all there is ({SOURCE}).")
    return text[:characters]


@cache
def docstrings() -> str:
    """What the modules, classes and functions of Python's standard library say of themselves, 1.4 million characters.

    The same text for the same version of Python; files are parsed, not run.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    parts = []
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root).parts
        if not {*inside[:-1]} & SKIPPED and not inside[0].startswith("test"):
            parts += _said(path)
    return "\n\n".join(parts)


def _said(path: Path) -> list[str]:
    """The docstrings of a file that are longer than a line."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError, ValueError):
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    return [text for text in found if text is not None and len(text) >= 80]


@dataclass(frozen=True, eq=False)
class Corpus:
    """`english` and `docstrings` as the tokens of a byte-level BPE that was learnt on the training part.

    Attributes:
        train: nine tenths of each text, [tokens].
        valid: the last tenth of each, [tokens].
        tokenizer: of the tokenizers library; its special tokens have the first numbers.
        train_bytes: of the training part in UTF-8.
        valid_bytes: of the validation part.
    """

    train: np.ndarray
    valid: np.ndarray
    tokenizer: Any
    train_bytes: int
    valid_bytes: int


@cache
def corpus(vocabulary: int = 1024, special: tuple[str, ...] = ("<s>",)) -> Corpus:
    """1.9 million characters for training small language models, cut into training and validation.

    Args:
        vocabulary: entries of the tokenizer, special tokens and 256 bytes among them.
        special: tokens that stand for no text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    train, valid = "", ""
    for text in (english(), docstrings()):
        cut = text.index("\n\n", int(TRAINING * len(text)))
        train, valid = train + text[:cut] + "\n\n", valid + text[cut:] + "\n\n"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[*special], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([train], trainer)
    ids = [np.asarray(tokenizer.encode(part).ids, np.int64) for part in (train, valid)]
    return Corpus(ids[0], ids[1], tokenizer, len(train.encode()), len(valid.encode()))


def stream(tokenizer: Any, tokens: int, skip: int = 0) -> Tensor:
    """One long text as tokens, without special tokens: [1, tokens].

    Args:
        tokenizer: a transformers tokenizer.
        tokens: how many.
        skip: how many to leave out at the beginning, so that several streams do not overlap.

    Raises:
        UnbraidError: there is less text than that.
    """
    import torch

    if tokens < 1 or skip < 0:
        raise UnbraidError(f"tokens={tokens}, skip={skip}: give at least 1 token, and skip at least 0.")
    ids = _tokens(tokenizer)
    if skip + tokens > len(ids):
        raise UnbraidError(
            f"skip={skip} and tokens={tokens} need {skip + tokens} tokens; there are {len(ids)} ({SOURCE})."
        )
    return torch.from_numpy(ids[skip : skip + tokens].copy())[None]


def windows(tokenizer: Any, length: int, count: int, seed: int) -> Tensor:
    """Windows at random places of the text, without special tokens: [count, length].

    Args:
        tokenizer: a transformers tokenizer.
        length: of a window, in tokens.
        count: windows.
        seed: of the places.
    """
    import torch

    ids = _tokens(tokenizer)
    if not 0 < length <= len(ids) or count < 1:
        raise UnbraidError(f"length={length}, count={count}: length must be 1 to {len(ids)} and count at least 1.")
    starts = np.random.default_rng(seed).integers(0, len(ids) - length + 1, count)
    return torch.from_numpy(np.stack([ids[s : s + length] for s in starts]))


def _tokens(tokenizer: Any) -> np.ndarray:
    # cut at paragraphs, so that no tokenizer warns of texts beyond its model's length
    parts = [p + "\n\n" for p in english().split("\n\n")]
    ids = tokenizer(parts, add_special_tokens=False, verbose=False)["input_ids"]
    return np.fromiter((i for part in ids for i in part), dtype=np.int64)
