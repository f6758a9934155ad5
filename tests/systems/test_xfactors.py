"""XFactors: the loss by hand, blocks, swaps, partial labels, backbones, saving, baselines, the study."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from unbraid.core.errors import UnbraidError
from unbraid.data.factors import FactorData
from unbraid.data.worlds import make
from unbraid.layers.vae import GaussianVAE
from unbraid.losses.contrastive import info_nce
from unbraid.losses.vae import gaussian_kl
from unbraid.systems.xfactors import XFactors, quality
from unbraid.systems.xfactors.baselines import PairLoss, assigned, train_on_pairs
from unbraid.systems.xfactors.encoders import Frozen, TwoEncoders
from unbraid.systems.xfactors.study import run
from unbraid.systems.xfactors.training import BlockLoss, Weights, correlation, partners

SIZES = {"colour": 3, "shape": 3, "scale": 2, "orientation": 1, "posX": 4, "posY": 4}
TARGETS = ("shape", "posX")
HALVES = np.arange(8)[:, None] % 2
pytestmark = pytest.mark.filterwarnings("ignore:The reconstruction")


@pytest.fixture(scope="module")
def world():
    return make("sprites", 16, sizes=SIZES)


@pytest.fixture(scope="module")
def fitted(world):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return XFactors(targets=TARGETS, size="tiny", steps=250, tau=0.1).fit(world, progress=False)


class Mirror(nn.Module):
    """An encoder that gives numbers of the input, so that a loss can be worked out by hand."""

    def forward(self, x):
        return x.flatten(1)[:, :10]


def block_loss(**weights):
    torch.manual_seed(0)
    vae = GaussianVAE(
        Mirror(), nn.Linear(5, 16), 5, shape=(16,), likelihood="gaussian", activation="sigmoid"
    )  # fmt: skip
    return BlockLoss(vae, [(1, 3), (3, 5)], [3, 2], [None, None], [None, None], Weights(**weights))


def test_the_loss_is_its_equation(monkeypatch):
    loss = block_loss(kl=0.01, beta_s=7.0, beta_t=3.0, contrast=0.4, tau=0.2, covariance=0.5, leakage=0.0)
    x, y = torch.rand(12, 16), torch.randint(0, 2, (12, 2)).float()
    monkeypatch.setattr(GaussianVAE, "sample", lambda self, mu, logvar, generator=None: mu)
    total, told = loss(x, y)
    mu, logvar = x[:, :5], x[:, 5:10]
    kl = gaussian_kl(mu, logvar).mean(0)
    nce = sum(info_nce(mu[:, a:b], y[:, i], 0.2).loss for i, (a, b) in enumerate([(1, 3), (3, 5)]))
    error = (loss.vae.decoder(mu).sigmoid() - x).square().mean()
    rate = 0.01 * (7 * kl[0] + 3 * kl[1:].sum())
    related = correlation(mu[:, :1], mu[:, 1:]).clamp(max=1)
    assert float(total.detach()) == pytest.approx(float((error + rate + 0.2 * nce + 0.5 * related).detach()), rel=1e-5)
    assert float(told["kl_s"]) == pytest.approx(float(kl[0]), rel=1e-5)


def test_partners_share_the_label_and_the_unlabelled_stay():
    torch.manual_seed(0)
    y = torch.tensor([2.0, 0, 1, 2, -1, 0, 0, -1, 0.25, 0.3])
    seen = torch.stack([partners(y) for _ in range(200)])
    assert (y[seen] == y).all()
    assert (seen[:, [4, 7, 8, 9, 2]] == torch.tensor([4, 7, 8, 9, 2])).all()  # unknown, or alone with its label
    assert set(seen[:, 1].tolist()) == {1, 5, 6}
    assert all(len(row.unique()) == len(y) for row in seen)  # each is handed on once


def test_blocks_exchanged_within_a_class_are_still_of_that_class():
    loss = block_loss(exchange=1.0)
    z = torch.arange(40.0).reshape(8, 5)
    y = torch.tensor([[0.0, 0.0]] * 4 + [[1.0, -1.0]] * 4)
    torch.manual_seed(1)
    mixed = loss._exchanged(z, y)
    assert (mixed[:, :1] == z[:, :1]).all()
    assert (mixed[4:, 3:] == z[4:, 3:]).all()
    assert not (mixed[:, 1:3] == z[:, 1:3]).all()
    assert set(mixed[:4, 1].tolist()) == set(z[:4, 1].tolist())
    assert set(mixed[4:, 1].tolist()) == set(z[4:, 1].tolist())


def test_correlation_is_numpys():
    torch.manual_seed(0)
    a, b = torch.randn(50, 2), torch.randn(50, 3)
    table = np.corrcoef(a.T, b.T)[:2, 2:]
    assert float(correlation(a, b)) == pytest.approx(np.linalg.norm(table) * 49 / 50, rel=1e-4)


def test_a_capacity_steers_beta_and_is_in_the_state():
    loss = block_loss(capacity=0.5, beta_s=10.0)
    x, y = torch.rand(8, 16) * 3, torch.zeros(8, 2)
    for _ in range(5):
        loss(x, y)
    high = float(loss.beta)
    assert high > 10  # S carries more than half a nat here
    for _ in range(100):
        loss(torch.zeros(8, 16), y)  # and nothing here
    assert float(loss.beta) < high
    assert {"beta", "rate"} <= set(loss.state_dict())
    loss.eval()
    kept = float(loss.beta)
    loss(x, y)
    assert float(loss.beta) == kept


def test_two_encoders_give_means_then_variances():
    whole = TwoEncoders(lambda n: nn.Linear(3, n, bias=False), 2, 4)
    x = torch.randn(5, 3)
    mu, logvar = whole(x).chunk(2, -1)
    s, t = whole.parts[0](x), whole.parts[1](x)
    assert torch.equal(mu, torch.cat([s[:, :2], t[:, :4]], 1))
    assert torch.equal(logvar, torch.cat([s[:, 2:], t[:, 4:]], 1))
    assert len(TwoEncoders(lambda n: nn.Linear(3, n), 2, 4, shared=True).parts) == 1


def test_fit_swap_sweep_generate_and_save(world, fitted, tmp_path: Path):
    assert fitted.blocks_ == {"S": [0, 8], "shape": [8, 10], "posX": [10, 12]}
    a, b = world.render([0, 5]), world.render([100, 200])
    same = fitted.swap(a, a, "posX")
    plain = fitted.vae_.reconstruct(torch.from_numpy(a)).detach().numpy()
    np.testing.assert_allclose(same, plain, atol=1e-6)
    both = fitted.swap(a, b, ["S", *TARGETS])
    np.testing.assert_allclose(both, fitted.vae_.reconstruct(torch.from_numpy(b)).detach().numpy(), atol=1e-6)
    assert fitted.sweep(a[0], "posX", 5).shape == (5, 3, 16, 16)
    assert fitted.sweep(a[0], "posX", data=world).shape == (4, 3, 16, 16)
    made = fitted.generate(world, 3, {"shape": 1})
    assert made.shape == (3, 3, 16, 16)
    assert fitted.transform(world).shape == (len(world), 12)
    fitted.save_pretrained(tmp_path)
    again = XFactors.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again.swap(a, b, "shape"), fitted.swap(a, b, "shape"))
    assert again.blocks_ == fitted.blocks_


def test_blocks_learn_their_factor(world, fitted):
    found = quality(fitted.vae_, fitted.blocks_, world, np.arange(len(world)), pairs=60)
    assert found.probe.shape == (3, 5)
    assert found.probe[2, world.column("posX")] > 0.6 > 0.5 > found.chance[world.column("posX")]
    assert set(found.rest) == {"colour", "scale", "posY"}
    assert -0.2 < found.leak < 1
    assert found.kl.shape == (3,)


def test_a_perfect_model_transfers_and_keeps_everything(world):
    """A decoder that draws the world's image of the nearest factors: the measurement itself must say 1."""

    class Perfect(nn.Module):
        latents, likelihood, shape = 5, "gaussian", (3, 16, 16)

        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def encode(self, x):
            mu = torch.from_numpy(world.oracle(x).astype(np.float32))
            return mu, torch.full_like(mu, -4.0)

        def decode(self, z):
            return torch.from_numpy(world.images(np.asarray(z).round().astype(int)))

    columns = {"S": [0, 2, 4], "shape": [1], "posX": [3]}
    found = quality(Perfect(), {}, world, np.arange(len(world)), 80, picked=columns)
    assert found.transfer.tolist() == [1, 1]
    assert found.keep.tolist() == [1, 1]
    assert found.read.min() == 1
    assert found.probe[1, world.column("shape")] == 1
    assert found.leak < 0.05


