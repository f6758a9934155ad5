"""The reference pipelines: what the oracle reads in their samples, times, retrieval, and the pictures of the page.

    python -m benchmarks.reference_pipelines                    # scores all that ship, draws the sheets: an hour
    python -m benchmarks.reference_pipelines --only tiny-clip   # one of them
    python -m benchmarks.reference_pipelines --sheets           # only the pictures, docs/img/tiny-*.png
    python -m benchmarks.reference_pipelines --models runs/reference/preview --out /tmp/try.json --size small

Scores are of exactly the weights whose fingerprint stands with them; the command that packs a model shows them on its
card as long as that has not changed. Guidance and steps are chosen on seeds that nothing is reported of.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from unbraid import zoo
from unbraid.core.mosaic import mosaic
from unbraid.core.png import encode_png
from unbraid.zoo.reference import NAMES
from unbraid.zoo.reference.sampling import opened, pictures
from unbraid.zoo.reference.scoring import CHOICE, PLANS, best_of, score_to_file

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "results" / "benchmarks" / "reference_pipelines.json"
IMAGES = ROOT / "docs" / "img"
PROMPTS = (
    "a red circle, on a white background",
    "a yellow star, in the snow",
    "a striped purple heart, on a black background",
    "a large green ring, at the beach",
    "a white moon, in the night sky",
    "a blue square to the left of an orange triangle, on a grey background",
    "a pink cross above a green circle, on a yellow background",
    "a sketch of a blue star, on a white background",
)
ACROSS = 8


def settings(path: Path, name: str) -> tuple[float, int]:
    """Guidance and steps that the scores of a model chose.

    Args:
        path: file of scores.
        name: of the model.
    """
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))["models"].get(name)
        if found:
            return best_of(found["tables"][CHOICE])
    print(f"{name} has no scores in {path.name}: guidance 5, 25 steps.", file=sys.stderr)
    return 5.0, 25


def sheet(folder: Path, out: Path, guidance: float, steps: int) -> None:
    """A picture of samples, a row for each prompt; seeds 0 to 7, none left out.

    Args:
        folder: of the pipeline.
        out: PNG file.
        guidance: scale of classifier-free guidance.
        steps: of the sampler.
    """
    said = [words for words in PROMPTS for _ in range(ACROSS)]
    made = pictures(opened(folder), said, list(range(ACROSS)) * len(PROMPTS), steps, guidance)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(encode_png((mosaic(made, ACROSS) * 255 + 0.5).astype(np.uint8)))


def main() -> int:
    """Scores and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=NAMES, help="one model; all that are there by default")
    parser.add_argument("--models", type=Path, help="folder of packed models; the package by default")
    parser.add_argument("--size", choices=tuple(PLANS), default="full")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder for the sheets")
    parser.add_argument("--sheets", action="store_true", help="only draw the sheets")
    given = parser.parse_args()
    there = {card.name for card in zoo.models()} if given.models is None else {p.name for p in given.models.iterdir()}
    names = [name for name in NAMES if name in there and given.only in (None, name)]
    if not names:
        print("None of the reference models is there; pack one, or give --models FOLDER.", file=sys.stderr)
        return 1
    for name in names:
        folder = zoo.fetch(name) if given.models is None else given.models / name
        if not given.sheets:
            score_to_file(name, folder, given.size, given.out, progress=True)
        if name != "tiny-clip":
            sheet(folder, given.images / f"{name}.png", *settings(given.out, name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
