"""The oracle of scenes against the truth, whole and worsened; new subjects, photos, scores, files, the command."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from unbraid.core.errors import UnbraidError
from unbraid.data import scenes as s
from unbraid.data.scenes.nets import nets

TRUTH = s.sample(300, seed=77, objects=(1, 3), split="held_out")
IMAGES = s.render(TRUTH)


@pytest.fixture(scope="module")
def told():
    return s.read(IMAGES)


def test_every_attribute_is_read_back_from_held_out_scenes(told):
    shares = s.accuracy(told, TRUTH)
    assert set(shares) == {
        "count", "shape", "colour", "texture", "size", "place", "relation", "background", "background texture", "fade",
        "style",
    }  # fmt: skip
    assert min(shares.values()) > 0.98, shares


@pytest.mark.parametrize("style", s.STYLES)
def test_every_style_is_read_back(style):
    truth = [replace(scene, style=style) for scene in TRUTH[:80]]
    shares = s.accuracy(s.read(s.render(truth)), truth)
    assert shares["style"] > 0.95
    assert min(shares[name] for name in ("shape", "colour", "background")) > 0.97


@pytest.mark.parametrize(
    ("kind", "strength", "bar"),
    [
        ("blur", 1, 0.95),
        ("noise", 1, 0.95),
        ("blocks", 1, 0.95),
        ("cast", 1, 0.93),
        ("small", 1, 0.94),
        ("small", 2, 0.8),
    ],
)
def test_worse_images_are_read_too(kind, strength, bar):
    shares = s.accuracy(s.read(s.degrade(IMAGES[:120], kind, strength)), TRUTH[:120])
    assert min(shares[name] for name in ("shape", "colour", "background")) > bar, shares


def test_reading_depends_on_no_neighbour_and_takes_other_sizes(told):
    alone = s.read(IMAGES[5])
    assert alone.scenes[0] == told.scenes[5]
    levels = (IMAGES[:10] * 255 + 0.5).astype(np.uint8)
    assert [x.style for x in s.read(levels).scenes] == [x.style for x in told.scenes[:10]]
    shares = s.accuracy(s.read(s.render(TRUTH[:40], 192)), TRUTH[:40])
    assert min(shares[name] for name in ("shape", "colour", "background")) > 0.95


def test_confidence_is_lower_where_it_is_wrong(told):
    worse = s.read(s.degrade(IMAGES, "small", 2))
    kinds = ("shape", "colour", "texture", "size")
    right = np.array(
        [
            a.background == b.background
            and a.style == b.style
            and sorted([vars(t)[k] for k in kinds] for t in a.things)
            == sorted([vars(t)[k] for k in kinds] for t in b.things)
            for a, b in zip(worse.scenes, TRUTH, strict=True)
        ]
    )
    assert worse.confidence[right].mean() > worse.confidence[~right].mean() + 0.1
    assert told.confidence.mean() > worse.confidence.mean()


def test_an_empty_scene_has_no_thing():
    empty = [s.Scene((), s.Background(colour), seed=k) for k, colour in enumerate(s.GROUNDS)]
    assert not any(scene.things for scene in s.read(s.render(empty)).scenes)


def test_scores_are_those_of_the_truth():
    prompts = [s.caption(scene) for scene in TRUTH[:60]]
    right = [bool(s.score(image, words)["all"][0]) for image, words in zip(IMAGES[:60], prompts, strict=True)]
    other = [bool(s.score(image, words)["all"][0]) for image, words in zip(IMAGES[1:61], prompts, strict=True)]
    assert np.mean(right) > 0.93
    assert not any(other)


def test_a_score_names_what_is_wrong():
    scene = s.Scene((s.Thing("star", "yellow", x=0.3), s.Thing("ring", "red", x=0.75)), s.Background("blue"))
    judged = s.score(s.render(scene), "a yellow star to the right of a blue ring, on a blue background")
    assert {name: bool(v[0]) for name, v in judged.items()} == {
        "shape 1": True, "colour 1": True, "shape 2": True, "colour 2": False, "relation": False, "background": True,
        "count": True, "all": False,
    }  # fmt: skip
    missing = s.score(s.render(scene), "a yellow star, a red ring and a green heart")
    assert not missing["shape 3"][0]
    assert not missing["count"][0]


def test_agreement_is_a_result_with_intervals():
    result = s.agreement(IMAGES[:20], [s.caption(scene) for scene in TRUTH[:20]])
    rows = {row["attribute"]: row for row in result.tables["attributes"].records}
    assert rows["shape"]["right"] > 0.9
    assert rows["shape"]["low"] < rows["shape"]["right"] <= rows["shape"]["high"]
    assert len(result.tables["prompts"]) == 20
    assert result.figures


def test_subjects_are_told_from_each_other_and_from_ordinary_things():
    own, other = [], []
    for k in range(12):
        images = s.photos(k, 4, seed=k).images
        own += [*s.identity(images, k), *s.identity(s.degrade(images, "blur"), k)]
        other += [*s.identity(images, (k + 1) % 12), *s.identity(IMAGES[k : k + 2], k)]
    assert min(own) > 0.55
    assert max(other) < 0.5


def test_a_filled_notch_or_other_colours_cost_identity():
    photos = s.photos(7, 4, seed=1)
    whole = s.identity(photos.images, 7)
    turned = s.identity(photos.images[:, ::-1].copy(), 7)
    assert (turned < whole - 0.3).all()


def test_photos_show_the_subject_where_its_mask_is():
    photos = s.photos(4, 6, seed=2)
    assert photos.images.shape == (6, 3, 64, 64)
    assert len({scene.background for scene in photos.scenes}) == 6
    found = s.locate(photos.images, 4)
    for k, scene in enumerate(photos.scenes):
        assert abs(found.things[k].x - scene.things[0].x) < 0.03
        assert photos.masks[k, 0].sum() > 300
    assert all(words.count("<new-1>") == 1 and photos.nouns[0] in words for words in photos.captions)
    assert s.read(photos.images).scenes[0].background.name == photos.scenes[0].background.name


def test_photos_may_share_a_background_and_show_two():
    shared = s.photos(4, 5, backgrounds="shared")
    assert len({scene.background for scene in shared.scenes}) == 1
    assert len({scene.background for scene in s.photos(4, 5, backgrounds="two").scenes}) == 2
    both = s.photos((4, 9), 3, words=("<mug>", "<hat>"))
    assert both.masks.shape == (3, 2, 64, 64)
    assert (both.masks.sum(axis=(2, 3)) > 150).all()
    assert "<mug>" in both.captions[0]
    assert "<hat>" in both.captions[0]
    judged = s.score(both.images, both.prompt, {"<mug>": 4, "<hat>": 9})
    assert judged["all"].all()
    assert judged["count"].all()
    assert not s.score(both.images, "a <cup> circle", {"<cup>": 3})["all"].any()


def test_files_come_back(tmp_path):
    photos = s.photos((2, 5), 2)
    assert s.write(tmp_path / "a", photos.scenes, photos.captions) == 2
    lines = [json.loads(line) for line in (tmp_path / "a" / "captions.jsonl").read_text().splitlines()]
    assert [s.Scene.from_dict(line["scene"]) for line in lines] == photos.scenes
    assert [line["text"] for line in lines] == photos.captions
    assert all((tmp_path / "a" / name).stat().st_size for line in lines for name in [line["file_name"], *line["masks"]])
    assert not list((tmp_path / "a").glob(".*"))


def test_the_command_writes_folders_and_a_page(tmp_path):
    from unbraid.cli import app

    run = CliRunner().invoke
    assert run(app, ["scenes", "make", "--n", "3", "--size", "32", "--out", str(tmp_path / "made")]).exit_code == 0
    assert len(list((tmp_path / "made").glob("*.png"))) == 3
    assert run(app, ["scenes", "photos", "7", "--n", "2", "--out", str(tmp_path / "mug")]).exit_code == 0
    assert len(list((tmp_path / "mug" / "masks").glob("*.png"))) == 2
    assert run(app, ["scenes", "show", "--out", str(tmp_path / "page"), "--quiet"]).exit_code == 0
    assert "New subjects" in (tmp_path / "page" / "index.html").read_text()
    wrong = run(app, ["scenes", "photos", "mug", "--out", str(tmp_path / "x")])
    assert isinstance(wrong.exception, UnbraidError)
    assert not (tmp_path / "x").exists()


def test_the_weights_are_small_and_whole():
    made = nets()
    assert set(made) == {"whole", "pixel", "thing"}
    assert all(np.isfinite(weight).all() for net in made.values() for weight, _ in net.layers)


WRONG = [
    (lambda: s.read(np.zeros((2, 1, 64, 64))), "have the shape"),
    (lambda: s.read(np.zeros((0, 3, 64, 64))), "no image"),
    (lambda: s.read(np.full((1, 3, 64, 64), np.nan)), "not finite"),
    (lambda: s.read(IMAGES[:2] * 2 - 1), "from 0 to 1"),
    (lambda: s.score(IMAGES[:1], "a red dog"), "not understood"),
    (lambda: s.agreement(IMAGES[:2], ["a star"]), "one each"),
    (lambda: s.subject(-1), "from 0"),
    (lambda: s.photos((1, 2, 3)), "two different ones"),
    (lambda: s.photos(1, 0), "how many photos"),
    (lambda: s.photos(1, words=("<a>", "<b>")), "one each"),
    (lambda: s.photos(1, backgrounds="grey"), "backgrounds is 'grey'"),
    (lambda: s.degrade(IMAGES[:1], "rain"), "no degradation"),
    (lambda: s.write("/tmp/never", TRUTH[:1], []), "one each"),
]


@pytest.mark.parametrize(("call", "words"), WRONG)
def test_what_is_wrong_is_said_in_one_sentence(call, words):
    with pytest.raises(UnbraidError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
