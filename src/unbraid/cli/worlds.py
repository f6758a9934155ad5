"""``unbraid worlds``: data with known factors, to look at and to write to files."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unbraid.core.errors import UnbraidError

if TYPE_CHECKING:
    import numpy as np

    from unbraid.core.result import Result
    from unbraid.data.factors import FactorData
    from unbraid.data.worlds import World

LIST_EXAMPLES = "Examples:  unbraid worlds list  ·  unbraid worlds list --json"
SHOW_EXAMPLES = (
    "Examples:  unbraid worlds show shapes3d  ·  unbraid worlds show sprites --size 16 --sizes posX=6,posY=6  ·  "
    "unbraid worlds show dsprites.npz --keep unpacked"
)
MAKE_EXAMPLES = (
    "Examples:  unbraid worlds make sprites --n 10000 --out sprites.npz  ·  "
    "unbraid worlds make cars3d --out cars  ·  unbraid worlds make mpi3d_toy.npz --n 5000 --out some.npz"
)
MOST = 2 << 30  # bytes of an .npz, which is made in memory
COLUMNS = 10

app = typer.Typer(help="Data with known factors: list them, look at one, write one to files.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A world (`unbraid worlds list`), or an original file: .npz, .npy, .h5.")]
Size = Annotated[int | None, typer.Option(help="Pixels of a side.", show_default=False)]
Sizes = Annotated[str, typer.Option(help="Values per factor where they differ, as in posX=6,posY=6.")]
Options = Annotated[str, typer.Option(help="Options of that world, as in turn=0.25,variant=noisy.")]
Keep = Annotated[Path | None, typer.Option(help="Folder for an original's unpacked images.", show_default=False)]
Order = Annotated[str, typer.Option(help="Factors as an original file counts them, commas between, the last fastest.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]


@app.command("list", epilog=LIST_EXAMPLES)
def list_command(as_json: AsJson = False) -> None:
    """List the worlds."""
    from unbraid.data import worlds

    rows: list[dict[str, Any]] = []
    for name in worlds.names():
        made = worlds.make(name)
        factors = {k: v or "continuous" for k, v in zip(made.names, made.sizes, strict=True)}
        images = "any" if None in made.sizes else f"{len(made):,}"
        shape = "x".join(map(str, made.shape))
        rows.append({"name": name, "images": images, "shape": shape, "factors": factors, "what": worlds.describe(name)})
    from unbraid.cli.console import out, print_json, table

    if as_json:
        print_json(rows)
        return
    shown = table("", "name", "images", "as drawn", "factors (values)", "what")
    for row in rows:
        counts = ", ".join(f"{k} {v}" for k, v in row["factors"].items())
        shown.add_row(row["name"], row["images"], row["shape"], counts, row["what"])
    out().print(shown)


@app.command("show", epilog=SHOW_EXAMPLES)
def show_command(
    ctx: typer.Context,
    world: Name,
    size: Size = None,
    sizes: Sizes = "",
    options: Options = "",
    keep: Keep = None,
    order: Order = "",
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to, new or empty. Without it: runs/worlds/TIME.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write a page with images at random, what each factor does, and whether the oracle reads them back."""
    began = time.monotonic()
    from unbraid.cli import folders, study

    if quiet:
        study.silence()
    made = opened(world, size, seed, sizes, options, keep, order)
    given = {"world": world, "size": size, "sizes": sizes, "options": options, "seed": seed}
    with folders.guarded(folders.claim_folder("worlds", out)) as folder:
        result = page(made, seed, given)
        study.record(result, study.words_of(ctx), began)
        result.save(folder)
        study.show(result, folder, as_json=as_json)


