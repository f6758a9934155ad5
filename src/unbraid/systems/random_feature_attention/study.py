"""The study behind `unbraid run random_feature_attention`: error over samples, heads and keys, family by family."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unbraid.core.errors import UnbraidError

if TYPE_CHECKING:
    from unbraid.core.pieces import Pieces
    from unbraid.core.result import Result
    from unbraid.systems.random_feature_attention.curves import World
    from unbraid.systems.random_feature_attention.degrees import Degrees
    from unbraid.systems.random_feature_attention.targets import Target

PARTS = ("exact", "curves", "keys", "mixing", "degrees", "frozen")
DEFAULT_PARTS = ("exact", "curves", "keys", "mixing", "degrees")
# chosen on seed 100; sizes of the sheet's table are in all but tiny
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "targets": ("power:1", "power:2", "correlated:1:1"), "sizes": (40, 80, 160), "heads": (64,), "d": 5, "keys": 5,
        "test": 200, "keys_d": 4, "keys_n": (2, 4), "most": 400, "mixing_n": 80, "gammas": (0.0, 1.0),
        "dtype": "float64",
    },
    "small": {
        "targets": ("power:1", "power:2", "correlated:1:1", "mixed:0:3"), "sizes": (200, 400, 800, 2000),
        "heads": (500,), "d": 16, "keys": 16, "test": 1000, "keys_d": 6, "keys_n": (4, 8, 16), "most": 6000,
        "mixing_n": 400, "gammas": (0.0, 0.25, 0.5, 0.75, 1.0), "dtype": "float64",
    },
    "full": {
        "targets": (
            "power:1", "power:2", "power:4", "correlated:1:1", "correlated:2:1", "mixed:0:2", "mixed:0:3", "mixed:0.5:3"
        ),
        "sizes": (200, 400, 800, 2000, 5000, 10000, 20000), "heads": (1000, 5000, 20000), "d": 16, "keys": 16,
        "test": 2000, "keys_d": 16, "keys_n": (4, 8, 16), "most": 33000, "mixing_n": 2000,
        "gammas": (0.0, 0.25, 0.5, 0.75, 1.0), "dtype": "float32",
    },
}  # fmt: skip
LARGEST = 40_000
FROZEN_SEEDS = 3  # at most: nine trainings a target


@dataclass(eq=False)
class Findings:
    """What was measured, before it is put into words.

    Attributes:
        rows: of curves: model, target, n, heads, seed, error, penalty.
        kernel: errors of Gram matrices.
        symmetry: changes of predictions.
        needed: samples for half the error.
        mixing: rows of the third family, with the bias estimated too.
        degrees: of each target.
        frozen: rows of frozen layers.
        read_back: pieces found finished.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    kernel: list[dict[str, Any]] = field(default_factory=list)
    symmetry: list[dict[str, Any]] = field(default_factory=list)
    needed: list[dict[str, Any]] = field(default_factory=list)
    mixing: list[dict[str, Any]] = field(default_factory=list)
    degrees: dict[str, Degrees] = field(default_factory=dict)
    frozen: list[dict[str, Any]] = field(default_factory=list)
    read_back: int = 0


