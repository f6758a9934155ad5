"""How numbers, cells and claims read: the same on the page and on the console."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from unbraid.core.plain import Scalar

if TYPE_CHECKING:
    from unbraid.core.claim import Claim

SYMBOLS = {True: "✓", False: "✗", None: "○"}
_REPLACED = {"\n": "↵", "\t": "→"}


def is_numeric(cells: Sequence[Scalar]) -> bool:
    """Whether a column holds numbers (and gaps) only."""
    there = [cell for cell in cells if cell is not None]
    return bool(there) and all(isinstance(cell, int | float) and not isinstance(cell, bool) for cell in there)


def measured(claim: Claim) -> str:
    """The measured value with its interval and count, as in "0.41 [0.35, 0.47], n = 5"."""
    if claim.measured is None:
        return "not measured"
    parts = show(claim.measured)
    if claim.interval is not None:
        parts += f" [{show(claim.interval[0])}, {show(claim.interval[1])}]"
    return parts if claim.n is None else f"{parts}, n = {claim.n:,}"


def show(value: Scalar) -> str:
    """A cell for people: four significant digits, thousands apart, words for truth values, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if value.is_integer() and 1e4 <= abs(value) < 1e15:
        return f"{value:,.0f}"
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e6:
        text = f"{value:,.{max(0, 3 - _magnitude(value))}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.3e}"


def _magnitude(value: float) -> int:
    return int(f"{abs(value):e}".partition("e")[2])


def clean(text: str) -> str:
    """Text without control characters: a token must not be able to move the cursor or change the terminal's colours."""
    return "".join(c if c.isprintable() else _REPLACED.get(c, " " if c.isspace() else "�") for c in text)
