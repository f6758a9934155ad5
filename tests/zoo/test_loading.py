"""`load` on tiny models of one's own, and the errors a person meets; no weights from anywhere."""

import json
import subprocess
import sys

import pytest
import torch
import transformers

from unbraid import zoo
from unbraid.core.errors import UnbraidError

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 40}


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY))


def bert():
    return transformers.BertModel(transformers.BertConfig(**TINY))


def masked():
    return transformers.BertForMaskedLM(transformers.BertConfig(**TINY))


def vit():
    config = {key: value for key, value in TINY.items() if key != "vocab_size"}
    return transformers.ViTModel(transformers.ViTConfig(**config, image_size=8, patch_size=4))


def t5():
    config = transformers.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return transformers.T5ForConditionalGeneration(config)


def whisper():
    sizes = {f"{half}_{key}": value for half in ("encoder", "decoder") for key, value in HALF.items()}
    config = transformers.WhisperConfig(
        vocab_size=60, d_model=16, num_mel_bins=8, max_source_positions=10, **sizes, **IDS
    )
    return transformers.WhisperForConditionalGeneration(config)


HALF = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
MODELS = [
    (llama, "causal-lm"),
    (bert, "encoder"),
    (masked, "masked-lm"),
    (vit, "encoder"),
    (t5, "seq2seq"),
    (whisper, "speech-seq2seq"),
]


@pytest.mark.parametrize(("build", "kind"), MODELS, ids=[build.__name__ for build, _ in MODELS])
def test_own_folder_comes_back_as_it_was_saved(tmp_path, build, kind):
    model = build()
    model.save_pretrained(tmp_path)
    loaded = zoo.load(str(tmp_path), progress=False)
    assert type(loaded.model) is type(model)
    assert (loaded.kind, loaded.path) == (kind, tmp_path)
    assert not loaded.model.training
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], weight), name


def test_dtype_follows_the_checkpoint_unless_said(tmp_path):
    llama().to(torch.bfloat16).save_pretrained(tmp_path)
    assert zoo.load(tmp_path).model.dtype == torch.bfloat16
    assert zoo.load(tmp_path, dtype="float32").model.dtype == torch.float32
    assert zoo.load(tmp_path, dtype=torch.float16, device="cpu").model.dtype == torch.float16


def test_options_reach_from_pretrained(tmp_path):
    llama().save_pretrained(tmp_path)
    assert zoo.load(tmp_path, attn_implementation="eager").model.config._attn_implementation == "eager"


def test_tokenizer_comes_along(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    llama().save_pretrained(tmp_path)
    inner = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="?").save_pretrained(tmp_path)
    loaded = zoo.load(tmp_path)
    assert loaded.tokenizer("a b c")["input_ids"] == [0, 1, 2]
    assert loaded.processor is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm", r"did you mean 'smollm2'\?"),
        ("whisper-tiny", r"did you mean 'whisper-tiny.en'\?"),
        ("nobody/nothing-here", "nor a folder, and the hub did not give it"),
        ("/no/such/folder", "is not a folder; give a model folder, a hub id"),
        ("./nope", "is not a folder"),
        ("", "is not a folder"),
        ("beckett", "is a recording, not a model"),
    ],
)
def test_names_that_lead_nowhere(name, message):
    with pytest.raises(UnbraidError, match=message):
        zoo.load(name)


def test_fetch_names_close_matches():
    with pytest.raises(UnbraidError, match=r"no 'mini-lm'; it has smollm2, .* Did you mean 'minilm'"):
        zoo.fetch("mini-lm")


def test_bad_dtype_and_device_are_found_before_anything_is_read():
    with pytest.raises(UnbraidError, match="'int8' is not a dtype for weights"):
        zoo.load("smollm2", dtype="int8")
    with pytest.raises(UnbraidError, match="'load' is not a dtype"):
        zoo.load("smollm2", dtype="load")
    with pytest.raises(UnbraidError, match="Device 'cuda:99' cannot be used here"):
        zoo.load("smollm2", device="cuda:99")


def test_folders_that_are_no_transformers_model(tmp_path):
    with pytest.raises(UnbraidError, match=r"no config\.json"):
        zoo.load(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(UnbraidError, match="cannot be opened as a diffusers pipeline"):
        zoo.load(tmp_path)


def test_pickled_weights_are_not_loaded(tmp_path):
    model = llama()
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UnbraidError, match="no safetensors weights, and pickled ones are not loaded"):
        zoo.load(tmp_path)


def test_code_of_a_repository_is_not_run(tmp_path):
    marker = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnbraidError):
        zoo.load(tmp_path)
    assert not marker.exists()


def test_listing_needs_no_torch():
    code = "import sys, unbraid.zoo as z; print([m.name for m in z.models()]); assert 'torch' not in sys.modules"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("['smollm2', 'whisper-tiny.en', 'minilm', 'gemma3-270m', 'tiny-")
