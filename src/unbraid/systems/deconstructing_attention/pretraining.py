"""Language models of equal size and training on real text that differ in their attention."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from unbraid.core.errors import UnbraidError
from unbraid.core.train import fit_loop
from unbraid.data.text import corpus
from unbraid.systems.deconstructing_attention.indicating import logits
from unbraid.systems.deconstructing_attention.placement import place
from unbraid.systems.deconstructing_attention.sizes import SIZES, Size
from unbraid.systems.deconstructing_attention.swapping import deconstruct, looking, skip

# the second norms queries and keys, as the paper's largest models do
BASES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)
}  # fmt: skip
TESTED = 64  # windows of the validation text, at most
HELD_OUT = 0.01  # of a user's own tokens


def build(
    variant: str, placement: str, size: Size, seed: int, tokens: Tensor | None = None, base: str = "llama"
) -> Any:  # fmt: skip
    """A Llama or Qwen3 model with variants in their places.

    Args:
        variant: see `place`.
        placement: see `place`.
        size: of the model.
        seed: of the weights and of "random".
        tokens: the fixed text of "sequence".
        base: one of `BASES`.
    """
    configure, make = BASES[base]
    config = configure(
        vocab_size=size.vocabulary, hidden_size=size.width, intermediate_size=size.inner, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, num_key_value_heads=size.heads, max_position_embeddings=size.length,
        head_dim=size.width // size.heads,
        tie_word_embeddings=size.tied, attention_bias=False, use_cache=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = make(config)
    return deconstruct(model, place(variant, placement, size.layers), seed=seed, tokens=tokens, longest=size.length)


@cache
def text(vocabulary: int, own: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Tokens for training and for validation: the text that ships with Python, or a file of the user's own.

    Args:
        vocabulary: of the model.
        own: a NumPy file of token numbers, [tokens]; it is mapped, not read as a whole.

    Raises:
        UnbraidError: the file does not hold such tokens.
    """
    if own is None:
        made = corpus(vocabulary)
        return made.train, made.valid
    try:
        ids = np.load(own, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UnbraidError(f"tokens {own} cannot be read ({error}); give a .npy file of token numbers.") from None
    if ids.ndim != 1 or ids.dtype.kind not in "ui":
        raise UnbraidError(
            f"tokens {own} has shape {list(ids.shape)} and type {ids.dtype}; give [tokens] whole numbers."
        )
    cut = int(len(ids) * (1 - HELD_OUT))
    return ids[:cut], ids[cut:]


def windows(ids: np.ndarray, starts: np.ndarray, size: Size) -> Tensor:
    """[count, length] tokens, checked against the vocabulary."""
    if len(ids) <= size.length:
        raise UnbraidError(f"a part of the text has {len(ids)} tokens; size needs more than {size.length}.")
    rows = np.stack([ids[s : s + size.length] for s in starts]).astype(np.int64)
    if rows.min() < 0 or rows.max() >= size.vocabulary:
        raise UnbraidError(f"the text has token {rows.max()}; the model of this size has {size.vocabulary}.")
    return torch.from_numpy(rows)


def pretrain(
    variant: str, placement: str, size_name: str, seed: int, *, steps: int | None = None, lr: float | None = None,
    own: Path | None = None, device: str | None = None, precision: str = "no", checkpoint_dir: Any = None,
    progress: bool | None = False, base: str = "llama",
) -> dict[str, Any]:  # fmt: skip
    """Train one model; all models of a seed read the same windows in the same order.

    Args:
        variant: one of `VARIANTS`.
        placement: one of `PLACEMENTS`.
        size_name: one of `SIZES`.
        seed: of weights and windows.
        steps: of the optimizer; None: the size's.
        lr: greatest rate; None: the size's.
        own: see `text`.
        device: where to train; None: where accelerate says.
        precision: accelerate's.
        checkpoint_dir: to go on from.
        progress: bar on stderr.
        base: see `build`.

    Returns:
        Weights; loss in nats per token of held-out text, of the whole model and without its variant layers; losses at
        four points of the training; the greatest logit of each layer on some of that text.
    """
    size = SIZES[size_name]
    total = steps or size.steps
    train, valid = text(size.vocabulary, own)
    fixed = windows(train, np.array([0]), size)[0] if variant == "sequence" else None
    model = build(variant, placement, size, seed, fixed, base)
    if device is not None:
        model.to(device)
    at, found = sorted({max(1, round(total * k / 4)) for k in (1, 2, 3, 4)}), {}

    def given(step: int, generator: torch.Generator) -> Tensor:
        rng = np.random.default_rng([seed, step])
        return windows(train, rng.integers(0, len(train) - size.length, size.batch), size)

    def look(step: int, module: Any, numbers: Any) -> None:
        if step in at:
            found[step] = validate(module, valid, size)

    warm, rate = min(size.warm, max(1, total // 10)), lr or size.lr
    fit_loop(
        model, lambda m, ids: loss(m, ids), given, steps=total, grad_clip=1.0, seed=seed, checkpoint_dir=checkpoint_dir,
        progress=progress, mixed_precision=precision, device=device, callbacks=[look],
        optimizer=lambda p: torch.optim.AdamW(p, lr=rate, betas=size.betas, eps=1e-8, weight_decay=0.1),
        scheduler=lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: rise_and_fall(s, warm, total)),
    )  # fmt: skip
    made = {
        "variant": variant, "placement": placement, "seed": seed, "steps": list(found), "losses": list(found.values()),
        "weights": sum(p.numel() for p in model.parameters()), "loss": validate(model, valid, size),
    }  # fmt: skip
    some = windows(valid, np.arange(size.batch) * (len(valid) - size.length - 1) // size.batch, size)
    with looking(model):
        made["logits"] = logits(model, some.to(model.model.embed_tokens.weight.device))
    mixed = variant != "standard" and placement != "uniform"
    return {**made, "skipped": validate(skip(model), valid, size) if mixed else None}


def rise_and_fall(step: int, warm: int, total: int) -> float:
    """The rate's share of its greatest: a linear rise, then half a cosine."""
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, total - warm))))


def loss(model: Any, ids: Tensor) -> Tensor:
    """Cross-entropy of each next token, in nats."""
    ids = ids.to(model.model.embed_tokens.weight.device)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def validate(model: Any, ids: np.ndarray, size: Size) -> float:
    """Loss in nats per token of held-out text, the same windows each time."""
    before = model.training
    model.eval()
    count = min(TESTED, (len(ids) - 1) // size.length)
    starts = np.linspace(0, len(ids) - size.length - 1, max(1, count)).astype(int)
    with torch.no_grad():
        each = [
            (float(loss(model, windows(ids, part, size))), len(part))
            for part in np.array_split(starts, max(1, len(starts) // size.batch))
        ]
    model.train(before)
    return sum(value * n for value, n in each) / sum(n for _, n in each)
