"""Trains the reference pipelines: ``python -m unbraid.zoo.reference vae|sd|clip --keep FOLDER``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def main() -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser(prog="python -m unbraid.zoo.reference", description=__doc__)
    parser.add_argument("stage", choices=("vae", "sd", "clip"))
    parser.add_argument("--keep", type=Path, default=Path("runs/reference"), help="folder for checkpoints and parts")
    parser.add_argument("--steps", type=int, help="of training; the stage's own by default")
    parser.add_argument("--batch", type=int, help="scenes per step; the stage's own by default")
    given = parser.parse_args()
    from unbraid.zoo.reference import training

    stages: dict[str, Any] = {"vae": training.train_vae, "sd": training.train_sd, "clip": training.train_clip}
    more = {name: vars(given)[name] for name in ("steps", "batch") if vars(given)[name] is not None}
    stages[given.stage](given.keep, progress=True, **more)


if __name__ == "__main__":
    main()
