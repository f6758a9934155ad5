"""Statistics from fused attention calls: the answers of row blocks, cheaper where the kernel is fast, linear memory.

Recipes (P = softmax of the masked logits, LSE its row log-sum-exp):
P @ E is attention with values E; P^T @ W is the gradient of attention with respect to its values for the output
gradient W; entropy is LSE - (logits averaged under P), where the average of scale * q k under P is scale * q (P @ K);
single entries are exp(logit - LSE). Values are padded to the head width: any other width drops the CPU kernel to n x n.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from unbraid.core.calls import Ask, AttentionCall
from unbraid.core.engine.logits import HIDDEN
from unbraid.core.engine.rows import budget, sweep

# The seams replace this function while a model is attached; the engine always calls torch's own.
SDPA = F.scaled_dot_product_attention


class Counter:
    """Fused calls made since the start, for tests and reports."""

    calls = 0


def can_fuse(c: AttentionCall) -> bool:
    """Whether a fused kernel can see this call's logits: not with soft caps or where the model made the logits."""
    return c.softcap is None and c.logits is None


def kernel_mask(c: AttentionCall, dtype: torch.dtype) -> tuple[Tensor | None, bool]:
    """(mask, is_causal) for torch's kernel, which refuses both at once; a mask of another dtype is converted."""
    mask = c.mask
    if mask is None:
        return None, c.causal
    while mask.dim() < 4:
        mask = mask.unsqueeze(0)
    if c.causal:
        seen = torch.ones(c.queries, c.keys, dtype=torch.bool, device=mask.device).tril_()
        mask = mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, torch.finfo(mask.dtype).min)
    return (mask if mask.dtype == torch.bool else mask.to(dtype)), False


