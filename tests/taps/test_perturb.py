"""Perturbations: equal to the explicit map in double precision, no map made, untouched rows and heads bit for bit."""

from __future__ import annotations

import math

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.pipelines import small
from unbraid import HeadScores, HeadSet, attach, taps
from unbraid.core.calls import AttentionCall, Segment, Tap
from unbraid.core.engine.logits import dense
from unbraid.core.errors import UnbraidError
from unbraid.taps.perturb import PATHS, SCOPES, SMOOTH

SDPA = torch.nn.functional.scaled_dot_product_attention
KINDS = [(kind, scope, "linear") for kind, scopes in SCOPES.items() for scope in scopes]
KINDS += [("identity", "joint", path) for path in PATHS[1:]]


def call(n_image: int = 6, n_text: int = 3, batch: int = 2, heads: int = 3, seed: int = 0, mask=None) -> AttentionCall:
    g = torch.Generator().manual_seed(seed)
    n = n_image + n_text
    q, k, v = (torch.randn(batch, heads, n, 5, generator=g, dtype=torch.float64) for _ in range(3))

    def kernel(c: AttentionCall) -> torch.Tensor:
        return SDPA(c.query, c.key, c.value, c.mask, scale=c.scale)

    found = (Segment("text", 0, n_text), Segment("image", n_text, n))
    return AttentionCall("s", 0, "joint", 2 * q, k, v, mask=mask, scale=0.4, segments=found, kernel=kernel)


def target(c: AttentionCall, kind: str, scope: str) -> torch.Tensor:
    """A', written out."""
    a, n = dense(c, torch.float64), c.keys
    image = torch.arange(n) >= c.segments[0].stop
    if kind == "identity" and scope == "joint":
        return torch.eye(n, dtype=a.dtype).expand_as(a)
    if kind == "identity":
        hidden = (image[:, None] & image[None]) & ~torch.eye(n, dtype=torch.bool)
        logits = (c.query @ c.key.transpose(-1, -2)) * c.scale
        return logits.masked_fill(hidden, -math.inf).softmax(-1)
    if kind == "uniform":
        return torch.full_like(a, 1 / n)
    if kind == "argmax":
        return torch.nn.functional.one_hot(a.argmax(-1), n).to(a.dtype)
    if kind == "temperature":
        return (a.log() / 4).softmax(-1)
    rows = {"joint": torch.ones(n, dtype=torch.bool), "image": image, "text": ~image}[scope]
    mean = c.query[:, :, rows].mean(2, keepdim=True)
    return ((mean @ c.key.transpose(-1, -2)) * c.scale).softmax(-1).expand_as(a)


def moved(a: torch.Tensor, new: torch.Tensor, u: torch.Tensor, path: str) -> torch.Tensor:
    """The map between A and A', written out as the paper's code does it."""
    eye = torch.eye(a.shape[-1], dtype=a.dtype)
    if path == "linear":
        return (1 - u) * a + u * new
    if path == "chord":
        mixed = ((1 - u) * a.sqrt() + u * eye).square()
    elif path == "slerp":
        angle = torch.arccos(a.diagonal(dim1=-2, dim2=-1).sqrt().clamp(max=1))[..., None]
        mixed = (((1 - u) * angle).sin() / angle.sin() * a.sqrt() + (u * angle).sin() / angle.sin() * eye).square()
    else:
        mixed = (eye + SMOOTH).pow(u) * a.pow(1 - u)
    return mixed / mixed.sum(-1, keepdim=True)


@pytest.mark.parametrize(("kind", "scope", "path"), KINDS)
def test_the_output_is_that_of_the_explicit_map(kind: str, scope: str, path: str) -> None:
    c = call()
    y = dense(c, torch.float64) @ c.value
    u = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    tap = taps.perturb({"s": u}, kind, scope=scope, path=path)
    assert tap.wants(c)
    got = tap.out(c, y)
    want = moved(dense(c, torch.float64), target(c, kind, scope), u[None, :, None, None], path) @ c.value
    torch.testing.assert_close(got, want, atol=1e-10, rtol=0)
    assert torch.equal(got[:, 0], y[:, 0])


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 3), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_identity_for_any_shape(n_image: int, n_text: int, batch: int, u: float, seed: int) -> None:
    c = call(n_image, n_text, batch, seed=seed)
    a = dense(c, torch.float64)
    for scope in ("joint", "image"):
        got = taps.perturb(None, amount=u, scope=scope).out(c, a @ c.value)
        want = moved(a, target(c, "identity", scope), torch.tensor(u), "linear") @ c.value
        torch.testing.assert_close(got, want, atol=1e-6 if 0 < u < 1 else 1e-10, rtol=0)


