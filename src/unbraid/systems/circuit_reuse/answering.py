"""Does the model answer at all? Top-1 over the vocabulary, best of the candidates, and log-odds, per prompt."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

from unbraid.core.attach import attach
from unbraid.core.calls import Tap
from unbraid.core.pieces import Pieces
from unbraid.data.prompts import PromptSet

Taps = Callable[[list[int]], Sequence[Tap]]  # from the numbers of a batch's prompts to the taps for it


@dataclass(eq=False)
class Answers:
    """What a model answers, prompt by prompt.

    Attributes:
        top1: [prompts] bool, the most likely token of all is a right one.
        best: [prompts] bool, the most likely of the candidates is a right one.
        log_odds: [prompts] of answers against distractors.
    """

    top1: np.ndarray
    best: np.ndarray
    log_odds: np.ndarray

    def share(self, which: str = "top1") -> tuple[float, float, float]:
        """(share, lower, upper): 95 % Wilson interval."""
        right = vars(self)[which]
        ci = stats.binomtest(int(right.sum()), len(right)).proportion_ci(0.95, "wilson")
        return float(right.mean()), float(ci.low), float(ci.high)


@torch.inference_mode()
def accuracy(model: nn.Module, prompts: PromptSet, taps: Taps | None = None, batch: int = 25) -> Answers:
    """Runs all prompts and compares the last token's logits.

    Args:
        model: a decoder language model.
        prompts: of one task.
        taps: edits for a batch, from the numbers of its prompts; None for the model as it is.
        batch: prompts per forward.
    """
    n = len(prompts)
    top1, best, odds = np.zeros(n, bool), np.zeros(n, bool), np.zeros(n)
    device = next(model.parameters()).device
    for group in prompts.groups(batch):
        ids = torch.tensor([prompts[i].clean for i in group], device=device)
        edits = taps(group) if taps is not None else ()
        with attach(model, *edits):
            logits = last_logits(model, ids)
        for row, i in zip(logits, group, strict=True):
            pair = prompts[i]
            top1[i] = int(row.argmax()) in pair.answers
            guess = pair.candidates[int(row[list(pair.candidates)].argmax())]
            best[i] = guess in pair.answers
            odds[i] = float(row[list(pair.answers)].logsumexp(0) - row[list(pair.distractors)].logsumexp(0))
    return Answers(top1, best, odds)


def remembered(store: Pieces | None, prompts: PromptSet, what: Any, make: Callable[[], Answers]) -> Answers:
    """Answers from a store, or made now and put there.

    Args:
        store: where finished answers are; None for none.
        prompts: that were answered.
        what: everything else that they depend on.
        make: runs the model.
    """
    if store is None:
        return make()
    key = [[(p.clean, p.answers, p.distractors, p.candidates) for p in prompts], what]
    found = store.load_arrays("answers", key)
    if found is not None:
        return Answers(found["top1"], found["best"], found["log_odds"])
    made = make()
    store.save_arrays("answers", key, {"top1": made.top1, "best": made.best, "log_odds": made.log_odds})
    return made


def last_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """[B, vocabulary] float32 logits of the last token."""
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    return model(input_ids=ids, use_cache=False, **last).logits[:, -1].float()
