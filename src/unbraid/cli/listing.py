"""``unbraid list``, ``info`` and ``models``: what there is."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from unbraid.core import registry
from unbraid.core.system import Card

LIST_EXAMPLES = "Examples:  unbraid list  ·  unbraid list '*sink*'  ·  unbraid list --field language --verb see --json"
INFO_EXAMPLES = "Examples:  unbraid info retrieval_heads  ·  unbraid info retrieval_heads --json"
MODELS_EXAMPLES = "Examples:  unbraid models  ·  unbraid models --json"

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def _slugs(incomplete: str) -> list[str]:
    return [slug for slug in registry.list_systems() if slug.startswith(incomplete)]


def list_command(
    pattern: Annotated[str, typer.Argument(help="Shell-style pattern on the names.")] = "*",
    field: Annotated[str | None, typer.Option(help="Only this field: language, vision, diffusion, …")] = None,
    verb: Annotated[str | None, typer.Option(help="Only this verb: see, steer, swap or separate.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the systems."""
    cards = [registry.describe(slug) for slug in registry.list_systems(pattern, field=field, verb=verb)]
    from unbraid.cli.console import err, out, print_json, table

    if as_json:
        print_json([asdict(card) for card in cards])
        return
    if not cards:
        err().print("No system matches.")
        return
    shown = table("", "name", "year", "field", "verbs", "paper", "extras")
    for card in cards:
        shown.add_row(
            card.slug, str(card.year), card.field, ", ".join(card.verbs), card.title, ", ".join(card.extras) or "-"
        )
    out().print(shown)


def info_command(
    slug: Annotated[str, typer.Argument(help="Name of a system.", autocompletion=_slugs, metavar="SLUG")],
    as_json: AsJson = False,
) -> None:
    """Show what a system is, what its paper claims and how to use it."""
    card = registry.describe(slug)
    missing = registry.missing_extras(card)
    from unbraid.cli.console import out, print_json

    if as_json:
        print_json(asdict(card) | {"folder": str(registry.folder(slug)), "missing_extras": missing})
        return
    console = out()
    console.print(f"{card.slug}: {card.title}", style="bold")
    for line in _facts(card, missing):
        console.print(line)
    if card.claims:
        console.print("\nClaims that its study measures:")
        for claim in card.claims:
            figure = f" Paper: {claim.paper}." if claim.paper else ""
            console.print(f"  {claim.name}: {claim.statement}{figure} ({claim.source})")


def _facts(card: Card, missing: list[str]) -> list[str]:
    lines = [f"{card.year}, {card.field}; for: {', '.join(card.verbs)}"]
    lines += [f"Paper:   {card.url}"] if card.url else []
    lines += [f"Code:    {card.code}"] if card.code else []
    lines += [f"Study:   unbraid run {card.slug} --help", f'Python:  unbraid.create("{card.slug}")']
    lines += [f"Details: {registry.folder(card.slug) / 'README.md'}"]
    if missing:
        lines.append(f'Missing: pip install "unbraid[{",".join(missing)}]"')
    return lines


def models_command(as_json: AsJson = False) -> None:
    """List the reference models: size, source, licence, and whether they are in the cache."""
    from unbraid.cli.console import out, print_json, table
    from unbraid.zoo import models

    cards = models()
    if as_json:
        print_json([asdict(card) | {"path": None if card.path is None else str(card.path)} for card in cards])
        return
    shown = table("", "name", "kind", "download", "on disk", "cached", "licence", "source", "original")
    for card in cards:
        sizes = (_megabytes(card.size), _megabytes(card.disk))
        shown.add_row(card.name, card.kind, *sizes, "yes" if card.cached else "no", card.licence, card.source, card.hub)
    console = out()
    console.print(shown)
    console.print("\nAny hub id or local folder works in place of these names.")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
