"""`SpeechCrossAttention`: explains utterances by saliency and by cross-attention, and measures how far they agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores
from unbraid.core.pieces import Pieces
from unbraid.core.system import System
from unbraid.data.speech.clips import Clip, load_clip
from unbraid.systems.s2t_cross_attention import CARD
from unbraid.systems.s2t_cross_attention import estimate as estimates
from unbraid.systems.s2t_cross_attention.align import group_words
from unbraid.systems.s2t_cross_attention.explanation import Explanation
from unbraid.systems.s2t_cross_attention.listener import Heard, Listener, positions
from unbraid.systems.s2t_cross_attention.maps import Pool, bootstrap, fisher_mean, levels
from unbraid.systems.s2t_cross_attention.perturb import (
    Estimator,
    Fill,
    Plan,
    Runs,
    Scorer,
    perturb_encoder,
    perturb_input,
)
from unbraid.systems.s2t_cross_attention.segments import Masks, Segments, segment, segment_count, windows
from unbraid.systems.s2t_cross_attention.tap import Captured, capture
from unbraid.systems.s2t_cross_attention.weights import fit_head_weights

OnRuns = Callable[[int], None]


class SpeechCrossAttention(System):
    """Explains what a speech-to-text model says by perturbation saliency and by its cross-attention.

    Reference: arXiv 2509.18010 (comparison), arXiv 2411.01710 (SPES saliency). Hypotheses come from beam search and are
    then fixed; all maps are teacher-forced on them. The model keeps its fused kernels throughout.

    Args:
        masks: perturbation runs of the input, at the most; 0 leaves input saliency out.
        encoder_masks: runs of the encoder's output, at the most; 0 leaves it out. They run only the decoder.
        granularities: segments per 500 frames of input, one number per segmentation (the paper: 2000, 2500, 3000).
        widths: encoder states occluded together, one number per granularity.
        probability: share that is occluded.
        segments: "slic" superpixels (scikit-image), "grid" rectangles, or "auto".
        scorer: "kl" divergence of the whole distribution, or fall of the token's "probability".
        estimator: "mean" (SPES) or "regression" with KernelSHAP's weights.
        antithetic: runs in complementary pairs.
        tolerance: stop when the maps' standard error is below this share of their spread; 0 never does.
        fill: of occluded input bins: "zero", "mean" per frequency, "min" of the utterance, or "auto".
        decoder_probability: share of previous tokens that are zeroed too; 0 leaves them alone.
        batch_size: runs at once.
        pool: "max" or "mean" of input saliency over frequency and time.
        beams: of the search for the hypothesis.
        context: "full", or "fit": a fixed-length encoder (Whisper's 30 s) sees only the audio and half a second more.
        norms: keep norm-weighted attention too.
        gradient: keep attention x gradient too.
        seed: of masks.

    Attributes:
        scores_: `HeadScores`, correlation of each head with encoder-output saliency, 95 % intervals over utterances.
        input_scores_: the same with input saliency.
        levels_: "x" and "h" -> head (mean over heads), layer (mean over layers), best_head, best_layer, all.
        head_weights_: [layers, heads] weights whose mean follows the saliency best.
        n_utterances_: utterances behind them.

    Example:
        >>> explainer = SpeechCrossAttention(masks=200, encoder_masks=400, granularities=(40, 80), context="fit")
        >>> found = explainer.explain(model, processor, "speech.wav")
        >>> found.text, found.word_times("alignment_heads")
    """

    card = CARD

    def __init__(
        self,
        masks: int = 2000,
        encoder_masks: int = 600,
        granularities: Sequence[int] = (2000, 2500, 3000),
        widths: Sequence[int] = (1, 2, 4),
        probability: float = 0.5,
        segments: Segments = "auto",
        scorer: Scorer = "kl",
        estimator: Estimator = "mean",
        antithetic: bool = False,
        tolerance: float = 0.0,
        fill: Fill = "auto",
        decoder_probability: float = 0.0,
        batch_size: int = 16,
        pool: Pool = "max",
        beams: int = 5,
        context: Literal["full", "fit"] = "full",
        norms: bool = False,
        gradient: bool = False,
        seed: int = 0,
    ) -> None:
        self.masks = masks
        self.encoder_masks = encoder_masks
        self.granularities = granularities
        self.widths = widths
        self.probability = probability
        self.segments = segments
        self.scorer = scorer
        self.estimator = estimator
        self.antithetic = antithetic
        self.tolerance = tolerance
        self.fill = fill
        self.decoder_probability = decoder_probability
        self.batch_size = batch_size
        self.pool = pool
        self.beams = beams
        self.context = context
        self.norms = norms
        self.gradient = gradient
        self.seed = seed

    def check(self) -> None:
        """Refuses a configuration that cannot run.

        Raises:
            UnbraidError: which argument, and what is accepted.
        """
        for name in ("masks", "encoder_masks"):
            if vars(self)[name] < 0:
                raise UnbraidError(f"{name} must be 0 or more, not {vars(self)[name]}.")
        for name in ("granularities", "widths"):
            values = list(vars(self)[name])
            if not values or min(values) < 1:
                raise UnbraidError(f"{name} needs numbers of 1 or more, not {values}.")
        if self.beams < 1:
            raise UnbraidError(f"beams must be 1 or more, not {self.beams}.")
        if self.pool not in ("max", "mean"):
            raise UnbraidError(f"pool={self.pool!r} is unknown; choose 'max' or 'mean'.")
        if self.segments not in ("auto", "slic", "grid"):
            raise UnbraidError(f"segments={self.segments!r} is unknown; choose 'slic', 'grid' or 'auto'.")
        self._plan(1).check()
        self._masks([np.zeros(1, int)]).check()

    def _plan(self, masks: int) -> Plan:
        return Plan(
            masks, self.scorer, self.estimator, self.fill, self.decoder_probability, self.tolerance, seed=self.seed
        )

    def _masks(self, labels: Sequence[np.ndarray]) -> Masks:
        sizes: Literal["bernoulli", "shapley"] = "shapley" if self.estimator == "regression" else "bernoulli"
        return Masks(labels, self.probability, self.antithetic, sizes, self.batch_size, self.seed)

    def explain(
        self,
        model: nn.Module,
        processor: Any,
        audio: Any,
        rate: int | None = None,
        text: str | None = None,
        ids: Sequence[int] | None = None,
        name: str = "",
        store: Pieces | None = None,
        on_runs: OnRuns | None = None,
    ) -> Explanation:
        """All maps of one utterance.

        Args:
            model: an encoder-decoder speech model of transformers, on any attention backend that `attach` accepts.
            processor: its processor, or None if `audio` holds features (a tensor of 2 or 3 dimensions).
            audio: a `Clip`, a path, [samples] at the model's rate, or features.
            rate: samples per second of given samples; another rate than the model's is refused.
            text: explain the model's belief in this text; None lets the model transcribe.
            ids: the same as token ids, for models without a tokenizer.
            name: of the utterance; None takes the clip's.
            store: keeps finished runs.
            on_runs: called with the number of runs just made.

        Returns:
            An `Explanation`.

        Raises:
            UnbraidError: audio, model or options that cannot be used; see `Listener`.
        """
        self.check()
        listener = Listener(model, processor, self.context)
        heard, label = hear(listener, audio, rate)
        states = listener.encode(heard.raw, heard.valid)
        if ids is None:
            if text is not None:
                ids = listener.encode_text(text)
            else:  # the hypothesis is the model's own, also where its maps are made with a fitted context
                ids = listener.transcribe(listener.encode(heard.raw, full=True), self.beams)[0]
        found = capture(listener, states, ids, self.norms, self.gradient)
        made = describe(listener, heard, states, list(ids), found, name or label)
        self._salience(listener, heard, states, made, store, on_runs)
        return made

    def _salience(
        self,
        listener: Listener,
        heard: Heard,
        states: Tensor,
        made: Explanation,
        store: Pieces | None,
        on_runs: OnRuns | None,
    ) -> None:
        if self.masks:
            counts = [segment_count(n, heard.valid) for n in self.granularities]
            grid = heard.grid[: heard.valid]
            masks = self._masks([segment(grid, n, self.segments) for n in counts])
            runs = perturb_input(listener, heard, made.ids, masks, self._plan(self.masks), store, on_runs)
            made.saliency_x = estimates.estimate(runs, self.estimator)
            made.error_x = estimates.mean_map(runs)[1] if self.estimator == "mean" else None
            made.effects_x = made.saliency_x if self.estimator == "regression" else estimates.regression_map(runs)
            made.saliency_y = estimates.token_map(runs, len(listener.prefix))
            made.cost["input"] = self._facts(runs)
        if self.encoder_masks:
            masks = self._masks([windows(made.valid, w) for w in self.widths])
            runs = perturb_encoder(
                listener, states, made.valid, made.ids, masks, self._plan(self.encoder_masks), store, on_runs
            )
            made.saliency_h = estimates.estimate(runs, self.estimator)
            made.effects_h = made.saliency_h if self.estimator == "regression" else estimates.regression_map(runs)
            made.cost["encoder"] = self._facts(runs)

    def _facts(self, runs: Runs) -> dict[str, Any]:
        return {
            "runs": len(runs.scores),
            "seconds": round(runs.seconds, 2),
            "runs per second": round(len(runs.scores) / max(runs.seconds, 1e-9), 2),
            "stopped early": runs.stopped,
            "relative error": estimates.relative_error(runs, self.estimator),
            "reliability": estimates.reliability(runs, self.estimator),
            "segments": [runs.masks.segments(g) for g in range(len(runs.masks.labels))],
        }

    def fit(
        self,
        model: nn.Module,
        processor: Any,
        clips: Iterable[Any],
        store: Pieces | None = None,
        on_runs: OnRuns | None = None,
        on_clip: Callable[[Explanation], None] | None = None,
    ) -> SpeechCrossAttention:
        """Explains utterances and correlates every head, layer and aggregate with saliency.

        Args:
            model: see `explain`.
            processor: see `explain`.
            clips: clips, paths or arrays of samples at the model's rate.
            store: keeps finished runs, so that an interrupted fit goes on.
            on_runs: called with the number of runs just made.
            on_clip: called with each explanation.

        Returns:
            Itself, with the attributes that end in ``_`` and `explanations`.

        Raises:
            UnbraidError: no clip, or no saliency to compare with (masks and encoder_masks are both 0).
        """
        listed = list(clips)
        if not listed:
            raise UnbraidError("fit needs at least one clip of speech.")
        if not self.masks and not self.encoder_masks:
            raise UnbraidError("fit needs saliency to compare with; give masks or encoder_masks above 0.")
        self.explanations: list[Explanation] = []
        for clip in listed:
            made = self.explain(model, processor, clip, store=store, on_runs=on_runs)
            self.explanations.append(made)
            if on_clip is not None:
                on_clip(made)
        return self.summarise(self.explanations)

    def summarise(self, explanations: Sequence[Explanation]) -> SpeechCrossAttention:
        """The summary over utterances that were explained already; what `fit` ends with."""
        self.n_utterances_ = len(explanations)
        self.levels_: dict[str, dict[str, float]] = {}
        for which, made in (("x", self.masks), ("h", self.encoder_masks)):
            if not made:
                continue
            found = [levels(e.heads(), e.saliency(which, self.pool)) for e in explanations]
            table = head_scores(explanations[0].sites, [f["head"] for f in found], which, self.seed)
            if which == "x":
                self.input_scores_ = table
            else:
                self.scores_ = table
            self.levels_[which] = level_means(found)
        if self.encoder_masks or self.masks:
            which = "h" if self.encoder_masks else "x"
            self.head_weights_ = fit_head_weights(
                [e.heads() for e in explanations], [e.saliency(which, self.pool) for e in explanations]
            )
        return self


def hear(listener: Listener, audio: Any, rate: int | None) -> tuple[Heard, str]:
    """An utterance in any of the accepted forms, and its name."""
    if isinstance(audio, Clip):
        clip = audio.at(listener.rate)
        return listener.hear(clip.audio, clip.rate), clip.name
    if isinstance(audio, str | Path):
        clip = load_clip(audio, listener.rate)
        return listener.hear(clip.audio, clip.rate), clip.name
    shape = tuple(getattr(audio, "shape", np.shape(audio)))
    if len(shape) == 3 or listener.extractor is None:
        return listener.take(audio), "features"
    return listener.hear(audio, rate), "audio"


def describe(
    listener: Listener, heard: Heard, states: Tensor, ids: list[int], found: Captured, name: str
) -> Explanation:
    """An `Explanation` without saliency yet."""
    total = states.shape[1]
    if listener.fixed is None:
        valid = total if heard.valid >= len(heard.grid) else -(-heard.valid * total // len(heard.grid))
        seconds = heard.seconds / max(valid, 1)
    else:
        stride = listener.fixed // positions(listener.encoder)
        valid, seconds = min(total, -(-heard.valid // stride)), heard.frame * stride
    special = np.array([i in listener.ends for i in ids])
    pieces = piece_names(listener.tokenizer, ids)
    words = group_words(pieces, special.tolist())
    text = "".join(p for p, s in zip(pieces, special, strict=True) if not s).strip()
    arrays: dict[str, Any] = {
        name: None if value is None else value.numpy()
        for name, value in (
            ("head_norms", found.head_norms), ("layer_norms", found.layer_norms), ("gradients", found.gradients)
        )
    }  # fmt: skip
    return Explanation(
        name, text, ids, pieces, special, words, valid, seconds, heard.seconds, heard.grid[: heard.valid], found.sites,
        found.maps.numpy(), found.log_probs.numpy(), alignment_heads(listener, found), silent=heard.silent, **arrays,
    )  # fmt: skip


def alignment_heads(listener: Listener, found: Captured) -> np.ndarray | None:
    """[L, H] the heads that Whisper's generation configuration names for alignment, or None."""
    named = vars(listener.model.generation_config).get("alignment_heads")
    if not named:
        return None
    chosen = np.zeros(found.maps.shape[:2])
    for layer, head in named:
        if layer < chosen.shape[0] and head < chosen.shape[1]:
            chosen[layer, head] = 1
    return chosen if chosen.any() else None


def piece_names(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Tokens as text, with the blank before a word kept; numbers where there is no tokenizer."""
    if tokenizer is None:
        return [f" {i}" for i in ids]
    pieces = []
    for i, raw in zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
        said = tokenizer.decode([i], skip_special_tokens=False)
        pieces.append(" " + said.lstrip() if str(raw)[:1] in ("▁", "Ġ") else said)
    return pieces


def head_scores(sites: Sequence[str], found: Sequence[np.ndarray], which: str, seed: int) -> HeadScores:
    """Fisher means over utterances of [L, H] correlations, with bootstrap intervals where there are several."""
    stack = np.stack(found)
    mean, low, high = (np.full(stack.shape[1:], np.nan) for _ in range(3))
    for place in np.ndindex(*stack.shape[1:]):
        mean[place], low[place], high[place] = bootstrap(stack[(slice(None), *place)], seed)
    name = {"x": "correlation with input saliency", "h": "correlation with encoder-output saliency"}[which]
    tables = [dict(zip(sites, t, strict=True)) for t in (mean, low, high)]
    return HeadScores(tables[0], name, tables[1], tables[2]) if len(found) > 1 else HeadScores(tables[0], name)


def level_means(found: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Fisher means over utterances at each level; best head and layer are chosen by their mean over utterances."""
    head = fisher_mean(np.stack([f["head"] for f in found]), axis=0)
    layer = fisher_mean(np.stack([f["layer"] for f in found]), axis=0)
    return {
        "head": float(fisher_mean(head)),
        "layer": float(fisher_mean(layer)),
        "best_head": float(np.nanmax(head)),
        "best_layer": float(np.nanmax(layer)),
        "all": float(fisher_mean([f["all"] for f in found])),
    }
