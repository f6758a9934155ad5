"""Step 6: which directions at its input make an MLP write the primary sink's direction.

Reference: arXiv 2512.22213, notebook 04: principal components of sinks and controls, pushed through the MLP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from unbraid.core.blocks import blocks, listening, residual
from unbraid.core.errors import UnbraidError
from unbraid.core.inputs import lean_inputs
from unbraid.systems.secondary_sinks.origin import mlp_of

Side = Literal["residual", "attention", "mlp"]


@dataclass
class Push:
    """What the MLP answers to principal components of its inputs.

    Attributes:
        layer: the block.
        side: where the inputs were taken.
        variance: [n] share of variance of each component.
        norm: [n, 2] norm of the answer to +e and -e.
        cosine: [n, 2] cosine of that answer with the primary sink's direction.
        scales: [m] the factors of the sweep.
        swept_norm: [n, m]; `swept_cosine` [n, m].
    """

    layer: int
    side: str
    variance: np.ndarray
    norm: np.ndarray
    cosine: np.ndarray
    scales: np.ndarray
    swept_norm: np.ndarray
    swept_cosine: np.ndarray

    @property
    def even(self) -> np.ndarray:
        """[n] whether +e and -e turn the answer the same way, as an even (quadratic) amplifier does."""
        return np.sign(self.cosine[:, 0]) == np.sign(self.cosine[:, 1])

    def rows(self) -> list[dict[str, Any]]:
        """One row per component."""
        return [
            {
                "component": i + 1, "variance": float(self.variance[i]), "norm of +e": float(self.norm[i, 0]),
                "norm of -e": float(self.norm[i, 1]), "cosine of +e": float(self.cosine[i, 0]),
                "cosine of -e": float(self.cosine[i, 1]), "even": bool(self.even[i]),
            }
            for i in range(len(self.norm))
        ]  # fmt: skip


@torch.no_grad()
def push_directions(
    model: nn.Module,
    inputs: Tensor,
    direction: Tensor,
    layer: int,
    *,
    side: str = "mlp",
    components: int = 10,
    scales: Sequence[float] | None = None,
) -> Push:
    """Principal components of inputs, each pushed through a block's MLP with both signs and over a range of scales.

    Args:
        model: a transformer whose block has its MLP as one module.
        inputs: [n, width], sinks and as many controls; `side_inputs` collects them.
        direction: [width], the primary sink's residual stream after the block (or what the MLP adds there).
        layer: the block.
        side: a name for where the inputs were taken.
        components: how many.
        scales: of the sweep; None: -20 to 20 without 0.

    Raises:
        UnbraidError: fewer than three inputs.
    """
    if len(inputs) < 3:
        raise UnbraidError(
            f"Principal components need three inputs or more, not {len(inputs)}: there are too few sinks."
        )
    mlp = mlp_of(blocks(model)[layer])
    kind = next(mlp.parameters())
    x = inputs.float() - inputs.float().mean(0)
    _, s, v = torch.linalg.svd(x, full_matrices=False)
    # n centred rows span n - 1 directions at the most
    n = min(components, len(x) - 1)
    e, factor = (
        v[:n],
        torch.tensor([a for a in range(-20, 21) if a] if scales is None else list(scales), dtype=torch.float32),
    )
    target = torch.nn.functional.normalize(direction.float().cpu(), dim=0)

    def answer(rows: Tensor) -> tuple[np.ndarray, np.ndarray]:
        y = residual(mlp(rows[None].to(kind))).float().cpu().reshape(-1, rows.shape[-1])
        norm = y.norm(dim=-1)
        return norm.numpy(), (y @ target / norm.clamp(min=1e-12)).numpy()

    norm, cosine = answer(torch.cat([e, -e]))
    swept = answer((e[:, None] * factor[None, :, None]).reshape(-1, e.shape[1]))
    return Push(
        layer, side, (s[:n] ** 2 / (s**2).sum()).numpy(), norm.reshape(2, n).T, cosine.reshape(2, n).T, factor.numpy(),
        swept[0].reshape(n, -1), swept[1].reshape(n, -1),
    )  # fmt: skip


@torch.no_grad()
def side_inputs(
    model: nn.Module, input_ids: Tensor, layer: int, positions: Sequence[int], side: Side = "mlp"
) -> Tensor:
    """[n, width] what reaches a block at some tokens: its input, its attention's output, or its MLP's input.

    Raises:
        UnbraidError: the side is none of the three.
    """
    block = blocks(model)[layer]
    if side not in ("residual", "attention", "mlp"):
        raise UnbraidError(f"side={side!r} is unknown; choose 'residual', 'attention' or 'mlp'.")
    kept: list[Tensor] = []

    def first(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept.append(args[0] if args else kwargs["hidden_states"])

    def result(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        kept.append(residual(output))

    if side == "attention":
        if block.out is None:
            raise UnbraidError(f"The attention of {block.name} has no last projection to read.")
        with listening({block.out: result}):
            model(**lean_inputs(model, input_ids))
    else:
        with listening(None, {block.module if side == "residual" else mlp_of(block): first}):
            model(**lean_inputs(model, input_ids))
    x = kept[0]
    return x.reshape(-1, x.shape[-1])[list(positions)].float().cpu()
