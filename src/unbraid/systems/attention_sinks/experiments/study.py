"""The study behind `unbraid run attention_sinks`: detection, streams, methods and probes on real models."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unbraid.core.errors import UnbraidError
from unbraid.core.progress import bar
from unbraid.core.result import Result

if TYPE_CHECKING:
    from unbraid.core.pieces import Pieces
    from unbraid.systems.attention_sinks.detection.findings import SinkReport
    from unbraid.systems.attention_sinks.experiments.claims import Findings


def run(
    model: str = "smollm2",
    others: Sequence[str] = (),
    texts: int = 100,
    length: int = 64,
    stream_tokens: int = 16_384,
    streams: int = 1,
    full_streams: int = 1,
    stream_sinks: Sequence[int] = (0, 4),
    stream_cache: int = 1_024,
    chunk: int = 512,
    compare_tokens: int = 1_024,
    compare_texts: int = 4,
    compare_chunk: int = 64,
    budget: int = 256,
    probe_texts: int = 16,
    probe_length: int = 128,
    trained: Path | None = None,
    keep: Path | None = None,
    seed: int = 0,
    device: str | None = None,
    dtype: str | None = None,
    progress: bool | None = None,
) -> Result:
    """Measure a model's attention sinks, use them, change them, and ask why they are there.

    Args:
        model: A name of the zoo (`unbraid models`), a hub id or a local folder of a decoder language model.
        others: Further models, for detection only.
        texts: Short texts on which sinks are detected.
        length: Tokens of such a text (64 in the paper of the sink metric).
        stream_tokens: Length of the streams on which perplexity is measured; 0 leaves them out.
        streams: How many streams, of different text.
        full_streams: On how many of them the full cache is run as well; its time grows with the square of the length.
        stream_sinks: Numbers of first tokens that stay; 0 is a plain sliding window.
        stream_cache: Tokens kept, sinks included.
        chunk: Tokens per pass of a stream; any number gives the same figures.
        compare_tokens: Length of the texts on which methods are compared; 0 leaves the comparison out.
        compare_texts: How many of them.
        compare_chunk: Tokens per pass; what a cache evicts it evicts between passes.
        budget: Tokens that the compared caches keep.
        probe_texts: Texts of the probes; 0 leaves them out.
        probe_length: Tokens of such a text.
        trained: Folder of a result of the study of trained variants, which is put on this page.
        keep: Folder for finished pieces; a run that is started again with the same folder goes on where it stopped.
        seed: Seed of texts, controls and intervals.
        device: Where to run; by default where the model is loaded (CPU, or a GPU when there is one).
        dtype: float32, bfloat16 or float16; by default the model's own.
        progress: Show progress on stderr; by default when that is a terminal.

    Returns:
        The survey's branches in order: ten metrics, streams, a comparison of methods, five probes, and the claims.
    """
    given, start = dict(locals()), time.perf_counter()
    check(given)
    from unbraid.systems.attention_sinks.experiments.page import make_result

    findings = study(given, read_trained(trained))
    return make_result(findings, given, time.perf_counter() - start)


def study(given: dict[str, Any], trained: Result | None) -> Findings:
    """Everything measured."""
    from unbraid.core.pieces import Pieces
    from unbraid.systems.attention_sinks.caches.streaming import keys_of
    from unbraid.systems.attention_sinks.experiments import detecting
    from unbraid.systems.attention_sinks.experiments.claims import Findings
    from unbraid.systems.attention_sinks.experiments.probing import probe
    from unbraid.systems.attention_sinks.experiments.streams import stream_study

    name, progress, seed = given["model"], given["progress"], given["seed"]
    detection: dict[str, Any] = {}
    store = Pieces(given["keep"], {"model": name, "dtype": given["dtype"]})
    stores = [store]
    for other in given["others"]:
        stores.append(Pieces(given["keep"], {"model": other, "dtype": given["dtype"]}))
        key = {"texts": given["texts"], "length": given["length"], "seed": seed}

        def elsewhere(other: str = other) -> dict[str, Any]:
            loaded = load(other, given["device"], given["dtype"], progress)
            return detecting.plain(measured(loaded, given, f"Sinks of {other}"))

        detection[other] = stores[-1].get("detection", key, elsewhere)
    loaded = load(name, given["device"], given["dtype"], progress)
    if given["stream_tokens"]:
        keys_of(loaded[0])  # refuses a model that cannot stream before anything is measured
    report = measured(loaded, given, f"Sinks of {name}")
    detection = {name: detecting.plain(report), **detection}
    streams: dict[str, list[list[float]]] = {}
    if given["stream_tokens"]:
        counts = len(given["stream_sinks"]) * given["streams"] + min(given["full_streams"], given["streams"])
        with bar(progress, "Streams", counts * given["stream_tokens"]) as step:
            streams = stream_study(
                *loaded, tokens=given["stream_tokens"], streams=given["streams"], cache=given["stream_cache"],
                sinks=given["stream_sinks"], full=given["full_streams"], chunk=given["chunk"], store=store, step=step,
            )  # fmt: skip
    methods = compared(loaded, given, report, store) if given["compare_tokens"] else None
    probes = None
    if given["probe_texts"]:
        shape = {"length": given["probe_length"], "texts": given["probe_texts"], "seed": seed}
        with bar(progress, "Probes", 1) as step:
            probes = store.get("probes", shape, lambda: probe(*loaded, **shape))
            step(1)
    return Findings(
        name, detection, streams, given["stream_cache"], tuple(given["stream_sinks"]), methods, probes, trained,
        sum(s.read_back for s in stores), trained_on(loaded[0]),
    )  # fmt: skip


def trained_on(model: Any) -> int | None:
    """Positions that a model was trained on, as its configuration says."""
    known = model.config.get_text_config(decoder=True).to_dict().get("max_position_embeddings")
    return int(known) if known else None


def measured(loaded: tuple[Any, Any], given: dict[str, Any], label: str) -> SinkReport:
    """Detection with progress."""
    from unbraid.systems.attention_sinks.experiments.detecting import detect

    with bar(given["progress"], label, given["texts"]) as step:
        return detect(*loaded, given["length"], given["texts"], given["seed"], step)


def compared(loaded: tuple[Any, Any], given: dict[str, Any], report: SinkReport, store: Pieces) -> dict[str, Any]:
    """The comparison of methods with progress."""
    from unbraid.systems.attention_sinks.experiments.methods import compare, methods

    count = len(methods(loaded[0], given["budget"], report, []))
    with bar(given["progress"], "Methods", count * given["compare_texts"]) as step:
        return compare(
            *loaded, report, tokens=given["compare_tokens"], texts=given["compare_texts"], budget=given["budget"],
            chunk=given["compare_chunk"], seed=given["seed"], store=store, step=step,
        )  # fmt: skip


def check(given: dict[str, Any]) -> None:
    """Refuses options before any model is loaded.

    Raises:
        UnbraidError: which option, and what is accepted.
    """
    least = {
        "texts": 1, "length": 8, "streams": 1, "full_streams": 0, "chunk": 1, "compare_texts": 1, "compare_chunk": 2,
        "budget": 16, "stream_cache": 8, "probe_texts": 0, "stream_tokens": 0, "compare_tokens": 0, "probe_length": 8,
    }  # fmt: skip
    for name, value in least.items():
        if given[name] < value:
            raise UnbraidError(f"--{name.replace('_', '-')} must be {value} or more, not {given[name]}.")
    sinks = list(given["stream_sinks"])
    if given["stream_tokens"] and (not sinks or min(sinks) < 0 or max(sinks) > given["stream_cache"] - 2):
        raise UnbraidError(
            f"--stream-sinks needs numbers from 0 to {given['stream_cache'] - 2} (--stream-cache less 2), not {sinks}."
        )
    if given["stream_tokens"] and given["stream_tokens"] <= given["stream_cache"]:
        raise UnbraidError(
            f"--stream-tokens is {given['stream_tokens']}; it must exceed --stream-cache, {given['stream_cache']}, or "
            "nothing is ever evicted."
        )
    if given["compare_tokens"] and given["compare_tokens"] < 2 * given["budget"]:
        raise UnbraidError(
            f"--compare-tokens is {given['compare_tokens']}; give twice the --budget ({given['budget']}) or more, or 0."
        )


def read_trained(folder: Path | None) -> Result | None:
    """The result of a study of trained variants."""
    return None if folder is None else Result.load(folder)


def load(name: str, device: str | None, dtype: str | None, progress: bool | None) -> tuple[Any, Any]:
    """Model (evaluating, on its device) and tokenizer.

    Raises:
        UnbraidError: there is no tokenizer, or the model keeps no keys.
    """
    from unbraid import zoo
    from unbraid.systems.attention_sinks.caches.kept import decoder

    loaded = zoo.load(name, dtype=dtype, device=device, progress=progress)
    decoder(loaded.model, "This study")
    if loaded.tokenizer is None:
        raise UnbraidError(f"{name} has no tokenizer, and this study reads text; save one beside the model.")
    return loaded.model.eval(), loaded.tokenizer
