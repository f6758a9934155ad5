"""CLIP-I and CLIP-T by a small CLIPModel, from a folder as people have them."""

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

from unbraid.core.errors import UnbraidError
from unbraid.diffusion.clip import ImageText
from unbraid.zoo.reference import parts
from unbraid.zoo.reference.words import tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    words = tokenizer()
    parts.clip(len(words), words.eos_token_id).save_pretrained(place)
    words.save_pretrained(place)
    CLIPImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3, size={"shortest_edge": 64}).save_pretrained(place)
    return place


def test_embeddings_are_the_models_own(folder):
    clip = ImageText.open(str(folder))
    assert clip.width == 128
    x = torch.rand(3, 3, 64, 64)
    said = ["a red circle", "a moon", ""]
    with torch.no_grad():
        whole = clip.model(
            input_ids=clip.tokenizer(said, padding="max_length", return_tensors="pt").input_ids, pixel_values=x * 2 - 1
        )
        images, texts = clip.images(x), clip.texts(said)
    cosines = torch.nn.functional.normalize(images) @ whole.image_embeds.T
    assert torch.allclose(cosines.diagonal(), torch.ones(3), atol=1e-5)
    np.testing.assert_allclose(clip.agreement(x, said), (whole.text_embeds * whole.image_embeds).sum(1), atol=1e-5)
    assert texts.shape == (3, 128)
    like = clip.likeness(x, x[:2], batch=2)
    assert like.shape == (3, 2)
    np.testing.assert_allclose(like.diagonal(), 1, atol=1e-5)
    larger = torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest")
    assert clip.likeness(larger, x).diagonal().min() > 0.99
    assert ImageText.open(clip) is clip


def test_a_model_of_images_only(folder, tmp_path):
    CLIPVisionModelWithProjection.from_pretrained(folder).save_pretrained(tmp_path)
    whole, half = ImageText.open(folder), ImageText.open(tmp_path)
    half.mean, half.std = whole.mean, whole.std
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(half.images(x), whole.images(x))
    with pytest.raises(UnbraidError, match="images only"):
        half.texts(["a moon"])


def test_what_is_refused(folder, tmp_path):
    with pytest.raises(UnbraidError, match="cannot be opened as a CLIP"):
        ImageText.open(tmp_path)
    with pytest.raises(UnbraidError, match="is not a folder"):
        ImageText.open("./nowhere/at/all")
    tokens = tokenizer()
    parts.text_encoder(len(tokens), tokens.eos_token_id).save_pretrained(tmp_path)
    with pytest.raises(UnbraidError, match="not a CLIP model"):
        ImageText.open(tmp_path)
    with pytest.raises(UnbraidError, match="2 images and 1 prompts"):
        ImageText.open(folder).agreement(torch.zeros(2, 3, 64, 64), ["a"])
