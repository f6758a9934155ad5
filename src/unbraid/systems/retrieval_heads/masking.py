"""The causal test: answers with the top heads masked, against as many random heads of the same layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from unbraid import taps
from unbraid.core.attach import attach
from unbraid.core.calls import Tap
from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores, HeadSet
from unbraid.core.pieces import Pieces
from unbraid.systems.retrieval_heads.detect import answer_from, feed, prefill
from unbraid.systems.retrieval_heads.trial import Trial, recall

Mode = Literal["zero", "mean", "uniform", "sink"]
Phase = Literal["decode", "all"]


@dataclass
class MaskPoint:
    """One point of a masking curve.

    kind: "none", "retrieval" or "random"; draw: number of the random draw; success, recall: one per trial.
    """

    kind: str
    masked: int
    draw: int
    success: list[bool]
    recall: list[float]
    answers: list[str]


def mask(
    heads: HeadSet, mode: Mode = "uniform", phase: Phase = "decode", mean: Mapping[str, Tensor] | None = None
) -> Tap:
    """The tap that masks heads. The paper's own is ("uniform", "decode").

    Args:
        heads: which heads.
        mode: "zero", "mean" (needs mean=), "uniform" (inside the causal mask; the official code leaks future positions
            when several queries are run at once) or "sink" (only the first token).
        phase: "decode" leaves the prefill alone; "all" masks it too.
        mean: site -> [H, V], from `mean_outputs`.

    Raises:
        UnbraidError: an unknown mode or phase.
    """
    if mode not in ("zero", "mean", "uniform", "sink"):
        raise UnbraidError(f"mode={mode!r} is unknown; choose 'zero', 'mean', 'uniform' or 'sink'.")
    if phase not in ("decode", "all"):
        raise UnbraidError(f"phase={phase!r} is unknown; choose 'decode' or 'all'.")
    to: Any = "first" if mode == "sink" else mode
    return taps.ablate(heads, to=to, mean=mean, phase=phase)


@torch.inference_mode()
def mean_outputs(model: nn.Module, trials: Sequence[Trial]) -> dict[str, Tensor]:
    """Mean head outputs over the contexts of some trials, for mode="mean"."""
    outputs = taps.Outputs()
    with attach(model, outputs):
        for trial in trials:
            feed(model, trial.ids, None)
    return outputs.mean


def control(scores: HeadScores, masked: HeadSet, threshold: float, rng: np.random.Generator) -> HeadSet:
    """As many random heads below the threshold, from the same layers; from the nearest ones where a layer runs out."""
    sites = scores.sites
    free = {s: [h for h, x in enumerate(v) if x < threshold and (s, h) not in masked] for s, v in scores.scores.items()}
    out: list[tuple[str, int]] = []
    for site, heads in masked.by_site().items():
        at = sites.index(site)
        near = sorted(range(len(sites)), key=lambda i: (abs(i - at), i))
        for _ in heads:
            source = next((sites[i] for i in near if free[sites[i]]), None)
            if source is None:
                raise UnbraidError(f"There are not {len(masked)} heads below {threshold} to draw a control from.")
            out.append((source, free[source].pop(int(rng.integers(len(free[source]))))))
    return HeadSet(out)


def mask_curve(
    model: nn.Module,
    tokenizer: Any,
    scores: HeadScores,
    trials: Sequence[Trial],
    counts: Sequence[int] = (2, 5, 10, 15, 20, 30, 50, 100),
    *,
    controls: int = 5,
    mode: Mode = "uniform",
    phase: Phase = "decode",
    threshold: float = 0.1,
    gate: float = 0.5,
    budget: int = 32,
    seed: int = 0,
    mean: Mapping[str, Tensor] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    store: Pieces | None = None,
) -> list[MaskPoint]:
    """Accuracy against the number of masked heads, with layer-matched random controls.

    One prefill per trial serves all masks when only decoding steps are masked.

    Args:
        model: a decoder language model.
        tokenizer: its tokenizer.
        scores: what ranks the heads.
        trials: prompts with other needles than those that ranked the heads.
        counts: how many top heads to mask.
        controls: random draws per count (five or more for an interval).
        mode: see `mask`.
        phase: see `mask`.
        threshold: controls are drawn from heads with a lower score.
        gate: recall above which an answer is a success.
        budget: tokens to decode at the most.
        seed: of the draws.
        mean: for mode="mean".
        on_step: called with (done, all) after every trial.
        store: finished trials are read from it and written to it.

    Returns:
        One point without masks, then for every count one for the top heads and one per draw.
    """
    rng = np.random.default_rng(seed)
    points = [MaskPoint("none", 0, 0, [], [], [])]
    sets = [HeadSet()]
    for k in counts:
        top = scores.top(k)
        points.append(MaskPoint("retrieval", k, 0, [], [], []))
        sets.append(top)
        for draw in range(controls):
            points.append(MaskPoint("random", k, draw, [], [], []))
            sets.append(control(scores, top, threshold, rng))
    for number, trial in enumerate(trials):
        key = [trial.ids, [sorted(h) for h in sets], mode, phase, budget]
        answers = None if store is None else store.load("mask", key)
        if answers is None:
            answers = masked_answers(model, tokenizer, trial, sets, mode, phase, budget, mean)
            if store is not None:
                store.save("mask", key, answers)
        for point, answer in zip(points, answers, strict=True):
            found = recall(answer, trial.answer, trial.question)
            point.recall.append(found)
            point.success.append(found > gate)
            point.answers.append(answer)
        if on_step is not None:
            on_step(number + 1, len(trials))
    return points


@torch.inference_mode()
def masked_answers(
    model: nn.Module,
    tokenizer: Any,
    trial: Trial,
    sets: Sequence[HeadSet],
    mode: Mode,
    phase: Phase,
    budget: int,
    mean: Mapping[str, Tensor] | None = None,
) -> list[str]:
    """One greedy answer per set of masked heads; they share a prefill unless the prefill is masked too."""
    cache, out = prefill(model, trial), []
    for heads in sets:
        edits = [mask(heads, mode, phase, mean)] if len(heads) else []
        own = cache
        if phase == "all" and edits:
            with attach(model, *edits):
                own = prefill(model, trial)
        out.append(answer_from(model, tokenizer, trial, own, budget, edits))
    return out
