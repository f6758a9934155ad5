"""A small system with every kind of option, written to a folder that `UNBRAID_SYSTEMS_PATH` can name."""

from __future__ import annotations

import re
from pathlib import Path

SLUG = "dummy_steps"

INIT = '''"""Counts steps; exists to be found, made, run and saved by tests."""

from importlib import import_module

from unbraid.core.system import Card, ClaimSpec

CARD = Card(
    slug="dummy_steps",
    title="Counting Steps Is All You Need",
    arxiv="2401.00001",
    year=2024,
    field="theory",
    verbs=("see", "separate"),
    claims=(ClaimSpec("sum", "the steps add up", "Table 1", "6"),),
)
SYSTEM = "method:Counter"
RUN = "study:run"


def __getattr__(name: str) -> object:
    if name == "Counter":
        return import_module(".method", __name__).Counter
    raise AttributeError(name)
'''

METHOD = '''"""The method."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unbraid.core.system import System
from unbraid.systems.dummy_steps import CARD


class Counter(System):
    """Adds steps.

    Args:
        steps: how many.
        rate: of each.
        places: where.
        model: anything that can be called.
    """

    card = CARD

    def __init__(
        self, steps: int = 3, rate: float = 0.5, places: tuple[int, ...] = (1, 2), model: object = None
    ) -> None:
        self.steps = steps
        self.rate = rate
        self.places = places
        self.model = model

    def fit(self) -> Counter:
        """Learn the sum."""
        self.sum_ = np.arange(self.steps, dtype=np.float32) * self.rate
        self.where_ = {"file": Path("a/b"), "best": float("inf"), "pair": (1, [2.5, None])}
        return self
'''

STUDY = '''"""The study."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unbraid.core.errors import UnbraidError

if TYPE_CHECKING:
    from unbraid.core.result import Result


def run(
    steps: int = 3,
    rate: float = 0.5,
    mode: Literal["plain", "refuse", "crash", "wait", "processes"] = "plain",
    lengths: tuple[int, ...] = (4, 8),
    names: list[str] | None = None,
    pair: tuple[float, float] = (0.0, 1.0),
    fast: bool = False,
    file: Path | None = None,
    limit: int | Literal["auto"] = "auto",
    block: Literal[128, 256] = 128,
    seed: int = 0,
    progress: bool = True,
    out: Path | None = None,
) -> Result:
    """Count the steps [0, 1, ...] and report.

    Args:
        steps: how many steps to count,
            over more than one line.
        rate: of each step.
        mode: how to behave.
        lengths: where to count.
        names: of the steps.
        pair: two numbers.
        fast: count fast.
        file: to read.
        limit: stop there.
        block: rows at once.
        seed: of the randomness.
        progress: show it.
        out: folder for what is written on the way.

    Returns:
        The sum.
    """
    from unbraid.core.result import Claim, Result

    if mode == "refuse":
        raise UnbraidError("steps is -1; it must be positive.")
    if mode == "crash":
        raise RuntimeError("the floor\\ngave way")
    if mode == "wait":
        (out / "halfway.txt").write_text("half")
        print("waiting", flush=True)
        time.sleep(60)
    if mode == "processes":
        (out / f"rank{os.environ['RANK']}.txt").write_text(os.environ["WORLD_SIZE"])
    claim = Claim(
        name="sum", statement="the steps add up", source="Table 1", paper="6", measured=6.0, comparator=3.0, holds=True
    )
    given = {"steps": steps, "rate": rate, "mode": mode, "lengths": list(lengths), "names": names, "pair": list(pair)}
    given |= {"fast": fast, "file": str(file), "limit": limit, "block": block, "seed": seed, "progress": progress}
    steps_table = [{"step": 1, "size": rate}]
    return Result("dummy_steps", "Counting", params=given, claims=[claim], tables={"steps": steps_table})
'''

README = """# Counting Steps Is All You Need

Counts steps.

```python
import unbraid

counter = unbraid.create("dummy_steps", steps=4).fit()
assert counter.sum_.shape == (4,)
```
"""


def write_dummy(place: Path) -> Path:
    """Write the system into ``place`` and return its folder."""
    folder = place / SLUG
    folder.mkdir(parents=True)
    for name, text in {"__init__.py": INIT, "method.py": METHOD, "study.py": STUDY, "README.md": README}.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def code_blocks(page: str) -> list[tuple[str, str, str]]:
    """Fenced blocks of a Markdown page: (language, title, code)."""
    # a fence ends at the same number of backticks, so a page may show another page with its fences
    pattern = re.compile(r"^(`{3,})(\w*)(?: +title=\"([^\"]*)\")?[^\n]*\n(.*?)^\1\s*$", re.MULTILINE | re.DOTALL)
    return [(language, title, code) for _, language, title, code in pattern.findall(page)]
