"""The study behind `unbraid run secondary_sinks`: planted truth first, then a real model on texts it wrote itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unbraid.core.errors import UnbraidError
from unbraid.core.progress import bar
from unbraid.core.result import Result
from unbraid.systems.secondary_sinks.detect import Guard

if TYPE_CHECKING:
    from torch import Tensor


SWEEP = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0)


def run(
    model: str = "smollm2",
    text: Path | None = None,
    tokens: int = 1024,
    traces: int = 4,
    trace_tokens: int = 320,
    temperature: float = 0.0,
    english: int = 4,
    threshold: float = 0.9,
    candidates: int = 3,
    guard: Guard = "norm",
    primary_ratio: float = 10.0,
    planted: int = 5,
    causal: int = 6,
    keep: Path | None = None,
    seed: int = 0,
    device: str | None = None,
    dtype: str | None = None,
    progress: bool | None = None,
) -> Result:
    """Find tokens that turn into attention sinks in the middle of a network, where they come from and what they do.

    Args:
        model: A name of the zoo (`unbraid models`), a hub id or a local folder of a decoder language model.
        text: A UTF-8 text of your own, instead of what the model writes and plain English.
        tokens: Length in tokens at which texts are cut.
        traces: Word problems for the model to answer; its answers are texts to search.
        trace_tokens: Tokens that it may write per answer.
        temperature: Of its answers; 0 decodes greedily, as in the paper.
        english: Windows of plain English (the language reference of Python) to search as well.
        threshold: On the cosine of a token's residual stream with the primary sink's.
        candidates: How many first tokens may be the primary sink.
        guard: Besides the cosine, ask for a norm of three times the median, or centre first; "none" as in the paper.
        primary_ratio: Norm of the primary sink, in median tokens, below which a text has none.
        planted: Planted models on which the detector is checked; 0 leaves them out.
        causal: Secondary sinks to remove, to see what becomes of the primary one; 0 leaves this out.
        keep: Folder for finished answers; a run that is started again with the same folder reads them back.
        seed: Of problems, windows, draws and intervals.
        device: Where to run; by default where the model is loaded (CPU, or a GPU when there is one).
        dtype: float32, bfloat16 or float16; by default the model's own.
        progress: Show progress on stderr; by default when that is a terminal.

    Returns:
        Sinks, their levels, their origin inside the MLP, and the paper's claims.
    """
    given, start = dict(locals()), time.perf_counter()
    check(tokens, traces, trace_tokens, english, planted, causal, text, threshold, primary_ratio)
    from unbraid import zoo
    from unbraid.systems.secondary_sinks.evidence import norm_sweep, origins, planted_row, without_write
    from unbraid.systems.secondary_sinks.report import Study, make_result
    from unbraid.systems.secondary_sinks.system import SecondarySinks

    study = Study(model)
    loaded = zoo.load(model, dtype=dtype, device=device, progress=progress)
    if loaded.tokenizer is None or loaded.kind != "causal-lm":
        raise UnbraidError(
            f"{model} is of the kind {loaded.kind}; secondary sinks are looked for in decoder language models."
        )
    net = loaded.model.eval()
    with bar(progress, "Planted models", planted + 1) as tick:
        for i in range(planted):
            study.evidence.planted.append(planted_row(seed + i))
            tick()
        study.sweep = norm_sweep(SWEEP, seed) if planted else []
        tick()
    sources = gather(net, loaded.tokenizer, given, progress)
    for name, texts in sources.items():
        system = SecondarySinks(threshold, candidates, guard, primary_ratio=primary_ratio)
        with bar(progress, f"Searching: {name}", len(texts)) as tick:
            try:
                system.fit(net, texts, lambda _, step=tick: step())  # type: ignore[misc]
            except UnbraidError as error:
                study.refused[name] = str(error)
                continue
        study.add(name, system, texts, loaded.tokenizer)
    main = study.main()
    if main is not None:
        study.take(origins(net, main.texts, main.system))
        with bar(progress, "Removing sinks", min(causal, len(main.system.main_))) as tick:
            study.evidence.causal = without_write(net, main.texts, main.system, causal, seed, tick) if causal else []
    return make_result(study, given, time.perf_counter() - start)


def gather(net: Any, tokenizer: Any, given: dict[str, Any], progress: bool | None) -> dict[str, list[Tensor]]:
    """Texts by source."""
    from unbraid.data.text import windows
    from unbraid.systems.secondary_sinks.traces import own_traces, read_text

    tokens, seed = given["tokens"], given["seed"]
    if given["text"] is not None:
        return {"your text": [read_text(given["text"], tokenizer, tokens)]}
    sources: dict[str, list[Tensor]] = {}
    if given["traces"]:
        with bar(progress, "The model writes", given["traces"]) as tick:
            made = own_traces(
                net, tokenizer, given["traces"], given["trace_tokens"], seed, given["temperature"], given["keep"],
                lambda _: tick(),
            )  # fmt: skip
        sources["its own answers"] = [t[:, :tokens] for t in made]
    if given["english"]:
        sources["plain English"] = with_first(tokenizer, windows(tokenizer, tokens - 1, given["english"], seed))
    return sources


def with_first(tokenizer: Any, ids: Tensor) -> list[Tensor]:
    """Windows [count, tokens] with the model's first token before each; end of text where it has no such token."""
    import torch

    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        return list(ids.split(1))
    return [torch.cat([torch.full((1, 1), first), row], 1) for row in ids.split(1)]


def check(
    tokens: int, traces: int, trace_tokens: int, english: int, planted: int, causal: int, text: Path | None,
    threshold: float, primary_ratio: float,
) -> None:  # fmt: skip
    """Refuses options before any model is loaded.

    Raises:
        UnbraidError: which option, and what is accepted.
    """
    if tokens < 16:
        raise UnbraidError(f"--tokens must be 16 or more, not {tokens}.")
    for name, value in (("--traces", traces), ("--english", english), ("--planted", planted), ("--causal", causal)):
        if value < 0:
            raise UnbraidError(f"{name} must be 0 or more, not {value}.")
    if trace_tokens < 1:
        raise UnbraidError(f"--trace-tokens must be 1 or more, not {trace_tokens}.")
    if text is None and not traces and not english:
        raise UnbraidError("There is nothing to search: give --text, or leave --traces or --english above 0.")
    if text is not None and not Path(text).is_file():
        raise UnbraidError(f"{text} is no file; give a UTF-8 text file.")
    if not 0 < threshold <= 1:
        raise UnbraidError(f"--threshold must lie between 0 and 1, not {threshold}.")
    if primary_ratio <= 0:
        raise UnbraidError(f"--primary-ratio must be above 0, not {primary_ratio}.")
