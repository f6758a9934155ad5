"""The heads that DeBERTa was trained with and transformers leaves out: the enhanced mask decoder, replaced tokens.

Names of weights are those of the released checkpoints (``lm_predictions.lm_head.*``, ``mask_predictions.*``,
``deberta.embeddings.position_embeddings.weight``), so that `from_pretrained` reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import DebertaConfig, DebertaModel, DebertaV2Config, DebertaV2Model
from transformers.activations import ACT2FN
from transformers.modeling_outputs import MaskedLMOutput, TokenClassifierOutput
from transformers.models.deberta.modeling_deberta import DebertaEncoder, DebertaPreTrainedModel
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2PreTrainedModel

from unbraid.core.errors import UnbraidError
from unbraid.systems.deberta.attention import Quick
from unbraid.systems.deberta.positions import bucket
from unbraid.systems.deberta.swapping import accelerate

STEPS = 2  # how often the last layer decodes, Section 3.2 of the paper's appendix and the released code


class _Words(nn.Module):
    """Hidden states [..., D] -> logits [..., V], with the table of words that the encoder reads."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, words: Tensor) -> Tensor:
        return self.LayerNorm(self.act(self.dense(hidden))) @ words.T + self.bias


class _Replaced(nn.Module):
    """Hidden states [B, N, D] -> logit of "was replaced", [B, N]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.classifier = nn.Linear(config.hidden_size, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        summed = self.LayerNorm(hidden[:, :1] + hidden)
        return self.classifier(self.act(self.dense(summed))).squeeze(-1)


class _Released:
    """`from_pretrained` that refuses a checkpoint without the head."""

    _head: str

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **options: Any) -> Any:
        """As transformers' own; the head must be in the checkpoint.

        Raises:
            UnbraidError: the checkpoint is of another architecture, or was saved without this head.
        """
        asked = options.pop("output_loading_info", False)
        made: Any = super()
        model, info = made.from_pretrained(name, *args, output_loading_info=True, **options)
        missing = sorted(info["missing_keys"])
        if missing:
            raise UnbraidError(
                f"{name} has no {missing[0]} (and {len(missing) - 1} more are missing); give a checkpoint of DeBERTa "
                f"with its pre-training head ({cls._head}), such as those that Microsoft released."
            )
        return (model, info) if asked else model


def _quick(encoder: Any) -> bool:
    return isinstance(encoder.layer[-1].attention.self, Quick)


def _fits(model: Any, ids: Tensor | None) -> None:
    most = model.deberta.embeddings.position_embeddings.num_embeddings
    if ids is not None and ids.shape[1] > most:
        raise UnbraidError(
            f"the text has {ids.shape[1]} tokens and the decoder {most} absolute positions; cut the text "
            "(truncation=True)."
        )


class _MaskedLM(_Released):
    """The encoder with the enhanced mask decoder; mixed into both versions."""

    _head = "lm_predictions"
    _keys_to_ignore_on_load_unexpected = (r"mask_predictions.*", r"cls\.")

    def _build(self, config: Any, encoder: type) -> None:
        me: Any = self
        if getattr(config, "embedding_size", config.hidden_size) != config.hidden_size:
            raise UnbraidError("the decoder adds positions to hidden states; embedding_size must equal hidden_size.")
        me.deberta = encoder(config)
        if me.deberta.embeddings.position_embeddings is None:  # as released: for the decoder, not added to the input
            me.deberta.embeddings.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        me.lm_predictions = nn.ModuleDict({"lm_head": _Words(config)})
        me.post_init()
        accelerate(me)

    def decode(self, hidden: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """Second-to-last hidden states [B, N, D] -> decoded states [B, N, D] of all positions."""
        me: Any = self
        encoder = me.deberta.encoder
        if isinstance(encoder, DebertaEncoder) and not _quick(encoder):
            raise UnbraidError("transformers' own attention of v1 takes no queries; call `accelerate(model)` first.")
        if position_ids is None:
            position_ids = torch.arange(hidden.shape[1], device=hidden.device)[None]
        mask = encoder.get_attention_mask(attention_mask)
        state = me.deberta.embeddings.position_embeddings(position_ids) + hidden
        where, table = encoder.get_rel_pos(hidden), encoder.get_rel_embedding()
        for _ in range(STEPS):
            state, _ = encoder.layer[-1](hidden, mask, query_states=state, relative_pos=where, rel_embeddings=table)
        return state

    def decode_rows(
        self, hidden: Tensor, attention_mask: Tensor, chosen: Tensor, position_ids: Tensor | None = None
    ) -> Tensor:
        """The rows of `decode` that are chosen, without the work for others: [B, N] of bool -> [chosen, D]."""
        me: Any = self
        encoder = me.deberta.encoder
        if not _quick(encoder):
            # transformers' own mixes up two settings where queries are fewer than keys
            return self.decode(hidden, attention_mask, position_ids)[chosen]
        if position_ids is None:
            position_ids = torch.arange(hidden.shape[1], device=hidden.device)[None].expand(hidden.shape[:2])
        places = chosen.sum(1)
        order = torch.argsort(chosen.float(), dim=1, descending=True, stable=True)[:, : int(places.max())]
        valid = torch.arange(order.shape[1], device=order.device) < places[:, None]
        # distances are those of places in the text, as in the encoder; `position_ids` choose rows of the table
        distance = order[:, :, None] - torch.arange(hidden.shape[1], device=order.device)
        if getattr(encoder, "position_buckets", -1) > 0:
            distance = bucket(distance, encoder.position_buckets, encoder.max_relative_positions)
        seen = attention_mask.bool()
        mask = valid[:, :, None] & seen.gather(1, order)[:, :, None] & seen[:, None]
        state = me.deberta.embeddings.position_embeddings(position_ids.gather(1, order))
        state = state + hidden.gather(1, order[..., None].expand(-1, -1, hidden.shape[-1]))
        layer, table = encoder.layer[-1], encoder.get_rel_embedding()
        for _ in range(STEPS):
            state, _ = layer(hidden, mask, query_states=state, relative_pos=distance, rel_embeddings=table)
        return state[valid]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **options: Any,
    ) -> MaskedLMOutput:
        """Logits [B, N, V]; while training with labels (-100: none) only their rows are made, and logits are None."""
        me: Any = self
        _fits(me, input_ids)
        for name in ("output_hidden_states", "return_dict"):
            options.pop(name, None)
        found = me.deberta(
            input_ids, attention_mask, token_type_ids, position_ids, output_hidden_states=True, return_dict=True,
            **options,
        )  # fmt: skip
        words, head = me.deberta.embeddings.word_embeddings.weight, me.lm_predictions["lm_head"]
        if attention_mask is None:
            attention_mask = torch.ones(found.last_hidden_state.shape[:2], device=words.device)
        logits, loss = None, None
        biased = me.config.position_biased_input  # the last layer as it is, as in the released code
        hidden = found.last_hidden_state if biased else found.hidden_states[-2]
        if labels is not None and me.training and bool((labels != -100).any()):
            chosen = labels != -100
            rows = hidden[chosen] if biased else self.decode_rows(hidden, attention_mask, chosen, position_ids)
            loss = cross_entropy(head(rows, words), labels[chosen])
        else:
            logits = head(hidden if biased else self.decode(hidden, attention_mask, position_ids), words)
            if labels is not None:
                loss = cross_entropy(logits.flatten(0, 1), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=found.hidden_states, attentions=found.attentions)

    def predict_rows(self, input_ids: Tensor, attention_mask: Tensor, chosen: Tensor) -> Tensor:
        """Logits of chosen tokens alone: [B, N] of bool -> [chosen, V]."""
        me: Any = self
        _fits(me, input_ids)
        found = me.deberta(input_ids, attention_mask, output_hidden_states=True)
        words = me.deberta.embeddings.word_embeddings.weight
        if me.config.position_biased_input:
            return me.lm_predictions["lm_head"](found.last_hidden_state[chosen], words)
        return me.lm_predictions["lm_head"](self.decode_rows(found.hidden_states[-2], attention_mask, chosen), words)


class _Detection(_Released):
    """The encoder with v3's head for replaced tokens; mixed into both versions."""

    _head = "mask_predictions"
    _keys_to_ignore_on_load_unexpected = (r"lm_predictions.*", r"cls\.", r"position_embeddings")

    def _build(self, config: Any, encoder: type) -> None:
        me: Any = self
        me.deberta = encoder(config)
        me.mask_predictions = _Replaced(config)
        me.post_init()
        accelerate(me)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **options: Any,
    ) -> TokenClassifierOutput:
        """Logits [B, N] of "was replaced"; labels of 0 and 1, their loss a mean over tokens that are not padding."""
        me: Any = self
        options.pop("return_dict", None)
        found = me.deberta(input_ids, attention_mask, token_type_ids, position_ids, return_dict=True, **options)
        logits = me.mask_predictions(found.last_hidden_state)
        loss = None
        if labels is not None:
            seen = torch.ones_like(labels, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
            loss = binary_cross_entropy_with_logits(logits[seen], labels[seen].to(logits.dtype))
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=found.hidden_states, attentions=found.attentions
        )


