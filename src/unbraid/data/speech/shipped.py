"""The synthesised clips that ship with the package: exact word times without any speech synthesis installed."""

from __future__ import annotations

import json
import os
from importlib.resources import files
from pathlib import Path

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.data.speech.clips import RATE, Clip, Word


def spoken(count: int | None = None) -> list[Clip]:
    """Clips made by `synthesise` from `sentences`, as they were rendered once; their word times are exact.

    Args:
        count: how many, None for all.

    Raises:
        UnbraidError: more are wanted than there are.
    """
    place = files("unbraid.data.speech")
    facts = json.loads(place.joinpath("spoken.json").read_text(encoding="utf-8"))
    if count is not None and not 0 <= count <= len(facts["clips"]):
        raise UnbraidError(f"There are {len(facts['clips'])} synthesised clips, not {count}.")
    from safetensors.numpy import load

    arrays = load(place.joinpath("spoken.safetensors").read_bytes())
    return [
        Clip(
            one["name"],
            from_mu_law(arrays[one["name"]]),
            RATE,
            one["text"],
            tuple(Word(text, start, end) for text, start, end in one["words"]),
            facts["source"],
            "exact",
        )
        for one in facts["clips"][:count]
    ]


def to_mu_law(audio: np.ndarray) -> np.ndarray:
    """[samples] from -1 to 1 as 8-bit codes of the mu-law (ITU-T G.711's curve): half the size of 16 bit."""
    x = np.clip(audio.astype(np.float64), -1, 1)
    squeezed = np.sign(x) * np.log1p(255 * np.abs(x)) / np.log(256)
    return np.round((squeezed + 1) / 2 * 255).astype(np.uint8)


def from_mu_law(codes: np.ndarray) -> np.ndarray:
    """The inverse of `to_mu_law`, up to rounding; float32."""
    y = codes.astype(np.float64) / 255 * 2 - 1
    x = np.sign(y) * np.expm1(np.abs(y) * np.log(256)) / 255
    return np.where(np.abs(x) < 2e-4, 0.0, x).astype(np.float32)


VOICES = (("en-us", 150, 50), ("en-us+f2", 145, 60), ("en-gb-x-rp", 150, 45), ("en-us+m3", 155, 40))


def render(folder: Path) -> None:
    """Makes the clips that ship, with eSpeak NG: one sentence each, four voices in turn, quarter seconds of silence
    around them.

    Args:
        folder: where `spoken.json` and `spoken.safetensors` go.
    """
    from safetensors.numpy import save

    from unbraid.data.speech.espeak import sentences, synthesise

    arrays, listed = {}, []
    for number, text in enumerate(sentences()):
        voice, speed, pitch = VOICES[number % len(VOICES)]
        made = synthesise(text, voice, speed, pitch)
        pad = RATE // 4
        name = f"spoken {number + 1}"
        arrays[name] = to_mu_law(np.pad(0.9 * made.audio / np.abs(made.audio).max(), pad))
        words = [[w.text, round(w.start + pad / RATE, 4), round(w.end + pad / RATE, 4)] for w in made.words]
        listed.append({"name": name, "voice": voice, "speed": speed, "text": text, "words": words})
    facts = {"source": "eSpeak NG (synthesised, word times exact)", "coding": "mu-law, 16 kHz", "clips": listed}
    for name, data in (
        ("spoken.safetensors", save(arrays)),
        ("spoken.json", (json.dumps(facts, indent=1) + "\n").encode()),
    ):
        temporary = folder / f".{name}.tmp"
        temporary.write_bytes(data)
        os.replace(temporary, folder / name)


if __name__ == "__main__":
    render(Path(__file__).parent)
