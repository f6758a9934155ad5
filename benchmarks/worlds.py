"""Images a second of each world at 64x64 on one core, and what the oracle reads back.

    taskset -c 1 python -m benchmarks.worlds           # writes results/benchmarks/worlds.json

Rounds of all variants in turn; medians, per second of processor time (the core may be shared; one thread). "drawn" is
`World.images` on rows at random once all that is kept has been made, "first thousand" a fresh world (geometry that is
kept is cast then), "singly" one image a call, "kept file" the memory-mapped file, "plain" the straightforward drawing:
sprites from the inequalities on three times as many pixels, rooms and cars cast anew for each image. The oracle reads
images at random as they are, and blurred (one pixel) with noise (0.1).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from benchmarks.attention.report import markdown, provenance, show, write_json, write_text
from unbraid.data import worlds
from unbraid.data.worlds import World, cars, room
from unbraid.data.worlds.sprites import RADIUS

OUT = Path(__file__).resolve().parents[1] / "results" / "benchmarks" / "worlds.json"
BAR = 2000
SIDE = 64
KEPT = 4000  # images in the memory-mapped file


def plain_sprites(rows: np.ndarray) -> np.ndarray:
    """As one would write it: each image on three times as many pixels, averaged."""
    fine = 3 * SIDE
    at = (np.arange(fine) + 0.5) / fine
    made = []
    for shape, scale, turn, x, y in rows:
        r, t = RADIUS * (0.5 + 0.1 * scale), 2 * np.pi * turn / 40
        dx, dy = at[None, :] - (0.2 + 0.6 * x / 31), at[:, None] - (0.2 + 0.6 * y / 31)
        u, w = (dx * np.cos(t) + dy * np.sin(t)) / r, (dy * np.cos(t) - dx * np.sin(t)) / r
        if shape == 0:
            inside = np.maximum(abs(u), abs(w)) < 0.9
        elif shape == 1:
            inside = (u / 1.35) ** 2 + (w / 0.75) ** 2 < 1
        else:
            a, b = 1.1 * u, 0.1 - 1.15 * w
            inside = (a**2 + b**2 - 1) ** 3 - a**2 * b**3 < 0
        made.append(inside.reshape(SIDE, 3, SIDE, 3).mean(axis=(1, 3)))
    return np.stack(made)


def plain_room(rows: np.ndarray) -> np.ndarray:
    """Each image cast anew."""
    return np.stack(
        [room.cast(SIDE, room.SHAPES[r[4]], 0.75 + 0.5 * r[3] / 7, -30 + 60 * r[5] / 14).sum(axis=0) for r in rows]
    )


def plain_cars(rows: np.ndarray) -> np.ndarray:
    """Each image cast anew."""
    return np.stack([cars.cast(SIDE, 8 + 11 * r[0], 15 * r[1], int(r[2]) % cars.BODIES) for r in rows])


PLAIN = {"sprites": plain_sprites, "shapes3d": plain_room, "cars3d": plain_cars}


def rate(call: Callable[[], Any], images: int) -> float:
    """Images a second of one call."""
    start = time.process_time()
    call()
    return images / (time.process_time() - start)


def speeds(name: str, rounds: int, folder: str) -> dict[str, Any]:
    """One world's row."""
    world = worlds.make(name, SIDE)
    draws = [world.sample(min(1000, len(world)), seed) for seed in range(rounds + 1)]
    kept = world.sample(min(KEPT, len(world)), 0).cached(folder, progress=False)
    fresh = worlds.make(name, SIDE)
    for store in (room.views, cars.views):
        store.cache_clear()
    fresh = worlds.make(name, SIDE)
    first = rate(lambda: fresh.subset(draws_index(draws[0])).x, len(draws[0]))
    for store in (room.views, cars.views):  # all geometry, so that rounds measure drawing only
        store.cache_clear()
    world = worlds.make(name, SIDE)
    warm(world)
    found: dict[str, list[float]] = {"drawn": [], "singly": [], "kept": [], "plain": []}
    for number in range(rounds):
        some = world.subset(draws_index(draws[number]))
        found["drawn"].append(rate(lambda some=some: some.x, len(some)))
        found["singly"].append(rate(lambda some=some: [some[i] for i in range(100)], 100))
        picked = kept.sample(min(1000, len(kept)), number)
        found["kept"].append(rate(lambda picked=picked: np.array(picked.x), len(picked)))
        if name in PLAIN:
            rows = draws[number].factors[:20]
            found["plain"].append(rate(lambda rows=rows: PLAIN[name](rows), len(rows)))
    middle = {key: statistics.median(values) if values else None for key, values in found.items()}
    drawn, plain = middle["drawn"] or 0.0, middle["plain"]
    return {
        "world": name, "images/s drawn": round(drawn), "slowest": round(min(found["drawn"])),
        "fastest": round(max(found["drawn"])), "first thousand": round(first), "singly": round(middle["singly"] or 0),
        "kept file": round(middle["kept"] or 0), "plain": None if plain is None else round(plain),
        "x plain": None if plain is None else round(drawn / plain, 1), "bar": BAR, "met": drawn >= BAR,
    }  # fmt: skip


