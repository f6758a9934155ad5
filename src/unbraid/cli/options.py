"""Command line options out of a function's signature: types, defaults and the help of its docstring.

Offered as options are int, float, str, bool, `Path`, ``Literal``, any of these or None, ``list``, ``tuple``,
``set`` and ``Sequence`` of them (repeat the option, or separate with commas), and unions of them (the first that fits).
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from unbraid.cli.docstrings import arguments
from unbraid.core.errors import UnbraidError

_NAMES = {int: "int", float: "float", str: "text", Path: "path", bool: "true|false"}
_LISTS = (list, tuple, set, frozenset, Sequence, Iterable)
PANEL = "Options of this study"


@dataclass(frozen=True)
class Option:
    """One option: its parameter for typer, and how a given value becomes the function's argument."""

    name: str
    parameter: inspect.Parameter
    convert: Callable[[Any], Any]


def parameter_types(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of a function's parameters, resolved; those that cannot be resolved are left out.

    Unlike ``typing.get_type_hints`` this does not fail when one name (say, the result's) exists only for type checkers.
    """
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        annotation = parameter.annotation
        if isinstance(annotation, str):
            try:
                annotation = eval(annotation, inspect.unwrap(function).__globals__)
            except NameError:
                continue
        if annotation is not parameter.empty:
            found[name] = annotation
    return found


def options(function: Callable[..., Any], skip: Iterable[str] = ()) -> list[Option]:
    """One option for each parameter of ``function`` that can be given as text.

    Raises:
        UnbraidError: a parameter without a default cannot be given as text.
    """
    types_, help_ = parameter_types(function), arguments(function)
    made = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name in skip or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        form = _form(types_.get(name))
        if form is None:
            if parameter.default is parameter.empty:
                raise UnbraidError(f"{function.__module__}: {name} has no default and cannot be given as text.")
            continue
        made.append(_option(name, parameter, form, help_.get(name, "")))
    return made


@dataclass(frozen=True)
class _Form:
    annotation: Any
    convert: Callable[[Any], Any]
    metavar: str | None = None


def _option(name: str, parameter: inspect.Parameter, form: _Form, help_: str) -> Option:
    flag = "--" + name.replace("_", "-")
    required = parameter.default is parameter.empty
    # a list is offered as its text, so that help can show it; given back untouched, it is the function's own default
    default = None if required else parameter.default if form.metavar is None else _as_text(parameter.default, form)
    annotation = form.annotation
    if not required and default is None:
        annotation = Union[annotation, None]  # noqa: UP007 - the member is a value here, `|` fails for some
    info = typer.Option(
        f"{flag}/--no-{flag[2:]}" if form.annotation is bool else flag,
        help=help_,
        metavar=form.metavar,
        show_default=default is not None,
        rich_help_panel=PANEL,
    )
    made = inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else default,
        annotation=Annotated[annotation, info],
    )

    def convert(value: Any) -> Any:
        if not required and value == default:
            return parameter.default
        try:
            return form.convert(value)
        except ValueError as error:
            raise UnbraidError(f"{flag}: {error}") from None

    return Option(name, made, convert)


def _as_text(default: Any, form: _Form) -> Any:
    if default is None:
        return None
    if form.annotation != list[str]:
        return str(default)
    return [",".join(map(str, default))] if isinstance(default, list | tuple | set | frozenset) else [str(default)]


def _form(annotation: Any) -> _Form | None:
    """How to offer a type; None if it cannot be given as text."""
    members = [m for m in _members(annotation) if m is not type(None)]
    if len(members) == 1:
        return _single(members[0])
    usable = [m for m in members if m in _NAMES or _is_choice(m)]
    if not usable:
        lists = [form for m in members if (form := _single(m)) is not None]
        return lists[0] if lists else None
    if len(usable) == 1:
        return _single(usable[0])
    return _Form(str, lambda text: _first_fit(text, usable), f"<{'|'.join(map(_describe, usable))}>")


def _members(annotation: Any) -> list[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [inner for member in get_args(annotation) for inner in _members(member)]
    return [annotation]


def _single(kind: Any) -> _Form | None:
    if kind in _NAMES or (_is_choice(kind) and all(isinstance(value, str) for value in get_args(kind))):
        return _Form(kind, lambda value: value)
    if _is_choice(kind):
        return _Form(str, lambda text: _first_fit(text, [kind]), f"<{_describe(kind)}>")
    origin = get_origin(kind) or kind
    if origin not in _LISTS:
        return None
    inner = [i for arg in get_args(kind) or (str,) for i in _members(arg) if i is not Ellipsis]
    unique = list(dict.fromkeys(inner))
    if not all(i in _NAMES or _is_choice(i) for i in unique):
        return None
    length = len(inner) if origin is tuple and Ellipsis not in get_args(kind) else None
    container = origin if origin in (tuple, set, frozenset) else list

    def convert(words: list[str]) -> Any:
        items = [_first_fit(part.strip(), unique) for word in words for part in word.split(",") if part.strip()]
        if length is not None and len(items) != length:
            raise ValueError(f"{len(items)} values were given; it takes {length}.")
        return container(items)

    return _Form(list[str], convert, f"<{'|'.join(map(_describe, unique))},…>")


def _is_choice(kind: Any) -> bool:
    return get_origin(kind) is Literal


def _describe(kind: Any) -> str:
    return "|".join(map(str, get_args(kind))) if _is_choice(kind) else _NAMES[kind]


def _first_fit(text: str, kinds: list[Any]) -> Any:
    """``text`` as the first of ``kinds`` that it fits: fixed texts before numbers before paths before any text."""
    for kind in sorted(kinds, key=lambda k: 0 if _is_choice(k) else [int, float, bool, Path, str].index(k) + 1):
        if _is_choice(kind):
            named = {str(value): value for value in get_args(kind)}
            if text in named:
                return named[text]
        elif kind is bool:
            if text.lower() in ("true", "false"):
                return text.lower() == "true"
        else:
            try:
                return kind(text)
            except ValueError:
                continue
    raise ValueError(f"{text!r} is not accepted; give {' or '.join(map(_describe, kinds))}.")
