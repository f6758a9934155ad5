"""What a processor and a configuration say: feature extractor, tokenizer, the tokens that come before the text."""

from __future__ import annotations

from typing import Any, cast

from unbraid.core.errors import UnbraidError

MULTILINGUAL = 51865  # tokens of multilingual Whispers; the English ones have one less, and take no language


def mel_bins(config: Any) -> int | None:
    """Frequencies per frame that a configuration names."""
    known = vars(config)
    names = ("num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim")
    return next((int(known[n]) for n in names if known.get(n)), None)


def feature_extractor(processor: Any) -> Any:
    """The feature extractor of a processor, or the processor itself if it is one."""
    from transformers import SequenceFeatureExtractor

    if processor is None or isinstance(processor, SequenceFeatureExtractor):
        return processor
    return vars(processor).get("feature_extractor")


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer of a processor, or None."""
    from transformers import PreTrainedTokenizerBase

    found = processor if processor is None else vars(processor).get("tokenizer")
    return found if isinstance(found, PreTrainedTokenizerBase) else None


def decoder_prefix(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that come before the text: the start token, and for Whisper language, task and "no timestamps"."""
    from transformers import WhisperTokenizer

    if isinstance(tokenizer, WhisperTokenizer) and model.config.model_type == "whisper":
        tokenizer = cast(Any, tokenizer)
        marks = [tokenizer.convert_tokens_to_ids(t) for t in ("<|startoftranscript|>", "<|notimestamps|>")]
        spoken = [i for i in tokenizer.prefix_tokens if i not in marks]
        if vars(model.generation_config).get("is_multilingual") is False or model.config.vocab_size < MULTILINGUAL:
            spoken = []
        elif not spoken:
            spoken = [tokenizer.convert_tokens_to_ids(t) for t in ("<|en|>", "<|transcribe|>")]
        return [marks[0], *spoken, marks[1]]
    start = model.generation_config.decoder_start_token_id
    start = model.config.decoder_start_token_id if start is None else start
    if start is None:
        start = model.config.bos_token_id
    if start is None:
        raise UnbraidError(f"{type(model).__name__} names no decoder_start_token_id; set model.config's.")
    return [int(start)]


def begins_with_blank(tokenizer: Any) -> bool:
    """Whether words of a byte-level tokenizer carry the blank before them, and the first one needs it too."""
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(" a", add_special_tokens=False).input_ids)
    return bool(pieces) and str(pieces[0]).startswith("Ġ")
