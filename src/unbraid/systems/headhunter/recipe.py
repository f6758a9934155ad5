"""A set of heads with all that is needed to use it again elsewhere, as JSON: `Recipe`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unbraid.core.encoding import write_json
from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadSet

KIND = "HeadRecipe"


@dataclass(frozen=True)
class Recipe:
    """Heads, how strongly they are damaged, and where they come from.

    Args:
        heads: pairs (site, head), in the order of choice.
        strength: u.
        weight: w.
        kind: of damage.
        scope: of joint attention.
        objective: what they were searched for.
        model: class and fingerprint of the denoiser, name of the pipeline.
        trace: one row a round of the search.
        measured: name -> what was measured with them.
    """

    heads: tuple[tuple[str, int], ...]
    strength: float = 0.5
    weight: float = 3.0
    kind: str = "identity"
    scope: str = "joint"
    objective: str = ""
    model: Mapping[str, str] = field(default_factory=dict)
    trace: tuple[Mapping[str, Any], ...] = ()
    measured: Mapping[str, float] = field(default_factory=dict)

    @property
    def head_set(self) -> HeadSet:
        """The heads as a set."""
        return HeadSet(self.heads)

    def guide(self, pipe: Any, **changes: Any) -> Any:
        """`guide` with these heads; `changes` replace strength, weight, kind, scope or add what `guide` takes.

        Raises:
            UnbraidError: the model does not have these heads.
        """
        from unbraid.systems.headhunter.guiding import guide

        given = {"strength": self.strength, "weight": self.weight, "kind": self.kind, "scope": self.scope, **changes}
        return guide(pipe, self.head_set, **given)

    def save(self, path: str | Path) -> Path:
        """Writes JSON, under a temporary name first, and returns the path."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(target, {"format": KIND, "version": 1, **asdict(self)})
        return target

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Reads what `save` wrote, or what `HeadSet.save` wrote.

        Raises:
            UnbraidError: the file is neither.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise UnbraidError(f"{path} cannot be read as a set of heads: {error}.") from None
        if isinstance(data, dict) and data.get("kind") == "HeadSet":
            return cls(tuple((str(s), int(h)) for s, h in data["heads"]))
        if not isinstance(data, dict) or data.get("format") != KIND or data.get("version") != 1:
            raise UnbraidError(f"{path} holds no set of heads; give a file that Recipe.save or HeadSet.save wrote.")
        known = {k: v for k, v in data.items() if k in cls.__dataclass_fields__}
        return cls(
            **{**known, "heads": tuple((str(s), int(h)) for s, h in data["heads"]), "trace": tuple(data["trace"])}
        )
