"""Both detection procedures on one trial: while decoding, and in one pass with the gold answer appended."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unbraid.core.attach import attach
from unbraid.core.calls import Answer, Ask, AttentionCall, Tap
from unbraid.core.errors import UnbraidError
from unbraid.systems.retrieval_heads.trial import Trial, recall


@dataclass
class Outcome:
    """What one trial showed; tables are [sites, heads].

    Attributes:
        answer: the decoded answer.
        recall: of the needle's own words.
        flags: [sites, heads, m] bool: needle position copied by the head while decoding.
        one_pass: the same with the gold answer given.
        mass: mean attention on the needle over answer steps, while decoding.
        soft: mean probability of the needle position of the very token that was produced, one pass.
        sink: mean attention on the first token over answer steps.
        question_mass: attention from question tokens to the needle.
        blank_mass: the same under a content-free question.
    """

    trial: Trial
    answer: str
    recall: float
    flags: np.ndarray
    one_pass: np.ndarray
    mass: np.ndarray
    soft: np.ndarray
    sink: np.ndarray
    question_mass: np.ndarray
    blank_mass: np.ndarray
    steps: int = 0


class RowWatch(Tap):
    """Keeps, for every query row of a call, what copying needs: the most attended position and the needle's entries.

    Rows are dense, in float32, for the queries of this call only: O(queries x keys) for a decoding step or an answer.
    """

    def __init__(self, needle: Sequence[int]) -> None:
        self.needle = torch.tensor(list(needle))
        self.total = 0  # tokens so far, the current call's included
        self.best: dict[str, Tensor] = {}
        self.entries: dict[str, Tensor] = {}
        self.sink: dict[str, Tensor] = {}

    def ask(self, c: AttentionCall) -> Ask:
        """All rows of this call."""
        return Ask(rows=torch.arange(c.queries, device=c.device))

    def take(self, c: AttentionCall, answer: Answer) -> None:
        """Maps cache positions to absolute ones (a sliding window drops the oldest) and reduces the rows."""
        p = answer.rows
        assert p is not None
        shift = self.total - c.keys
        at = self.needle.to(p.device) - shift
        inside = at >= 0
        entries = p[0][:, :, at.clamp(min=0)] * inside
        self.best[c.site] = (p[0].argmax(-1) + shift).cpu()
        self.entries[c.site] = entries.cpu()
        self.sink[c.site] = p[0][:, :, 0].cpu() if shift == 0 else torch.zeros(p.shape[1], p.shape[2])


def check_model(model: Any, tokenizer: Any) -> None:
    """Refuses models that cannot run the procedure.

    Raises:
        UnbraidError: not a decoder language model with a generation head.
    """
    if not (isinstance(model, PreTrainedModel) and model.can_generate()) or model.config.is_encoder_decoder:
        raise UnbraidError(
            "retrieval_heads needs a decoder language model with a cache (AutoModelForCausalLM), not "
            f"{type(model).__name__}."
        )
    if tokenizer is None:
        raise UnbraidError("retrieval_heads needs the model's tokenizer.")


def feed(model: nn.Module, ids: Sequence[int], cache: Any, keep: int = 1) -> tuple[Tensor, Any]:
    """Runs tokens through the model over a cache; logits [len, vocab] of the last `keep` tokens."""
    device = next(model.parameters()).device
    out = model(
        input_ids=torch.tensor([list(ids)], device=device), past_key_values=cache, use_cache=True, logits_to_keep=keep
    )
    return out.logits[0], out.past_key_values


def prefill(model: nn.Module, trial: Trial, upto: int | None = None) -> Any:
    """A fresh cache of the first `upto` prompt tokens (all but the last by default), by the model's own kernel."""
    upto = len(trial.ids) - 1 if upto is None else upto
    return feed(model, trial.ids[:upto], None)[1]


def cut_back(cache: Any, length: int) -> Any:
    """The cache cut back to `length` tokens; only for caches that keep everything (see `rewindable`)."""
    extra = cache.get_seq_length() - length
    if extra:
        cache.crop(-extra)
    return cache


def rewindable(cache: Any) -> bool:
    """Whether a cache can be cut back exactly: no layer drops old tokens."""
    return all("Sliding" not in type(layer).__name__ and "Static" not in type(layer).__name__ for layer in cache.layers)


@torch.inference_mode()
def run_trial(
    model: nn.Module, tokenizer: Any, trial: Trial, budget: int, *, calibrate: bool = True, match: str = "id"
) -> Outcome:
    """Runs one trial: context by the fused kernel, then question, decoding, gold answer and the blank question.

    Args:
        model: a decoder language model.
        tokenizer: its fast tokenizer.
        trial: the prompt.
        budget: tokens to decode at the most; decoding stops at a line break or an end token.
        calibrate: also run the content-free question.
        match: "id" demands equal token ids for a copy, "text" equal text without blanks (" The" is "The").
    """
    watch = RowWatch(trial.needle)
    n, same = len(trial.ids), Same(tokenizer, trial, match)
    cache = feed(model, trial.ids[: trial.context], None)[1]
    spare = None if rewindable(cache) else copy.deepcopy(cache)
    with attach(model, watch):
        watch.total = n - 1
        question: np.ndarray | None = None
        if n - 1 > trial.context:
            _, cache = feed(model, trial.ids[trial.context : n - 1], cache)
            question = _table(watch.entries).sum(-1).mean(-1)
        at_answer = None if rewindable(cache) else copy.deepcopy(cache)
        answer, flags, mass, sink, steps = _decode(model, tokenizer, trial, cache, watch, budget, same)
        cache = cut_back(cache, n - 1) if at_answer is None else at_answer
        one_pass, soft = _one_pass(model, trial, cache, watch, same)
        blank = np.zeros_like(mass)
        if calibrate and question is not None and len(trial.calibration) > 1:
            cache = cut_back(cache, trial.context) if spare is None else spare
            watch.total = trial.context + len(trial.calibration) - 1
            feed(model, trial.calibration[:-1], cache)
            blank = _table(watch.entries).sum(-1).mean(-1)
    score = recall(answer, trial.answer, trial.question)
    return Outcome(
        trial,
        answer,
        score,
        flags,
        one_pass,
        mass,
        soft,
        sink,
        question if question is not None else mass,
        blank,
        steps,
    )


