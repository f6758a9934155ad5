"""EEG and SCAN: the loss by hand, its direction, closed form against training, masks, nulls, study, wrong inputs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import unbraid
from unbraid.core.errors import UnbraidError
from unbraid.data.erp import simulate
from unbraid.systems.eeg_scan import (
    EEGScan,
    ScanHead,
    accuracy,
    from_epochs,
    khot,
    lpp_score,
    matched,
    read_epochs,
    surrogates,
    to_evoked,
    train_head,
)
from unbraid.systems.eeg_scan.baselines import correlations, shuffled
from unbraid.systems.eeg_scan.epochs import sub_averages, whitening
from unbraid.systems.eeg_scan.head import scan_loss
from unbraid.systems.eeg_scan.matching import bootstrap, cells, separation
from unbraid.systems.eeg_scan.recordings import _participants
from unbraid.systems.eeg_scan.training import class_weights, drop


@pytest.fixture(scope="module")
def study():
    return simulate(subjects=40, trials=8, samples=32, noise=0.6, seed=100)


@pytest.fixture(scope="module")
def fitted(study):
    model = EEGScan(latents=4, hidden=(32,), beta=0.5, whiten=True, steps=500, label_steps=300)
    return model.fit(study, progress=False)


def test_label_vectors():
    y = khot(np.array([[0, 2], [1, -1]]), [2, 3])
    assert y.tolist() == [[1, 0, 0, 0, 1], [0, 1, 0, 0, 0]]
    with pytest.raises(UnbraidError, match="sizes"):
        khot(np.array([[2, 0]]), [2, 3])


@pytest.mark.parametrize("likelihood", ["bernoulli", "softmax"])
def test_the_loss_is_that_of_plain_sums(likelihood):
    torch.manual_seed(0)
    head = ScanHead([2, 3], 3, 8, likelihood)
    y = torch.from_numpy(khot(np.array([[0, 2], [1, -1]]), [2, 3]))
    mu_x, logvar_x, weights = torch.randn(2, 3), torch.randn(2, 3), torch.rand(5)
    torch.manual_seed(1)
    loss, parts = scan_loss(head, y, mu_x, logvar_x, strength=7.0, beta_y=0.5, weights=weights)
    torch.manual_seed(1)
    mu, logvar = head.encode(y)
    z = mu + (logvar / 2).exp() * torch.randn_like(mu)
    p, total = head.logits(z), 0.0
    for i in range(2):
        for columns in ([0, 1], [2, 3, 4]):
            value = next((c for c in columns if y[i, c] == 1), None)
            if value is None:
                continue  # unknown: no part of the likelihood
            if likelihood == "softmax":
                nll = -torch.log(p[i, value].exp() / p[i, columns].exp().sum())
            else:
                nll = -sum(torch.log(torch.sigmoid(p[i, c] if c == value else -p[i, c])) for c in columns)
            total += weights[value] * nll / 2
        sx, sy = logvar_x[i].exp(), logvar[i].exp()
        total += 0.5 * (0.5 * (mu[i] ** 2 + sy - 1 - logvar[i])).sum() / 2
        # the sheet's closed form, forward: the label's posterior in the denominator
        total += 7.0 * (0.5 * (sy.log() - sx.log() + (sx + (mu_x[i] - mu[i]) ** 2) / sy - 1)).sum() / 2
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    assert set(parts) == {"label", "prior", "apart"}


def test_no_gradient_reaches_the_frozen_posterior():
    head, mu, logvar = ScanHead([2], 2), torch.zeros(1, 2, requires_grad=True), torch.zeros(1, 2, requires_grad=True)
    scan_loss(head, torch.tensor([[1.0, 0.0]]), mu, logvar)[0].backward()
    assert mu.grad is None
    assert logvar.grad is None
    assert all(p.grad is not None for p in head.encoder.parameters())


def two_modes(n: int = 2_000):
    """Latent 0 tells the label; latent 1 has two far modes whatever the label is."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (n, 1))
    mu = np.stack([np.where(y[:, 0] == 1, 1.0, -1.0), rng.choice([-0.95, 0.95], n)], 1)
    return mu, np.full((n, 2), np.log(0.1)), y


