"""Averaging on a trigger: a task that softmax attention solves with a sink (idea of arXiv 2603.11487).

Tokens are uniform over 16 ids after a BOS, one of which is the trigger, with probability .15. At triggers the target is
four times the histogram of the ordinary tokens before, elsewhere zero. A softmax head that must write nothing elsewhere
has to put its attention somewhere: on BOS, or on earlier triggers, whose values may be zero too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unbraid.core.train import fit_loop
from unbraid.systems.attention_sinks.variants.convert import convert, recording

BOS, TRIGGER, ORDINARY, LENGTH, RATE, GAIN = 0, 1, 16, 32, 0.15, 4.0
VOCABULARY = ORDINARY + 2


def toy_batch(size: int, generator: torch.Generator, bos: bool = True) -> tuple[Tensor, Tensor]:
    """Tokens [B, T] and targets [B, T, vocabulary]."""
    ids = torch.randint(2, VOCABULARY, (size, LENGTH), generator=generator)
    ids[torch.rand(size, LENGTH, generator=generator) < RATE] = TRIGGER
    if bos:
        ids[:, 0] = BOS
    plain = nn.functional.one_hot(ids, VOCABULARY).float()
    plain[..., [BOS, TRIGGER]] = 0.0
    before = plain.cumsum(1) - plain
    histogram = before / before.sum(-1, keepdim=True).clamp(min=1)
    return ids, GAIN * histogram * (ids == TRIGGER)[..., None]


def toy_model(variant: str, seed: int = 0, **options: Any) -> Any:
    """An untrained Llama of one layer, one head and 32 features, with a variant in it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1, vocab_size=VOCABULARY,
        max_position_embeddings=64, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return convert(LlamaForCausalLM(config), variant, **options)


def toy_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared error on the logits."""
    return nn.functional.mse_loss(model(input_ids=batch[0], use_cache=False).logits, batch[1])


def train_toy(
    variant: str, seed: int = 0, steps: int = 800, bos: bool = True, progress: bool | None = False, **options: Any
) -> tuple[Any, dict[str, float]]:
    """Trains one toy and measures where it looks.

    Returns:
        The model, and a row: at ordinary tokens and at triggers, the attention on the first token (BOS), on BOS and
        earlier triggers together (whose values may be zero as well), what rows sum to, and the error.
    """
    model = toy_model(variant, seed, **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps + 1)
    fit_loop(
        model, toy_loss, lambda step, generator: toy_batch(32, generator, bos), steps=steps, optimizer=optimizer,
        scheduler=schedule, seed=seed, progress=progress,
    )  # fmt: skip
    return model.eval(), look(model, seed + 10_000, bos)


@torch.no_grad()
def look(model: Any, seed: int, bos: bool = True) -> dict[str, float]:
    """What a trained toy does on fresh texts."""
    ids, target = toy_batch(256, torch.Generator().manual_seed(seed), bos)
    with recording(model) as kept:
        logits = model(input_ids=ids, use_cache=False).logits
    w, error = kept[0][0][:, 0], (logits - target).square().mean(-1)
    late = torch.arange(LENGTH) >= 4
    idle = (ids < 2).float()  # tokens whose values the task lets be zero
    row: dict[str, float] = {}
    for name, at in (("ordinary", (ids != TRIGGER) & late), ("triggers", (ids == TRIGGER) & late)):
        row[f"first token, {name}"] = float(w[..., 0][at].mean())
        row[f"BOS and triggers, {name}"] = float((w * idle[:, None]).sum(-1)[at].mean())
        row[f"row sum, {name}"] = float(w.sum(-1)[at].mean())
        row[f"error, {name}"] = float(error[at].mean())
    return row
