"""The survey's ten metrics as functions of small things: what a key receives, outputs, keys, hidden states.

Each takes tensors and returns tensors, knows no model, and needs nothing that is larger than linear in the text.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sink_metric(received: Tensor, watched: Tensor) -> Tensor:
    """Mean attention that a key gets from the queries that may see it: alpha_k of arXiv 2410.10781.

    Args:
        received: [B, H, K], attention summed over queries.
        watched: [B, 1 or H, K], how many queries may see the key.
    """
    return torch.where(watched > 0, received / watched.clamp(min=1), 0.0)


def cumulative_sinks(alpha: Tensor, valid: Tensor, tau: float) -> Tensor:
    """Keys whose mean attention exceeds tau times the average over keys (survey, equation 5), bool like `alpha`.

    Args:
        alpha: [..., K], already divided by the number of queries that see each key.
        valid: broadcastable to alpha; other keys neither count nor win.
        tau: one source uses 1000, which no text shorter than that can reach.
    """
    kept = torch.where(valid, alpha, 0.0)
    mean = kept.sum(-1, keepdim=True) / valid.expand_as(kept).sum(-1, keepdim=True).clamp(min=1)
    return valid & (kept > tau * mean)


def bias_constancy(writes: Tensor, valid: Tensor) -> Tensor:
    """Mean cosine over all pairs of queries of what the sinks write, [B, H]: near 1 when they act as a bias (KVSink).

    One sink token writes along one direction, so its constancy is 1 by construction; the number says something from two
    sinks on. Pairs are never formed: |sum of unit vectors|^2 holds them all.

    Args:
        writes: [B, H, Q, V], sum over sinks of A_ij v_j.
        valid: [B, Q] bool.
    """
    size = writes.norm(dim=-1)
    counted = (size > 1e-12) & valid[:, None]
    unit = torch.where(counted[..., None], writes / size.clamp(min=1e-12)[..., None], 0.0).double()
    n = counted.sum(-1).double()
    pairs = unit.sum(-2).square().sum(-1) - n
    return torch.where(n > 1, pairs / (n * (n - 1)).clamp(min=1), torch.nan).float()


def key_distinctiveness(keys: Tensor, valid: Tensor | None = None) -> Tensor:
    """1 - cos(k_j, mean of the normalised keys), [B, G, K]: high for keys unlike the others (KeyDiff, 2504.15364).

    Args:
        keys: [B, G, K, D].
        valid: [B, K] bool; others neither count in the mean nor get a meaningful number.
    """
    unit = F.normalize(keys.float(), dim=-1)
    weight = unit.new_ones(keys.shape[0], keys.shape[2]) if valid is None else valid.to(unit)
    centre = torch.einsum("bgkd,bk->bgd", unit, weight)
    return 1 - torch.einsum("bgkd,bgd->bgk", unit, F.normalize(centre, dim=-1))


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's correlation along the last axis of two tensors of one shape (ties in the order of the tokens)."""
    ranks = [x.argsort(-1).argsort(-1).double() for x in (a, b)]
    centred = [r - r.mean(-1, keepdim=True) for r in ranks]
    scale = (centred[0].square().sum(-1) * centred[1].square().sum(-1)).sqrt().clamp(min=1e-12)
    return ((centred[0] * centred[1]).sum(-1) / scale).float()


def value_ratio(values: Tensor, sinks: Tensor, valid: Tensor) -> Tensor:
    """Norm of the sinks' values over the median norm of all, [B, G]: below 1 for a no-op.

    Args:
        values: [B, G, K, V].
        sinks: [B, K] bool.
        valid: [B, K] bool.
    """
    size = values.float().norm(dim=-1)
    typical = torch.where(valid[:, None], size, torch.nan).nanmedian(-1).values
    mine = torch.where(sinks[:, None], size, torch.nan).nanmean(-1)
    return mine / typical.clamp(min=1e-12)


