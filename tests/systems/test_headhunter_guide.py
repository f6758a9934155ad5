"""Guidance: its formula in the pipelines of all families; nothing asked is nothing touched; nothing is left behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.pipelines import FAMILIES, small
from unbraid import HeadSet, attach, taps
from unbraid.core.errors import UnbraidError
from unbraid.diffusion import Parts, paint
from unbraid.systems.headhunter.guiding import candidates, guide

PROMPTS, SEEDS = ["a red circle", "a blue star in the snow"], [4, 7]


class Spy:
    """Keeps what a denoiser was given and what its scheduler was told."""

    def __init__(self, pipe) -> None:
        self.given: list[dict] = []
        self.told: list[torch.Tensor] = []
        denoiser, step = Parts.of(pipe).denoiser, pipe.scheduler.step
        self.handle = denoiser.register_forward_pre_hook(self._calls, with_kwargs=True)
        pipe.scheduler.step = lambda v, *rest, **more: (self.told.append(v.clone()), step(v, *rest, **more))[1]
        self.pipe = pipe

    def _calls(self, module, args, kwargs) -> None:
        names = ["sample", "timestep"]
        self.given.append({**dict(zip(names, args, strict=False)), **kwargs})

    def close(self) -> None:
        self.handle.remove()
        del self.pipe.scheduler.step


def options(family: str, cfg: bool) -> dict:
    if family == "flux":  # its guidance_scale is told to the model; this one is classifier-free guidance
        return {"true_cfg_scale": 4.0, "negative_prompt": ["blue", "blue"]} if cfg else {}
    return {"guidance": 4.0 if cfg else 0.0}


def first_step(pipe, family: str, cfg: bool) -> tuple[list[dict], torch.Tensor]:
    spy = Spy(pipe)
    try:
        paint(pipe, PROMPTS, SEEDS, steps=2, progress=False, **options(family, cfg))
    finally:
        spy.close()
    return spy.given, spy.told[0]


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("cfg", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_prediction_is_moved_away_from_the_damaged_one(family: str, cfg: bool, together: bool) -> None:
    pipe = small(family)
    denoiser = Parts.of(pipe).denoiser
    heads = HeadSet(list(candidates(pipe))[1::3])
    given, plain = first_step(pipe, family, cfg)
    with guide(pipe, heads, 0.7, 3.0, together=together) as made:
        _, guided = first_step(pipe, family, cfg)
    assert made.forwards == 2
    assert made.rows == 4
    conditional = {k: v[-2:] if isinstance(v, torch.Tensor) and v.dim() and len(v) == 4 and cfg else v
                   for k, v in given[0].items()}  # fmt: skip
    if isinstance(conditional.get("added_cond_kwargs"), dict):
        conditional["added_cond_kwargs"] = {k: v[-2:] for k, v in conditional["added_cond_kwargs"].items()}
    conditional["return_dict"] = False
    with torch.no_grad():
        cond = denoiser(**conditional)[0]
        with attach(denoiser, taps.perturb(heads, amount=0.7)):
            damaged = denoiser(**conditional)[0]
    want = plain + 3.0 * (cond - damaged)
    torch.testing.assert_close(guided, want, atol=2e-4, rtol=1e-4)
    assert float((guided - plain).abs().max()) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_asked_is_nothing_done(family: str) -> None:
    pipe = small(family)
    heads, denoiser = candidates(pipe), Parts.of(pipe).denoiser
    plain = paint(pipe, PROMPTS, SEEDS, steps=2, progress=False)
    before = dict(vars(denoiser))
    for made in (
        guide(pipe, HeadSet(), 0.5, 3.0), guide(pipe, heads, 0.0, 3.0), guide(pipe, heads, 0.5, 0.0),
        guide(pipe, {next(iter(heads))[0]: [0.0, 0.0]}), guide(pipe, heads, interval=(0.3, 0.3)),
    ):  # fmt: skip
        with made:
            same = paint(pipe, PROMPTS, SEEDS, steps=2, progress=False)
        np.testing.assert_array_equal(same, plain)
        assert made.rows == 0
    with pytest.raises(KeyboardInterrupt), guide(pipe, heads):
        raise KeyboardInterrupt
    assert dict(vars(denoiser)) == before
    np.testing.assert_array_equal(paint(pipe, PROMPTS, SEEDS, steps=2, progress=False), plain)


def test_each_picture_has_heads_and_a_weight_of_its_own() -> None:
    pipe = small("sd")
    every = list(candidates(pipe))
    sets = [HeadSet(every[:2]), HeadSet(), HeadSet(every[5:7])]
    said, seeds, weights = [PROMPTS[0]] * 3, [3, 3, 3], [2.0, 2.0, -1.0]
    with guide(pipe, sets, 1.0, weights):
        together = paint(pipe, said, seeds, steps=3, progress=False)
    for row in range(3):
        with guide(pipe, sets[row], 1.0, weights[row]):
            alone = paint(pipe, said[:1], seeds[:1], steps=3, progress=False)
        np.testing.assert_allclose(together[row], alone[0], atol=1e-4)
    with pytest.raises(UnbraidError, match="for 3 pictures, but the pipeline paints 2"), guide(pipe, sets):
        paint(pipe, PROMPTS, SEEDS, steps=1, progress=False)


def test_guidance_acts_in_its_interval_only() -> None:
    for family in ("sd", "flux"):
        pipe = small(family)
        with guide(pipe, candidates(pipe), interval=(0.5, 1.0)) as late:
            paint(pipe, PROMPTS, SEEDS, steps=4, progress=False)
        assert 1 <= late.forwards <= 3
        with guide(pipe, candidates(pipe), interval=(0.0, 1.0)) as always:
            paint(pipe, PROMPTS, SEEDS, steps=4, progress=False)
        assert always.forwards == 4


@pytest.mark.parametrize(("family", "kind"), [("sd", "uniform"), ("sd3", "query_mean"), ("flux", "temperature")])
def test_other_kinds_of_damage_reach_pipelines(family: str, kind: str) -> None:
    pipe = small(family)
    plain = paint(pipe, PROMPTS[:1], [1], steps=2, progress=False)
    every = candidates(pipe, kind=kind)
    with guide(pipe, every, 1.0, 2.0, kind=kind):
        changed = paint(pipe, PROMPTS[:1], [1], steps=2, progress=False)
    assert np.isfinite(changed).all()
    assert not np.allclose(plain, changed, atol=1e-4)
    if family == "sd":
        assert len(every) > len(candidates(pipe))  # cross-attention too


def test_wrong_input_is_told() -> None:
    pipe = small("sd")
    site, _ = next(iter(candidates(pipe)))
    for made, said in (
        (lambda: guide(pipe, HeadSet([(site.replace("attn1", "attn"), 0)])), "Close names: .*attn1"),
        (lambda: guide(pipe, HeadSet([(site, 99)])), "has heads 0 to"),
        (lambda: guide(pipe, HeadSet([(site.replace("attn1", "attn2"), 0)])), "cross-attention"),
        (lambda: guide(pipe, HeadSet([(site, 0)]), 1.5), "between 0"),
        (lambda: guide(pipe, HeadSet([(site, 0)]), 0.5, float("nan")), "finite"),
        (lambda: guide(pipe, HeadSet([(site, 0)]), interval=(0.7, 0.2)), "rising"),
        (lambda: guide(pipe, [HeadSet()] * 2, weight=[1.0] * 3), "2 pictures and weights for 3"),
        (lambda: guide("tiny-sd", HeadSet()), "not a text-to-image pipeline"),
        (lambda: candidates(pipe, "*.attn3"), "Close names"),
    ):
        with pytest.raises(UnbraidError, match=said):
            made()
    outer, inner = guide(pipe, HeadSet([(site, 0)])), guide(pipe, HeadSet([(site, 1)]))
    with outer, pytest.raises(UnbraidError, match="guided already"), inner:
        pass
    pipe.unet.set_attention_slice(1)
    with pytest.raises(UnbraidError, match="native backend"), guide(pipe, HeadSet([(site, 0)])):
        paint(pipe, PROMPTS, SEEDS, steps=1, progress=False)


def modular(family: str):
    """A modular pipeline of the same parts."""
    import diffusers

    pipe = small(family)
    blocks = {"sdxl": "StableDiffusionXLAutoBlocks", "sd3": "StableDiffusion3AutoBlocks"}[family]
    made = getattr(diffusers, blocks)().init_pipeline()
    made.update_components(**{k: v for k, v in pipe.components.items() if v is not None and k in made.components})
    return pipe, made


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_the_guider_gives_modular_pipelines_the_same_pictures(family: str) -> None:
    from unbraid.systems.headhunter.guider import SoftPAGGuider

    pipe, made = modular(family)
    heads = HeadSet(list(candidates(pipe))[1::3])
    made.update_components(guider=SoftPAGGuider(heads, 0.7, 3.0, guidance_scale=4.0))
    made.set_progress_bar_config(disable=True)
    images = made(
        prompt=PROMPTS[0], negative_prompt="blue", num_inference_steps=3, height=64, width=64, output_type="np",
        generator=torch.Generator().manual_seed(4), output="images",
    )  # fmt: skip
    with guide(pipe, heads, 0.7, 3.0):
        want = paint(pipe, PROMPTS[:1], SEEDS[:1], steps=3, guidance=4.0, negative="blue", progress=False)
    np.testing.assert_allclose(np.asarray(images[0]).transpose(2, 0, 1), want[0], atol=2e-4)
    again = SoftPAGGuider.from_config(made.guider.config)
    assert again.chosen == heads


def test_a_guider_without_heads_is_classifier_free_guidance() -> None:
    from unbraid.systems.headhunter.guider import SoftPAGGuider

    guider = SoftPAGGuider(guidance_scale=4.0)
    assert guider.num_conditions == 2
    assert SoftPAGGuider(guidance_scale=1.0).num_conditions == 1
    cond, other = torch.randn(2, 1, 4, 8, 8)
    torch.testing.assert_close(guider.forward(cond, other).pred, other + 4 * (cond - other))
    with pytest.raises(UnbraidError, match="between 0"):
        SoftPAGGuider([("a", 0)], strength=2.0)
