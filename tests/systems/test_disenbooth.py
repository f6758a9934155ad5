"""DisenBooth: its equations, its modes on real pipelines, what it leaves behind, and the study."""

import json
import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support.pipelines import small
from unbraid.core.errors import UnbraidError
from unbraid.data import scenes
from unbraid.diffusion import Parts, paint
from unbraid.diffusion.clip import ImageText
from unbraid.diffusion.photos import Album
from unbraid.systems.disenbooth import DisenBooth, ImageBranch, disen_embeds
from unbraid.systems.disenbooth.branch import terms
from unbraid.systems.disenbooth.measuring import Case, Plan, learn
from unbraid.systems.disenbooth.miniature import Settings, make_world, measure
from unbraid.systems.disenbooth.report import matched
from unbraid.systems.disenbooth.stopping import Watch, between
from unbraid.systems.disenbooth.study import LORA, run
from unbraid.zoo.reference import parts as reference
from unbraid.zoo.reference.words import tokenizer

FEW = {"steps": 2, "guidance": 3.0, "progress": False}


@pytest.fixture(scope="module")
def eye():
    torch.manual_seed(0)
    words = tokenizer()
    return ImageText(reference.clip(len(words), words.eos_token_id), words, [0.5] * 3, [0.5] * 3)


@pytest.fixture(scope="module")
def album():
    return Album.of(torch.from_numpy(scenes.photos(3, n=3).images))


@pytest.fixture(scope="module")
def tuned(eye, album):
    pipe = small("sd")
    return pipe, DisenBooth(steps=3, lr=1e-2, batch=2).fit(pipe, album, "circle", eye, progress=False)


def test_the_branch_is_the_equation():
    branch = ImageBranch(8, 8)
    v = torch.randn(5, 8)
    g = 0.5 * v  # the mask begins at one half everywhere
    expected = (
        torch.relu(g @ branch.first.weight.T + branch.first.bias) @ branch.second.weight.T + branch.second.bias + g
    )
    torch.testing.assert_close(branch(v), expected[:, None])
    assert ImageBranch(4, 8)(torch.randn(2, 4)).shape == (2, 1, 8)
    assert not any("mask" in name for name, _ in ImageBranch(8, 8, masked=False).named_parameters())


def test_terms_are_means_and_the_contrast_is_per_photo():
    text, image = torch.randn(4, 7, 8), torch.randn(4, 1, 8)
    cosines = torch.stack([torch.nn.functional.cosine_similarity(text[i].mean(0), image[i, 0], 0) for i in range(4)])
    found = terms(torch.arange(4.0), torch.ones(4), text, image)
    torch.testing.assert_close(found["contrast"], cosines.mean())
    assert found["full"] == 1.5
    assert found["weak"] == 1.0
    torch.testing.assert_close(terms(torch.ones(4), None, text, image, "square")["contrast"], cosines.square().mean())
    torch.testing.assert_close(terms(torch.ones(4), None, text, image, "absolute")["contrast"], cosines.abs().mean())
    assert terms(torch.ones(4), None, text, image)["weak"] == 0


def test_weak_denoising_begins_as_the_base_models_loss_and_the_contrast_reaches_the_branch_only(eye, album):
    from unbraid.diffusion.adapters import lora
    from unbraid.diffusion.tuning import Tuner, Views

    parts = Parts.of(small("sd"))
    system = DisenBooth()
    system.prompt_ = "a sks circle"
    with lora(parts) as weights:
        tuner = Tuner(parts, networks=ImageBranch(128, 128))
        given = system._draw(Views(parts, album), eye)(0, torch.Generator().manual_seed(0))
        torch.manual_seed(1)
        _, numbers = system._loss(tuner, given)
        torch.manual_seed(1)
        noised = tuner.step.draw(given[0])
        (made,) = tuner.step.predict(noised, [parts.encode(["a sks circle"])])
        torch.testing.assert_close(numbers["weak"], tuner.step.error(made, noised).mean())
        numbers["contrast"].backward()
        assert all(w.grad is None for w in weights)
        assert all(w.grad is not None for w in tuner.networks.parameters())


def test_without_the_image_it_is_a_plain_adapter_bit_for_bit(tuned, tmp_path):
    pipe, system = tuned
    before = [p.clone() for p in pipe.unet.parameters()]
    said = ["a sks circle in the snow"]
    ours = system.paint(pipe, said, [4], **FEW)
    plain = paint(pipe, said, [4], **FEW)
    assert np.abs(ours - plain).max() > 1e-3
    assert all(torch.equal(a, b) for a, b in zip(before, pipe.unet.parameters(), strict=True))
    system.export(pipe, tmp_path)
    pipe.load_lora_weights(str(tmp_path / "lora"))
    np.testing.assert_allclose(paint(pipe, Parts.of(pipe).encode(said), [4], **FEW), ours, atol=1e-5)
    pipe.unload_lora_weights()
    assert set(load_file(tmp_path / "adapter.safetensors")) == set(system.branch_.state_dict())


