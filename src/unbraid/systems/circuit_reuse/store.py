"""Finished batches on disk, so that an interrupted study goes on where it stopped: safetensors only."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file


class Store:
    """A folder of arrays, each under a key that names everything it depends on.

    Args:
        folder: where; None keeps nothing.
        context: what all arrays depend on (model, dtype).
    """

    def __init__(self, folder: Path | None, context: dict[str, Any]) -> None:
        self.folder, self.read_back = folder, 0
        self.context = json.dumps(context, sort_keys=True, default=str)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def _path(self, key: Any) -> Path:
        assert self.folder is not None
        text = json.dumps([self.context, key], sort_keys=True, default=str)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"

    def load(self, key: Any) -> dict[str, np.ndarray] | None:
        """Arrays saved under a key, or None."""
        if self.folder is None:
            return None
        try:
            found = load_file(self._path(key))
        except (OSError, ValueError, SafetensorError):
            return None
        self.read_back += 1
        return found

    def save(self, key: Any, arrays: dict[str, np.ndarray]) -> None:
        """Writes arrays under a temporary name and moves them."""
        if self.folder is None:
            return
        path = self._path(key)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, temporary)
        os.replace(temporary, path)
