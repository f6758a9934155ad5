"""A tuning with new words, prior pictures and masks in as many processes as there are; `accelerate launch` runs it.

``tuning_parallel.py FOLDER PRECISION`` writes what each process had in the end to FOLDER/RANK.json.
"""

import json
import os
import sys
from pathlib import Path

import torch

from tests.support.pipelines import small
from unbraid.diffusion import Parts
from unbraid.diffusion.adapters import lora_weights
from unbraid.diffusion.photos import Album
from unbraid.diffusion.subjects import dreambooth, textual_inversion


def main(folder: Path, precision: str) -> None:
    pipe, g = small("sd"), torch.Generator().manual_seed(5)
    cover = torch.zeros(4, 64, 64)
    cover[:, 10:40, 10:40] = 1
    photos = torch.rand(8, 3, 64, 64, generator=g)
    album, prior = Album.of(photos[:4], masks=cover), Album.of(photos[4:])
    options = {"steps": 3, "batch": 2, "precision": precision, "progress": False}
    with dreambooth(
        pipe, album, "a pink circle", lr=1e-3, prior=prior, prior_prompt="a circle", masked=True, **options
    ) as (_, run):
        found = {"losses": list(run.losses), "prior": list(run.extra["prior"])}
        found["weights"] = sum(w.abs().sum().item() for w in lora_weights(Parts.of(pipe)).values())
    with textual_inversion(pipe, Album.of(photos[:4]), "<m>", "circle", lr=1e-2, **options) as (words, run):
        found |= {"words": sum(row.detach().abs().sum().item() for row in words.rows), "word losses": list(run.losses)}
    rank = os.environ.get("RANK", "0")
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