def test_unknown_labels_and_ordinal_and_cyclic_factors_train(world):
    hidden = world.hide(0.5, 0, "posX")
    model = XFactors(
        targets=("posX", "colour"), ordinal={"posX": 1.0, "colour": 0.5}, cyclic=("colour",), size="tiny", steps=3,
        shared=True, leakage=0.1, form="outside",
    ).fit(hidden, progress=False)  # fmt: skip
    assert model.transform(world).shape == (len(world), 12)
    assert {"leakage", "kl_s", "beta_s", "with a positive"} <= set(model.history_)


def test_frozen_backbones_of_transformers_and_diffusers(world):
    from diffusers import AutoencoderKL
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    dino = Dinov2Model(
        Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    )
    kl = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2, sample_size=16)
    for backbone in (dino, kl, nn.Sequential(nn.Flatten(), nn.Linear(768, 5))):
        before = {k: v.clone() for k, v in backbone.state_dict().items()}
        model = XFactors(targets=TARGETS, size="tiny", steps=2, backbone=backbone).fit(world, progress=False)
        assert model.swap(world.render([0]), world.render([9]), "shape").shape == (1, 3, 16, 16)
        assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
        assert not any("_held" in name for name in model.vae_.state_dict())
    with pytest.raises(UnbraidError, match=r"gives features of shape"):
        Frozen(nn.Conv2d(3, 4, 1), 4, (3, 16, 16))


