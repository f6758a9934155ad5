"""EEG and SCAN with MNE itself: epochs, FIF files, BIDS folders, evoked responses, topographies, Xdawn."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest

from unbraid.core.errors import UnbraidError
from unbraid.data.erp import SITES, simulate
from unbraid.data.erp import topographies as true_topographies
from unbraid.systems.eeg_scan import (
    EEGScan,
    from_epochs,
    read_bids,
    read_epochs,
    to_epochs,
    to_evoked,
    topographies,
    xdawn,
)
from unbraid.systems.eeg_scan.baselines import correlations

mne = pytest.importorskip("mne", reason="neuro extra")
VOLTS = 1e-6  # MNE counts in volts


@pytest.fixture(scope="module")
def study():
    return simulate(subjects=24, trials=6, samples=32, noise=0.6, seed=100)


@pytest.fixture(scope="module")
def epochs(study):
    columns = {"subject": [f"s{w:02d}" for w in study.subjects], "depression": study.factors[:, 0]}
    columns["sex"] = [("m", "f", None)[v] for v in study.factors[:, 2]]
    return to_epochs(study.x * VOLTS, study.times, study.channels, columns)


def test_a_study_goes_through_a_file_of_mne_and_is_learned_from(study, epochs, tmp_path):
    path = tmp_path / "study-epo.fif"
    epochs.save(path, verbose="error")
    found = read_epochs(path, ["depression", "sex"])
    np.testing.assert_allclose(found.x, study.x * VOLTS, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(found.times, study.times, atol=0.5 / study.rate)  # MNE lets epochs begin at a sample
    assert found.channels == study.channels
    assert found.names == ("depression", "sex")
    assert found.values == {"depression": ["0", "1"], "sex": ["f", "m"]}
    np.testing.assert_array_equal(found.labels[:, 0], study.factors[:, 0])
    np.testing.assert_array_equal(found.labels[:, 1], 1 - study.factors[:, 2])
    model = EEGScan(latents=3, hidden=(32,), beta=0.5, whiten=True, steps=300, label_steps=200)
    model.fit(found.x, found.labels, found.subjects, found.names, progress=False)
    made = model.denoise(found.x)
    assert correlations(made, study.clean).mean() > 1.2 * correlations(study.x, study.clean).mean()
    back = to_epochs(made, found.times, found.channels)
    assert isinstance(back, mne.EpochsArray)
    assert back.average().get_peak(tmin=0.3)[1] > 0.3


def test_channels_that_are_no_eeg_and_bad_ones_are_left_out(study):
    info = mne.create_info(["Fz", "Cz", "Pz", "EOG"], study.rate, ["eeg"] * 3 + ["eog"], verbose="error")
    data = np.concatenate([study.x, np.ones((len(study), 1, 32))], 1)
    made = mne.EpochsArray(data, info, verbose="error")
    assert from_epochs(made).channels == ("Fz", "Cz", "Pz")
    made.info["bads"] = ["Cz"]
    assert from_epochs(made).channels == ("Fz", "Pz")
    with pytest.raises(UnbraidError, match="no EEG"):
        from_epochs(made.copy().pick("eog"))
    with pytest.raises(UnbraidError, match="metadata have no column 'age'"):
        from_epochs(made, ["age"])


def brainvision(place, data, names, begin, rate=128):
    """A recording in BrainVision's format, which is two text files and one of numbers, read by MNE."""
    (place / "r.eeg").write_bytes((data.T * 1e6).astype("<f4").tobytes())
    channels = [f"Ch{i + 1}={name},,1,µV" for i, name in enumerate(names)]
    header = [
        "Brain Vision Data Exchange Header File Version 1.0", "[Common Infos]", "Codepage=UTF-8", "DataFile=r.eeg",
        "MarkerFile=r.vmrk", "DataFormat=BINARY", "DataOrientation=MULTIPLEXED", f"NumberOfChannels={len(names)}",
        f"SamplingInterval={1e6 / rate}", "[Binary Infos]", "BinaryFormat=IEEE_FLOAT_32", "[Channel Infos]", *channels,
    ]  # fmt: skip
    markers = [f"Mk{i + 1}=Comment,picture,{at + 1},1,0" for i, at in enumerate(begin)]
    marks = [
        "Brain Vision Data Exchange Marker File, Version 1.0", "[Common Infos]", "Codepage=UTF-8", "DataFile=r.eeg",
        "[Marker Infos]", *markers,
    ]  # fmt: skip
    for suffix, lines in ((".vhdr", header), (".vmrk", marks)):
        (place / f"r{suffix}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return mne.io.read_raw_brainvision(place / "r.vhdr", verbose="error")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two subjects with ten pictures each, written by MNE-BIDS."""
    bids = pytest.importorskip("mne_bids", reason="neuro extra")
    root, rng = tmp_path_factory.mktemp("bids"), np.random.default_rng(0)
    for number, name in enumerate(("01", "02")):
        data = 1e-6 * rng.standard_normal((4, 128 * 25))
        begin = 128 * (2 + 2 * np.arange(10))
        for at in begin:
            data[:3, at + 40 : at + 60] += 20e-6 * (1 + number)
        raw = brainvision(tmp_path_factory.mktemp("raw"), data, ["Fz", "Cz", "Pz", "EOG"], begin)
        raw.set_channel_types({"EOG": "eog"}, verbose="error")
        raw.info["line_freq"] = 50
        place = bids.BIDSPath(root=root, subject=name, task="view", datatype="eeg")
        bids.write_raw_bids(raw, place, verbose="error", overwrite=True)
    lines = ["participant_id\tage\tgroup", "sub-01\t30\tmdd", "sub-02\tn/a\thc"]
    (root / "participants.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def test_a_bids_folder(folder):
    found = read_bids(folder, "view", ["picture"], ["group", "age"])
    assert found.channels == ("Fz", "Cz", "Pz")
    assert found.x.shape[0] == 20
    assert found.subjects.tolist() == ["01"] * 10 + ["02"] * 10
    assert found.values == {"group": ["hc", "mdd"], "age": ["30"]}
    assert found.labels[[0, -1]].tolist() == [[1, 0], [0, -1]]
    inside = (found.times > 40 / 128) & (found.times < 60 / 128)
    one, two = (found.x[found.subjects == name].mean(0)[:, inside].mean() for name in ("01", "02"))
    assert two == pytest.approx(2 * one, rel=0.1)
    assert one == pytest.approx(20e-6, rel=0.2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": "rest"}, "cannot read subject '01', task 'rest'"),
        ({"events": ["sound"]}, "none of the events sound; it has Comment/picture"),
        ({"labels": ["income"]}, "columns income"),
        ({"root": "nowhere"}, r"no participants\.tsv"),
        ({"tmin": 0.1}, "tmin"),
        ({"subjects": ["09"]}, "cannot read subject '09'"),
    ],
)
def test_what_a_bids_folder_lacks_is_said(folder, options, said):
    with pytest.raises(UnbraidError, match=said):
        read_bids(**{"root": folder, "task": "view", "events": ["picture"], **options})


def test_topographies_of_a_montage_are_the_true_ones():
    matplotlib.use("Agg")
    study = simulate(8, 2, noise=0, channels=32, seed=0)
    at = int(np.abs(study.times - 0.6).argmin())
    evoked = to_evoked(study.clean[0], study.times, SITES, "clean", "biosemi32")
    assert evoked.comment == "clean"
    assert evoked.get_montage() is not None
    assert abs(np.corrcoef(evoked.data[:, at], true_topographies(32)[3])[0, 1]) > 0.999
    picture = topographies(evoked, [0.22, 0.6])
    assert sum(bool(ax.images) for ax in picture.axes) >= 2
    matplotlib.pyplot.close(picture)


def test_the_scalp_is_mapped_and_drawn(monkeypatch):
    from unbraid.systems.eeg_scan import scalp
    from unbraid.systems.eeg_scan.scalp import agreement, draw, mapped

    monkeypatch.setitem(scalp.WORLD, "samples", 16)
    shown = mapped(100, 24, 4, 0.5, "tiny", 3)
    assert shown["truth"].shape == shown["latent"].shape == shown["label"].shape == (3, 32, 16)
    rows = agreement(shown)
    assert [r["label"] for r in rows] == ["depression", "age", "sex"]
    assert rows[0]["peak (s)"] == pytest.approx(0.6, abs=0.07)
    assert all(png.startswith(b"\x89PNG") for png in draw(shown).values())


def test_xdawn_denoises_what_it_was_shown(study):
    train = study.subjects < 18
    made = xdawn(study.x, study.factors[:, 0], train, study.rate, 1)
    held = ~train
    assert made.shape == study.x[held].shape
    assert correlations(made, study.clean[held]).mean() > correlations(study.x[held], study.clean[held]).mean()
    with pytest.raises(UnbraidError, match="1 to 3"):
        xdawn(study.x, study.factors[:, 0], train, study.rate, 4)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda e, p: read_epochs(p / "gone-epo.fif"), "no such file"),
        (lambda e, p: read_epochs(_text(p / "text-epo.fif")), "cannot read epochs"),
        (lambda e, p: from_epochs(e, {"sex": [1, 2]}), "a value for each"),
        (lambda e, p: from_epochs(e[:0]), "not a single one"),
        (lambda e, p: to_evoked(np.ones((2, 5)), np.arange(5), ["Cz", "Xy"], montage="biosemi32"), "lacks one"),
        (lambda e, p: to_evoked(np.ones((2, 5)), np.arange(5), ["Cz", "Pz"], montage="hat"), "none of MNE's"),
        (lambda e, p: to_epochs(np.ones((2, 5)), np.arange(5), ["Cz", "Pz"]), "signal"),
        (lambda e, p: to_epochs(np.ones((3, 1, 5)), np.arange(5), ["Cz"], {"sex": [1]}), "3 values"),
        (lambda e, p: topographies(np.ones(3)), r"no mne\.Evoked"),
        (lambda e, p: topographies(e.average(), [0.2]), "montage"),
    ],
)
def test_wrong_input_is_one_sentence(epochs, tmp_path, call, said):
    with pytest.raises(UnbraidError, match=said):
        call(epochs, tmp_path)


def _text(path):
    path.write_text("no epochs")
    return path
