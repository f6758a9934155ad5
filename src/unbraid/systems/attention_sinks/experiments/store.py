"""Finished pieces of a study on disk, so that an interrupted one goes on where it stopped: JSON only."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unbraid.core.errors import UnbraidError


class Pieces:
    """A folder of finished pieces, each under a key that names everything it depends on.

    Args:
        folder: where; None keeps nothing.
        context: what all pieces depend on.

    Raises:
        UnbraidError: the folder cannot be made.
    """

    def __init__(self, folder: Path | None, context: dict[str, Any]) -> None:
        self.folder, self.read_back = folder, 0
        self.context = json.dumps(context, sort_keys=True, default=str)
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UnbraidError(
                    f"--keep {folder} cannot be used: {error.strerror}; give a folder of yours."
                ) from None

    def path(self, kind: str, key: Any) -> Path:
        """The file of a piece."""
        assert self.folder is not None
        text = json.dumps([self.context, kind, key], sort_keys=True, default=str)
        return self.folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def get(self, kind: str, key: Any, make: Callable[[], Any]) -> Any:
        """A finished piece, or a new one by `make`, which is kept (plain data only)."""
        if self.folder is None:
            return make()
        path = self.path(kind, key)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = make()
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            temporary.write_text(json.dumps(found), encoding="utf-8")
            os.replace(temporary, path)
            return found
        self.read_back += 1
        return found
