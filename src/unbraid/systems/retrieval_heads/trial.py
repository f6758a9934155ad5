"""A trial: one needle in one haystack, in tokens, with the needle's positions exact from character offsets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.systems.retrieval_heads.prose import Needle

Template = Literal["auto", "chat", "paper"]

QUESTION = "Based on the content of the book, Question: {question}\nAnswer:"
ASK = "Based on the text above, answer in one sentence. {question}"
CONTENT_FREE = "N/A"
STOP_WORDS = frozenset(
    (
        "a", "an", "the", "is", "are", "was", "were", "of", "in", "at", "on", "to", "and", "as", "for", "what",
        "where", "who", "how", "which", "do", "did", "does",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One prompt.

    Attributes:
        ids: prompt token ids [n].
        context: tokens before the question begins; everything up to there can be shared between questions.
        needle: positions of the needle's tokens, in order [m].
        gold: ids of the needle as the model would say it, [m'].
        calibration: ids that follow the context when the question is content-free.
        needle_text: the hidden sentences, joined.
        question: what is asked.
        answer: what a right answer contains.
        length: tokens asked for.
        depth: 0 (start) to 1 (end).
    """

    ids: tuple[int, ...]
    context: int
    needle: tuple[int, ...]
    gold: tuple[int, ...]
    calibration: tuple[int, ...]
    needle_text: str
    question: str
    answer: str
    length: int
    depth: float
    seed: int = 0


def build_trial(
    tokenizer: Any,
    needle: Needle,
    sentences: list[str],
    length: int,
    depth: float,
    template: Template = "auto",
    seed: int = 0,
) -> Trial:
    """Cuts the haystack to `length` tokens, hides the needle at a sentence end near `depth`, and asks the question.

    Multi-fact needles are spread: the first fact near `depth`, the next half the text further on (cyclically).

    Raises:
        UnbraidError: the tokenizer has no offsets, the haystack is too short, or the needle cannot be located.
    """
    if not tokenizer.is_fast:
        raise UnbraidError(
            f"{type(tokenizer).__name__} gives no character offsets; load this model's fast tokenizer (use_fast=True)."
        )
    if length < 48:
        raise UnbraidError(f"A length of {length} tokens leaves no room for a haystack; give 48 or more.")
    frame = _frame(tokenizer, needle.question, template)
    fixed = len(_encode(tokenizer, frame[0] + " ".join(needle.sentences) + frame[1])[0])
    room = length - fixed
    body = cut(tokenizer, tuple(sentences), room)
    if not body and room > 64:
        raise UnbraidError("The haystack is shorter than one sentence; give a longer text.")
    while True:
        context, spans = _hide(body, needle.sentences, depth)
        text = frame[0] + context + frame[1]
        ids, offsets = _encode(tokenizer, text)
        if len(ids) <= length or not body:
            break
        body = body[:-1]
    shift = len(frame[0])
    where = [(a + shift, b + shift) for a, b in spans]
    positions = [i for i, (a, b) in enumerate(offsets) if b > a and any(a < e and b > s for s, e in where)]
    _check_span(tokenizer, ids, positions, text, where)
    question_at = text.rindex(needle.question)
    start = next(i for i, (a, b) in enumerate(offsets) if b > question_at)
    empty = text[:question_at] + CONTENT_FREE + text[question_at + len(needle.question) :]
    said = " ".join(needle.sentences)
    before = _encode(tokenizer, text)[0]
    gold = _continuation(tokenizer, text, said, before)
    return Trial(
        ids=tuple(ids),
        context=start,
        needle=tuple(positions),
        gold=tuple(gold),
        calibration=tuple(_encode(tokenizer, empty)[0][start:]),
        needle_text=said,
        question=needle.question,
        answer=needle.answer,
        length=length,
        depth=depth,
        seed=seed,
    )


def cut(tokenizer: Any, sentences: tuple[str, ...], room: int) -> list[str]:
    """As many sentences as fit into `room` tokens; the haystack is repeated when it is too short."""
    sizes = _sizes(tokenizer, sentences)
    total, out = 0, []
    for i in range(10**6):
        size = sizes[i % len(sizes)]
        if total + size > room:
            break
        total += size
        out.append(sentences[i % len(sentences)])
    return out


