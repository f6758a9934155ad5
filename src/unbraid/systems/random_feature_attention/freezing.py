"""Freezing queries and keys of attention that people have, and what a frozen, random or trained layer can still learn.

The paper's question for a real layer: keep its query and key projections frozen (as pre-trained, or drawn anew), train
values and output, and see how well a function of its inputs is learned, next to training all four.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from unbraid.core.errors import UnbraidError

ARMS = ("random", "pretrained", "trained")
QUERY_KEY = ("q_proj", "k_proj", "query", "key", "q_lin", "k_lin", "query_proj", "key_proj", "to_q", "to_k", "q", "k")
Call = Callable[[nn.Module, Tensor], Tensor]


class FrozenRows(nn.Module):
    """Queries and keys of a packed projection as a buffer; what stays a parameter are the rows of the values.

    Args:
        whole: [3 width(, width)] packed weight or bias.
        frozen: its first two thirds, to be kept.
    """

    frozen: Tensor

    def __init__(self, whole: Tensor, frozen: Tensor) -> None:
        super().__init__()
        self.rows = len(whole) - len(frozen)
        self.register_buffer("frozen", frozen.detach().clone())

    def forward(self, values: Tensor) -> Tensor:
        """The packed tensor."""
        return torch.cat([self.frozen, values])

    def right_inverse(self, whole: Tensor) -> Tensor:
        """The rows of the values."""
        return whole[-self.rows :]


def freeze_query_key(module: nn.Module, redraw: bool = True, seed: int = 0) -> list[str]:
    """Freezes the query and key projections of all attention in a module, in place.

    Takes `torch.nn.MultiheadAttention`, packed or not, and linear layers that are called as in the Hugging Face
    models (q_proj, query, q_lin, to_q, ...). Values and output stay as they are.

    Args:
        module: a layer, a block or a model.
        redraw: draw them anew, normal with the standard deviation that each had; biases become zero.
        seed: of the draw.

    Returns:
        Names of what was frozen.

    Raises:
        UnbraidError: there is nothing of the kind.
    """
    draw, frozen, seen = torch.Generator().manual_seed(seed), [], set[str]()
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.MultiheadAttention):
            _freeze_multihead(part, draw if redraw else None)
            frozen.append(name or "in_proj")
            seen |= {f"{name}.{inner}".strip(".") for inner, _ in part.named_modules() if inner}
        elif isinstance(part, nn.Linear) and name.rpartition(".")[2] in QUERY_KEY and name not in seen:
            with torch.no_grad():
                if redraw:
                    part.weight.copy_(_drawn(part.weight, draw))
                    if part.bias is not None:
                        part.bias.zero_()
            part.requires_grad_(False)
            frozen.append(name)
    if not frozen:
        raise UnbraidError(
            f"{type(module).__name__} has no MultiheadAttention and no linear layer called {', '.join(QUERY_KEY[:4])}, "
            "...; give a module with attention of that form."
        )
    return frozen


def _drawn(weight: Tensor, draw: torch.Generator) -> Tensor:
    return (torch.randn(weight.shape, generator=draw) * float(weight.detach().std())).to(weight)


def _freeze_multihead(attention: nn.MultiheadAttention, draw: torch.Generator | None) -> None:
    if attention.in_proj_weight is None:
        for weight in (attention.q_proj_weight, attention.k_proj_weight):
            with torch.no_grad():
                if draw is not None:
                    weight.copy_(_drawn(weight, draw))
            weight.requires_grad_(False)
    else:
        weight = attention.in_proj_weight
        kept = weight[: 2 * attention.embed_dim]
        kept = kept if draw is None else _drawn(kept, draw)
        parametrize.register_parametrization(attention, "in_proj_weight", FrozenRows(weight, kept), unsafe=True)
    if attention.in_proj_bias is not None:
        bias = attention.in_proj_bias
        kept = bias[: 2 * attention.embed_dim]
        kept = kept if draw is None else torch.zeros_like(kept)
        parametrize.register_parametrization(attention, "in_proj_bias", FrozenRows(bias, kept), unsafe=True)


def attend(attention: nn.Module, hidden: Tensor) -> Tensor:
    """[n, tokens, width] output of self-attention, of torch's module or of one that takes hidden states first."""
    if isinstance(attention, nn.MultiheadAttention):
        return attention(hidden, hidden, hidden, need_weights=False)[0]
    found = attention(hidden)
    return found[0] if isinstance(found, tuple) else found


