"""The study behind `unbraid run xfactors`: swaps on worlds with known factors, next to what one would try instead."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unbraid.core.errors import UnbraidError

if TYPE_CHECKING:
    import numpy as np

    from unbraid.core.pieces import Pieces
    from unbraid.core.result import Result
    from unbraid.data.worlds import World

# side, values of the factors where fewer than the original's, and the factors with a block; S is left the rest
WORLDS: dict[str, tuple[int, dict[str, int], tuple[str, ...]]] = {
    "sprites": (
        16, {"colour": 6, "shape": 3, "scale": 3, "orientation": 1, "posX": 6, "posY": 6},
        ("shape", "scale", "posX", "posY"),
    ),
    "shapes3d": (
        16, {"floor hue": 5, "wall hue": 5, "object hue": 5, "scale": 3, "shape": 4, "orientation": 3},
        ("floor hue", "wall hue", "object hue", "scale", "shape"),
    ),
    "cars3d": (16, {"elevation": 4, "azimuth": 12, "identity": 40}, ("elevation", "azimuth")),
}  # fmt: skip
# settings that differ from XFactors' own; chosen on seeds from 100 on
METHODS: dict[str, dict[str, Any]] = {
    "XFactors": {},
    "500 / 100": {"beta_s": 500.0, "beta_t": 100.0},
    "capacity": {"capacity": "auto", "beta_t": 100.0},
    "leakage": {"leakage": 0.01, "beta_t": 100.0},
    "exchange": {"exchange": 0.5, "capacity": "auto"},
    "outside": {"form": "outside"},
    "classifier": {"supervision": "classifier"},
    "no contrast": {"supervision": "none"},
    "Ada-GVAE": {},
    "beta-VAE": {},
}
PAIRED = {"Ada-GVAE": True, "beta-VAE": False}
BETA = 1.0  # of the two VAEs without labels, whose loss is a sum over pixels
TRAINING = 0.8
SHOWN = 6  # swaps in the picture


@dataclass(eq=False)
class Findings:
    """What a study measured.

    Attributes:
        rows: one per world, method and seed.
        shown: pictures and the probe of one model per world, by (world, method).
        read_back: pieces of an earlier run.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    shown: dict[tuple[str, str], dict[str, np.ndarray]] = field(default_factory=dict)
    read_back: int = 0


