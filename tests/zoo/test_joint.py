"""tiny-sd3's training: one row of zeros counted many times is many rows; it learns; it goes on where it was cut."""

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import JointAttnProcessor2_0
from safetensors.torch import load_file

from unbraid.core.errors import UnbraidError
from unbraid.data.scenes import SHAPES, Scene, Thing
from unbraid.zoo.reference import joint, packing, parts
from unbraid.zoo.reference.hints import NONE, belonging
from unbraid.zoo.reference.words import tokenizer

from .test_packing import trained


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(parts, "JOINT", 64)


def test_one_row_counted_many_times_is_many_rows(small):
    words = tokenizer()
    torch.manual_seed(0)
    model = joint.Flow(parts.projected_text(len(words), words.eos_token_id), parts.joint()).eval()
    inner = model.both.module
    with torch.no_grad():
        for weight in inner["joint"].parameters():
            weight.add_(0.05 * torch.randn_like(weight))  # adaLN-zero would hide everything
    ids = torch.randint(0, 600, (2, 40))
    noisy, second, pooled = torch.randn(2, 4, 16, 16), torch.randn(2, 40, 128), torch.randn(2, 128)
    t = torch.tensor([0.2, 0.9])
    with torch.no_grad():
        made = model.predict(noisy, t, ids, second, pooled, torch.tensor([256.0, 256.0]))
        said = inner["text"](ids, output_hidden_states=True)
        told = torch.cat([said.hidden_states[-2], second], -1)
        inner["joint"].set_attn_processor(JointAttnProcessor2_0())  # diffusers' own, as the pipeline has it
        expected = inner["joint"](
            hidden_states=noisy,
            encoder_hidden_states=torch.cat([told, torch.zeros(2, 256, 256)], 1),
            pooled_projections=torch.cat([said.text_embeds, pooled], -1),
            timestep=t * 1000,
        ).sample
        fewer = inner["joint"](
            hidden_states=noisy,
            encoder_hidden_states=torch.cat([told, torch.zeros(2, 1, 256)], 1),
            pooled_projections=torch.cat([said.text_embeds, pooled], -1),
            timestep=t * 1000,
        ).sample
    assert torch.allclose(made, expected, atol=2e-5)
    assert (made - fewer).abs().max() > 1e-3


def test_counts_are_often_what_the_pipeline_has():
    found = joint.counts(4000, torch.Generator().manual_seed(0))
    assert found.min() == 1
    assert found.max() == 256
    assert float((found == 256).float().mean()) == pytest.approx(0.5, abs=0.03)


def test_a_third_encoder_that_says_nothing():
    ids = torch.randint(0, 60, (2, 256))
    assert not parts.silent(70)(ids)[0].any()


def test_training_learns_and_goes_on_where_it_was_cut(small, tmp_path, monkeypatch):
    keep, real, told = trained(tmp_path), joint.fit_loop, []
    monkeypatch.setattr(joint, "fit_loop", lambda *given, **more: told.append(real(*given, **more)))
    monkeypatch.setattr(joint, "schedule", lambda steps: None)
    joint.train_sd3(keep, steps=20, size=64, batch=8, lr=2e-3, precision="no", progress=False)
    joint.train_sd3(keep, steps=60, size=64, batch=8, lr=2e-3, precision="no", progress=False)
    assert told[1].resumed_from == 20
    losses = told[1].losses
    assert np.mean(losses[-15:]) < 0.8 * np.mean(losses[:5])
    assert (keep / "sd3_final" / "config.json").is_file()


def test_attention_by_its_matrix_is_torchs_own():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 9, 12).unbind()
    mask = torch.randn(2, 1, 1, 9)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)
    assert torch.allclose(joint.attend(q, k, v, mask), expected, atol=1e-6)


def test_simple_scenes_are_drawn_more_often():
    simple, small = Scene((Thing("star"),)), Scene((Thing("star", size="small"),))
    sketch, two = Scene((Thing("star"),), style="sketch"), Scene((Thing("star", x=0.3), Thing("heart", x=0.7)))
    found = joint.chances([simple, small, sketch, two])
    assert found.tolist() == pytest.approx([4 / 7, *[1 / 7] * 3])


def test_each_patch_knows_its_shape_and_where_in_it_it_lies():
    scene = Scene((Thing("square", size="large", x=0.5, y=0.5), Thing("star", size="small", x=0.5, y=0.5)))
    kinds, places = belonging([scene], 8)
    kinds, places = kinds.view(8, 8), places.view(8, 8, 3)
    assert kinds[4, 4] == SHAPES.index("star")  # in front
    assert kinds[2, 2] == SHAPES.index("square")
    assert kinds[0, 0] == NONE
    assert places[2, 2].tolist() == pytest.approx([*[(2.5 / 8 - 0.5) / 0.28] * 2, 2 * np.log(0.28 / 0.2)])
    assert not places[0, 0].any()


def test_training_goes_on_with_packed_weights(small, tmp_path):
    keep = trained(tmp_path / "keep")
    joint.train_sd3(keep, steps=1, size=64, batch=4, precision="no", progress=False)
    first = packing.pack("tiny-sd3", keep, out=tmp_path / "first")
    other = trained(tmp_path / "other")
    joint.train_sd3(other, steps=1, size=64, batch=4, lr=1e-12, precision="no", start=first, progress=False)
    again = packing.pack("tiny-sd3", other, out=tmp_path / "again")
    name = "transformer/diffusion_pytorch_model.safetensors"
    old, new = load_file(first / name), load_file(again / name)
    assert all(torch.equal(old[key], new[key]) for key in old)
    assert "| steps | 1 (weights " in (again / "README.md").read_text()
    with pytest.raises(UnbraidError, match="give the folder of a packed tiny-sd3"):
        joint.train_sd3(other, steps=1, start=tmp_path)


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(UnbraidError, match="run the stage vae first"):
        joint.train_sd3(tmp_path)
    parts.vae().save_pretrained(tmp_path / "vae_final")
    with pytest.raises(UnbraidError, match="run the stage clip first"):
        joint.train_sd3(tmp_path)