class DebertaV2ForEnhancedMaskedLM(_MaskedLM, DebertaV2PreTrainedModel):  # type: ignore[misc]
    """v2 and v3 with the enhanced mask decoder: fill-mask with the released weights."""

    def __init__(self, config: DebertaV2Config) -> None:
        super().__init__(config)
        self._build(config, DebertaV2Model)


class DebertaForEnhancedMaskedLM(_MaskedLM, DebertaPreTrainedModel):  # type: ignore[misc]
    """v1 with the enhanced mask decoder."""

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__(config)
        self._build(config, DebertaModel)


class DebertaV2ForReplacedTokens(_Detection, DebertaV2PreTrainedModel):  # type: ignore[misc]
    """v3 as it was pre-trained: which tokens were replaced."""

    def __init__(self, config: DebertaV2Config) -> None:
        super().__init__(config)
        self._build(config, DebertaV2Model)


class DebertaForReplacedTokens(_Detection, DebertaPreTrainedModel):  # type: ignore[misc]
    """The same for v1, which was not released with such a head."""

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__(config)
        self._build(config, DebertaModel)


def fill_mask(
    model: Any, tokenizer: Any, texts: str | Sequence[str], top: int = 5
) -> list[list[list[tuple[str, float]]]]:
    """What fits into the gaps of texts.

    Args:
        model: one of the masked language models above.
        tokenizer: its tokenizer, with a mask token.
        texts: with that mask token in them.
        top: how many words for each gap.

    Returns:
        For each text, for each gap: (word, probability), best first.

    Raises:
        UnbraidError: a text has no gap, or the tokenizer no mask token.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    if tokenizer.mask_token is None:
        raise UnbraidError("the tokenizer has no mask token; give that of the checkpoint.")
    for text in texts:
        if tokenizer.mask_token not in text:
            raise UnbraidError(f"the text {text[:60]!r} has no {tokenizer.mask_token}; put one where a word is wanted.")
    given = tokenizer(texts, padding=True, return_tensors="pt").to(model.device)
    gaps = given["input_ids"] == tokenizer.mask_token_id
    before = model.training
    model.eval()
    try:
        with torch.no_grad():
            found = model.predict_rows(given["input_ids"], given["attention_mask"], gaps).softmax(-1).topk(top)
    finally:
        model.train(before)
    rows = iter(zip(found.values.tolist(), found.indices.tolist(), strict=True))
    return [
        [[(tokenizer.decode([i]).strip(), p) for p, i in zip(*next(rows), strict=True)] for _ in range(count)]
        for count in gaps.sum(1).tolist()
    ]
