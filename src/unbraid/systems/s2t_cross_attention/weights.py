"""Weights of heads, learned on a few utterances so that their mean follows a saliency map, and tried on others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import nnls

from unbraid.core.errors import UnbraidError
from unbraid.systems.s2t_cross_attention.maps import aggregate, correlation, normalise


def fit_head_weights(maps: Sequence[np.ndarray], saliency: Sequence[np.ndarray]) -> np.ndarray:
    """Non-negative weights of heads, by least squares on normalised maps.

    Args:
        maps: per utterance, attention [L, H, I, T'].
        saliency: per utterance, [I, T'].

    Returns:
        [L, H], summing to 1; all alike where no head follows the saliency at all.

    Raises:
        UnbraidError: no utterance.
    """
    if not len(maps):
        raise UnbraidError("Head weights need at least one utterance with attention and saliency.")
    layers, heads = maps[0].shape[:2]
    gram, right = np.zeros((layers * heads, layers * heads)), np.zeros(layers * heads)
    for m, s in zip(maps, saliency, strict=True):
        flat = np.nan_to_num(m.reshape(layers * heads, *m.shape[2:]))
        x = np.stack([normalise(one).ravel() for one in flat])
        y = normalise(s).ravel()
        gram += x @ x.T / len(y)
        right += x @ y / len(y)
    # least squares from the normal equations: a root of the Gram matrix stands for all entries of all maps
    values, vectors = np.linalg.eigh(gram)
    values = np.maximum(values, 1e-9)
    root = (vectors * np.sqrt(values)) @ vectors.T
    found, _ = nnls(root, np.linalg.solve(root, right))
    if found.sum() == 0:
        found = np.ones_like(found)
    # weights are for raw attention, whose rows differ in spread from head to head
    spread = np.mean([np.nan_to_num(m).std(axis=(2, 3)).ravel() for m in maps], 0)
    found = np.where(spread > 0, found / np.where(spread > 0, spread, 1), 0)
    return (found / found.sum()).reshape(layers, heads)


def held_out(maps: Sequence[np.ndarray], saliency: Sequence[np.ndarray]) -> np.ndarray:
    """[n] correlation on each utterance of weights learned on all others.

    Raises:
        UnbraidError: fewer than two utterances.
    """
    if len(maps) < 2:
        raise UnbraidError(f"Held-out correlation needs two utterances or more, not {len(maps)}.")
    out = []
    for i in range(len(maps)):
        rest = [j for j in range(len(maps)) if j != i]
        w = fit_head_weights([maps[j] for j in rest], [saliency[j] for j in rest])
        out.append(correlation(aggregate(maps[i], w), saliency[i]))
    return np.array(out)
