"""Trains the oracle's three networks on scenes, whole and worsened: ``python -m unbraid.data.scenes.training``.

Needs torch; the oracle itself does not. Each network is trained on what the one before it answers, as it will meet it.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unbraid.core.progress import bar
from unbraid.data.scenes import features, reading
from unbraid.data.scenes.damage import KINDS, degrade
from unbraid.data.scenes.features import SIDE
from unbraid.data.scenes.nets import WEIGHTS, Net, nets, packed
from unbraid.data.scenes.paint import masks, render
from unbraid.data.scenes.sampling import BACKGROUNDS, sample
from unbraid.data.scenes.scene import COLOURS, FADES, SHAPES, SIZES, STYLES, TEXTURES, Scene

CLEAN = 0.5  # of the images are left as they are
CHUNK = 64


def scenes(n: int, seed: int) -> list[Scene]:
    """Scenes of every style alike, one to three things, a few with none."""
    made = sample(n, seed, (1, 3), "all")
    rng = np.random.default_rng([seed, 1])
    for k in range(n):
        style = STYLES[int(rng.integers(len(STYLES)))] if rng.random() < 0.7 else made[k].style
        made[k] = replace(made[k], style=style, things=() if rng.random() < 0.03 else made[k].things)
    return made


def worsened(images: np.ndarray, seed: int) -> np.ndarray:
    """Half of the images as they are, the others worsened in one or two ways."""
    rng = np.random.default_rng([seed, 2])
    made = images.copy()
    for k in range(len(images)):
        if rng.random() < CLEAN:
            continue
        for kind in rng.permutation(KINDS)[: int(rng.integers(1, 3))]:
            most = 1.8 if kind == "small" else 1.3
            made[k : k + 1] = degrade(
                made[k : k + 1], str(kind), float(rng.uniform(0.3, most)), int(rng.integers(1 << 30))
            )
    return made


def fit(
    x: np.ndarray, targets: dict[str, np.ndarray], sizes: dict[str, int], hidden: Sequence[int], epochs: int
) -> Net:
    """A network trained on [n, f] features; a target of -1 is left out.

    Args:
        x: features.
        targets: head -> [n] class numbers.
        sizes: head -> classes.
        hidden: widths of the layers.
        epochs: how often each row is seen.
    """
    import torch
    from torch import nn

    torch.manual_seed(0)
    data = torch.from_numpy(np.ascontiguousarray(x, np.float32))
    goal = {name: torch.from_numpy(y.astype(np.int64)) for name, y in targets.items()}
    centre, width = data.mean(0), data.std(0) + 0.05
    widths = [x.shape[1], *hidden]
    layers: Any = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
    heads: Any = nn.ModuleDict({name: nn.Linear(widths[-1], size) for name, size in sizes.items()})
    weights = [*layers.parameters(), *heads.parameters()]
    batch = 512 if len(data) > 100_000 else 256
    steps = epochs * (len(data) // batch)
    best = torch.optim.AdamW(weights, lr=2e-3, weight_decay=0.02)
    plan = torch.optim.lr_scheduler.OneCycleLR(best, 2e-3, total_steps=steps, pct_start=0.1)
    drop = nn.Dropout(0.1)
    with bar(None, f"training on {len(data):,} rows", steps) as tick:
        for step in range(steps):
            if step % (len(data) // batch) == 0:
                order = torch.randperm(len(data))
            at = order[step % (len(data) // batch) * batch :][:batch]
            h = (data[at] - centre) / width
            for layer in layers:
                h = drop(torch.relu(layer(h)))
            loss = sum(
                nn.functional.cross_entropy(
                    head(h), goal[name][at], ignore_index=-1, label_smoothing=0.01, reduction="sum"
                )
                / (goal[name][at] >= 0).sum().clamp(min=1)
                for name, head in heads.items()
            )
            best.zero_grad()
            loss.backward()  # type: ignore[union-attr]
            best.step()
            plan.step()
            tick(1)
    pairs = [(layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()) for layer in layers]
    first, bias = pairs[0]
    scale = first / width.numpy()
    pairs[0] = (scale, bias - scale @ centre.numpy())  # features come as they are
    ends = {
        name: (head.weight.detach().numpy().copy(), head.bias.detach().numpy().copy()) for name, head in heads.items()
    }
    return Net(pairs, ends)


def image_targets(listed: Sequence[Scene]) -> dict[str, np.ndarray]:
    """Class numbers of backgrounds and styles; -1 for texture and fade of a place."""
    rows = []
    for scene in listed:
        ground = scene.background
        rows.append(
            [
                BACKGROUNDS.index(ground.name),
                -1 if ground.place else TEXTURES.index(ground.texture),
                -1 if ground.place else FADES.index(ground.fade),
                STYLES.index(scene.style),
            ]
        )
    return dict(zip(features.WHOLE, np.array(rows).T, strict=True))


def train_whole(n: int, epochs: int) -> Net:
    """The network that reads background and style."""
    listed = scenes(n, 101)
    x = []
    with bar(None, "images as wholes", n) as tick:
        for start in range(0, n, CHUNK):
            part = listed[start : start + CHUNK]
            x.append(features.whole(worsened(render(part, SIDE), start)))
            tick(len(part))
    sizes = {name: len(words) for name, words in features.WHOLE.items()}
    return fit(np.concatenate(x), image_targets(listed), sizes, (256, 96), epochs)


def train_pixel(n: int, epochs: int, each: int = 128) -> Net:
    """The network that gives pixels to things."""
    listed = scenes(n, 202)
    rng = np.random.default_rng(3)
    x, y = [], []
    with bar(None, "pixels", n) as tick:
        for start in range(0, n, CHUNK):
            part = listed[start : start + CHUNK]
            images = worsened(render(part, SIDE), start + 1)
            answers = reading.wholes(images)
            inputs = np.concatenate([features.patches(images), features.expected(answers)], axis=3)
            known = features.conditions(answers)
            cover = masks(part, SIDE)
            for k, scene in enumerate(part):
                owner = np.zeros((SIDE, SIDE), np.int64)
                for j, thing in enumerate(scene.things):
                    owner[cover[k, j] > 0.5] = 1 + COLOURS.index(thing.colour)
                near = (cover[k].sum(axis=0) > 0).reshape(-1)
                chance = np.where(near, 1.0, 0.3)
                at = rng.choice(SIDE * SIDE, each, replace=False, p=chance / chance.sum())
                x.append(
                    np.concatenate([inputs[k].reshape(SIDE * SIDE, -1)[at], np.repeat(known[k : k + 1], each, 0)], 1)
                )
                y.append(owner.reshape(-1)[at])
            tick(len(part))
    return fit(np.concatenate(x), {"owner": np.concatenate(y)}, {"owner": 1 + len(COLOURS)}, (96, 48), epochs)


def thing_rows(n: int, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray], float]:
    """What the third network sees and should say, and the share of things that were proposed."""
    listed = scenes(n, seed)
    x: list[np.ndarray] = []
    y: list[list[int]] = []
    hit = total = 0
    with bar(None, "things", n) as tick:
        for start in range(0, n, CHUNK):
            part = listed[start : start + CHUNK]
            images = worsened(render(part, SIDE), start + 7 * seed)
            answers = reading.wholes(images)
            owners, known = reading.pixels(images, answers), features.conditions(answers)
            for k, scene in enumerate(part):
                found = reading.proposals(owners[k])
                taken = matched(found, scene)
                hit, total = hit + len(taken), total + len(scene.things)
                for j, place in enumerate(found):
                    x.append(reading.cutout(images[k], owners[k], place, known[k]))
                    y.append(_labels(scene, taken.get(j)))
            tick(len(part))
    names = ("real", "shape", "colour", "texture", "size", "covered", "style")
    return np.stack(x), dict(zip(names, np.array(y).T, strict=True)), hit / total


def matched(found: Sequence[reading.Found], scene: Scene) -> dict[int, int]:
    """Number of a proposal -> number of the thing it is, each thing once, the best proposal first."""
    made: dict[int, int] = {}
    for same in (True, False):  # those of the right colour first
        for j, place in enumerate(found):
            for k, thing in enumerate(scene.things):
                near = np.hypot(place.x - thing.x, place.y - thing.y) < 0.45 * thing.radius
                right = (COLOURS[place.colour] == thing.colour) == same
                if near and right and j not in made and k not in made.values():
                    made[j] = k
    return made


def _labels(scene: Scene, k: int | None) -> list[int]:
    if k is None:
        return [0, -1, -1, -1, -1, -1, -1]
    thing = scene.things[k]
    covered = any(
        scene.relation(k, j) == "behind" or scene.relation(j, k) == "inside" for j in range(k + 1, len(scene.things))
    )
    numbers = [SHAPES.index(thing.shape), COLOURS.index(thing.colour), TEXTURES.index(thing.texture)]
    return [1, *numbers, list(SIZES).index(thing.size), int(covered), STYLES.index(scene.style)]


def save(made: dict[str, Net], path: Path = WEIGHTS) -> None:
    """Write networks as half-precision safetensors, whole or not at all."""
    import os

    from safetensors.numpy import save_file

    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file({key: np.ascontiguousarray(value, np.float16) for key, value in packed(made).items()}, draft)
    os.replace(draft, path)
    nets.cache_clear()


def main() -> int:
    """Train all three, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of images (1)")
    parser.add_argument("--only", default="whole,pixel,thing", help="which networks, in order")
    given = parser.parse_args()
    made: dict[str, Net] = dict(nets()) if WEIGHTS.exists() else {}
    steps: dict[str, Any] = {
        "whole": lambda: train_whole(int(40_000 * given.scale), 12),
        "pixel": lambda: train_pixel(int(9_000 * given.scale), 8),
        "thing": lambda: train_thing(int(40_000 * given.scale), 12),
    }
    for name in given.only.split(","):
        made[name] = steps[name]()
        save(made)
    return 0


def train_thing(n: int, epochs: int) -> Net:
    """The network that decides what a thing is."""
    x, y, share = thing_rows(n, 303)
    print(f"{len(x):,} proposals; {share:.4f} of the things were proposed", file=sys.stderr)
    sizes = {"real": 2, "shape": len(SHAPES), "colour": len(COLOURS), "texture": len(TEXTURES), "size": len(SIZES)}
    return fit(x, y, sizes | {"covered": 2, "style": len(STYLES)}, (224, 64), epochs)


if __name__ == "__main__":
    sys.exit(main())
