"""The system: a search for heads, what it found, and guidance with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores, HeadSet
from unbraid.core.pieces import Pieces
from unbraid.core.progress import bar
from unbraid.core.system import System
from unbraid.systems.headhunter import CARD
from unbraid.systems.headhunter.evaluating import Evaluator, check_prompts, named, painter
from unbraid.systems.headhunter.guiding import Guidance, candidates, guide
from unbraid.systems.headhunter.objectives import Score, objective
from unbraid.systems.headhunter.recipe import Recipe
from unbraid.systems.headhunter.search import budget, hunt


class HeadHunter(System):
    """Searches for the heads whose damage, guided away from, gives more of an objective.

    Args:
        objective: a name (see `objectives.objective`) or a function of (images, prompts) that returns scores.
        k: heads added a round.
        rounds: of the search.
        strength: u in the search; the paper's code has 1, so that effects are visible, and lowers it afterwards.
        weight: w; the paper has 3 for SD3 and 8 for FLUX.1.
        kind: of damage, see `taps.perturb`.
        scope: "joint" or "image", see `taps.perturb`.
        sites: globs on names of attention modules whose heads are candidates.
        stop: end when a round gains nothing; the paper's search goes on.
        halving: stages of successive halving over the prompts; 1 scores all candidates on all of them.
        steps: of the sampler.
        size: side of the pictures in pixels; None: the model's own.
        guidance: classifier-free guidance while searching; the paper has none.
        batch: pictures at a time; each needs two rows of the denoiser.
    """

    card = CARD

    def __init__(
        self,
        objective: str | Score = "contrast",
        k: int = 3,
        rounds: int = 5,
        strength: float = 1.0,
        weight: float = 3.0,
        kind: str = "identity",
        scope: str = "joint",
        sites: str | Sequence[str] = "*",
        stop: bool = False,
        halving: int = 1,
        steps: int = 20,
        size: int | None = None,
        guidance: float = 0.0,
        batch: int = 16,
    ) -> None:
        self.objective = objective
        self.k = k
        self.rounds = rounds
        self.strength = strength
        self.weight = weight
        self.kind = kind
        self.scope = scope
        self.sites = sites
        self.stop = stop
        self.halving = halving
        self.steps = steps
        self.size = size
        self.guidance = guidance
        self.batch = batch

    def fit(
        self,
        pipe: Any,
        prompts: Sequence[str],
        seeds: Sequence[int] | None = None,
        keep: Path | None = None,
        progress: bool | None = None,
    ) -> HeadHunter:
        """Search.

        Args:
            pipe: a pipeline of Stable Diffusion 1.x, 2.x, XL, 3 or FLUX.1.
            prompts: what is painted; for a style, "style, content".
            seeds: one a prompt, the same for all candidates; by default 0, 1, 2, ...
            keep: folder for finished scores; a search that is started again with it goes on where it stopped.
            progress: show a bar; by default on a terminal.

        Returns:
            Itself, with `heads_`, `scores_` (what each head does alone), `trace_`, `base_`, `score_` and `model_`.

        Raises:
            UnbraidError: an unsupported pipeline, no or empty prompts, an unknown objective, numbers out of range.
        """
        chosen = list(range(len(prompts))) if seeds is None else list(seeds)
        check_prompts(prompts, chosen)
        name, function = objective(self.objective)
        heads = candidates(pipe, self.sites, self.kind)  # type: ignore[arg-type]
        guide(pipe, heads, self.strength, self.weight, **self._more())
        paint = painter(
            pipe, self.strength, self.weight, steps=self.steps, size=self.size, guidance=self.guidance,
            more=self._more(),
        )  # fmt: skip
        model = named(pipe)
        key = [model, self.strength, self.weight, self.kind, self.scope, self.steps, self.size, self.guidance]
        store = Pieces(None if keep is None else Path(keep), {"headhunter": 1})
        total = budget(len(heads), len(chosen), self.k, self.rounds, self.halving)
        with bar(progress, f"Searching {len(heads)} heads", total) as tick:
            judge = Evaluator(paint, prompts, chosen, {name: function}, store, key, self.batch, tick)
            found = hunt(judge, heads, len(chosen), self.k, self.rounds, stop=self.stop, halving=self.halving)
        self.heads_: HeadSet = found.heads
        self.scores_: HeadScores | None = found.single
        self.trace_: list[dict[str, Any]] = found.trace
        self.base_, self.score_ = found.base, found.score
        self.model_: dict[str, str] = model
        return self

    def _more(self) -> dict[str, Any]:
        return {"kind": self.kind, "scope": self.scope}

    def guide(self, pipe: Any, strength: float | None = None, weight: float | None = None, **more: Any) -> Guidance:
        """Guidance with the heads that were found; the strength is often lowered after the search.

        Args:
            pipe: the pipeline.
            strength: u; None: that of the search.
            weight: w; None: that of the search.
            more: handed to `guide`.

        Raises:
            UnbraidError: nothing has been searched yet.
        """
        u, w = (self.strength if strength is None else strength), (self.weight if weight is None else weight)
        return guide(pipe, self._found(), u, w, **{**self._more(), **more})

    def recipe(self, strength: float | None = None, measured: dict[str, float] | None = None) -> Recipe:
        """What was found as portable JSON: `recipe().save(path)`, `Recipe.load(path).guide(pipe)`.

        Raises:
            UnbraidError: nothing has been searched yet.
        """
        return Recipe(
            tuple(self._found()), self.strength if strength is None else strength, self.weight, self.kind, self.scope,
            objective(self.objective)[0], self.model_, tuple(self.trace_),
            {"search: none": self.base_, "search: heads": self.score_, **(measured or {})},
        )  # fmt: skip

    def _found(self) -> HeadSet:
        if "heads_" not in vars(self):
            raise UnbraidError("no heads have been searched yet; call fit(pipe, prompts) first.")
        return self.heads_
