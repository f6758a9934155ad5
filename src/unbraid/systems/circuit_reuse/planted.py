"""Models whose circuits are known because they were put there: no training, no download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unbraid.core.heads import Head
from unbraid.core.patching import Edges, PathPatcher
from unbraid.data.prompts import PromptPair, PromptSet

WIDTH = 16  # of a head, and of the slot that a planted head writes


def _blank(layers: int, heads: int, slots: int, embedded: int, vocabulary: int, seed: int) -> Any:
    """A GPT-2 whose heads read token embeddings at random and write nothing, and whose MLPs do nothing."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    size = embedded + WIDTH * slots
    assert size == heads * WIDTH
    config = GPT2Config(
        n_layer=layers, n_head=heads, n_embd=size, n_positions=64, vocab_size=vocabulary, n_inner=WIDTH,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    for p in model.parameters():
        p.requires_grad_(False)
    core = model.transformer
    for embedding in (core.wte.weight, core.wpe.weight):
        embedding.zero_()
        embedding[:, :embedded] = torch.randn(len(embedding), embedded)
    core.wpe.weight *= 0.3
    for block in core.h:
        block.attn.c_attn.weight.zero_()
        block.attn.c_attn.weight[:embedded] = torch.randn(embedded, 3 * size) * 0.3
        for silent in (block.attn.c_proj, block.mlp.c_proj):
            silent.weight.zero_()
            silent.bias.zero_()
    model.lm_head.weight.zero_()
    return model


def _write(model: Any, head: tuple[int, int], slot: slice, scale: float = 1.0) -> None:
    layer, h = head
    weight = model.transformer.h[layer].attn.c_proj.weight
    new = torch.randn(WIDTH, slot.stop - slot.start) * scale
    weight[h * WIDTH : (h + 1) * WIDTH, slot] = new - new.mean(1, keepdim=True)  # norms take means away: let it be zero


def _read(model: Any, head: tuple[int, int], channel: str, slot: slice, scale: float = 1.0) -> None:
    layer, h = head
    weight = model.transformer.h[layer].attn.c_attn.weight
    size = weight.shape[0]
    start = "qkv".index(channel) * size + h * WIDTH
    weight[slot, start : start + WIDTH] = torch.randn(slot.stop - slot.start, WIDTH) * scale


@dataclass(eq=False)
class PlantedEdges:
    """A GPT-2 with six paths.

    Attributes:
        model: 4 layers of 6 heads.
        clean: [24, 12] tokens.
        corrupt: [24, 12] other tokens.
        truth: (sender, channel, receiver) with layer and head numbers; the receiver of "logits" is (4, -1).
    """

    model: Any
    clean: Tensor
    corrupt: Tensor
    truth: frozenset[tuple[tuple[int, int], str, tuple[int, int]]]

    def patcher(self, **options: Any) -> PathPatcher:
        """A patcher whose metric is the logit difference of the two runs' most likely tokens."""
        with torch.no_grad():
            best = [self.model(x).logits[:, -1] for x in (self.clean, self.corrupt)]
        first = best[0].argmax(-1)
        second = best[1].scatter(1, first[:, None], -torch.inf).argmax(-1)
        return PathPatcher(self.model, self.clean, self.corrupt, first, second, **options)

    def is_true(self, edges: Edges) -> np.ndarray:
        """[edges] bool, which of the edges were planted."""
        layer = {f"transformer.h.{i}.attn": i for i in range(4)}

        def number(head: Head) -> tuple[int, int]:
            return layer[head[0]], head[1]

        return np.array([
            (number(s), r.channel, (4, -1) if r.channel == "logits" else number((r.site, r.head))) in self.truth
            for s, r in zip(edges.senders, edges.receivers, strict=True)
        ])  # fmt: skip


def planted_edges(seed: int = 0) -> PlantedEdges:
    """Six planted paths among 672 candidates (heads into q, k, v of later heads and into the logits).

    A = (0, 2), B = (1, 4), C = (2, 1) and D = (3, 5) write into slots of their own; A feeds B's values and C's queries,
    B feeds D's values, C feeds D's keys, and the output embedding reads B and D.

    Args:
        seed: of weights and tokens.
    """
    model = _blank(layers=4, heads=6, slots=4, embedded=32, vocabulary=50, seed=seed)
    a, b, c, d = (0, 2), (1, 4), (2, 1), (3, 5)
    slot = {h: slice(32 + WIDTH * i, 48 + WIDTH * i) for i, h in enumerate((a, b, c, d))}
    for head in (a, b, c, d):
        _write(model, head, slot[head], 0.6)
    _read(model, b, "v", slot[a])
    _read(model, c, "q", slot[a])
    _read(model, d, "v", slot[b])
    _read(model, d, "k", slot[c])
    for head in (b, d):
        model.lm_head.weight[:, slot[head]] = torch.randn(50, WIDTH)
    g = torch.Generator().manual_seed(seed + 1)
    clean, corrupt = (torch.randint(0, 50, (24, 12), generator=g) for _ in range(2))
    out = (4, -1)
    truth = {(a, "v", b), (a, "q", c), (b, "v", d), (c, "k", d), (b, "logits", out), (d, "logits", out)}
    return PlantedEdges(model, clean, corrupt, frozenset(truth))


@dataclass(eq=False)
class PlantedTasks:
    """A GPT-2 with two circuits of five heads that share three.

    Attributes:
        model: 5 layers of 8 heads.
        first, second: prompts of the two tasks.
        heads: (heads of the first task, of the second), as (layer, head).
    """

    model: Any
    first: PromptSet
    second: PromptSet
    heads: tuple[frozenset[tuple[int, int]], frozenset[tuple[int, int]]]


def planted_tasks(seed: int = 0, count: int = 24) -> PlantedTasks:
    """Two tasks on different tokens: three heads are shared, the ones that gather and those that steer are not.

    An early head copies the source token into its slot. A gatherer per task reads its own half of that slot, a steering
    head per task reads its gatherer, and two movers take their queries from both steering heads. Tokens 0-19 are the
    first task's, 20-39 the second's: they differ in other dimensions, so each task leaves the other's heads
    without a signal.

    Args:
        seed: of weights and tokens.
        count: prompts per task.
    """
    model = _blank(layers=5, heads=8, slots=6, embedded=32, vocabulary=60, seed=seed)
    early, gather, steer, movers = (0, 3), ((1, 1), (1, 6)), ((2, 0), (2, 5)), ((3, 2), (4, 7))
    slot = {h: slice(32 + WIDTH * i, 48 + WIDTH * i) for i, h in enumerate((early, *gather, *steer, *movers[:1]))}
    slot[movers[1]] = slot[movers[0]]  # both movers write where the output embedding reads
    _apart(model)
    for layer, head in (early, *gather, *steer):  # these attend evenly: what they carry is in their values alone
        attn = model.transformer.h[layer].attn.c_attn.weight
        size = attn.shape[0]
        for part in range(3):
            attn[:, part * size + head * WIDTH : part * size + (head + 1) * WIDTH] = 0
    half = WIDTH // 2
    for task in range(2):  # the early head keeps the two tasks' tokens apart in its slot
        dims = slice(task * 16, task * 16 + 16)
        _read_part(model, early, dims, slice(task * half, task * half + half))
    weight = model.transformer.h[early[0]].attn.c_proj.weight
    weight[early[1] * WIDTH : (early[1] + 1) * WIDTH, slot[early]] = torch.eye(WIDTH)
    for task in range(2):
        begin = slot[early].start + task * half
        _read(model, gather[task], "v", slice(begin, begin + half))
        _read(model, steer[task], "v", slot[gather[task]])
        for writer in (gather[task], steer[task]):
            _write(model, writer, slot[writer])
    for mover in movers:
        for source in steer:
            _read(model, mover, "q", slot[source])
        _write(model, mover, slot[mover])
    model.lm_head.weight[:, slot[movers[0]]] = torch.randn(60, WIDTH)
    prompts = [_prompts(model, f"planted {t + 1}", 20 * t, count, seed + 10 * t) for t in range(2)]
    sets = [frozenset({early, gather[t], steer[t], *movers}) for t in range(2)]
    return PlantedTasks(model, prompts[0], prompts[1], (sets[0], sets[1]))


def _apart(model: Any) -> None:
    """Tokens 0-19 in dimensions 0-15, the others in 16-31, of equal length and mean: norms then treat all alike."""
    embedding = model.transformer.wte.weight
    model.transformer.wpe.weight.zero_()
    embedding[:20, 16:] = 0
    embedding[20:, :16] = 0
    for own in (embedding[:20, :16], embedding[20:, 16:32]):
        own -= own.mean(1, keepdim=True)
        own *= 4 / own.norm(dim=1, keepdim=True)


def _read_part(model: Any, head: tuple[int, int], dims: slice, part: slice) -> None:
    layer, h = head
    weight = model.transformer.h[layer].attn.c_attn.weight
    start = 2 * weight.shape[0] + h * WIDTH
    new = torch.randn(dims.stop - dims.start, part.stop - part.start)
    weight[dims, start + part.start : start + part.stop] = new - new.mean(1, keepdim=True)


@torch.no_grad()
def _prompts(model: Any, task: str, low: int, count: int, seed: int) -> PromptSet:
    """Random tokens of one range; the twin has another token at place 4 of 8."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        clean = rng.integers(low, low + 20, 8)
        twin = clean.copy()
        twin[4] = low + (clean[4] - low + rng.integers(1, 20)) % 20
        both = model(torch.from_numpy(np.stack([clean, twin]))).logits[:, -1]
        change = both[0] - both[1]
        answer, distractor = int(change.argmax()), int(change.argmin())
        places: dict[str, tuple[int, ...]] = {"source": (4,), "end": (7,)}
        pairs.append(
            PromptPair(
                tuple(map(int, clean)), tuple(map(int, twin)), (answer,), (distractor,), (answer, distractor), places,
                "", "", "", "",
            )
        )  # fmt: skip
    return PromptSet(task, tuple(pairs), {"seed": seed})
