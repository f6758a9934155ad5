"""Tokenizers of the common kinds, trained on what the prompt tasks say."""

from __future__ import annotations

from typing import Any

from unbraid.data.prompts.capitals import CAPITALS
from unbraid.data.prompts.ioi import NAMES
from unbraid.data.prompts.objects import COLOURS, OBJECTS


def corpus() -> list[str]:
    text = [f"{n} went to the store and gave it to {n}. {n}: It was {n} again." for n in NAMES]
    text += [f"The capital of {c} is {t}. It was {c} again, {t} too." for c, t in CAPITALS]
    text += ["Q: On the table, there is a red pen, a blue cup, and a green key. What color is the pen?\nA: Red"] * 3
    for words in (COLOURS, OBJECTS):
        text += [f"It was {w} again. A: {w.capitalize()} It was {w.capitalize()} again." for w in words] * 3
    text += [f"The war lasted from the year {c} to the year {c} v{y:02d}" for y in range(100) for c in range(11, 18)]
    return text


def fast(kind: str) -> Any:
    """A tokenizer of one of the common kinds, trained on what the tasks say."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<unk>"]
    if kind == "metaspace":  # as SentencePiece does
        raw = Tokenizer(models.Unigram())
        raw.pre_tokenizer = pre_tokenizers.Metaspace()
        raw.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=900, special_tokens=special, unk_token="<unk>")
    else:
        raw = Tokenizer(models.BPE())
        byte = pre_tokenizers.ByteLevel(add_prefix_space=False)
        digits = pre_tokenizers.Digits(individual_digits=True)
        raw.pre_tokenizer = pre_tokenizers.Sequence([digits, byte]) if kind == "digits" else byte
        raw.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=2500, special_tokens=special, initial_alphabet=alphabet)
    if kind == "lower":
        raw.normalizer = normalizers.Lowercase()
    raw.train_from_iterator(corpus(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