def test_the_direction_covers_and_training_ends_at_the_closed_form():
    mu, logvar, y = two_modes()
    head = ScanHead([2], 2, 32)
    train_head(head, mu, logvar, y, steps=400, batch=128, lr=5e-3, strength=50.0, progress=False)
    with torch.no_grad():
        m, s = head.encode(torch.eye(2))
    want = []
    for value in (0, 1):
        at = y[:, 0] == value
        want.append(matched(mu[at].mean(0), (np.exp(logvar) + mu**2)[at].mean(0), 50.0, 1.0))
    got_mu, got_var = m.numpy(), s.exp().numpy()
    np.testing.assert_allclose(got_mu, [w[0] for w in want], atol=0.1)
    np.testing.assert_allclose(got_var, [w[1] for w in want], rtol=0.25)
    assert (got_var[:, 1] > 0.8).all()  # the reverse divergence would sit on one of the two modes, at 0.1
    assert (np.abs(got_mu[:, 1]) < 0.15).all()
    assert (got_var[:, 0] < 0.2).all()


def test_the_closed_form_is_the_least_of_a_grid():
    rng = np.random.default_rng(1)
    for strength, beta_y in ((10.0, 1.0), (2.0, 5.0), (3.0, 0.0)):
        mean, second = rng.normal(), 2.0 + rng.random()
        mu, v = matched(np.array(mean), np.array(second), strength, beta_y)

        def loss(m, s, mean=mean, second=second, strength=strength, beta_y=beta_y):
            own = second - 2 * mean * m + m**2
            return strength * 0.5 * (np.log(s) + own / s) + beta_y * 0.5 * (m**2 + s - 1 - np.log(s))

        best = loss(mu, v)
        for dm in (-0.01, 0, 0.01):
            for ds in (0.99, 1, 1.01):
                assert loss(mu + dm, v * ds) >= best - 1e-9


def test_the_bootstrap_on_all_subjects_is_that_of_the_trials():
    mu, logvar, y = two_modes(60)
    who = np.repeat(np.arange(20), 3)
    whole, again = bootstrap(cells(mu, logvar, y, who, [2]), 0, 1, 50, 10.0, 1.0, 0)
    sides = [matched(mu[y[:, 0] == v].mean(0), (np.exp(logvar) + mu**2)[y[:, 0] == v].mean(0)) for v in (0, 1)]
    np.testing.assert_allclose(whole, separation(*sides[0], *sides[1]))
    assert again.shape == (50, 2)
    assert again.std(0).min() > 0


def test_dropped_labels():
    g = torch.Generator().manual_seed(0)
    known = torch.tensor([[True, True, False], [False, False, False]]).repeat(4_000, 1)
    named = drop(known, 0.5, g)
    assert not (named & ~known).any()
    assert named[::2].any(1).all()
    assert not named[1::2].any()
    assert named[::2, 0].float().mean() == pytest.approx(0.625, abs=0.02)  # half, and half of the quarter with none


def test_class_weights_make_values_weigh_alike():
    y = khot(np.array([[0], [0], [0], [1], [-1]]), [3])
    np.testing.assert_allclose(class_weights(y, [3]), [4 / (2 * 3), 4 / 2, 0])


def test_whitening_makes_the_noise_white(study):
    flat = study.x.reshape(len(study), -1).astype(float)
    w, u = whitening(flat, study.subjects)
    np.testing.assert_allclose(w @ u, np.eye(len(w)), atol=1e-8)
    names, at = np.unique(study.subjects, return_inverse=True)
    rest = flat @ w - np.stack([(flat @ w)[at == i].mean(0) for i in range(len(names))])[at]
    cov = rest.T @ rest / (len(flat) - len(names))
    assert np.diag(cov).mean() == pytest.approx(1, abs=0.1)


def test_a_model_finds_the_trait_and_is_kept(study, fitted, tmp_path):
    again = unbraid.System.from_pretrained(fitted.save_pretrained(tmp_path / "kept"))
    np.testing.assert_allclose(again.denoise(study.x[:5]), fitted.denoise(study.x[:5]))
    for name in ("depression", "sex"):
        np.testing.assert_allclose(again.contrast(name, draws=5).head, fitted.contrast(name, draws=5).head)
    made = fitted.denoise(study.x)
    assert correlations(made, study.clean).mean() > 1.3 * correlations(study.x, study.clean).mean()
    found = fitted.contrast("depression", draws=100)
    assert found.head.max() > 0.5
    assert (found.low <= found.high).all()
    p = fitted.predict_proba(study.x, "depression", study.subjects)
    assert p.shape == (40, 2)
    np.testing.assert_allclose(p.sum(1), 1)
    assert ((p.argmax(1)) == study.truth[:, 0]).mean() > 0.7
    assert fitted.predict_proba(study.x[:7], "sex", how="match").shape == (7, 2)
    alone = fitted.predict_proba(study.x, "sex")
    whole = fitted.predict_proba(study.x, "sex", study.subjects, "trials")
    want = np.exp(np.log(alone.reshape(40, 8, 2)).mean(1))
    np.testing.assert_allclose(whole, want / want.sum(1, keepdims=True), rtol=1e-5)
    named = found.head.argmax()
    assert fitted.relevance({"depression": 1}).argmax() in np.argsort(fitted.kl_)[-3:]
    steps = fitted.traverse(int(named), (-1.0, 1.0))
    late, pz = study.times > 0.5, study.channels.index("Pz")
    assert np.abs(steps[1] - steps[0])[pz, late].mean() > np.abs(steps[1] - steps[0])[pz, study.times < 0].mean()
    assert fitted.beta_norm_ == pytest.approx(0.5 * 4 / 96)
    np.testing.assert_allclose(fitted.residual_, ((made - study.x) ** 2).mean(), rtol=1e-4)