def run(
    size: Literal["tiny", "small", "full"] = "small",
    parts: Sequence[str] = DEFAULT_PARTS,
    targets: Sequence[str] | None = None,
    sizes: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    models: Sequence[str] = ("RFA", "BRFA", "RFMLP"),
    d: int | None = None,
    keys: int | None = None,
    keys_d: int | None = None,
    most: int | None = None,
    mixing_n: int | None = None,
    images: int = 600,
    steps: int = 150,
    seeds: int = 3,
    dtype: Literal["float32", "float64"] | None = None,
    device: str = "cpu",
    data: Path | None = None,
    keep: Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Result:
    """Learn averages over keys with frozen random attention and with a random-feature MLP; test error over samples.

    Args:
        size: Preset of what is not given; tiny takes seconds and tests nothing, small minutes, full hours of a core.
        parts: Out of exact, curves, keys, mixing, degrees and frozen (a layer of tiny-clip, at most 3 seeds; minutes).
        targets: As power:2, correlated:1:1 or mixed:0.5:3.
        sizes: Training inputs of the curves.
        heads: Heads M of the curves; RFMLP has M(d + 1) neurons.
        models: Out of RFA, BRFA, RFMLP, RFA kernel, BRFA kernel and RFMLP kernel.
        d: Width of a token.
        keys: Keys N of an input.
        keys_d: Width of a token where samples are counted for several N.
        most: Greatest number of samples that is tried there.
        mixing_n: Training inputs of the third family, whose matrix moves from the identity to a random one.
        images: Scenes of the part frozen.
        steps: Of each training of the part frozen.
        seeds: Repetitions, each with its own inputs, targets and weights.
        dtype: Of features and their products; systems are solved in float64.
        device: Where to work, such as cpu or cuda.
        data: Your own data instead: an .npz or .safetensors file with X (inputs, tokens, width; query first), y and, if
            keys are missing, mask; the page is then the report on them, with seeds as splits.
        keep: Folder for finished pieces; a run that is started again with the same folder goes on where it stopped.
        seed: First of the seeds; settings were chosen on seed 100.
        progress: Show progress on stderr; by default when that is a terminal.

    Returns:
        Curves with slopes, samples needed over keys, the mixing family, degrees of the targets, and the claims.
    """
    params, start = dict(locals()), time.perf_counter()
    if size not in PRESETS:
        raise UnbraidError(f"size is {size!r}; it must be one of {', '.join(PRESETS)}.")
    given = {name: value for name, value in params.items() if value is not None}
    chosen = {**PRESETS[size], **given}
    check(chosen)
    if data is not None:
        from unbraid.systems.random_feature_attention.complexity import report_file

        return report_file(data, sizes, min(heads or (300,)), seeds, seed, progress)
    from unbraid.core.pieces import Pieces
    from unbraid.core.progress import bar
    from unbraid.systems.random_feature_attention.curves import World
    from unbraid.systems.random_feature_attention.report import make_result
    from unbraid.systems.random_feature_attention.ridge import check_device
    from unbraid.systems.random_feature_attention.targets import target

    world = World(chosen["d"], chosen["keys"], chosen["test"], chosen["dtype"], device)
    check_device(device)
    store, found = Pieces(keep), Findings()
    wanted = [target(text) for text in chosen["targets"]]
    numbers = range(seed, seed + seeds)
    with bar(progress, "Learning with random features", 1000 * len(work := plan(chosen, numbers))) as tick:
        for job in work:
            done = [0.0]

            def step(share: float, done: list[float] = done) -> None:
                more = min(share, 1 - done[0])
                done[0] += more
                tick(round(1000 * more))

            job(found, world, wanted, chosen, store, step)
            step(1.0)
    found.read_back = store.read_back
    return make_result(found, {**chosen, "seed": seed}, time.perf_counter() - start)


Job = Callable[..., None]


def plan(chosen: dict[str, Any], numbers: Sequence[int]) -> list[Job]:
    """The pieces of work, in an order in which early ones are of use alone."""
    from functools import partial

    work: list[Job] = []
    for s in numbers:
        if "exact" in chosen["parts"]:
            work.append(partial(_exact, seed=s))
        if "curves" in chosen["parts"]:
            work += [partial(_curve, seed=s, model=model) for model in chosen["models"]]
        if "mixing" in chosen["parts"]:
            work.append(partial(_mixing, seed=s))
        if "keys" in chosen["parts"]:
            work += [
                partial(_needed, seed=s, model=m, count=n) for n in chosen["keys_n"] for m in ("RFA", "RFMLP kernel")
            ]
    work += [_degrees] if "degrees" in chosen["parts"] else []
    return work + ([partial(_frozen, seeds=tuple(numbers)[:FROZEN_SEEDS])] if "frozen" in chosen["parts"] else [])


def _exact(f: Findings, world: World, targets: Any, c: dict[str, Any], store: Pieces, tick: Any, seed: int) -> None:
    from unbraid.systems.random_feature_attention.measuring import DRAWS, kernel_errors, symmetries

    f.kernel += store.get(
        "kernel", {**world.key, "seed": seed, "draws": DRAWS}, lambda: kernel_errors(world.d, world.keys, seed)
    )
    f.symmetry += symmetries(world.d, world.keys, min(c["heads"]), seed)


def _curve(
    f: Findings, world: World, targets: Sequence[Target], c: dict[str, Any], store: Pieces, tick: Any, seed: int,
    model: str,
) -> None:  # fmt: skip
    from unbraid.systems.random_feature_attention.curves import curve

    f.rows += curve(model, world, targets, sorted(set(c["sizes"])), sorted(set(c["heads"])), seed, store, tick)


def _mixing(f: Findings, world: World, targets: Any, c: dict[str, Any], store: Pieces, tick: Any, seed: int) -> None:
    from unbraid.systems.random_feature_attention.curves import curve, data_biased
    from unbraid.systems.random_feature_attention.targets import Target

    mixed = [Target("mixed", p, gamma=gamma) for p in (1, 3) for gamma in c["gammas"]]
    n, m = c["mixing_n"], min(c["heads"])
    for model in ("RFA", "BRFA"):
        f.mixing += curve(model, world, mixed, [n], [m], seed, store, lambda share: tick(share / 6))
    f.mixing += data_biased(world, mixed, n, m, seed, store, lambda share: tick(share * 2 / 3))


def _needed(
    f: Findings, world: World, targets: Any, c: dict[str, Any], store: Pieces, tick: Any, seed: int, model: str,
    count: int,
) -> None:  # fmt: skip
    from dataclasses import replace

    from unbraid.systems.random_feature_attention.measuring import samples_needed

    where = replace(world, d=c["keys_d"], keys=count)
    f.needed.append(samples_needed(model, where, min(c["heads"]), c["most"], seed, store))


def _degrees(f: Findings, world: World, targets: Sequence[Target], c: dict[str, Any], store: Pieces, tick: Any) -> None:
    from unbraid.systems.random_feature_attention.measuring import all_degrees

    n = max(10, min(700, max(c["sizes"])))
    f.degrees = all_degrees(world, targets, n, c["seed"], lambda done: tick(done / len(targets)))


def _frozen(
    f: Findings, world: World, targets: Any, c: dict[str, Any], store: Pieces, tick: Any, seeds: tuple[int, ...]
) -> None:
    from unbraid.systems.random_feature_attention.measuring import frozen_rows

    f.frozen = frozen_rows(c["images"], c["steps"], seeds, store)


def check(c: dict[str, Any]) -> None:
    """Refuse what cannot work, before any work.

    Raises:
        UnbraidError: an unknown part, model or target, or a number beyond its bounds.
    """
    from unbraid.systems.random_feature_attention.curves import MODELS
    from unbraid.systems.random_feature_attention.targets import target

    for name, accepted in (("parts", PARTS), ("models", MODELS)):
        given = list(c[name])
        unknown = [one for one in given if one not in accepted]
        if unknown or not given or len(set(given)) < len(given):
            what = f"there is no {name[:-1]} {unknown[0]!r}" if unknown else f"{name} are {given}"
            raise UnbraidError(f"{what}; give different ones out of {', '.join(accepted)}.")
    if not c["targets"] or len({target(text).name for text in c["targets"]}) < len(c["targets"]):
        raise UnbraidError(f"targets are {list(c['targets'])}; give different ones, such as power:2,correlated:1:1.")
    bounds = {
        "sizes": (c["sizes"], 10, LARGEST), "heads": (c["heads"], 1, 10**6), "d": ([c["d"]], 2, 1_000),
        "keys": ([c["keys"]], 1, 1_000), "keys-d": ([c["keys_d"]], 2, 1_000), "most": ([c["most"]], 10, LARGEST),
        "mixing-n": ([c["mixing_n"]], 10, LARGEST), "images": ([c["images"]], 16, 10**5),
        "steps": ([c["steps"]], 1, 10**6),
        "seeds": ([c["seeds"]], 1, 100), "seed": ([c["seed"]], 0, 2**30),
    }  # fmt: skip
    for name, (values, low, high) in bounds.items():
        if not len(values):
            raise UnbraidError(f"{name} is empty; give whole numbers of {low} to {high}.")
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise UnbraidError(f"{name} is {value}; it must be a whole number of {low} to {high}.")
    largest = [m for m in c["models"] if m in ("RFA kernel", "BRFA kernel")]
    if largest and max(c["sizes"]) > 5_000 and c["device"] == "cpu":
        raise UnbraidError(f"{largest[0]} looks at all pairs of keys; on the CPU it takes sizes up to 5000.")
