"""Noise of every objective against diffusers' schedulers, masked errors, contexts in one forward pass."""

import pytest
import torch
from diffusers import DDPMScheduler

from tests.support.pipelines import small
from unbraid.core.errors import UnbraidError
from unbraid.diffusion.parts import Parts
from unbraid.diffusion.step import DiffusionStep


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_noise_and_targets_are_those_of_diffusers(prediction):
    parts = Parts.of(small("sd", prediction))
    theirs = DDPMScheduler.from_config(parts.scheduler.config)
    clean, noise = torch.randn(2, 5, 4, 8, 8)
    t = torch.tensor([0, 100, 500, 900, 999])
    found = DiffusionStep(parts, snr_gamma=5.0).diffusion(clean, noise, t)
    torch.testing.assert_close(found.noisy, theirs.add_noise(clean, noise, t))
    target = {"epsilon": noise, "sample": clean, "v_prediction": theirs.get_velocity(clean, noise, t)}[prediction]
    torch.testing.assert_close(found.target, target)
    snr = parts.scheduler.alphas_cumprod[t] / (1 - parts.scheduler.alphas_cumprod[t])
    weight = {
        "epsilon": snr.clamp(max=5) / snr,
        "sample": snr.clamp(max=5),
        "v_prediction": snr.clamp(max=5) / (1 + snr),
    }
    torch.testing.assert_close(found.weight, weight[prediction])


def test_a_flow_ends_at_the_picture():
    parts = Parts.of(small("sd3"))
    step = DiffusionStep(parts)
    clean, noise = torch.randn(2, 3, 4, 8, 8)
    found = step.flow(clean, noise, torch.tensor([0.1, 0.5, 1.0]))
    torch.testing.assert_close(found.noisy[2], noise[2])
    torch.testing.assert_close(
        found.noisy - found.t.view(-1, 1, 1, 1) / 1000 * found.target, clean, atol=1e-6, rtol=1e-5
    )
    drawn = step.draw(torch.zeros(4000, 4, 1, 1), torch.Generator().manual_seed(0))
    share = drawn.t / 1000
    assert 0 < share.min() < share.max() < 1
    assert abs(float(share.median()) - 0.75) < 0.02  # the middle, shifted by 3: 3 * .5 / (1 + 2 * .5)


def test_times_bound_the_draw():
    step = DiffusionStep(Parts.of(small("sd")), times=(0.0, 0.3))
    t = step.draw(torch.zeros(500, 4, 1, 1), torch.Generator().manual_seed(0)).t
    assert t.min() >= 0
    assert t.max() < 300


def test_two_contexts_in_one_pass_are_two_passes():
    for family in ("sd", "sd3", "flux", "sdxl"):
        parts = Parts.of(small(family))
        step = DiffusionStep(parts)
        with torch.no_grad():
            noised = step.draw(torch.randn(2, 4, 16, 16), torch.Generator().manual_seed(1))
            a, b = parts.encode(["a red circle", "a moon"]), parts.encode(["", "a blue star"])
            together = step.predict(noised, [a, b])
            torch.testing.assert_close(together[0], step.predict(noised, [a])[0], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(together[1], step.predict(noised, [b])[0], atol=1e-5, rtol=1e-4)


def test_three_ways_to_divide_a_masked_error():
    step = DiffusionStep(Parts.of(small("sd")))
    noised = step.draw(torch.randn(2, 4, 8, 8), torch.Generator().manual_seed(0))
    made = noised.target + 2.0
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, :4, :4] = 1
    assert torch.allclose(step.error(made, noised), torch.full((2,), 4.0))
    for reduction, expected in (("valid", 4.0), ("mask", 16.0), ("mean", 1.0)):
        assert torch.allclose(step.error(made, noised, mask, reduction), torch.full((2,), expected)), reduction


def test_what_is_refused():
    parts = Parts.of(small("sd"))
    with pytest.raises(UnbraidError, match="times are"):
        DiffusionStep(parts, times=(0.5, 0.5))
    with pytest.raises(UnbraidError, match="snr_gamma"):
        DiffusionStep(parts, snr_gamma=0.0)
