"""A prompt and its twin as tokens, and sets of such pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from unbraid.core.errors import UnbraidError


@dataclass(frozen=True, eq=False)
class PromptPair:
    """A clean prompt and its corrupt twin, of equal length in tokens.

    Attributes:
        clean: token ids [T].
        corrupt: token ids [T].
        answers: tokens that are right after the clean prompt.
        distractors: tokens that are wrong after it (for most tasks, what is right after the twin).
        candidates: tokens that a guesser would choose from, answers among them.
        places: name -> token positions in the clean prompt; "end" is the last token, "source" where the twin differs
            (and, for some tasks, what follows of it in the same sentence).
        text: the clean prompt.
        twin: the corrupt prompt.
        answer: text of the first answer.
        distractor: text of the first distractor.
    """

    clean: tuple[int, ...]
    corrupt: tuple[int, ...]
    answers: tuple[int, ...]
    distractors: tuple[int, ...]
    candidates: tuple[int, ...]
    places: dict[str, tuple[int, ...]]
    text: str
    twin: str
    answer: str
    distractor: str

    @property
    def first_difference(self) -> int:
        """First position at which the two differ; nothing before it can change."""
        return next(i for i, (a, b) in enumerate(zip(self.clean, self.corrupt, strict=True)) if a != b)


@dataclass(frozen=True, eq=False)
class PromptSet:
    """Pairs of one task.

    Attributes:
        task: name of the task.
        pairs: the prompts.
        about: how they were made (shots, seed, twin), for reports.
    """

    task: str
    pairs: tuple[PromptPair, ...]
    about: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[PromptPair]:
        return iter(self.pairs)

    def __getitem__(self, i: int) -> PromptPair:
        return self.pairs[i]

    def take(self, count: int, start: int = 0) -> PromptSet:
        """Some of the pairs.

        Raises:
            UnbraidError: there are not as many.
        """
        if not 0 < count <= len(self) - start:
            raise UnbraidError(f"{self.task} has {len(self)} prompts; {count} from number {start} on are not there.")
        return PromptSet(self.task, self.pairs[start : start + count], self.about)

    def groups(self, size: int, places: Sequence[str] = ()) -> list[list[int]]:
        """Numbers of prompts in batches that need no padding.

        Args:
            size: prompts per batch at the most.
            places: names of places; prompts of a batch then have as many positions there.

        Returns:
            Lists of indices: of equal length in tokens.
        """
        if size < 1:
            raise UnbraidError(f"groups(size={size}): a batch needs at least one prompt.")
        found: dict[tuple[int, ...], list[int]] = {}
        for i, pair in enumerate(self.pairs):
            key = (len(pair.clean), *(len(pair.places.get(p, ())) for p in places))
            found.setdefault(key, []).append(i)
        return [all_[at : at + size] for _, all_ in sorted(found.items()) for at in range(0, len(all_), size)]