@pytest.mark.parametrize("kind", ["uniform", "query_mean", "argmax", "temperature"])
def test_hidden_keys_stay_hidden(kind: str) -> None:
    seen = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    seen[..., 7:] = False
    c = call(mask=seen)
    short = c.replace(key=c.key[:, :, :7], value=c.value[:, :, :7], mask=None, kind="cross", segments=None)
    y = torch.zeros(2, 3, 9, 5, dtype=torch.float64)
    got, want = (taps.perturb(None, kind).out(x, y) for x in (c, short))
    torch.testing.assert_close(got, want, atol=1e-10, rtol=0)


def test_rows_and_strengths_of_their_own() -> None:
    c = call(batch=4)
    y = dense(c, torch.float64) @ c.value
    one, two = HeadSet([("s", 1)]), HeadSet([("s", 0), ("s", 2)])
    tap = taps.perturb([one, two], amount=0.5, rows=slice(2, 4))
    got = tap.out(c, y)
    assert torch.equal(got[:2], y[:2])
    assert torch.equal(got[2, [0, 2]], y[2, [0, 2]])
    assert torch.equal(got[3, 1], y[3, 1])
    half = 0.5 * y + 0.5 * c.value
    torch.testing.assert_close(got[2, 1], half[2, 1])
    torch.testing.assert_close(got[3, [0, 2]], half[3, [0, 2]])
    tap.edited = slice(0, 0)
    assert not tap.wants(c)
    with pytest.raises(UnbraidError, match="2 rows at 's'"):
        taps.perturb([one, two]).out(c, y)


def test_strengths_can_be_learned() -> None:
    c = call()
    u = torch.tensor([0.0, 0.5, 0.2], dtype=torch.float64, requires_grad=True)
    y = dense(c, torch.float64) @ c.value
    (grad,) = torch.autograd.grad(taps.perturb({"s": u}).out(c, y).square().sum(), u)
    assert bool((grad != 0).all())


class Seen(Tap):
    """Keeps the segments and shapes of each call."""

    def __init__(self) -> None:
        self.found: dict[str, tuple] = {}

    def out(self, c: AttentionCall, y: torch.Tensor) -> None:
        self.found[c.site] = (c.kind, c.segments)


