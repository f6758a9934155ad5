"""Folders of photos, as people have them."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from unbraid.core.errors import UnbraidError
from unbraid.data import scenes
from unbraid.diffusion.photos import Album


def picture(path, size=(40, 30), mode="RGB", seed=0):
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8), mode).save(path)


def test_a_folder_of_the_scenes_own_photos_comes_back(tmp_path):
    mine = scenes.photos(7, n=3)
    scenes.write(tmp_path, mine.scenes, mine.captions)
    found = Album.read(tmp_path, 64)
    assert len(found) == 3
    squares = found.crop([0, 1, 2])
    np.testing.assert_allclose(squares[:, :3].numpy(), mine.images, atol=1 / 254)
    assert float((squares[:, 3].numpy() - mine.masks.max(1)).__abs__().mean()) < 0.01
    assert len(found.captions) == 3


def test_shapes_crops_and_colours(tmp_path, caplog):
    picture(tmp_path / "a.png", (80, 40))
    picture(tmp_path / "b.JPG", (30, 90), seed=1)
    picture(tmp_path / "c.png", (40, 40), "RGBA", 2)
    found = Album.read(tmp_path, 20)
    assert found.names == ["a.png", "b.JPG", "c.png"]
    assert [tuple(i.shape) for i in found.images] == [(3, 20, 40), (3, 60, 20), (3, 20, 20)]
    centre = found.crop([0, 1])
    assert torch.equal(centre[0], found.images[0][:, :, 10:30])
    assert torch.equal(centre[1], found.images[1][:, 20:40])
    g = torch.Generator().manual_seed(0)
    many = torch.stack([found.crop([0], "random", g)[0] for _ in range(20)])
    assert len(torch.unique(many, dim=0)) > 5
    picture(tmp_path / "d.png", (40, 40), "L")
    with caplog.at_level(logging.WARNING, "unbraid.diffusion"):
        Album.read(tmp_path, 20)
    assert "1 of 4 photos have no colour (d.png)" in caplog.text


def test_an_upright_photo_is_upright(tmp_path):
    image = Image.fromarray(np.zeros((20, 40, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was held on its side
    image.save(tmp_path / "a.jpg", exif=exif)
    assert Album.read(tmp_path, 20).images[0].shape == (3, 40, 20)


def test_what_is_refused(tmp_path, monkeypatch):
    def refuses(said, folder=tmp_path):
        with pytest.raises(UnbraidError, match=said):
            Album.read(folder, 20)

    refuses("is not a folder", tmp_path / "none")
    refuses("holds no images")
    (tmp_path / "a.png").write_bytes(b"no image")
    refuses(r"a\.png cannot be read")
    picture(tmp_path / "a.png", (10, 10))
    refuses("at least 16 a side")
    picture(tmp_path / "a.png", (40, 40))
    monkeypatch.setattr("unbraid.diffusion.photos.LARGEST", 1000)
    refuses("make it smaller")
    monkeypatch.undo()
    (tmp_path / "masks").mkdir()
    refuses(r"holds no a\.png")
    picture(tmp_path / "masks" / "a.png", (40, 20), "L")
    refuses("another shape")
    picture(tmp_path / "masks" / "a.png", (40, 40), "L")
    (tmp_path / "captions.jsonl").write_text("{}\n")
    refuses("cannot be read")
    (tmp_path / "captions.jsonl").write_text(json.dumps({"file_name": "b.png", "text": "x"}))
    refuses(r"no text for a\.png")
    with pytest.raises(UnbraidError, match="holds 1 images, more than 0"):
        Album.read(tmp_path, 20, limit=0)
    for images in (torch.zeros(0, 3, 20, 20), torch.zeros(1, 1, 20, 20), torch.full((1, 3, 20, 20), 2.0)):
        with pytest.raises(UnbraidError, match="images"):
            Album.of(images)
    with pytest.raises(UnbraidError, match="2 captions"):
        Album.of(torch.zeros(1, 3, 20, 20), captions=["a", "b"])
