"""`CircuitReuse`: two tasks, two circuits, what they share."""

from __future__ import annotations

from typing import Any

from torch import nn

from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores, HeadSet
from unbraid.core.patching.patcher import FreezeNorm
from unbraid.core.pieces import Pieces
from unbraid.core.system import System
from unbraid.data.prompts import TASKS, PromptSet
from unbraid.systems.circuit_reuse import CARD
from unbraid.systems.circuit_reuse.circuit import Circuit, OnStep, Search, find_circuit
from unbraid.systems.circuit_reuse.sharing import bootstrap_overlap, overlap, rank_correlation, shape_of


class CircuitReuse(System):
    """Finds the circuits of two tasks by path patching and says what they share (arXiv 2310.08744).

    Args:
        fraction: share of all heads that each stage of the search keeps; the paper's is 0.02.
        prompts: prompts per task, where tasks are given by name.
        shots: solved examples before each prompt, where tasks are given by name; None: each task's own default.
        freeze_norm: norms keep the scale of the "clean" run, the "corrupt" run or of "none" (the paper's code).
        freeze_mlps: MLPs pass on nothing of a sender; the paper's default is False.
        search: senders lie "below_all" receivers (the paper) or "below_any".
        batch: prompts per batch.
        rows: tokens per forward.
        seed: of prompts and resamples.
    """

    card = CARD
    circuits_: dict[str, HeadSet]
    importance_: dict[str, dict[str, HeadScores]]
    overlap_: dict[str, Any]

    def __init__(
        self,
        fraction: float = 0.02,
        prompts: int = 50,
        shots: int | None = None,
        freeze_norm: FreezeNorm = "clean",
        freeze_mlps: bool = False,
        search: Search = "below_all",
        batch: int = 25,
        rows: int = 2048,
        seed: int = 0,
    ) -> None:
        self.fraction = fraction
        self.prompts = prompts
        self.shots = shots
        self.freeze_norm = freeze_norm
        self.freeze_mlps = freeze_mlps
        self.search = search
        self.batch = batch
        self.rows = rows
        self.seed = seed

    def fit(
        self,
        model: nn.Module,
        tokenizer: Any = None,
        first: str | PromptSet = "ioi",
        second: str | PromptSet = "coloured_objects",
        on_step: OnStep | None = None,
        store: Pieces | None = None,
    ) -> CircuitReuse:
        """Find both circuits and compare them.

        Args:
            model: a decoder language model in evaluation mode.
            tokenizer: its fast tokenizer; not needed where both tasks are prompt sets.
            first: "ioi", "coloured_objects", "greater_than", "capitals", or prompts of your own.
            second: likewise.
            on_step: called with (stage, done, all).
            store: finished batches are read from it and written to it.

        Returns:
            Itself, with `circuits_` (task -> HeadSet), `importance_` (task -> stage -> HeadScores) and `overlap_`
            (shared heads, Jaccard index with interval, both nulls, rank correlations).

        Raises:
            UnbraidError: an unknown task, a missing tokenizer, or whatever path patching refuses.
        """
        sets = [self.make(tokenizer, task) for task in (first, second)]
        if sets[0].task == sets[1].task:
            raise UnbraidError(f"Both tasks are {sets[0].task!r}; reuse is between two different ones.")
        found = [
            find_circuit(
                model, prompts, fraction=self.fraction, search=self.search, freeze_norm=self.freeze_norm,
                freeze_mlps=self.freeze_mlps, batch=self.batch, rows=self.rows, on_step=on_step, store=store,
            )
            for prompts in sets
        ]  # fmt: skip
        self.found: tuple[Circuit, Circuit] = (found[0], found[1])
        self.circuits_ = {c.task: c.heads for c in found}
        self.importance_ = {c.task: {f.stage.name: f.scores for f in c.found} for c in found}
        low, high = bootstrap_overlap(*self.found, seed=self.seed)
        row = overlap(found[0].heads, found[1].heads, shape_of(found[0])).row()
        self.overlap_ = {**row, "low": low, "high": high, "ranks": rank_correlation(*self.found)}
        return self

    def make(self, tokenizer: Any, task: str | PromptSet) -> PromptSet:
        """The prompts of a task by name, or those given.

        Raises:
            UnbraidError: no such task.
        """
        if isinstance(task, PromptSet):
            return task
        if task not in TASKS:
            raise UnbraidError(f"There is no task {task!r}; choose from {', '.join(TASKS)}, or give a PromptSet.")
        more = {} if self.shots is None else {"shots": self.shots}
        return TASKS[task](tokenizer, self.prompts, self.seed, **more)
