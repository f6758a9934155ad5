"""Error over samples for many targets at once: one Gram matrix serves every target and every smaller sample."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unbraid.core.pieces import Pieces
from unbraid.systems.random_feature_attention.features import (
    AttentionFeatures,
    Features,
    NeuronFeatures,
    add_gram,
    gram,
    mirror,
)
from unbraid.systems.random_feature_attention.ridge import PENALTIES, held_out
from unbraid.systems.random_feature_attention.targets import Target, directions, sphere_tokens
from unbraid.systems.random_feature_attention.tokens import Tokens, bias_matrix, estimated_bias, read

MODELS = ("RFA", "BRFA", "RFMLP", "RFA kernel", "BRFA kernel", "RFMLP kernel")
SHARE = 0.2  # of the training inputs choose the penalty
CHECKPOINT = 300  # seconds between copies of a large sum on disk
LARGE = 4_000  # inputs from which such copies are kept
DTYPES = {"float32": torch.float32, "float64": torch.float64}
Tick = Callable[[float], None]


@dataclass(frozen=True)
class World:
    """Unit tokens on the sphere.

    Attributes:
        d: width of a token.
        keys: N.
        test: inputs to test on, drawn apart from those to learn from.
        dtype: of features and products.
        device: where to work.
    """

    d: int = 16
    keys: int = 16
    test: int = 1_000
    dtype: str = "float64"
    device: str = "cpu"

    @property
    def key(self) -> dict[str, Any]:
        """What results depend on."""
        return {"d": self.d, "keys": self.keys, "test": self.test, "dtype": self.dtype}

    def draw(self, n: int, seed: int) -> np.ndarray:
        """[test + n, 1 + keys, d] inputs, those to test on first; a smaller n has the first inputs of a larger one."""
        parts = [
            sphere_tokens(self.test, self.keys, self.d, 2 * seed + 1),
            sphere_tokens(n, self.keys, self.d, 2 * seed),
        ]
        return np.concatenate(parts)

    def tokens(self, x: np.ndarray) -> Tokens:
        """The same with ones appended."""
        return read(x).to(self.device, DTYPES[self.dtype])

    def labels(self, x: np.ndarray, targets: Sequence[Target], seed: int) -> np.ndarray:
        """[test + n, targets]."""
        beta, noise = directions(self.d, seed)
        return np.stack([target(x, beta, noise) for target in targets], 1)


def features(model: str, heads: int, world: World, seed: int, bias: np.ndarray | None = None) -> Features:
    """The map of a model; RFMLP has as many trained numbers as M heads."""
    if model.startswith("RFMLP"):
        return NeuronFeatures(heads * (world.d + 1), seed)
    given: Any = bias if bias is not None else "identity" if model.startswith("BRFA") else "zero"
    return AttentionFeatures(heads, bias_matrix(given, world.d), seed)


def errors(matrix: Tensor, y: np.ndarray, n: int, test: int) -> tuple[list[float], list[float]]:
    """Relative errors on the test inputs after learning from n, and the penalties, of each target.

    Args:
        matrix: [test + at least n, same] float64; the test inputs first.
        y: [test + at least n, targets] labels.
        n: inputs to learn from; the last fifth of them chooses the penalty, then all are used.
        test: inputs to test on.

    Returns:
        MSE over the variance of the test labels, and penalties, one for each target.
    """
    use = slice(test, test + n)
    mean, spread = y[use].mean(0), y[use].std(0)
    standard = torch.from_numpy((y[use] - mean) / spread).to(matrix.device)
    chosen, dual = held_out(matrix[use, use], standard, PENALTIES, SHARE)
    found = (matrix[:test, use] @ dual).cpu().numpy() * spread + mean
    relative = ((found - y[:test]) ** 2).mean(0) / y[:test].var(0)
    return relative.tolist(), [PENALTIES[at] for at in chosen.at]


def grams(
    map_: Features, tokens: Tokens, stops: Sequence[int], store: Pieces, key: Any, tick: Tick
) -> Iterator[tuple[int, Tensor]]:
    """Gram matrices after so many heads or neurons, each continuing the one before.

    Sums over many inputs are kept on disk every few minutes and at each stop, so that what was interrupted goes on.

    Args:
        map_: of any size.
        tokens: all inputs.
        stops: rising numbers of heads or neurons.
        store: where sums are kept.
        key: what they depend on.
        tick: called with shares of all work.
    """
    n, done = len(tokens), 0
    total: Tensor | None = None
    large = n >= LARGE and store.folder is not None
    if large and (kept := store.load_arrays("gram", key)) is not None:
        done = int(kept["heads"][0])
        total = torch.from_numpy(kept["sum"]).double().to(tokens.query.device)
        if done > stops[0]:  # an earlier stop cannot be had from a later sum
            done, total = 0, None
    if total is None:
        total = torch.zeros(n, n, dtype=torch.float64, device=tokens.query.device)
    saved = time.monotonic()
    for stop in stops:
        part, whole = map_.sized(stop), stop // map_.BLOCK
        for index in range(done // part.BLOCK, whole):
            add_gram(part, tokens, total, index)
            done = (index + 1) * part.BLOCK
            tick(part.BLOCK / stops[-1])
            if large and (time.monotonic() - saved > CHECKPOINT or index + 1 == whole):
                _save(store, key, done, total)
                saved = time.monotonic()
        last = stop == stops[-1]
        found = total if last else total.clone()
        if stop % part.BLOCK:  # the block that this stop cuts; the sum that goes on has whole ones only
            add_gram(part, tokens, found, whole)
            tick((stop % part.BLOCK) / stops[-1] if last else 0.0)
        yield stop, mirror(found).div_(stop)


def _save(store: Pieces, key: Any, done: int, total: Tensor) -> None:
    store.save_arrays("gram", key, {"heads": np.array([done]), "sum": total.float().cpu().numpy()})


def curve(
    model: str, world: World, targets: Sequence[Target], sizes: Sequence[int], heads: Sequence[int], seed: int,
    store: Pieces, tick: Tick,
) -> list[dict[str, Any]]:  # fmt: skip
    """Relative errors of one model and seed over samples, heads and targets.

    Args:
        model: one of `MODELS`.
        world: the inputs.
        targets: all of them are learned from the same inputs.
        sizes: training inputs.
        heads: M; ignored by kernels.
        seed: of inputs, targets and weights.
        store: where finished errors are kept.
        tick: called with shares of this curve's work.

    Returns:
        Rows: model, target, keys, n, heads, seed, error, penalty.
    """
    limit = model.endswith("kernel")
    stops = [1] if limit else _sizes(model, heads, world)
    names = [t.name for t in targets]
    key = {**world.key, "model": model, "targets": names, "seed": seed, "share": SHARE, "penalties": PENALTIES}
    found: dict[tuple[int, int], Any] = {}
    for m in stops:
        for n in sizes:
            piece = store.load("errors", {**key, "n": n, "heads": 0 if limit else m})
            if piece is not None:
                found[m, n] = piece
    missing = [m for m in stops if any((m, n) not in found for n in sizes)]
    if missing:
        x = world.draw(max(sizes), seed)
        y, tokens = world.labels(x, targets, seed), world.tokens(x)
        map_ = features(model, 1, world, seed)
        inputs = {**world.key, "model": model, "seed": seed, "n": max(sizes)}
        made = _kernel(map_, tokens, tick) if limit else grams(map_, tokens, missing, store, inputs, tick)
        for m, matrix in made:
            for n in sizes:
                if (m, n) not in found:
                    found[m, n] = errors(matrix, y, n, world.test)
                    store.save("errors", {**key, "n": n, "heads": 0 if limit else m}, found[m, n])
    else:
        tick(1.0)
    shared = {"model": model, "keys": world.keys, "seed": seed}
    return [
        {**shared, "target": name, "n": n, "heads": None if limit else _heads(model, m, world), "error": error,
         "penalty": penalty}
        for m in stops for n in sizes for name, error, penalty in zip(names, *found[m, n], strict=True)
    ]  # fmt: skip


def _kernel(map_: Features, tokens: Tokens, tick: Tick) -> Iterator[tuple[int, Tensor]]:
    pairs = len(tokens) ** 2 / 2
    yield 1, map_.kernel(tokens, tick=lambda done: tick(done / pairs)).double()


def _sizes(model: str, heads: Sequence[int], world: World) -> list[int]:
    """Heads or neurons at which errors are wanted."""
    return sorted({m * (world.d + 1) if model == "RFMLP" else m for m in heads})


def _heads(model: str, size: int, world: World) -> int:
    return size // (world.d + 1) if model == "RFMLP" else size


def data_biased(
    world: World, targets: Sequence[Target], n: int, heads: int, seed: int, store: Pieces, tick: Tick
) -> list[dict[str, Any]]:
    """Relative errors with a bias that is estimated from the n training inputs, for each target.

    Args:
        world: the inputs.
        targets: each has its own estimate, and so its own Gram matrix.
        n: training inputs.
        heads: M.
        seed: of everything.
        store: where they are kept.
        tick: called with shares of the work.

    Returns:
        Rows as of `curve`, with the "cosine" of the estimate and S.
    """
    x = world.draw(n, seed)
    y, tokens = world.labels(x, targets, seed), world.tokens(x)
    rows = []

    def make(k: int, target: Target) -> list[float]:
        train = slice(world.test, None)
        estimate = estimated_bias(tokens[train], y[train, k] - y[train, k].mean())
        truth = target.matrix(directions(world.d, seed)[1])
        map_ = AttentionFeatures(heads, bias_matrix(estimate, world.d), seed)
        error, penalty = errors(gram(map_, tokens), y[:, k : k + 1], n, world.test)
        return [error[0], penalty[0], float((estimate * truth).sum() / np.linalg.norm(estimate) / world.d**0.5)]

    for k, target in enumerate(targets):
        key = {**world.key, "target": target.name, "n": n, "heads": heads, "seed": seed, "penalties": PENALTIES}
        error, penalty, cosine = store.get("data-biased", key, partial(make, k, target))
        rows.append(
            {"model": "data-biased", "keys": world.keys, "seed": seed, "target": target.name, "n": n, "heads": heads,
             "error": error, "penalty": penalty, "cosine": cosine}
        )  # fmt: skip
        tick(1 / len(targets))
    return rows
