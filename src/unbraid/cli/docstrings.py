"""Read a Google-style docstring: its first sentence and what it says about each argument."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

_SECTION = re.compile(r"^[A-Z][A-Za-z ]+:\s*$")
_ITEM = re.compile(r"^\*{0,2}(?P<name>\w+)(?:\s*\([^)]*\))?:\s*(?P<text>.*)$")


def summary(function: Callable[..., Any]) -> str:
    """Everything above the first section, as paragraphs."""
    lines: list[str] = []
    for line in (inspect.getdoc(function) or "").splitlines():
        if _SECTION.match(line):
            break
        lines.append(line)
    return "\n".join(lines).strip()


def arguments(function: Callable[..., Any]) -> dict[str, str]:
    """What the ``Args:`` section says, by argument, each on one line."""
    lines = (inspect.getdoc(function) or "").splitlines()
    starts = [index for index, line in enumerate(lines) if line.strip() in ("Args:", "Arguments:")]
    if not starts:
        return {}
    found: dict[str, list[str]] = {}
    current, indent = "", None
    for line in lines[starts[0] + 1 :]:
        if line.strip() and not line.startswith((" ", "\t")):
            break  # the section has ended
        depth = len(line) - len(line.lstrip())
        indent = depth if indent is None and line.strip() else indent
        item = _ITEM.match(line.strip()) if depth == indent else None
        if item:
            current = item["name"]
            found[current] = [item["text"]]
        elif current and line.strip():
            found[current].append(line.strip())
    return {name: " ".join(part for part in parts if part) for name, parts in found.items()}
