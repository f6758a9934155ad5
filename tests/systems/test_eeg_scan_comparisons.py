"""EEG and SCAN: classifiers over participants, other denoisers, UDR, recombination, other posteriors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unbraid.core.errors import UnbraidError
from unbraid.data.erp import simulate
from unbraid.systems.eeg_scan import (
    EEGScan,
    Recombiner,
    ScanHead,
    accuracy,
    autoencoder,
    classify,
    folds,
    interval,
    pca,
    rank_models,
    recombine,
    train_head,
    train_recombiner,
)
from unbraid.systems.eeg_scan.baselines import Told, correlations
from unbraid.systems.eeg_scan.recombining import OPERATORS, pair, recombined


@pytest.fixture(scope="module")
def study():
    return simulate(subjects=40, trials=6, samples=32, noise=0.6, seed=100)


@pytest.mark.parametrize("classifier", ["logistic", "svm", "knn"])
def test_classifiers_tell_what_is_there_and_nothing_else(classifier):
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(60), 4)
    y = (np.arange(60) % 2)[who]
    told = y[:, None] + 0.3 * rng.standard_normal((240, 3))
    train = who < 40
    assert accuracy(told, y, who, train, True, classifier) == 1
    assert 0.2 < accuracy(rng.standard_normal((240, 3)), y, who, train, True, classifier) < 0.8
    said = classify(told, y, who, train)
    assert set(said.who) == set(range(40, 60))


def test_folds_are_of_participants_and_each_is_asked_once():
    rng = np.random.default_rng(0)
    who = rng.permutation(np.repeat(np.arange(30), 3))
    y, seen = (np.arange(30) % 2)[who], []

    def features(train):
        assert not set(who[train]) & set(who[~train])
        seen.append(set(who[~train]))
        return y + 0.1 * rng.standard_normal(90)

    said = folds(features, y, who, 5)
    assert sorted(said.who) == list(range(30))
    assert set.union(*seen) == set(range(30))
    assert (said.true == said.told).all()
    with pytest.raises(UnbraidError, match="folds of 30"):
        folds(features, y, who, 31)


def test_the_interval_is_over_subjects():
    who = np.repeat(np.arange(20), 50)
    true = who % 2
    right = np.isin(who, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13])  # whole subjects are right or wrong
    low, high = interval(Told(true, np.where(right, true, 1 - true), who))
    assert high - low > 0.3  # a thousand independent trials would have 0.06
    assert low < 0.7 < high
    with pytest.raises(UnbraidError, match="says nothing"):
        interval(Told(true[:50], true[:50], who[:50]))


def test_principal_components_are_those_of_the_training_epochs(study):
    train = study.subjects < 30
    found = pca(study.x, train, 5)
    flat = study.x.reshape(len(study), -1).astype(float)
    mean = flat[train].mean(0)
    vectors = np.linalg.svd(flat[train] - mean, full_matrices=False)[2][:5]
    np.testing.assert_allclose(
        found.made.reshape(len(study), -1), (flat - mean) @ vectors.T @ vectors + mean, atol=1e-4
    )
    assert correlations(found.made, study.clean).mean() > correlations(study.x, study.clean).mean()


def test_the_auto_encoder_is_deterministic_and_learns(study):
    train = study.subjects < 30
    one, two = (autoencoder(study.x, train, 5, 150, seed=1) for _ in range(2))
    np.testing.assert_array_equal(one.codes, two.codes)
    error = ((one.made - study.x) ** 2)[~train].mean()
    assert error < 0.9 * ((study.x - study.x[train].mean(0)) ** 2)[~train].mean()


def test_udr_ranks_five_fits_and_says_nothing_of_collapsed_ones(study):
    fits = [EEGScan(latents=3, hidden=(16,), steps=80, seed=i).fit(study.x, progress=False) for i in range(5)]
    said = rank_models(fits, study.x)
    assert said.scores.shape == (5,)
    assert 0 < said.score <= 1
    for model in fits:
        model.kl_ = np.zeros(3)
    assert (rank_models(fits, study.x).scores == 0).all()  # 0/0, as documented
    with pytest.raises(UnbraidError, match="at least 5"):
        rank_models(fits[:4], study.x)
    other = EEGScan(latents=2, hidden=(16,), steps=5).fit(study.x, progress=False)
    with pytest.raises(UnbraidError, match="same size"):
        rank_models([*fits, other], study.x)


def test_logic_of_labels():
    one, two = {"depression": 1, "sex": 0}, {"sex": 0, "age": 1}
    assert recombined(one, two, "and") == {"depression": 1, "sex": 0, "age": 1}
    assert recombined(one, two, "in_common") == {"sex": 0}
    assert recombined(one, two, "ignore") == {"depression": 1}
    with pytest.raises(UnbraidError, match="at once"):
        recombined({"sex": 0}, {"sex": 1}, "and")
    with pytest.raises(UnbraidError, match="operator"):
        recombined(one, two, "or")


def test_labels_taken_apart_give_labels_of_the_observation():
    rng, sizes = np.random.default_rng(0), [2, 3, 2]
    labels = np.array([1, 2, -1])

    def named(row):
        return {k: int(v) for k, v in enumerate(row) if v >= 0}

    for kind in OPERATORS:
        for _ in range(200):
            one, two, whole = (named(r) for r in pair(labels, sizes, kind, rng))
            assert recombined(one, two, kind) == whole
            assert whole
            assert whole.items() <= named(labels).items()


def test_recombination_gives_the_code_of_the_labels_it_stands_for():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (1_500, 2))
    mu = np.stack([2.0 * y[:, 0] - 1, 2.0 * y[:, 1] - 1, rng.standard_normal(1_500)], 1)
    logvar = np.full(mu.shape, np.log(0.05))
    head = ScanHead([2, 2], 3, 32)
    train_head(head, mu, logvar, y, steps=400, batch=128, lr=5e-3, strength=50.0, progress=False)
    net = Recombiner(32)
    train_recombiner(net, head, mu, logvar, y, steps=300, lr=5e-3, progress=False)

    def code(*columns):
        with torch.no_grad():
            row = torch.zeros(1, 4)
            row[0, list(columns)] = 1
            return tuple(a[0].double().numpy() for a in head.encode(row))

    both = recombine(net, code(1), code(2), "and")
    np.testing.assert_allclose(both[0], [1, -1, 0], atol=0.35)
    assert (np.exp(both[1])[:2] < 0.4).all()
    common = recombine(net, code(1, 2), code(1, 3), "in_common")
    np.testing.assert_allclose(common[0], [1, 0, 0], atol=0.35)
    assert np.exp(common[1])[1] > 0.5  # what they do not share is open again
    rest = recombine(net, code(1, 2), code(2), "ignore")
    np.testing.assert_allclose(rest[0], [1, 0, 0], atol=0.35)
    with pytest.raises(UnbraidError, match="operator"):
        recombine(net, code(1), code(2), "or")
    with pytest.raises(UnbraidError, match="means and log variances"):
        recombine(net, code(1), (np.zeros(2), np.zeros(2)), "and")
    with pytest.raises(UnbraidError, match="labels"):
        train_recombiner(net, head, mu, logvar, y[:, :1])


def test_the_head_takes_the_posterior_of_a_diffusers_model():
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(
        block_out_channels=(8,), down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
        latent_channels=2, norm_num_groups=4, sample_size=8,
    )  # fmt: skip
    y = np.arange(64) % 2
    images = torch.randn(64, 3, 8, 8) + torch.tensor(2.0 * y - 1, dtype=torch.float32)[:, None, None, None]
    with torch.no_grad():
        posterior = model.encode(images).latent_dist
    mu, logvar = (a.flatten(1).double().numpy() for a in (posterior.mean, posterior.logvar))
    head = ScanHead([2], mu.shape[1], 32)
    train_head(head, mu, logvar, y[:, None], steps=400, batch=32, progress=False)
    with torch.no_grad():
        told = head.probabilities(head.logits(torch.as_tensor(mu, dtype=torch.float32)))[0].argmax(1).numpy()
    assert (told == y).mean() > 0.75  # the encoder is untrained


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda s, t: classify(s.x, s.factors[:5, 0], s.subjects, t), "alike in length"),
        (lambda s, t: classify(s.x, s.factors[:, 0], s.subjects, t.astype(int)), "bool"),
        (lambda s, t: classify(s.x * np.nan, s.factors[:, 0], s.subjects, t), "NaN"),
        (lambda s, t: classify(s.x, np.zeros(len(s), int), s.subjects, t), "single class"),
        (lambda s, t: classify(s.x, np.arange(len(s)) % 2, s.subjects, t, True), "changes between trials"),
        (lambda s, t: classify(s.x, s.factors[:, 0], s.subjects, t, classifier="forest"), "classifier"),
        (lambda s, t: pca(s.x, t, 0), "components"),
        (lambda s, t: rank_models([], s.x), "at least 5"),
        (lambda s, t: train_head(ScanHead([2], 3), np.ones((4, 3)), np.ones((4, 3)), -np.ones((4, 1), int)), "unknown"),
    ],
)
def test_wrong_input_is_one_sentence(study, call, said):
    with pytest.raises(UnbraidError, match=said):
        call(study, study.subjects < 30)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--models", "beta 9"], "choose from"),
        (["--subjects", "1"], "give at least"),
        (["--noise", "nan"], "noise"),
        (["--runs", "2"], "UDR"),
        (["--unknown", "1.5"], "unknown"),
    ],
)
def test_the_command_refuses_in_one_sentence(options, said, capsys, tmp_path):
    from unbraid.cli import main

    with pytest.raises(SystemExit) as end:
        main(["run", "eeg_scan", *options, "--out", str(tmp_path / "page")])
    told = capsys.readouterr()
    assert end.value.code not in (0, None)
    assert said in " ".join((told.err + told.out).split())
    assert "Traceback" not in told.err