def test_ada_gvae_averages_what_a_pair_shares(world, monkeypatch):
    vae = train_on_pairs(world, 6, 1.0, True, 2, 16, "mlp", 16, seed=0)
    loss, seen = PairLoss(vae, 1.0), []
    kept = GaussianVAE.sample
    monkeypatch.setattr(GaussianVAE, "sample", lambda self, m, s, generator=None: seen.append(m) or kept(self, m, s))
    one, other = torch.from_numpy(world.render([0, 1])), torch.from_numpy(world.render([3, 9]))
    loss(one, other)
    same = (seen[0] == seen[1]).sum(1)
    assert bool(((same >= 1) & (same < 6)).all())
    members = assigned(vae, world, TARGETS, 2)
    assert sorted(j for m in members.values() for j in m) == list(range(6))
    assert [len(members[n]) for n in TARGETS] == [2, 2]


def test_the_study_runs_resumes_and_says_what_it_did_not_test(tmp_path: Path):
    options = {"size": "tiny", "steps": 8, "pairs": 20, "seeds": 1, "keep": tmp_path / "keep", "progress": False}
    methods = ("XFactors", "no contrast", "classifier", "Ada-GVAE", "beta-VAE")
    first = run(worlds=("cars3d",), methods=methods, **options)
    again = run(worlds=("cars3d",), methods=methods, **options)
    assert again.meta["pieces_read_back"] == 10
    assert [c.measured for c in again.claims] == [c.measured for c in first.claims]
    assert {c.name: c.holds for c in first.claims}["constant"] is None
    first.save(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))["claims"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda w: XFactors().fit(w.x), "takes FactorData"),
        (lambda w: XFactors(targets=("hue",)).fit(w), "no factor 'hue'"),
        (lambda w: XFactors(targets=("shape", "shape")).fit(w), "each once"),
        (lambda w: XFactors(targets=("shape",)).fit(w.intervene("shape", 1)), "nothing to contrast"),
        (lambda w: XFactors(size="huge").fit(w), "size is 'huge'"),
        (lambda w: XFactors(tau=0.0).fit(w), "tau=0.0"),
        (lambda w: XFactors(exchange=1.5).fit(w), "exchange=1.5"),
        (lambda w: XFactors(capacity="auto").fit(w), "capacity='auto'"),
        (lambda w: XFactors().fit(FactorData(np.full((8, 1, 16, 16), np.nan), HALVES)), "NaN|finite"),
        (lambda w: XFactors().fit(FactorData(np.zeros((8, 4)), HALVES)), "square images"),
        (lambda w: XFactors().transform(w), "learned nothing yet"),
        (lambda w: run(worlds=("mars",)), "worlds is mars"),
        (lambda w: run(methods=("magic",)), "methods is magic"),
        (lambda w: run(seeds=0), "seeds is 0"),
        (lambda w: quality(None, {}, w, np.arange(5)), "too few"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(world, call, words):
    with pytest.raises(UnbraidError, match=words):
        call(world)


def test_bad_images_and_blocks_are_refused(world, fitted):
    x = world.render([0])
    for call, words in (
        (lambda: fitted.swap(x, x, "hue"), "no block 'hue'"),
        (lambda: fitted.swap(x[:, :1], x, "shape"), "finite numbers of shape"),
        (lambda: fitted.swap(x * np.nan, x, "shape"), "finite numbers"),
        (lambda: fitted.swap(world.render([0, 1]), world.render([0, 1, 2]), "shape"), "as many"),
        (lambda: fitted.generate(world, 0), "at least one"),
        (lambda: fitted.generate(world, 1, {"posY": 1}), "no block to be set"),
        (lambda: fitted.generate(world, 1, {"shape": 9}), "no image of the data"),
        (lambda: fitted.sweep(world.render([0, 1]), "shape"), "takes one image"),
    ):
        with pytest.raises(UnbraidError, match=words):
            call()