def write_share(sink_write: Tensor, write: Tensor, gram: Tensor | None, valid: Tensor) -> Tensor:
    """Mean over queries of |A_is v_s W_O| / |o_i W_O|, [B, H]: small while the attention is large, for a no-op.

    Args:
        sink_write: [B, H, Q, V], before the output projection.
        write: [B, H, Q, V], the whole output of each head.
        gram: [H, V, V], W_O W_O^T of each head, or None to leave the projection out.
        valid: [B, Q] bool.
    """

    def length(x: Tensor) -> Tensor:
        x = x.float()
        square = x.square().sum(-1) if gram is None else torch.einsum("bhqv,hvw,bhqw->bhq", x, gram, x)
        return square.clamp(min=0).sqrt()

    ratio = length(sink_write) / length(write).clamp(min=1e-12)
    weight = valid[:, None].to(ratio)
    return (ratio * weight).sum(-1) / weight.sum(-1).clamp(min=1)


def massive_activations(
    hidden: Tensor, valid: Tensor, floor: float = 100.0, ratio: float = 1_000.0, most: int = 32
) -> tuple[list[tuple[int, int, int, float]], float]:
    """Entries above `floor` and above `ratio` times the median magnitude (arXiv 2402.17762), largest first.

    Args:
        hidden: [B, T, d].
        valid: [B, T] bool.
        floor: smallest magnitude.
        ratio: smallest multiple of the median magnitude.
        most: entries returned per text, on average.

    Returns:
        (text, token, channel, value) of each, and the median magnitude.
    """
    size = hidden.float().abs()
    size = torch.where(valid[..., None], size, 0.0)
    median = float(size[valid].median())
    limit = max(floor, ratio * median)
    best = size.flatten().topk(min(most * len(size), size.numel()))
    found = []
    for value, at in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        if value <= limit:
            break
        text, rest = divmod(at, size.shape[1] * size.shape[2])
        token, channel = divmod(rest, size.shape[2])
        found.append((text, token, channel, float(hidden[text, token, channel])))
    return found, median


def channel_sinks(hidden: Tensor, channels: list[int], ratio: float = 20.0) -> Tensor:
    """Tokens with max over chosen channels of |h| / rms(h) above `ratio`, [B, T] bool (VAR's test for image tokens)."""
    h = hidden.float()
    return h[..., channels].abs().amax(-1) / h.square().mean(-1).sqrt().clamp(min=1e-12) > ratio


def kurtosis(hidden: Tensor, valid: Tensor) -> tuple[float, float]:
    """(over all entries, mean over tokens) of the fourth moment over the squared second; 3 for a Gaussian.

    Args:
        hidden: [B, T, d].
        valid: [B, T] bool.
    """
    x = hidden[valid].float()

    def of(y: Tensor, dim: int | None) -> Tensor:
        centred = y - (y.mean() if dim is None else y.mean(dim, keepdim=True))
        square = centred.square()
        if dim is None:
            return square.square().mean(dtype=torch.float64) / square.mean(dtype=torch.float64).square().clamp(
                min=1e-30
            )
        return square.square().mean(dim) / square.mean(dim).square().clamp(min=1e-30)

    return float(of(x, None)), float(of(x, -1).mean())


def lifecycle(layers: list[int], depth: int) -> dict[str, int | None]:
    """Where massive activations emerge, until where they stay, and where they are gone again.

    Args:
        layers: layers at which they were found.
        depth: number of layers.
    """
    if not layers:
        return {"emerges": None, "last": None, "gone": None}
    last = max(layers)
    return {"emerges": min(layers), "last": last, "gone": last + 1 if last + 1 < depth else None}


def super_experts(maxima: Tensor, quantile: float = 0.995, share: float = 0.1) -> Tensor:
    """Experts whose down-projection reaches magnitudes that others do not, [layers, experts] bool.

    An expert counts when its largest output channel lies above the quantile of all experts and above `share` of the
    very largest one (experts that were never used hold NaN).

    Args:
        maxima: [layers, experts], largest magnitude of each expert's output.
        quantile: of all experts.
        share: of the maximum.
    """
    known = maxima[maxima.isfinite()]
    if not known.numel():
        return torch.zeros_like(maxima, dtype=torch.bool)
    limit = max(float(torch.quantile(known.float(), quantile)), share * float(known.max()))
    return maxima.nan_to_num(nan=-1.0) >= limit
