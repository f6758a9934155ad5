"""Which sessions are open, whose business a module is, and the reference-counted replacement of attributes."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from torch import nn

if TYPE_CHECKING:
    from unbraid.core.attach import Session

LOCK = threading.RLock()
_sessions: tuple[Session, ...] = ()
_thread = threading.local()
_patches: dict[tuple[int, str], list[Any]] = {}  # (owner, name) -> [count, owner, original, was its own attribute]
_signatures: WeakKeyDictionary[Any, inspect.Signature] = WeakKeyDictionary()  # of forwards, by function
CALL_FRAMES = frozenset({"_call_impl", "_wrapped_call_impl"})
CROSS_ARGUMENTS = ("key_value_states", "encoder_hidden_states", "encoder_hidden_states_image", "context")


def opened(session: Session) -> None:
    """Adds a session; later ones come after earlier ones."""
    global _sessions
    with LOCK:
        _sessions = (*_sessions, session)


def closed(session: Session) -> None:
    """Removes a session."""
    global _sessions
    with LOCK:
        _sessions = tuple(s for s in _sessions if s is not session)


def anyone() -> bool:
    """Whether any session is open in any thread."""
    return bool(_sessions)


def views(module: nn.Module, seam: str) -> list[tuple[Session, str]]:
    """Sessions (outermost first) that this call of a module concerns, each with its own name for the module.

    A thread that has attached to the model itself sees its own taps only; a thread that has not (a text streamer, an
    autograd worker that recomputes a checkpoint) sees all of them, as with PyTorch's hooks.
    """
    found = [(s, s.names[id(module)]) for s in _sessions if id(module) in s.names and seam in s.seams]
    me = threading.get_ident()
    mine = [pair for pair in found if pair[0].thread == me]
    return mine or found


def known(module: object, seam: str) -> bool:
    """Whether any open session knows this module at this seam."""
    return any(id(module) in s.names and seam in s.seams for s in _sessions)


@contextmanager
def inside() -> Iterator[None]:
    """While the engine or a model's kernel runs: every seam lets calls of this thread pass."""
    depth = _thread.__dict__.get("depth", 0)
    _thread.depth = depth + 1
    try:
        yield
    finally:
        _thread.depth = depth


def busy() -> bool:
    """Whether this thread is inside an attention that a seam already handles."""
    return bool(_thread.__dict__.get("depth", 0))


def enclosing(seam: str) -> tuple[nn.Module, FrameType] | None:
    """The innermost module being called that an open session knows, and the frame of that call.

    Read from the frames of `Module.__call__`, so a model needs no hooks and nothing stays behind.
    """
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_name in CALL_FRAMES:
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module) and known(module, seam):
                return module, frame
        frame = frame.f_back
    return None


def outer_call(inner: FrameType) -> tuple[nn.Module, FrameType] | None:
    """The module around the call of a module that this frame belongs to, and the frame of its call."""
    here, frame = inner.f_locals.get("self"), inner.f_back
    while frame is not None:
        if frame.f_code.co_name in CALL_FRAMES:
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module) and module is not here:
                return module, frame
        frame = frame.f_back
    return None


def call_arguments(module: nn.Module, frame: FrameType | None = None) -> dict[str, Any]:
    """Arguments of the running call of a module by name; {} where its frame cannot be found."""
    if frame is None:
        frame = sys._getframe(1)
        while frame is not None and not (frame.f_code.co_name in CALL_FRAMES and frame.f_locals.get("self") is module):
            frame = frame.f_back
    if frame is None:
        return {}
    local = frame.f_locals
    try:
        signature = signature_of(module)
        bound = signature.bind_partial(*local.get("args", ()), **local.get("kwargs", {}))
    except (TypeError, ValueError):
        return dict(local.get("kwargs", {}))
    found = dict(bound.arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            found |= found.pop(name, {})
    return found


def signature_of(module: nn.Module) -> inspect.Signature:
    """Of a module's forward; read once per class, as it takes longer than a small attention."""
    if "forward" in vars(module):
        return inspect.signature(module.forward)
    function = type(module).forward
    found = _signatures.get(function)
    if found is None:
        found = _signatures[function] = inspect.signature(module.forward)
    return found


def replace_attribute(owner: Any, name: str, new: Any) -> None:
    """Replaces an attribute until `restore_attribute` was called as often; nested sessions share one replacement."""
    with LOCK:
        entry = _patches.get((id(owner), name))
        if entry is not None:
            entry[0] += 1
            return
        own = name in vars(owner)
        _patches[id(owner), name] = [1, owner, vars(owner)[name] if own else None, own]
        setattr(owner, name, new)


def restore_attribute(owner: Any, name: str) -> None:
    """Undoes one `replace_attribute`; the last one puts the original back."""
    with LOCK:
        entry = _patches[id(owner), name]
        entry[0] -= 1
        if entry[0]:
            return
        del _patches[id(owner), name]
        if entry[3]:
            setattr(owner, name, entry[2])
        else:
            delattr(owner, name)


def left_behind() -> list[str]:
    """Names of attributes still replaced: empty when no session is open (tests assert it)."""
    return [f"{entry[1]!r}.{key[1]}" for key, entry in _patches.items()]
