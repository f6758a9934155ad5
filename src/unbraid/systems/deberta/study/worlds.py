"""Three small tasks whose truth is known: one needs content-to-position, one position-to-content, one the decoder."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DebertaV2Config, DebertaV2ForMaskedLM, DebertaV2ForTokenClassification

from unbraid.core.train import fit_loop
from unbraid.systems.deberta.decoding import DebertaV2ForEnhancedMaskedLM
from unbraid.systems.deberta.swapping import accelerate

World = Literal["query", "key"]
LENGTH, VALUES, REACH = 16, 8, 6
TYPES = {"c2p": ["c2p"], "p2c": ["p2c"], "both": ["c2p", "p2c"], "neither": []}
NOT_ASKED = -100
CONFIG: Any = DebertaV2Config  # its annotations leave out half of its options


def draw(world: World, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences and labels of a task.

    Args:
        world: "query": a marker token asks for the value as many places to its left as its name says, which a query
            finds by where keys stand. "key": each token carries a value and a reach, and the one whose reach ends at
            the query is the answer, which a key makes known by where queries stand.
        count: sequences.
        generator: what draws.

    Returns:
        tokens [count, 16] and labels [count, 16], -100 but at the query.
    """
    rows = torch.arange(count)

    def drawn(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=generator)

    values = drawn(VALUES, count, LENGTH)
    place = REACH + drawn(LENGTH - REACH, count)
    reach = 1 + drawn(REACH, count)
    labels = torch.full((count, LENGTH), NOT_ASKED)
    labels[rows, place] = values[rows, place - reach]
    if world == "query":
        tokens = 1 + values
        tokens[rows, place] = VALUES + reach
        return tokens, labels
    reaches = 1 + drawn(REACH, count, LENGTH)
    distance = place[:, None] - torch.arange(LENGTH)
    # all others end elsewhere: a reach that would end at the query is moved on to the next
    reaches = torch.where(reaches == distance, reaches % REACH + 1, reaches)
    reaches[rows, place - reach] = reach
    tokens = 1 + values * REACH + reaches - 1
    tokens[rows, place] = 1 + VALUES * REACH
    return tokens, labels


def term(world: World, terms: str, seed: int, *, steps: int = 800, samples: int = 2000) -> dict[str, Any]:
    """Accuracy of one layer with some terms of the attention, trained on one task.

    Args:
        world: the task.
        terms: "c2p", "p2c", "both" or "neither".
        seed: of weights and sequences.
        steps: of AdamW, batches of 64, one cycle up to 3e-3.
        samples: sequences to test on.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DebertaV2ForTokenClassification(
            CONFIG(
                vocab_size=2 + VALUES * REACH, hidden_size=64, num_hidden_layers=1, num_attention_heads=2,
                intermediate_size=128, max_position_embeddings=LENGTH, relative_attention=True, position_buckets=-1,
                pos_att_type=TYPES[terms], share_att_key=False, position_biased_input=False, type_vocab_size=0,
                hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.1, num_labels=VALUES,
            )
        )  # fmt: skip
    accelerate(model)

    def batch(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return draw(world, 64, generator)

    history = fit_loop(
        model, lambda m, b: m(input_ids=b[0], labels=b[1]).loss, batch, steps=steps,
        optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3),
        scheduler=lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 3e-3, total_steps=steps + 1), seed=seed,
        progress=False,
    )  # fmt: skip
    tokens, labels = draw(world, samples, torch.Generator().manual_seed(10_000 + seed))
    with torch.no_grad():
        logits = model.eval()(input_ids=tokens).logits
    asked = labels != NOT_ASKED
    found = (logits.argmax(-1)[asked] == labels[asked]).float().mean()
    return {"world": world, "terms": terms, "seed": seed, "accuracy": float(found), "loss": history.losses[-1]}


def parity(decoder: bool, seed: int, *, steps: int = 600, samples: int = 200) -> dict[str, Any]:
    """Accuracy at telling even from odd places of equal tokens, with and without the enhanced mask decoder.

    Relative attention over equal tokens carries nothing of where they stand, so that without the decoder's absolute
    positions the answer is a guess.

    Args:
        decoder: with it, or the last layer's states as transformers has them.
        seed: of weights and lengths.
        steps: of AdamW, batches of 32, one cycle up to 3e-3.
        samples: sequences of 8 to 16 tokens to test on.
    """
    config = CONFIG(
        vocab_size=8, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=LENGTH, relative_attention=True, position_buckets=-1, pos_att_type=["c2p", "p2c"],
        share_att_key=True, position_biased_input=False, type_vocab_size=0, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, initializer_range=0.1, legacy=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = (DebertaV2ForEnhancedMaskedLM if decoder else DebertaV2ForMaskedLM)(config)
    accelerate(model)

    def batch(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        return _equal(32, generator)

    def loss(m: Any, given: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return m(input_ids=given[0], attention_mask=given[1], labels=given[2]).loss

    history = fit_loop(
        model, loss, batch, steps=steps, optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3),
        scheduler=lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 3e-3, total_steps=steps + 1), seed=seed,
        progress=False,
    )  # fmt: skip
    tokens, mask, labels = _equal(samples, torch.Generator().manual_seed(10_000 + seed))
    with torch.no_grad():
        logits = model.eval()(input_ids=tokens, attention_mask=mask).logits
    asked = labels != NOT_ASKED
    found = (logits.argmax(-1)[asked] == labels[asked]).float().mean()
    return {"decoder": decoder, "seed": seed, "accuracy": float(found), "loss": history.losses[-1],
            "tokens": int(asked.sum())}  # fmt: skip


def _equal(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Equal tokens, mask of 8 to 16 of them, and labels 2 and 3 by the parity of the place."""
    lengths = torch.randint(LENGTH // 2, LENGTH + 1, (count, 1), generator=generator)
    place = torch.arange(LENGTH)
    mask = (place < lengths).long()
    labels = (2 + place % 2).expand(count, LENGTH).masked_fill(mask == 0, NOT_ASKED)
    return mask.clone(), mask, labels
