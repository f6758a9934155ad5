"""The study behind `unbraid run retrieval_heads`: find the copying heads, prove it by masking, say what holds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores
from unbraid.core.pieces import Pieces
from unbraid.core.progress import bar
from unbraid.core.result import Result
from unbraid.systems.retrieval_heads.masking import MaskPoint, Mode, Phase, mask_curve, mean_outputs
from unbraid.systems.retrieval_heads.prose import Difficulty, Needle, read_haystack, read_needles
from unbraid.systems.retrieval_heads.report import Findings, make_result
from unbraid.systems.retrieval_heads.system import RetrievalHeads
from unbraid.systems.retrieval_heads.trial import Template

SEED_STEP = 1_000  # distance between the seeds of detection runs and of masking trials, so that no needle is used twice


def run(
    model: str = "smollm2",
    lengths: Sequence[int] = (256, 512, 1024),
    depths: int = 5,
    trials: int = 6,
    seeds: int = 2,
    difficulty: Difficulty = "single",
    haystack: Path | None = None,
    needles: Path | None = None,
    mask_heads: Sequence[int] = (5, 10, 20),
    mask_trials: int = 6,
    mask_lengths: Sequence[int] = (),
    controls: int = 5,
    mode: Mode = "uniform",
    phase: Phase = "decode",
    gate: float = 0.5,
    threshold: float = 0.1,
    budget: int = 24,
    stop_top: int = 0,
    template: Template = "auto",
    procedure: Literal["decode", "one_pass"] = "decode",
    compare: str | None = None,
    keep: Path | None = None,
    seed: int = 0,
    device: str | None = None,
    dtype: str | None = None,
    progress: bool | None = None,
) -> Result:
    """Find the attention heads that copy facts out of a long context, and prove it by masking them.

    Args:
        model: A name of the zoo (`unbraid models`), a hub id or a local folder of a decoder language model.
        lengths: Context lengths in tokens, question included.
        depths: Depths of the needle from start to end.
        trials: Detection trials per seed.
        seeds: Independent detection runs, whose top heads are compared.
        difficulty: A single fact, two facts at once, or a six-digit pass key.
        haystack: A UTF-8 text of your own instead of generated prose.
        needles: A JSON list of your own needles, with "needle", "question" and optionally "answer".
        mask_heads: How many top heads to mask; none to leave the causal test out.
        mask_trials: Trials of the causal test per length, with needles that detection never saw.
        mask_lengths: Context lengths of the causal test; by default the middle one of --lengths.
        controls: Random draws of as many other heads of the same layers.
        mode: What a masked head does: attend uniformly (the paper), to the first token, or write zero or its mean.
        phase: Mask while decoding only (the paper), or also while reading the prompt.
        gate: A trial counts when the recall of the needle's own words exceeds this.
        threshold: A head with at least this score is a retrieval head.
        budget: Tokens to decode at the most.
        stop_top: Stop a seed early when its set of this many top heads is stable; 0 never does.
        template: Prompt with the tokenizer's chat template, as in the paper, or decide by the tokenizer.
        procedure: What ranks the heads: decoding (the paper) or one pass with the gold answer; both are measured.
        compare: A second model of the same shape, to correlate its scores with.
        keep: Folder for finished trials; a run that is started again with the same folder goes on where it stopped.
        seed: Seed of haystacks, needles, draws and intervals.
        device: Where to run; by default where the model is loaded (CPU, or a GPU when there is one).
        dtype: float32, bfloat16 or float16; by default the model's own.
        progress: Show progress on stderr; by default when that is a terminal.

    Returns:
        Head scores with intervals, the masking curve against controls, and the paper's claims.
    """
    given, start = dict(locals()), time.perf_counter()
    check(lengths, trials, seeds, mask_heads, mask_trials, controls)
    sentences = None if haystack is None else read_haystack(haystack)
    facts = None if needles is None else read_needles(needles)
    loaded_model, tokenizer = load(model, device, dtype, progress)
    store = Pieces(keep, {"model": model, "dtype": dtype, "budget": budget, "match": "id"})
    options: dict[str, Any] = {
        "lengths": tuple(lengths), "depths": depths, "trials": trials, "difficulty": difficulty, "gate": gate,
        "threshold": threshold, "budget": budget, "stop_top": stop_top, "template": template, "procedure": procedure,
    }  # fmt: skip
    runs = []
    with bar(progress, "Detecting", seeds * trials) as tick:
        for i in range(seeds):
            system = RetrievalHeads(**options, seed=seed + i)
            runs.append(system.fit(loaded_model, tokenizer, sentences, facts, lambda *_: tick(), store))
    pooled = pool(runs, options, seed)
    curves: dict[int, list[MaskPoint]] = {}
    if mask_heads and pooled.n_success_:
        where = list(mask_lengths) or [sorted(lengths)[len(lengths) // 2]]
        unseen = RetrievalHeads(**{**options, "trials": mask_trials, "stop_top": 0}, seed=seed + SEED_STEP)
        curves = causal_test(
            loaded_model, tokenizer, pooled.scores_, unseen, where, sentences, facts, mask_heads, progress,
            controls=controls, mode=mode, phase=phase, threshold=threshold, gate=gate, budget=budget, seed=seed,
            store=store,
        )  # fmt: skip
    other = None if compare is None else another(compare, options, seed, sentences, facts, device, dtype, progress)
    findings = Findings(
        model, loaded_model, tokenizer, pooled, runs, curves, threshold, compare, other, store.read_back
    )
    return make_result(findings, given, time.perf_counter() - start)


def causal_test(
    model: Any,
    tokenizer: Any,
    scores: HeadScores,
    unseen: RetrievalHeads,
    lengths: Sequence[int],
    sentences: list[str] | None,
    facts: list[Needle] | None,
    counts: Sequence[int],
    progress: bool | None,
    **settings: Any,
) -> dict[int, list[MaskPoint]]:
    """Masking curves per length, on needles that detection never saw."""
    curves = {}
    with bar(progress, "Masking", len(lengths) * unseen.trials) as tick:
        for length in lengths:
            prompts = unseen.set_params(lengths=(length,)).make_trials(tokenizer, sentences, facts)
            mean = mean_outputs(model, prompts) if settings["mode"] == "mean" else None
            curves[length] = mask_curve(
                model, tokenizer, scores, prompts, counts, mean=mean, on_step=lambda *_: tick(), **settings
            )
    return curves


def another(
    name: str,
    options: dict[str, Any],
    seed: int,
    sentences: list[str] | None,
    facts: list[Needle] | None,
    device: str | None,
    dtype: str | None,
    progress: bool | None,
) -> RetrievalHeads:
    """The first seed's detection on a second model."""
    model, tokenizer = load(name, device, dtype, progress)
    with bar(progress, f"Detecting in {name}", options["trials"]) as tick:
        return RetrievalHeads(**options, seed=seed).fit(model, tokenizer, sentences, facts, lambda *_: tick())


