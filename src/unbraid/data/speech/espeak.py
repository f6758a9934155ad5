"""Sentences synthesised by eSpeak NG, with the exact times of every word, through its own library.

The library comes from Debian (`apt-get install espeak-ng`) or from PyPI (`pip install espeakng-loader`). eSpeak NG
tells at which sample each word begins; a word ends with the last sample that is not silence before the next begins.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
from functools import cache
from typing import Any

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.data.speech.clips import RATE, Clip, Word, resample

_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples go to a callback
_UTF8 = 1
_EVENT_LAST, _EVENT_WORD = 0, 1  # espeakEVENT_LIST_TERMINATED, espeakEVENT_WORD
_RATE, _PITCH = 1, 3
QUIET = 0.01  # of full scale: the synthesiser is exactly silent between words, bar the decay of its filters

_TEXTS = (
    "The birch canoe slid on the smooth planks near the river.",
    "Seven people waited for the morning train to London.",
    "Please bring a small bottle of water and some bread.",
    "The doctor explained why sleep matters for children.",
    "A heavy storm closed the mountain road last winter.",
    "My brother bought three green apples at the market.",
    "The teacher asked every student to write one question.",
    "Nobody remembered where the old keys were hidden.",
    "Fresh snow covered the garden before the sun came up.",
    "The captain promised that the ship would arrive on Friday.",
    "Good music makes a long journey feel much shorter.",
    "Two young engineers repaired the broken bridge in a week.",
)


def sentences() -> tuple[str, ...]:
    """Twelve plain English sentences, written for this project."""
    return _TEXTS


class _Union(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int), ("unique_identifier", ctypes.c_uint), ("text_position", ctypes.c_int),
        ("length", ctypes.c_int), ("audio_position", ctypes.c_int), ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p), ("id", _Union),
    )  # fmt: skip


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class _Engine:
    """The library, opened once: it keeps one global voice."""

    def __init__(self, library: str, data: str | None) -> None:
        self.lib: Any = ctypes.CDLL(library)
        path = None if data is None else data.encode()
        self.rate = int(self.lib.espeak_Initialize(_SYNCHRONOUS, 0, path, 0))
        if self.rate <= 0:
            raise OSError("espeak_Initialize failed")
        self._callback = _CALLBACK(self._hear)  # kept: the library holds the pointer
        self.lib.espeak_SetSynthCallback(self._callback)
        self._samples: list[np.ndarray] = []
        self._words: list[tuple[int, int, int]] = []

    def _hear(self, wave: Any, count: int, events: Any) -> int:
        if wave and count > 0:
            self._samples.append(np.ctypeslib.as_array(wave, (count,)).copy())
        number = 0
        while events[number].type != _EVENT_LAST:
            event = events[number]
            if event.type == _EVENT_WORD:
                self._words.append((event.text_position, event.length, event.audio_position))
            number += 1
        return 0

    def say(self, text: str, voice: str, speed: int, pitch: int) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
        """Samples (int16) and, per word, its first character (from 1), its characters, and its start in ms."""
        self._samples, self._words = [], []
        if self.lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise UnbraidError(f"eSpeak NG has no voice {voice!r}; `espeak-ng --voices` lists those it has.")
        self.lib.espeak_SetParameter(_RATE, speed, 0)
        self.lib.espeak_SetParameter(_PITCH, pitch, 0)
        raw = text.encode("utf-8") + b"\0"
        self.lib.espeak_Synth(raw, len(raw), 0, 0, 0, _UTF8, None, None)
        self.lib.espeak_Synchronize()
        samples = np.concatenate(self._samples) if self._samples else np.zeros(0, np.int16)
        return samples, list(self._words)


@cache
def _engine() -> _Engine | None:
    places: list[tuple[str | None, str | None]] = [(ctypes.util.find_library("espeak-ng"), None)]
    if importlib.util.find_spec("espeakng_loader"):
        import espeakng_loader

        places.append((str(espeakng_loader.get_library_path()), str(espeakng_loader.get_data_path())))
    for library, data in places:
        if library is None:
            continue
        try:
            return _Engine(library, data)
        except (OSError, AttributeError):
            continue
    return None


def available() -> bool:
    """Whether eSpeak NG can be used here."""
    return _engine() is not None


def synthesise(
    text: str, voice: str = "en-us", speed: int = 150, pitch: int = 50, rate: int = RATE, name: str = ""
) -> Clip:
    """Speech with the exact times of its words.

    Args:
        text: one plain sentence of letters, blanks and punctuation.
        voice: of eSpeak NG, also with a variant ("en-us+f3").
        speed: words per minute.
        pitch: 0 to 99.
        rate: samples per second wanted.
        name: of the clip.

    Raises:
        UnbraidError: eSpeak NG is not installed, there is no such voice, or no word in the text.
    """
    if not any(letter.isalnum() for letter in text):
        raise UnbraidError(f"There is no word to say in {text!r}.")
    engine = _engine()
    if engine is None:
        raise UnbraidError(
            "Synthesising needs eSpeak NG: `apt-get install espeak-ng` or `pip install espeakng-loader`; "
            "`unbraid.data.speech.spoken()` has clips that were made with it."
        )
    samples, marks = engine.say(text, voice, speed, pitch)
    audio = samples.astype(np.float32) / 32768
    words = _words(text, audio, marks, engine.rate)
    return Clip(
        name or f"{voice}-{speed}",
        resample(audio, engine.rate, rate),
        rate,
        text,
        words,
        f"eSpeak NG, voice {voice}",
        "exact",
    )


def _words(text: str, audio: np.ndarray, marks: list[tuple[int, int, int]], rate: int) -> tuple[Word, ...]:
    """Words between their marks, cut to where there is sound.

    What eSpeak NG says in one breath ("on the") has one mark; such words are left out, as only their sum is known.
    """
    out = []
    loud = np.flatnonzero(np.abs(audio) > QUIET)
    for number, (position, length, first) in enumerate(marks):
        after = marks[number + 1][0] - 1 if number + 1 < len(marks) else len(text)
        if any(letter.isalnum() for letter in text[position - 1 + length : after]):
            continue
        stop = marks[number + 1][2] * rate // 1000 if number + 1 < len(marks) else len(audio)
        inside = loud[(loud >= first * rate // 1000) & (loud < stop)]
        if not len(inside):
            continue
        said = text[position - 1 : position - 1 + length].strip()
        out.append(Word(said, float(inside[0]) / rate, float(inside[-1] + 1) / rate))
    return tuple(out)