class _Probe(nn.Module):
    """Attention, and a linear readout of what the first token gets."""

    def __init__(self, attention: nn.Module, width: int, call: Call) -> None:
        super().__init__()
        self.attention, self.call = attention, call
        self.read = nn.Linear(width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.read(self.call(self.attention, hidden)[:, 0])[:, 0]


def compare_frozen(
    attention: nn.Module,
    hidden: Any,
    y: Any,
    call: Call = attend,
    steps: int = 600,
    lr: float = 3e-3,
    batch: int = 128,
    test: float = 0.25,
    seeds: Sequence[int] = (0, 1, 2),
    arms: Sequence[str] = ARMS,
) -> list[dict[str, Any]]:
    """Learns a function of a layer's inputs with its queries and keys frozen at random, frozen as they are, or trained.

    Args:
        attention: the layer's self-attention; copied, never changed.
        hidden: [n, tokens, width] inputs of the layer; the function is read from the output at token 0.
        y: [n] values of the function.
        call: (attention, hidden) -> [n, tokens, width]; by default `attend`.
        steps: of AdamW, at most 256 held-out inputs not being looked at before the end.
        lr: its learning rate.
        batch: inputs per step.
        test: share of the inputs that are tested on, the last of them.
        seeds: of readout, draws and batches.
        arms: out of `ARMS`.

    Returns:
        Rows: arm, seed, error (MSE over the variance of the tested values), trained weights.

    Raises:
        UnbraidError: shapes do not fit, an unknown arm, or attention of another form.
    """
    from unbraid.core.train import fit_loop

    states = torch.as_tensor(np.asarray(hidden), dtype=torch.float32)
    target = torch.as_tensor(np.asarray(y), dtype=torch.float32)
    if states.ndim != 3 or target.shape != states.shape[:1] or len(states) < 8:
        raise UnbraidError(
            f"hidden must be [n, tokens, width] and y [n], n at least 8; given are {tuple(states.shape)} and "
            f"{tuple(target.shape)}."
        )
    if not bool(torch.isfinite(states).all() and torch.isfinite(target).all()):
        raise UnbraidError("hidden and y must be finite numbers; there are NaN or infinities.")
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown or not arms:
        raise UnbraidError(f"there is no arm {unknown[:1] or arms!r}; give some of {', '.join(ARMS)}.")
    kept = len(states) - max(2, round(len(states) * test))
    middle, spread = target[:kept].mean(), target[:kept].std().clamp_min(1e-12)
    labels = (target - middle) / spread
    rows = []
    for seed in seeds:
        for arm in arms:
            torch.manual_seed(seed)
            probe = _Probe(copy.deepcopy(attention).requires_grad_(True), states.shape[2], call)
            if arm != "trained":
                freeze_query_key(probe.attention, redraw=arm == "random", seed=seed)

            def batches(number: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
                at = torch.randint(kept, (batch,), generator=draw)
                return states[at], labels[at]

            def loss(module: Any, pair: tuple[Tensor, Tensor]) -> Tensor:
                return (module(pair[0]) - pair[1]).square().mean()

            fit_loop(probe, loss, batches, steps=steps, lr=lr, seed=seed, device="cpu", progress=False)
            with torch.no_grad():
                wrong = (probe.eval()(states[kept:]) - labels[kept:]).square().mean()
            trained = sum(p.numel() for p in probe.parameters() if p.requires_grad)
            error = float(wrong / labels[kept:].var(unbiased=False))
            rows.append({"arm": arm, "seed": seed, "error": error, "trained weights": trained})
    return rows


def vision_inputs(images: int, seed: int, layer: int = 1) -> tuple[nn.Module, np.ndarray]:
    """A layer's self-attention of the shipped `tiny-clip` and its inputs on drawn scenes.

    Args:
        images: how many.
        seed: of the scenes.
        layer: of the vision encoder.

    Returns:
        The attention, and [images, 65, 128] what it gets: the class token, then patches.
    """
    from unbraid import zoo
    from unbraid.data.scenes import render, sample

    model = zoo.load("tiny-clip", progress=False).model.eval()
    block: Any = model.vision_model.encoder.layers[layer]
    pixels = render(sample(images, seed=seed), size=model.config.vision_config.image_size)
    found: list[Tensor] = []
    handle = block.self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: found.append((args or (kwargs["hidden_states"],))[0]), with_kwargs=True
    )
    try:
        with torch.no_grad():
            for part in torch.from_numpy(np.asarray(pixels, np.float32)).split(64):
                model.vision_model(pixel_values=part * 2 - 1)
    finally:
        handle.remove()
    return block.self_attn, torch.cat(found).numpy()
