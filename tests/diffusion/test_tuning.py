"""Adapters, new words and runs: nothing else is moved or left behind, and plain diffusers reads what is written."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support.pipelines import FAMILIES, small
from unbraid.core.errors import UnbraidError
from unbraid.diffusion import Parts, paint
from unbraid.diffusion.adapters import loaded_lora, lora, lora_weights, save_lora, targets
from unbraid.diffusion.photos import Album
from unbraid.diffusion.subjects import class_photos, dreambooth, textual_inversion
from unbraid.diffusion.tokens import NewTokens, load_words


def state(pipe):
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {
        f"{name}.{key}": (p.detach().clone(), p.requires_grad)
        for name, m in modules.items()
        for key, p in m.named_parameters()
    }


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k][0], two[k][0]) and one[k][1] == two[k][1] for k in one)


def album(n=2, masks=False):
    g = torch.Generator().manual_seed(5)
    cover = torch.zeros(n, 64, 64)
    cover[:, 10:40, 10:40] = 1
    return Album.of(torch.rand(n, 3, 64, 64, generator=g), masks=cover if masks else None)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tuned_adapter_is_read_by_plain_diffusers_and_leaves_nothing(family, tmp_path):
    pipe = small(family)
    before = state(pipe)
    plain = paint(pipe, ["a red circle"], [1], steps=2, progress=False)
    with dreambooth(pipe, album(), "a pink circle", steps=3, lr=1e-2, progress=False) as (_, run):
        assert len(run.losses) == 3
        tuned = paint(pipe, ["a red circle"], [1], steps=2, progress=False)
        weights = lora_weights(Parts.of(pipe))
    assert np.abs(tuned - plain).max() > 1e-3
    assert same(before, state(pipe))
    np.testing.assert_array_equal(paint(pipe, ["a red circle"], [1], steps=2, progress=False), plain)
    save_lora(Parts.of(pipe), weights, tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]
    with loaded_lora(pipe, tmp_path):
        np.testing.assert_allclose(paint(pipe, ["a red circle"], [1], steps=2, progress=False), tuned, atol=1e-4)
    np.testing.assert_array_equal(paint(pipe, ["a red circle"], [1], steps=2, progress=False), plain)
    assert same(before, state(pipe))


def test_a_fresh_adapter_changes_nothing_and_a_users_own_goes_on():
    pipe = small("sd")
    parts = Parts.of(pipe)
    with lora(parts, name="theirs", seed=3) as weights:
        for weight in weights:
            torch.nn.init.normal_(weight, std=0.05)
        plain = paint(pipe, ["a moon"], [1], steps=2, progress=False)
        with lora(parts, rank=2) as fresh:
            assert 0 < sum(p.numel() for p in fresh) < sum(p.numel() for p in weights)
            np.testing.assert_allclose(paint(pipe, ["a moon"], [1], steps=2, progress=False), plain, atol=1e-6)
            with pytest.raises(UnbraidError, match="has an adapter"), lora(parts):
                pass
        np.testing.assert_allclose(paint(pipe, ["a moon"], [1], steps=2, progress=False), plain, atol=1e-6)
        assert parts.denoiser.active_adapters() == ["theirs"]
    assert targets(Parts.of(small("flux")), "cross_kv") == r".*add_[kv]_proj"
    with pytest.raises(UnbraidError, match="to_z"):
        targets(parts, ["to_z"])
    with pytest.raises(UnbraidError, match="rank is 0"), lora(parts, rank=0):
        pass


@pytest.mark.parametrize("vectors", [1, 2])
def test_new_words_move_nothing_else_and_are_read_by_plain_diffusers(vectors, tmp_path):
    pipe = small("sd")
    before, tokenizer = state(pipe), pipe.tokenizer
    size = len(tokenizer)
    with textual_inversion(pipe, album(), "<mug>", "circle", steps=4, lr=0.1, vectors=vectors, progress=False) as (
        words,
        _,
    ):
        start = pipe.text_encoder.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("circle")]
        assert words.rows[0].shape == (vectors, 128)
        assert (words.rows[0] - start).abs().mean() > 0.1
        inside = paint(pipe, ["a <mug> in the snow"], [1], steps=2, progress=False)
        (path,) = words.save(tmp_path)
    assert pipe.tokenizer is tokenizer
    assert len(tokenizer) == size
    assert same(before, state(pipe))
    assert list(load_file(path)) == ["<mug>"]
    other = load_words(Parts.of(pipe), path)
    with other.installed():
        again = paint(pipe, ["a <mug> in the snow"], [1], steps=2, progress=False)
    np.testing.assert_array_equal(again, inside)
    theirs = small("sd")
    theirs.load_textual_inversion(str(path))
    np.testing.assert_allclose(paint(theirs, ["a <mug> in the snow"], [1], steps=2, progress=False), inside, atol=1e-5)


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_every_encoder_has_its_own_row(family, tmp_path):
    pipe = small(family)
    parts = Parts.of(pipe)
    words = NewTokens(parts, {"<mug>": None, "<place>": "snow"})
    with words.installed():
        told = parts.encode(["a <mug> <place>"])
        (told.embeds.square().mean() + (0 if told.pooled is None else told.pooled.square().mean())).backward()
    assert [row.grad.abs().sum() > 0 for row in words.rows] == [True] * len(parts.encoders)
    paths = words.save(tmp_path)
    assert (
        set(load_file(paths[0]))
        == {"sdxl": {"clip_l", "clip_g"}, "sd3": {"clip_l", "clip_g"}, "flux": {"clip_l", "t5"}}[family]
    )
    with load_words(parts, *paths).installed(), torch.no_grad():
        torch.testing.assert_close(parts.encode(["a <mug> <place>"]).embeds, told.embeds)


def test_rows_that_a_network_computes_differ_by_prompt_and_carry_gradients():
    pipe = small("sd")
    parts = Parts.of(pipe)
    words = NewTokens(parts, {"<pose>": None})
    rows = torch.randn(2, 128, requires_grad=True)
    with words.installed(), words.computed({"<pose>": rows}):
        told = parts.encode(["a <pose>", "a <pose>"])
        assert not torch.allclose(told.embeds[0], told.embeds[1])
        told.embeds.sum().backward()
    assert rows.grad.abs().sum(1).min() > 0
    assert words.rows[0].grad is None or not words.rows[0].grad.any()


def test_an_interrupted_run_ends_where_a_whole_one_does(tmp_path):
    def run(keep, stop=None):
        pipe = small("sd")

        def cut(step, tuner, numbers):
            if step == stop:
                raise RuntimeError("cut")

        with dreambooth(
            pipe, album(), "a moon", steps=6, lr=1e-3, keep=keep, every=2, mean_decay=0.9, progress=False,
            callbacks=[cut], gradient_checkpointing=True,
        ):  # fmt: skip
            return lora_weights(Parts.of(pipe))

    whole = run(tmp_path / "a")
    with pytest.raises(RuntimeError, match="cut"):
        run(tmp_path / "b", stop=5)
    again = run(tmp_path / "b")
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_prior_and_masks_enter_the_loss():
    pipe = small("sd")
    prior = class_photos(pipe, "a circle", 3, steps=2, progress=False)
    with dreambooth(
        pipe,
        album(masks=True),
        "a pink circle",
        steps=2,
        prior=prior,
        prior_prompt="a circle",
        masked=True,
        progress=False,
    ) as (_, run):
        assert set(run.extra) == {"subject", "prior"}
    with pytest.raises(UnbraidError, match="needs masks"), dreambooth(pipe, album(), "a", masked=True):
        pass
    with pytest.raises(UnbraidError, match="prior_prompt"), dreambooth(pipe, album(), "a", prior=prior):
        pass
    with pytest.raises(UnbraidError, match=r"needs \{\}"), textual_inversion(pipe, album(), "<m>", None, prompt="a"):
        pass
    with pytest.raises(UnbraidError, match="cannot be a new word"), textual_inversion(pipe, album(), "circle", None):
        pass
