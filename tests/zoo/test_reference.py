"""The scripts behind the reference pipelines, on a few steps."""

import pytest
import torch
from transformers import CLIPTokenizer

from unbraid.core.errors import UnbraidError
from unbraid.data.scenes import Scene, Thing, caption, sample, vocabulary
from unbraid.zoo.reference import LENGTH, SIDE, parts, training
from unbraid.zoo.reference.bank import Bank
from unbraid.zoo.reference.words import tokenizer


def test_each_word_of_a_caption_is_a_token_and_the_rest_falls_into_letters(tmp_path):
    words = tokenizer()
    for scene in sample(40, 3):
        said = caption(scene, 5)
        assert len(words(said).input_ids) == len(said.replace(",", " ,").split()) + 2 <= LENGTH
    assert len(words("a zebra").input_ids) > 4
    words.save_pretrained(tmp_path)
    read = CLIPTokenizer.from_pretrained(tmp_path)
    assert read("a red circle , in the snow").input_ids == words("a red circle , in the snow").input_ids
    assert read.model_max_length == LENGTH
    assert read.add_tokens(["<mug>"]) == 1
    assert len(vocabulary()) < 100
    with pytest.raises(UnbraidError, match="would not be one token"):
        tokenizer(["two words"])


def test_parts_fit_together():
    words = tokenizer()
    ids = training.encode(words, ["a red circle", ""])
    assert ids.shape == (2, LENGTH)
    text = parts.text_encoder(len(words), words.eos_token_id)(ids)
    vae = parts.vae()
    code = vae.encode(torch.zeros(2, 3, SIDE, SIDE)).latent_dist.mean
    made = parts.unet()(code, torch.tensor([1, 5]), text.last_hidden_state).sample
    assert made.shape == code.shape == (2, 4, 16, 16)
    clip = parts.clip(len(words), words.eos_token_id)
    found = clip(input_ids=ids, pixel_values=torch.zeros(2, 3, SIDE, SIDE))
    assert found.image_embeds.shape[1] == text.last_hidden_state.shape[2]  # an image's can be added to a prompt's


def test_a_bank_says_something_new_each_time_and_keeps_its_latents(tmp_path):
    bank = Bank(12, 4)
    assert bank.captions(range(12), 1) != bank.captions(range(12), 2)
    assert bank.captions(range(12), 1, empty=1.0) == [""] * 12
    images = bank.images([0, 3])
    assert images.shape == (2, 3, SIDE, SIDE)
    assert images.min() >= -1
    vae = parts.vae().eval()
    first = bank.latents(vae, tmp_path, False)
    assert torch.equal(bank.latents(parts.vae(), tmp_path, False), first)  # read back: another model's would differ
    assert first.shape == (12, 2, 4, 16, 16)


def test_v_prediction_of_the_truth_costs_nothing():
    schedule = parts.scheduler()
    model = training.Denoiser(torch.nn.Identity(), torch.nn.Identity(), schedule)
    clean = torch.randn(6, 4, 16, 16)

    class Knows(torch.nn.Module):
        def forward(self, noisy, t, words):
            a = schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
            noise = (noisy - a.sqrt() * clean) / (1 - a).sqrt()
            made = schedule.get_velocity(clean, noise, t)
            return type("Out", (), {"sample": made})

    class Mute(torch.nn.Module):
        def forward(self, ids):
            return type("Out", (), {"last_hidden_state": ids})

    model.both.module["unet"], model.both.module["text"] = Knows(), Mute()
    loss, told = model(clean, torch.zeros(6, LENGTH))
    assert float(loss) == pytest.approx(0, abs=1e-6)
    assert float(told["error"]) == pytest.approx(0, abs=1e-5)


def test_the_running_mean_follows_the_weights():
    inner = torch.nn.Linear(1, 1, bias=False)
    kept = training.Averaged(inner)
    with torch.no_grad():
        inner.weight.fill_(5.0)
    for step in range(200):
        training.average(step, kept, {})
    assert float(kept.mean.weight) == pytest.approx(5.0, abs=0.05)
    assert not kept.mean.weight.requires_grad


def test_equal_prompts_are_no_rivals():
    class Same(torch.nn.Module):
        def forward(self, input_ids, pixel_values):
            return type("Out", (), {"logits_per_text": torch.zeros(3, 3)})

    same = torch.ones(3, 4, dtype=torch.long)
    loss, _ = training.Contrast(Same())(torch.zeros(3), same)
    assert float(loss) == pytest.approx(0, abs=1e-6)
    loss, _ = training.Contrast(Same())(torch.zeros(3), torch.arange(3)[:, None])
    assert float(loss) == pytest.approx(torch.tensor(3.0).log().item(), rel=1e-5)


def test_the_autoencoder_is_trained_and_scaled(tmp_path):
    vae = training.train_vae(tmp_path, steps=2, batch=2, progress=False)
    assert (tmp_path / "vae_final" / "config.json").is_file()
    assert vae.config.scaling_factor > 0


def test_a_scene_of_one_thing_is_drawn_as_said():
    bank = Bank(1)
    bank.scenes = [Scene((Thing("square", "red", size="large"),))]
    middle = bank.images([0])[0, :, SIDE // 2, SIDE // 2]
    assert middle[0] > 0.5
    assert middle[1] < 0
