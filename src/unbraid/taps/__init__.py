"""Ready taps: observers (what a head looks at) and edits (what happens when it does not)."""

from __future__ import annotations

from collections.abc import Callable

from unbraid.core.errors import UnbraidError
from unbraid.taps.edit import ablate, allow, bias, extra, patch, replace, scale, to_identity
from unbraid.taps.observe import (
    ArgMax,
    Distance,
    Entries,
    Entropy,
    Maps,
    Mass,
    Outputs,
    Received,
    Rows,
    TopK,
)
from unbraid.taps.observer import Observer
from unbraid.taps.perturb import perturb

__all__ = [
    "ArgMax", "Distance", "Entries", "Entropy", "Maps", "Mass", "Observer", "Outputs", "Received", "Rows", "TopK",
    "ablate", "allow", "bias", "by_name", "extra", "names", "patch", "perturb", "replace", "scale", "to_identity",
]  # fmt: skip

_NAMED: dict[str, Callable[[], Observer]] = {
    "received": Received,
    "entropy": Entropy,
    "argmax": ArgMax,
    "topk": lambda: TopK(5),
    "mass": lambda: Mass({"first": [0]}),
    "distance": Distance,
}


def names() -> list[str]:
    """The observers that need no arguments, for the command line."""
    return sorted(_NAMED)


def by_name(name: str) -> Observer:
    """An observer with its defaults: "mass" is the mass on the first key, "topk" keeps five keys.

    Raises:
        UnbraidError: no observer of this name.
    """
    if name not in _NAMED:
        raise UnbraidError(f"There is no tap {name!r}; choose from {', '.join(names())}.")
    return _NAMED[name]()
