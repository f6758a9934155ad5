"""SCAN's logical recombination: the code of "a and b", of what two labels have in common, of one without another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError
from unbraid.core.train import History, fit_loop
from unbraid.layers.vae import seeded
from unbraid.losses.vae import kl_between
from unbraid.systems.eeg_scan.head import LOGVAR_LIMIT, ScanHead, khot

Operator = Literal["and", "in_common", "ignore"]
OPERATORS: tuple[Operator, ...] = get_args(Operator)


class Recombiner(nn.Module):
    """Two codes and an operator to one code: 1-d convolutions of width 1 over latents (arXiv 1707.03389, section 4).

    The two pairs of mean and log variance are four channels, the operator three more; latents do not mix, as they mean
    the same in both codes.

    Args:
        hidden: channels.
        seed: of the initial weights.
    """

    def __init__(self, hidden: int = 64, seed: int = 0) -> None:
        super().__init__()
        with seeded(seed):
            self.net = nn.Sequential(
                nn.Conv1d(4 + len(OPERATORS), hidden, 1), nn.ReLU(), nn.Conv1d(hidden, hidden, 1), nn.ReLU(),
                nn.Conv1d(hidden, 2, 1),
            )  # fmt: skip

    def forward(self, one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor], kind: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance [B, J] of the recombined code.

        Args:
            one: mean and log variance [B, J] of the first code.
            two: of the second.
            kind: [B] numbers of `OPERATORS`.
        """
        told = nn.functional.one_hot(kind, len(OPERATORS)).to(one[0])[..., None].expand(-1, -1, one[0].shape[1])
        mu, logvar = self.net(torch.cat([torch.stack([*one, *two], 1), told], 1)).unbind(1)
        return mu, logvar.clamp(-LOGVAR_LIMIT, LOGVAR_LIMIT)


def recombined(one: Mapping[str, int], two: Mapping[str, int], kind: Operator) -> dict[str, int]:
    """What two sets of labels give by logic.

    Raises:
        UnbraidError: another operator, or "and" of two values of one factor.
    """
    if kind not in OPERATORS:
        raise UnbraidError(f"operator is {kind!r}; it must be one of {', '.join(OPERATORS)}.")
    clash = [n for n in one if n in two and one[n] != two[n]]
    if kind == "and" and clash:
        raise UnbraidError(f"{clash[0]!r} cannot be {one[clash[0]]} and {two[clash[0]]} at once.")
    if kind == "and":
        return {**one, **two}
    same = {n: v for n, v in one.items() if two.get(n) == v}
    return same if kind == "in_common" else {n: v for n, v in one.items() if n not in same}


