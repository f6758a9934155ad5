"""What each head's logits are made of: content, what queries want of places, what keys say of places."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores
from unbraid.systems.deberta import bias as both
from unbraid.systems.deberta.attention import Quick, attentions, pairwise
from unbraid.systems.deberta.positions import rows
from unbraid.systems.deberta.swapping import accelerated

NAMES = ("content", "content to position", "position to content")


def shares(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, HeadScores]:
    """How much of the variation of each head's logits over keys comes from each term.

    Variances are over the keys of a query (what the softmax sees; a constant per query does nothing), averaged over
    queries and sequences without padding, and divided by their sum over terms.

    Args:
        model: any model with DeBERTa attention of transformers, v1 to v3.
        inputs: what it is called with, such as a tokenizer returns.

    Returns:
        "content", "content to position" and "position to content", a share from 0 to 1 for each head.

    Raises:
        UnbraidError: there is no DeBERTa attention in it, or it has absolute positions only.
    """
    found: dict[str, Tensor] = {}
    before = model.training
    model.eval()
    try:
        with accelerated(model, cache=False), torch.no_grad():
            sites = attentions(model)
            hooks = [
                module.register_forward_hook(_measure(name, found), with_kwargs=True, always_call=False)
                for name, module in sites
            ]
            try:
                model(**inputs)
            finally:
                for hook in hooks:
                    hook.remove()
    finally:
        model.train(before)
    if not found:
        raise UnbraidError("this model has no relative positions; its logits are content alone.")
    made = {name: (x / x.sum(0, keepdim=True)).cpu().numpy() for name, x in found.items()}
    return {
        term: HeadScores({name: np.asarray(x[k], float) for name, x in made.items()}, name=f"share of {term}")
        for k, term in enumerate(NAMES)
    }


def _measure(name: str, found: dict[str, Tensor]) -> Any:
    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        given = dict(zip(("hidden_states", "attention_mask"), args, strict=False)) | kwargs
        table = given.get("rel_embeddings")
        if table is None or not isinstance(module, Quick):
            return
        hidden, mask = given["hidden_states"], given["attention_mask"]
        query, key, _ = module._parts(hidden, hidden)
        n = query.shape[2]
        span, buckets, longest = module._reach()
        where = rows(n, n, span, buckets, longest, module.quick["long_range"]).to(hidden.device)
        c2p, p2c = module._positions(table[: 2 * span])
        scale = 1 / math.sqrt(query.shape[-1])
        parts = [
            query @ key.transpose(-1, -2) * scale,
            both.skew(query * scale, key * scale, c2p, None, where),
            both.skew(query * scale, key * scale, None, p2c, where),
        ]
        seen = pairwise(mask, 0, n)
        zero = torch.zeros(query.shape[1], dtype=torch.float64)
        found[name] = torch.stack([zero if one is None else _spread(one, seen).cpu() for one in parts])

    return hook


def _spread(logits: Tensor, seen: Tensor) -> Tensor:
    """Variance over keys of [B, H, n, m], a mean over queries that see something: [H]."""
    weight = seen.double()
    count = weight.sum(-1, keepdim=True).clamp(min=1)
    logits = logits.double()
    middle = (logits * weight).sum(-1, keepdim=True) / count
    spread = ((logits - middle) ** 2 * weight).sum(-1) / count.squeeze(-1)
    queries = seen.any(-1).double()
    return (spread * queries).sum((0, 2)) / queries.expand_as(spread).sum((0, 2)).clamp(min=1)