@app.command("make", epilog=MAKE_EXAMPLES)
def make_command(
    world: Name,
    out: Annotated[Path, typer.Option(help="A new file .npz, or a new or empty folder (memory-mappable .npy).")],
    n: Annotated[int | None, typer.Option(min=1, help="So many at random instead of all.", show_default=False)] = None,
    size: Size = None,
    sizes: Sizes = "",
    options: Options = "",
    keep: Keep = None,
    order: Order = "",
    seed: Annotated[int, typer.Option(help="Of what is drawn at random.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Write images (0 to 255, [n, height, width, channels]) and factors to files that any program reads."""
    from unbraid.cli import folders

    packed = out.suffix == ".npz"
    if packed and out.exists():
        raise UnbraidError(f"{out} exists, and nothing is ever written over; give another name.")
    made = opened(world, size, seed, sizes, options, keep, order, n)
    data: FactorData = made if n is None or None in made.sizes else made.sample(n, seed)
    channels, height, width = made.shape
    need = len(data) * channels * height * width
    if packed:
        if need > MOST:
            raise UnbraidError(
                f"{len(data):,} images are {need / 1e9:.1f} GB, too many for one .npz; give --n, or a folder as --out."
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        write_npz(data, made, out, quiet)
    else:
        with folders.guarded(folders.claim_folder("worlds", out)) as folder:
            write_folder(data, made, folder, quiet)
    typer.echo(f"{len(data):,} images of {made.name}, {height}x{width}x{channels}: {out}")


def opened(
    world: str,
    size: int | None,
    seed: int,
    sizes: str,
    options: str,
    keep: Path | None = None,
    order: str = "",
    n: int | None = None,
) -> World:
    """The world of a name or of an original file.

    Raises:
        UnbraidError: there is none, or an option is wrong.
    """
    from unbraid.data import worlds

    if world not in worlds.names() and (Path(world).suffix or Path(world).exists()):
        if size is not None or sizes or options:
            raise UnbraidError(f"{world} is a file: its size, sizes and options are what they are.")
        return worlds.original(world, keep=keep, order=_words(order) or None)
    if keep is not None or order:
        raise UnbraidError(f"--keep and --order are for original files; {world} is drawn.")
    if world in worlds.names() and n is not None and None in worlds.make(world, sizes=_counts(sizes) or None).sizes:
        return worlds.make(world, size, seed, sizes=_counts(sizes) or None, n=n, **_values(options))
    return worlds.make(world, size, seed, sizes=_counts(sizes) or None, **_values(options))


def page(world: World, seed: int, params: dict[str, Any]) -> Result:
    """A result about a world: samples, traversals, the factors, the oracle on the samples.

    Args:
        world: what to show.
        seed: of the samples.
        params: what was asked for.
    """
    from unbraid.core.mosaic import mosaic
    from unbraid.core.result import Image, Result

    some = world.sample(min(40, len(world)), seed)
    images = some.x
    read = world.read(images)
    right = world.same(read.factors, some.factors) if None not in world.sizes else None
    rows: list[dict[str, Any]] = []
    for k, factor in enumerate(world.details):
        first, last = factor.values[0], factor.values[-1]
        row = {"factor": factor.name, "values": factor.size or "continuous", "kind": factor.kind, "first": first}
        row |= {"last": last, "unit": factor.unit}
        if right is not None:
            row["read back"] = float(right[:, k].mean())
        else:
            row["mean error"] = float(abs(read.factors[:, k] - some.factors[:, k]).mean())
        rows.append(row)
    figures = [
        Image.from_array(
            mosaic(images, COLUMNS), f"{len(some)} images of {world.name}", "At random", f"{len(world):,} in all."
        )
    ]
    grid, said = traversals(world, some.factors[0])
    figures.append(
        Image.from_array(
            grid, f"A row per factor: {said}", "One factor at a time", f"From above: {said}. The rest stays."
        )
    )
    notes = [f"{name} is always {value}, so it is no factor here." for name, value in world.constants.items()]
    return Result(
        "worlds", f"World {world.name}", params=params, tables={"factors": rows}, figures=figures, notes=notes,
        meta={"seed": seed},
    )  # fmt: skip


def traversals(world: World, start: np.ndarray) -> tuple[np.ndarray, str]:
    """Pixels with a row per factor, which takes up to ten of its values, and the rows' names.

    Args:
        world: of the images.
        start: [f] the factors that the others keep.
    """
    import numpy as np

    from unbraid.core.mosaic import mosaic

    lines = []
    for k, size in enumerate(world.sizes):
        values = np.linspace(0, 1, COLUMNS) if size is None else np.linspace(0, size - 1, min(size, COLUMNS)).round()
        rows = np.repeat(start[None].astype(float), len(values), axis=0)
        rows[:, k] = values
        drawn = world.images(rows)
        lines.append(np.concatenate([drawn, np.ones((COLUMNS - len(drawn), *drawn.shape[1:]), np.float32)]))
    return mosaic(np.concatenate(lines), COLUMNS), ", ".join(world.names)


def write_npz(data: FactorData, world: World, path: Path, quiet: bool) -> None:
    """Write images, factors, names and sizes as one file, whole or not at all."""
    import numpy as np

    pixels = np.empty((len(data), *world.shape[1:], world.shape[0]), np.uint8)
    _fill(pixels, data, quiet)
    draft = path.with_name(f".{path.stem}.{os.getpid()}.tmp.npz")
    try:
        sizes = np.array([size or 0 for size in world.sizes])
        np.savez_compressed(draft, images=pixels, factors=data.factors, names=np.array(world.names), sizes=sizes)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_folder(data: FactorData, world: World, folder: Path, quiet: bool) -> None:
    """Write ``images.npy`` and ``factors.npy``, which can be memory-mapped, and ``world.json``, the last of them."""
    import numpy as np

    draft = folder / f".images.{os.getpid()}.tmp"
    try:
        shape = (len(data), *world.shape[1:], world.shape[0])
        pixels = np.lib.format.open_memmap(draft, mode="w+", dtype=np.uint8, shape=shape)
        _fill(pixels, data, quiet)
        pixels.flush()
        os.replace(draft, folder / "images.npy")
    finally:
        draft.unlink(missing_ok=True)
    np.save(folder / "factors.npy", data.factors, allow_pickle=False)
    factors = [{"name": f.name, "kind": f.kind, "values": list(f.values), "unit": f.unit} for f in world.details]
    (folder / "world.json").write_text(json.dumps({"world": world.name, "factors": factors}, indent=1) + "\n")


def _fill(pixels: np.ndarray, data: FactorData, quiet: bool) -> None:
    from unbraid.core.progress import bar
    from unbraid.data.cache import to_levels

    with bar(False if quiet else None, "drawing", len(data)) as tick:
        for start in range(0, len(data), 256):
            part = data.render(range(start, min(start + 256, len(data))))
            pixels[start : start + len(part)] = to_levels(part).transpose(0, 2, 3, 1)
            tick(len(part))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _values(text: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for word in _words(text):
        name, equals, value = (part.strip() for part in word.partition("="))
        if not equals or not name or not value:
            raise UnbraidError(f"{word!r} is not name=value; separate several with commas.")
        try:
            made[name] = json.loads(value)
        except ValueError:
            made[name] = value
    return made


def _counts(text: str) -> dict[str, int]:
    return _values(text)
