"""Perturbation runs: occlude parts of the input or of the encoder's output, and note what every token says of it.

Reference: SPES, arXiv 2411.01710; encoder-output saliency as in arXiv 2509.18010. One run scores all tokens at once.
Runs are batched. Those on the encoder's output run only the decoder, on one encoder run for all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from unbraid.core.blocks import listening
from unbraid.core.errors import UnbraidError
from unbraid.core.pieces import Pieces
from unbraid.systems.s2t_cross_attention.estimate import relative_error
from unbraid.systems.s2t_cross_attention.listener import Heard, Listener
from unbraid.systems.s2t_cross_attention.segments import Masks

Scorer = Literal["kl", "probability"]
Fill = Literal["auto", "zero", "mean", "min"]
Estimator = Literal["mean", "regression"]
LOGITS_ALIVE = 1 << 26


@dataclass(frozen=True)
class Plan:
    """How to perturb.

    Attributes:
        masks: runs at the most, rounded up to whole batches.
        scorer: "kl" (divergence of the whole distribution) or "probability" (fall of the token's own).
        estimator: what `tolerance` is measured with: "mean" (SPES) or "regression" (KernelSHAP weights).
        fill: value of an occluded bin of the input: "zero", the utterance's "mean" per frequency or its "min", or
            "auto": zero for mean-normalised features, the minimum for log-mel ones.
        decoder_probability: that a previous token's embedding is zeroed; 0 leaves the decoder alone.
        tolerance: stop when the standard error of the map is below this share of its spread; 0 never stops early.
        check_every: runs between two looks at the tolerance.
        seed: of the tokens that are zeroed.
    """

    masks: int = 2000
    scorer: Scorer = "kl"
    estimator: Estimator = "mean"
    fill: Fill = "auto"
    decoder_probability: float = 0.0
    tolerance: float = 0.0
    check_every: int = 240
    seed: int = 0

    def check(self) -> None:
        """Refuses a plan that cannot run.

        Raises:
            UnbraidError: which option, and what is accepted.
        """
        if self.masks < 1:
            raise UnbraidError(f"masks must be 1 or more, not {self.masks}.")
        for name, accepted in (
            ("scorer", ("kl", "probability")), ("fill", ("auto", "zero", "mean", "min")),
            ("estimator", ("mean", "regression")),
        ):  # fmt: skip
            if vars(self)[name] not in accepted:
                raise UnbraidError(f"{name}={vars(self)[name]!r} is unknown; choose {', '.join(map(repr, accepted))}.")
        if not 0 <= self.decoder_probability < 1:
            raise UnbraidError(f"decoder_probability is {self.decoder_probability}; it must lie in [0, 1).")
        if self.tolerance < 0:
            raise UnbraidError(f"tolerance is {self.tolerance}; it must be 0 or more.")


@dataclass(eq=False)
class Runs:
    """Runs of one utterance.

    Attributes:
        masks: which segments each run kept (drawn again when needed, not stored).
        scores: [runs, I] what each token said of each run.
        anchor: [I] the score with everything occluded.
        tokens: [runs, n] True where a decoder input token was kept, or None.
        seconds: spent on runs, also by earlier sessions.
        stopped: whether the tolerance was met before all runs were made.
    """

    masks: Masks
    scores: np.ndarray
    anchor: np.ndarray
    tokens: np.ndarray | None = None
    seconds: float = 0.0
    stopped: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


def reference(listener: Listener, states: Tensor, inputs: Tensor, rows: range) -> Tensor:
    """[I, V] log-probabilities without occlusion, in float32."""
    with torch.no_grad():
        return listener.logits(states, inputs)[0, rows.start : rows.stop].float().log_softmax(-1)


def divergence(before: Tensor, logits: Tensor) -> Tensor:
    """[n, I] KL(P0 || P) of log P0 [I, V] and logits [n, I, V], without a second table of probabilities.

    sum P0 (log P0 - z + logsumexp z): in float32 with log-sum-exp, so that no probability underflows.
    """
    p = before.exp()
    own = (p * before).sum(-1)
    z = logits.float()
    return (own + z.logsumexp(-1) - torch.einsum("niv,iv->ni", z, p)).clamp(min=0)


def fall(before: Tensor, logits: Tensor, tokens: Tensor) -> Tensor:
    """[n, I] p0(y_i) - p(y_i)."""
    at = torch.arange(len(tokens), device=tokens.device)
    z = logits.float()
    now = z[:, at, tokens] - z.logsumexp(-1)
    return before[at, tokens].exp() - now.exp()


def fill_values(grid: np.ndarray, valid: int, how: Fill) -> Tensor:
    """[F] or [1] what occluded bins become.

    Args:
        grid: [T, F] features.
        valid: frames that hold audio.
        how: see `Plan`.
    """
    heard = grid[:valid]
    if how == "auto":
        how = "zero" if abs(float(heard.mean())) < 0.2 * float(heard.std()) else "min"
    if how == "mean":
        return torch.from_numpy(heard.mean(0).astype(np.float32))
    return torch.tensor([0.0 if how == "zero" else float(heard.min())])


class Scoring:
    """Scores of decoder runs against the undisturbed distribution."""

    def __init__(self, listener: Listener, states: Tensor, ids: Sequence[int], plan: Plan) -> None:
        self.listener, self.plan = listener, plan
        self.inputs, self.rows, self.targets = listener.forced(ids)
        self.before = reference(listener, states, self.inputs, self.rows)
        decoder: Any = listener.model.get_decoder()
        self.embedding = decoder.get_input_embeddings()

    @torch.no_grad()
    def __call__(self, states: Tensor, kept: Tensor | None) -> np.ndarray:
        """[n, I] scores of states [n, T', D], with decoder tokens [n, tokens] kept or zeroed."""
        out = []
        step = max(1, LOGITS_ALIVE // (self.before.numel() or 1))
        for start in range(0, states.shape[0], step):
            part = states[start : start + step]
            own = None if kept is None else kept[start : start + step]
            logits = self._logits(part, own)[:, self.rows.start : self.rows.stop]
            if self.plan.scorer == "kl":
                out.append(divergence(self.before, logits))
            else:
                out.append(fall(self.before, logits, self.targets))
        return torch.cat(out).cpu().numpy().astype(np.float32)

    def _logits(self, states: Tensor, kept: Tensor | None) -> Tensor:
        if kept is None:
            return self.listener.logits(states, self.inputs)

        def silence(module: Any, args: Any, kwargs: Any, output: Tensor) -> Tensor:
            return output * kept[..., None].to(output)  # zero stays zero under any scale that follows

        with listening({self.embedding: silence}):
            return self.listener.logits(states, self.inputs)


def kept_tokens(plan: Plan, number: int, count: int, width: int) -> np.ndarray | None:
    """[count, width] which decoder inputs stay in batch `number`; the first one (the start) always does."""
    if not plan.decoder_probability:
        return None
    rng = np.random.default_rng([plan.seed, number, 5])
    kept = rng.random((count, width)) >= plan.decoder_probability
    kept[:, 0] = True
    return kept


def perturb_input(
    listener: Listener,
    heard: Heard,
    ids: Sequence[int],
    masks: Masks,
    plan: Plan,
    store: Pieces | None = None,
    on_runs: Callable[[int], None] | None = None,
) -> Runs:
    """Occludes segments of the input (SPES): one encoder and decoder run each, in batches.

    Args:
        listener: the model.
        heard: the utterance.
        ids: tokens without prefix, fixed for all runs.
        masks: segments [valid, F] per granularity and how they are drawn.
        plan: how many runs, and how they are scored.
        store: keeps finished batches, so that an interrupted call goes on.
        on_runs: called with the number of runs just made.
    """
    states = listener.encode(heard.raw, heard.valid)
    scoring = Scoring(listener, states, ids, plan)
    fill = fill_values(heard.grid, heard.valid, plan.fill)

    def score(keep: np.ndarray, which: int, tokens: Tensor | None) -> np.ndarray:
        x = listener.batch(heard, keep[:, masks.labels[which]], fill)
        return scoring(listener.encode(x, heard.valid), tokens)

    key = {"what": "input", "ids": list(ids), "clip": digest(heard.raw)}
    return _run(score, masks, plan, scoring.inputs.shape[1], store, key, on_runs)


def perturb_encoder(
    listener: Listener,
    states: Tensor,
    valid: int,
    ids: Sequence[int],
    masks: Masks,
    plan: Plan,
    store: Pieces | None = None,
    on_runs: Callable[[int], None] | None = None,
) -> Runs:
    """Occludes windows of encoder states (zero vectors): decoder runs only, on one encoder run.

    Args:
        listener: the model.
        states: [1, T', D] encoder states.
        valid: states that hold audio; the others are never occluded.
        ids: tokens without prefix.
        masks: windows [valid] per width and how they are drawn.
        plan: how many runs, and how they are scored.
        store: keeps finished batches.
        on_runs: called with the number of runs just made.
    """
    scoring = Scoring(listener, states, ids, plan)

    def score(keep: np.ndarray, which: int, tokens: Tensor | None) -> np.ndarray:
        kept = torch.from_numpy(keep[:, masks.labels[which]]).to(states.device)
        many = states.repeat(len(keep), 1, 1)
        many[:, :valid] *= kept[..., None].to(many)
        return scoring(many, tokens)

    key = {"what": "encoder", "ids": list(ids), "clip": digest(states)}
    return _run(score, masks, plan, scoring.inputs.shape[1], store, key, on_runs)


def _run(
    score: Callable[[np.ndarray, int, Tensor | None], np.ndarray],
    masks: Masks,
    plan: Plan,
    width: int,
    store: Pieces | None,
    key: dict[str, Any],
    on_runs: Callable[[int], None] | None,
) -> Runs:
    """Batches until there are enough runs or the error is small enough."""
    plan.check()
    masks.check()
    store = store or Pieces(None)
    key |= {"masks": mask_facts(masks), "scorer": plan.scorer, "fill": plan.fill,
            "tokens": [plan.decoder_probability, plan.seed]}  # fmt: skip
    done = store.load_arrays("runs", key)
    batches = -(-plan.masks // masks.batch)
    anchor = done["anchor"] if done else score(np.zeros((1, masks.segments(0)), bool), 0, None)[0]
    finished = done["scores"] if done else ()
    parts = [finished[i : i + masks.batch] for i in range(0, len(finished), masks.batch)]
    seconds, saved = (float(done["seconds"][0]) if done else 0.0), len(parts)
    runs = Runs(masks, np.concatenate(parts[:batches]) if parts else np.zeros((0, len(anchor)), np.float32), anchor)
    if parts and plan.tolerance and relative_error(runs, plan.estimator) < plan.tolerance:
        runs.stopped, batches = True, 0  # an earlier session stopped here for the same reason
    if on_runs is not None and parts:
        on_runs(len(runs.scores))
    for number in range(len(parts), batches):
        began = time.perf_counter()
        keep = masks.draw(number)
        tokens = kept_tokens(plan, number, len(keep), width)
        parts.append(score(keep, masks.granularity(number), None if tokens is None else torch.from_numpy(tokens)))
        seconds += time.perf_counter() - began
        if on_runs is not None:
            on_runs(len(keep))
        last = number == batches - 1
        look = (number + 1) % max(len(masks.labels), plan.check_every // masks.batch) == 0
        if look or last:
            runs.scores, runs.seconds = np.concatenate(parts), seconds
            if len(parts) > saved:
                kept = {"scores": runs.scores, "anchor": anchor, "seconds": np.array([seconds])}
                store.save_arrays("runs", key, kept)
                saved = len(parts)
            if plan.tolerance and relative_error(runs, plan.estimator) < plan.tolerance:
                runs.stopped = not last
                break
    runs.seconds = seconds
    runs.tokens = _all_tokens(plan, masks, len(runs.scores), width)
    return runs


def _all_tokens(plan: Plan, masks: Masks, count: int, width: int) -> np.ndarray | None:
    if not plan.decoder_probability:
        return None
    numbers = range(-(-count // masks.batch))
    drawn = [kept_tokens(plan, n, masks.batch, width) for n in numbers]
    return np.concatenate([d for d in drawn if d is not None])[:count]


def mask_facts(masks: Masks) -> dict[str, Any]:
    """What masks depend on, as plain data."""
    return {
        "labels": [digest(torch.from_numpy(np.ascontiguousarray(x))) for x in masks.labels],
        "options": [masks.probability, masks.antithetic, masks.sizes, masks.batch, masks.seed],
    }


def digest(x: Tensor) -> str:
    """A short name of a tensor's content."""
    import hashlib

    return hashlib.sha256(x.detach().cpu().float().contiguous().numpy().tobytes()).hexdigest()[:16]
