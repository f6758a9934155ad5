"""Pictures of many sets of heads at once, scored and kept: what a search asks for, and what a result reports."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadSet
from unbraid.core.pieces import Pieces
from unbraid.core.progress import Tick
from unbraid.diffusion import Parts, paint
from unbraid.systems.headhunter.guiding import denoiser_of, guide
from unbraid.systems.headhunter.objectives import Score, scored

Painter = Callable[[Sequence[HeadSet], Sequence[str], Sequence[int]], np.ndarray]


def fingerprint(pipe: Any) -> str:
    """A short hash of a model's weights: of names, shapes and the first and last numbers of each."""
    digest = hashlib.sha256()
    for name, value in sorted(denoiser_of(pipe).state_dict().items()):
        flat = value.detach().reshape(-1)
        ends = torch.cat([flat[:32], flat[-32:]]).float().cpu().numpy()
        digest.update(f"{name} {tuple(value.shape)}".encode() + ends.tobytes())
    return digest.hexdigest()[:16]


def named(pipe: Any) -> dict[str, str]:
    """What a model is: class and fingerprint of its denoiser, class of its pipeline."""
    return {"class": type(denoiser_of(pipe)).__name__, "weights": fingerprint(pipe), "pipeline": type(pipe).__name__}


def painter(
    pipe: Any, strength: float, weight: float, *, steps: int = 20, size: int | None = None, guidance: float = 0.0,
    more: dict[str, Any] | None = None, options: dict[str, Any] | None = None,
) -> Painter:  # fmt: skip
    """Paints with a set of heads for each picture, all in the same forwards.

    Args:
        pipe: a pipeline.
        strength: u.
        weight: w.
        steps: of the sampler.
        size: side in pixels; None: the model's own.
        guidance: classifier-free guidance; 0: none, as the paper searches.
        more: handed to `guide`: kind, scope, path, interval, together.
        options: handed to the pipeline.

    Returns:
        (sets, prompts, seeds), one each for a picture, to [n, 3, H, W].
    """
    parts, known = Parts.of(pipe), {}

    def make(sets: Sequence[HeadSet], prompts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        new = [said for said in dict.fromkeys(prompts) if said not in known]
        with torch.no_grad():
            for said in new:
                known[said] = parts.encode([said])
        told = type(known[prompts[0]]).cat([known[said] for said in prompts])
        same = all(one == sets[0] for one in sets)
        chosen: Any = sets[0] if same else list(sets)
        with guide(pipe, chosen, strength, weight, **(more or {})):
            return paint(
                pipe, told, seeds, steps=steps, guidance=guidance, size=size, batch=len(seeds), progress=False,
                **(options or {}),
            )  # fmt: skip

    return make


class Evaluator:
    """Scores of sets of heads on prompts, each picture painted once: kept in memory and, where asked, on disk.

    Args:
        paint: paints pictures, a set of heads for each.
        prompts: one an item.
        seeds: one an item; the same for every set.
        scores: name -> function; the first is the objective.
        store: where finished sets are kept.
        key: what pictures depend on beside heads, prompts and seeds.
        batch: pictures at a time.
        tick: told of pictures painted or read back.

    Attributes:
        painted: pictures so far.
        read_back: pictures' scores that an earlier run had left.

    Raises:
        UnbraidError: no prompts, an empty one, or not one seed each.
    """

    def __init__(
        self, paint: Painter, prompts: Sequence[str], seeds: Sequence[int], scores: dict[str, Score],
        store: Pieces | None = None, key: Any = None, batch: int = 16, tick: Tick | None = None,
    ) -> None:  # fmt: skip
        check_prompts(prompts, seeds)
        if batch < 1:
            raise UnbraidError(f"batch is {batch}; it must be at least 1.")
        self.paint, self.prompts, self.seeds, self.scores = paint, list(prompts), [int(s) for s in seeds], scores
        self.store, self.key, self.batch = store or Pieces(None), key, batch
        self.tick: Tick = tick or (lambda steps=1, /: None)
        self.painted = self.read_back = 0
        self._known: dict[HeadSet, dict[int, dict[str, float]]] = {}

    def __call__(self, sets: Sequence[HeadSet], items: Sequence[int]) -> np.ndarray:
        """[sets, items] of the objective."""
        self.fill(sets, items)
        first = next(iter(self.scores))
        return np.array([[self._known[one][i][first] for i in items] for one in sets])

    def table(self, one: HeadSet) -> dict[str, np.ndarray]:
        """[items] of every score of a set."""
        items = range(len(self.prompts))
        self.fill([one], items)
        return {name: np.array([self._known[one][i][name] for i in items]) for name in self.scores}

    def fill(self, sets: Sequence[HeadSet], items: Sequence[int]) -> None:
        """Paints and scores what is not known yet."""
        todo: list[tuple[HeadSet, int]] = []
        for one in dict.fromkeys(sets):
            known = self._load(one)
            missing = [(one, i) for i in items if i not in known]
            self.tick(len(items) - len(missing))
            todo += missing
        for start in range(0, len(todo), self.batch):
            part = todo[start : start + self.batch]
            prompts = [self.prompts[i] for _, i in part]
            images = self.paint([one for one, _ in part], prompts, [self.seeds[i] for _, i in part])
            found = {name: scored(name, f, images, prompts) for name, f in self.scores.items()}
            for row, (one, i) in enumerate(part):
                self._known[one][i] = {name: float(v[row]) for name, v in found.items()}
            for one in dict.fromkeys(one for one, _ in part):
                self._save(one)
            self.painted += len(part)
            self.tick(len(part))

    def _piece(self, one: HeadSet) -> Any:
        items = list(zip(self.prompts, self.seeds, strict=True))
        return {"heads": sorted(one), "items": items, "scores": list(self.scores), "key": self.key}

    def _load(self, one: HeadSet) -> dict[int, dict[str, float]]:
        if one not in self._known:
            found = self.store.load("score", self._piece(one)) or {}
            self._known[one] = {int(i): v for i, v in found.items()}
            self.read_back += len(found)
        return self._known[one]

    def _save(self, one: HeadSet) -> None:
        self.store.save("score", self._piece(one), {str(i): v for i, v in self._known[one].items()})


def check_prompts(prompts: Sequence[str], seeds: Sequence[int]) -> None:
    """Raises where there are no prompts, an empty one, or not one seed each."""
    if isinstance(prompts, str) or not len(prompts):
        raise UnbraidError(f"prompts are {prompts!r}; give a list with at least one prompt.")
    empty = [i for i, said in enumerate(prompts) if not isinstance(said, str) or not said.strip()]
    if empty:
        raise UnbraidError(f"prompt {empty[0]} is {prompts[empty[0]]!r}; a search needs words to be scored against.")
    if len(seeds) != len(prompts):
        raise UnbraidError(f"there are {len(prompts)} prompts and {len(seeds)} seeds; give one seed each.")
