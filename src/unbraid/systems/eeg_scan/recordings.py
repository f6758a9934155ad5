"""MNE's epochs and BIDS folders in, MNE's epochs and evoked responses out; MNE is imported when one is asked for.

MNE reads FIF with a parser of its own, and metadata in it as JSON: nothing is unpickled. What a BIDS folder's
recordings are read with is MNE's choice by their format (BrainVision, EDF, BDF, EEGLAB's .set through scipy).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unbraid.core.errors import UnbraidError


class Recording(NamedTuple):
    """Epochs [n, channels, samples] in volts, seconds [samples], channels, labels [n, K], their names, subjects."""

    x: np.ndarray
    times: np.ndarray
    channels: tuple[str, ...]
    labels: np.ndarray | None
    names: tuple[str, ...]
    values: dict[str, list[str]]
    subjects: np.ndarray


def _mne() -> Any:
    try:
        import mne
    except ImportError:
        raise UnbraidError('this needs MNE: pip install "unbraid[neuro]".') from None
    return mne


def from_epochs(
    epochs: Any, labels: Sequence[str] | Mapping[str, Sequence[Any]] = (), subject: str | Sequence[Any] = "subject"
) -> Recording:
    """What `EEGScan.fit` needs, of an `mne.Epochs`.

    Args:
        epochs: EEG channels are read, bad ones left out.
        labels: columns of its ``metadata``, or name -> [n] values; a missing value (None, NaN, "n/a") is unknown.
        subject: the column of ``metadata`` that names the subject, or [n] names; all are one subject where there is
            no such column.

    Raises:
        UnbraidError: these are no epochs, or a column is not there.
    """
    if not all(hasattr(epochs, name) for name in ("get_data", "times", "ch_names")):
        raise UnbraidError(f"a {type(epochs).__name__} is no mne.Epochs; give what mne.Epochs or read_epochs makes.")
    if not len(epochs.get_data()):
        raise UnbraidError("these epochs hold not a single one; were all of them dropped?")
    if hasattr(epochs, "pick"):
        try:
            epochs = epochs.copy().pick("eeg", exclude="bads")
        except ValueError:
            raise UnbraidError("these epochs hold no EEG channel that is not marked bad.") from None
    x = np.asarray(epochs.get_data(), dtype=np.float64)
    table = epochs.metadata
    columns = {} if table is None else {str(name): list(table[name]) for name in table.columns}
    if not isinstance(labels, Mapping):
        gone = [name for name in labels if name not in columns]
        if gone:
            raise UnbraidError(f"the epochs' metadata have no column {gone[0]!r}; they have {', '.join(columns)}.")
        labels = {name: columns[name] for name in labels}
    who = columns.get(subject, [subject] * len(x)) if isinstance(subject, str) else list(subject)
    if any(len(v) != len(x) for v in (*labels.values(), who)):
        raise UnbraidError(f"labels and subjects must have a value for each of the {len(x)} epochs.")
    coded = {name: _coded(values) for name, values in labels.items()}
    y = np.stack([c[0] for c in coded.values()], 1) if coded else None
    return Recording(
        x, np.asarray(epochs.times), tuple(epochs.ch_names), y, tuple(coded), {n: c[1] for n, c in coded.items()},
        np.asarray([str(w) for w in who]),
    )  # fmt: skip


def _coded(values: Sequence[Any]) -> tuple[np.ndarray, list[str]]:
    """Whole numbers for values in rising order of their text, -1 where missing."""
    told = ["" if v is None or v != v else str(v) for v in values]
    known = sorted({t for t in told if t not in ("", "n/a")})
    return np.array([known.index(t) if t in known else -1 for t in told], dtype=np.int64), known


def read_epochs(
    path: str | Path, labels: Sequence[str] = (), subject: str | Sequence[Any] = "subject"
) -> Recording:  # fmt: skip
    """Epochs that MNE saved (``*-epo.fif``); see `from_epochs`.

    Raises:
        UnbraidError: MNE is not installed, or it cannot read the file.
    """
    mne = _mne()
    try:
        epochs = mne.read_epochs(path, preload=True, verbose="error")
    except FileNotFoundError:
        raise UnbraidError(f"MNE cannot read epochs from {path}: there is no such file.") from None
    except Exception as error:  # what is no FIF file fails somewhere in MNE's parser
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise UnbraidError(f"MNE cannot read epochs from {path}: {said}; give a file *-epo.fif.") from None
    return from_epochs(epochs, labels, subject)


def read_bids(
    root: str | Path, task: str, events: Sequence[str], labels: Sequence[str] = (), tmin: float = -0.248,
    tmax: float = 0.772, band: tuple[float, float] = (0.1, 30.0), subjects: Sequence[str] | None = None,
) -> Recording:  # fmt: skip
    """Epochs of all subjects of a BIDS folder, with labels from its ``participants.tsv``.

    Args:
        root: the folder.
        task: name of the task.
        events: names of the events that begin an epoch; "picture" stands for "picture/neutral" too, as in MNE.
        labels: columns of ``participants.tsv``.
        tmin: seconds before the event, negative.
        tmax: seconds after it.
        band: of the filter, hertz.
        subjects: of them, without "sub-"; None: all.

    Raises:
        UnbraidError: MNE or MNE-BIDS is not installed, or the folder lacks what is asked for.
    """
    mne = _mne()
    try:
        import mne_bids
    except ImportError:
        raise UnbraidError("this needs MNE-BIDS beside MNE: pip install mne-bids.") from None
    people = _participants(Path(root))
    gone = [name for name in labels if any(name not in row for row in people.values())]
    if gone or not people:
        raise UnbraidError(f"{root} has no participants.tsv with the columns {', '.join(labels) or 'participant_id'}.")
    if tmin >= 0 or tmax <= 0 or not 0 <= band[0] < band[1]:
        raise UnbraidError(f"tmin={tmin} must be below 0, tmax={tmax} above, and band={band} two rising frequencies.")
    parts = []
    for name in subjects or mne_bids.get_entity_vals(root, "subject"):
        place = mne_bids.BIDSPath(root=root, subject=name, task=task, datatype="eeg")
        try:
            raw = mne_bids.read_raw_bids(place, verbose="error").load_data()
            raw = raw.pick("eeg", exclude="bads").filter(*band, verbose="error")
        except Exception as error:  # readers of many formats fail in ways of their own
            said = (str(error) or type(error).__name__).splitlines()[0]
            raise UnbraidError(f"MNE cannot read subject {name!r}, task {task!r} in {root}: {said}") from None
        found, ids = mne.events_from_annotations(raw, verbose="error")
        wanted = {event: i for event, i in ids.items() if {event, *event.split("/")} & set(events)}
        if not wanted:
            raise UnbraidError(f"subject {name} has none of the events {', '.join(events)}; it has {', '.join(ids)}.")
        epochs = mne.Epochs(
            raw, found, wanted, tmin, tmax, baseline=(None, 0), preload=True, verbose="error"
        )  # fmt: skip
        parts.append(from_epochs(epochs, {}, [name] * len(epochs)))
    return _joined(parts, people, labels)


def _joined(parts: list[Recording], people: dict[str, dict[str, str]], labels: Sequence[str]) -> Recording:
    """Recordings of several subjects as one, labels by ``participants.tsv``."""
    first = parts[0]
    if any(p.channels != first.channels or len(p.times) != len(first.times) for p in parts):
        raise UnbraidError("subjects have different channels or sampling rates; make them alike first.")
    who = np.concatenate([p.subjects for p in parts])
    coded = {label: _coded([people.get(name, {}).get(label) for name in who]) for label in labels}
    return Recording(
        np.concatenate([p.x for p in parts]), first.times, first.channels,
        np.stack([c[0] for c in coded.values()], 1) if coded else None, tuple(coded),
        {n: c[1] for n, c in coded.items()}, who,
    )  # fmt: skip


def _participants(root: Path) -> dict[str, dict[str, str]]:
    """Rows of ``participants.tsv`` by subject, without "sub-"; none where there is no such file."""
    try:
        lines = (root / "participants.tsv").read_text(encoding="utf-8-sig").splitlines()
    except OSError:
        return {}
    cells = [line.split("\t") for line in lines if line.strip()]
    if not cells or cells[0][0] != "participant_id":
        return {}
    return {row[0].removeprefix("sub-"): dict(zip(cells[0], row, strict=False)) for row in cells[1:]}


def to_evoked(
    signal: np.ndarray, times: np.ndarray, channels: Sequence[str], comment: str = "", montage: str | None = None
) -> Any:
    """An `mne.EvokedArray` of a prototype or a denoised potential.

    Args:
        signal: [channels, samples] in volts.
        times: [samples] seconds.
        channels: names.
        comment: what it is.
        montage: name of a standard montage such as "biosemi32", for topographies; None: none.

    Raises:
        UnbraidError: MNE is not installed, shapes differ, or the montage does not know a channel.
    """
    data = np.asarray(signal, dtype=np.float64)
    info, tmin = _info(data[None], times, channels, montage)
    return _mne().EvokedArray(data, info, tmin=tmin, comment=comment, verbose="error")


def to_epochs(
    x: np.ndarray, times: np.ndarray, channels: Sequence[str], metadata: Mapping[str, Sequence[Any]] | None = None,
    montage: str | None = None,
) -> Any:  # fmt: skip
    """An `mne.EpochsArray` of epochs, denoised ones or those of the simulated study.

    Args:
        x: [n, channels, samples] in volts.
        times: [samples] seconds; MNE moves them by up to half a sample, so that one of them is 0.
        channels: names.
        metadata: column -> [n] values such as labels and subjects; needs pandas.
        montage: name of a standard montage, or None.

    Raises:
        UnbraidError: MNE or pandas is not installed, shapes differ, or the montage does not know a channel.
    """
    data = np.asarray(x, dtype=np.float64)
    info, tmin = _info(data, times, channels, montage)
    short = [name for name, values in (metadata or {}).items() if len(values) != len(data)]
    if short:
        raise UnbraidError(f"the column {short[0]!r} of metadata must have {len(data)} values, one per epoch.")
    table = None
    if metadata is not None:
        try:
            import pandas
        except ImportError:
            raise UnbraidError('metadata need pandas: pip install "unbraid[frames]".') from None
        table = pandas.DataFrame({name: list(values) for name, values in metadata.items()})
    return _mne().EpochsArray(data, info, tmin=tmin, metadata=table, verbose="error")


def _info(data: np.ndarray, times: Any, channels: Sequence[str], montage: str | None) -> tuple[Any, float]:
    """MNE's description of these channels and this rate, and the first of the times."""
    seconds = np.asarray(times, dtype=np.float64)
    if data.ndim != 3 or data.shape[1:] != (len(channels), len(seconds)) or len(seconds) < 2 or not len(data):
        raise UnbraidError(
            f"a signal must be [{len(channels)}, {len(seconds)}] as there are channels and times (at least 2), not "
            f"{data.shape[1:]}."
        )
    mne = _mne()
    rate = float((len(seconds) - 1) / (seconds[-1] - seconds[0]))
    info = mne.create_info(list(channels), rate, "eeg", verbose="error")
    if montage is not None:
        try:
            info.set_montage(montage, verbose="error")
        except ValueError:
            raise UnbraidError(
                f"the montage {montage!r} is none of MNE's, or it lacks one of the channels {', '.join(channels)}; "
                "mne.channels.get_builtin_montages() lists them."
            ) from None
    return info, float(seconds[0])


def topographies(evoked: Any, times: Sequence[float] = (0.11, 0.22, 0.36, 0.6)) -> Any:
    """MNE's picture of an evoked response on the scalp at these seconds.

    Args:
        evoked: of `to_evoked` with a montage, or any of MNE's.
        times: seconds within the epoch.

    Returns:
        A matplotlib figure.

    Raises:
        UnbraidError: MNE is not installed, this is no evoked response, or it has no places of channels.
    """
    _mne()
    if not hasattr(evoked, "plot_topomap"):
        raise UnbraidError(f"a {type(evoked).__name__} is no mne.Evoked; make one with to_evoked(..., montage=...).")
    try:
        return evoked.plot_topomap(times=list(times), show=False)
    except (ValueError, RuntimeError) as error:
        said = str(error).splitlines()[0]
        raise UnbraidError(f"MNE cannot draw topographies: {said} to_evoked takes a montage, for example.") from None