def pair(labels: np.ndarray, sizes: list[int], kind: Operator, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Labels [K] of an observation taken apart: rows one, two and their recombination, -1 where not named.

    The recombination names at least one label of the observation, so that the observation is an instance of it.
    """
    known = np.flatnonzero(labels >= 0)
    keep = known[rng.random(len(known)) < 0.5]
    keep = keep if len(keep) else rng.choice(known, 1)
    whole = np.full(len(labels), -1)
    whole[keep] = labels[keep]
    one, two = whole.copy(), whole.copy()
    rest = np.setdiff1d(np.arange(len(labels)), keep)
    if kind == "and":
        side = rng.integers(0, 3, len(keep))  # named by the first, the second, or both
        one[keep[side == 1]] = -1
        two[keep[side == 0]] = -1
        return one, two, whole
    extra = np.array([rng.integers(0, sizes[k]) for k in rest], dtype=int)
    if kind == "in_common":  # what only one of the two names, must vanish
        side = rng.integers(0, 4, len(rest))  # the first, the second, neither, or both with different values
        differ = np.array(
            [(e + rng.integers(1, max(2, sizes[k]))) % sizes[k] for k, e in zip(rest, extra, strict=True)]
        )
        one[rest[side == 0]], two[rest[side == 1]] = extra[side == 0], extra[side == 1]
        apart = (side == 3) & (np.asarray(sizes)[rest] > 1)
        one[rest[apart]], two[rest[apart]] = extra[apart], differ[apart]
        return one, two, whole
    two[:] = -1
    some = rng.random(len(rest)) < 0.7
    one[rest[some]] = two[rest[some]] = extra[some]
    return one, two, whole


def train_recombiner(
    module: Recombiner,
    head: ScanHead,
    mu: np.ndarray,
    logvar: np.ndarray,
    labels: np.ndarray,
    *,
    steps: int = 1_500,
    batch: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    progress: bool | None = None,
) -> History:
    """Train in place: KL(q(z_x|x) || recombined code) for observations x that are instances of the recombination.

    Neither the head nor the observations' posterior learns anything.

    Args:
        module: to train.
        head: SCAN's, trained.
        mu: [n, J] posterior means of the observations.
        logvar: [n, J] their log variances.
        labels: [n, K], -1 where unknown; observations without any are not used.
        steps: of Adam.
        batch: observations per step.
        lr: learning rate.
        seed: of the order and all draws.
        progress: show a bar.

    Raises:
        UnbraidError: shapes differ, or no label is known.
    """
    y = np.asarray(labels)
    if y.ndim != 2 or y.shape != (len(mu), len(head.sizes)) or mu.shape != logvar.shape:
        raise UnbraidError(
            f"labels {y.shape} must be [{len(mu)}, {len(head.sizes)}], and means {mu.shape} as log variances "
            f"{logvar.shape}."
        )
    rows = np.flatnonzero((y >= 0).any(1))
    if not len(rows):
        raise UnbraidError("every label is unknown (-1): there is nothing to recombine.")

    def draw(number: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        at, kind = rng.choice(rows, batch), rng.integers(0, len(OPERATORS), batch)
        made = [pair(y[i], head.sizes, OPERATORS[k], rng) for i, k in zip(at, kind, strict=True)]
        one, two = (torch.from_numpy(khot(np.stack([m[s] for m in made]), head.sizes)) for s in (0, 1))
        seen = (torch.from_numpy(np.asarray(a[at], np.float32)) for a in (mu, logvar))
        return one, two, torch.from_numpy(kind), *seen

    def loss(net: Recombiner, made: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        one, two, kind, mu_x, logvar_x = made
        with torch.no_grad():
            a, b = head.encode(one), head.encode(two)
        apart = kl_between(mu_x, logvar_x, *net(a, b, kind)).sum(1).mean()
        return apart, {"apart": apart.detach()}

    history = fit_loop(
        module, loss, draw, steps=steps, optimizer=lambda p: torch.optim.Adam(p, lr=lr), seed=seed, progress=progress,
    )  # fmt: skip
    module.eval()
    return history


def recombine(
    module: Recombiner, one: tuple[np.ndarray, np.ndarray], two: tuple[np.ndarray, np.ndarray], kind: Operator
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and log variance [J] of two codes (of `EEGScan.code`) put together; `EEGScan.decode` shows the mean.

    Raises:
        UnbraidError: another operator, or codes of different sizes.
    """
    if kind not in OPERATORS:
        raise UnbraidError(f"operator is {kind!r}; it must be one of {', '.join(OPERATORS)}.")
    if len({np.shape(a) for a in (*one, *two)}) > 1 or np.ndim(one[0]) != 1:
        raise UnbraidError(f"codes must be means and log variances [J], not {[np.shape(a) for a in (*one, *two)]}.")
    first, second = (
        (torch.as_tensor(m, dtype=torch.float32)[None], torch.as_tensor(v, dtype=torch.float32)[None])
        for m, v in (one, two)
    )
    with torch.no_grad():
        mu, logvar = module(first, second, torch.tensor([OPERATORS.index(kind)]))
    return mu[0].double().numpy(), logvar[0].double().numpy()
