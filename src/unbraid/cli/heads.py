"""``unbraid heads``: statistics of the attention heads of any model on any text."""

from __future__ import annotations

EXAMPLES = "Examples:  unbraid heads smollm2 --text notes.txt"


def heads_command() -> None:
    """Statistics of any model's heads on any text."""