def draws_index(data: Any) -> np.ndarray:
    """The rows of the world that a sample took."""
    return data._index


def warm(world: World) -> None:
    """Draw until all that is kept has been made."""
    if world.strides is not None and len(world) > 10_000 and world.name in ("shapes3d", "cars3d"):
        sizes = world.sizes
        if world.name == "shapes3d":
            world.render(range(int(np.prod(sizes[3:]))))  # type: ignore[arg-type]
        else:
            world.render(np.flatnonzero(world.factors[:, 2] < cars.BODIES))
    else:
        world.render(range(min(256, len(world))))


def readings(name: str, count: int) -> dict[str, Any]:
    """What the oracle reads off images at random."""
    world = worlds.make(name) if name in ("discs", "digits") else worlds.make(name, SIDE)
    some = world.sample(min(count, len(world)), 7)
    images = some.x
    row: dict[str, Any] = {"world": name, "images": len(some)}
    start = time.process_time()
    world.read(images[:1])
    row["first, s"] = round(time.process_time() - start, 2)
    noise = 0.1 * np.random.default_rng(0).standard_normal(images.shape).astype(np.float32)
    softened = gaussian_filter(images, (0, 0, 1, 1)) + noise
    for label, given in (("as drawn", images), ("blur + noise", softened)):
        start = time.process_time()
        read = world.read(given)
        row[f"images/s, {label}"] = round(len(some) / (time.process_time() - start), 1)
        if None in world.sizes:
            row[f"{label}, mean error"] = round(float(abs(read.factors - some.factors).mean()), 4)
        else:
            same = world.same(read.factors, some.factors)
            row[f"all factors right, {label}"] = round(float(same.all(axis=1).mean()), 3)
            row[f"worst factor, {label}"] = round(float(same.mean(axis=0).min()), 3)
    return row


def main() -> int:
    """Runs all worlds and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--read", type=int, default=200, help="images for the oracle; a quarter of it for mpi3d")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows, read = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in worlds.names():
            rows.append(speeds(name, given.rounds, folder))
            print(f"{name}: {rows[-1]['images/s drawn']:,} images/s", file=sys.stderr)
    for name in worlds.names():
        read.append(readings(name, given.read // 4 if name == "mpi3d" else given.read))
        print(f"{name}: oracle done", file=sys.stderr)
    show("Images a second at 64x64, one core", rows)
    show("The oracle", read)
    command = f"OMP_NUM_THREADS=1 taskset -c 1 python -m benchmarks.worlds --rounds {given.rounds} --read {given.read}"
    write_json(given.out, {"command": command, "rows": rows, "oracle": read, "provenance": provenance()})
    write_text(given.out.with_suffix(".md"), f"`{command}`\n\n{markdown(rows)}\n\n{markdown(read)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
