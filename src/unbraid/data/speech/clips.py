"""Clips of speech: reading, resampling and checking audio. Needs numpy and scipy; soundfile for other than WAV."""

from __future__ import annotations

import io
from dataclasses import dataclass, field, replace
from math import gcd
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unbraid.core.errors import UnbraidError

RATE = 16_000
LEAST_SECONDS = 0.05
MOST_SECONDS = 30.0
SILENCE = 1e-4  # of full scale: below the last bit or two of 16-bit sound


class Word(NamedTuple):
    """A word and when it is heard, in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True, eq=False)
class Clip:
    """One piece of speech.

    Attributes:
        name: for tables and files.
        audio: [samples] float32 from -1 to 1.
        rate: samples per second.
        text: what is said, "" where unknown.
        words: every word with its true times, () where unknown.
        source: where it comes from.
        timing: how the times are known: "exact", "by hand", "forced alignment", or "".
    """

    name: str
    audio: np.ndarray
    rate: int = RATE
    text: str = ""
    words: tuple[Word, ...] = field(default=())
    source: str = ""
    timing: str = ""

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return len(self.audio) / self.rate

    def at(self, rate: int) -> Clip:
        """The same clip at another rate."""
        if rate == self.rate:
            return self
        return replace(self, audio=resample(self.audio, self.rate, rate), rate=rate)


def check_audio(audio: Any, where: str = "The audio") -> np.ndarray:
    """One channel of finite float32 samples.

    Args:
        audio: [samples] or [channels, samples] or [samples, channels] numbers; integers are scaled to -1..1, channels
            are averaged.
        where: how messages call it.

    Raises:
        UnbraidError: no numbers, no samples, not finite, or shorter than 0.05 s at 16 kHz.
    """
    x = np.asarray(audio)
    if x.dtype.kind not in "fiu" or x.ndim not in (1, 2):
        raise UnbraidError(
            f"{where} must be numbers of shape [samples] or [channels, samples], not {x.dtype} of shape {x.shape}."
        )
    if x.dtype.kind in "iu":
        half = 2.0 ** (8 * x.dtype.itemsize - 1)
        x = x.astype(np.float64) / half - (1.0 if x.dtype.kind == "u" else 0.0)
    if not x.size:
        raise UnbraidError(f"{where} has length zero; give at least {LEAST_SECONDS} seconds of sound.")
    if x.ndim == 2:
        x = x.mean(axis=int(np.argmin(x.shape)))
    if x.size < LEAST_SECONDS * RATE:
        raise UnbraidError(f"{where} has only {x.size} samples; give at least {LEAST_SECONDS} seconds of sound.")
    if not np.isfinite(x).all():
        raise UnbraidError(f"{where} holds samples that are not finite; remove NaN and infinite values first.")
    return np.ascontiguousarray(x, dtype=np.float32)


def is_silent(audio: np.ndarray) -> bool:
    """Whether no sample rises above the noise of 16-bit sound."""
    return float(np.abs(audio).max(initial=0.0)) < SILENCE


def resample(audio: np.ndarray, rate: int, new: int = RATE) -> np.ndarray:
    """Audio at another rate, by scipy's polyphase filter.

    Args:
        audio: [samples].
        rate: samples per second now.
        new: samples per second wanted.

    Raises:
        UnbraidError: a rate is no positive number.
    """
    if int(rate) < 1 or int(new) < 1:
        raise UnbraidError(f"A sampling rate must be a positive number of samples per second, not {rate} or {new}.")
    if int(rate) == int(new):
        return audio
    from scipy.signal import resample_poly

    step = gcd(int(rate), int(new))
    return resample_poly(audio, int(new) // step, int(rate) // step).astype(np.float32)


def read_audio(path: str | Path, rate: int = RATE) -> np.ndarray:
    """A sound file as one channel at the rate wanted.

    Args:
        path: WAV; with soundfile installed also FLAC, OGG, MP3 and what else libsndfile reads.
        rate: samples per second wanted.

    Returns:
        [samples] float32.

    Raises:
        UnbraidError: no such file, no sound in it, or a format that cannot be read.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UnbraidError(f"There is no file {file}; give a sound file (WAV, FLAC, OGG, MP3).")
    try:
        audio, found = _read(file)
    except UnbraidError:
        raise
    except Exception as error:  # libsndfile and scipy raise classes of their own for what is no sound
        raise UnbraidError(
            f"{file.name} is no sound file that can be read ({str(error).strip().splitlines()[0][:120]}); give WAV, "
            "FLAC, OGG or MP3."
        ) from error
    return resample(check_audio(audio, file.name), found, rate)


def _read(file: Path) -> tuple[np.ndarray, int]:
    try:
        import soundfile
    except ImportError:
        if file.suffix.lower() != ".wav":
            raise UnbraidError(
                f'Reading {file.suffix or "this file"} needs soundfile: pip install "unbraid[audio]"; '
                "WAV needs nothing."
            ) from None
        from scipy.io import wavfile

        found, data = wavfile.read(io.BytesIO(file.read_bytes()))
        return data.T if data.ndim == 2 else data, int(found)
    data, found = soundfile.read(str(file), dtype="float32", always_2d=True)
    return data.T, int(found)


def load_clip(path: str | Path, rate: int = RATE, text: str = "") -> Clip:
    """A sound file as a `Clip`; for its errors see `read_audio`."""
    file = Path(path).expanduser()
    return Clip(file.stem, read_audio(file, rate), rate, text, source=file.name)
