"""From text with named slots to tokens with named positions, by character offsets, for any fast tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from unbraid.core.errors import UnbraidError
from unbraid.data.prompts.pairs import PromptPair

Piece = str | tuple[str, str]  # text, or (text, name of its place)


class Slots:
    """Text put together from pieces, some of which have a name; a name may occur several times."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self.text = ""
        self.spans: list[tuple[str, int, int]] = []
        for piece in pieces:
            words, name = (piece, "") if isinstance(piece, str) else piece
            start = len(self.text) + len(words) - len(words.lstrip())
            self.text += words
            if name:
                self.spans.append((name, start, len(self.text.rstrip())))


class Encoder:
    """A tokenizer, asked for positions.

    Args:
        tokenizer: a fast tokenizer of transformers.

    Raises:
        UnbraidError: it gives no character offsets.
    """

    def __init__(self, tokenizer: Any) -> None:
        try:
            fast = bool(tokenizer.is_fast)
        except AttributeError:
            fast = False
        if not fast:
            kind = "no tokenizer" if tokenizer is None else type(tokenizer).__name__
            raise UnbraidError(
                f"Prompts are aligned by character offsets, which {kind} does not give; load the model's fast "
                "tokenizer (use_fast=True)."
            )
        self.tokenizer = tokenizer

    def encode(self, text: str) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
        """Token ids and their character spans; special tokens as this tokenizer puts them before a text, none after."""
        found = self.tokenizer(text, return_offsets_mapping=True, verbose=False)
        ids, spans = list(found["input_ids"]), [tuple(s) for s in found["offset_mapping"]]
        while spans and spans[-1][0] == spans[-1][1]:  # an end-of-text token would be the thing to predict
            ids.pop()
            spans.pop()
        if not ids:
            raise UnbraidError(f"This tokenizer makes no token of {text!r}; prompts need at least one.")
        return tuple(ids), spans

    def places(self, slots: Slots, spans: Sequence[tuple[int, int]]) -> dict[str, tuple[int, ...]]:
        """Token positions of every named slot: those that share a character with its words."""
        found: dict[str, tuple[int, ...]] = {}
        for name, start, stop in slots.spans:
            at = tuple(i for i, (a, b) in enumerate(spans) if a < stop and b > start)
            found[name] = (*found.get(name, ()), *at)
        return found

    def follow(self, text: str, before: tuple[int, ...], more: str) -> int | None:
        """The first token of `more` after `text`, whose tokens are `before`; None where the two melt together."""
        whole, _ = self.encode(text + more)
        if whole[: len(before)] != before or len(whole) <= len(before):
            return None
        return whole[len(before)]

    def whole_words(self, words: Iterable[str], carrier: str = "It was{} again.") -> list[str]:
        """The words that are a single token of their own inside a sentence, after a space."""
        good = []
        unknown = self.tokenizer.unk_token_id
        for word in words:
            slots = Slots([carrier.split("{}")[0], (f" {word}", "word"), carrier.split("{}")[1]])
            ids, spans = self.encode(slots.text)
            at = self.places(slots, spans).get("word", ())
            if len(at) == 1 and ids[at[0]] != unknown and self._covers(slots, spans[at[0]]):
                good.append(word)
        return good

    @staticmethod
    def _covers(slots: Slots, span: tuple[int, int]) -> bool:
        _, start, stop = slots.spans[0]
        return span[0] in (start, start - 1) and span[1] == stop


def need(words: Sequence[str], least: int, what: str, given: int) -> None:
    """Refuses a vocabulary that is too small.

    Raises:
        UnbraidError: fewer than `least` words are left.
    """
    if len(words) < least:
        raise UnbraidError(
            f"Only {len(words)} of {given} {what} are single tokens for this tokenizer, and the task needs {least}: "
            f"give {what} of your own that are."
        )


def pair(
    encoder: Encoder,
    clean: Slots,
    corrupt: Slots,
    answers: Sequence[str],
    distractors: Sequence[str],
    candidates: Sequence[str] = (),
    source: Sequence[str] = (),
    whole: bool = False,
) -> PromptPair | None:
    """A checked pair; None where its answer melts into the prompt or the two have no different first tokens.

    Args:
        encoder: the tokenizer.
        clean: the prompt.
        corrupt: its twin.
        answers: continuations that are right, with their leading space.
        distractors: continuations that are wrong.
        candidates: what a guesser would choose from.
        source: names of the places where the twin differs.
        whole: leave out answers and distractors that are more than one token.

    Raises:
        UnbraidError: prompt and twin are not aligned.
    """
    ids, spans = encoder.encode(clean.text)
    twin, _ = encoder.encode(corrupt.text)
    if len(ids) != len(twin):
        raise UnbraidError(
            f"Prompt and twin are {len(ids)} and {len(twin)} tokens long: {clean.text!r}, {corrupt.text!r}; words that "
            "are exchanged need as many tokens as one another."
        )
    places = encoder.places(clean, spans)
    differ = {i for i, (a, b) in enumerate(zip(ids, twin, strict=True)) if a != b}
    allowed = {i for name in source for i in places[name]}
    if not differ or not differ <= allowed:
        raise UnbraidError(
            f"Prompt and twin differ at tokens {sorted(differ)}, not only where words were exchanged "
            f"({sorted(allowed)}): {clean.text!r}, {corrupt.text!r}."
        )
    ends = [[encoder.follow(clean.text, ids, word) for word in words] for words in (answers, distractors, candidates)]
    if whole:
        read = encoder.tokenizer.decode
        named = zip(ends[:2], (answers, distractors), strict=True)
        ends[:2] = [
            [t for t, word in zip(found, words, strict=True) if t is not None and read([t]).strip() == word.strip()]
            for found, words in named
        ]
    right, wrong, guessed = (tuple(dict.fromkeys(t for t in found if t is not None)) for found in ends)
    if None in ends[0] or None in ends[1] or not right or not wrong or set(right) & set(wrong):
        return None
    last = len(ids) - 1
    after = tuple(range(min(differ), last))
    places |= {"end": (last,), "source": tuple(i for i in places.get("source", after) if i < last) or (min(differ),)}
    return PromptPair(
        ids, twin, right, wrong, tuple(dict.fromkeys((*right, *wrong, *guessed))), places, clean.text, corrupt.text,
        answers[0], distractors[0],
    )  # fmt: skip


def check_count(count: int, shots: int = 0) -> None:
    """Refuses impossible numbers.

    Raises:
        UnbraidError: which one.
    """
    if count < 1 or shots < 0:
        raise UnbraidError(f"count={count}, shots={shots}: give at least 1 prompt and 0 or more solved examples.")
