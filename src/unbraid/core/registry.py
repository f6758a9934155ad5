"""Systems by name, found by looking into folders: `create`, `list_systems`, `describe`, `load_run`.

A system is a folder with an ``__init__.py`` in `unbraid.systems`, or in a folder named by the environment variable
``UNBRAID_SYSTEMS_PATH`` (several are separated as in ``PATH``). Its ``__init__.py`` holds `CARD` (a `Card`), and
``SYSTEM`` and ``RUN``, two strings ``"module:name"`` that say where its class and its study are; a module without a
dot is one of the folder's own. Nothing else is registered anywhere. Looking imports no torch.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import warnings
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from unbraid.core.errors import UnbraidError
from unbraid.core.system import VERBS, Card, System

if TYPE_CHECKING:
    from unbraid.core.result import Result

PATH_VARIABLE = "UNBRAID_SYSTEMS_PATH"
_PACKAGE = "unbraid.systems"
_own_folders: list[str] | None = None


def create(slug: str, **params: Any) -> System:
    """Make a system by name.

    Args:
        slug: the system's name, as `list_systems` shows it.
        params: its constructor's arguments; they are stored unchanged.

    Raises:
        UnbraidError: there is no such system, an optional dependency is missing, or an argument is unknown or missing.
    """
    maker = load_class(slug)
    known = maker._names()
    unknown = sorted(set(params) - set(known))
    if unknown:
        raise UnbraidError(f"{slug} has no argument {unknown[0]!r}; it has {', '.join(known) or 'none'}.")
    if known:
        arguments = inspect.signature(maker).parameters.values()
        missing = [p.name for p in arguments if p.default is p.empty and p.name not in params]
        if missing:
            raise UnbraidError(f"{slug} needs the argument {missing[0]!r}: create({slug!r}, {missing[0]}=...).")
    return maker(**params)


def list_systems(pattern: str = "*", *, field: str | None = None, verb: str | None = None) -> list[str]:
    """Names of the systems, sorted.

    Args:
        pattern: shell-style, as in ``"*sink*"``.
        field: only those of this field.
        verb: only those with this verb: see, steer, swap or separate.

    Raises:
        UnbraidError: no system has this field, or there is no such verb.
    """
    if verb is not None and verb not in VERBS:
        raise UnbraidError(f"there is no verb {verb!r}; the verbs are {', '.join(VERBS)}.")
    cards = _cards()
    fields = sorted({card.field for card in cards.values()})
    if field is not None and cards and field not in fields:
        raise UnbraidError(f"no system has the field {field!r}; the fields are {', '.join(fields)}.")
    return [
        slug
        for slug, card in cards.items()
        if fnmatchcase(slug, pattern) and field in (None, card.field) and (verb is None or verb in card.verbs)
    ]


def describe(slug: str) -> Card:
    """The card of a system.

    Raises:
        UnbraidError: there is no such system, or its ``__init__.py`` is not as it should be.
    """
    return _card(slug)


def load_class(slug: str) -> type[System]:
    """The class of a system, imported.

    Raises:
        UnbraidError: there is no such system, it has no class, or an optional dependency is missing.
    """
    found = _load(slug, "SYSTEM")
    if not (isinstance(found, type) and issubclass(found, System)):
        raise UnbraidError(f"{slug}: SYSTEM names {found!r}, which is not a subclass of unbraid.core.system.System.")
    return found


def load_run(slug: str) -> Callable[..., Result]:
    """The study of a system: the function behind ``unbraid run SLUG``.

    Raises:
        UnbraidError: there is no such system, it has no study, or an optional dependency is missing.
    """
    found = _load(slug, "RUN")
    if not callable(found):
        raise UnbraidError(f"{slug}: RUN names {found!r}, which is not a function.")
    return found


def folder(slug: str) -> Path:
    """The folder of a system."""
    known = _folders()
    if slug not in known:
        raise UnbraidError(_unknown(slug, known))
    return known[slug]


def target(slug: str, attribute: str) -> str:
    """The dotted path that ``SYSTEM`` or ``RUN`` of a system names, found without importing it.

    Raises:
        UnbraidError: the system does not set it as it must.
    """
    _card(slug)
    text = vars(_module(slug)).get(attribute)
    if not isinstance(text, str) or text.count(":") != 1:
        raise UnbraidError(f'{slug} offers none: {folder(slug)}/__init__.py must set {attribute} = "module:name".')
    name, _, item = text.partition(":")
    package = f"{_PACKAGE}.{slug}"
    absolute = importlib.util.resolve_name(name, package) if name.startswith(".") else name
    return f"{absolute if '.' in absolute else f'{package}.{absolute}'}.{item}"


def problems() -> dict[str, str]:
    """Folders that look like systems but cannot be read, with the reason."""
    found = {}
    for slug in _folders():
        try:
            _card(slug)
        except UnbraidError as error:
            found[slug] = str(error)
    return found


def missing_extras(card: Card) -> list[str]:
    """The optional dependencies that a system needs and that are not installed, as names of extras."""
    return [extra for extra in card.extras if missing_packages(extra)]


def missing_packages(extra: str) -> list[str]:
    """The packages of an extra that are not installed or too old, as requirements such as ``"peft>=0.17"``."""
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement

    try:
        declared = [Requirement(line) for line in requires("unbraid") or []]
    except PackageNotFoundError:  # run from a source tree that was never installed: nothing is declared
        return []
    missing = []
    for need in declared:
        if need.marker is None or not need.marker.evaluate({"extra": extra}) or need.marker.evaluate({"extra": ""}):
            continue
        try:
            if need.specifier.contains(version(need.name), prereleases=True):
                continue
        except PackageNotFoundError:
            pass
        missing.append(f"{need.name}{need.specifier}")
    return missing


def _search_path() -> list[str]:
    """The folders that hold systems, ours first; they become the search path of the package `unbraid.systems`."""
    global _own_folders
    package = importlib.import_module(_PACKAGE)
    if _own_folders is None:
        _own_folders = list(package.__path__)
    extra = [entry for entry in os.environ.get(PATH_VARIABLE, "").split(os.pathsep) if entry]
    package.__path__ = [*_own_folders, *(str(Path(entry).absolute()) for entry in extra)]
    return list(package.__path__)


def _folders() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for place in map(Path, _search_path()):
        if not place.is_dir():
            warnings.warn(f"{PATH_VARIABLE} names {place}, which is not a folder.", stacklevel=2)
            continue
        for entry in place.iterdir():
            if entry.name.isidentifier() and entry.name[0] != "_" and (entry / "__init__.py").is_file():
                found.setdefault(entry.name, entry)
    return dict(sorted(found.items()))


def _cards() -> dict[str, Card]:
    cards = {}
    for slug in _folders():
        try:
            cards[slug] = _card(slug)
        except UnbraidError as error:  # one broken folder must not hide the others
            warnings.warn(str(error), stacklevel=3)
    return cards


def _module(slug: str) -> ModuleType:
    known = _folders()
    if slug not in known:
        raise UnbraidError(_unknown(slug, known))
    try:
        module = importlib.import_module(f"{_PACKAGE}.{slug}")
        if Path(module.__file__ or "").parent != known[slug]:  # the search path has changed since it was imported
            _forget(slug)
            module = importlib.import_module(f"{_PACKAGE}.{slug}")
    except Exception as error:
        raise UnbraidError(f"the system in {known[slug]} cannot be read: {type(error).__name__}: {error}") from error
    return module


def _forget(slug: str) -> None:
    import sys

    name = f"{_PACKAGE}.{slug}"
    for loaded in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
        del sys.modules[loaded]
    importlib.invalidate_caches()


def _card(slug: str) -> Card:
    card = vars(_module(slug)).get("CARD")
    if not isinstance(card, Card):
        raise UnbraidError(f"the system in {folder(slug)} has no CARD; its __init__.py must set CARD = Card(...).")
    if card.slug != slug:
        raise UnbraidError(
            f"the system in {folder(slug)} calls itself {card.slug!r}; the slug must be the folder's name."
        )
    return card


def _load(slug: str, attribute: str) -> Any:
    card, path = _card(slug), target(slug, attribute)
    lacking = missing_extras(card)
    if lacking:
        raise UnbraidError(_needs(slug, lacking))
    name, _, item = path.rpartition(".")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "unbraid" and card.extras:
            raise UnbraidError(_needs(slug, list(card.extras))) from error
        raise
    if item not in vars(module):
        raise UnbraidError(f"{slug}: {attribute} names {path}, but {module.__name__} has no {item!r}.")
    return vars(module)[item]


def _needs(slug: str, extras: list[str]) -> str:
    return f'{slug} needs optional packages that are not installed: pip install "unbraid[{",".join(extras)}]"'


def _unknown(slug: str, known: dict[str, Path]) -> str:
    close = difflib.get_close_matches(slug, known, n=3, cutoff=0.5) or [name for name in known if slug in name][:3]
    hint = f"did you mean {' or '.join(close)}?" if close else "`unbraid list` shows all."
    return f"there is no system {slug!r}; {hint}"
