"""Masked language models of equal size and training on real text that differ in how they know positions."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers import DebertaV2Config, DebertaV2ForMaskedLM
from transformers.models.t5.modeling_t5 import T5Attention

from unbraid.core.errors import UnbraidError
from unbraid.core.train import fit_loop
from unbraid.data.text import Corpus, corpus
from unbraid.systems.deberta.attention import QuickSecond, joined, masked, pairwise, silenced
from unbraid.systems.deberta.decoding import DebertaV2ForEnhancedMaskedLM
from unbraid.systems.deberta.masking import mask_spans
from unbraid.systems.deberta.swapping import accelerate

Arm = Literal["disentangled", "disentangled + decoder", "c2p", "p2c", "absolute", "T5"]
ARMS = get_args(Arm)
# width, layers, heads, length, batch, steps, vocabulary
SIZES: dict[str, tuple[int, int, int, int, int, int, int]] = {
    "tiny": (32, 2, 2, 32, 8, 20, 512),
    "small": (128, 3, 4, 64, 32, 1_000, 2_048),
    "medium": (256, 6, 4, 128, 64, 20_000, 4_096),
    "paper": (768, 12, 12, 512, 256, 1_000_000, 32_000),
}
CONFIG: Any = DebertaV2Config  # its annotations leave out half of its options
PAD, MASK, SPECIAL = 0, 1, ("[PAD]", "[MASK]")
T5_BUCKETS, T5_LONGEST = 32, 128
TESTED = 400  # windows of the validation text
# best of 1e-3 and 3e-3 on seed 100; absolute positions learn nothing but frequencies at 3e-3
LR = {"absolute": 1e-3}
USUAL_LR = 3e-3


class T5Biased(QuickSecond):
    """Attention with T5's bias: one number for each head and bucket of distance, shared by all layers."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor, output_attentions: bool = False,
        query_states: Tensor | None = None, relative_pos: Tensor | None = None, rel_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """As the class it stands for, without probabilities."""
        me: Any = self
        query, key, value = self._parts(hidden_states, hidden_states)
        n = query.shape[2]
        place = torch.arange(n, device=query.device)
        away = T5Attention._relative_position_bucket(place - place[:, None], True, T5_BUCKETS, T5_LONGEST)
        bias = me.table[0](away).permute(2, 0, 1)[None].expand(len(query), -1, -1, -1)
        found = masked(bias, pairwise(attention_mask, 0, n), query)
        query = silenced(query, attention_mask) / query.shape[-1] ** 0.5
        return joined(sdpa(query, key, value, found, me.dropout.p if me.training else 0.0, scale=1.0)), None


