"""What the study measures: kernels against heads, symmetries, growth with the keys, degrees, frozen layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from unbraid.core.pieces import Pieces
from unbraid.systems.random_feature_attention.complexity import crossing
from unbraid.systems.random_feature_attention.curves import World, curve
from unbraid.systems.random_feature_attention.degrees import Degrees, degree_shares
from unbraid.systems.random_feature_attention.features import AttentionFeatures, gram
from unbraid.systems.random_feature_attention.system import RandomFeatureAttentionRegressor
from unbraid.systems.random_feature_attention.targets import Target, directions, sphere_tokens
from unbraid.systems.random_feature_attention.tokens import bias_matrix, read

HEADS = (500, 2_000, 5_000, 20_000)
INPUTS = 6  # as in the method sheet
DRAWS = 8
HALF = 0.5  # relative error whose samples are counted
QUADRATIC = Target("power", 2)
# samples tried, in units of the quadratic functions that a model must tell apart: d^2 / 2 of a key, (N d)^2 / 2 of all
GRID = {"RFA": (1.0, 1.41, 2.0, 2.83, 4.0, 5.66, 8.0, 11.3), "RFMLP kernel": (0.25, 0.35, 0.5, 0.71, 1.0, 1.41, 2.0)}
Tick = Callable[[float], None]


def kernel_errors(d: int, keys: int, seed: int, heads: Sequence[int] = HEADS) -> list[dict[str, Any]]:
    """Relative Frobenius error of the Gram matrix of M heads against the closed form, on a few inputs.

    Root mean square over draws of the weights: one draw's heads, nested as they are, make a line too rough for a slope.
    """
    rows = []
    tokens = read(sphere_tokens(INPUTS, keys, d, seed))
    for model, bias in (("RFA", "zero"), ("BRFA", "identity")):
        limit = AttentionFeatures(1, bias_matrix(bias, d)).kernel(tokens)
        for m in heads:
            maps = [AttentionFeatures(m, bias_matrix(bias, d), seed * DRAWS + k) for k in range(DRAWS)]
            wrong = [float((gram(one, tokens) - limit).norm() / limit.norm()) for one in maps]
            error = float(np.sqrt(np.mean(np.square(wrong))))
            rows.append({"model": model, "heads": m, "seed": seed, "error": error, "worst draw": max(wrong)})
    return rows


def symmetries(d: int, keys: int, heads: int, seed: int) -> list[dict[str, Any]]:
    """How predictions change when keys are permuted, and when the query and a key change places."""
    x = sphere_tokens(300, keys, d, seed)
    beta, noise = directions(d, seed)
    rng = np.random.default_rng(seed)
    rows = []
    for model, bias in (("RFA", "zero"), ("BRFA", "identity")):
        fitted = RandomFeatureAttentionRegressor(heads, bias, penalty=1e-3, seed=seed)
        fitted.fit(x[:200], Target("correlated", 1, 1)(x[:200], beta, noise))
        plain = fitted.predict(x[200:])
        mixed, swapped = x[200:].copy(), x[200:].copy()
        mixed[:, 1:] = mixed[:, 1 + rng.permutation(keys)]
        swapped[:, [0, 1]] = swapped[:, [1, 0]]
        change = {
            name: float(np.abs(fitted.predict(other) - plain).max() / plain.std())
            for name, other in (("permuted", mixed), ("swapped", swapped))
        }
        rows.append({"model": model, "seed": seed, **change})
    return rows


def samples_needed(model: str, world: World, heads: int, most: int, seed: int, store: Pieces) -> dict[str, Any]:
    """Samples at which the error on a quadratic function falls to a half.

    Args:
        model: "RFA" or "RFMLP kernel".
        world: d and N.
        heads: M of RFA.
        most: no more samples than these are tried.
        seed: of everything.
        store: of finished errors.

    Returns:
        A row: model, keys, seed, samples (None: more than were tried), tried.
    """
    unit = (world.d if model == "RFA" else world.d * world.keys) ** 2 / 2
    sizes, errors = [], []
    for factor in GRID[model]:
        n = round(unit * factor)
        if n > most or n < 10:
            continue
        sizes.append(n)
        errors.append(curve(model, world, [QUADRATIC], [n], [heads], seed, store, lambda share: None)[0]["error"])
        if errors[-1] <= HALF:
            break
    found = crossing(sizes, errors, HALF)
    first = bool(errors) and errors[0] <= HALF  # already the smallest sample is enough: nothing to interpolate
    return {
        "model": model, "keys": world.keys, "d": world.d, "seed": seed,
        "samples": found if np.isfinite(found) else None, "tried up to": sizes[-1] if sizes else None, "at most": first,
    }  # fmt: skip


def all_degrees(world: World, targets: Sequence[Target], n: int, seed: int, tick: Tick) -> dict[str, Degrees]:
    """What each target is made of."""
    x = world.draw(n, seed)[world.test :]
    beta, noise = directions(world.d, seed)
    found = {}
    for target in targets:
        found[target.name] = degree_shares(read(x), target(x, beta, noise), seed=seed)
        tick(1.0)
    return found


def frozen_rows(images: int, steps: int, seeds: Sequence[int], store: Pieces) -> list[dict[str, Any]]:
    """A layer of `tiny-clip` with its queries and keys frozen at random, frozen as they are, or trained.

    The targets are the study's families of the layer's own inputs, standardised and of unit norm.
    """
    from unbraid.systems.random_feature_attention.freezing import compare_frozen, vision_inputs

    rows: list[dict[str, Any]] = []
    for seed in seeds:
        key = {"images": images, "steps": steps, "seed": seed, "model": "tiny-clip"}
        found = store.load("frozen", key)
        if found is None:
            attention, hidden = vision_inputs(images, seed)
            unit = (hidden - hidden.mean((0, 1))) / hidden.std((0, 1))
            unit /= np.linalg.norm(unit, axis=2, keepdims=True)
            beta, noise = directions(hidden.shape[2], seed)
            found = []
            for target in (QUADRATIC, Target("correlated", 1, 1)):
                y = target(unit, beta, noise)
                compared = compare_frozen(attention, hidden, y, steps=steps, batch=64, seeds=(seed,))
                found += [{"target": target.formula, **row} for row in compared]
            store.save("frozen", key, found)
        rows += found
    return rows
