"""What a variant can and cannot do by its definition: three probes with known answers, a small model trained for each.

`copy` (the token three back) needs mixing and nothing else. `value first` ("v k v k ... k?") needs maps that depend on
the text, for which embedded words do: the value moves one step right, then keys meet. `key first` ("k v k v ... k?")
needs queries and keys of the current layer. Who mixes but cannot bind is right as often as the best guess from the bag
of values; who does not mix, as often as chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from unbraid.core.train import fit_loop
from unbraid.systems.deconstructing_attention.placement import place
from unbraid.systems.deconstructing_attention.swapping import deconstruct, skip

CONFIG: Any = Qwen2Config
KEYS, VALUES, PAIRS, LAG, LENGTH, WIDTH, LAYERS = 12, 8, 5, 3, 24, 64, 2
PROBES = ("copy", "value first", "key first")
BATCH, STEPS, RATE, TESTED = 64, 800, 3e-3, 2_000
SOLVED, NEAR, UNMIXED, LEFT, BELOW = 0.97, 0.03, 0.20, 0.30, 0.9


class Cell(NamedTuple):
    """A configuration, a probe, and what the definition says of them.

    Attributes:
        variant: one of `VARIANTS`.
        placement: uniform or hybrid.
        probe: one of `PROBES`.
        predicted: see `as_predicted`.
        layers: of the model.
        steps: of the optimizer.
        batch: texts a step.
    """

    variant: str
    placement: str
    probe: str
    predicted: str
    layers: int = LAYERS
    steps: int = STEPS
    batch: int = BATCH


LONG, LONGER = (LAYERS, 1_500, 128), (4, 2_500, 128)  # where training rests on the bag's plateau first
CELLS = tuple(
    Cell(*words)
    for words in (
        ("standard", "uniform", "copy", "solved"), ("standard", "uniform", "key first", "solved"),
        ("mlp", "uniform", "copy", "chance"), ("mlp", "uniform", "key first", "chance"),
        ("random", "uniform", "copy", "solved"), ("random", "uniform", "key first", "bag"),
        ("static", "uniform", "copy", "solved"), ("static", "uniform", "value first", "solved"),
        ("static", "uniform", "key first", "below"),
        ("random", "hybrid", "copy", "solved"), ("random", "hybrid", "key first", "solved"),
    )
)  # fmt: skip
# The rest of the matrix; who cannot bind is given as long as those who are slow to. Pooling by keys alone does not say
# where a token is: copying stays partial, and its hybrid of two layers has no neighbour to hand on, as that of no
# mixing has none; with four layers, two standard ones bind.
MORE = (
    Cell("standard", "uniform", "value first", "solved", *LONG),
    Cell("mlp", "uniform", "value first", "chance"),
    Cell("approximate", "uniform", "copy", "solved"),
    Cell("approximate", "uniform", "value first", "solved", *LONG),
    Cell("approximate", "uniform", "key first", "solved"),
    Cell("non_approximate", "uniform", "copy", "below"),
    Cell("non_approximate", "uniform", "value first", "bag", *LONG),
    Cell("non_approximate", "uniform", "key first", "bag", *LONG),
    Cell("random", "uniform", "value first", "bag", *LONG),
    Cell("sequence", "uniform", "copy", "solved"),
    Cell("sequence", "uniform", "value first", "bag", *LONG),
    Cell("sequence", "uniform", "key first", "bag", *LONG),
    Cell("random", "hybrid", "value first", "solved"),
    Cell("sequence", "hybrid", "copy", "solved"),
    Cell("sequence", "hybrid", "value first", "solved"),
    Cell("sequence", "hybrid", "key first", "solved"),
    Cell("static", "hybrid", "copy", "solved"),
    Cell("static", "hybrid", "value first", "solved", *LONG),
    Cell("static", "hybrid", "key first", "solved"),
    Cell("mlp", "hybrid", "copy", "solved"),
    Cell("mlp", "hybrid", "value first", "bag", *LONG),
    Cell("mlp", "hybrid", "key first", "bag", *LONG),
    Cell("mlp", "hybrid", "key first", "solved", *LONGER),
    Cell("non_approximate", "hybrid", "copy", "solved"),
    Cell("non_approximate", "hybrid", "value first", "bag", *LONG),
    Cell("non_approximate", "hybrid", "key first", "bag", *LONG),
    Cell("non_approximate", "hybrid", "key first", "solved", *LONGER),
)


@cache
def bag() -> float:
    """The best guess from the values seen, by counting all cases: how often the commonest of five comes, over five."""
    cases = product(range(VALUES), repeat=PAIRS)
    return sum(max(map(case.count, case)) for case in cases) / VALUES**PAIRS / PAIRS


def draw(probe: str, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens and answers of a probe.

    Args:
        probe: one of `PROBES`.
        count: of texts.
        generator: of random numbers.

    Returns:
        Tokens [count, length] and answers of the same shape, -100 where nothing is asked.
    """
    if probe == "copy":
        ids = torch.randint(0, KEYS, (count, LENGTH), generator=generator)
        answers = torch.full_like(ids, -100)
        answers[:, LAG:] = ids[:, :-LAG]
        return ids, answers
    keys = torch.rand(count, KEYS, generator=generator).argsort(1)[:, :PAIRS]
    values = KEYS + torch.randint(0, VALUES, (count, PAIRS), generator=generator)
    pairs = [values, keys] if probe == "value first" else [keys, values]
    order = torch.rand(count, PAIRS, generator=generator).argsort(1)
    asked = keys.gather(1, order)
    ids = torch.cat([torch.stack(pairs, -1).flatten(1), asked], 1)
    answers = torch.cat([torch.full((count, 2 * PAIRS), -100), values.gather(1, order)], 1)
    return ids, answers


