"""A tiny copy model whose copy heads are known by construction: the truth that the detector is tested against.

Data: BOS, fillers, KEY n1..n6, fillers, KEY -> n1..n6. A Llama of 3 layers and 8 heads learns it with the outputs of
all heads but five permanently zero; only the two writers in layer 1 can be the copy heads, because layer 0 must build
the previous-token signal first.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unbraid import taps
from unbraid.core.attach import attach
from unbraid.core.heads import HeadScores, HeadSet
from unbraid.core.train import fit_loop
from unbraid.systems.retrieval_heads.detect import RowWatch, _table

BOS, KEY, FILLERS, NEEDLES, M = 0, 1, (2, 66), (66, 160), 6
WRITERS = ((0, 1), (0, 6), (1, 2), (1, 5), (2, 3))
TRUE_HEADS = ((1, 2), (1, 5))
SITE = "model.layers.{}.self_attn"


@dataclass
class CopyBatch:
    """Sequences [B, n] whose last six tokens are the answer; `needle` [B, 6] are the positions to copy from."""

    ids: Tensor
    needle: Tensor


def copy_batch(size: int, generator: torch.Generator, length: int | None = None) -> CopyBatch:
    """A batch of copy problems of one length, 24 to 64 tokens before the answer."""
    n = int(torch.randint(24, 65, (1,), generator=generator)) if length is None else length
    ids = torch.randint(*FILLERS, (size, n + M), generator=generator)
    ids[:, 0] = BOS
    # six different tokens: a repeated one has two successors, and no head could know which to copy
    facts = torch.rand(size, NEEDLES[1] - NEEDLES[0], generator=generator).argsort(1)[:, :M] + NEEDLES[0]
    at = torch.randint(1, n - M - 2, (size,), generator=generator)
    where = at[:, None] + 1 + torch.arange(M)
    ids[torch.arange(size), at] = KEY
    ids.scatter_(1, where, facts)
    ids[:, n - 1] = KEY
    ids[:, n:] = facts
    return CopyBatch(ids, where)


def copy_model(seed: int = 0, writers: tuple[tuple[int, int], ...] | None = WRITERS) -> nn.Module:
    """An untrained Llama (hidden 128, 3 layers, 8 heads); outputs of heads that are not writers stay zero for ever."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=8,
            vocab_size=160, max_position_embeddings=128, bos_token_id=BOS, eos_token_id=None, pad_token_id=None,
        )
    )  # fmt: skip
    if writers is not None:
        for i, layer in enumerate(model.model.layers):
            weight = layer.self_attn.o_proj.weight
            keep = torch.zeros(128)
            for site, head in writers:
                if site == i:
                    keep[head * 16 : (head + 1) * 16] = 1.0
            with torch.no_grad():
                weight.mul_(keep)
            weight.register_hook(lambda g, keep=keep: g * keep)
    return model


