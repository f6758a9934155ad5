"""Finished runs and pieces on disk, so that an interrupted study goes on: safetensors and JSON only."""

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
    """A folder of finished pieces, each under a key that names everything it depends on.

    Args:
        folder: where; None keeps nothing.
        context: what all pieces depend on (model, dtype, context, ...).
    """

    def __init__(self, folder: Path | None, context: dict[str, Any] | None = None) -> None:
        self.folder, self.read_back = folder, 0
        self.context = json.dumps(context or {}, sort_keys=True, default=str)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def _path(self, kind: str, key: Any, suffix: str) -> Path:
        assert self.folder is not None
        text = json.dumps([self.context, kind, key], sort_keys=True, default=str)
        return self.folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}{suffix}"

    def load_runs(self, key: Any) -> tuple[np.ndarray, np.ndarray, float] | None:
        """Scores, anchor and seconds of runs made so far, or None."""
        if self.folder is None:
            return None
        try:
            arrays = load_file(self._path("runs", key, ".safetensors"))
            found = arrays["scores"], arrays["anchor"], float(arrays["seconds"][0])
        except (OSError, KeyError, ValueError, SafetensorError):
            return None
        self.read_back += len(found[0])
        return found

    def save_runs(self, key: Any, scores: np.ndarray, anchor: np.ndarray, seconds: float) -> None:
        """Writes runs under a temporary name and moves them."""
        if self.folder is None:
            return
        path = self._path("runs", key, ".safetensors")
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        arrays = {"scores": np.ascontiguousarray(scores), "anchor": np.ascontiguousarray(anchor),
                  "seconds": np.array([seconds])}  # fmt: skip
        save_file(arrays, temporary)
        os.replace(temporary, path)

    def load(self, kind: str, key: Any) -> Any:
        """Plain data saved under a key, or None."""
        if self.folder is None:
            return None
        try:
            found = json.loads(self._path(kind, key, ".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        self.read_back += 1
        return found

    def save(self, kind: str, key: Any, data: Any) -> None:
        """Writes plain data under a key."""
        if self.folder is None:
            return
        path = self._path(kind, key, ".json")
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_bytes(json.dumps(data).encode())
        os.replace(temporary, path)
