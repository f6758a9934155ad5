"""Finished pieces of long work on disk, so that what was interrupted goes on: safetensors and JSON only."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from unbraid.core.errors import UnbraidError


class Pieces:
    """A folder of finished pieces, each under a kind and a key that names everything it depends on.

    Files are written under a temporary name and moved; one that cannot be read counts as not there.

    Args:
        folder: where; None keeps nothing.
        context: what all pieces depend on (model, dtype, ...).

    Attributes:
        read_back: how many pieces were found finished.

    Raises:
        UnbraidError: the folder cannot be made.
    """

    def __init__(self, folder: Path | None, context: dict[str, Any] | None = None) -> None:
        self.folder, self.read_back = folder, 0
        self.context = json.dumps(context or {}, sort_keys=True, default=str)
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UnbraidError(
                    f"--keep {folder} cannot be used: {error.strerror}; give a folder of yours."
                ) from None

    def path(self, kind: str, key: Any, suffix: str) -> Path:
        """The file of a piece."""
        assert self.folder is not None
        text = json.dumps([self.context, kind, key], sort_keys=True, default=str)
        return self.folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}{suffix}"

    def load(self, kind: str, key: Any) -> Any:
        """Plain data saved under a key, or None."""
        if self.folder is None:
            return None
        try:
            found = json.loads(self.path(kind, key, ".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        self.read_back += 1
        return found

    def save(self, kind: str, key: Any, data: Any) -> None:
        """Writes plain data under a key."""
        if self.folder is not None:
            write(self.path(kind, key, ".json"), lambda path: path.write_text(json.dumps(data), encoding="utf-8"))

    def get(self, kind: str, key: Any, make: Callable[[], Any]) -> Any:
        """A finished piece of plain data, or a new one by `make`, which is kept."""
        found = self.load(kind, key)
        if found is None:
            found = make()
            self.save(kind, key, found)
        return found

    def load_arrays(self, kind: str, key: Any) -> dict[str, np.ndarray] | None:
        """Arrays saved under a key, or None."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        if self.folder is None:
            return None
        try:
            found = load_file(self.path(kind, key, ".safetensors"))
        except (OSError, ValueError, SafetensorError):
            return None
        self.read_back += 1
        return found

    def save_arrays(self, kind: str, key: Any, arrays: dict[str, np.ndarray]) -> None:
        """Writes arrays under a key, all of them or none."""
        from safetensors.numpy import save_file

        if self.folder is not None:
            whole = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
            write(self.path(kind, key, ".safetensors"), lambda path: save_file(whole, path))


def write(path: Path, put: Callable[[Path], Any]) -> None:
    """Lets `put` write a file beside `path`, and moves it there when it is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    put(temporary)
    os.replace(temporary, path)
