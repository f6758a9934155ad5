"""Scores: perfect pictures get all, blank ones nothing; the choice is made on other seeds; the files are whole."""

import json

import numpy as np
import pytest

from unbraid.core.errors import UnbraidError
from unbraid.data.scenes import caption, render, sample
from unbraid.zoo.reference import __main__ as command
from unbraid.zoo.reference import packing, retrieval, scoring

from .test_packing import checkpoint, trained


def test_drawn_scenes_are_right_and_blank_ones_are_not():
    scenes = sample(24, 5, (2, 2), "held_out")
    said = [caption(scene) for scene in scenes]
    found = scoring.judged(render(scenes), said)
    assert np.mean(found["both things"]) > 0.9
    blank = scoring.judged(np.full((24, 3, 64, 64), 0.5, np.float32), said)
    assert not any(blank["shape and colour"])
    turned = scoring.judged(render(scenes[1:] + scenes[:1]), said)
    assert np.mean(turned["both things"]) < 0.3


def test_scoring_chooses_and_reports_on_different_seeds(monkeypatch, tmp_path):
    asked = []

    def drawn(pipe, said, seeds, steps, guidance, batch=16, tick=None):
        asked.append((list(seeds), steps, guidance))
        return np.full((len(said), 3, 64, 64), 0.9 if guidance == 2.0 else 0.1, np.float32)

    class Pipe:
        vae = None

    monkeypatch.setattr(scoring, "opened", lambda folder: Pipe())
    monkeypatch.setattr(scoring, "pictures", drawn)
    monkeypatch.setattr(scoring, "rebuilt", lambda vae, images: images)
    plan = scoring.Plan(3, 2, (2.0, 4.0), (5, 9), 2, 4)
    tables = scoring.score_pipeline(tmp_path, plan, False)
    choosing = [seed for seeds, steps, _ in asked[:3] for seed in seeds]
    assert min(choosing) >= scoring.FIRST_CHOICE
    rows, choice, autoencoder, time = tables.values()
    assert len(choice) == 3
    reported = {(row["captions"], row["right"]): row for row in rows}
    assert reported["two", "both things"]["bar"] == 0.7
    assert reported["two", "both things"]["met"] is False
    assert reported["two", "both things"]["samples"] == 6
    assert reported["single", "background"]["drawn"] == 1.0
    assert autoencoder[0]["mean error"] == 0
    assert time[0]["pictures"] == 16


def test_a_clip_model_is_scored_into_the_file(tmp_path, capsys):
    keep = trained(tmp_path)
    folder = packing.pack("tiny-clip", keep, checkpoint(keep, "clip"))
    out = tmp_path / "scores.json"
    args = ["score", "tiny-clip", "--model", str(folder), "--size", "tiny", "--out", str(out)]
    assert command.main(args) == 0
    found = json.loads(out.read_text())["models"]["tiny-clip"]
    assert found["weights"] == packing.fingerprint(folder)
    recall, swaps = found["tables"].values()
    assert all(row["share"] < 0.3 for row in recall)  # untrained
    assert len(swaps) == len(retrieval.SWAPS)
    assert "## tiny-clip" in out.with_suffix(".md").read_text()
    assert command.main([*args[:1], "tiny", *args[2:]]) == 1
    assert command.main([*args[:3], str(tmp_path / "none"), *args[4:]]) == 1
    assert "holds no packed tiny-clip" in capsys.readouterr().err
    with pytest.raises(UnbraidError, match="size is 'huge'"):
        scoring.score_to_file("tiny-clip", folder, "huge")


def test_a_wrong_caption_is_wrong_in_one_respect():
    scene = sample(1, 3, (2, 2), "held_out")[0]
    for name, (_, change) in retrieval.SWAPS.items():
        other = change(scene)
        assert other != scene, name
    colours = [thing.colour for thing in retrieval.SWAPS["binding: colours exchanged"][1](scene).things]
    assert colours == [thing.colour for thing in scene.things][::-1]
