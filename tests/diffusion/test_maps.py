"""Maps of words against whole maps, gradients, regions against an attention of their own, masks."""

import numpy as np
import pytest
import torch

from tests.support.pipelines import FAMILIES, small
from unbraid import attach, taps
from unbraid.core.errors import UnbraidError
from unbraid.data import scenes
from unbraid.diffusion import Context, Parts, paint
from unbraid.diffusion.maps import shapes, word_maps
from unbraid.diffusion.masks import fill, from_maps, otsu, overlap, owners, partition, read_masks, ring, spread
from unbraid.diffusion.regions import region_prompts
from unbraid.diffusion.spans import positions, spans
from unbraid.zoo.reference.words import tokenizer

SAID = "a red circle left of a blue star, in the snow"


def call(parts, context, batch=1):
    t = torch.full((batch,), 500.0 if parts.kind == "joint" else 500)
    noisy = torch.randn(batch, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    return parts.predict(noisy, t, context)


def test_words_of_several_pieces_and_occurrences():
    words = tokenizer()
    assert positions(words, SAID, "red circle") == [2, 3]
    assert positions(words, SAID, "a") == [1, 6]
    whole = words("a sks circle").input_ids
    assert positions(words, "a sks circle", "sks") == list(range(2, len(whole) - 2))
    with pytest.raises(UnbraidError, match="has no 'moon'"):
        positions(words, SAID, "moon")
    with pytest.raises(UnbraidError, match="comes after"):
        positions(words, "a " * 60 + "moon", "moon")
    assert spans(Parts.of(small("flux")), SAID, ["star"]) == [[8]]


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_maps_are_the_columns_of_whole_maps(family):
    parts = Parts.of(small(family))
    found = spans(parts, SAID, ["red circle", "star"])
    whole = taps.Maps(keep="last")
    with torch.no_grad():
        told = parts.encode([SAID])
        with word_maps(parts, found, (16, 16)) as maps:
            call(parts, told)
        with attach(parts.denoiser, whole):
            call(parts, told)
    sums: dict[int, list] = {}
    for site, p in whole.values.items():
        p = p[-1] if isinstance(p, list) else p
        p = torch.as_tensor(np.asarray(p))
        if family == "sd" and not site.endswith("attn2"):
            continue
        text, image = (0, p.shape[2]) if family == "sd" else (64, 64)  # SD3: picture first
        columns = torch.stack([p[:, :, :image, [text + i for i in span]].sum(-1).mean(1) for span in found], 1)
        sums.setdefault(image, []).append(columns)
    assert set(maps.maps) == ({1, 2, 4} if family == "sd" else {2})
    for count, columns in sums.items():
        ratio = round(16 / count**0.5)
        assert maps.counts[ratio] == len(columns)
        torch.testing.assert_close(maps.at(ratio).flatten(2), torch.stack(columns).mean(0), atol=1e-5, rtol=1e-4)
    assert maps.mean().shape == (1, 2, 16, 16) if family == "sd" else (1, 2, 8, 8)
    assert maps.mean((32, 32)).shape == (1, 2, 32, 32)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_the_words(family):
    pipe = small(family)
    parts = Parts.of(pipe)
    told = parts.encode([SAID])
    embeds = told.embeds.detach().requires_grad_()
    with word_maps(parts, spans(parts, SAID, ["circle"]), (16, 16), grad=True) as maps:
        call(parts, Context(embeds, told.pooled))
    maps.mean().square().sum().backward()
    assert embeds.grad.abs().sum() > 0
    maps.clear()
    with pytest.raises(UnbraidError, match="no maps"):
        maps.mean()


def test_the_guided_half_counts_and_steps_are_averaged():
    pipe = small("sd")
    parts = Parts.of(pipe)
    found = spans(parts, SAID, ["circle"])
    with word_maps(parts, found, (16, 16), guided=True) as maps:
        paint(pipe, [SAID] * 2, [0, 1], steps=2, guidance=4.0, progress=False)
    assert maps.mean().shape[:2] == (2, 1)
    with word_maps(parts, found, (16, 16), ratios=[2]) as other:
        paint(pipe, [SAID] * 2, [0, 1], steps=2, guidance=1.0, progress=False)
    assert set(other.maps) == {2}
    assert other.counts[2] * 3 == sum(maps.counts.values()) or other.counts[2] > 0
    parts.denoiser.enable_gradient_checkpointing()
    with pytest.raises(UnbraidError, match="gradient checkpointing off"), word_maps(parts, found, (16, 16), grad=True):
        pass
    with pytest.raises(UnbraidError, match="ratios are"), word_maps(parts, found, (16, 16), ratios=[3]):
        pass
    with pytest.raises(UnbraidError, match="at least one word"), word_maps(parts, [], (16, 16)):
        pass


def test_odd_sizes_have_their_shapes():
    assert shapes(Parts.of(small("sd")), (10, 24)) == {240: (10, 24), 60: (5, 12), 18: (3, 6)}


def test_grouped_attention_is_each_regions_own():
    """In float64 every pixel of a cross-attention has exactly what attention to its own region's words alone gives."""
    pipe = small("sd").to(torch.float64)
    parts = Parts.of(pipe)
    owner = torch.zeros(64, 64, dtype=torch.long)
    owner[:, 22:43], owner[:, 43:] = 1, 2
    said = ["a red circle", "a blue star", "in the snow"]
    seen = {}

    def keep(name):
        return lambda module, given, out: seen.setdefault(name, []).append(out)

    block = parts.denoiser.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    handle = block.register_forward_hook(keep("out"))
    hidden = torch.randn(1, 256, 48, dtype=torch.float64)
    with torch.no_grad():
        alone = [block(hidden, encoder_hidden_states=parts.encode([one]).embeds) for one in said]
        with region_prompts(parts, said, owner) as (told, _):
            together = block(hidden, encoder_hidden_states=told.embeds)
    handle.remove()
    of = owners(owner, (16, 16)).flatten()
    expected = torch.stack([alone[int(k)][0, i] for i, k in enumerate(of)])
    torch.testing.assert_close(together[0], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_another_prompt_in_one_region_changes_little_in_the_others(family):
    pipe = small(family)
    parts = Parts.of(pipe)
    owner = torch.zeros(64, 64, dtype=torch.long)
    owner[:, 32:] = 1
    with torch.no_grad():
        made = []
        for first in ("a red circle", "a blue star"):
            with region_prompts(parts, [first, "in the snow"], owner) as (told, away):
                assert told.embeds.shape[1] == away.embeds.shape[1]
                made.append(call(parts, Context(told.embeds, None if told.pooled is None else 0 * told.pooled)))
                if first == "a red circle":
                    paint(pipe, told, [0], negative=away, steps=1, progress=False)
        plain = [
            call(parts, Context(c.embeds, None if c.pooled is None else 0 * c.pooled))
            for c in (parts.encode(["a red circle in the snow"]), parts.encode(["a blue star in the snow"]))
        ]
    changed = (made[0] - made[1]).square().mean((0, 1, 2))
    far, near = float(changed[12:].mean()), float(changed[:4].mean())
    joint = (plain[0] - plain[1]).square().mean((0, 1, 2))
    assert far < 0.5 * near
    assert far / near < 0.7 * float(joint[12:].mean() / joint[:4].mean())


def test_one_region_is_the_plain_prompt():
    pipe = small("sd")
    parts = Parts.of(pipe)
    with torch.no_grad():
        told = parts.encode([SAID])
        with region_prompts(parts, [SAID, SAID], torch.arange(2).repeat_interleave(32)[None].repeat(64, 1)) as (
            two,
            away,
        ):
            together = paint(pipe, two, [3], negative=away, steps=2, progress=False)
    np.testing.assert_allclose(together, paint(pipe, told, [3], steps=2, progress=False), atol=1e-4)


def test_masks():
    true = torch.from_numpy(scenes.masks(scenes.sample(4, 1, objects=(2, 2)))).float()
    owner = partition(true[0])
    assert set(owner.unique().tolist()) == {0, 1, 2}
    assert set(partition(true[0], rest=False).unique().tolist()) == {0, 1}
    tiny = torch.zeros(64, 64, dtype=torch.long)
    tiny[5, 5] = 1
    assert (owners(tiny, (4, 4)) == 1).sum() == 1
    maps = torch.nn.functional.interpolate(true[0][None], (16, 16), mode="area")[0] * 0.3 + 0.1
    assert overlap(from_maps(maps, (64, 64)), true[0] >= 0.5).min() > 0.7
    assert 0.1 < otsu(np.r_[np.full(50, 0.1), np.full(9, 0.9)]) < 0.9
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[8:12, 8:12] = True
    assert ring(mask, 2).sum() == 8 * 8 - 16
    holes = torch.zeros(6, 6, dtype=torch.bool)
    holes[:, 3:] = True
    halves = (torch.arange(36).view(6, 6) // 6 >= 3).long()
    assert torch.equal(fill(halves, holes), halves)
    passed = spread(maps, torch.eye(256))
    assert torch.allclose(passed.amax((1, 2)), torch.ones(2))
    both = torch.zeros(2, 2, dtype=torch.bool)
    assert overlap(both, both) == 1


def test_masks_from_files_and_what_is_refused(tmp_path):
    from PIL import Image

    pixels = np.zeros((64, 64), np.uint8)
    pixels[:, 32:] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = read_masks([str(tmp_path / "a.png")], (16, 16))
    assert found.shape == (1, 16, 16)
    assert torch.equal(found[0] > 0.5, torch.arange(16).repeat(16, 1) >= 8)
    parts = Parts.of(small("sd"))
    for wrong, said in (
        (lambda: partition(torch.zeros(4, 4)), "give"), (lambda: partition(torch.zeros(1, 4, 4)), "claims no pixel"),
        (lambda: fill(torch.zeros(2, 2).long(), torch.ones(2, 2).bool()), "all pixels"),
        (lambda: read_masks([], (4, 4)), "no mask"),
        (lambda: ring(torch.zeros(4, 4).bool(), 0), "thickness"), (lambda: from_maps(torch.zeros(4, 4)), "maps are"),
        (lambda: spread(torch.zeros(1, 4, 4), torch.eye(4)), "self-attention is"),
        (lambda: region_prompts(parts, [], torch.zeros(4, 4).long()).__enter__(), "no prompts"),
        (lambda: region_prompts(parts, ["a"], torch.ones(4, 4).long()).__enter__(), "regions are 1 to 1"),
    ):  # fmt: skip
        with pytest.raises(UnbraidError, match=said):
            wrong()
