"""The study behind `unbraid run s2t_cross_attention`: explain clips of speech, compare, align, warn, say what holds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from unbraid.core.errors import UnbraidError
from unbraid.core.pieces import Pieces
from unbraid.core.progress import bar
from unbraid.core.result import Result
from unbraid.data.speech.clips import Clip, load_clip
from unbraid.data.speech.shipped import spoken as shipped
from unbraid.systems.s2t_cross_attention import measure
from unbraid.systems.s2t_cross_attention.explanation import Explanation
from unbraid.systems.s2t_cross_attention.listener import Listener, check_model
from unbraid.systems.s2t_cross_attention.maps import Pool
from unbraid.systems.s2t_cross_attention.perturb import Estimator, Fill, Scorer
from unbraid.systems.s2t_cross_attention.report import Findings, make_result
from unbraid.systems.s2t_cross_attention.segments import Segments
from unbraid.systems.s2t_cross_attention.system import SpeechCrossAttention


def run(
    model: str = "whisper-tiny.en",
    audio: Sequence[Path] = (),
    recordings: Sequence[str] = ("praatio", "arctic"),
    spoken: int = 3,
    masks: int = 180,
    encoder_masks: int = 180,
    granularities: Sequence[int] = (20, 40, 80),
    widths: Sequence[int] = (2, 4, 8),
    probability: float = 0.5,
    segments: Segments = "auto",
    scorer: Scorer = "kl",
    estimator: Estimator = "mean",
    antithetic: bool = False,
    tolerance: float = 0.0,
    fill: Fill = "auto",
    decoder_probability: float = 0.0,
    batch_size: int = 12,
    pool: Pool = "max",
    beams: int = 5,
    context: Literal["full", "fit"] = "fit",
    context_masks: int = 0,
    deletion_clips: int = 2,
    deletion_step: float = 0.1,
    warn: bool = True,
    compare: bool = True,
    world_seeds: int = 1,
    pictures: int = 6,
    keep: Path | None = None,
    seed: int = 0,
    device: str | None = None,
    dtype: str | None = None,
    progress: bool | None = None,
) -> Result:
    """Measure how far the cross-attention of a speech model explains it, and what it says about times and trust.

    Args:
        model: A name of the zoo (`unbraid models`), a hub id or a local folder of an encoder-decoder speech model.
        audio: Your own sound files (WAV, FLAC, OGG, MP3); they are added to the clips.
        recordings: Recordings of the zoo (arctic, beckett, librivox, praatio), or none.
        spoken: How many synthesised clips with exactly known word times to use.
        masks: Perturbation runs of the input per clip, at the most (the paper's configuration: 20000).
        encoder_masks: Runs of the encoder's output per clip, at the most; they run only the decoder.
        granularities: Segments per 500 frames, one number per segmentation (the paper's: 2000,2500,3000).
        widths: Encoder states occluded together, one number per granularity.
        probability: Share that is occluded.
        segments: Superpixels (slic, needs scikit-image), rectangles (grid), or whichever is there (auto).
        scorer: Divergence of the whole distribution (kl) or fall of the token's own probability.
        estimator: Mean over runs (SPES) or regression with KernelSHAP's weights.
        antithetic: Draw masks in complementary pairs.
        tolerance: Stop a clip when its maps' standard error is below this share of their spread; 0 never does.
        fill: What occluded bins become.
        decoder_probability: Share of previous tokens that are zeroed too.
        batch_size: Runs at once.
        pool: How input saliency is reduced to encoder states.
        beams: Of the search for hypotheses and in the deletion metric.
        context: Let a fixed-length encoder hear only the audio and half a second more (fit), or all 30 s (full).
        context_masks: Runs of a check on one clip of what fit changes; 0 leaves it out, full runs are slow.
        deletion_clips: Clips for the deletion metric; 0 leaves it out.
        deletion_step: Distance of the shares deleted (the paper: 0.05).
        warn: Test the warnings on silence, noise, other text and truncated audio.
        compare: Compare word times with transformers' own, on a second copy of the model.
        world_seeds: Seeds of the made-up world whose alignment is known; each takes about a minute.
        pictures: Words shown with their maps.
        keep: Folder for finished runs; a study that is started again with the same folder goes on where it stopped.
        seed: Of masks, noise and the made-up world.
        device: Where to run; by default where the model is loaded (the CPU).
        dtype: float32, bfloat16 or float16; by default the model's own.
        progress: Show progress on stderr; by default when that is a terminal.

    Returns:
        Correlations at every level with intervals, word times, deletion, warnings, pictures and sound.
    """
    given, start = dict(locals()), time.perf_counter()
    names = [] if list(recordings) == ["none"] else list(recordings)
    system = SpeechCrossAttention(
        masks=masks, encoder_masks=encoder_masks, granularities=tuple(granularities), widths=tuple(widths),
        probability=probability, segments=segments, scorer=scorer, estimator=estimator, antithetic=antithetic,
        tolerance=tolerance, fill=fill, decoder_probability=decoder_probability, batch_size=batch_size, pool=pool,
        beams=beams, context=context, norms=True, gradient=True, seed=seed,
    )  # fmt: skip
    check(system, len(audio), names, spoken, deletion_clips, deletion_step, world_seeds, pictures)
    own = [load_clip(path) for path in audio]
    loaded = load(model, device, dtype, progress)
    clips = [*own, *shipped(spoken), *recorded(names, progress)]
    store = Pieces(keep, {"model": model, "dtype": dtype, "context": context})
    found = Findings(model, clips, system)
    explain(found, loaded, store, progress)
    if deletion_clips:
        found.deletion = deletions(found, loaded, deletion_clips, deletion_step, store, progress)
    times(found, loaded, model if compare else None, progress)
    if warn:
        found.warned = doubts(found, loaded, progress)
    if context_masks and context == "fit":
        found.contexts = check_context(found, loaded, context_masks, store, progress)
    found.world = worlds(world_seeds, seed, store, progress)
    found.read_back = store.read_back
    return make_result(found, given, time.perf_counter() - start, pictures)


def check(
    system: SpeechCrossAttention, files: int, recordings: Sequence[str], spoken: int, deletion_clips: int, step: float,
    world_seeds: int, pictures: int,
) -> None:  # fmt: skip
    """Refuses options before any model is loaded.

    Raises:
        UnbraidError: which option, and what is accepted.
    """
    for name, value in (
        ("--spoken", spoken), ("--deletion-clips", deletion_clips), ("--world-seeds", world_seeds),
        ("--pictures", pictures),
    ):  # fmt: skip
        if value < 0:
            raise UnbraidError(f"{name} must be 0 or more, not {value}.")
    if not files + len(recordings) + spoken:
        raise UnbraidError("There is no clip: give --audio, --recordings, or --spoken above 0.")
    if not 0 < step <= 1:
        raise UnbraidError(f"--deletion-step is {step}; it must be a share in (0, 1].")
    if system.masks < 1 or system.encoder_masks < 1:
        raise UnbraidError("--masks and --encoder-masks must be 1 or more: the study compares attention with both.")
    system.check()
    known = recording_names()
    for name in recordings:
        if name not in known:
            raise UnbraidError(f"The zoo has no recording {name!r}; choose from {', '.join(known)}, or give --audio.")


def recording_names() -> list[str]:
    """Recordings of the zoo."""
    from unbraid.zoo.cards import table

    return [name for name, entry in table().items() if entry.kind == "recording"]


def recorded(names: Sequence[str], progress: bool | None) -> list[Clip]:
    """Recordings of the zoo as clips, with their text where it is known."""
    from unbraid.systems.s2t_cross_attention.recordings import load_recording

    return [clip for name in names for clip in load_recording(name, progress)]


def load(name: str, device: str | None, dtype: str | None, progress: bool | None, **options: Any) -> Any:
    """The model (evaluating, on its device) and its processor."""
    import torch

    from unbraid import zoo

    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, None: None}
    if dtype not in kinds:
        raise UnbraidError(f"--dtype {dtype!r} is unknown; choose float32, bfloat16 or float16.")
    loaded = zoo.load(name, dtype=kinds[dtype], device=device, progress=progress, **options)
    check_model(loaded.model)
    return loaded


def explain(found: Findings, loaded: Any, store: Pieces, progress: bool | None) -> None:
    """All maps of all clips, and their comparison."""
    system = found.system
    total = len(found.clips) * (system.masks + system.encoder_masks)
    with bar(progress, "Perturbing", total) as tick:
        system.fit(loaded.model, loaded.processor, found.clips, store, tick)
    found.explanations = system.explanations
    found.correlations = measure.correlations(found.explanations, system.pool)


def deletions(
    found: Findings, loaded: Any, count: int, step: float, store: Pieces, progress: bool | None
) -> list[dict[str, dict[str, Any]]]:
    """Deletion curves of the first clips, synthesised and recorded in turn."""
    listener = Listener(loaded.model, loaded.processor, found.system.context)
    order = sorted(range(len(found.clips)), key=lambda i: (i * 7919) % 101)[:count]
    out = []
    with bar(progress, "Deleting", len(order)) as tick:
        for i in order:
            e = found.explanations[i]
            out.append(measure.delete(found.system, listener, found.clips[i], e, step, found.system.seed + i, store))
            tick(1)
    return out


def times(found: Findings, loaded: Any, peer: str | None, progress: bool | None) -> None:
    """Word times of clips whose words are known, by every source."""
    known = [i for i, c in enumerate(found.clips) if c.words]
    if not known:
        return
    full_system = SpeechCrossAttention(
        **{**found.system.get_params(), "masks": 0, "encoder_masks": 0, "context": "full"}
    )
    other = None if peer is None else load(peer, None, None, progress)
    sources = []
    with bar(progress, "Aligning", len(known)) as tick:
        for i in known:
            clip, e = found.clips[i], found.explanations[i]
            full: Explanation | None = None
            if found.system.context == "fit":
                full = full_system.explain(loaded.model, loaded.processor, clip, ids=e.ids)
            source = measure.clip_times(found.explanations, i, full)
            if other is not None and other.processor is not None:
                source["transformers"] = measure.transformers_times(
                    other.model, other.processor, clip.at(16_000).audio, 16_000
                )
            sources.append(source)
            tick(1)
    for kind in dict.fromkeys(found.clips[i].timing for i in known):
        of_kind = [(i, s) for i, s in zip(known, sources, strict=True) if found.clips[i].timing == kind]
        found.times[kind] = measure.timing([found.clips[i] for i, _ in of_kind], [s for _, s in of_kind])


def doubts(found: Findings, loaded: Any, progress: bool | None) -> list[measure.Warned]:
    """Clean hypotheses and ones without support in the audio."""
    with bar(progress, "Warnings", len(found.clips)) as tick:
        return measure.broken_audio(
            found.system, loaded.model, loaded.processor, found.clips, found.explanations, found.system.seed, tick
        )


def check_context(found: Findings, loaded: Any, masks: int, store: Pieces, progress: bool | None) -> dict[str, Any]:
    """What the fitted context changes, on the shortest clip."""
    shortest = min(range(len(found.clips)), key=lambda i: found.clips[i].seconds)
    system = SpeechCrossAttention(**{**found.system.get_params(), "masks": masks})
    with bar(progress, "Full context", masks + system.encoder_masks) as tick:
        return measure.contexts(
            system, loaded.model, loaded.processor, found.clips[shortest], found.explanations[shortest], store, tick
        )


def worlds(seeds: int, seed: int, store: Pieces, progress: bool | None) -> list[dict[str, float]]:
    """The made-up world over seeds; finished seeds are kept."""
    from unbraid.systems.s2t_cross_attention.toy import check_world

    out = []
    with bar(progress, "Known world", seeds * 6) as tick:
        for number in range(seed, seed + seeds):
            done = store.load("world", number)
            if done is None:
                done = check_world(number, progress=False, on_step=tick)
                store.save("world", number, done)
            out.append(done)
    return out
