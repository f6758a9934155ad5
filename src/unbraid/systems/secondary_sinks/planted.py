"""A real `Qwen2ForCausalLM` in which sinks are planted: who, when, how long and how strong is known.

Residual dimension 0 is the sink direction, 1 marks the first token, 8 to 10 mark three trigger tokens. One neuron per
(token, block) reads its mark and writes along dimension 0; queries have a constant along the slowest rotary pair, and
keys read dimension 0 there, so that whatever points along dimension 0 is attended to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unbraid.core.blocks import blocks, listening
from unbraid.core.errors import UnbraidError

if TYPE_CHECKING:
    from transformers import Qwen2ForCausalLM

SINK, FIRST, FEATURES = 0, 1, (8, 9, 10)
BOS, TRIGGERS, VOCABULARY = 0, (1, 2, 3), 64
SLOPE = 4.0  # of the gate on the mark; makes the neuron nearly an even (quadratic) amplifier for weak marks
QUERY, KEY = 4.0, 1.3  # constant query and key weight: a pointed key gets about 10 logits more than others


@dataclass(frozen=True)
class Plant:
    """A planted sink: its token's MLP output at block `create` is `norm` along the direction, and undone at `kill`."""

    create: int
    kill: int
    norm: float

    @property
    def level(self) -> tuple[int, int]:
        """(l_start, lifetime) that a detector must find."""
        return self.create, self.kill - self.create


FIRST_TOKEN = Plant(2, 11, 200.0)
SECONDARIES = (Plant(4, 9, 60.0), Plant(5, 8, 25.0), Plant(6, 11, 120.0))


@dataclass
class Planted:
    """The model, a text in which every trigger occurs once, and the truth.

    Attributes:
        model: in evaluation mode.
        input_ids: [1, tokens], the first of which is the primary sink.
        truth: position -> (l_start, lifetime).
        plants: position -> what was planted.
    """

    model: Qwen2ForCausalLM
    input_ids: Tensor
    truth: dict[int, tuple[int, int]]
    plants: dict[int, Plant]


def plant(
    seed: int = 0,
    secondaries: Sequence[Plant] = SECONDARIES,
    first: Plant = FIRST_TOKEN,
    tokens: int = 64,
    clear: bool = True,
) -> Planted:
    """Builds the model and its text.

    Args:
        seed: of weights, ordinary tokens and places of the triggers.
        secondaries: up to three plants, one per trigger token.
        first: the primary sink.
        tokens: length of the text.
        clear: remove the marks from ordinary tokens and from what attention and MLPs write; without this the planted
            neurons fire on ordinary tokens as well, and there are many more sinks than were planted.

    Raises:
        UnbraidError: more plants than triggers, a plant outside the model's 12 blocks, or too short a text.
    """
    if len(secondaries) > len(TRIGGERS):
        raise UnbraidError(f"There are {len(TRIGGERS)} trigger tokens, so {len(secondaries)} plants do not fit.")
    if any(not 0 <= p.create < p.kill <= 12 or p.norm <= 0 for p in (first, *secondaries)):
        raise UnbraidError("Every plant needs 0 <= create < kill <= 12 and a norm above 0.")
    if tokens < 16:
        raise UnbraidError(f"tokens={tokens}: the text needs 16 or more.")
    generator = torch.Generator().manual_seed(seed)
    model = _model(generator, clear)
    ids = torch.randint(len(TRIGGERS) + 1, VOCABULARY, (1, tokens), generator=generator)
    ids[0, 0] = BOS
    # triggers lie in the first half, so that the second half of the queries sees all of them
    at = 2 + torch.randperm(tokens // 2 - 2, generator=generator)[: len(secondaries)].sort().values
    ids[0, at] = torch.tensor(TRIGGERS[: len(secondaries)])
    marks = {0: (FIRST, first)} | {
        int(t): (FEATURES[i], p) for i, (t, p) in enumerate(zip(at, secondaries, strict=True))
    }
    for layer in range(12):
        for t, (mark, p) in marks.items():
            if layer in (p.create, p.kill):
                _plant(model, ids, layer, t, mark, p.norm if layer == p.create else -p.norm)
    plants = {t: p for t, (mark, p) in marks.items() if mark != FIRST}
    return Planted(model, ids, {t: p.level for t, p in plants.items()}, plants)


def _model(generator: torch.Generator, clear: bool) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=12, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval().requires_grad_(False)
    for name, p in model.named_parameters():
        if p.dim() > 1:
            p.copy_(0.02 * torch.randn(p.shape, generator=generator))
        else:
            p.fill_(1.0 if "norm" in name else 0.0)
    table = model.model.embed_tokens.weight
    table.copy_(0.5 * torch.randn(table.shape, generator=generator))
    marks = [SINK, FIRST, *FEATURES]
    if clear:
        table[:, marks] = 0.0
    table[BOS, FIRST] = 1.0
    for trigger, feature in zip(TRIGGERS, FEATURES, strict=True):
        table[trigger, feature] = 1.0
    heads, key_heads = 4, 2
    width = 64 // heads
    slow = width // 2 - 1  # first half of the slowest rotary pair
    for block in blocks(model):
        if clear:
            for part in (block.out, block.down):
                assert isinstance(part, nn.Linear)
                part.weight[marks] = 0.0
        named: dict[str, Any] = dict(block.attention.named_children())
        for h in range(heads):
            named["q_proj"].bias[h * width + slow] = QUERY
        for g in range(key_heads):
            named["k_proj"].weight[g * width + slow, SINK] = KEY
    return model


@torch.no_grad()
def _plant(model: Any, ids: Tensor, layer: int, position: int, mark: int, norm: float) -> None:
    """Gives one neuron of a block's MLP to one token: its output there becomes `norm` along the sink direction."""
    block = blocks(model)[layer]
    assert block.mlp is not None
    seen: list[Tensor] = []
    with listening(None, {block.mlp: lambda module, args, kwargs: seen.append(args[0])}):
        model.model(input_ids=ids, use_cache=False)
    read = float(seen[0][0, position, mark])
    parts: dict[str, Any] = dict(block.mlp.named_children())
    neuron = mark  # every mark has its own neuron in every block
    parts["gate_proj"].weight[neuron] = 0.0
    parts["up_proj"].weight[neuron] = 0.0
    parts["gate_proj"].weight[neuron, mark] = SLOPE
    parts["up_proj"].weight[neuron, mark] = 1.0
    fired = float(torch.nn.functional.silu(torch.tensor(SLOPE * read))) * read
    parts["down_proj"].weight[:, neuron] = 0.0
    parts["down_proj"].weight[SINK, neuron] = norm / fired


def attention_only(scores: Tensor, position: int, threshold: float = 0.3) -> list[int]:
    """The baseline: blocks at which a token's mean column score exceeds a threshold.

    Args:
        scores: [L, T] mean attention received.
        position: of the token.
        threshold: on the score.
    """
    return [int(x) for x in (scores[:, position] > threshold).nonzero().flatten()]