def train(cell: Cell, seed: int, device: str | None = None) -> dict[str, Any]:
    """One cell: a Qwen2 model of some layers, trained on a probe.

    Args:
        cell: what is trained, on what, and how long.
        seed: of weights and texts.
        device: where to train; None: where accelerate says.

    Returns:
        The cell's names, its accuracy on new texts, and a hybrid's without its variant layers, not trained again.
    """
    config = CONFIG(
        vocab_size=KEYS + VALUES, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=cell.layers,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=LENGTH, use_cache=False,
        bos_token_id=0, eos_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = Qwen2ForCausalLM(config)
    fixed = torch.randint(0, KEYS + VALUES, (LENGTH,), generator=torch.Generator().manual_seed(seed))
    deconstruct(model, place(cell.variant, cell.placement, cell.layers), seed=seed, tokens=fixed, longest=LENGTH)
    if device is not None:
        model.to(device)

    def loss(module: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        logits = module(input_ids=batch[0], use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[1].flatten(), ignore_index=-100)

    fit_loop(
        model, loss, lambda number, generator: draw(cell.probe, cell.batch, generator), steps=cell.steps, seed=seed,
        grad_clip=1.0, device=device, progress=False, lr=RATE,
        scheduler=lambda o: torch.optim.lr_scheduler.OneCycleLR(o, RATE, total_steps=cell.steps + 1),
    )  # fmt: skip
    tested = draw(cell.probe, TESTED, torch.Generator().manual_seed(10_000 + seed))
    left = None if cell.placement == "uniform" else _right(skip(model), *tested)
    return {**cell._asdict(), "seed": seed, "accuracy": _right(model, *tested), "skipped": left}


def _right(model: Any, ids: Tensor, answers: Tensor) -> float:
    """Share of the answers that a model gives."""
    model.eval()
    with torch.no_grad():
        said = model(input_ids=ids.to(model.device), use_cache=False).logits.argmax(-1).cpu()
    asked = answers != -100
    return float((said == answers)[asked].float().mean())


def as_predicted(accuracy: float, predicted: str) -> bool:
    """Whether an accuracy is what the definition says it must be.

    Args:
        accuracy: of a trained model.
        predicted: "solved", "bag" (the best guess from the values seen), "chance" (of a model that mixes nothing),
            "below" (not solved, no more is known) or "left" (of a solved hybrid without its variant layers).
    """
    return {
        "solved": accuracy >= SOLVED, "bag": abs(accuracy - bag()) <= NEAR, "chance": accuracy <= UNMIXED,
        "below": accuracy < BELOW, "left": accuracy <= LEFT,
    }[predicted]  # fmt: skip


def longer(cell: Cell, accuracy: float) -> Cell | None:
    """The same with the longest training, where one that should solve its probe rests on the bag's plateau; else None.

    Args:
        cell: what was trained.
        accuracy: what it came to.

    Reference:
        the method sheet: train to 1,500 to 2,500 times 128 texts before calling it a failure.
    """
    rests = cell.predicted == "solved" and as_predicted(accuracy, "bag") and STEPS <= cell.steps < LONGER[1]
    return cell._replace(steps=LONGER[1], batch=LONGER[2]) if rests else None


def chosen(variants: Sequence[str], placements: Sequence[str], whole: bool = False) -> list[Cell]:
    """The configurations with a prediction among those asked for; the standard model counts as placed anyhow.

    Args:
        variants: of `VARIANTS`.
        placements: of `PLACEMENTS`.
        whole: all of the matrix, else the cells that take half a minute each and tell the variants apart.
    """
    cells = CELLS + MORE if whole else CELLS
    return [c for c in cells if c.variant in variants and (c.variant == "standard" or c.placement in placements)]
