"""Encoders, decoders and VAEs: shapes, the papers' layers, saving and loading, clear refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from unbraid.core.errors import UnbraidError
from unbraid.data.factors import FactorData
from unbraid.data.observations import Observations
from unbraid.layers.nets import image_decoder, image_encoder
from unbraid.layers.vae import GaussianVAE, encode_all, image_vae, load_vae, signal_vae, vae_for


@pytest.mark.parametrize("kind", ["mlp", "conv", "resnet"])
@pytest.mark.parametrize(("channels", "size"), [(1, 16), (3, 20), (3, 32), (1, 48), (3, 64)])
def test_every_network_takes_every_size(kind, channels, size):
    vae = image_vae(channels, size, latents=5, kind=kind, width=8, seed=0)
    x = torch.rand(3, channels, size, size)
    mu, logvar, z, logits = vae(x)
    assert mu.shape == logvar.shape == z.shape == (3, 5)
    assert logits.shape == x.shape
    assert torch.equal(vae.decode(z), vae.logits(z).sigmoid()) or vae.training
    logits.sum().backward()
    assert all(p.grad is not None for p in vae.decoder.parameters())


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("kind", ["mlp", "conv", "resnet"])
def test_batch_norm_is_an_option_everywhere(kind, norm):
    vae = image_vae(1, 16, 2, kind=kind, width=4, norm=norm)
    found = any(isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) for part in vae.modules())
    assert found == (norm == "batch")


def test_the_conv_net_is_that_of_the_literature():
    encoder, decoder = image_encoder(3, 64, 20, "conv"), image_decoder(3, 64, 10, "conv")
    convs = [(m.in_channels, m.out_channels) for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    assert convs == [(3, 32), (32, 32), (32, 64), (64, 64)]
    linear = [(m.in_features, m.out_features) for m in encoder.modules() if isinstance(m, nn.Linear)]
    assert linear == [(1024, 256), (256, 20)]
    back = [(m.in_channels, m.out_channels) for m in decoder.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert back == [(64, 64), (64, 32), (32, 32), (32, 3)]
    linear = [(m.in_features, m.out_features) for m in decoder.modules() if isinstance(m, nn.Linear)]
    assert linear == [(10, 256), (256, 1024)]


def test_the_residual_net_is_that_of_xfactors():
    encoder, decoder = image_encoder(3, 64, 8, "resnet"), image_decoder(3, 64, 6, "resnet")
    strided = [m.out_channels for m in encoder.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    assert strided == [48, 96, 192]
    last = [m for m in encoder.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in last] == [(192 * 8 * 8, 8)]
    up = [(m.in_channels, m.out_channels) for m in decoder.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert up == [(192, 96), (96, 48), (48, 3)]
    assert isinstance(list(decoder.children())[-1], nn.Conv2d)


def test_seeds_decide_the_weights_and_leave_torchs_state_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two, other = image_vae(1, 16, seed=1), image_vae(1, 16, seed=1), image_vae(1, 16, seed=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_sampling_has_the_posteriors_mean_and_variance():
    vae = signal_vae((3,), 2, seed=0)
    mu, logvar = torch.tensor([[1.0, -2.0]]).repeat(20_000, 1), torch.tensor([[0.0, -2.0]]).repeat(20_000, 1)
    z = vae.sample(mu, logvar, torch.Generator().manual_seed(0))
    assert torch.allclose(z.mean(0), mu[0], atol=0.03)
    assert torch.allclose(z.var(0), logvar[0].exp(), rtol=0.05)


@pytest.mark.parametrize("make", [lambda: image_vae(3, 16, 3, kind="resnet", width=4), lambda: signal_vae([2, 8], 3)])
def test_saving_and_loading_gives_the_same_numbers(make, tmp_path):
    vae = make().eval()
    x = torch.rand(4, *vae.shape)
    vae.train()(x)
    vae.eval().save(tmp_path / "vae")
    assert sorted(p.name for p in (tmp_path / "vae").iterdir()) == ["config.json", "model.safetensors"]
    back = load_vae(tmp_path / "vae")
    assert not back.training
    assert torch.equal(back.encode(x)[0], vae.encode(x)[0])
    assert torch.equal(back.reconstruct(x), vae.reconstruct(x))
    weights = tmp_path / "vae" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UnbraidError, match="does not belong"):
        load_vae(tmp_path / "vae")


def test_encode_all_is_encode_in_evaluation_mode():
    vae = image_vae(1, 16, 3, kind="conv", width=4, norm="batch", seed=0).train()
    x = np.random.default_rng(0).random((7, 16, 16))
    mu, logvar = encode_all(vae, x, batch=3)
    assert vae.training
    assert mu.dtype == np.float64
    want = vae.eval().encode(torch.as_tensor(x, dtype=torch.float32)[:, None])
    np.testing.assert_allclose(mu, want[0].detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(logvar, want[1].detach().numpy(), atol=1e-6)


def test_a_vae_for_any_data():
    images = FactorData.grid({"a": 3, "b": 2}, lambda row: np.full((3, 16, 16), row[0] / 2))
    assert vae_for(images, 4, "tiny").shape == (3, 16, 16)
    assert vae_for(np.zeros((5, 32, 32)), size="medium").shape == (1, 32, 32)
    assert vae_for(np.zeros((5, 3, 64))).shape == (3, 64)


def test_observations_from_anything_are_the_same():
    x = np.random.default_rng(0).integers(0, 256, (6, 1, 4, 4)).astype(np.uint8)
    unit = x.astype(np.float32) / 255
    data = FactorData(lambda i: unit[i], np.arange(6)[:, None])
    for source in (x, torch.as_tensor(unit), unit[:, 0], data):
        made = Observations(source, (1, 4, 4), unit=True)
        np.testing.assert_allclose(made.take([4, 0, 4]), unit[[4, 0, 4]], atol=1e-7)
        np.testing.assert_allclose(np.concatenate(list(made.batches(4))), unit, atol=1e-7)
    rendered = Observations(data, unit=True, held=0)
    np.testing.assert_allclose(rendered.take([1, 1, 5]), unit[[1, 1, 5]], atol=1e-7)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: image_vae(1, 18), "divisible by 4"),
        (lambda: image_vae(1, 12), "at least 16"),
        (lambda: image_vae(1, 16, kind="vit"), "there is no network 'vit'"),
        (lambda: image_vae(1, 16, latents=0), "latents"),
        (lambda: image_vae("grey", 16), "channels is 'grey'"),
        (lambda: signal_vae(5), "shape is 5"),
        (lambda: image_vae(1, 16).encode(np.zeros((2, 1, 16, 16))), "takes a tensor"),
        (lambda: image_vae(1, 16, likelihood="poisson"), "'bernoulli' or 'gaussian'"),
        (lambda: signal_vae((3,), likelihood="bernoulli"), "needs activation='sigmoid'"),
        (lambda: image_vae(1, 16).encode(torch.zeros(2, 1, 20, 20)), "was built for"),
        (lambda: GaussianVAE(nn.Identity(), nn.Identity(), 2).save("nowhere"), "can be saved"),
        (lambda: load_vae("nowhere"), "no VAE can be read"),
        (lambda: vae_for(np.zeros((3, 16, 16)), size="huge"), "size is 'huge'"),
        (lambda: encode_all(image_vae(1, 16), np.full((2, 16, 16), np.nan)), "NaN or infinity"),
        (lambda: encode_all(image_vae(1, 16), np.full((2, 16, 16), 3.0)), "between 3 and 3"),
        (lambda: encode_all(image_vae(1, 16), np.zeros((2, 20, 20))), "is needed here"),
        (lambda: Observations(np.zeros((0, 3))), "n of at least 1"),
        (lambda: Observations(["a", "b"]), "must be FactorData, or numbers"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(make, words):
    with pytest.raises(UnbraidError, match=words):
        make()
