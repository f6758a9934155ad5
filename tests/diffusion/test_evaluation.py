"""Scores of pictures whose content is known, and grids of them."""

import numpy as np
import pytest
import torch

from unbraid.core.errors import UnbraidError
from unbraid.data import scenes
from unbraid.diffusion.clip import ImageText
from unbraid.diffusion.evaluation import Look, evaluate, perceptual
from unbraid.diffusion.grids import grid
from unbraid.zoo.reference import parts
from unbraid.zoo.reference.words import tokenizer


def test_the_oracle_and_clip_judge_pictures_prompt_by_prompt():
    torch.manual_seed(0)
    words = tokenizer()
    eye = ImageText(parts.clip(len(words), words.eos_token_id), words)
    said = ["a red circle", "a blue star in the snow"]
    true = scenes.render([
        scenes.Scene((scenes.Thing("circle", "red"),), scenes.Background("white")),
        scenes.Scene((scenes.Thing("star", "blue"),), scenes.Background(place="snow")),
        scenes.Scene((scenes.Thing("star", "red"),), scenes.Background("white")),
    ])  # fmt: skip
    found = evaluate(true, [*said, said[0]], oracle=True, encoder=eye, references=true[:1])
    rows = {row["prompt"]: row for row in found.tables["prompts"].records}
    assert rows[said[0]]["pictures"] == 2
    assert rows[said[0]]["shape 1"] == 0.5
    assert rows[said[1]]["background"] == 1
    assert rows[said[0]]["background"] is None
    assert -1 <= rows[said[0]]["CLIP-T"] <= 1
    assert len(found.figures) == 1
    photos = scenes.photos(5, n=2)
    own = evaluate(photos.images, [photos.prompt] * 2, oracle=True, subjects={photos.words[0]: 5})
    assert own.tables["prompts"].records[0]["shape 1"] == 1


def test_a_vision_model_compares_without_words(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path)
    look, x = Look.open(tmp_path), torch.rand(3, 3, 28, 28)
    np.testing.assert_allclose(look.likeness(x, x).diagonal(), 1, atol=1e-5)
    assert look.likeness(torch.rand(2, 3, 64, 64), x).shape == (2, 3)
    assert "likeness" in evaluate(x.numpy(), ["a"] * 3, references=x, look=look).tables["prompts"].columns
    with pytest.raises(UnbraidError, match="cannot be opened as a vision model"):
        Look.open(tmp_path / "none")


def test_grids_have_their_labels_and_cells():
    x = np.zeros((2, 3, 3, 8, 8), np.float32)
    x[1, 2, 0] = 1
    plain = grid(x, side=16)
    assert plain.shape == (36, 54, 3)
    assert plain[20:34, 38:52].mean((0, 1)).tolist() == [255, 0, 0]
    labelled = grid(x, ["one", "two"], ["a", "b", "c"], side=16)
    assert labelled.shape[0] > 36
    assert labelled.shape[1] > 54
    x[0, 0] = np.nan
    assert (grid(x, side=16)[:16, :16] == 255).all()
    for given in ({"images": x[0]}, {"images": x, "rows": ["a"]}):
        with pytest.raises(UnbraidError):
            grid(**given)


def test_what_is_refused():
    x = np.zeros((2, 3, 8, 8), np.float32)
    with pytest.raises(UnbraidError, match="nothing to judge by"):
        evaluate(x, ["a", "b"])
    with pytest.raises(UnbraidError, match="3 prompts"):
        evaluate(x, ["a", "b", "c"], oracle=True)
    with pytest.raises(UnbraidError, match="LPIPS needs"):
        perceptual(x, x)
