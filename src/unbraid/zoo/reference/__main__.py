"""Trains, packs and scores the reference pipelines: ``python -m unbraid.zoo.reference STAGE ...``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from unbraid.core.errors import UnbraidError
from unbraid.zoo.reference import NAMES

STAGES = ("vae", "sd", "clip", "sd3")
SCORES = Path("results/benchmarks/reference_pipelines.json")


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(prog="python -m unbraid.zoo.reference", description=__doc__)
    actions = made.add_subparsers(dest="action", required=True, metavar="ACTION")
    for stage in STAGES:
        one = actions.add_parser(stage, help=f"train {stage}, or go on training")
        one.add_argument("--keep", type=Path, default=Path("runs/reference"), help="folder for checkpoints and parts")
        one.add_argument("--steps", type=int, help="of training; the stage's own by default")
        one.add_argument("--batch", type=int, help="scenes per step; the stage's own by default")
        if stage == "sd3":
            one.add_argument("--start", type=Path, help="a packed tiny-sd3 whose weights are gone on with")
            one.add_argument("--compiled", action="store_true", help="compile the blocks: worth it for long trainings")
    packing = actions.add_parser("pack", help="assemble a model in half precision, with its card")
    packing.add_argument("name", help=", ".join(NAMES))
    packing.add_argument("--keep", type=Path, default=Path("runs/reference"), help="folder with the trained parts")
    packing.add_argument("--from", dest="source", type=Path, help="a checkpoint, or the folder of them, to preview")
    packing.add_argument("--out", type=Path, help="folder to write; the package, or KEEP/preview with --from")
    packing.add_argument("--scores", type=Path, default=SCORES, help="file of scores for the card")
    scoring = actions.add_parser("score", help="let the oracle read samples of a packed model")
    scoring.add_argument("name", help=", ".join(NAMES))
    scoring.add_argument("--model", type=Path, help="folder of the packed model; the shipped one by default")
    scoring.add_argument("--size", default="full", help="how much: tiny, small, medium or full")
    scoring.add_argument("--out", type=Path, default=SCORES, help="file for the scores, which others are kept in")
    return made


def main(words: list[str] | None = None) -> int:
    """Run one action."""
    given = vars(parser().parse_args(words))
    action = given.pop("action")
    try:
        if action == "pack":
            from unbraid.zoo.reference.packing import pack

            print(pack(**given))
        elif action == "score":
            from unbraid.zoo.reference.scoring import score_to_file

            score_to_file(**given, progress=True)
        else:
            _train(action, given)
    except UnbraidError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


def _train(stage: str, given: dict[str, Any]) -> None:
    from unbraid.zoo.reference import joint, training

    stages: dict[str, Any] = {
        "vae": training.train_vae,
        "sd": training.train_sd,
        "clip": training.train_clip,
        "sd3": joint.train_sd3,
    }
    stages[stage](progress=True, **{name: value for name, value in given.items() if value is not None})


if __name__ == "__main__":
    sys.exit(main())
