"""Finished trials on disk, so that an interrupted study goes on where it stopped: safetensors and JSON only."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from unbraid.systems.retrieval_heads.detect import Outcome
from unbraid.systems.retrieval_heads.trial import Trial

ARRAYS = ("flags", "one_pass", "mass", "soft", "sink", "question_mass", "blank_mass")


class TrialStore:
    """A folder of outcomes and of other finished pieces, each under a key that names everything it depends on.

    Args:
        folder: where; None keeps nothing.
        context: what all pieces depend on (model, template, budget, ...).
    """

    def __init__(self, folder: Path | None, context: dict[str, Any]) -> None:
        self.folder, self.read_back = folder, 0
        self.context = json.dumps(context, sort_keys=True, default=str)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def _path(self, kind: str, key: Any, suffix: str) -> Path:
        assert self.folder is not None
        text = json.dumps([self.context, kind, key], sort_keys=True, default=str)
        return self.folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}{suffix}"

    def load_outcome(self, trial: Trial) -> Outcome | None:
        """The outcome of exactly this prompt, if it was finished."""
        if self.folder is None:
            return None
        path = self._path("trial", asdict(trial), ".safetensors")
        try:
            arrays = load_file(path)
            meta = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        except (OSError, ValueError, SafetensorError):
            return None
        self.read_back += 1
        tables: dict[str, Any] = {name: arrays[name] for name in ARRAYS}
        return Outcome(trial, meta["answer"], meta["recall"], steps=meta["steps"], **tables)

    def save_outcome(self, outcome: Outcome) -> None:
        """Writes an outcome under temporary names and moves it, the arrays last."""
        if self.folder is None:
            return
        path = self._path("trial", asdict(outcome.trial), ".safetensors")
        meta = {"answer": outcome.answer, "recall": outcome.recall, "steps": outcome.steps}
        _move(path.with_suffix(".json"), json.dumps(meta).encode())
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        save_file({name: np.ascontiguousarray(vars(outcome)[name]) for name in ARRAYS}, temporary)
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
        if self.folder is not None:
            _move(self._path(kind, key, ".json"), json.dumps(data).encode())


def _move(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
