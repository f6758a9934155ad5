"""``unbraid scenes``: captioned scenes and photos of new subjects, to look at and to write to files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unbraid.core.errors import UnbraidError

if TYPE_CHECKING:
    import numpy as np

    from unbraid.core.result import Figure, Result
    from unbraid.data.scenes import Scene

SHOW_EXAMPLES = "Examples:  unbraid scenes show  ·  unbraid scenes show --split held_out --objects 2-2 --seed 5"
MAKE_EXAMPLES = "Examples:  unbraid scenes make --n 1000 --out scenes  ·  unbraid scenes make --size 256 --out big"
PHOTOS_EXAMPLES = (
    "Examples:  unbraid scenes photos 7 --out mug  ·  unbraid scenes photos 7 --backgrounds shared --n 4 --out mug  ·  "
    "unbraid scenes photos 3,8 --n 1 --out both"
)
SAMPLES, ACROSS, SUBJECTS = 48, 12, 6

app = typer.Typer(
    help="Captioned scenes: look at them, write them to files, photos of new subjects.", no_args_is_help=True
)

Out = Annotated[Path, typer.Option(help="A new or empty folder.")]
Objects = Annotated[str, typer.Option(help="Things in a scene: a number, or the least and the greatest as in 1-3.")]
Split = Annotated[str, typer.Option(help="train, held_out (combinations that train never has) or all.")]
Side = Annotated[int, typer.Option(help="Pixels of a side.")]
Seed = Annotated[int, typer.Option(min=0, help="Of what is drawn at random.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]


@app.command("show", epilog=SHOW_EXAMPLES)
def show_command(
    ctx: typer.Context,
    objects: Objects = "1-3",
    split: Split = "train",
    size: Side = 64,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to, new or empty. Without it: runs/scenes/TIME.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write a page with scenes and captions, styles, pairs, new subjects, and what the oracle reads."""
    began = time.monotonic()
    from unbraid.cli import folders, study
    from unbraid.data.scenes import render, sample

    if quiet:
        study.silence()
    some = sample(SAMPLES, seed, span(objects), split)
    render(some[:1], size)  # a wrong size is told before a folder is made
    given = {"objects": objects, "split": split, "size": size, "seed": seed}
    with folders.guarded(folders.claim_folder("scenes", out)) as folder:
        result = page(some, size, seed, given)
        study.record(result, study.words_of(ctx), began)
        result.save(folder)
        study.show(result, folder, as_json=as_json)


@app.command("make", epilog=MAKE_EXAMPLES)
def make_command(
    out: Out,
    n: Annotated[int, typer.Option(min=1, help="How many.")] = 100,
    objects: Objects = "1-3",
    split: Split = "train",
    size: Side = 64,
    seed: Seed = 0,
    omit: Annotated[
        float, typer.Option(help="How often captions leave an attribute out; 0: they say everything.")
    ] = 0.15,
    quiet: Quiet = False,
) -> None:
    """Write images (PNG), captions.jsonl and a mask for each thing."""
    from unbraid.data.scenes import caption, sample

    some = sample(n, seed, span(objects), split)
    words = [caption(scene, k if omit else None, omit=omit) for k, scene in enumerate(some)]
    _write(out, some, words, size, quiet)


@app.command("photos", epilog=PHOTOS_EXAMPLES)
def photos_command(
    subject: Annotated[str, typer.Argument(help="Number of a new subject, or of two with a comma between.")],
    out: Out,
    n: Annotated[int, typer.Option(min=1, help="How many photos.")] = 5,
    backgrounds: Annotated[str, typer.Option(help="varied, two (in turns) or shared (one for all).")] = "varied",
    size: Side = 64,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Write photos of a new subject, or of two in one image, with masks and captions."""
    from unbraid.data.scenes import photos

    try:
        numbers = [int(word) for word in subject.split(",")]
    except ValueError:
        raise UnbraidError(f"subject is {subject!r}; give a whole number from 0, or two as in 3,8.") from None
    made = photos(numbers, n, seed, backgrounds, size=size)
    _write(out, made.scenes, made.captions, size, quiet)
    typer.echo(f"They show {made.prompt}.")


def span(objects: str) -> tuple[int, int]:
    """The least and the greatest number of things from ``2`` or ``1-3``.

    Raises:
        UnbraidError: it is neither.
    """
    try:
        least, _, most = objects.partition("-")
        return int(least), int(most or least)
    except ValueError:
        raise UnbraidError(f"--objects is {objects!r}; give a number from 1 to 3, or two as in 1-3.") from None


def _write(out: Path, scenes: list[Scene], captions: list[str], size: int, quiet: bool) -> None:
    from unbraid.cli import folders
    from unbraid.data.scenes import render, write

    render(scenes[:1], size)
    with folders.guarded(folders.claim_folder("scenes", out)) as folder:
        write(folder, scenes, captions, size, progress=False if quiet else None)
    typer.echo(f"{len(scenes):,} images, {size}x{size}: {out}")


def page(some: list[Scene], size: int, seed: int, params: dict[str, Any]) -> Result:
    """A result about scenes: samples with captions, styles, pairs, subjects, and the oracle on the samples.

    Args:
        some: scenes to show first.
        size: pixels of a side.
        seed: of pairs.
        params: what was asked for.
    """
    from unbraid.core.result import Result
    from unbraid.data import scenes as s

    images = s.render(some, size)
    rows = [{"image": k + 1, "caption": s.caption(scene, k)} for k, scene in enumerate(some)]
    figures = [_grid(images, ACROSS, "Scenes", "At random, row by row as in the table of captions.")]
    shown = [s.Scene(one.things, one.background, style, one.seed) for style in s.STYLES for one in some[:ACROSS]]
    figures.append(_grid(s.render(shown, size), ACROSS, "Styles", f"From above: {', '.join(s.STYLES)}."))
    changes = [c for c in s.CHANGES if c != "relation"]
    both = [pair for change in changes for pair in s.pairs(ACROSS // 2, seed, change)]
    figures.append(
        _grid(
            s.render([scene for pair in both for scene in (pair.before, pair.after)], size),
            ACROSS,
            "Pairs that differ in one attribute",
            f"Side by side; from above: {', '.join(changes)}.",
        )
    )
    import numpy as np

    photos = np.concatenate([s.photos(k, ACROSS // 2, seed, size=size).images for k in range(SUBJECTS * 2)])
    figures.append(_grid(photos, ACROSS, "New subjects", "Two in a row, six photos of each, on varied backgrounds."))
    told = s.accuracy(s.read(images), some)
    table = [{"attribute": name, "read back": share} for name, share in told.items()]
    return Result(
        "scenes",
        "Scenes with captions",
        params=params,
        tables={"captions": rows, "oracle": table},
        figures=figures,
        lead="figures",
        meta={"seed": seed},
    )


def _grid(images: np.ndarray, across: int, title: str, caption: str) -> Figure:
    from unbraid.core.mosaic import mosaic
    from unbraid.core.result import Image

    return Image.from_array(mosaic(images, across), f"{len(images)} small pictures. {caption}", title, caption)
