"""Where the words of a prompt are among the tokens that a denoiser is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unbraid.core.errors import UnbraidError
from unbraid.diffusion.parts import Parts

LENGTHS = {"sd3": 256, "flux": 512}  # tokens of T5 that the pipelines ask for, unless told otherwise


def positions(tokenizer: Any, prompt: str, word: str, length: int | None = None) -> list[int]:
    """Token positions of every occurrence of a word (or phrase), the start token counted.

    Args:
        tokenizer: of the text encoder.
        prompt: the whole text.
        word: one or several words of it, of one or several pieces each.
        length: of the padded text; None: the tokenizer's own.

    Raises:
        UnbraidError: the prompt has no such word, or it is cut off before it.
    """
    ids = list(tokenizer(prompt).input_ids)
    wanted = list(tokenizer(word, add_special_tokens=False).input_ids)
    found = [
        i + k for i in range(len(ids) - len(wanted) + 1) if wanted and ids[i : i + len(wanted)] == wanted
        for k in range(len(wanted))
    ]  # fmt: skip
    if not found:
        raise UnbraidError(f"the prompt {prompt!r} has no {word!r}; give words that stand in it.")
    limit = tokenizer.model_max_length if length is None else length
    if found[0] >= limit:
        raise UnbraidError(
            f"{word!r} comes after the {limit} tokens that the text encoder reads; make the prompt shorter."
        )
    return [i for i in found if i < limit]


def spans(parts: Parts, prompt: str, words: Sequence[str], length: int | None = None) -> list[list[int]]:
    """Positions of words among the tokens of `Parts.encode`, those of all text encoders joined.

    Stable Diffusion XL's two encoders share positions. Stable Diffusion 3 has T5's tokens after CLIP's (if it has T5);
    FLUX.1 is told T5's only.

    Args:
        parts: of the pipeline.
        prompt: the whole text.
        words: of it.
        length: of T5's part; None: as the pipelines have it.

    Raises:
        UnbraidError: see `positions`.
    """
    first = parts.encoders[0][0]
    if parts.family in ("sd", "sdxl"):
        return [positions(first, prompt, word) for word in words]
    second = LENGTHS[parts.family] if length is None else length
    if parts.family == "flux":
        return [positions(parts.encoders[-1][0], prompt, word, second) for word in words]
    found = [positions(first, prompt, word) for word in words]
    if len(parts.encoders) == 3:
        start = int(first.model_max_length)
        for one, word in zip(found, words, strict=True):
            one += [start + i for i in positions(parts.encoders[2][0], prompt, word, second)]
    return found