def answer_loss(model: nn.Module, batch: CopyBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy on the six answer tokens, and their accuracy."""
    logits = model(input_ids=batch.ids[:, :-1], logits_to_keep=M).logits
    target = batch.ids[:, -M:]
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())
    return loss, {"accuracy": (logits.argmax(-1) == target).float().mean()}


def train_copy_model(
    seed: int = 0,
    steps: int = 700,
    target: float = 0.995,
    writers: tuple[tuple[int, int], ...] | None = WRITERS,
    progress: bool | None = None,
) -> tuple[nn.Module, dict[str, float]]:
    """Trains a copy model until its accuracy on fresh problems reaches the target (about 350 steps).

    Returns:
        The model, and {"steps", "accuracy"} where it stopped.
    """
    model = copy_model(seed, writers)
    reached = {"steps": float(steps), "accuracy": 0.0}

    def batches(step: int, generator: torch.Generator) -> CopyBatch:
        return copy_batch(64, generator)

    def watch(step: int, module: nn.Module, numbers: object) -> bool:
        if step % 20 and step < steps:
            return False
        reached.update(steps=float(step), accuracy=accuracy(model, seed=seed + 10_000 + step))
        return reached["accuracy"] >= target

    fit_loop(model, answer_loss, batches, steps=steps, lr=1e-3, seed=seed, callbacks=(watch,), progress=progress)
    return model.eval(), reached


@torch.inference_mode()
def accuracy(model: nn.Module, seed: int, masked: HeadSet | None = None, problems: int = 256) -> float:
    """Share of answer tokens right, on fresh problems of four lengths, with some heads zeroed."""
    generator, found = torch.Generator().manual_seed(seed), []
    edits = [taps.ablate(masked)] if masked is not None and len(masked) else []
    was = model.training
    model.eval()
    with attach(model, *edits):
        for length in (24, 36, 48, 64):
            batch = copy_batch(problems // 4, generator, length)
            found.append(float(answer_loss(model, batch)[1]["accuracy"]))
    model.train(was)
    return float(np.mean(found))


@torch.inference_mode()
def score_copy_model(model: nn.Module, seed: int = 1, problems: int = 40) -> HeadScores:
    """Retrieval scores on the copy task: share of needle positions that a head copies, mean over solved problems."""
    generator, found = torch.Generator().manual_seed(seed), []
    for i in range(problems):
        batch = copy_batch(1, generator, 24 + 2 * (i % 21))
        watch = RowWatch(batch.needle[0].tolist())
        watch.total = batch.ids.shape[1] - 1
        with attach(model, watch) as session:
            logits = model(input_ids=batch.ids[:, :-1], logits_to_keep=M).logits[0]
        if not bool((logits.argmax(-1) == batch.ids[0, -M:]).all()):
            continue
        best = _table({s: b[:, -M:] for s, b in watch.best.items()})
        found.append((best == batch.needle[0].numpy()).mean(-1))
        sites = list(session.sites)
    mean = np.mean(found, 0) if found else np.zeros((3, 8))
    names = sites if found else [SITE.format(i) for i in range(3)]
    return HeadScores(dict(zip(names, mean, strict=True)), "retrieval score")


def check_copy_model(seed: int = 0, progress: bool | None = None) -> dict[str, float]:
    """The sheet's check: precision and recall of the detector at 0.5, and what masking one head costs.

    Returns:
        Figures by name; `drop_top` is the accuracy lost with the best head zeroed, `drop_random` with heads that score
        below 0.5 in the same layer.
    """
    model, reached = train_copy_model(seed, progress=progress)
    scores = score_copy_model(model, seed + 1)
    found = scores.above(0.5)
    truth = HeadSet((SITE.format(i), h) for i, h in TRUE_HEADS)
    hit = len(found & truth)
    plain = accuracy(model, seed + 2)
    top = scores.top(1)
    layer = next(iter(top.sites))
    others = [(layer, h) for h in range(8) if scores[layer, h] < 0.5]
    drops = [plain - accuracy(model, seed + 2, HeadSet([h])) for h in others]
    return {
        "steps": reached["steps"],
        "accuracy": plain,
        "precision": hit / max(1, len(found)),
        "recall": hit / len(truth),
        "lowest_true_score": min(scores[h] for h in truth),
        "highest_other_score": max(scores[h] for h in scores if h not in truth),
        "drop_top": plain - accuracy(model, seed + 2, top),
        "drop_both": plain - accuracy(model, seed + 2, truth),
        "drop_random": float(np.mean(drops)),
    }


def check_seeds(seeds: int, out: Path) -> dict[str, Any]:
    """`check_copy_model` over seeds 0, 1, ...; `out` is rewritten after each, so nothing is lost."""
    rows: list[dict[str, float]] = []
    for seed in range(seeds):
        rows.append({"seed": float(seed), **check_copy_model(seed)})
        names = [n for n in rows[0] if n != "seed"]
        summary = {n: {"mean": float(np.mean([r[n] for r in rows])), "min": min(r[n] for r in rows)} for n in names}
        data = {"what": check_copy_model.__doc__, "torch": torch.__version__, "summary": summary, "seeds": rows}
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, out)
    return data


if __name__ == "__main__":
    print(json.dumps(check_seeds(5, Path("results/retrieval_heads/copy_model.json"))["summary"], indent=1))
