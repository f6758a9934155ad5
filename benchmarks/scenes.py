"""Scenes: images a second at 64x64 on one core, what the oracle reads back, and how new subjects are told apart.

    taskset -c 1 python -m benchmarks.scenes           # writes results/benchmarks/scenes.json
    python -m benchmarks.scenes --sheet docs/img/scenes.png   # only the picture of the documentation

Speeds are medians of rounds, per second of processor time (the core may be shared; one thread). "plain" draws each
scene on three times as many pixels along a side and averages. Accuracies are of scenes of the split "held_out" with
seeds that the oracle was not trained on; a thing that is not found is wrong in all its attributes. The rows of styles
and of worse images have one or two things.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.attention.report import markdown, provenance, show, write_json, write_text
from unbraid.core.mosaic import mosaic
from unbraid.core.png import encode_png
from unbraid.data import scenes as s

OUT = Path(__file__).resolve().parents[1] / "results" / "benchmarks" / "scenes.json"
BARS = {"render": 500, "read": 100}
SEED = 9_000
SUBJECTS = 40


def speeds(rounds: int) -> list[dict[str, Any]]:
    """Images a second of what is done with scenes."""
    some = s.sample(256, SEED, split="all")
    images = s.render(some)
    words = [s.caption(scene, k) for k, scene in enumerate(some)]
    jobs: dict[str, tuple[int, Callable[[], Any]]] = {
        "sample": (256, lambda: s.sample(256, SEED)),
        "caption": (256, lambda: [s.caption(scene, k) for k, scene in enumerate(some)]),
        "parse": (256, lambda: [s.parse(text) for text in words]),
        "render": (256, lambda: s.render(some)),
        "plain": (64, lambda: s.render(some[:64], 192).reshape(64, 3, 64, 3, 64, 3).mean(axis=(3, 5))),
        "masks": (256, lambda: s.masks(some)),
        "read": (128, lambda: s.read(images[:128])),
        "score": (64, lambda: [s.score(image, text) for image, text in zip(images[:64], words, strict=False)]),
        "identity": (128, lambda: s.identity(images[:128], 3)),
    }
    took: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():
        job[1]()  # what is made once and kept
    for _ in range(rounds):
        for name, (count, job) in jobs.items():
            start = time.process_time()
            job()
            took[name].append(count / (time.process_time() - start))
    found = {name: round(statistics.median(values)) for name, values in took.items()}
    rows: list[dict[str, Any]] = []
    for name, values in took.items():
        bar = BARS.get(name)
        row = {"what": name, "a second": found[name], "slowest": round(min(values)), "bar": bar}
        ratio = round(found[name] / found["plain"], 1) if name == "render" else None
        rows.append(row | {"met": None if bar is None else found[name] >= bar, "x plain": ratio})
    return rows


def readings(count: int, vae: Path | None) -> list[dict[str, Any]]:
    """Share of right answers for each attribute: numbers of things, styles, degradations, an autoencoder."""
    rows = []
    for things in (1, 2, 3):
        truth = s.sample(count, SEED + things, (things, things), "held_out")
        rows.append(reading(f"{things} thing{'s' if things > 1 else ''}", s.render(truth), truth))
    truth = s.sample(count, SEED + 10, (1, 2), "held_out")
    for style in s.STYLES:
        here = [replace(scene, style=style) for scene in truth]
        rows.append(reading(style, s.render(here), here))
    images = s.render(truth)
    rows += [reading(f"worse: {kind}", s.degrade(images, kind), truth) for kind in s.KINDS]
    rows.append(reading("worse: small, by four", s.degrade(images, "small", 2), truth))
    if vae is not None:
        for things in (1, 2):
            truth = s.sample(count, SEED + things, (things, things), "held_out")
            rows.append(reading(f"autoencoder: {things}", decoded(s.render(truth), vae), truth))
    return rows


def decoded(images: np.ndarray, folder: Path) -> np.ndarray:
    """Images through an `AutoencoderKL`: what a diffusion model on its latents could show at best."""
    import torch
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder).eval()
    with torch.no_grad():
        codes = [vae.encode(part * 2 - 1).latent_dist.mean for part in torch.from_numpy(images).split(64)]
        return torch.cat([vae.decode(code).sample / 2 + 0.5 for code in codes]).clamp(0, 1).numpy()


def reading(name: str, images: np.ndarray, truth: list[s.Scene]) -> dict[str, Any]:
    """A row of the table."""
    print(f"{name}: {len(truth)} images", file=sys.stderr)
    shares = s.accuracy(s.read(images), truth)
    return {"images": name, "n": len(truth)} | {key: round(100 * value, 2) for key, value in shares.items()}


def identities() -> list[dict[str, Any]]:
    """Identity of new subjects in their own photos, in those of others, and in ordinary scenes."""
    found: dict[str, list[float]] = {"own photos": [], "own, blurred and cast": [], "others' photos": [], "scenes": []}
    ordinary = s.render(s.sample(60, SEED + 20, split="all"))
    told = []
    for k in range(SUBJECTS):
        photos = s.photos(k, 6, SEED)
        worse = s.degrade(s.degrade(photos.images, "blur"), "cast")
        found["own photos"] += s.identity(photos.images, k).tolist()
        found["own, blurred and cast"] += s.identity(worse, k).tolist()
        for other in (1, 4, 10):  # of another class, of the same, of the same colours
            found["others' photos"] += s.identity(photos.images, (k + other) % SUBJECTS).tolist()
        found["scenes"] += s.identity(ordinary, k).tolist()
        told += [
            a.background.name == b.background.name
            for a, b in zip(s.read(photos.images).scenes, photos.scenes, strict=True)
        ]
    rows = []
    for name, values in found.items():
        low, middle, high = np.quantile(values, [0.01, 0.5, 0.99])
        row = {"images": name, "n": len(values), "1 %": low, "median": middle, "99 %": high}
        rows.append({k: v if isinstance(v, str | int) else round(float(v), 3) for k, v in row.items()})
        rows[-1]["0.5 or more"] = round(float(np.mean(np.array(values) >= 0.5)), 4)
    rows[0]["background right"] = round(float(np.mean(told)), 4)
    return rows


def sheet(path: Path) -> None:
    """The picture of the documentation: scenes, styles, subjects."""
    some = s.sample(24, 2)
    one = s.Scene(
        (s.Thing("star", "yellow", x=0.3, y=0.6), s.Thing("circle", "red", "striped", x=0.72, y=0.4)),
        s.Background("blue"),
    )
    styles = [replace(one, style=style) for style in s.STYLES]
    places = [replace(one, background=s.Background(place=place)) for place in s.PLACES]
    grounds = [s.Background("green", "dotted"), s.Background("purple", fade="black")]
    rest = [replace(one, background=ground) for ground in grounds]
    photos = np.concatenate([s.photos(k, 4, 1).images for k in (0, 4, 7)])
    picture = mosaic(np.concatenate([s.render([*some, *styles, *places, *rest]), photos]), 12)
    path.write_bytes(encode_png((picture * 255 + 0.5).astype(np.uint8)))


def main() -> int:
    """Runs everything and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=2000, help="of each row of accuracies (2000)")
    parser.add_argument("--vae", type=Path, help="folder of an autoencoder whose images are read too")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--sheet", type=Path, help="write only the picture of the documentation, to this file")
    given = parser.parse_args()
    if given.sheet:
        sheet(given.sheet)
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows, read, known = speeds(given.rounds), readings(given.images, given.vae), identities()
    show("A second of one core, at 64x64", rows)
    show("Percent read back", read)
    show("Identity of new subjects", known)
    command = f"python -m benchmarks.scenes --rounds {given.rounds} --images {given.images}"
    command += "" if given.vae is None else " --vae VAE"
    tables = {"rows": rows, "oracle": read, "identity": known}
    write_json(given.out, {"command": command, **tables, "provenance": provenance()})
    parts = [f"`{command}`", markdown(rows), "Percent read back:", markdown(read), "Identity:", markdown(known)]
    write_text(given.out.with_suffix(".md"), "\n\n".join(parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
