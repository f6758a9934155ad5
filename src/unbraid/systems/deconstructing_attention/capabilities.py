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
from typing import Any

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
# what each configuration does by definition; "below": not solved, and no more is known
CELLS: tuple[tuple[str, str, str, str], ...] = (
    ("standard", "uniform", "copy", "solved"), ("standard", "uniform", "key first", "solved"),
    ("mlp", "uniform", "copy", "chance"), ("mlp", "uniform", "key first", "chance"),
    ("random", "uniform", "copy", "solved"), ("random", "uniform", "key first", "bag"),
    ("static", "uniform", "copy", "solved"), ("static", "uniform", "value first", "solved"),
    ("static", "uniform", "key first", "below"),
    ("random", "hybrid", "copy", "solved"), ("random", "hybrid", "key first", "solved"),
)  # fmt: skip


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


def train(
    variant: str, placement: str, probe: str, seed: int, steps: int = STEPS, device: str | None = None
) -> dict[str, Any]:
    """One cell: a Qwen2 model of two layers, trained on a probe.

    Args:
        variant: one of `VARIANTS`.
        placement: uniform or hybrid.
        probe: one of `PROBES`.
        seed: of weights and texts.
        steps: of the optimizer.
        device: where to train; None: where accelerate says.

    Returns:
        The cell's names, its accuracy on new texts, and a hybrid's without its variant layers, not trained again.
    """
    config = CONFIG(
        vocab_size=KEYS + VALUES, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=LENGTH, use_cache=False,
        bos_token_id=0, eos_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = Qwen2ForCausalLM(config)
    fixed = torch.randint(0, KEYS + VALUES, (LENGTH,), generator=torch.Generator().manual_seed(seed))
    deconstruct(model, place(variant, placement, LAYERS), seed=seed, tokens=fixed, longest=LENGTH)
    if device is not None:
        model.to(device)

    def loss(module: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        logits = module(input_ids=batch[0], use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[1].flatten(), ignore_index=-100)

    fit_loop(
        model, loss, lambda number, generator: draw(probe, BATCH, generator), steps=steps, seed=seed, grad_clip=1.0,
        device=device, progress=False, lr=RATE,
        scheduler=lambda o: torch.optim.lr_scheduler.OneCycleLR(o, RATE, total_steps=steps + 1),
    )  # fmt: skip
    tested = draw(probe, TESTED, torch.Generator().manual_seed(10_000 + seed))
    return {
        "variant": variant, "placement": placement, "probe": probe, "seed": seed, "steps": steps,
        "accuracy": _right(model, *tested), "skipped": None if placement == "uniform" else _right(skip(model), *tested),
    }  # fmt: skip


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


def chosen(variants: Sequence[str], placements: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """The configurations with a prediction among those asked for; the standard model counts as placed anyhow."""
    return [c for c in CELLS if c[0] in variants and (c[0] == "standard" or c[1] in placements)]
