"""Speech with known word times: recordings from files, synthesised sentences, and a world of made-up speech.

Needs numpy and scipy; soundfile (extra ``audio``) for formats other than WAV, eSpeak NG to synthesise new sentences.
"""

from unbraid.data.speech.clips import RATE, Clip, Word, check_audio, load_clip, read_audio, resample
from unbraid.data.speech.espeak import available, sentences, synthesise
from unbraid.data.speech.shipped import spoken
from unbraid.data.speech.world import SpeechWorld, Spoken

__all__ = [
    "RATE",
    "Clip",
    "SpeechWorld",
    "Spoken",
    "Word",
    "available",
    "check_audio",
    "load_clip",
    "read_audio",
    "resample",
    "sentences",
    "spoken",
    "synthesise",
]  # fmt: skip