def biased(c: AttentionCall, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys widened by 8 columns so that their product carries the key bias: still linear in memory."""
    if c.key_bias is None:
        return query, key
    heads, width = c.key_bias.shape[1], query.shape[-1]
    if heads > 1 and heads != key.shape[1]:
        key = c.expand(key)
    # -inf would turn 0 * inf into NaN inside the product; this hides just as well
    bias = (c.key_bias.to(key.dtype) / c.scale).clamp(min=-3e4 if key.dtype == torch.float16 else HIDDEN / 1e10)
    extra = key.new_zeros(*key.shape[:-1], 8)
    extra[..., 0] = bias
    one = query.new_zeros(*query.shape[:-1], 8)
    one[..., 0] = 1.0
    assert width == key.shape[-1]
    return torch.cat([query, one], -1), torch.cat([key, extra], -1)


def attend(c: AttentionCall, values: Float[Tensor, "b G K g"]) -> Float[Tensor, "B H Q g"]:
    """P @ values by one fused call per head width of values.

    Args:
        c: a call for which `can_fuse` holds.
        values: [B|1, G or H, K, g] in the dtype wanted; computed in that dtype.

    Returns:
        [B, H, Q, g]; rows that see no key are zero; with sink logits the mass that goes to the sink is missing.
    """
    dtype, wanted = values.dtype, values.shape[-1]
    allowed = allowed_keys(c)
    if allowed is not None:  # one more column: the mass on keys that are not hidden says which rows see any
        if allowed.shape[1] > 1:
            values = c.expand(values)
        b, h = (max(allowed.shape[i], values.shape[i]) for i in (0, 1))
        column = allowed[..., None].to(dtype).expand(b, h, -1, 1)
        values = torch.cat([values.expand(b, h, -1, -1), column], -1)
    g = values.shape[-1]
    query, key = biased(c, c.query.to(dtype), c.key.to(dtype))
    batch = max(query.shape[0], key.shape[0], values.shape[0])
    mask, causal = kernel_mask(c, dtype)
    if values.shape[1] != key.shape[1]:
        key, values = c.expand(key), c.expand(values)
    width, parts = query.shape[-1], []
    for at in range(0, g, width):
        part = values[..., at : at + width]
        part = F.pad(part, (0, width - part.shape[-1])) if part.shape[-1] < width else part
        Counter.calls += 1
        out = SDPA(
            query.expand(batch, -1, -1, -1),
            key.expand(batch, -1, -1, -1),
            part.expand(batch, -1, -1, -1),
            attn_mask=mask,
            is_causal=causal,
            scale=c.scale,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        parts.append(out[..., : min(width, g - at)])
    out = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
    if c.sinks is not None:
        out = out * torch.sigmoid(lse(c) - c.sinks.float().view(1, -1, 1))[..., None].to(dtype)
    if allowed is not None:
        out = torch.where(out[..., -1:] > 0, out[..., :wanted], 0.0)
    return only_seeing(c, out)


def allowed_keys(c: AttentionCall) -> Tensor | None:
    """[B|1, H|1, K] bool: keys that the key bias does not hide; None when it hides none."""
    if c.key_bias is None:
        return None
    allowed = c.key_bias > HIDDEN / 1e11
    return None if bool(allowed.all()) else allowed


def only_seeing(c: AttentionCall, out: Float[Tensor, "B H Q v"]) -> Float[Tensor, "B H Q v"]:
    """Zeroes the output rows [B, H, Q, *] of queries that the mask lets see no key."""
    if c.mask is None:
        return out
    mask = c.mask if c.mask.dtype == torch.bool else c.mask > HIDDEN / 10
    while mask.dim() < 4:
        mask = mask.unsqueeze(0)
    if mask.shape[-2] == 1 and c.causal:
        return out.nan_to_num(nan=0.0)
    alive = mask.any(-1) if not c.causal else (mask.tril(0)).any(-1)
    return torch.where(alive[..., None], out, 0.0)


def received(c: AttentionCall, weights: Float[Tensor, "*lead Q w"]) -> Float[Tensor, "B H K w"]:
    """P^T @ weights as a gradient with respect to the values of a fused call; no gradient flows through it.

    Args:
        c: a call for which `can_fuse` holds.
        weights: [Q, w] or [B|1, H|1, Q, w].

    Returns:
        [B, H, K, w] in float32.
    """
    while weights.dim() < 4:
        weights = weights.unsqueeze(0)
    with torch.inference_mode(False), torch.enable_grad():
        free = c.replace(query=c.query.detach().clone(), key=c.key.detach().clone(), mask=_clone(c.mask))
        values = torch.zeros(c.batch, c.heads, c.keys, weights.shape[-1], device=c.device, requires_grad=True)
        out = attend(free, values)
        (grad,) = torch.autograd.grad(out, values, weights.float().clone().expand_as(out))
    return grad.detach()


def _clone(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach().clone()


def lse(c: AttentionCall) -> Float[Tensor, "B H Q"]:
    """Row log-sum-exp of the masked logits [B, H, Q], float32, sink logits excluded; -inf on rows that see nothing."""
    if c.device.type == "cpu" and c.key.shape[-1] == c.query.shape[-1]:
        query, key = biased(c, c.query.float(), c.key.float())
        batch = max(query.shape[0], key.shape[0])
        query, key = query.expand(batch, -1, -1, -1), c.expand(key).expand(batch, -1, -1, -1)
        mask, causal = kernel_mask(c, torch.float32)
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, -torch.inf)
        Counter.calls += 1
        _, out = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, key, 0.0, causal, attn_mask=mask, scale=c.scale
        )
        out = out.float().contiguous()
        return out if mask is None else torch.where((mask > HIDDEN / 10).any(-1), out, -torch.inf)
    answer, _, _ = sweep(c, Ask(lse=True), [], budget(c.device))
    assert answer.lse is not None
    return answer.lse


def entropy(c: AttentionCall, log_z: Float[Tensor, "B H Q"]) -> Float[Tensor, "B H Q"]:
    """Row entropies in nats [B, H, Q] in float32, given `lse(c)`; one fused call with the keys as values."""
    plain = c.replace(sinks=None)
    key, query = c.expand(c.key).float(), c.query.float()
    if c.key_bias is not None:
        query, key = biased(c, query, key)
    mean = (query * attend(plain, key)).sum(-1) * c.scale
    if c.mask is not None and c.mask.dtype != torch.bool:
        raise ValueError(
            "Entropy from fused calls needs logits without an additive mask; the planner takes row blocks."
        )
    out = torch.where(log_z.isfinite(), log_z - mean, 0.0)
    if c.sinks is None:
        return out
    factor = torch.sigmoid(log_z - c.sinks.float().view(1, -1, 1))
    return torch.where(log_z.isfinite(), factor * (out - factor.log()), 0.0)


def entries(
    c: AttentionCall, rows: Int[Tensor, " m"], keys: Int[Tensor, " m"], log_z: Float[Tensor, "B H Q"]
) -> Float[Tensor, "B H m"]:
    """Chosen probabilities P[..., rows, keys] [B, H, m] in float32, given `lse(c)`; O(m) memory."""
    q, k = c.query[:, :, rows].float(), c.expand(c.key)[:, :, keys].float()
    logit = (q * k).sum(-1) * c.scale
    if c.key_bias is not None:
        logit = logit + c.key_bias.float()[..., keys]
    if c.mask is not None:
        mask = c.mask
        while mask.dim() < 4:
            mask = mask.unsqueeze(0)
        at = mask.expand(*mask.shape[:2], c.queries, c.keys)[:, :, rows, keys]
        logit = logit.masked_fill(~at, HIDDEN) if mask.dtype == torch.bool else logit + at.float().clamp(min=HIDDEN)
    if c.causal:
        logit = logit.masked_fill(keys > rows, HIDDEN)
    row_z = log_z[:, :, rows]
    if c.sinks is not None:
        row_z = torch.logaddexp(row_z, c.sinks.float().view(1, -1, 1))
    return torch.where(row_z.isfinite(), torch.exp(logit - row_z), 0.0)