@pytest.mark.parametrize("scope", ["joint", "image"])
def test_both_kinds_of_flux_blocks_know_their_text(scope: str) -> None:
    torch.manual_seed(0)
    size = {"patch_size": 1, "in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16}
    size |= {"num_attention_heads": 2, "joint_attention_dim": 16, "pooled_projection_dim": 16}
    model = diffusers.FluxTransformer2DModel(**size, axes_dims_rope=(4, 4, 8)).eval().double()
    given = {
        "hidden_states": torch.randn(2, 7, 4), "encoder_hidden_states": torch.randn(2, 5, 16),
        "pooled_projections": torch.randn(2, 16), "img_ids": torch.zeros(7, 3), "txt_ids": torch.zeros(5, 3),
        "timestep": torch.ones(2),
    }  # fmt: skip
    given = {k: v.double() for k, v in given.items()}
    single = HeadSet([("single_transformer_blocks.0.attn", 1)])
    seen = Seen()
    with torch.no_grad():
        plain = model(**given).sample
        with attach(model, taps.perturb(single, scope=scope), seen):
            changed = model(**given).sample
    assert {k: v[0] for k, v in seen.found.items()} == {
        "transformer_blocks.0.attn": "joint", "single_transformer_blocks.0.attn": "joint"
    }  # fmt: skip
    assert all(s == (Segment("text", 0, 5), Segment("image", 5, 12)) for _, s in seen.found.values())
    assert not torch.equal(plain, changed)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_models_with_damaged_heads_are_those_with_the_explicit_map(family: str) -> None:
    pipe = small(family)
    model = pipe.transformer.double()
    sites = [n for n, m in model.named_modules() if n.endswith(".attn")]
    heads, u = HeadSet([(sites[0], 1), (sites[-1], 0), (sites[-1], 2)]), 0.3
    g = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    config = model.config
    given = {"encoder_hidden_states": random(2, 5, config.joint_attention_dim)}
    given["pooled_projections"] = random(2, config.pooled_projection_dim)
    if family == "sd3":
        given |= {"hidden_states": random(2, 4, 16, 16), "timestep": torch.tensor([500.0, 500.0]).double()}
    else:
        given |= {"hidden_states": random(2, 9, config.in_channels), "timestep": torch.tensor([0.5, 0.5]).double()}
        given |= {"img_ids": torch.zeros(9, 3).double(), "txt_ids": torch.zeros(5, 3).double()}
        if config.guidance_embeds:
            given["guidance"] = torch.tensor([1.0, 1.0]).double()

    def explicit(c: AttentionCall) -> torch.Tensor:
        a = dense(c, torch.float64)
        return ((1 - u) * a + u * torch.eye(c.keys, dtype=a.dtype)) @ c.value

    with torch.no_grad():
        with attach(model, taps.perturb(heads, amount=u)):
            ours = model(**given).sample
        with attach(model, taps.replace(explicit, heads)):
            theirs = model(**given).sample
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


def test_the_second_attention_of_sd35_is_a_site_of_its_own() -> None:
    from unbraid.systems.headhunter.guiding import candidates

    torch.manual_seed(0)
    size = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8}
    size |= {"num_attention_heads": 2, "joint_attention_dim": 16, "caption_projection_dim": 16}
    model = diffusers.SD3Transformer2DModel(
        **size, pooled_projection_dim=16, pos_embed_max_size=4, dual_attention_layers=(0,), qk_norm="rms_norm"
    ).eval()
    sites = candidates(model).sites
    assert {"transformer_blocks.0.attn", "transformer_blocks.0.attn2", "transformer_blocks.1.attn"} == sites
    given = {"hidden_states": torch.randn(1, 4, 8, 8), "encoder_hidden_states": torch.randn(1, 3, 16)}
    given |= {"pooled_projections": torch.randn(1, 16), "timestep": torch.tensor([500.0])}
    with torch.no_grad():
        plain = model(**given).sample
        with attach(model, taps.perturb(HeadSet([("transformer_blocks.0.attn2", 1)]), scope="image")):
            assert not torch.equal(model(**given).sample, plain)


def test_wrong_input_is_told() -> None:
    for made, said in (
        (lambda: taps.perturb(None, "blur"), "choose from identity, uniform"),
        (lambda: taps.perturb(None, amount=1.5), "between 0"),
        (lambda: taps.perturb({"s": [0.1, 2.0]}), "from 0 to 1"),
        (lambda: taps.perturb(HeadScores({"s": [0.1, -2.0]})), "from 0 to 1"),
        (lambda: taps.perturb(None, "uniform", scope="text"), "scope='text'"),
        (lambda: taps.perturb(None, "uniform", path="slerp"), "path='slerp'"),
        (lambda: taps.perturb(None, "temperature", temperature=0), "positive"),
    ):
        with pytest.raises(UnbraidError, match=said):
            made()
    c = call()
    y = torch.zeros(2, 3, 9, 5, dtype=torch.float64)
    with pytest.raises(UnbraidError, match="needs self-attention"):
        taps.perturb().out(c.replace(kind="cross"), y)
    with pytest.raises(UnbraidError, match="4 heads of 's'"):
        taps.perturb({"s": torch.ones(4)}).out(c, y)
    with pytest.raises(UnbraidError, match="not known which tokens"):
        taps.perturb(scope="image").out(c.replace(segments=None), y)
