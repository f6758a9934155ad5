"""Contrastive losses with labels: InfoNCE whose positives share a label, or lie near one another."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from unbraid.core.errors import UnbraidError

Form = Literal["inside", "outside"]
LIMIT, CEILING = 100.0, 1e5  # of a similarity over the temperature, and of the loss, as in XFactors' code
NEGLIGIBLE = 1e-3  # a kernel below it makes no positive


class Contrast(NamedTuple):
    """The loss, a scalar (zero with gradient where there is no pair), and the share of samples with a positive."""

    loss: Tensor
    anchored: Tensor


def affinity(labels: Tensor, bandwidth: float | None = None, period: float | None = None) -> Tensor:
    """[B, B] how much two samples are positives of each other; zero on the diagonal and where a label is unknown.

    Args:
        labels: [B] classes or values; negative is unknown.
        bandwidth: None: 1 for equal labels, else 0. A number: exp(-d^2 / 2 bandwidth^2) of their distance d, for
            ordinal and continuous labels.
        period: of cyclic labels, whose distance goes the shorter way round.

    Raises:
        UnbraidError: labels are not flat, or a number is not positive.
    """
    if labels.dim() != 1:
        raise UnbraidError(f"labels must be flat, [B], not {tuple(labels.shape)}; give one factor at a time.")
    for name, value in (("bandwidth", bandwidth), ("period", period)):
        if value is not None and not value > 0:
            raise UnbraidError(f"{name} is {value}; it must be positive.")
    known = labels >= 0
    if bandwidth is None:
        near = (labels[:, None] == labels[None]).double()
    else:
        apart = (labels[:, None].double() - labels[None].double()).abs()
        if period is not None:
            apart = torch.minimum(apart % period, period - apart % period)
        near = (-0.5 * (apart / bandwidth).square()).exp()
        near = torch.where(near < NEGLIGIBLE, 0.0, near)
    return near * (known[:, None] & known[None]) * ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)


def info_nce(
    z: Tensor,
    labels: Tensor,
    tau: float = 0.07,
    form: Form = "inside",
    bandwidth: float | None = None,
    period: float | None = None,
) -> Contrast:
    """Supervised InfoNCE on directions: samples with a label in common shall point the same way.

    With a = cos(z_j, z_k) / tau, w the `affinity`, and sums over other samples with a known label:
    "inside" is log sum_k exp a - log sum_k w exp a (arXiv 2601.21688), "outside" log sum_k exp a - sum_k w a / sum_k w
    (SupCon, arXiv 2004.11362), averaged over samples that have a positive. Unlabelled samples are neither positives nor
    negatives.

    Args:
        z: [B, d].
        labels: [B]; negative is unknown.
        tau: temperature.
        form: "inside" or "outside".
        bandwidth: see `affinity`.
        period: see `affinity`.

    Raises:
        UnbraidError: shapes do not fit, another form, or a temperature that is not positive.
    """
    if z.dim() != 2 or labels.shape != z.shape[:1]:
        raise UnbraidError(
            f"info_nce needs z [B, d] and labels [B], not {tuple(z.shape)} and {tuple(labels.shape)}; labels and "
            "samples must be as many."
        )
    if form not in ("inside", "outside"):
        raise UnbraidError(f"form is {form!r}; it must be 'inside' (XFactors) or 'outside' (SupCon).")
    if not tau > 0:
        raise UnbraidError(f"tau is {tau}; a temperature must be positive.")
    w = affinity(labels, bandwidth, period).to(z.dtype)
    known = labels >= 0
    others = known[None] & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    anchors = known & (w.sum(1) > 0)
    if not bool(anchors.any()):
        return Contrast(z.sum() * 0.0, anchors.float().mean())
    u = torch.nn.functional.normalize(z, dim=1)
    a = (u @ u.T / tau).clamp(-LIMIT, LIMIT)
    a, w, others = a[anchors], w[anchors], others[anchors]
    everything = a.masked_fill(~others, -torch.inf).logsumexp(1)
    if form == "inside":
        positive = torch.where(w > 0, a + w.clamp(min=NEGLIGIBLE).log(), -torch.inf).logsumexp(1)
    else:
        positive = (w * a).sum(1) / w.sum(1)
    return Contrast((everything - positive).mean().clamp(max=CEILING), anchors.float().mean())