def check(
    lengths: Sequence[int], trials: int, seeds: int, mask_heads: Sequence[int], mask_trials: int, controls: int
) -> None:
    """Refuses options before any model is loaded.

    Raises:
        UnbraidError: which option, and what is accepted.
    """
    for name, value in (
        ("--trials", trials),
        ("--seeds", seeds),
        ("--mask-trials", mask_trials),
        ("--controls", controls),
    ):
        if value < 1:
            raise UnbraidError(f"{name} must be 1 or more, not {value}.")
    if not list(lengths) or min(lengths) < 48:
        raise UnbraidError(f"--lengths needs context lengths of 48 tokens or more, not {list(lengths)}.")
    if any(k < 1 for k in mask_heads):
        raise UnbraidError(f"--mask-heads needs counts of 1 or more, not {list(mask_heads)}.")


def load(name: str, device: str | None, dtype: str | None, progress: bool | None) -> tuple[Any, Any]:
    """Model (evaluating, on its device) and tokenizer."""
    import torch

    from unbraid import zoo

    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, None: None}
    if dtype not in kinds:
        raise UnbraidError(f"--dtype {dtype!r} is unknown; choose float32, bfloat16 or float16.")
    loaded = zoo.load(name, dtype=kinds[dtype], device=device, progress=progress)
    return loaded.model.eval(), loaded.tokenizer


def pool(runs: list[RetrievalHeads], options: dict[str, Any], seed: int) -> RetrievalHeads:
    """One system from the trials of all seeds."""
    whole = RetrievalHeads(**options, seed=seed)
    whole.outcomes_seen = [o for r in runs for o in r.outcomes_seen]
    whole.group_count_ = runs[0].group_count_
    whole._summarise(runs[0].sites_)
    return whole
