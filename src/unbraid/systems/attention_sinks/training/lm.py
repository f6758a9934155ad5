"""Small language models trained from scratch on real English, with and without each variant.

The text is what ships with Python: its language reference and the docstrings of its library, 1.9 million characters.
The last tenth of each is for validation; tokens are a byte-level BPE of 1,024 entries learned on the rest. Every
model sees the same windows in the same order.

A training window is one passage, over and over: what comes next can be looked up, so heads learn to (induction), and
have nothing to look up on plain text. That makes sinks within minutes of two cores, where training on plain windows of
the same number of tokens makes none (`repeats=False`). Everything but `repeated loss` is measured on plain text.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unbraid import taps
from unbraid.core.attach import attach
from unbraid.core.blocks import blocks, listening, residual
from unbraid.core.errors import UnbraidError
from unbraid.core.train import fit_loop
from unbraid.data.text import corpus
from unbraid.systems.attention_sinks.variants.catalogue import REGISTERS
from unbraid.systems.attention_sinks.variants.convert import SETTING, convert, recording

VOCABULARY, BOS = 1024, 0
WIDTHS = {"tiny": (64, 2, 2), "mini": (96, 3, 2), "small": (128, 4, 4), "medium": (256, 6, 8)}  # width, blocks, heads
EPSILON = 0.3  # of the sink metric, arXiv 2410.10781


def draw(ids: np.ndarray, size: int, length: int, generator: torch.Generator) -> Tensor:
    """[size, length] windows, each with BOS before it."""
    starts = torch.randint(0, len(ids) - length + 2, (size,), generator=generator).tolist()
    rows = np.stack([ids[s : s + length - 1] for s in starts])
    return torch.cat([torch.full((size, 1), BOS), torch.from_numpy(rows)], 1)


def repeated(ids: np.ndarray, size: int, length: int, generator: torch.Generator) -> Tensor:
    """[size, length + 1]: BOS, then a passage of 16 (at most `length` / 4) to `length` / 2 tokens, over and over."""
    shortest = min(16, length // 4)
    rows = []
    for _ in range(size):
        period = int(torch.randint(shortest, length // 2 + 1, (1,), generator=generator))
        start = int(torch.randint(0, len(ids) - period, (1,), generator=generator))
        rows.append(np.concatenate([[BOS], np.resize(ids[start : start + period], length)]))
    return torch.from_numpy(np.stack(rows))


def small_lm(variant: str, size: str = "small", seed: int = 0, **options: Any) -> Any:
    """An untrained Llama with a variant in it.

    Raises:
        UnbraidError: the size is unknown.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    if size not in WIDTHS:
        raise UnbraidError(f"size={size!r} is unknown; choose from {', '.join(WIDTHS)}.")
    width, depth, heads = WIDTHS[size]
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=int(8 * width / 3), num_hidden_layers=depth,
        num_attention_heads=heads, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=BOS,
        eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return convert(LlamaForCausalLM(config), variant, **options)


def next_token(model: nn.Module, ids: Tensor) -> Tensor:
    """Cross-entropy of the next token, in nats."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def train_lm(
    variant: str,
    size: str = "mini",
    steps: int = 1500,
    batch: int = 16,
    length: int = 128,
    lr: float = 8e-3,
    seed: int = 0,
    repeats: bool = True,
    progress: bool | None = False,
    **options: Any,
) -> tuple[Any, dict[str, float]]:
    """Trains one model and measures it.

    Args:
        variant: of attention, see `describe_variants`.
        size: "tiny", "mini", "small" or "medium".
        steps: of AdamW with weight decay .1, warm-up and decay in one cycle.
        batch: windows per step.
        length: of a window in tokens, BOS included.
        lr: peak learning rate.
        seed: of weights and windows.
        repeats: windows of repeated passages; False: of plain text.
        progress: show a bar.
        options: of the variant.

    Returns:
        The model, and the row that `measure_lm` makes.
    """
    model = small_lm(variant, size, seed, **options)
    train, windows = corpus(VOCABULARY).train, repeated if repeats else draw
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1, pct_start=0.1)
    fit_loop(
        model, next_token, lambda step, generator: windows(train, batch, length, generator), steps=steps,
        optimizer=optimizer, scheduler=schedule, seed=seed, grad_clip=1.0, progress=progress,
    )  # fmt: skip
    return model.eval(), measure_lm(model, length)


@torch.no_grad()
def measure_lm(model: Any, length: int = 128, windows: int = 64) -> dict[str, float]:
    """Loss, sinks, outliers on validation windows that are the same for every model.

    Returns:
        loss (nats), share of heads whose mean attention on the first token exceeds .3, that of the strongest head, mean
        share of all attention on the first token, on registers, what rows sum to, kurtosis of the residual stream
        (largest over blocks), largest |h| over the median, and the loss on repeated passages from their second time on.
    """
    ids = draw(corpus(VOCABULARY).valid, windows, length, torch.Generator().manual_seed(0))
    again = repeated(corpus(VOCABULARY).valid, windows, length, torch.Generator().manual_seed(1))
    logits = model(input_ids=again[:, :-1], use_cache=False).logits[:, length // 2 :]
    looked_up = nn.functional.cross_entropy(logits.flatten(0, 1).float(), again[:, length // 2 + 1 :].flatten())
    states: list[Tensor] = []
    keep = {b.module: lambda m, a, k, y: states.append(residual(y).float()) for b in blocks(model)}
    setting = vars(model.config)[SETTING]
    extra = setting["options"].get("count", 1) if setting["name"] == REGISTERS else 0
    whole = taps.Maps()
    # registers keep plain attention, whose maps a tap can see; variants record their own weights
    if extra:
        with attach(model, whole), listening(keep):
            loss = float(next_token(model, ids))
        maps = [m[0] for m in whole.values.values()]
    else:
        with recording(model) as kept, listening(keep):
            loss = float(next_token(model, ids))
        maps = [m[0] for m in kept]
    first = torch.stack([m[:, :, extra + 1 :, extra].mean((0, 2)) for m in maps])  # [L, H]
    before = torch.stack([m[:, :, extra:, :extra].sum(-1).mean((0, 2)) for m in maps])
    rows = torch.stack([m.sum(-1).mean((0, 2)) for m in maps])
    h = torch.stack(states)
    centred = h - h.mean(-1, keepdim=True)
    kurtosis = (centred**4).mean(-1) / (centred**2).mean(-1) ** 2
    return {
        "loss": loss, "sink heads": float((first > EPSILON).float().mean()), "strongest head": float(first.max()),
        "first-token share": float(first.mean()),
        "register share": float(before.mean()), "row sum": float(rows.mean()),
        "kurtosis": float(kurtosis.mean((1, 2)).max()),
        "largest / median": float((h.abs().amax((1, 2, 3)) / h.abs().flatten(1).median(-1).values).max()),
        "repeated loss": float(looked_up),
    }  # fmt: skip
