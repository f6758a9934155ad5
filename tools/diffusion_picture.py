"""Draws docs/img/diffusion.png with tiny-sd: where words are looked at, and a prompt per region."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from unbraid.core.png import encode_png
from unbraid.diffusion import Parts, open_pipeline, paint
from unbraid.diffusion.grids import grid
from unbraid.diffusion.maps import word_maps
from unbraid.diffusion.masks import normed
from unbraid.diffusion.regions import region_prompts
from unbraid.diffusion.spans import spans

SAID = (
    (
        "a white moon to the left of a red heart, on a grey background",
        ["white moon", "red heart", "grey background"],
        4,
    ),
    ("a green triangle above a white star, on a purple background", ["green triangle", "white star", "purple"], 0),
)
HALVES = ("a red circle, on a white background", "a yellow star, in the night sky")


def main() -> None:
    """Write the picture."""
    pipe = open_pipeline("tiny-sd")
    parts, rows = Parts.of(pipe), []
    for said, words, seed in SAID:
        with word_maps(parts, spans(parts, said, words), (16, 16), guided=True) as maps:
            picture = paint(pipe, [said], [seed], guidance=3.5, progress=False)
        seen = normed(maps.mean((64, 64)))[0].numpy()
        rows.append(np.stack([picture[0], *(np.repeat(one[None], 3, 0) for one in seen)]))
    owner = torch.arange(2).repeat_interleave(32)[None].repeat(64, 1)
    with region_prompts(parts, HALVES, owner) as (told, away):
        rows.append(paint(pipe, told.repeat(4), range(4), negative=away, guidance=3.5, progress=False))
    sheet = grid(np.stack(rows), ["maps of words", "maps of words", "two regions"])
    Path(__file__).resolve().parents[1].joinpath("docs/img/diffusion.png").write_bytes(encode_png(sheet))


if __name__ == "__main__":
    main()
