"""Which layers of a trained model need their attention: what each would cost as a variant, and all of them in order.

Conversion trains every layer by itself, so one training of a variant in all layers gives it for each; after that any
mixture of layers and variants is put together and read, without training again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError
from unbraid.systems.deconstructing_attention.converting import convert, loss_of, parted, read, students_of
from unbraid.systems.deconstructing_attention.placement import VARIANTS
from unbraid.systems.deconstructing_attention.swapping import deconstruct, restore

if TYPE_CHECKING:
    from unbraid.core.pieces import Pieces

ORDERS = ("cheapest first", "any order", "dearest first")
State = dict[str, Tensor]


@dataclass(frozen=True)
class Search:
    """What came of `search`, on texts that were held out: costs on one half of them, orders on the other.

    Attributes:
        costs: for each layer, its number from 1, and variant, the nats per token that the model loses by it alone.
        curve: for each of `ORDERS` and number of layers with a variant, the nats per token lost by all of them; of
            "any order" the mean over shuffles.
        before: nats per token of the model as it was, on the half for orders.
    """

    costs: list[dict[str, Any]]
    curve: list[dict[str, Any]]
    before: float

    @property
    def picked(self) -> list[str]:
        """The variant of every layer, the cheapest of those tried."""
        return cheapest(self.costs)[0]

    def plan(self, most: float) -> list[str]:
        """One variant for each layer, for `convert`: as many layers as cost `most` nats together, cheapest first.

        Args:
            most: nats per token.

        Raises:
            UnbraidError: even one layer costs more.
        """
        fits = [row["layers"] for row in self.curve if row["order"] == ORDERS[0] and row["lost"] <= most]
        if not fits:
            raise UnbraidError(f"most is {most}; the cheapest layer alone costs more.")
        picked, order = cheapest(self.costs)
        return [name if number in order[: max(fits)] else "standard" for number, name in enumerate(picked)]


def cheapest(costs: list[dict[str, Any]]) -> tuple[list[str], list[int]]:
    """The cheapest variant of every layer, and the layers by what it costs, from 0.

    Args:
        costs: see `Search`.
    """
    best: dict[int, dict[str, Any]] = {}
    for row in costs:
        if row["layer"] not in best or row["cost"] < best[row["layer"]]["cost"]:
            best[row["layer"]] = row
    rows = [best[number] for number in sorted(best)]
    return [row["variant"] for row in rows], sorted(range(len(rows)), key=lambda i: rows[i]["cost"])


def search(
    model: nn.Module, variants: Sequence[str], texts: Tensor, *, steps: int = 300, batch: int = 8, lr: float = 1e-3,
    seed: int = 0, tokens: Tensor | None = None, longest: int | None = None, joint: bool = True, every: int = 1,
    shuffles: int = 2, precision: str = "no", device: str | None = None, checkpoint_dir: str | Path | None = None,
    progress: bool | None = None,
) -> Search:  # fmt: skip
    """Find which layers of a trained model can give up their attention, for which variant, and what that costs.

    Every variant is trained in all layers once (see `convert`). Then each layer takes each variant alone, on half of
    the held-out texts, and on the other half layers take their cheapest variant one after another: the cheapest first,
    the dearest first, and, to compare with, in any order. The model is left as it was.

    Args:
        model: see `deconstruct`.
        variants: to try, none of them "standard".
        texts: [count, N] tokens, at least twenty rows without padding; the last tenth is held out.
        steps: of each training.
        batch: texts a step.
        lr: greatest learning rate.
        seed: of batches, of the frozen text of "random", of new weights and of shuffles.
        tokens: see `deconstruct`.
        longest: see `deconstruct`.
        joint: see `deconstruct`.
        every: after so many layers more the model is read; the last is always one of them.
        shuffles: orders that "any order" is the mean of.
        precision: of training.
        device: where to train.
        checkpoint_dir: folder for checkpoints that an interrupted search goes on from, one in it for each variant.
        progress: show bars on stderr.

    Returns:
        Costs by layer and variant, and what all layers cost in each order.

    Raises:
        UnbraidError: the model, the variants, the texts or a number does not fit; the model is then as it was.

    Reference:
        Beyond arXiv 2510.11602, which places variants by hand (its nine placements).
    """
    from unbraid.core.progress import bar

    held = _checked(model, variants, texts, every, shuffles)
    count = len(model.get_submodule("model.layers"))  # type: ignore[arg-type]
    swap = partial(deconstruct, seed=seed, tokens=tokens, longest=longest, joint=joint)
    learnt: dict[str, dict[int, State]] = {}
    for variant in variants:
        convert(
            model, [variant] * count, texts, steps=steps, batch=batch, lr=lr, seed=seed, tokens=tokens, longest=longest,
            joint=joint, precision=precision, device=device, progress=progress,
            checkpoint_dir=None if checkpoint_dir is None else Path(checkpoint_dir) / variant,
        )  # fmt: skip
        try:
            learnt[variant] = {i: _copied(own) for i, own in students_of(model).items()}
        finally:
            restore(model)

    def lost(plan: dict[int, str], some: Tensor, before: float) -> float:
        swap(model, [plan.get(i, "standard") for i in range(count)])
        try:
            for i, own in students_of(model, own=True).items():
                own.load_state_dict(learnt[plan[i]][i])
            return loss_of(model, some, batch) - before
        finally:
            restore(model)

    for_costs, for_orders = held[::2], held[1::2]
    before = loss_of(model, for_costs, batch)
    with bar(progress, "Layers", count * len(variants)) as tick:
        costs = []
        for number, variant in product(range(count), variants):
            costs.append({"layer": number + 1, "variant": variant, "cost": lost({number: variant}, for_costs, before)})
            tick()
    picked, order = cheapest(costs)
    generator = torch.Generator().manual_seed(seed)
    shuffled = [torch.randperm(count, generator=generator).tolist() for _ in range(shuffles)]
    orders = dict(zip(ORDERS, ([order], shuffled, [order[::-1]]), strict=True))
    at = sorted({*range(every, count + 1, every), count})
    before = loss_of(model, for_orders, batch)
    with bar(progress, "Orders", len(at) * (2 + shuffles)) as tick:
        curve = []
        for (name, each), k in product(orders.items(), at):
            found = []
            for one in each:
                found.append(lost({i: picked[i] for i in one[:k]}, for_orders, before))
                tick()
            curve.append({"order": name, "layers": k, "lost": sum(found) / len(found)})
    return Search(costs, curve, before)


def _checked(model: nn.Module, variants: Sequence[str], texts: Tensor, every: int, shuffles: int) -> Tensor:
    """Texts held out, in two halves at least."""
    if isinstance(variants, str) or not variants or len(set(variants)) < len(variants):
        raise UnbraidError("variants must be a list of names, each once.")
    if wrong := [v for v in variants if v not in VARIANTS[1:]]:
        raise UnbraidError(f"variants has {wrong[0]!r}; choose from {', '.join(VARIANTS[1:])}.")
    if every < 1 or shuffles < 1:
        raise UnbraidError(f"every is {every} and shuffles {shuffles}; both must be at least 1.")
    held = parted(texts, model)[1]
    if len(held) < 2:
        raise UnbraidError(
            f"there are {len(texts)} texts; give twenty at least, a tenth of which is held out in halves."
        )
    return held


def _copied(module: nn.Module) -> State:
    return {name: weight.detach().clone() for name, weight in module.state_dict().items()}


def searched(
    name: str, variants: Sequence[str], numbers: Sequence[int], steps: int, length: int, count: int, device: str | None,
    store: Pieces, progress: bool | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Searches of one model of the zoo, each with another seed.

    Args:
        name: of the model, as for `zoo.load`.
        variants: to try.
        numbers: seeds.
        steps: of each training.
        length: tokens of a text.
        count: texts, of the book that ships with Python.
        device: where to train.
        store: where finished ones are kept, and checkpoints of those under way.
        progress: show bars.

    Returns:
        For each seed what `Search` has.
    """
    model, texts, fixed = read(name, length, count, device, progress)
    rows = []
    for seed in numbers:
        key = {
            "model": name,
            "variants": list(variants),
            "seed": seed,
            "steps": steps,
            "length": length,
            "texts": count,
        }
        folder = None if store.folder is None else store.path("search", key, "")

        def make(seed: int = seed, folder: Path | None = folder) -> dict[str, Any]:
            found = search(
                model, variants, texts, steps=steps, batch=4, seed=seed, tokens=fixed, longest=length,
                every=max(1, len(model.model.layers) // 6), device=device, checkpoint_dir=folder, progress=progress,
            )  # fmt: skip
            return asdict(found)

        rows.append({"seed": seed, **store.get("search", key, make)})
    return rows
