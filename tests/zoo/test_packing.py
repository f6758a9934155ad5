"""Checkpoints become folders that diffusers and transformers read."""

import json
import warnings

import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline
from safetensors.torch import save_file
from transformers import AutoProcessor, CLIPModel

from unbraid.core.errors import UnbraidError
from unbraid.zoo.reference import __main__ as command
from unbraid.zoo.reference import joint, packing, parts, training
from unbraid.zoo.reference.words import tokenizer


def trained(keep):
    """A folder as after the stages vae and clip, with untrained weights."""
    words = tokenizer()
    torch.manual_seed(1)
    parts.vae().save_pretrained(keep / "vae_final")
    parts.clip(len(words), words.eos_token_id).save_pretrained(keep / "clip_final")
    return keep


def checkpoint(keep, stage):
    """Weights as `fit_loop` names them, the running mean unlike the weights; the folder of checkpoints."""
    words = tokenizer()
    size = (len(words), words.eos_token_id)
    model = {
        "sd": lambda: training.Denoiser(parts.text_encoder(*size), parts.unet(), parts.scheduler()),
        "clip": lambda: training.Contrast(parts.clip(*size)),
        "sd3": lambda: joint.Flow(parts.projected_text(*size), parts.joint()),
    }[stage]()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".mean." in name and "norm" in name:
                weight.add_(0.25)
    folder = keep / stage / "step-00000042"
    folder.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / packing.WEIGHTS)
    return keep / stage


def test_a_word_has_the_same_number_in_every_process():
    """Weights that go on learning in another process must hear the same words by the same names."""
    words = tokenizer()
    known = {"an": 551, "as": 553, "at": 554, "heart": 668}
    assert {word: words(word).input_ids[1] for word in known} == known
    few = tokenizer(["ab", "abc", "bc", "cab"])
    merges = json.loads(few.backend_tokenizer.to_str())["model"]["merges"]
    assert [" ".join(pair) for pair in merges] == ["a b</w>", "b c</w>", "a bc</w>", "c ab</w>"]


def test_the_mean_of_a_checkpoint_becomes_a_stable_diffusion_pipeline(tmp_path):
    source = checkpoint(trained(tmp_path), "sd")
    out = packing.pack("tiny-sd", tmp_path, source)
    assert out == tmp_path / "preview" / "tiny-sd"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe = StableDiffusionPipeline.from_pretrained(out)
    assert {pipe.unet.dtype, pipe.text_encoder.dtype, pipe.vae.dtype} == {torch.float32}
    scale = pipe.unet.conv_norm_out.weight
    assert torch.allclose(scale, torch.full_like(scale, 1.25))  # the mean's, not the last step's
    assert pipe.safety_checker is None
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a red circle", num_inference_steps=1, output_type="np").images
    assert image.shape == (1, 64, 64, 3)
    told = json.loads((out / "unbraid.json").read_text())
    assert (told["steps"], told["kind"]) == (42, "text-to-image")
    card = (out / "README.md").read_text()
    assert "A preview" in card
    assert "None were measured" in card
    assert str(tmp_path) not in card + "".join(path.read_text() for path in out.rglob("*.json"))


def test_a_joint_pipeline_and_a_clip_model(tmp_path):
    keep = trained(tmp_path)
    out = packing.pack("tiny-sd3", keep, checkpoint(keep, "sd3"))
    pipe = StableDiffusion3Pipeline.from_pretrained(out)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a red circle", num_inference_steps=1, output_type="np", generator=torch.Generator()).images
    assert image.shape == (1, 64, 64, 3)
    clip = CLIPModel.from_pretrained(keep / "clip_final")
    assert torch.equal(pipe.text_encoder_2.text_projection.weight.half(), clip.text_projection.weight.half())
    out = packing.pack("tiny-clip", keep, checkpoint(keep, "clip"))
    model = CLIPModel.from_pretrained(out)
    assert model.dtype == torch.float32
    image = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8).numpy()
    made = AutoProcessor.from_pretrained(out)(images=image, return_tensors="pt").pixel_values
    assert torch.allclose(made[0], torch.from_numpy(image).permute(2, 0, 1) / 127.5 - 1, atol=1e-5)


def test_scores_are_shown_of_the_very_weights_only(tmp_path):
    source = checkpoint(trained(tmp_path), "clip")
    out = packing.pack("tiny-clip", tmp_path, source)
    found = {"weights": packing.fingerprint(out), "command": "score", "tables": {"Title": [{"share": 0.875}]}}
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"models": {"tiny-clip": found}}))
    assert "| 0.875 |" in (packing.pack("tiny-clip", tmp_path, source, scores=path) / "README.md").read_text()
    path.write_text(json.dumps({"models": {"tiny-clip": found | {"weights": "others"}}}))
    assert "None were measured" in (packing.pack("tiny-clip", tmp_path, source, scores=path) / "README.md").read_text()


def test_wrong_inputs_are_said_before_any_work(tmp_path, capsys):
    with pytest.raises(UnbraidError, match="no reference model 'tiny'"):
        packing.pack("tiny", tmp_path)
    with pytest.raises(UnbraidError, match="run the stage vae first"):
        packing.pack("tiny-sd", tmp_path, out=tmp_path / "out")
    with pytest.raises(UnbraidError, match="holds no checkpoint"):
        packing.pack("tiny-sd", tmp_path, tmp_path / "nothing")
    keep = trained(tmp_path)
    with pytest.raises(UnbraidError, match=r"run `python -m unbraid\.zoo\.reference sd` to its end"):
        packing.pack("tiny-sd", keep, out=tmp_path / "out")
    with pytest.raises(UnbraidError, match="checkpoint of another model"):
        packing.pack("tiny-sd", keep, checkpoint(keep, "clip"))
    assert not (tmp_path / "out").exists()
    assert command.main(["pack", "tiny", "--keep", str(keep)]) == 1
    assert "no reference model" in capsys.readouterr().err
