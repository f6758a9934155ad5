"""Models that lie in the package, on small ones that are packed for the test; and those that are there."""

import json
import socket

import pytest
import torch

from unbraid import zoo
from unbraid.cli import main
from unbraid.core.errors import UnbraidError
from unbraid.zoo import shipped as home
from unbraid.zoo.reference import packing

from .test_packing import checkpoint, trained


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in which an untrained tiny-sd and tiny-clip lie."""
    keep = trained(tmp_path / "keep")
    for name, stage in (("tiny-sd", "sd"), ("tiny-clip", "clip")):
        packing.pack(name, keep, checkpoint(keep, stage), tmp_path / "weights" / name)
    monkeypatch.setattr(home, "HOME", tmp_path / "weights")
    home.shipped.cache_clear()
    yield tmp_path / "weights"
    home.shipped.cache_clear()


def test_names_of_the_package_need_no_network(package, monkeypatch, capsys):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was used"))
    cards = {card.name: card for card in zoo.models()}
    assert (cards["tiny-sd"].kind, cards["tiny-clip"].kind) == ("text-to-image", "image-text")
    assert cards["tiny-sd"].cached
    assert cards["tiny-sd"].size == 0 < cards["tiny-sd"].disk
    assert cards["tiny-clip"].licence == "Apache-2.0"
    assert zoo.fetch("tiny-sd") == package / "tiny-sd"

    found = zoo.load("tiny-sd", progress=False)
    assert (found.kind, type(found.model).__name__) == ("text-to-image", "StableDiffusionPipeline")
    assert found.model.unet.dtype == found.model.text_encoder.dtype == torch.float32
    assert found.tokenizer("a red circle").input_ids
    half = zoo.load("tiny-sd", dtype="float16", progress=False)
    assert half.model.unet.dtype == half.model.text_encoder.dtype == torch.float16

    clip = zoo.load("tiny-clip", progress=False)
    assert (clip.kind, type(clip.model).__name__) == ("image-text", "CLIPModel")
    assert clip.model.dtype == torch.float32
    assert clip.processor is not None
    with pytest.raises(SystemExit) as left:
        main(["models", "--json"])
    assert not left.value.code
    listed = {card["name"]: card for card in json.loads(capsys.readouterr().out)}
    assert listed["tiny-clip"]["kind"] == "image-text"


def test_a_folder_of_a_pipeline_is_loaded_like_a_name(package):
    found = zoo.load(package / "tiny-sd", progress=False)
    assert found.kind == "text-to-image"
    assert found.path == package / "tiny-sd"


def test_what_is_wrong_is_said(package):
    with pytest.raises(UnbraidError, match="did you mean 'tiny-sd'"):
        zoo.load("tiny-sdd")
    with pytest.raises(UnbraidError, match="Did you mean 'tiny-clip'"):
        zoo.fetch("tinyclip")
    with pytest.raises(UnbraidError, match="'int32' is not a dtype"):
        zoo.load("tiny-sd", dtype="int32")
    with pytest.raises(UnbraidError, match="Device 'cuda:99'"):
        zoo.load("tiny-sd", device="cuda:99")
    next((package / "tiny-sd" / "unet").glob("*.safetensors")).unlink()
    with pytest.raises(UnbraidError, match="install unbraid anew"):
        zoo.fetch("tiny-sd")
    assert not {card.name: card for card in zoo.models()}["tiny-sd"].cached


def test_what_ships_is_whole_and_small():
    home.shipped.cache_clear()
    found = home.shipped().values()
    assert sum(one.disk for one in found) <= 40e6
    for one in found:
        assert zoo.fetch(one.name) == one.path
        told = json.loads((one.path / home.MANIFEST).read_text())
        assert packing.fingerprint(one.path) == told["weights"]
        card = (one.path / "README.md").read_text()
        assert "A preview" not in card
        assert "None were measured" not in card
