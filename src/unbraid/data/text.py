"""Real English text that every Python has: the language reference and the library's own words, as tokens."""

from __future__ import annotations

import ast
import re
import sysconfig
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
