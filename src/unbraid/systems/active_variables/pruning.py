"""Removing latents from a VAE: a smaller encoder and decoder that compute what the large ones did."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError
from unbraid.data.observations import Observations
from unbraid.layers.vae import GaussianVAE
from unbraid.losses.vae import vae_reconstruction


class Pruned(NamedTuple):
    """A smaller VAE, and what that did to reconstructions from means.

    Attributes:
        vae: with the kept latents, in the order given.
        loss_before: reconstruction loss of the whole model, nats per observation.
        loss_after: that of the smaller one.
        largest_change: the largest change of a decoded value, over all observations looked at.
        mean_change: the mean absolute one.
    """

    vae: GaussianVAE
    loss_before: float
    loss_after: float
    largest_change: float
    mean_change: float


@torch.no_grad()
def prune(
    vae: GaussianVAE, keep: Sequence[int], data: Any, points: int = 2_000, tolerance: float | None = None, seed: int = 0
) -> Pruned:
    """Drop all latents but some, with what the decoder saw of them on average folded into its first bias.

    Args:
        vae: whose encoder ends in a linear layer, and whose decoder begins with one.
        keep: latents to keep, in the order they shall have.
        data: observations on which the dropped means are taken and reconstructions compared.
        points: how many of them, drawn at random.
        tolerance: the greatest rise of the reconstruction loss to accept, as a share; None: any, and the result tells.
        seed: of the draw.

    Returns:
        `Pruned`; the given model is not changed.

    Raises:
        UnbraidError: no or unknown latents, another architecture, or a rise beyond the tolerance.
    """
    kept = _checked(vae, keep)
    source = Observations(data, vae.shape, unit=vae.likelihood == "bernoulli")
    at = np.random.default_rng(seed).choice(len(source), min(points, len(source)), replace=False)
    weight = next(vae.parameters())
    x = torch.as_tensor(source.take(at)).to(weight)
    whole = copy.deepcopy(vae).eval()
    mu, _ = whole.encode(x)
    small = _smaller(whole, kept, mu.double().mean(0))
    before, after = whole.logits(mu), small.logits(small.encode(x)[0])
    losses = [float(vae_reconstruction(vae, x, made)) for made in (before, after)]
    change = (whole.activate(before) - small.activate(after)).abs()
    found = Pruned(small, losses[0], losses[1], float(change.max()), float(change.mean()))
    if tolerance is not None and losses[1] > losses[0] + tolerance * abs(losses[0]):
        raise UnbraidError(
            f"pruning to {len(kept)} of {vae.latents} latents raises the reconstruction loss from {losses[0]:.4g} to "
            f"{losses[1]:.4g} nats, more than the tolerance of {tolerance:.1%}; keep more latents."
        )
    return found


def _checked(vae: GaussianVAE, keep: Sequence[int]) -> list[int]:
    if not isinstance(vae, GaussianVAE):
        raise UnbraidError(f"only a GaussianVAE can be pruned, not a {type(vae).__name__}.")
    try:
        kept = [operator.index(j) for j in keep]
    except TypeError:
        raise UnbraidError(f"keep is {keep!r}; it must be a list of latents, such as [0, 3].") from None
    if not kept or len(set(kept)) < len(kept) or min(kept) < 0 or max(kept) >= vae.latents:
        raise UnbraidError(
            f"keep is {kept}; give at least one of the latents 0 to {vae.latents - 1}, each at most once."
            + ("" if kept else " A model without active or mixed latents has nothing worth keeping.")
        )
    return kept


def _smaller(vae: GaussianVAE, kept: list[int], mean: Tensor) -> GaussianVAE:
    """A copy with fewer latents; `mean` [J] stands in for those dropped."""
    small = copy.deepcopy(vae)
    last, first = _edge(small.encoder, -1, vae.latents), _edge(small.decoder, 0, vae.latents)
    rows = [*kept, *(vae.latents + j for j in kept)]
    small.encoder = _replaced(small.encoder, last, _linear(last.weight[rows], last.bias[rows]))
    dropped = [j for j in range(vae.latents) if j not in kept]
    folded = first.bias.double() + first.weight[:, dropped].double() @ mean[dropped]
    small.decoder = _replaced(small.decoder, first, _linear(first.weight[:, kept], folded.to(first.weight)))
    small.latents = len(kept)
    if small.config is not None:
        options = {**small.config["options"], "latents": len(kept)}
        small.config = {**small.config, "options": options}
    return small


def _edge(part: nn.Module, place: int, latents: int) -> nn.Linear:
    """The linear layer next to the code."""
    listed = [m for m in part.modules() if not list(m.children())]
    edge = listed[place] if listed else None
    width = None if not isinstance(edge, nn.Linear) else edge.out_features if place else edge.in_features
    if not isinstance(edge, nn.Linear) or edge.bias is None or width != (2 * latents if place else latents):
        side = "the encoder must end in" if place else "the decoder must begin with"
        raise UnbraidError(f"to prune, {side} a linear layer with bias next to the code; found {edge!r}.")
    return edge


def _replaced(part: nn.Module, old: nn.Linear, new: nn.Linear) -> nn.Module:
    for name, module in part.named_modules():
        if module is old and name:
            parent, _, leaf = name.rpartition(".")
            setattr(part.get_submodule(parent), leaf, new)
            return part
    return new


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    made = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    made.weight.copy_(weight)
    made.bias.copy_(bias)
    return made