class Same:
    """Which needle positions hold a given token: by id, or by text without blanks."""

    def __init__(self, tokenizer: Any, trial: Trial, match: str) -> None:
        if match not in ("id", "text"):
            raise UnbraidError(f"match={match!r} is unknown; choose 'id' or 'text'.")
        self.tokenizer, self.match = tokenizer, match
        self.keys = [self.key(trial.ids[i]) for i in trial.needle]

    def key(self, token: int) -> Any:
        """What is compared."""
        return token if self.match == "id" else self.tokenizer.decode([token]).strip()

    def hits(self, token: int) -> np.ndarray:
        """[m] bool."""
        key = self.key(token)
        return np.array([k == key for k in self.keys])


def _table(rows: dict[str, Tensor]) -> np.ndarray:
    """[sites, heads, ...] from per-site tensors; sites with fewer heads are filled with zeros."""
    width = max(x.shape[0] for x in rows.values())
    return np.stack([np.pad(x.numpy(), [(0, width - x.shape[0])] + [(0, 0)] * (x.dim() - 1)) for x in rows.values()])


def copied(watch: RowWatch, trial: Trial, row: int, hits: np.ndarray) -> np.ndarray:
    """[sites, heads, m] bool: the head's most attended position is a needle position that holds the token."""
    best = _table({s: b[:, row] for s, b in watch.best.items()})
    where = np.array(trial.needle)
    return (best[..., None] == where) & hits


def greedy(model: nn.Module, tokenizer: Any, token: int, cache: Any, budget: int) -> Iterator[int]:
    """Tokens of a greedy answer after `token`, one forward each; ends at an end token, a line break or the budget."""
    stop, said = stop_ids(model, tokenizer), []
    for _ in range(budget):
        token = int(feed(model, [token], cache)[0][-1].argmax())
        if token in stop:
            return
        said.append(token)
        yield token
        if "\n" in tokenizer.decode([token]) and tokenizer.decode(said).strip():
            return


def _decode(
    model: nn.Module, tokenizer: Any, trial: Trial, cache: Any, watch: RowWatch, budget: int, same: Same
) -> tuple[str, np.ndarray, np.ndarray, np.ndarray, int]:
    """Greedy decoding with one row per head and step; the row used is that of the query that predicts the token."""
    shape = _table(watch.entries).shape
    flags = np.zeros((*shape[:2], shape[-1]), bool)
    mass, sink = np.zeros(shape[:2]), np.zeros(shape[:2])
    watch.total, said = len(trial.ids), []
    for token in greedy(model, tokenizer, trial.ids[-1], cache, budget):
        said.append(token)
        flags |= copied(watch, trial, 0, same.hits(token))
        mass += _table(watch.entries)[:, :, 0].sum(-1)
        sink += _table(watch.sink)[:, :, 0]
        watch.total += 1
    steps = max(1, len(said))
    return tokenizer.decode(said, skip_special_tokens=True).strip(), flags, mass / steps, sink / steps, len(said)


def _one_pass(model: nn.Module, trial: Trial, cache: Any, watch: RowWatch, same: Same) -> tuple[np.ndarray, np.ndarray]:
    """The gold answer in one forward: rows of the queries that predict its tokens."""
    fed = [trial.ids[-1], *trial.gold[:-1]]
    watch.total = len(trial.ids) - 1 + len(fed)
    feed(model, fed, cache)
    entries = _table(watch.entries)
    flags = np.zeros((*entries.shape[:2], entries.shape[-1]), bool)
    soft = np.zeros(entries.shape[:2])
    for step, token in enumerate(trial.gold):
        hits = same.hits(token)
        flags |= copied(watch, trial, step, hits)
        soft += entries[:, :, step][..., hits].sum(-1)
    return flags, soft / len(trial.gold)


def stop_ids(model: Any, tokenizer: Any) -> set[int]:
    """End tokens of model and tokenizer."""
    config = model.generation_config if model.generation_config is not None else model.config
    ends = config.eos_token_id
    found = set(ends) if isinstance(ends, list) else {ends}
    return {int(x) for x in found | {tokenizer.eos_token_id} if x is not None}


@torch.inference_mode()
def answer_from(
    model: nn.Module, tokenizer: Any, trial: Trial, cache: Any, budget: int, taps: Sequence[Tap] = ()
) -> str:
    """Greedy answer over a prefilled cache under some edits; the cache is afterwards as it was."""
    work = cache if rewindable(cache) else copy.deepcopy(cache)
    with attach(model, *taps):
        said = list(greedy(model, tokenizer, trial.ids[-1], work, budget))
    if work is cache:
        cut_back(cache, len(trial.ids) - 1)
    return tokenizer.decode(said, skip_special_tokens=True).strip()
