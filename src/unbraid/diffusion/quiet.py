"""Other libraries' bars and warnings, held back where they say nothing that a user could act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet(progress: bool = False) -> Iterator[None]:
    """Without warnings of diffusers and transformers and, unless asked for, without their bars; all is put back."""
    from diffusers.utils import logging as theirs
    from transformers.utils import logging as texts

    both: list[Any] = [theirs, texts]
    levels = [one.get_verbosity() for one in both]
    bars = [one for one in both if not progress and one.is_progress_bar_enabled()]
    for one in both:
        one.set_verbosity_error()
    for one in bars:
        one.disable_progress_bar()
    try:
        yield
    finally:
        for one, level in zip(both, levels, strict=True):
            one.set_verbosity(level)
        for one in bars:
            one.enable_progress_bar()
