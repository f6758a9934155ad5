"""MNE's epochs and BIDS folders in, MNE's evoked responses and topographies out; MNE is imported when one is asked for.

Written against MNE-Python 1.8 and MNE-BIDS as documented.
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
        epochs: EEG channels are read.
        labels: columns of its ``metadata``, or name -> [n] values; a missing value (None, NaN, "n/a") is unknown.
        subject: the column of ``metadata`` that names the subject, or [n] names; all are one subject where there is
            no such column.

    Raises:
        UnbraidError: these are no epochs, or a column is not there.
    """
    if not all(hasattr(epochs, name) for name in ("get_data", "times", "ch_names")):
        raise UnbraidError(f"a {type(epochs).__name__} is no mne.Epochs; give what mne.Epochs or read_epochs makes.")
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
        epochs = mne.read_epochs(path, preload=True, verbose="error").pick("eeg")
    except (OSError, ValueError) as error:
        raise UnbraidError(f"MNE cannot read epochs from {path} ({error}).") from None
    return from_epochs(epochs, labels, subject)


def read_bids(
    root: str | Path, task: str, events: Sequence[str], labels: Sequence[str] = (), tmin: float = -0.248,
    tmax: float = 0.772, band: tuple[float, float] = (0.1, 30.0), subjects: Sequence[str] | None = None,
) -> Recording:  # fmt: skip
    """Epochs of all subjects of a BIDS folder, with labels from its ``participants.tsv``.

    Args:
        root: the folder.
        task: name of the task.
        events: names of the events that begin an epoch.
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
    parts = []
    for name in subjects or mne_bids.get_entity_vals(root, "subject"):
        place = mne_bids.BIDSPath(root=root, subject=name, task=task, datatype="eeg")
        raw = mne_bids.read_raw_bids(place, verbose="error").load_data().pick("eeg").filter(*band, verbose="error")
        found, ids = mne.events_from_annotations(raw, verbose="error")
        wanted = {event: ids[event] for event in events if event in ids}
        if not wanted:
            raise UnbraidError(f"subject {name} has none of the events {', '.join(events)}; it has {', '.join(ids)}.")
        epochs = mne.Epochs(
            raw, found, wanted, tmin, tmax, baseline=(None, 0), preload=True, verbose="error"
        )  # fmt: skip
        told = {label: [people.get(name, {}).get(label)] * len(epochs) for label in labels}
        parts.append((from_epochs(epochs, {}, [name] * len(epochs)), told))
    first = parts[0][0]
    if any(p.channels != first.channels or len(p.times) != len(first.times) for p, _ in parts):
        raise UnbraidError("subjects have different channels or sampling rates; make them alike first.")
    coded = {label: _coded([v for _, told in parts for v in told[label]]) for label in labels}
    return Recording(
        np.concatenate([p.x for p, _ in parts]), first.times, first.channels,
        np.stack([c[0] for c in coded.values()], 1) if coded else None, tuple(coded),
        {n: c[1] for n, c in coded.items()}, np.concatenate([p.subjects for p, _ in parts]),
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
        montage: name of a standard montage such as "standard_1020", for topographies; None: none.

    Raises:
        UnbraidError: MNE is not installed, or shapes differ.
    """
    data, seconds = np.asarray(signal, dtype=np.float64), np.asarray(times, dtype=np.float64)
    if data.shape != (len(channels), len(seconds)) or len(seconds) < 2:
        raise UnbraidError(
            f"a signal must be [{len(channels)}, {len(seconds)}] as there are channels and times (at least 2), not "
            f"{data.shape}."
        )
    mne = _mne()
    rate = float((len(seconds) - 1) / (seconds[-1] - seconds[0]))
    evoked = mne.EvokedArray(
        data, mne.create_info(list(channels), rate, "eeg", verbose="error"), tmin=float(seconds[0]), comment=comment,
        verbose="error",
    )  # fmt: skip
    return evoked if montage is None else evoked.set_montage(montage, verbose="error")


def topographies(
    evoked: Any, times: Sequence[float] = (0.11, 0.22, 0.36, 0.6)
) -> Any:  # fmt: skip
    """MNE's picture of an evoked response on the scalp at these seconds; `to_evoked` needs a montage for it."""
    _mne()
    return evoked.plot_topomap(times=list(times), show=False)