@lru_cache(maxsize=16)
def _sizes(tokenizer: Any, sentences: tuple[str, ...]) -> list[int]:
    coded = tokenizer([" " + s for s in sentences], add_special_tokens=False)["input_ids"]
    return [len(x) for x in coded]


def _frame(tokenizer: Any, question: str, template: Template) -> tuple[str, str]:
    """Text before and after the haystack."""
    chat = bool(tokenizer.chat_template)
    if template == "chat" and not chat:
        raise UnbraidError(f"{tokenizer.name_or_path or 'This tokenizer'} has no chat template; use template='paper'.")
    if template == "paper" or not chat:
        start = tokenizer.bos_token or ""
        return start, "\n" + QUESTION.format(question=question)
    mark = "\u241f"
    message = [{"role": "user", "content": mark + "\n\n" + ASK.format(question=question)}]
    text = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    before, after = text.split(mark)
    return before, after


def _encode(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return coded["input_ids"], [tuple(x) for x in coded["offset_mapping"]]


def _continuation(tokenizer: Any, text: str, said: str, before: list[int]) -> list[int]:
    """Token ids of an answer after a prompt: with the space that the prompt's last character asks for."""
    glue = "" if text[-1].isspace() else " "
    ids = _encode(tokenizer, text + glue + said)[0]
    if ids[: len(before)] == before:
        return ids[len(before) :]
    return _encode(tokenizer, glue + said)[0]


def _hide(body: list[str], facts: tuple[str, ...], depth: float) -> tuple[str, list[tuple[int, int]]]:
    """The haystack with every fact at a sentence end, and the character span of each."""
    places: dict[int, list[str]] = {}
    for i, fact in enumerate(facts):
        at = (depth + i / max(1, len(facts))) % 1.0 if i else depth
        places.setdefault(round(min(max(at, 0.0), 1.0) * len(body)), []).append(fact)
    parts: list[tuple[str, bool]] = []
    for i in range(len(body) + 1):
        parts += [(fact, True) for fact in places.get(i, [])]
        if i < len(body):
            parts.append((body[i], False))
    text, spans = "", []
    for piece, hidden in parts:
        text += " " if text else ""
        if hidden:
            spans.append((len(text), len(text) + len(piece)))
        text += piece
    return text, spans


def _check_span(tokenizer: Any, ids: list[int], positions: list[int], text: str, where: list[tuple[int, int]]) -> None:
    """Decoding the located tokens must give the needle back."""
    got = re.sub(r"\s+", "", tokenizer.decode([ids[i] for i in positions]))
    want = re.sub(r"\s+", "", "".join(text[a:b] for a, b in where))
    if want not in got or len(got) > len(want) + 2 * len(where):
        raise UnbraidError(
            f"The needle could not be located in tokens: {got[:80]!r} instead of {want[:80]!r}; please report the "
            "tokenizer."
        )


def words(text: str) -> list[str]:
    """Lower-case words without punctuation, a final plural s dropped (a light stemmer for recall)."""
    found = re.findall(r"\w+", text.lower())
    return [w[:-1] if len(w) > 3 and w.endswith("s") and not w.endswith("ss") else w for w in found]


def recall(answer: str, gold: str, question: str = "") -> float:
    """ROUGE-1 recall of `gold` in `answer`, counting only words that the question does not give away.

    The official gate counts all words; a needle told in full shares half of them with its own question, so that
    a wrong answer in the right form would pass.
    """
    given = set(words(question)) | STOP_WORDS
    wanted = [w for w in words(gold) if w not in given] or words(gold)
    said = words(answer)
    hit = 0
    for w in set(wanted):
        hit += min(wanted.count(w), said.count(w))
    return hit / len(wanted) if wanted else 0.0


def grid(lengths: list[int], depths: int, trials: int, rng: np.random.Generator) -> list[tuple[int, float]]:
    """`trials` (length, depth) pairs that cover lengths and depths evenly, in random order."""
    cells = [(n, (d + 0.5) / depths) for n in lengths for d in range(depths)]
    order: list[tuple[int, float]] = []
    while len(order) < trials:
        order += [cells[i] for i in rng.permutation(len(cells))]
    return order[:trials]
