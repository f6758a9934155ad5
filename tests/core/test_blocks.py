"""The blocks of a transformer: found by structure, the same names as attach's, the residual stream where it is said."""

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from unbraid import attach, taps
from unbraid.core.blocks import blocks, final_norm, heads_of, listening, residual, unembedding, with_residual
from unbraid.core.errors import UnbraidError
from unbraid.core.inputs import lean_inputs

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
IDS = torch.arange(3, 13)[None]


def llama():
    return LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=2, vocab_size=64)).eval()


TEXT = {
    "llama": llama,
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8, vocab_size=64)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**SMALL, num_key_value_heads=2, head_dim=8, vocab_size=64, pad_token_id=0)
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=64)),
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL, vocab_size=64)),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            vocab_size=64,
            word_embed_proj_dim=32,
        )
    ),
    "bert": lambda: BertModel(BertConfig(**SMALL, vocab_size=64)),
}


@pytest.mark.parametrize("name", TEXT)
def test_sites_are_those_of_attach_and_parts_run_in_every_block(name):
    model = TEXT[name]().eval()
    found = blocks(model)
    assert [b.index for b in found] == [0, 1, 2]
    ran = []
    for b in found:
        assert b.out is not None
        assert b.down is not None
        assert b.writer is not None
    note = {m: lambda module, *_: ran.append(module) for b in found for m in (b.out, b.writer, b.down)}
    with attach(model, taps.Entropy()) as session, listening(note), torch.no_grad():
        model(**lean_inputs(model, IDS))
    assert list(session.sites) == [b.site for b in found]
    assert {id(m) for m in note} == {id(m) for m in ran}


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt2", "neox", "opt"])
def test_the_residual_stream_ends_in_the_hidden_states_that_the_library_reports(name):
    model = TEXT[name]().eval()
    seen = {}
    keep = {b.module: lambda m, a, k, y: seen.update({id(m): residual(y)}) for b in blocks(model)}
    with listening(keep), torch.no_grad():
        out = model(input_ids=IDS, output_hidden_states=True)
    streams = [seen[id(b.module)] for b in blocks(model)]
    for ours, theirs in zip(streams[:-1], out.hidden_states[1:-1], strict=True):
        assert torch.equal(ours, theirs)
    norm = final_norm(model)
    torch.testing.assert_close(unembedding(model)(norm(streams[-1])), out.logits, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "neox", "gemma3", "qwen3"])
def test_the_input_of_the_last_projection_is_the_heads_side_by_side(name):
    model = TEXT[name]().eval()
    b, seen = blocks(model)[1], []
    outputs = taps.Outputs(keep="last")
    with (
        listening(None, {b.out: lambda m, a, k: seen.append(a[0])}),
        attach(model, outputs, sites=b.site),
        torch.no_grad(),
    ):
        model(input_ids=IDS)
    heads = outputs.values[b.site][0]  # [B, H, Q, V]
    torch.testing.assert_close(seen[0], heads.transpose(1, 2).flatten(2), atol=1e-6, rtol=1e-6)
    shape = heads_of(model)[1]
    assert (shape.site, shape.heads, shape.width) == (b.site, heads.shape[1], heads.shape[3])
    assert shape.key_heads == (4 if name in ("gpt2", "neox") else 2)


def test_encoders_and_decoders():
    whisper = WhisperForConditionalGeneration(
        WhisperConfig(
            d_model=16, encoder_layers=2, decoder_layers=3, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=40, num_mel_bins=8, pad_token_id=0, bos_token_id=1,
            eos_token_id=2, decoder_start_token_id=1,
        )
    )  # fmt: skip
    assert [b.site for b in blocks(whisper)] == [f"model.decoder.layers.{i}.self_attn" for i in range(3)]
    assert len(blocks(whisper, "model.encoder")) == 2
    t5 = T5ForConditionalGeneration(T5Config(d_model=16, d_ff=16, d_kv=8, num_layers=2, num_heads=2, vocab_size=40))
    assert [b.site for b in blocks(t5)] == [f"decoder.block.{i}.layer.0.SelfAttention" for i in range(2)]
    assert len(blocks(t5, "encoder")) == 2
    for vision in (ViTModel(ViTConfig(**SMALL, image_size=8, patch_size=4)), CLIPVisionModel(
        CLIPVisionConfig(**SMALL, image_size=8, patch_size=4)
    )):  # fmt: skip
        assert len(blocks(vision)) == 3


def test_adapters_count_as_one_projection():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(llama(), LoraConfig(target_modules=["o_proj", "down_proj"]))
    assert "base_layer" in dict(blocks(model)[0].down.named_children())


def test_hooks_are_gone_also_after_an_exception():
    model = llama()
    b = blocks(model)[0]
    with pytest.raises(RuntimeError), listening({b.module: lambda *_: None}, {b.mlp: lambda *_: None}):
        raise RuntimeError
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_new_residual_stream_goes_on():
    model = llama()
    with listening({blocks(model)[-1].module: lambda m, a, k, y: with_residual(y, 0 * residual(y))}), torch.no_grad():
        assert float(model(input_ids=IDS).logits.abs().max()) == 0


def test_what_has_no_blocks_says_so():
    with pytest.raises(UnbraidError, match="no list of layers with attention"):
        blocks(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(UnbraidError, match="part='nothing'"):
        blocks(llama(), "nothing")
    with pytest.raises(UnbraidError, match="no output embedding"):
        unembedding(BertModel(BertConfig(**SMALL, vocab_size=64)))
