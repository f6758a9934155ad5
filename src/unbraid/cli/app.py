"""The typer application: its commands, and how errors become one sentence and an exit code."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

import unbraid
from unbraid.cli import audit, doctor, heads, listing, report, scenes, study, worlds
from unbraid.cli.launch import as_worker
from unbraid.core.errors import UnbraidError

OK, UNEXPECTED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
EXIT_CODES = (
    "Exit codes: 0 done; 2 bad input (one sentence on stderr says what to change); 1 something unexpected; "
    "130 interrupted. Results go to stdout, progress and messages to stderr."
)
DEBUG_VARIABLE = "UNBRAID_DEBUG"

app = typer.Typer(
    name="unbraid",
    help=unbraid.__doc__.split("\n")[0] if unbraid.__doc__ else "",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,  # `main` turns them into one sentence
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"unbraid {unbraid.__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere on the line.")
    ] = False,
) -> None:
    pass


app.command("list", epilog=listing.LIST_EXAMPLES)(listing.list_command)
app.command("info", epilog=listing.INFO_EXAMPLES)(listing.info_command)
app.add_typer(study.app, name="run", epilog=study.EXAMPLES)
app.command("models", epilog=listing.MODELS_EXAMPLES)(listing.models_command)
app.command("heads", epilog=heads.EXAMPLES)(heads.heads_command)
app.command("audit", epilog=audit.EXAMPLES)(audit.audit_command)
app.add_typer(worlds.app, name="worlds")
app.add_typer(scenes.app, name="scenes")
app.command("report", epilog=report.EXAMPLES)(report.report_command)
app.command("doctor", epilog=doctor.EXAMPLES)(doctor.doctor_command)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code.

    Args:
        argv: the words after ``unbraid``; None takes those of the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words or os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")
    words = [word for word in words if word != "--debug"]
    try:
        app(words, prog_name="unbraid", obj={"argv": words})
    except UnbraidError as error:
        _complain(str(error), debug)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        _complain("interrupted.", debug)
        sys.exit(INTERRUPTED)
    except Exception as error:  # whatever it is, a user gets a sentence
        reason = " ".join(str(error).split()) or "no reason given"
        hint = "`unbraid doctor` looks for known causes; --debug shows where it happened."
        _complain(f"unexpected {type(error).__name__}: {reason}\n{hint}", debug)
        sys.exit(UNEXPECTED)
    sys.exit(OK)


def _complain(sentence: str, debug: bool) -> None:
    worker = as_worker()
    if worker is not None and worker.rank:
        # what stops one process mostly stops all, and the first says it; if not, there is time to be heard
        time.sleep(3)
    if debug:
        traceback.print_exc()
    print(f"unbraid: {sentence}", file=sys.stderr)
