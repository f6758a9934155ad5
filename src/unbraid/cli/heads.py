"""``unbraid heads``: statistics of the attention heads of any model on any text; no system is needed."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from unbraid.core.errors import UnbraidError

if TYPE_CHECKING:
    from unbraid.core.attach import Session
    from unbraid.core.result import Result
    from unbraid.taps import Observer
    from unbraid.zoo import Loaded

EXAMPLES = (
    "Examples:  unbraid heads smollm2 --text notes.txt  ·  "
    "unbraid heads ./my-model --text notes.txt --taps entropy,distance --length 512  ·  "
    "echo 'The cat sat.' | unbraid heads minilm --text - --json"
)


def heads_command(
    ctx: typer.Context,
    model: Annotated[
        str, typer.Argument(help="Name of a reference model (`unbraid models`), a local folder or a hub id.")
    ],
    text: Annotated[Path, typer.Option("--text", help="File with the text, UTF-8; - reads standard input.")],
    taps: Annotated[
        str, typer.Option(help="What to measure: argmax, distance, entropy, mass, received, topk; commas between.")
    ] = "received,entropy,distance",
    sites: Annotated[str, typer.Option(help="Only attentions whose module name fits this pattern.")] = "*",
    length: Annotated[int | None, typer.Option(min=1, help="Use this many tokens at most.", show_default=False)] = None,
    top: Annotated[int, typer.Option(min=1, help="Print this many heads.")] = 10,
    check: Annotated[
        int, typer.Option(min=0, help="Recompute this many random rows per attention densely; report the error.")
    ] = 0,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None, typer.Option(help="Number format.", show_default=False)
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where to run, as in cuda:0.", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to, new or empty. Without it: runs/heads/TIME.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, for programs.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Measure all attention heads of a model on a text, exactly and without attention matrices."""
    content, began = _read(text), time.monotonic()
    from unbraid.cli import folders, study
    from unbraid.taps import by_name

    if quiet:
        study.silence()
    observers = {name: by_name(name) for name in _split(taps)}
    with folders.guarded(folders.claim_folder("heads", out)) as folder:
        from unbraid.cli.console import err
        from unbraid.zoo import load

        loaded = load(model, dtype=dtype, device=device, progress=not quiet)
        inputs, used, whole = _inputs(loaded, content, length)
        if used < whole and not quiet:
            err().print(f"unbraid: the text has {whole} tokens; the first {used} are used.")
        with err().status(f"running {model} on {used} tokens", spinner="line"):
            session = _run(loaded, inputs, list(observers.values()), sites, check)
        given: dict[str, Any] = {"model": model, "text": str(text), "taps": list(observers), "sites": sites}
        given |= {"tokens": used, "tokens_of_text": whole, "dtype": dtype, "device": device}
        result = build(loaded, observers, session, inputs, given)
        study.record(result, study.words_of(ctx), began)
        result.save(folder)
        study.show(result, folder, as_json=as_json, rows=top)


def _split(taps: str) -> list[str]:
    names = [name.strip() for name in taps.split(",") if name.strip()]
    if not names:
        raise UnbraidError("--taps names none; give for instance --taps received,entropy.")
    return list(dict.fromkeys(names))


def _read(path: Path) -> str:
    try:
        content = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except OSError as error:
        raise UnbraidError(f"{path} cannot be read ({error.strerror}); give a text file, or - for stdin.") from None
    except UnicodeDecodeError:
        raise UnbraidError(f"{path} is not UTF-8 text; save it as UTF-8.") from None
    if not content.strip():
        raise UnbraidError(f"{path} holds no text.")
    return content


def _inputs(loaded: Loaded, content: str, length: int | None) -> tuple[dict[str, Any], int, int]:
    """Keyword arguments of the model, how many tokens they hold, and how many the text has."""
    if loaded.tokenizer is None or loaded.kind in ("speech-seq2seq", "image-text"):
        raise UnbraidError(
            f"{loaded.name} is a {loaded.kind} model and does not read plain text; give a language model."
        )
    ids = loaded.tokenizer(content, return_tensors="pt", verbose=False)["input_ids"]
    whole = ids.shape[1]
    # sizes that a model cannot exceed: its position table, or what its tokenizer says (huge when it says nothing)
    limits = [length, vars(loaded.model.config).get("max_position_embeddings"), loaded.tokenizer.model_max_length]
    used = min([whole, *(limit for limit in limits if limit is not None and limit > 0)])
    ids = ids[:, :used].to(loaded.model.device)
    from unbraid.core.inputs import lean_inputs

    inputs = lean_inputs(loaded.model, ids)
    if loaded.kind == "seq2seq":
        inputs["decoder_input_ids"] = ids
    return inputs, used, whole


def _run(loaded: Loaded, inputs: dict[str, Any], observers: list[Observer], sites: str, check: int) -> Session:
    import torch

    from unbraid.core.attach import attach

    with attach(loaded.model, *observers, sites=sites, check=check) as session, torch.no_grad():
        loaded.model(**inputs)
    return session


def build(
    loaded: Loaded, observers: dict[str, Observer], session: Session, inputs: dict[str, Any], params: dict[str, Any]
) -> Result:
    """Make a result of what was observed: a row per head, a map per statistic.

    Args:
        loaded: the model.
        observers: by name, after the run.
        session: the closed attach.
        inputs: what the model was given; its tokens name the keys.
        params: what was asked for.
    """
    from unbraid.core.result import HeadMap, Result

    scores = {name: observer.scores() for name, observer in observers.items()}
    first = next(iter(scores.values()))
    keys = observers["received"].scores("key") if "received" in observers else None
    rows = []
    for head, _ in first.ranked():
        row: dict[str, Any] = {"head": first.label(head), "site": head[0], "number": head[1]}
        row |= {table.name: table[head] for table in scores.values()}
        if keys is not None:
            at = int(keys[head])
            token = loaded.tokenizer.decode(inputs["input_ids"][0, at : at + 1])
            row |= {"most attended token": repr(token[:20]), "at": at}
        rows.append(row)
    report = session.report()
    notes = [f"Mean over {params['tokens']} tokens; {len(rows)} heads at {report['sites']} attentions."]
    if report["spot_check"]["rows"]:
        check = report["spot_check"]
        notes.append(
            f"Spot check: {check['rows']} rows recomputed densely, largest error {check['largest_error']:.2g}."
        )
    return Result(
        "heads",
        f"Attention heads of {loaded.name}",
        params=params,
        tables={"heads": rows},
        figures=[HeadMap(table.name, table, caption=_CAPTIONS.get(name, "")) for name, table in scores.items()],
        arrays={name: table.array for name, table in scores.items()},
        notes=notes,
        meta={"report": report},
    )


_CAPTIONS = {
    "received": "Share of all attention that goes to the most attended key; near 1 the head mostly looks at one token.",
    "entropy": "Mean entropy of the attention in nats; low: the head looks at few keys.",
    "distance": "Mean distance looked back, in tokens.",
    "mass": "Mean attention on the first key.",
    "argmax": "Mean probability of the most attended key.",
    "topk": "Mean probability of the most attended key.",
}