def test_sub_averages_are_of_one_subject_and_use_every_trial_once():
    who = np.repeat([3, 1, 7], [5, 4, 2])
    x = np.stack([np.full((1, 2), 100.0 * w + 1) for w in who]) + np.arange(11)[:, None, None] * [[0.0, 1e-3]]
    for size, count in ((1, 11), (2, 2 + 2 + 1), (0, 3), (9, 3)):
        made = sub_averages(x, who, size)
        assert len(made) == count
        assert set(np.round(made[:, 0, 0])) == {101.0, 301.0, 701.0}
    whole = sub_averages(x, who, 0)
    np.testing.assert_allclose(whole, [x[who == w].mean(0) for w in (1, 3, 7)])


def test_one_subject_has_a_contrast_without_an_interval(study):
    labels = np.arange(40) % 2
    model = EEGScan(latents=2, size="tiny").fit(study.x[:40], labels, np.zeros(40), ["state"], progress=False)
    found = model.contrast("state", draws=5)
    assert np.isfinite(found.matched).all()
    assert np.isnan(found.low).all()


def test_prototypes_have_the_sign_of_the_truth(study, fitted):
    late, pz = study.times > 0.5, study.channels.index("Pz")
    high, low = (fitted.prototype({"depression": v}).mean[pz, late].mean() for v in (0, 1))
    assert high > low
    both = fitted.prototype({"depression": 1, "sex": 0})
    assert both.mean.shape == both.spread.shape == study.x.shape[1:]


def test_other_labels_leave_the_code_as_it_is(study):
    model = EEGScan(latents=3, size="tiny").fit(study.x, progress=False)
    with pytest.raises(UnbraidError, match="remap"):
        model.contrast("depression")
    before = model.transform(study.x)
    model.remap(study.x, study.factors[:, 0] * 2 + study.factors[:, 2], study.subjects, ["group"], progress=False)
    assert model.sizes_ == [4]
    np.testing.assert_array_equal(model.transform(study.x), before)
    assert model.predict_proba(study.x[:2]).shape == (2, 4)


def test_the_score_and_the_split(study):
    score = lpp_score(study.clean, study.times, study.channels)
    assert np.corrcoef(score, study.amounts[study.subjects, 0])[0, 1] > 0.99
    train = study.subjects < 30
    assert accuracy(score, study.factors[:, 0], study.subjects, train, True) > 0.8
    with pytest.raises(UnbraidError, match="inflates"):
        accuracy(score, study.factors[:, 0], study.subjects, np.arange(len(study)) % 2 == 0)


def test_surrogates_keep_power_and_lose_what_is_locked(study):
    made = surrogates(study.x, study.subjects)
    means = np.stack([study.x[study.subjects == s].mean(0) for s in range(40)])
    rest = study.x - means[study.subjects]
    np.testing.assert_allclose((made**2).sum(), (rest**2).sum(), rtol=1e-6)
    assert np.abs(made.mean(0)).max() < 0.3 * np.abs(study.x.mean(0)).max()


def test_shuffled_labels_stay_with_the_subject(study):
    made = shuffled(study.factors, study.subjects)
    for s in range(40):
        assert len(np.unique(made[study.subjects == s], axis=0)) == 1
    assert made[:, 0].sum() == study.factors[:, 0].sum()


