"""`RetrievalHeads`: scores every head of a decoder language model by how often it copies needle tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from scipy import stats
from torch import nn

from unbraid import taps
from unbraid.core.attach import attach
from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores, HeadSet
from unbraid.core.pieces import Pieces
from unbraid.core.system import System
from unbraid.systems.retrieval_heads import CARD
from unbraid.systems.retrieval_heads.detect import Outcome, check_model, feed, run_trial
from unbraid.systems.retrieval_heads.prose import Difficulty, Needle
from unbraid.systems.retrieval_heads.prose import haystack as make_haystack
from unbraid.systems.retrieval_heads.prose import needle as make_needle
from unbraid.systems.retrieval_heads.store import load_outcome, save_outcome
from unbraid.systems.retrieval_heads.trial import Template, Trial, build_trial, grid

Procedure = Literal["decode", "one_pass"]


class RetrievalHeads(System):
    """Detects retrieval heads: heads that attend to a needle token and thereby copy it into the answer.

    Reference: arXiv 2404.15574. A head copies needle position j when, at the step that produces token w, its most
    attended position is j and the token there is w. The score of a trial is the share of needle positions copied, the
    head's score the mean over successful trials. The official code adds 1/|needle| per step, which can exceed 1.

    Args:
        lengths: context lengths in tokens, question included.
        depths: number of depths from start to end.
        trials: trials to run at the most; lengths and depths are covered evenly.
        difficulty: "single" fact, "multi" (two facts) or "passkey".
        procedure: "decode" (the paper's) or "one_pass" (the gold answer appended); both are measured, this one ranks.
        gate: a trial counts when the recall of the needle's own words in the answer exceeds this.
        threshold: a head with at least this score is a retrieval head.
        budget: tokens to decode at the most; stops at a line break.
        template: "chat", "paper", or "auto" (chat where the tokenizer has one).
        match: compare tokens by "id" or by "text" without blanks.
        stop_top: stop early when the set of this many top heads is stable; 0 never stops early.
        stop_overlap: Jaccard overlap that counts as stable.
        stop_after: successful trials over which it must be stable.
        seed: of haystacks, needles and the order of lengths and depths.

    Attributes:
        scores_: `HeadScores` by `procedure`, with 95 % bootstrap intervals over trials.
        decode_scores_: scores of the decoding procedure.
        one_pass_scores_: scores of the one-pass procedure.
        activation_: share of trials in which the head copied at least one position.
        needle_mass_: mean attention on the needle at answer steps.
        sink_mass_: mean attention on the first token at answer steps.
        soft_scores_: mean probability of the position of the very token produced.
        calibrated_mass_: attention from the question to the needle, minus the same under a content-free question.
        n_trials_: trials run; `n_success_`: trials that passed the gate.
        groups_: key/value heads: the best score in each group of query heads, which share their keys.

    Example:
        >>> heads = RetrievalHeads(lengths=(512,), trials=4).fit(model, tokenizer)
        >>> heads.scores_.top(10), heads.retrieval_heads()
    """

    card = CARD

    def __init__(
        self,
        lengths: Sequence[int] = (256, 512, 1024),
        depths: int = 5,
        trials: int = 12,
        difficulty: Difficulty = "single",
        procedure: Procedure = "decode",
        gate: float = 0.5,
        threshold: float = 0.1,
        budget: int = 32,
        template: Template = "auto",
        match: Literal["id", "text"] = "id",
        stop_top: int = 0,
        stop_overlap: float = 0.9,
        stop_after: int = 3,
        seed: int = 0,
    ) -> None:
        self.lengths = lengths
        self.depths = depths
        self.trials = trials
        self.difficulty = difficulty
        self.procedure = procedure
        self.gate = gate
        self.threshold = threshold
        self.budget = budget
        self.template = template
        self.match = match
        self.stop_top = stop_top
        self.stop_overlap = stop_overlap
        self.stop_after = stop_after
        self.seed = seed

    def check(self) -> None:
        """Refuses a configuration that cannot run.

        Raises:
            UnbraidError: which argument, and what is accepted.
        """
        for name in ("depths", "trials", "budget"):
            if vars(self)[name] < 1:
                raise UnbraidError(f"{name} must be 1 or more, not {vars(self)[name]}.")
        if not list(self.lengths):
            raise UnbraidError("lengths is empty; give at least one context length, e.g. (512,).")
        if not 0 <= self.gate < 1:
            raise UnbraidError(f"gate must lie in [0, 1), not {self.gate}.")
        if self.procedure not in ("decode", "one_pass"):
            raise UnbraidError(f"procedure={self.procedure!r} is unknown; choose 'decode' or 'one_pass'.")

    def make_trials(
        self, tokenizer: Any, sentences: list[str] | None = None, needles: Sequence[Needle] | None = None
    ) -> list[Trial]:
        """The trials that `fit` runs: every one with its own needle and, unless given, its own haystack."""
        rng = np.random.default_rng(self.seed)
        out = []
        for i, (length, depth) in enumerate(grid(list(self.lengths), self.depths, self.trials, rng)):
            number = self.seed * 100_003 + i
            fact = make_needle(number, self.difficulty) if needles is None else needles[i % len(needles)]
            text = make_haystack(number, max(60, length // 6)) if sentences is None else sentences
            out.append(build_trial(tokenizer, fact, text, length, depth, self.template, number))
        return out

    def fit(
        self,
        model: nn.Module,
        tokenizer: Any,
        haystack: list[str] | None = None,
        needles: Sequence[Needle] | None = None,
        on_trial: Callable[[int, int, Outcome], None] | None = None,
        store: Pieces | None = None,
    ) -> RetrievalHeads:
        """Runs the trials and scores all heads.

        Args:
            model: a decoder language model (any that `attach` accepts).
            tokenizer: its fast tokenizer.
            haystack: sentences of your own text; None makes new prose for every trial.
            needles: facts of your own, used in turn.
            on_trial: called after every trial with (number, all, outcome), for progress.
            store: finished trials are read from it and written to it, so that an interrupted run goes on.

        Returns:
            self; when no trial succeeded, everything but a ranking is there.
        """
        self.check()
        check_model(model, tokenizer)
        trials = self.make_trials(tokenizer, haystack, needles)
        limit = vars(model.config).get("max_position_embeddings")
        longest = max(len(t.ids) for t in trials) + self.budget
        if limit is not None and longest > int(limit):
            raise UnbraidError(
                f"lengths up to {longest} tokens exceed the {limit} positions of {type(model).__name__}."
            )
        self.outcomes_seen: list[Outcome] = []
        sites = names_of(model, trials[0])
        for number, trial in enumerate(trials):
            outcome = load_outcome(store, trial)
            if outcome is None:
                outcome = run_trial(model, tokenizer, trial, self.budget, match=self.match)
                save_outcome(store, outcome)
            self.outcomes_seen.append(outcome)
            if on_trial is not None:
                on_trial(number + 1, len(trials), outcome)
            if self.stop_top and self._stable():
                break
        self.group_count_ = int(vars(model.config).get("num_key_value_heads") or 0)
        self._summarise(sites)
        return self

    def _good(self) -> list[Outcome]:
        return [o for o in self.outcomes_seen if o.recall > self.gate]

    def _trial_scores(self, procedure: Procedure) -> np.ndarray:
        """[trials, sites, heads] of the successful trials."""
        flags = [o.flags if procedure == "decode" else o.one_pass for o in self._good()]
        return np.stack([f.mean(-1) for f in flags])

    def _stable(self) -> bool:
        good = self._good()
        if len(good) <= self.stop_after:
            return False
        x = self._trial_scores(self.procedure)
        tops = []
        for n in range(len(good) - self.stop_after, len(good) + 1):
            order = np.argsort(-x[:n].mean(0).ravel(), kind="stable")[: self.stop_top]
            tops.append(set(order.tolist()))
        return all(len(a & tops[-1]) / len(a | tops[-1]) >= self.stop_overlap for a in tops[:-1])

    def _summarise(self, sites: list[str]) -> None:
        good = self._good()
        self.n_trials_, self.n_success_ = len(self.outcomes_seen), len(good)
        self.sites_ = sites
        if not good:
            return

        def table(values: np.ndarray, name: str) -> HeadScores:
            return HeadScores(dict(zip(sites, values, strict=True)), name=name)

        self.decode_scores_ = interval(self._trial_scores("decode"), sites, "retrieval score", self.seed)
        self.one_pass_scores_ = interval(self._trial_scores("one_pass"), sites, "retrieval score, one pass", self.seed)
        self.scores_ = self.decode_scores_ if self.procedure == "decode" else self.one_pass_scores_
        self.activation_ = table((self._trial_scores(self.procedure) > 0).mean(0), "activation frequency")
        self.needle_mass_ = table(np.mean([o.mass for o in good], 0), "needle mass")
        self.sink_mass_ = table(np.mean([o.sink for o in good], 0), "mass on the first token")
        self.soft_scores_ = table(np.mean([o.soft for o in good], 0), "probability of the copied position")
        blank = np.mean([o.question_mass - o.blank_mass for o in good], 0)
        self.calibrated_mass_ = table(blank, "needle mass from the question, calibrated")

    def ranking(self) -> HeadScores:
        """The scores, or a refusal.

        Raises:
            UnbraidError: not fitted, or no trial succeeded, so that any ranking would be noise.
        """
        if "n_trials_" not in vars(self):
            raise UnbraidError("RetrievalHeads is not fitted yet; call fit(model, tokenizer) first.")
        if not self.n_success_:
            raise UnbraidError(
                f"None of {self.n_trials_} trials succeeded (recall above {self.gate}), so there is nothing to rank; "
                "use shorter lengths, an easier difficulty, or a stronger model."
            )
        return self.scores_

    def retrieval_heads(self, threshold: float | None = None) -> HeadSet:
        """Heads with at least the threshold score, best first."""
        return self.ranking().above(self.threshold if threshold is None else threshold)

    @property
    def groups_(self) -> dict[str, list[float]]:
        """Best score of each key/value group, site -> [groups]; equal to the scores without grouped heads."""
        table = self.ranking().scores
        return {s: v.reshape(self.group_count_ or len(v), -1).max(-1).tolist() for s, v in table.items()}

    def sparsity(self) -> dict[str, float]:
        """Share of heads with score 0, in (0, .1), in [.1, .5) and from .5 up."""
        x = np.concatenate(list(self.ranking().scores.values()))
        return {
            "0": float((x == 0).mean()),
            "(0, 0.1)": float(((x > 0) & (x < 0.1)).mean()),
            "[0.1, 0.5)": float(((x >= 0.1) & (x < 0.5)).mean()),
            ">= 0.5": float((x >= 0.5).mean()),
        }


def names_of(model: nn.Module, trial: Trial) -> list[str]:
    """Sites in the order of execution, from one short forward."""
    with torch.inference_mode(), attach(model, taps.Outputs()) as session:
        feed(model, trial.ids[:4], None)
    return list(session.sites)


def interval(x: np.ndarray, sites: list[str], name: str, seed: int) -> HeadScores:
    """Means over trials [trials, sites, heads] with 95 % bootstrap intervals (percentile, 999 resamples)."""
    mean = x.mean(0)
    low = high = mean
    if len(x) > 1:
        found = stats.bootstrap(
            (x,), np.mean, axis=0, n_resamples=999, method="percentile", rng=np.random.default_rng(seed)
        ).confidence_interval
        low, high = found.low, found.high
    return HeadScores(
        dict(zip(sites, mean, strict=True)), name,
        dict(zip(sites, low, strict=True)), dict(zip(sites, high, strict=True)),
    )  # fmt: skip
