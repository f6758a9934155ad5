"""Pipelines of all families under one set of names, and pictures that do not depend on their batch."""

import numpy as np
import pytest
import torch

from tests.support.pipelines import FAMILIES, small
from unbraid.core.errors import UnbraidError
from unbraid.diffusion import Parts, open_pipeline, paint


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_hold_for_every_family(family):
    pipe = small(family)
    parts = Parts.of(pipe)
    assert parts.family == family
    assert parts.kind == ("unet" if family in ("sd", "sdxl") else "joint")
    assert parts.objective == ("v_prediction" if parts.kind == "unet" else "flow")
    assert parts.size == 64
    assert parts.patch == 4
    with torch.no_grad():
        told = parts.encode(["a red circle", "a blue star in the snow"])
        images = torch.rand(2, 3, 64, 64)
        code = parts.latents(images, mean=True)
        made = parts.predict(code, torch.tensor([3.0, 900.0]), told)
        one = parts.predict(code[1:], torch.tensor([900.0]), told.at([1]))
        back = parts.images(code)
    assert len(told) == 2
    assert told.embeds.shape[2] == parts.width
    assert made.shape == code.shape == (2, 4, 16, 16)
    assert back.shape == images.shape
    torch.testing.assert_close(one, made[1:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_does_not_depend_on_its_batch_nor_on_how_its_words_come(family):
    pipe = small(family)
    before = dict(pipe._progress_bar_config)
    said, seeds = ["a red circle", "a blue star in the snow", "a moon"], [4, 7, 4]
    together = paint(pipe, said, seeds, steps=2, progress=False)
    alone = paint(pipe, said[1:2], seeds[1:2], steps=2, progress=False)
    with torch.no_grad():
        told = Parts.of(pipe).encode(said)
    by_context = paint(pipe, told, seeds, steps=2, batch=2, progress=False)
    assert together.shape == (3, 3, 64, 64)
    assert together.dtype == np.float32
    np.testing.assert_allclose(alone[0], together[1], atol=2e-4)
    np.testing.assert_allclose(by_context, together, atol=2e-4)
    assert pipe._progress_bar_config == before


def test_predictions_are_the_pipelines_own():
    """One step of each pipeline, by hand through `predict`, ends at the pipeline's picture."""
    for family in FAMILIES:
        pipe = small(family)
        parts = Parts.of(pipe)
        shown = paint(pipe, ["a red circle"], [0], steps=1, guidance=0.0, progress=False)
        noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            told = parts.encode(["a red circle"])
            t = parts.scheduler.timesteps
            guess = parts.predict(noise, t[:1], told, guidance=0.0)  # DDIM's and flows' first noise has variance 1
            if parts.kind == "joint":
                parts.scheduler._step_index = None
            clean = parts.scheduler.step(guess, t[0], noise).prev_sample
            made = parts.images(clean).numpy()
        np.testing.assert_allclose(made, shown, atol=2e-4, err_msg=family)


def test_contexts_are_added_and_scaled():
    parts = Parts.of(small("sd"))
    with torch.no_grad():
        told = parts.encode(["a red circle", "a moon"])
    vector = torch.ones(1, 128)
    torch.testing.assert_close(told.plus(vector, 0.5).embeds, told.embeds + 0.5)
    torch.testing.assert_close(told.times(0.0).plus(vector).embeds, torch.ones_like(told.embeds))
    assert set(told.words(negative=True)) == {"negative_prompt_embeds"}


def test_what_is_refused(tmp_path):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    other = DDPMPipeline(
        UNet2DModel(sample_size=8, block_out_channels=(32, 32), down_block_types=("DownBlock2D",) * 2,
                    up_block_types=("UpBlock2D",) * 2), DDPMScheduler(),
    )  # fmt: skip
    with pytest.raises(UnbraidError, match="not a text-to-image pipeline"):
        open_pipeline(other)
    for name, said in (
        (str(tmp_path), "model_index.json"), ("smollm2/a/b", "not a folder"), ("", "not a folder"),
        ("tiny-sdd", "did you mean .tiny-sd"),
    ):  # fmt: skip
        with pytest.raises(UnbraidError, match=said):
            open_pipeline(name)
    pipe = small("sd")
    with pytest.raises(UnbraidError, match="float8"):
        open_pipeline(str(tmp_path), dtype="float8")
    for given, said in (
        ({"prompts": [], "seeds": []}, "no prompts"), ({"prompts": ["a"], "seeds": [1, 2]}, "2 seeds"),
        ({"prompts": ["a"], "seeds": [1], "size": 50}, "multiples of 16"),
        ({"prompts": ["a"], "seeds": [1], "steps": 0}, "steps is 0"),
    ):  # fmt: skip
        with pytest.raises(UnbraidError, match=said):
            paint(pipe, **given)
    parts = Parts.of(pipe)
    with pytest.raises(UnbraidError, match="at least one text"):
        parts.encode([])
    with pytest.raises(UnbraidError, match="multiples of 16"):
        parts.latents(torch.zeros(1, 3, 60, 64))


def test_a_pipeline_is_opened_from_its_folder(tmp_path):
    pipe = small("sd")
    pipe.save_pretrained(tmp_path)
    read = open_pipeline(str(tmp_path))
    first = paint(pipe, ["a moon"], [1], steps=2, progress=False)
    np.testing.assert_allclose(paint(read, ["a moon"], [1], steps=2, progress=False), first, atol=1e-6)
    assert open_pipeline(read) is read
