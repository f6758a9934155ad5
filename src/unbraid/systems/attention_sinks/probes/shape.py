"""Geometric anchoring and anti-overmixing (survey 4.4 and 4.5): angles to the sink, and how far a change spreads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbraid.core.blocks import blocks, final_norm, listening, residual
from unbraid.core.errors import UnbraidError
from unbraid.systems.attention_sinks.detection.findings import feed
from unbraid.systems.attention_sinks.detection.layout import layout_for, layouts


@torch.no_grad()
def states(model: nn.Module, inputs: Mapping[str, Any]) -> list[Tensor]:
    """The residual stream after every block, [B, T, d] each."""
    stack, found = blocks(model), []

    def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        found.append(residual(output).detach())

    with listening({block.module: keep for block in stack}):
        feed(model, inputs)
    return found


@torch.no_grad()
def geometry(model: nn.Module, inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Angle of every token's normed state to the sink's, block by block (OrthoRank, arXiv 2507.03865).

    States are normed as the next block norms them. Orthogonality is 1 - |cos|: tokens near 1 are those that OrthoRank
    keeps computing.

    Args:
        model: any model with blocks.
        inputs: of the model.

    Returns:
        Per block: mean cosine with the sink, mean cosine between neighbouring tokens as comparison, and mean, lower and
        upper quartile of the orthogonality.
    """
    stack, rows = blocks(model), []
    known = layouts(inputs)
    for i, h in enumerate(states(model, inputs)):
        tokens = layout_for(known, h.shape[0], h.shape[1], h.device)
        norm = stack[i + 1].norms[0][1] if i + 1 < len(stack) and stack[i + 1].norms else final_norm(model)
        x = F.normalize((h if norm is None else norm(h)).float(), dim=-1)
        sink = torch.einsum("btd,bt->bd", x, tokens.first.float() / tokens.first.sum(-1, keepdim=True))
        cosine = torch.einsum("btd,bd->bt", x, F.normalize(sink, dim=-1))
        rest = tokens.valid & ~tokens.first
        pair = (x[:, 1:] * x[:, :-1]).sum(-1)[rest[:, 1:] & rest[:, :-1]]
        away = 1 - cosine[rest].abs()
        low, high = (float(away.quantile(q)) for q in (0.25, 0.75))
        rows.append({
            "block": i, "cosine with the sink": float(cosine[rest].mean()), "cosine of neighbours": float(pair.mean()),
            "orthogonality": float(away.mean()), "low": low, "high": high,
        })  # fmt: skip
    return rows


def mixing(model: nn.Module, ids: Tensor, bos: int | None, seed: int = 0) -> list[dict[str, Any]]:
    """How far a change of one token spreads through the blocks, with a BOS in front and without.

    The second token of each text is replaced by a random one of the batch; spread is the mean over later tokens of
    |h - h'| / |h|. If sinks keep tokens from mixing too much, a change spreads further without a BOS.

    Args:
        model: a decoder language model.
        ids: [B, n] texts without BOS, n at least 4.
        bos: its id, from `tokenizer.bos_token_id`.
        seed: of the replacing tokens.

    Returns:
        Per block: spread with BOS, without, and both per text.

    Raises:
        UnbraidError: the tokenizer has no BOS, or the texts are too short.
    """
    if bos is None:
        raise UnbraidError(
            "this model's tokenizer has no BOS token, so there is nothing to compare; give bos= the id of the token "
            "that its texts begin with."
        )
    if ids.dim() != 2 or ids.shape[1] < 4:
        raise UnbraidError(f"mixing needs texts [batch, tokens] of at least 4 tokens, not {tuple(ids.shape)}.")
    pool = ids.flatten().unique()
    pick = torch.randint(len(pool), (len(ids),), generator=torch.Generator().manual_seed(seed))
    changed = ids.clone()
    new = pool[pick.to(ids.device)]
    changed[:, 1] = torch.where(new == ids[:, 1], pool[(pick.to(ids.device) + 1) % len(pool)], new)
    found = {}
    for name, front in (("with BOS", ids.new_full((len(ids), 1), bos)), ("without BOS", ids[:, :0])):
        kept = 2 + front.shape[1]
        before = states(model, {"input_ids": torch.cat([front, ids], 1)})
        after = states(model, {"input_ids": torch.cat([front, changed], 1)})
        found[name] = [
            ((b - a).float().norm(dim=-1) / a.float().norm(dim=-1).clamp(min=1e-12))[:, kept:].mean(1)
            for a, b in zip(before, after, strict=True)
        ]
    return [
        {
            "block": i, "with BOS": float(x.mean()), "without BOS": float(y.mean()),
            "texts with BOS": x.tolist(), "texts without BOS": y.tolist(),
        }
        for i, (x, y) in enumerate(zip(found["with BOS"], found["without BOS"], strict=True))
    ]  # fmt: skip