def test_epochs_of_mne_without_mne(monkeypatch, tmp_path):
    class Table:
        columns = ("subject", "group")

        def __getitem__(self, name):
            return {"subject": ["a", "a", "b"], "group": ["mdd", None, "hc"]}[name]

    epochs = SimpleNamespace(
        get_data=lambda: np.ones((3, 2, 5)), times=np.linspace(0, 1, 5), ch_names=["Cz", "Pz"], metadata=Table()
    )
    made = from_epochs(epochs, ["group"])
    assert made.labels.tolist() == [[1], [-1], [0]]
    assert made.values == {"group": ["hc", "mdd"]}
    assert made.subjects.tolist() == ["a", "a", "b"]
    with pytest.raises(UnbraidError, match="no column 'age'"):
        from_epochs(epochs, ["age"])
    with pytest.raises(UnbraidError, match=r"no mne\.Epochs"):
        from_epochs(np.ones(3))
    monkeypatch.setitem(__import__("sys").modules, "mne", None)
    for call in (lambda: to_evoked(np.ones((2, 5)), epochs.times, ["Cz", "Pz"]), lambda: read_epochs("x-epo.fif")):
        with pytest.raises(UnbraidError, match="neuro"):
            call()
    with pytest.raises(UnbraidError, match="signal"):
        to_evoked(np.ones((3, 5)), epochs.times, ["Cz", "Pz"])
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-01\t30\nsub-02\tn/a\n")
    assert _participants(tmp_path)["02"] == {"participant_id": "sub-02", "age": "n/a"}


def test_the_study_runs_small_and_goes_on(tmp_path):
    from unbraid.systems.eeg_scan.study import run

    options = {
        "models": ("beta 4",),
        "seeds": 2,
        "subjects": 24,
        "trials": 3,
        "size": "tiny",
        "latents": 3,
        "scalp": False,
    }
    first = run(**options, keep=tmp_path, progress=False)
    assert {c.name for c in first.claims} == {c.name for c in unbraid.systems.eeg_scan.CARD.claims} - {"delay"}
    assert first.figures[0].kind == "lines"
    again = run(**options, keep=tmp_path, progress=False)
    assert again.meta["pieces_read_back"] > 0
    assert [c.measured for c in again.claims] == [c.measured for c in first.claims]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda s: EEGScan().fit(np.full((4, 2, 8), np.nan)), "NaN"),
        (lambda s: EEGScan().fit(np.zeros((4, 8))), "channels"),
        (lambda s: EEGScan().fit(np.zeros((4, 2, 8))), "same"),
        (lambda s: EEGScan().fit(s.x, s.factors[:5]), "labels"),
        (lambda s: EEGScan().fit(s.x, np.zeros(len(s), int)), "at least two"),
        (lambda s: EEGScan().fit(s.x, s.factors * 0.5), "whole numbers"),
        (lambda s: EEGScan().fit(s.x, s.factors, np.arange(3)), "subjects"),
        (lambda s: EEGScan(whiten=True).fit(s.x), "several trials"),
        (lambda s: EEGScan(averaged=-1).fit(s), "averaged"),
        (lambda s: EEGScan(averaged=0).fit(s.x[:8], subjects=np.zeros(8)), "single epoch"),
        (lambda s: EEGScan(strength=-1).fit(s), "strength"),
        (lambda s: EEGScan(likelihood="gauss", size="tiny").fit(s, progress=False), "likelihood"),
        (lambda s: EEGScan().transform(s.x), "fit"),
        (lambda s: unbraid.systems.eeg_scan.lpp_score(s.x, s.times, ["a", "b", "c"]), "none of"),
    ],
)
def test_wrong_input_is_one_sentence(study, call, said):
    with pytest.raises(UnbraidError, match=said):
        call(study)


@pytest.mark.parametrize(
    "options",
    [
        {"models": ("x",)},
        {"seeds": 0},
        {"noise": -1.0},
        {"unknown": 1.0},
        {"models": ()},
        {"runs": 3},
        {"latents": 0},
        {"noise": float("nan")},
    ],
)
def test_wrong_options_of_the_study(options):
    from unbraid.systems.eeg_scan.study import run

    with pytest.raises(UnbraidError):
        run(**options)


def test_wrong_names_and_values(fitted):
    for call in (
        lambda: fitted.contrast("mood"), lambda: fitted.contrast("sex", 0, 5), lambda: fitted.prototype({"sex": 3}),
        lambda: fitted.traverse(4), lambda: fitted.relevance({"sex": 2}), lambda: fitted.code({"mood": 1}),
        lambda: fitted.predict_proba(np.zeros((1, 3, 32)), "sex", how="vote"),
        lambda: fitted.decode(np.ones((1, 9))), lambda: fitted.predict_proba(np.zeros((1, 3, 9)), "sex"),
        lambda: fitted.predict_proba(np.zeros((1, 3, 32))),
    ):  # fmt: skip
        with pytest.raises(UnbraidError):
            call()
