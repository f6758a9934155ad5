"""``unbraid run SLUG``: a system's study, with options made from its own signature."""

from __future__ import annotations

import inspect
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from unbraid.cli import docstrings
from unbraid.cli.folders import claim_folder, contents, guarded
from unbraid.core import registry
from unbraid.core.errors import UnbraidError

if TYPE_CHECKING:
    from unbraid.core.result import Result

EXAMPLES = (
    "Examples:  unbraid run retrieval_heads  ·  unbraid run retrieval_heads --help  ·  "
    "unbraid run retrieval_heads --seed 1 --out results/mine --json"
)
_OUTPUT = "Output"
# a study may take these itself; then the command line's own option is handed to it instead of being offered twice
_HANDED_OVER = ("out", "quiet", "progress", "processes")


class StudyGroup(TyperGroup):
    """A group whose commands are the systems found by discovery; each is imported only when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All slugs, sorted."""
        return registry.list_systems()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command for one system."""
        if any(word in ("-h", "--help") for word in words_of(ctx)) and cmd_name not in words_of(ctx):
            return _named_only(cmd_name)  # listing all for `run --help` must not import every study
        return command(cmd_name, registry.load_run(cmd_name))


app = typer.Typer(
    cls=StudyGroup,
    help="Run the study of a system and write its page; `unbraid run SLUG --help` shows the options of that study.",
    no_args_is_help=True,
    subcommand_metavar="SLUG [OPTIONS OF THAT STUDY]",
    add_completion=False,
)


@app.callback()
def _group() -> None:
    pass


def words_of(ctx: Any) -> list[str]:
    """The command line after ``unbraid``."""
    return list((ctx.obj or {}).get("argv", ()))


def _named_only(slug: str) -> Any:
    def stand_in() -> None:
        pass

    single = typer.Typer(add_completion=False)
    single.command(slug, help=registry.describe(slug).title)(stand_in)
    return typer.main.get_command(single)


def command(slug: str, run: Callable[..., Result]) -> Any:
    """Make the command of one study.

    Args:
        slug: the system's name.
        run: the study; its signature becomes the options, its docstring their help.

    Returns:
        A command for the group.
    """
    from unbraid.cli.options import options

    offered = {option.name: option for option in options(run, skip=_HANDED_OVER)}

    def study(ctx: typer.Context, **given: Any) -> None:
        ours = {name: given.pop(name) for name in _OURS}
        params = {name: offered[name].convert(value) for name, value in given.items() if value is not None}
        execute(slug, run, params, words=words_of(ctx), **ours)

    parameters = [option.parameter for option in offered.values()]
    taken = {parameter.name for parameter in parameters} & set(_OURS)
    if taken:
        raise UnbraidError(f"{slug}: the study's parameter {taken.pop()!r} has the name of an option of `unbraid run`.")
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (default, annotation) in _OURS.items()
    ]
    context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    study.__signature__ = inspect.Signature([context, *parameters])  # type: ignore[attr-defined]
    study.__annotations__ = {"ctx": typer.Context} | {p.name: p.annotation for p in parameters}
    single = typer.Typer(
        rich_markup_mode="rich", add_completion=False, context_settings={"help_option_names": ["-h", "--help"]}
    )
    example = f"Examples:  unbraid run {slug}  ·  unbraid run {slug} --out runs/mine  ·  unbraid run {slug} --json"
    # escaped: square brackets in a docstring are text, not rich's markup
    help_ = docstrings.summary(run).replace("[", r"\[") or registry.describe(slug).title
    single.command(slug, help=help_, epilog=example)(study)
    return typer.main.get_command(single)


_OURS: dict[str, tuple[Any, Any]] = {
    "out": (
        None,
        Annotated[
            Path | None,
            typer.Option(
                "--out",
                help="Folder to write to; must be empty or new. Without it: runs/SLUG/TIME.",
                rich_help_panel=_OUTPUT,
                show_default=False,
            ),
        ],
    ),
    "as_json": (
        False,
        Annotated[
            bool, typer.Option("--json", help="Print the result as JSON, for programs.", rich_help_panel=_OUTPUT)
        ],
    ),
    "quiet": (
        False,
        Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.", rich_help_panel=_OUTPUT)],
    ),
    "processes": (
        1,
        Annotated[
            int,
            typer.Option(
                "--processes", min=1, help="Start this many processes through accelerate.", rich_help_panel=_OUTPUT
            ),
        ],
    ),
}


def execute(
    slug: str,
    run: Callable[..., Result],
    params: dict[str, Any],
    *,
    out: Path | None = None,
    as_json: bool = False,
    quiet: bool = False,
    processes: int = 1,
    words: list[str] | None = None,
) -> None:
    """Run a study, save its result in a folder of its own, print it.

    Args:
        slug: the system's name.
        run: the study.
        params: arguments for it.
        out: folder to write to; None makes ``runs/SLUG/TIME``.
        as_json: print JSON instead of tables.
        quiet: no progress.
        processes: start that many through accelerate.
        words: the command line after ``unbraid``, for the processes and for the record.

    Raises:
        UnbraidError: the folder holds something, or the study was given something it cannot use.
        typer.Exit: interrupted (130), or a started process failed (its code).
    """
    from unbraid.cli import launch

    if quiet:
        silence()
    worker = launch.as_worker()
    folder = worker.folder if worker else claim_folder(slug, out)
    began = time.monotonic()
    with guarded(folder):
        if processes > 1 and worker is None:
            launch.start(processes, words or [], folder, cpu=str(params.get("device", "")) == "cpu")
            return
        result = run(**params, **_handed_over(run, folder, quiet, worker.count if worker else 1))
        if worker is None or worker.rank == 0:
            record(result, words or ["run", slug], began)
            result.save(folder)
            show(result, folder, as_json=as_json)


def _handed_over(run: Callable[..., Any], folder: Path, quiet: bool, processes: int) -> dict[str, Any]:
    ours = {"out": folder, "quiet": quiet, "progress": not quiet, "processes": processes}
    return {name: value for name, value in ours.items() if name in inspect.signature(run).parameters}


def record(result: Result, words: list[str], began: float) -> None:
    """Note in a result the command line that made it and the seconds since ``began``, unless the study did."""
    result.meta.setdefault("command", shlex.join(["unbraid", *words]))
    result.meta.setdefault("seconds", round(time.monotonic() - began, 2))


def silence() -> None:
    """No progress bars and no chatter from the libraries underneath."""
    os.environ["TQDM_DISABLE"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"


def show(result: Result, folder: Path, *, as_json: bool, rows: int = 10) -> None:
    """Print a saved result: its summary and the paths of what was written, or JSON."""
    from unbraid.cli.console import out, print_json

    page = folder / "index.html"
    if as_json:
        import json

        data = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        print_json({"slug": result.slug, "folder": str(folder), "page": str(page), "result": data})
        return
    console = out()
    result.summary(console, rows=rows)
    console.print(f"\nPage: {page}")
    console.print(f"Data: {', '.join(name for name in contents(folder) if name != page.name)} in {folder}")
