"""Attention that needs no sink, or has one built in: drop-in replacements that train (survey sections 5.1 to 5.3)."""

from importlib import import_module

_HOME = {
    "VARIANTS": "catalogue",
    "make_variant": "catalogue",
    "describe_variants": "catalogue",
    "convert": "convert",
    "load_converted": "convert",
    "recording": "convert",
    "Variant": "base",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
