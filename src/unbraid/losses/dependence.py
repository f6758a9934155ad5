"""Penalties on dependence between a code and labels: the unbiased HSIC, and its normalised form (debiased CKA)."""

from __future__ import annotations

import torch
from torch import Tensor

from unbraid.core.errors import UnbraidError

TINY = 1e-12


def hsic(k: Tensor, l: Tensor) -> Tensor:
    """The unbiased estimate of HSIC from two kernel matrices (Song et al. 2012, equation 5); may be below zero.

    Args:
        k: [B, B], symmetric; the diagonal is not used.
        l: [B, B].

    Raises:
        UnbraidError: fewer than four samples, or matrices that are not alike.
    """
    n = len(k)
    if k.shape != l.shape or k.shape != (n, n):
        raise UnbraidError(f"hsic needs two square matrices of one size, not {tuple(k.shape)} and {tuple(l.shape)}.")
    if n < 4:
        raise UnbraidError(f"the unbiased HSIC needs at least 4 samples, not {n}.")
    off = ~torch.eye(n, dtype=torch.bool, device=k.device)
    k, l = k * off, l * off
    rows_k, rows_l = k.sum(1), l.sum(1)
    total = (k * l).sum() + rows_k.sum() * rows_l.sum() / ((n - 1) * (n - 2)) - 2 * (rows_k @ rows_l) / (n - 2)
    return total / (n * (n - 3))


def gaussian_kernel(z: Tensor) -> Tensor:
    """[B, B] exp(-d^2 / m) of squared distances d^2, m being their median (without gradient)."""
    apart = (z[:, None] - z[None]).square().sum(-1)
    off = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    return (-apart / apart.detach()[off].median().clamp(min=TINY)).exp()


def label_cka(z: Tensor, labels: Tensor) -> Tensor:
    """Debiased CKA between codes (Gaussian kernel) and classes (equal or not): about 0 where independent, at most 1.

    Args:
        z: [B, d].
        labels: [B] classes; negative is unknown and left out.

    Returns:
        A scalar; zero where fewer than four labels are known or all are the same.
    """
    known = labels >= 0
    z, labels = z[known], labels[known]
    if len(z) < 4 or bool((labels == labels[:1]).all()):
        return z.sum() * 0.0
    k, same = gaussian_kernel(z), (labels[:, None] == labels[None]).to(z.dtype)
    # unbiased norms may fall below zero on tiny batches, where no ratio says anything
    norm = hsic(k, k).clamp(min=TINY) * hsic(same, same).clamp(min=TINY)
    return hsic(k, same) / norm.sqrt()
