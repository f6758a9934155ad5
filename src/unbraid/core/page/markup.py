"""HTML as text that is escaped unless it is known to be markup: no caller can forget to escape."""

from __future__ import annotations

import html
import re
from typing import Any


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_VOID = {"meta", "img", "br", "rect", "line", "path", "circle", "use"}


def escape(value: str) -> Markup:
    """HTML of a text: special characters, quotes, and what UTF-8 or HTML cannot hold (half characters, controls)."""
    sound = value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")
    kept = sound if sound.isprintable() else _CONTROLS.sub("�", sound)
    return Markup(html.escape(kept, quote=True))


def join(parts: Any, between: str = "") -> Markup:
    """One markup of several pieces, each escaped unless it is markup."""
    return Markup(between.join(p if isinstance(p, Markup) else escape(str(p)) for p in parts if p is not None))


def el(name: str, *children: Any, **attributes: Any) -> Markup:
    """An element; ``cls=`` is its class, ``_`` becomes ``-``, None and False leave an attribute out."""
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        label = {"cls": "class"}.get(key, key.strip("_").replace("_", "-"))
        words.append(label if value is True else f'{label}="{escape(str(value))}"')
    opening = " ".join(words)
    if name in _VOID:
        return Markup(f"<{opening}/>")
    return Markup(f"<{opening}>{join(children)}</{name}>")
