"""The study behind `unbraid run circuit_reuse`: can the model do the tasks, by which heads, are these shared."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unbraid.core.errors import UnbraidError

if TYPE_CHECKING:
    from unbraid.core.heads import HeadScores, HeadSet
    from unbraid.core.pieces import Pieces
    from unbraid.core.result import Result
    from unbraid.data.prompts import PromptSet
    from unbraid.systems.circuit_reuse.answering import Answers
    from unbraid.systems.circuit_reuse.circuit import Circuit
    from unbraid.systems.circuit_reuse.mending import Repair

SEED_STEP = 1_000  # between the prompts that find circuits and those that test them
ENOUGH = 0.5  # top-1 accuracy from which a task counts as done; below it, more solved examples are tried


@dataclass(eq=False)
class Findings:
    """What a study measured, before it is put into words.

    Attributes:
        name: of the model.
        shots: task -> solved examples before each prompt.
        tried: rows of the table of accuracies.
        pairs: (first, second) circuit per seed.
        controls: further circuits, of the first seed.
        repairs: name -> what an intervention did.
        gathered: (answers without gatherers, with random heads blocked instead).
        moved: what the repair did to movers.
        roles: task -> rows.
        copying: task -> attention and attribution, with the heads in the order of layers.
        example: pieces of text with attention, before and after the repair.
    """

    name: str
    model: Any
    tokenizer: Any
    shots: dict[str, int] = field(default_factory=dict)
    tried: list[dict[str, Any]] = field(default_factory=list)
    pairs: list[tuple[Circuit, Circuit]] = field(default_factory=list)
    controls: list[Circuit] = field(default_factory=list)
    repairs: dict[str, Repair] = field(default_factory=dict)
    gathered: tuple[HeadSet, Answers, list[Answers]] | None = None
    moved: dict[str, Any] = field(default_factory=dict)
    roles: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    copying: dict[str, dict[str, Any]] = field(default_factory=dict)
    repeated: dict[str, HeadScores] = field(default_factory=dict)
    example: dict[str, Any] = field(default_factory=dict)
    read_back: int = 0


def run(
    model: str = "smollm2",
    controls: Sequence[str] = ("greater_than", "capitals"),
    prompts: int = 40,
    held_out: int = 80,
    seeds: int = 2,
    shots: int | None = None,
    most_shots: int = 3,
    fraction: float = 0.02,
    freeze_norm: Literal["none", "clean", "corrupt"] = "clean",
    freeze_mlps: bool = False,
    search: Literal["below_all", "below_any"] = "below_all",
    draws: int = 10,
    batch: int = 20,
    rows: int = 2048,
    keep: Path | None = None,
    seed: int = 0,
    device: str | None = None,
    dtype: str | None = None,
    progress: bool | None = None,
) -> Result:
    """Find the heads behind two tasks, say how many are the same, and repair one task with heads of the other.

    Args:
        model: A name of the zoo (`unbraid models`), a hub id or a local folder of a decoder language model.
        controls: Further tasks whose circuits are compared with the first one's: greater_than, capitals.
        prompts: Prompts per task and seed that find circuits.
        held_out: Other prompts, on which accuracy, repair and roles are measured.
        seeds: Independent sets of prompts.
        shots: Solved examples before each prompt; by default the task's own, and more where accuracy is below one half.
        most_shots: How many solved examples to try at the most.
        fraction: Share of all heads that each stage keeps.
        freeze_norm: Norms keep the scale of the clean or the corrupt run; none is the paper's code.
        freeze_mlps: MLPs do not pass on what a sender writes.
        search: Senders lie below all receivers of a stage (the paper) or below any of them.
        draws: Random controls of the interventions.
        batch: Prompts per batch.
        rows: Tokens per forward.
        keep: Folder for finished batches; a run that is started again with the same folder goes on where it stopped.
        seed: Seed of prompts, controls and intervals.
        device: Where to run; by default where the model is loaded (CPU, or a GPU when there is one).
        dtype: float32, bfloat16 or float16; by default the model's own.
        progress: Show progress on stderr; by default when that is a terminal.

    Returns:
        Accuracy, circuits with roles, overlap against chance, the repair against random heads, and the paper's claims.
    """
    given, start = dict(locals()), time.perf_counter()
    check(controls, prompts, held_out, seeds, shots, most_shots, fraction, draws, batch, rows)
    from unbraid.core.pieces import Pieces
    from unbraid.systems.circuit_reuse.report import make_result

    loaded_model, tokenizer = load(model, device, dtype, progress)
    store = Pieces(keep, {"model": model, "dtype": dtype})
    f = Findings(model, loaded_model, tokenizer)
    options = {
        "fraction": fraction, "freeze_norm": freeze_norm, "freeze_mlps": freeze_mlps, "search": search, "batch": batch,
        "rows": rows, "store": store,
    }  # fmt: skip
    with bar(progress) as step:
        tasks = ["ioi", "coloured_objects", *controls]
        tests = tests_of(f, tasks, held_out, seed + SEED_STEP, shots, most_shots, batch, step, store)
        for i in range(seeds):
            both = [circuit(f, t, prompts, seed + i, options, step) for t in ("ioi", "coloured_objects")]
            f.pairs.append((both[0], both[1]))
        f.controls = [circuit(f, t, prompts, seed, options, step) for t in controls]
        intervene(f, tests, draws, batch, seed, step, store)
        describe(f, tests, batch, seed, step)
    f.read_back = store.read_back
    return make_result(f, given, time.perf_counter() - start)


def circuit(
    f: Findings, task: str, count: int, seed: int, options: dict[str, Any], step: Callable[[str, float, float], None]
) -> Circuit:
    """The circuit of a task on prompts of one seed."""
    from unbraid.data.prompts import TASKS
    from unbraid.systems.circuit_reuse.circuit import find_circuit

    made = TASKS[task](f.tokenizer, count, seed, f.shots[task])

    def on_step(stage: str, done: float, all_: float) -> None:
        step(f"{task}, seed {seed}, {stage}", done, all_)

    return find_circuit(f.model, made, on_step=on_step, **options)


def tests_of(
    f: Findings,
    tasks: Sequence[str],
    count: int,
    seed: int,
    shots: int | None,
    most: int,
    batch: int,
    step: Callable[[str, float, float], None],
    store: Pieces,
) -> dict[str, PromptSet]:
    """Held-out prompts of each task, with as many solved examples as the model needs to do it."""
    import inspect

    from unbraid.data.prompts import TASKS

    out: dict[str, PromptSet] = {}
    for task in tasks:
        default = inspect.signature(TASKS[task]).parameters["shots"].default
        tries = [shots] if shots is not None else list(range(default, max(default, most) + 1))
        best = -1.0
        for number in tries:
            # chosen on prompts of their own, so that what is reported is not what was chosen by
            share = tell(f, "choosing", TASKS[task](f.tokenizer, count, seed + SEED_STEP, number), batch, store)
            if share > best:
                best, f.shots[task] = share, number
            if share >= ENOUGH:
                break
        out[task] = TASKS[task](f.tokenizer, count, seed, f.shots[task])
        tell(f, "held out", out[task], batch, store)
        step(f"accuracy, {task}", len(out), len(tasks))
    return out


def tell(f: Findings, why: str, prompts: PromptSet, batch: int, store: Pieces) -> float:
    """Notes a row of the table of accuracies; returns the top-1 accuracy."""
    from unbraid.systems.circuit_reuse.answering import accuracy, remembered

    answers = remembered(store, prompts, "plain", lambda: accuracy(f.model, prompts, None, batch))
    share, low, high = answers.share()
    f.tried.append(
        {
            "task": prompts.task, "prompts": why, "number": len(prompts), "solved examples": prompts.about["shots"],
            "top-1": share, "low": low, "high": high, "best of the candidates": answers.share("best")[0],
            "log-odds": float(answers.log_odds.mean()),
        }
    )  # fmt: skip
    return share


def intervene(
    f: Findings,
    tests: dict[str, PromptSet],
    draws: int,
    batch: int,
    seed: int,
    step: Callable[[str, float, float], None],
    store: Pieces,
) -> None:
    """The repair and the blocking of gatherers, on held-out prompts, against random heads."""
    import numpy as np

    from unbraid.core.heads import HeadSet
    from unbraid.systems.circuit_reuse import behaviour, mending
    from unbraid.systems.circuit_reuse.rows import attend_to

    first, second = f.pairs[0]
    test, scores = tests["coloured_objects"], first.found[0].scores
    if len(first.found) < 2 or len(second.found) < 2:
        return
    steering, negative = mending.repair_heads(first)
    heads = steering | negative
    f.repairs["the four heads"] = mending.repair(
        f.model, test, heads, parts={"steering heads only": steering, "negative mover only": negative},
        scores=scores, draws=draws, batch=batch, seed=seed, on_step=step, store=store,
    )  # fmt: skip
    f.repairs["the four heads, first token kept"] = mending.repair(
        f.model, test, heads, keep=(0,), batch=batch, on_step=step, store=store
    )
    for i, (again, _) in enumerate(f.pairs[1:], 1):
        if len(again.found) > 1:
            some = HeadSet([*mending.repair_heads(again)[0], *mending.repair_heads(again)[1]])
            f.repairs[f"the four heads of seed {i}"] = mending.repair(
                f.model, test, some, batch=batch, on_step=step, store=store
            )
    rng = np.random.default_rng([seed, 5])
    gatherers = second.found[1].kept
    blocked = mending.blocked(f.model, test, gatherers, batch=batch, store=store)
    random = []
    for i in range(draws):
        some = mending.random_heads(scores, gatherers, gatherers, rng)
        random.append(mending.blocked(f.model, test, some, batch=batch, store=store))
        step("blocking random heads", i + 1, draws)
    f.gathered = (gatherers, blocked, random)
    movers, _ = second.movers()
    edits = lambda group: [attend_to(heads, [test[i].places["wrong"] for i in group])]  # noqa: E731
    f.moved = behaviour.downstream(f.model, test, movers, second.found[0].scores, edits, batch)
    if f.moved["movers"]:
        for share in (0.02, 0.05):
            f.moved[f"ranks {share}"] = [
                behaviour.rank(f.moved["gains"], c.found[0].scores, helping(c, share)) for _, c in f.pairs
            ]
    watched = movers if len(movers) else second.found[0].kept
    seen = behaviour.example(f.model, test[0], watched, attend_to(heads, [test[0].places["wrong"]]))
    f.example = {**seen, "ids": test[0].clean}


def helping(c: Circuit, share: float) -> HeadSet:
    """Heads that help the answer among a share of the strongest of the first stage."""
    from unbraid.core.heads import HeadSet

    scores = c.found[0].scores
    return HeadSet(h for h in c.found[0].top(share, c.floor) if scores[h] > 0)


def describe(
    f: Findings, tests: dict[str, PromptSet], batch: int, seed: int, step: Callable[[str, float, float], None]
) -> None:
    """Roles of the heads of both circuits."""
    from unbraid.systems.circuit_reuse import behaviour

    f.repeated = behaviour.repeated(f.model, seed=seed)
    for i, c in enumerate(f.pairs[0]):
        f.roles[c.task] = behaviour.roles(f.model, tests[c.task], c.heads, f.repeated, batch)
        f.copying[c.task] = behaviour.copying(f.model, tests[c.task], behaviour.own_tokens(c.task), batch)
        step(f"roles, {c.task}", i + 1, 2)


def check(
    controls: Sequence[str],
    prompts: int,
    held_out: int,
    seeds: int,
    shots: int | None,
    most_shots: int,
    fraction: float,
    draws: int,
    batch: int,
    rows: int,
) -> None:
    """Refuses options before any model is loaded.

    Raises:
        UnbraidError: which option, and what is accepted.
    """
    from unbraid.data.prompts import TASKS

    least = {
        "--prompts": (prompts, 4), "--held-out": (held_out, 4), "--seeds": (seeds, 1), "--most-shots": (most_shots, 0),
        "--draws": (draws, 1), "--batch": (batch, 1), "--rows": (rows, 1), "--shots": (shots or 0, 0),
    }  # fmt: skip
    for name, (value, low) in least.items():
        if value < low:
            raise UnbraidError(f"{name} must be {low} or more, not {value}.")
    if not 0 < fraction <= 1:
        raise UnbraidError(f"--fraction must lie above 0 and be 1 at the most (the paper's is 0.02), not {fraction}.")
    accepted = [t for t in TASKS if t not in ("ioi", "coloured_objects")]
    for task in controls:
        if task not in accepted:
            raise UnbraidError(f"--controls knows {', '.join(accepted)}, not {task!r}.")


def load(name: str, device: str | None, dtype: str | None, progress: bool | None) -> tuple[Any, Any]:
    """Model (evaluating, on its device) and tokenizer."""
    import torch

    from unbraid import zoo

    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, None: None}
    if dtype not in kinds:
        raise UnbraidError(f"--dtype {dtype!r} is unknown; choose float32, bfloat16 or float16.")
    loaded = zoo.load(name, dtype=kinds[dtype], device=device, progress=progress)
    if loaded.kind != "causal-lm":
        raise UnbraidError(
            f"{name!r} is a model of the kind {loaded.kind!r}; circuits are searched in decoder language models "
            "such as smollm2."
        )
    if loaded.tokenizer is None:
        raise UnbraidError(f"{name!r} has no tokenizer beside it; give a folder that holds both.")
    return loaded.model.eval(), loaded.tokenizer


@contextmanager
def bar(progress: bool | None) -> Iterator[Callable[[str, float, float], None]]:
    """A progress bar on stderr that is told (what, done, all); None shows it on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    shown = sys.stderr.isatty() if progress is None else progress
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as live:
        task = live.add_task("", total=1)
        yield lambda what, done, all_: live.update(task, description=what, completed=done, total=all_)
