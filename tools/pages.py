"""Markdown made from what discovery finds: the table of systems, a page per system, the papers index."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from unbraid.core import registry
from unbraid.core.system import Card

ROOT = Path(__file__).resolve().parent.parent
_FENCE = re.compile(r"^(`{3,})python[^\n]*\n(.*?)^\1\s*$", re.MULTILINE | re.DOTALL)


def cell(text: object) -> str:
    """Text that can stand in a Markdown table."""
    return str(text).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def system_table(link: str) -> str:
    """One row per system.

    Args:
        link: where a name leads, with ``{slug}`` in it.
    """
    cards = [registry.describe(slug) for slug in registry.list_systems()]
    if not cards:
        return "No systems yet.\n"
    lines = ["| system | for | field | paper |", "| --- | --- | --- | --- |"]
    for card in cards:
        paper = f"[{cell(card.title)}]({card.url})" if card.url else cell(card.title)
        name = f"[`{card.slug}`]({link.format(slug=card.slug)})"
        lines.append(f"| {name} | {', '.join(card.verbs)} | {card.field} | {paper}, {card.year} |")
    return "\n".join(lines) + "\n"


def readme(slug: str) -> str:
    """The README of a system; its title alone while there is none, which the contract tests do not let pass."""
    path = registry.folder(slug) / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else f"# {registry.describe(slug).title}\n"


def snippet(slug: str) -> str:
    """The first Python block of a system's README."""
    found = _FENCE.search(readme(slug))
    return found[2] if found else f'import unbraid\n\nsystem = unbraid.create("{slug}")\n'


def newest_result(slug: str) -> tuple[Path, dict[str, Any]] | None:
    """The newest saved result in ``results/SLUG``: its folder and its data."""
    found = []
    for path in (ROOT / "results" / slug).rglob("result.json"):
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.get("slug") == slug:
            found.append((str(data["meta"].get("created", "")), path.parent, data))
    return max(found, key=lambda item: item[:2])[1:] if found else None


def system_page(slug: str) -> str:
    """The page of a system: card, README, claims with what was measured, and the docstrings of class and study."""
    card = registry.describe(slug)
    title, _, body = readme(slug).partition("\n")
    parts = [title, "", _facts(card), "", body.strip(), "", "## Claims", "", _claims(card)]
    parts += [
        "",
        "## In Python and on the command line",
        "",
        f"`unbraid run {slug} --help` shows the same options.",
        "",
    ]
    for target in ("SYSTEM", "RUN"):
        path = registry.target(slug, target)
        parts += [f"::: {path}", "    options:", "      heading_level: 3", "      show_root_full_path: false", ""]
    return "\n".join(parts) + "\n"


def _facts(card: Card) -> str:
    facts = [f"For: **{', '.join(card.verbs)}**", f"field: {card.field}"]
    facts.append(f"paper: [{card.title}]({card.url}), {card.year}" if card.url else f"paper: {card.title}, {card.year}")
    if card.code:
        facts.append(f"[official code]({card.code})")
    if card.extras:
        facts.append(f'needs `pip install "unbraid[{",".join(card.extras)}]"`')
    return " · ".join(facts)


def _claims(card: Card) -> str:
    newest = newest_result(card.slug)
    found = {claim["name"]: claim for claim in newest[1]["claims"]} if newest else {}
    lines = [
        "| claim | where | paper | measured here | compared with | holds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for claim in card.claims:
        ours = found.get(claim.name, {})
        holds = {True: "yes", False: "**no**", None: "open"}[ours.get("holds")] if ours else "not measured yet"
        low, high = ours.get("interval") or (None, None)
        interval = f" [{_number(low)}, {_number(high)}]" if low is not None else ""
        row = [
            claim.statement,
            claim.source,
            claim.paper or "direction only",
            f"{_number(ours.get('measured'))}{interval}",
        ]
        row += [_number(ours.get("comparator")), holds]
        lines.append("| " + " | ".join(map(cell, row)) + " |")
    if newest:
        where, meta = newest[0].relative_to(ROOT).as_posix(), newest[1]["meta"]
        facts = [f"{name} {meta[name]}" for name in ("seed", "seconds", "created") if meta.get(name) is not None]
        lines += ["", f"Measured: `{where}`" + (f" ({', '.join(facts)})." if facts else ".")]
    return "\n".join(lines) + "\n"


def _number(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def papers_page() -> str:
    """Every paper with one snippet that runs."""
    lines = ["# Papers", "", "Each entry is one paper, its system and a snippet that a test runs.", ""]
    for slug in registry.list_systems():
        card = registry.describe(slug)
        where = f"[arXiv {card.arxiv}]({card.url}), {card.year}" if card.url else str(card.year)
        lines += [f"## {card.title}", "", f"{where}. System [`{slug}`](systems/{slug}.md). {_sentence(slug)}", ""]
        lines += ["```python", snippet(slug).rstrip(), "```", ""]
    return "\n".join(lines)


def _sentence(slug: str) -> str:
    """The first paragraph below the title of the README."""
    paragraphs = [p.strip() for p in readme(slug).split("\n\n")[1:]]
    first = next((p for p in paragraphs if p and not p.startswith(("#", "`", "|", "!", "<"))), "")
    return " ".join(first.split())


def systems_index() -> str:
    """The list of systems, as a page."""
    return "# Systems\n\nOne folder per published system.\n\n" + system_table("{slug}.md")