def test_the_other_modes_and_a_folder_that_comes_back(tuned, eye, album, tmp_path):
    pipe, system = tuned
    references = album.crop([0, 1, 2])
    without = system.paint(pipe, [""] * 3, [0, 0, 0], references, eye, weights=(0.0, 1.0), **FEW)
    assert np.abs(without[0] - without[1]).max() > 1e-4
    system.save_pretrained(tmp_path)
    again = DisenBooth.from_pretrained(tmp_path)
    np.testing.assert_array_equal(
        again.paint(pipe, [""] * 3, [0, 0, 0], references, eye, weights=(0, 1), **FEW), without
    )
    told, away = disen_embeds(pipe, system.branch_, eye, ["a star"] * 2, references[:1], 0.5, 2.0)
    with torch.no_grad():
        plain = Parts.of(pipe).encode(["a star"] * 2).embeds
        torch.testing.assert_close(told.embeds, 0.5 * plain + 2 * system.branch_(eye.images(references[:1])))
        torch.testing.assert_close(away.embeds, 0.5 * Parts.of(pipe).encode([""]).embeds.repeat(2, 1, 1))


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_other_families(family, eye, album):
    pipe = small(family)
    system = DisenBooth(steps=1).fit(pipe, album, "circle", eye, progress=False)
    assert system.widths_ == [128, Parts.of(pipe).width]
    made = system.paint(pipe, ["a star"], [0], album.crop([0]), eye, weights=(1.0, 1.0), **FEW)
    assert np.isfinite(made).all()


def test_a_stop_and_its_bound(eye, album):
    squares = album.crop([0, 1, 2])
    like = eye.likeness(squares, squares)
    mean, nearest = between(eye, squares)
    assert mean == pytest.approx(like[~np.eye(3, dtype=bool)].mean())
    assert nearest == pytest.approx(np.where(np.eye(3), -1, like).max(1).mean())
    assert all(np.isnan(between(eye, squares[:1])))
    watch = Watch(small("sd"), eye, squares, "a sks circle", every=2, pictures=1, steps=1, size=64)
    watch.bound = -1.0
    assert [watch(step, None, {}) for step in (1, 2)] == [False, True]
    watch.bound = 1.1
    assert not watch(4, None, {})
    assert [row["step"] for row in watch.seen] == [2, 4]
    system = DisenBooth(steps=4, stop="auto", check_every=2).fit(
        small("sd"), album, "circle", eye, progress=False, paint_options={"steps": 1}
    )
    assert system.looks_


def test_photos_that_cannot_be_told_apart_are_said_to_be(eye, caplog):
    same = Album.of(torch.rand(1, 3, 64, 64).repeat(3, 1, 1, 1))
    with caplog.at_level(logging.WARNING, "unbraid.disenbooth"):
        DisenBooth(steps=1).fit(small("sd"), same, "circle", eye, progress=False)
        DisenBooth(steps=1).fit(small("sd"), Album.of(torch.rand(1, 3, 64, 64)), "circle", eye, progress=False)
    assert "nearly equal to the image encoder" in caplog.text
    assert "there is one photo" in caplog.text


def test_what_is_refused(tuned, eye, album):
    pipe, system = tuned
    for changed, said in (
        ({"prompt": "a dog"}, "needs"), ({"weak": -1.0}, "weak is"), ({"steps": 0}, "steps is"),
        ({"rank": 0}, "rank is"),
    ):  # fmt: skip
        with pytest.raises(UnbraidError, match=said):
            DisenBooth(**{"steps": 1, **changed}).fit(pipe, album, "circle", eye, progress=False)
    with pytest.raises(UnbraidError, match="noun"):
        DisenBooth().fit(pipe, album, " ", eye)
    with pytest.raises(UnbraidError, match="does not name the subject"):
        system.paint(pipe, ["a circle"], [0])
    with pytest.raises(UnbraidError, match="image encoder"):
        system.paint(pipe, [""], [0], weights=(0, 1))
    with pytest.raises(UnbraidError, match="no reference"):
        system.paint(pipe, [""], [0], encoder=eye, weights=(0, 1))
    with pytest.raises(UnbraidError, match="2 references"):
        system.paint(pipe, [""] * 3, [0, 1, 2], album.crop([0, 1]), eye, (0, 1))
    with pytest.raises(UnbraidError, match="another model"):
        system.paint(small("sd3"), ["a sks circle"], [0], **FEW)
    for given, said in (
        ({"methods": ["x"]}, "methods are"), ({"seeds": 0}, "seeds is 0"), ({"prompts": ["a dog"]}, "has no"),
        ({"images": "nowhere"}, "need a pipeline"), ({"images": "nowhere", "model": "x/y"}, "class-noun"),
        ({"lr": -1.0}, "lr is"),
    ):  # fmt: skip
        with pytest.raises(UnbraidError, match=said):
            run(**given)


