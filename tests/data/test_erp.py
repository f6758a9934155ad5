"""The simulated study of potentials: what the traits do, what the noise is, what is refused."""

import numpy as np
import pytest

from unbraid.core.errors import UnbraidError
from unbraid.data.erp import DELAY, PLACES, SITES, WAVES, simulate, topographies


def test_traits_do_what_is_said():
    study = simulate(subjects=200, trials=1, noise=0, samples=256, seed=1)
    np.testing.assert_array_equal(study.x, study.clean)
    late = np.abs(study.times - 0.6).argmin()
    healthy, depressed = (study.clean[study.truth[:, 0] == t][:, 2, late].mean() for t in (0, 1))
    assert healthy == pytest.approx(1.2, abs=0.08)
    assert depressed == pytest.approx(0.5, abs=0.08)
    early = (study.times > 0.05) & (study.times < 0.19)
    peaks = study.times[early][study.clean[:, 2][:, early].argmax(1)]
    assert peaks[study.truth[:, 1] == 1].mean() - peaks[study.truth[:, 1] == 0].mean() == pytest.approx(DELAY, abs=0.01)
    dip = np.abs(study.times - WAVES[1].latency).argmin()
    male, female = (study.clean[(study.truth[:, 2] == t) & (study.truth[:, 1] == 0)][:, 0, dip].mean() for t in (0, 1))
    assert female < male - 0.3


def test_noise_is_pink_with_a_rhythm_and_scales():
    study = simulate(subjects=20, trials=20, samples=256)
    noise = study.x - study.clean
    power = (np.abs(np.fft.rfft(noise)) ** 2).mean((0, 1))
    hertz = np.fft.rfftfreq(256, 1 / study.rate)
    low, high = power[(hertz > 1) & (hertz < 3)].mean(), power[(hertz > 30) & (hertz < 60)].mean()
    assert low > 10 * high
    around = power[np.abs(hertz - 10).argmin()]
    assert around > 2 * power[np.abs(hertz - 14).argmin()]
    twice = simulate(subjects=20, trials=20, samples=256, noise=2)
    np.testing.assert_allclose(twice.x - twice.clean, 2 * noise, atol=1e-4)


def test_labels_may_be_wrong_or_missing_and_subjects_are_kept_apart():
    study = simulate(subjects=300, trials=3, wrong=0.2, unknown=0.3)
    one = study.factors[::3]
    known = one >= 0
    assert known.mean() == pytest.approx(0.7, abs=0.05)
    assert (one[known] != study.truth[known]).mean() == pytest.approx(0.2, abs=0.05)
    assert (study.factors.reshape(300, 3, 3) == one[:, None]).all()
    a, b = study.split_subjects(0.75, 0)
    assert not set(study.subjects[a]) & set(study.subjects[b])
    assert len(a) + len(b) == 900
    again = simulate(subjects=300, trials=3, wrong=0.2, unknown=0.3)
    np.testing.assert_array_equal(again.x, study.x)


def test_a_montage_has_the_same_waves_and_smooth_topographies():
    few, many = simulate(8, 2, noise=0, seed=3), simulate(8, 2, noise=0, channels=32, seed=3)
    np.testing.assert_array_equal(few.clean, many.clean[:, :3])
    assert many.channels == SITES
    maps = topographies(32)
    np.testing.assert_array_equal(maps[:, :8], [w.sites for w in WAVES])
    assert SITES[maps[0].argmax()] in ("Oz", "O1", "O2")
    assert maps[1, SITES.index("Fp1")] > maps[1, SITES.index("O1")]
    left, right = (maps[:, SITES.index(n)] for n in ("PO3", "PO4"))
    np.testing.assert_allclose(left, right)
    with pytest.raises(UnbraidError, match="1 to 32"):
        topographies(0)


def test_noise_reaches_over_the_scalp_as_far_as_is_said():
    study = simulate(20, 20, channels=32, spread=0.4, seed=1)
    alone = simulate(20, 20, channels=32, seed=1)
    at = np.array(list(PLACES.values()))
    apart = np.sqrt(((at[:, None] - at) ** 2).sum(2))
    near, far = (apart > 0) & (apart < 0.4), apart > 1.5
    r, own = (np.corrcoef((s.x - s.clean).transpose(1, 0, 2).reshape(32, -1)) for s in (study, alone))
    assert r[near].mean() > 0.6
    assert r[far].mean() < 0.25
    assert own[near].mean() < 0.25  # only the rhythm is common
    assert (study.x - study.clean).std() == pytest.approx((alone.x - alone.clean).std(), rel=0.05)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"subjects": 1}, "at least 4 subjects"),
        ({"channels": 33}, "1 to 32 channels"),
        ({"noise": -1.0}, "must be 0 or more"),
        ({"wrong": 0.9}, "at most 0.5"),
        ({"noise": float("nan")}, "must be 0 or more"),
        ({"spread": -1.0}, "from 0 to 2"),
    ],
)
def test_bad_input_is_refused(options, words):
    with pytest.raises(UnbraidError, match=words):
        simulate(**options)


def test_a_share_that_leaves_nobody_is_refused():
    with pytest.raises(UnbraidError, match="empty"):
        simulate(4, 1).split_subjects(0.01, 0)