def run(
    worlds: Sequence[str] = ("sprites",),
    methods: Sequence[str] = ("XFactors", "exchange", "no contrast"),
    seeds: int = 2,
    size: Literal["tiny", "small", "medium", "paper"] = "small",
    steps: int | None = None,
    dim: int = 2,
    rest: int = 8,
    tau: float = 0.1,
    pairs: int = 500,
    keep: Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Result:
    """Train codes in blocks on worlds with known factors, swap blocks, and let the world's oracle say what changed.

    Args:
        worlds: Out of sprites, shapes3d and cars3d, images of 16 x 16, with fewer values per factor.
        methods: Out of XFactors, 500 / 100, capacity, leakage, exchange, outside, classifier, no contrast, Ada-GVAE,
            beta-VAE.
        seeds: Trainings of each.
        size: Network and length of training; tiny takes seconds and learns little, small a minute a model.
        steps: Steps of each training; by default those of the size.
        dim: Dimensions of each factor's block.
        rest: Dimensions of the residual block.
        tau: Temperature of the contrast.
        pairs: Swaps per factor that the oracle reads.
        keep: Folder for finished models; a run that is started again with it goes on where it stopped.
        seed: First of the seeds; settings were chosen on seed 100.
        progress: Show progress on stderr; by default when that is a terminal.

    Returns:
        Transfer and keep of swaps, probes of blocks, the paper's claims, and pictures.
    """
    given, start = dict(locals()), time.perf_counter()
    check(worlds, methods, seeds, pairs, dim, rest, tau, steps, size)
    from unbraid.core.pieces import Pieces
    from unbraid.core.progress import bar
    from unbraid.systems.xfactors.report import make_result
    from unbraid.systems.xfactors.system import SIZES

    store, f = Pieces(keep, {"study": 2}), Findings()
    settings = {
        "size": size, "steps": steps or SIZES[size][2], "dim": dim, "rest": rest, "tau": tau, "pairs": pairs
    }  # fmt: skip
    total = len(worlds) * len(methods) * seeds
    with bar(progress, "Training models", total) as tick:
        for name in worlds:
            for number in range(seed, seed + seeds):  # all methods of a seed, so that a run cut short compares them
                for method in methods:
                    key = {"world": name, "method": method, "seed": number, **settings}
                    row, pictures = piece(store, key, partial(measure, name, method, number, settings))
                    f.rows.append(row)
                    f.shown.setdefault((name, method), pictures)
                    tick()
    f.read_back = store.read_back
    return make_result(f, given, time.perf_counter() - start)


def check(
    worlds: Sequence[str], methods: Sequence[str], seeds: int, pairs: int, dim: int, rest: int, tau: float,
    steps: int | None, size: str,
) -> None:  # fmt: skip
    """Refuses what cannot be run, before anything is.

    Raises:
        UnbraidError: which argument, and what is accepted.
    """
    for what, listed, known in (("worlds", worlds, WORLDS), ("methods", methods, METHODS)):
        unknown = [n for n in listed if n not in known]
        if unknown or not listed or len(set(listed)) < len(listed):
            raise UnbraidError(f"{what} is {', '.join(listed) or 'empty'}; choose from {', '.join(known)}, each once.")
    numbers = {"seeds": seeds, "pairs": pairs, "dim": dim, "rest": rest, "steps": 1 if steps is None else steps}
    for name, value in numbers.items():
        if value < 1:
            raise UnbraidError(f"{name} is {value}; it must be at least 1.")
    if not tau > 0:
        raise UnbraidError(f"tau is {tau}; a temperature must be positive.")
    if size not in ("tiny", "small", "medium", "paper"):
        raise UnbraidError(f"size is {size!r}; it must be tiny, small, medium or paper.")


def piece(
    store: Pieces, key: dict[str, Any], make: Callable[[], tuple[dict[str, Any], dict[str, np.ndarray]]]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A finished model's row and pictures, or new ones, which are kept."""
    row, pictures = store.load("row", key), store.load_arrays("pictures", key)
    if row is None or pictures is None:
        row, pictures = make()
        store.save_arrays("pictures", key, pictures)
        store.save("row", key, row)
    return row, pictures


def world_of(name: str) -> tuple[World, tuple[str, ...]]:
    """A world of the study and the factors that get a block."""
    from unbraid.data.worlds import make

    side, sizes, targets = WORLDS[name]
    return make(name, side, sizes=sizes), targets


def measure(
    name: str, method: str, seed: int, settings: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Train one model and measure it on held-out images."""
    import numpy as np

    from unbraid.metrics.disentanglement import dci
    from unbraid.systems.xfactors.baselines import assigned, train_on_pairs
    from unbraid.systems.xfactors.measuring import quality
    from unbraid.systems.xfactors.system import SIZES, XFactors

    world, targets = world_of(name)
    order = np.random.default_rng(seed).permutation(len(world))
    cut = int(TRAINING * len(world))
    data, held = world.subset(order[:cut]), order[cut:]
    began = time.perf_counter()
    dim, rest, size, steps = (settings[k] for k in ("dim", "rest", "size", "steps"))
    if method in PAIRED:
        latents = rest + dim * len(targets)
        kind, width, _, batch = SIZES[size]
        vae: Any = train_on_pairs(data, latents, BETA, PAIRED[method], steps, batch, kind, width, seed)
        members = assigned(vae, data, targets, dim)
    else:
        model = XFactors(
            targets=targets, dim=dim, rest=rest, tau=settings["tau"], size=size, steps=steps, seed=seed,
            **METHODS[method],
        ).fit(data, progress=False)  # fmt: skip
        vae, members = model.vae_, {n: list(range(*span)) for n, span in model.blocks_.items()}
    seconds = time.perf_counter() - began
    found = quality(vae, {}, world, held, settings["pairs"], seed, members)
    importance = dci(  # the learner of the official evaluation
        encoded(vae, world, order), world.factors[order], learner="rf_regression",
        blocks=[list(m) for m in members.values()], seed=seed,
    )  # fmt: skip
    row = {
        "world": name, "method": method, "seed": seed, **found.row(),
        **{k: float(importance[f"dci_{k}[rf_regression]"]) for k in "dci"}, "seconds": round(seconds, 1),
        "per factor": dict(zip(targets, found.transfer.tolist(), strict=True)), "rest": found.rest,
    }  # fmt: skip
    return row, {"probe": found.probe, "chance": found.chance, **pictures(vae, world, held, members, targets)}


def encoded(vae: Any, world: World, rows: np.ndarray) -> np.ndarray:
    """[n, J] means of these images."""
    from unbraid.layers.vae import encode_all

    return encode_all(vae, world.render(rows))[0]


def pictures(
    vae: Any, world: World, held: np.ndarray, members: dict[str, list[int]], targets: Sequence[str]
) -> dict[str, np.ndarray]:
    """Swaps [pairs, 2 + blocks, C, H, W] (reference, source, and one swap per block, S last), as 256 levels."""
    import numpy as np

    from unbraid.systems.xfactors.measuring import decoded

    one, other = held[:SHOWN], held[SHOWN : 2 * SHOWN]
    mu, mu_2 = encoded(vae, world, one), encoded(vae, world, other)
    columns = [world.render(one), world.render(other)]
    for name in [*targets, "S"]:
        mixed = mu.copy()
        mixed[:, members[name]] = mu_2[:, members[name]]
        columns.append(decoded(vae, mixed))
    return {"swaps": (np.stack(columns, 1).clip(0, 1) * 255).round().astype(np.uint8)}
