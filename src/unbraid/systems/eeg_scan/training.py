"""Training SCAN's head on posteriors that stay as they are: seconds, so that labels can be revised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unbraid.core.errors import UnbraidError
from unbraid.core.train import History, fit_loop
from unbraid.systems.eeg_scan.head import ScanHead, khot, scan_loss


def drop(known: Tensor, dropout: float, generator: torch.Generator) -> Tensor:
    """[B, K] which of the known factors are named in this step; at least one where any is known.

    Without it single labels would never be seen by the encoder, and would be no concepts.
    """
    u = torch.rand(known.shape, generator=generator)
    named = known & (u >= dropout)
    last = torch.where(known, u, -1.0).argmax(1, keepdim=True)
    alone = torch.zeros_like(known).scatter(1, last, True) & known
    return torch.where(named.any(1, keepdim=True), named, alone)


def class_weights(y: np.ndarray, sizes: list[int]) -> np.ndarray:
    """[M] n / (values n_value) for each factor, so that each value weighs alike; 0 for a value never seen."""
    counts = y.sum(0)
    out = np.zeros(len(counts), np.float32)
    for part in np.split(np.arange(len(counts)), np.cumsum(sizes)[:-1]):
        seen = counts[part] > 0
        out[part[seen]] = counts[part].sum() / (seen.sum() * counts[part][seen])
    return out


def train_head(
    head: ScanHead,
    mu: np.ndarray,
    logvar: np.ndarray,
    labels: np.ndarray,
    *,
    strength: float = 10.0,
    beta_y: float = 1.0,
    dropout: float = 0.5,
    balanced: bool = True,
    steps: int = 1_500,
    batch: int = 256,
    lr: float = 1e-3,
    seed: int = 0,
    keep: str | Path | None = None,
    progress: bool | None = None,
) -> History:
    """Train a head in place.

    Args:
        head: of these labels and as many latents.
        mu: [n, J] posterior means of the observations.
        logvar: [n, J] their log variances.
        labels: [n, K], -1 where unknown; observations without any label are not used.
        strength: lambda.
        beta_y: weight of the prior.
        dropout: share of the known labels that are not named in a step.
        balanced: weigh rare values up.
        steps: of Adam.
        batch: observations per step.
        lr: learning rate.
        seed: of the order and all draws.
        keep: folder for checkpoints.
        progress: show a bar.

    Raises:
        UnbraidError: shapes that differ, or no label is known.
    """
    if mu.ndim != 2 or mu.shape != logvar.shape or len(labels) != len(mu) or mu.shape[1] != head.latents:
        raise UnbraidError(
            f"means {mu.shape}, log variances {logvar.shape} and {len(labels)} labels do not fit together and to "
            f"{head.latents} latents."
        )
    y_all = khot(labels, head.sizes)
    rows = np.flatnonzero((np.asarray(labels) >= 0).any(1))
    if not len(rows):
        raise UnbraidError("every label is unknown (-1): SCAN has nothing to learn from.")
    weights = torch.from_numpy(class_weights(y_all[rows], head.sizes)) if balanced else None
    y = torch.from_numpy(y_all[rows])
    known = torch.from_numpy(np.asarray(labels)[rows] >= 0)
    means, spreads = (torch.from_numpy(np.asarray(a[rows], np.float32)) for a in (mu, logvar))
    repeats = torch.tensor(head.sizes)

    def draw(number: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        at = torch.randint(len(rows), (batch,), generator=generator)
        named = drop(known[at], dropout, generator).repeat_interleave(repeats, 1)
        return y[at] * named, means[at], spreads[at]

    history = fit_loop(
        head, lambda m, b: scan_loss(m, *b, strength=strength, beta_y=beta_y, weights=weights), draw, steps=steps,
        optimizer=lambda p: torch.optim.Adam(p, lr=lr), seed=seed, checkpoint_dir=keep, progress=progress,
    )  # fmt: skip
    head.eval()
    return history
