"""What swaps do to true factors, read by a world's oracle, and what each block of a code tells a probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from unbraid.core.errors import UnbraidError
from unbraid.data.worlds import World
from unbraid.layers.vae import encode_all

NEIGHBOURS = 5


@dataclass(eq=False)
class Quality:
    """Measured on held-out images.

    Attributes:
        names: all factors of the world.
        blocks: "S" and the factors with a block.
        mse: of reconstructions.
        read: [factors] how often the oracle reads a factor off a reconstruction.
        transfer: [blocks - 1] how often a swapped factor is the source's, of pairs that differ in it.
        keep: [blocks - 1] how often the other factors stay as they were, mean over them.
        probe: [blocks, factors] accuracy of nearest neighbours.
        chance: [factors] share of the most frequent class.
        kl: [blocks] nats that each block carries.
        rest: transfer of each factor without a block when S is swapped, by name.
    """

    names: list[str]
    blocks: list[str]
    mse: float
    read: np.ndarray
    transfer: np.ndarray
    keep: np.ndarray
    probe: np.ndarray
    chance: np.ndarray
    kl: np.ndarray
    rest: dict[str, float]

    @property
    def leak(self) -> float:
        """How far above chance S tells factors that have a block, 0 to 1, mean over them."""
        at = [self.names.index(b) for b in self.blocks[1:]]
        return float(np.mean((self.probe[0, at] - self.chance[at]) / (1 - self.chance[at])))

    @property
    def told(self) -> float:
        """Probe accuracy of each factor from its own block, mean."""
        return float(np.mean([self.probe[i, self.names.index(b)] for i, b in enumerate(self.blocks) if i]))

    def row(self) -> dict[str, float]:
        """The means, for a table."""
        return {
            "mse": self.mse, "read": float(self.read.mean()), "transfer": float(self.transfer.mean()),
            "keep": float(self.keep.mean()), "own block": self.told, "leak": self.leak, "nats S": float(self.kl[0]),
            "nats blocks": float(self.kl[1:].sum()),
        }  # fmt: skip


def quality(
    vae: Any,
    blocks: Mapping[str, Sequence[int]],
    world: World,
    rows: np.ndarray,
    pairs: int = 500,
    seed: int = 0,
    picked: Mapping[str, Sequence[int]] | None = None,
) -> Quality:
    """Measure a model whose code has blocks.

    Args:
        vae: a `GaussianVAE`.
        blocks: name -> [first, last + 1]; "S" is the rest.
        world: where images come from, and whose oracle reads them.
        rows: indices of held-out images.
        pairs: swaps per factor.
        seed: of pairs and probes.
        picked: name -> dimensions, in place of ``blocks`` (for models whose latents were assigned afterwards).

    Raises:
        UnbraidError: fewer than 50 held-out images, or a block that is no factor of the world.
    """
    if len(rows) < 50 or pairs < 1:
        raise UnbraidError(f"{len(rows)} held-out images and {pairs} pairs are too few; give at least 50 and 1.")
    members = {n: list(range(*span)) for n, span in blocks.items()} if picked is None else dict(picked)
    names, targets = list(world.names), [n for n in members if n != "S"]
    factors, x = world.factors[rows], world.render(rows)
    mu, logvar = encode_all(vae, x)
    rng = np.random.default_rng(seed)
    made = decoded(vae, mu)
    transfer, keep = [], []
    for name in targets:
        k = world.column(name)
        good = swapped(vae, world, factors, mu, members[name], k, pairs, rng)
        transfer.append(good[:, k].mean())
        keep.append(np.delete(good, k, axis=1).mean())
    rest = {}
    for name in names:
        if name not in targets:
            k = world.column(name)
            rest[name] = float(swapped(vae, world, factors, mu, members["S"], k, pairs, rng)[:, k].mean())
    kl = 0.5 * (mu**2 + np.exp(logvar) - 1 - logvar).mean(0)
    chance = np.array([np.bincount(c).max() / len(c) for c in factors.T.astype(int)])
    return Quality(
        names, list(members), float(((made - x) ** 2).mean()), world.same(world.oracle(made), factors).mean(0),
        np.array(transfer), np.array(keep), probes(mu, factors, members, rng), chance,
        np.array([kl[list(m)].sum() for m in members.values()]), rest,
    )  # fmt: skip


def swapped(
    vae: Any,
    world: World,
    factors: np.ndarray,
    mu: np.ndarray,
    at: Sequence[int],
    k: int,
    pairs: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """[pairs, factors] whether a swap gave what was asked: factor k of the source, all others of the reference."""
    reference = rng.integers(0, len(mu), 4 * pairs)
    source = rng.integers(0, len(mu), 4 * pairs)
    differ = np.flatnonzero(factors[reference, k] != factors[source, k])[:pairs]
    reference, source = reference[differ], source[differ]
    code, wanted = mu[reference].copy(), factors[reference].copy()
    code[:, list(at)] = mu[source][:, list(at)]
    wanted[:, k] = factors[source, k]
    return world.same(world.oracle(decoded(vae, code)), wanted)


@torch.no_grad()
def decoded(vae: Any, codes: np.ndarray) -> np.ndarray:
    """Images of codes [n, J]."""
    like = next(vae.parameters())
    parts = torch.as_tensor(codes).to(like).split(512)
    return np.concatenate([np.asarray(vae.decode(part).cpu()) for part in parts])


def probes(mu: np.ndarray, factors: np.ndarray, members: Mapping[str, Sequence[int]], rng: Any) -> np.ndarray:
    """[blocks, factors] accuracy of five nearest neighbours, learned on one half of the rows, tested on the other."""
    from sklearn.neighbors import KNeighborsClassifier

    order = rng.permutation(len(mu))
    train, test = order[: len(order) // 2], order[len(order) // 2 :]
    table = np.empty((len(members), factors.shape[1]))
    for i, at in enumerate(members.values()):
        code = mu[:, list(at)]
        code = (code - code[train].mean(0)) / np.maximum(code[train].std(0), 1e-9)
        near = KNeighborsClassifier(NEIGHBOURS).fit(code[train], factors[train].astype(int))
        told = np.asarray(near.predict(code[test])).reshape(len(test), -1)
        table[i] = (told == factors[test]).mean(0)
    return table
