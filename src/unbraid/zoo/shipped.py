"""Models that lie in the package itself: nothing is fetched, nothing is cached. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HOME = Path(__file__).with_name("weights")
MANIFEST = "unbraid.json"
LICENCE = "Apache-2.0"  # of the project, which trained them


@dataclass(frozen=True)
class Shipped:
    """One folder of the package with a model.

    Attributes:
        name: of the folder.
        kind: "text-to-image" (a diffusers pipeline) or "image-text" (a CLIP model).
        licence: of the weights.
        precision: of the files.
        disk: their bytes.
        path: the folder.
    """

    name: str
    kind: str
    licence: str
    precision: str
    disk: int
    path: Path


@cache
def shipped() -> dict[str, Shipped]:
    """Every model of the package by name."""
    return {path.parent.name: _read(path) for path in sorted(HOME.glob(f"*/{MANIFEST}"))}


def _read(path: Path) -> Shipped:
    facts = json.loads(path.read_text(encoding="utf-8"))
    disk = sum(file["size"] for file in facts["files"].values())
    return Shipped(facts["name"], facts["kind"], facts["licence"], facts["precision"], disk, path.parent)
