"""The faster attention against transformers' own: outputs on all rows, and gradients of every weight."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from unbraid.systems.deberta.swapping import accelerated

BACKENDS = ("crop", "skew", "blocks", "flex")
FORWARD, GRADIENT = 1e-5, 1e-4  # the largest differences that are allowed
LENGTHS = (7, 64, 600)
TERMS = {"c2p": ["c2p"], "p2c": ["p2c"], "both": ["c2p", "p2c"], "neither": []}
STD = 0.1  # of weights: five times the usual, so that positions matter
# version, whether the content's projections are shared, terms, buckets, width of the convolution
CASES: list[tuple[str, bool, str, int, int]] = [
    *(("v2", share, terms, buckets, conv) for share, terms, buckets, conv in
      itertools.product((True, False), TERMS, (-1, 8, 256), (0, 3))),
    *(("v1", False, terms, -1, 0) for terms in TERMS),
]  # fmt: skip


def build(case: tuple[str, bool, str, int, int]) -> Any:
    """A small model of a case, with random weights of a fixed seed."""
    from transformers import DebertaConfig, DebertaModel, DebertaV2Config, DebertaV2Model

    version, share, terms, buckets, conv = case
    common: dict[str, Any] = {
        "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 512, "relative_attention": True, "pos_att_type": TERMS[terms],
        "position_biased_input": False, "type_vocab_size": 0, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    second: dict[str, Any] = {
        "position_buckets": buckets, "share_att_key": share, "norm_rel_ebd": "layer_norm", "conv_kernel_size": conv
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model: Any = DebertaModel(DebertaConfig(**common)) if version == "v1" else None
        model = model or DebertaV2Model(DebertaV2Config(**common, **second))
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(std=STD)
            else:
                p.add_(torch.randn_like(p) * STD)
    return model.eval()


def ragged(length: int) -> tuple[Tensor, Tensor]:
    """Tokens and masks of three texts: whole, cut on the right, cut on the left."""
    ids = torch.randint(0, 50, (3, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones(3, length, dtype=torch.long)
    mask[1, max(1, length // 2) :] = 0
    mask[2, : length // 3] = 0
    return ids, mask


def compare(case: Any, lengths: tuple[int, ...] = LENGTHS, backends: tuple[str, ...] = BACKENDS) -> dict[str, Any]:
    """Largest differences of a case over back-ends and lengths.

    Args:
        case: one of `CASES`.
        lengths: tokens.
        backends: those of `accelerate`.

    Returns:
        ``tokens``: largest difference of an output at a token. ``padding``: of an output at padding, from transformers
        in double precision: a mean over all values, which transformers itself gets in single precision with an error
        of ``transformers' own``. ``gradient``: largest difference of a weight's gradient, relative to its norm (but no
        less than 1e-4 of the largest norm among weights: the gradient of a bias of keys alone is zero but for
        rounding). All over back-ends, and by back-end.
    """
    version, share, terms, buckets, conv = case
    model, exact = build(case), build(case).double()
    found = {kind: dict.fromkeys(backends, 0.0) for kind in ("tokens", "padding")}
    gradient = {name: 0.0 for name in backends if name != "flex"}  # no gradients on a CPU there
    own = 0.0
    for length in lengths:
        ids, mask = ragged(length)
        known, slopes = _pass(model, ids, mask)
        with torch.no_grad():
            truth = exact(ids, attention_mask=mask).last_hidden_state
        real, padding = mask.bool(), mask == 0
        own = max(own, float((known - truth)[padding].abs().max()))
        floor = 1e-4 * max(float(g.norm()) for g in slopes.values())
        for name in backends:
            with accelerated(model, backend=name):
                with torch.no_grad():
                    outs = [model(ids, attention_mask=mask).last_hidden_state for _ in range(2)]  # the second is cached
                if name in gradient:
                    out, mine = _pass(model, ids, mask)
                    outs.append(out)
                    worst = max(float((mine[k] - g).norm()) / max(float(g.norm()), floor) for k, g in slopes.items())
                    gradient[name] = max(gradient[name], worst)
            for out in outs:
                found["tokens"][name] = max(found["tokens"][name], float((out - known)[real].abs().max()))
                found["padding"][name] = max(found["padding"][name], float((out - truth)[padding].abs().max()))
    return {
        "version": version, "shared": share, "terms": terms, "buckets": buckets, "convolution": conv,
        **{kind: max(by.values()) for kind, by in found.items()}, "transformers' own": own,
        "gradient": max(gradient.values(), default=0.0),
        **{f"{kind} {k}": v for kind, by in found.items() for k, v in by.items()},
        **{f"gradient {k}": v for k, v in gradient.items()},
    }  # fmt: skip


def _pass(model: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    out = model(ids, attention_mask=mask).last_hidden_state
    model.zero_grad(set_to_none=True)
    (out * torch.linspace(-1, 1, out.shape[-1])).square().sum().backward()
    slopes = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return out.detach(), slopes
