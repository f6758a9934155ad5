"""Fast tokenizers from the vocabularies inside GGUF files, as folders that `AutoTokenizer` reads.

What transformers 5.23 restores with `gguf_file=` is not used. For SmolLM2 it drops what GGUF only names, the split of
digits ("smollm", in llama.cpp's words), so that "   7" falls into other tokens than in the original; and it
knows no maximum length. Both tokenizers are therefore written out in full here.
"""

import json
from pathlib import Path
from typing import Any

from unbraid.zoo.gguf import GGUF

_CONTROL, _USER, _BYTE = 3, 4, 6
_SPACE = "\u2581"


def write_smollm2_tokenizer(gguf: GGUF, out: Path) -> None:
    """Byte-level BPE with every digit a token of its own; writes tokenizer.json and tokenizer_config.json."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = gguf.meta["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in gguf.meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = gguf.meta["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.save(str(out / "tokenizer.json"))
    _write_config(
        out,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=8192,
        chat_template=gguf.meta["tokenizer.chat_template"],
    )


def write_gemma3_tokenizer(gguf: GGUF, out: Path) -> None:
    """SentencePiece-style BPE with byte fallback; the merges are rebuilt from the order of the vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    kinds = gguf.meta["tokenizer.ggml.token_type"]
    # llama.cpp writes the user-defined runs of spaces with real spaces; the model's vocabulary has the visible mark
    tokens = [
        token.replace(" ", _SPACE) if kind == _USER else token
        for token, kind in zip(gguf.meta["tokenizer.ggml.tokens"], kinds, strict=True)
    ]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges_from_order(tokens, kinds), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    added = [(token, kind) for token, kind in zip(tokens, kinds, strict=True) if kind in (_CONTROL, _USER)]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=kind == _CONTROL) for token, kind in added])
    tokenizer.save(str(out / "tokenizer.json"))
    _write_config(
        out,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
        model_max_length=32768,
        padding_side="left",
    )


def merges_from_order(tokens: list[str], kinds: list[int]) -> list[tuple[str, str]]:
    """The BPE merges of a SentencePiece vocabulary: every way to make a token of two others, earlier tokens first.

    SentencePiece joins whichever neighbouring pair makes the best-scored token; scores fall with the token's number, so
    a list of merges in that order does the same. Control tokens and bytes are never made by joining.
    """
    usable = {token: number for number, token in enumerate(tokens) if kinds[number] not in (_CONTROL, _BYTE)}
    merges = []
    for token in usable:
        splits = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        found = [(left, right) for left, right in splits if left in usable and right in usable]
        merges += sorted(found, key=lambda pair: (usable[pair[0]], usable[pair[1]]))
    return merges


def _write_config(out: Path, **fields: Any) -> None:
    # this class takes tokenizer.json as it stands; a model's own class would rebuild the pipeline with its defaults
    fields = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **fields,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