def test_more_weak_denoising_keeps_more_of_the_subject():
    world = make_world(100, steps=600)
    found = [measure(world, Settings(weak=weak, steps=150), 100, [150])[0]["identity"] for weak in (0.0, 1.0)]
    assert found[1] < found[0]


def test_curves_are_compared_where_identities_are_equal():
    def rows(method, points):
        return [
            {"method": method, "seed": 0, "subject": "a", "step": i, "identity": x, "leak": y, "background": 1.0}
            for i, (x, y) in enumerate(points)
        ]

    found = matched([*rows("DisenBooth", [(0.2, 0.1), (0.6, 0.3)]), *rows(LORA, [(0.4, 0.4), (0.8, 0.8)])], "method")
    assert found.measured == pytest.approx((0.2 + 0.3) / 2 - (0.4 + 0.6) / 2)
    assert found.holds is None


def test_the_study_of_vectors(tmp_path):
    first = run(size="tiny", seeds=2, keep=tmp_path)
    again = run(size="tiny", seeds=2, keep=tmp_path)
    assert first.tables["vectors"] == again.tables["vectors"]
    assert again.meta["pieces_read_back"] == 16
    verdicts = {claim.name: claim.holds for claim in first.claims}
    assert verdicts["irrelevant"] is None
    assert all(verdicts[name] is not None for name in ("background", "weak", "contrast", "mask", "one background"))


@pytest.mark.parametrize("method", ["DisenBooth", LORA])
def test_an_interrupted_training_keeps_its_looks(method, eye, album, tmp_path, monkeypatch):
    from unbraid.systems.disenbooth import measuring

    pipe, case = small("sd"), Case(album, "circle", ["a {} in the snow"])
    plan = Plan(steps=9, looks=3, draws=1, sampler=1)
    whole = learn(pipe, eye, case, method, plan, 0, tmp_path / "a")
    paint_ = measuring.paint

    def cut(pipe, prompts, *args, **options):
        if (tmp_path / "b" / "step-00000008").exists():
            raise RuntimeError("cut")
        return paint_(pipe, prompts, *args, **options)

    monkeypatch.setattr(measuring, "paint", cut)
    with pytest.raises(RuntimeError, match="cut"):
        learn(pipe, eye, case, method, plan, 0, tmp_path / "b")
    monkeypatch.setattr(measuring, "paint", paint_)
    for folder in ("b", "a"):  # "a" had ended: nothing is trained, and all is found
        again = learn(pipe, eye, case, method, plan, 0, tmp_path / folder)
        assert again.rows == whole.rows
        np.testing.assert_array_equal(again.pictures["scenes"], whole.pictures["scenes"])


def test_the_study_of_photos_writes_what_others_read(tmp_path, eye):
    pipe, home = small("sd"), tmp_path / "photos"
    pipe.save_pretrained(tmp_path / "pipe")
    eye.model.save_pretrained(tmp_path / "clip")
    eye.tokenizer.save_pretrained(tmp_path / "clip")
    mine = scenes.photos(3, n=3)
    scenes.write(home, mine.scenes, mine.captions)
    given = {
        "model": str(tmp_path / "pipe"), "encoder": str(tmp_path / "clip"), "steps": 2, "looks": 1, "draws": 1,
        "sampler": 2, "seeds": 1, "keep": tmp_path / "keep",
    }  # fmt: skip
    found = run(images=home, class_noun="circle", prompts=["a {} in the snow"], out=tmp_path / "out", **given)
    assert {one.title for one in found.figures} >= {"circle in new scenes", "circle: the image branch of DisenBooth"}
    pipe.load_lora_weights(str(tmp_path / "out" / "disenbooth" / "lora"))
    pipe.unload_lora_weights()
    pipe.load_textual_inversion(str(tmp_path / "out" / "textual-inversion" / "subject.safetensors"), token="<s>")
    assert DisenBooth.from_pretrained(tmp_path / "out" / "disenbooth").prompt_ == "a sks circle"
    again = run(images=home, class_noun="circle", prompts=["a {} in the snow"], out=tmp_path / "out", **given)
    assert again.meta["pieces_read_back"] == 6
    json.dumps(again.params)


def test_the_study_of_subjects(tmp_path, eye):
    small("sd").save_pretrained(tmp_path / "pipe")
    eye.model.save_pretrained(tmp_path / "clip")
    eye.tokenizer.save_pretrained(tmp_path / "clip")
    found = run(
        model=str(tmp_path / "pipe"), encoder=str(tmp_path / "clip"), methods=["DisenBooth", LORA], subjects=1, seeds=2,
        steps=2, looks=2, draws=1, sampler=1,
    )  # fmt: skip
    assert {"identity", "leak", "background", "without: background"} <= set(found.tables["looks"].columns)
    assert {claim.name for claim in found.claims if claim.holds is not None} >= {"irrelevant"}