def build(arm: Arm, size: str, seed: int) -> Any:
    """A model of the arm, its inner layers widened until all arms of a size have as many weights.

    Args:
        arm: "disentangled" (both terms, a table of relative positions), the same with one term, or with the enhanced
            mask decoder; "absolute" positions added to words; "T5": a bias for each distance and head.
        size: one of `SIZES`.
        seed: of the weights.
    """
    most = max(sum(p.numel() for p in _build(one, size, 0, 0).parameters()) for one in ARMS)
    small = sum(p.numel() for p in _build(arm, size, 0, 0).parameters())
    width, layers = SIZES[size][:2]
    return _build(arm, size, (most - small) // (layers * (2 * width + 1)), seed)


def _build(arm: Arm, size: str, wider: int, seed: int) -> Any:
    width, layers, heads, length, _, _, vocabulary = SIZES[size]
    relative = arm not in ("absolute", "T5")
    types = {"c2p": ["c2p"], "p2c": ["p2c"]}.get(arm, ["c2p", "p2c"])
    config = CONFIG(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * width + wider, max_position_embeddings=length, relative_attention=relative,
        position_buckets=length // 2, pos_att_type=types if relative else [], share_att_key=True,
        norm_rel_ebd="layer_norm" if relative else "none", position_biased_input=arm == "absolute", type_vocab_size=0,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, legacy=False, pad_token_id=PAD,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = (DebertaV2ForEnhancedMaskedLM if "decoder" in arm else DebertaV2ForMaskedLM)(config)
        accelerate(model)
        if arm == "T5":
            model.positions = nn.Embedding(T5_BUCKETS, heads)
            nn.init.zeros_(model.positions.weight)
            for layer in model.deberta.encoder.layer:
                layer.attention.self.__class__ = T5Biased
                layer.attention.self.__dict__["table"] = (model.positions,)  # one table, registered once
    return model


@cache
def _text(vocabulary: int) -> tuple[Corpus, np.ndarray]:
    """The corpus, and which tokens go on with the word before."""
    made = corpus(vocabulary, SPECIAL)
    spelt = [made.tokenizer.id_to_token(i) or "" for i in range(vocabulary)]
    return made, np.array([one[:1].isalnum() for one in spelt])


def batch(ids: np.ndarray, size: str, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Windows with 15 % of their tokens masked in spans of whole words, and labels: [count, length] each."""
    length, vocabulary = SIZES[size][3], SIZES[size][6]
    starts = rng.integers(0, len(ids) - length, count)
    rows = np.stack([ids[s : s + length] for s in starts])
    goes_on = _text(vocabulary)[1][rows]
    inputs, labels = mask_spans(
        rows, mask_id=MASK, vocabulary=vocabulary, rng=rng, continues=goes_on, lowest=len(SPECIAL)
    )
    return torch.from_numpy(inputs), torch.from_numpy(labels)


def pretrain(
    arm: Arm, size: str, seed: int, *, lr: float | None = None, steps: int | None = None, looks: int = 6,
    device: str = "cpu", checkpoint_dir: Any = None, progress: bool | None = False, precision: str = "no",
) -> dict[str, Any]:  # fmt: skip
    """Train one model; all arms of a seed read the same windows and masks in the same order.

    Args:
        arm: one of `ARMS`.
        size: one of `SIZES`.
        seed: of weights, windows and masks.
        lr: of AdamW at the end of the warm-up, a tenth of the steps; falls linearly to 0; None: the arm's own,
            see `LR`.
        steps: of the optimizer; None: the size's.
        looks: how often the validation loss is taken, evenly over training.
        device: where to train.
        checkpoint_dir: to go on from.
        progress: bar on stderr.
        precision: accelerate's.

    Returns:
        arm, seed, weights, steps looked at and the loss in nats per masked token of held-out text at each.

    Raises:
        UnbraidError: the arm or size is unknown.
    """
    if arm not in ARMS or size not in SIZES:
        raise UnbraidError(f"arm {arm!r} and size {size!r}: give one of {', '.join(ARMS)}, and of {', '.join(SIZES)}.")
    _, _, _, _, rows, usual, vocabulary = SIZES[size]
    total = steps or usual
    model = build(arm, size, seed).to(device)
    train, valid = _text(vocabulary)[0].train, _text(vocabulary)[0].valid
    at = sorted({round(total * (k + 1) / looks) for k in range(looks)})
    found: dict[int, float] = {}

    def given(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return batch(train, size, rows, np.random.default_rng([seed, step]))

    def loss(m: Any, pair: tuple[Tensor, Tensor]) -> Tensor:
        inputs, labels = (x.to(device) for x in pair)
        return _loss(m, inputs, labels)

    def look(step: int, module: Any, numbers: Any) -> None:
        if step in at:
            found[step] = validate(module, valid, size, device)

    warm, rate = max(1, total // 10), lr or LR.get(arm, USUAL_LR)
    fit_loop(
        model, loss, given, steps=total, grad_clip=1.0, seed=seed, checkpoint_dir=checkpoint_dir, progress=progress,
        optimizer=lambda p: torch.optim.AdamW(p, lr=rate, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
        scheduler=lambda o: torch.optim.lr_scheduler.LambdaLR(
            o, lambda s: min((s + 1) / warm, max(0.0, (total - s) / max(1, total - warm)))
        ),
        callbacks=[look], device=device, mixed_precision=precision,
    )  # fmt: skip
    return {
        "arm": arm, "seed": seed, "weights": sum(p.numel() for p in model.parameters()), "steps": list(found),
        "losses": list(found.values()), "loss": validate(model, valid, size, device),
    }  # fmt: skip


def _loss(model: Any, inputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy at masked tokens; the head is not asked for others."""
    chosen = labels != -100
    mask = torch.ones_like(inputs)
    if isinstance(model, DebertaV2ForEnhancedMaskedLM):
        logits = model.predict_rows(inputs, mask, chosen)
    else:
        hidden = model.deberta(inputs, attention_mask=mask).last_hidden_state[chosen]
        logits = cast("Any", model).lm_predictions(hidden, model.deberta.embeddings.word_embeddings)
    return nn.functional.cross_entropy(logits.float(), labels[chosen])


def validate(model: Any, ids: np.ndarray, size: str, device: str) -> float:
    """Loss in nats per masked token, the same windows and masks each time."""
    before, total, count = model.training, 0.0, 0
    model.eval()
    rng = np.random.default_rng(10_000)
    with torch.no_grad():
        for _ in range(0, TESTED, 50):
            inputs, labels = (x.to(device) for x in batch(ids, size, 50, rng))
            asked = int((labels != -100).sum())
            total += float(_loss(model, inputs, labels)) * asked
            count += asked
    model.train(before)
    return total / count
