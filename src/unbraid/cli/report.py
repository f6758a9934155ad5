"""``unbraid report``: read a saved result again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unbraid.core.errors import UnbraidError

EXAMPLES = (
    "Examples:  unbraid report runs/retrieval_heads/20260131-120000  ·  "
    "unbraid report results/retrieval_heads --html page.html  ·  unbraid report results/retrieval_heads --json"
)


def report_command(
    result: Annotated[Path, typer.Argument(help="Folder of a result, or the result.json in it.", metavar="RESULT")],
    html: Annotated[
        Path | None, typer.Option("--html", help="Write its page anew to this file, which must not exist.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Print a saved result, or write its page again with this version's looks."""
    folder = result.parent if result.name == "result.json" else result
    if not (folder / "result.json").is_file():
        raise UnbraidError(f"{result} holds no result; give a folder that `unbraid run` or Result.save wrote.")
    if html is not None and html.exists():
        raise UnbraidError(f"{html} exists, and nothing is ever written over; give another name.")
    from unbraid.cli.study import show
    from unbraid.core.result import Result

    loaded = Result.load(folder)
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        loaded.to_html(html)
        typer.echo(f"Page: {html}", err=as_json)
    if html is None or as_json:
        show(loaded, folder, as_json=as_json)
