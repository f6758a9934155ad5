"""Worlds whose true factors are known: look-alikes of the data sets of the field, drawn when they are needed.

`make` gives a world by name, `names` lists them; a `World` draws the image of any factors and reads the factors back
off any image. `original` reads the files of the data sets themselves.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.data.worlds.oracle import Reading
from unbraid.data.worlds.originals import original
from unbraid.data.worlds.scene import Factor, Scene
from unbraid.data.worlds.world import World

__all__ = ["Factor", "Reading", "Scene", "World", "describe", "make", "names", "original"]

LEAST, MOST = 8, 1024
DRAWS = 10_000
_HOMES = {
    "sprites": "sprites:Sprites",
    "shapes3d": "room:Room",
    "cars3d": "cars:Cars",
    "mpi3d": "arm:Arm",
    "xy": "flat:Squares",
    "discs": "flat:Discs",
    "digits": "digits:Digits",
}


def names() -> list[str]:
    """The worlds."""
    return list(_HOMES)


def describe(name: str) -> str:
    """One line about a world.

    Raises:
        UnbraidError: there is no such world.
    """
    if name == "digits":
        return "scikit-learn's 1,797 handwritten digits: real images, one factor"
    return str(_home(name).title)


def make(
    name: str,
    size: int | None = None,
    seed: int = 0,
    *,
    sizes: Mapping[str, int] | None = None,
    constants: bool = False,
    n: int | None = None,
    **options: Any,
) -> World:
    """A world by name.

    Args:
        name: one of `names`.
        size: pixels of a side; None is the original's, or the smallest that makes sense: 64, but 16 for discs and 8 for
            digits.
        seed: of what is drawn at random: the rows of continuous worlds, digits, random variants of sprites. Everything
            else is the same whatever the seed.
        sizes: factor -> how many values it has, where that should differ from the original; they span the same range.
        constants: keep factors with one value in the table.
        n: rows of a continuous world (10,000 unless given); no other takes it.
        options: of that world: sprites take ``turn``, ``binary`` and ``variant``.

    Raises:
        UnbraidError: there is no such world, factor or option, or a number is beyond what is possible.

    Example:
        >>> world = make("sprites", size=16, sizes={"orientation": 1, "posX": 6, "posY": 6})
        >>> world.names, len(world), world.images([[2, 5, 3, 3]]).shape
        (('shape', 'scale', 'posX', 'posY'), 648, (1, 1, 16, 16))
        >>> world.oracle(world.images([[2, 5, 3, 3]])).tolist()
        [[2, 5, 3, 3]]
    """
    home = _home(name)
    taken = inspect.signature(home).parameters
    given: dict[str, Any] = dict(options)
    wrong = [key for key in given if key not in taken]
    if wrong or (sizes is not None and "sizes" not in taken):
        can = [key for key in taken if key not in ("size", "seed")]
        raise UnbraidError(f"{name} has no option {(wrong or ['sizes'])[0]!r}; it has {', '.join(can) or 'none'}.")
    if size is not None:
        whole = isinstance(size, int | np.integer) and not isinstance(size, bool)
        if not whole or not LEAST <= size <= MOST:
            raise UnbraidError(f"size is {size!r}; give the pixels of a side, {LEAST} to {MOST}.")
        given["size"] = int(size)
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise UnbraidError(f"seed is {seed!r}; it must be a whole number from 0.")
    given |= {"seed": int(seed)} if "seed" in taken else {}
    given |= {"sizes": sizes} if sizes is not None else {}
    if issubclass(home, World):
        made = home(**given)
    else:
        scene = home(**given)
        rows = None
        if any(f.continuous for f in scene.factors):
            count = DRAWS if n is None else n
            if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
                raise UnbraidError(f"n is {n!r}; give how many images of {name} there should be, 1 or more.")
            return World(scene, name, np.random.default_rng(seed).random((count, len(scene.factors))))
        made = World(scene, name, rows, constants)
    if n is not None:
        raise UnbraidError(f"{name} has {len(made):,} images; n is for continuous worlds. Draw some: sample(n, seed).")
    return made


def _home(name: str) -> Any:
    if name not in _HOMES:
        raise UnbraidError(f"there is no world {name!r}; there are {', '.join(_HOMES)}.")
    module, _, attribute = _HOMES[name].partition(":")
    return vars(import_module(f"{__name__}.{module}"))[attribute]
