"""How a model rotates its keys, found by trying: any rotary embedding, whole or partial, or none at all.

A cache sees keys after rotation. To store them un-rotated and to put them at other places it must know the rotation.
Models pair channels in two ways, list angles in three, and rotate the first or the last channels; nothing in a
configuration says which. So three tokens are run at two places, and the one recipe that turns the keys of the first
run into those of the second is the model's own. A model that no recipe explains is refused rather than got wrong.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError

SHIFT = 7  # tokens between the two trial runs
CLOSE = 2e-2  # of the size of the keys, for bfloat16; a wrong recipe is wrong by about 1
FIXED = frozenset({"default", "linear", "llama3", "yarn", "proportional"})


@dataclass(frozen=True)
class Rotation:
    """The rotation of one layer's keys.

    Attributes:
        module: the model's rotary embedding: positions to cosines and sines.
        kind: layer type that the module asks for, or None.
        angles: how it lists angles: "halves" (all, then all again), "twice" (each twice) or "once".
        pairs: which channels it rotates together: "halves" or "neighbours".
        last: whether it rotates the last channels of a head (else the first).
    """

    module: nn.Module
    kind: str | None
    angles: str
    pairs: str
    last: bool

    def table(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [rows, 1, n, pairs] in float32, as the model computes them (with its attention scaling)."""
        rows = positions if positions.dim() == 2 else positions[None]
        like = torch.empty(1, device=positions.device, dtype=torch.float32)
        extra = {} if self.kind is None else {"layer_type": self.kind}
        cos, sin = self.module(like, position_ids=rows, **extra)
        width = cos.shape[-1]
        cut = {"halves": slice(0, width // 2), "twice": slice(0, None, 2), "once": slice(None)}[self.angles]
        return cos[:, None, :, cut].float(), sin[:, None, :, cut].float()

    def turn(self, x: Tensor, old: Tensor, new: Tensor) -> Tensor:
        """Keys or queries that stand at `old` positions, put at `new` ones; length and scaling are kept.

        Args:
            x: [B, heads, n, D].
            old: [n] or [B, n] int64.
            new: [n] or [B, n] int64.
        """
        (c0, s0), (c1, s1) = self.table(old), self.table(new)
        scale = (c0 * c0 + s0 * s0).sqrt() * (c1 * c1 + s1 * s1).sqrt()
        cos, sin = (c1 * c0 + s1 * s0) / scale, (s1 * c0 - c1 * s0) / scale
        width = 2 * cos.shape[-1]
        part = (x[..., -width:] if self.last else x[..., :width]).float()
        if self.pairs == "halves":
            a, b = part[..., : width // 2], part[..., width // 2 :]
            turned = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
        else:
            a, b = part[..., 0::2], part[..., 1::2]
            turned = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
        turned = turned.to(x.dtype)
        if width == x.shape[-1]:
            return turned
        return torch.cat([x[..., :-width], turned], -1) if self.last else torch.cat([turned, x[..., width:]], -1)


def rotations(model: nn.Module, layers: list[int], kinds: list[str | None]) -> dict[int, Rotation | None]:
    """The rotation of some layers' keys; None for a layer that rotates nothing (ALiBi, no positions at all).

    Args:
        model: a decoder language model of transformers.
        layers: numbers of layers, as its cache counts them.
        kinds: the type of each, for rotary embeddings that differ by type.

    Raises:
        UnbraidError: positions are learned or otherwise no rotation, or the rotation changes with the length.
    """
    modules = rotary_modules(model)
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return dict.fromkeys(layers)
    before, after = trial(model, 0), trial(model, SHIFT)
    here = torch.arange(before[layers[0]].shape[2], device=before[layers[0]].device)
    found: dict[int, Rotation | None] = {}
    for layer, kind in zip(layers, kinds, strict=True):
        a, b = before[layer], after[layer]
        if bool((a - b).abs().amax() <= 1e-5 * a.abs().amax()):
            found[layer] = None
            continue
        found[layer] = next((r for r in candidates(modules, kind) if explains(r, a, b, here)), None)
        if found[layer] is None:
            raise UnbraidError(
                f"The positions of {type(model).__name__} are no rotation of its keys that Unbraid knows (learned "
                "positions, for example), so its cache cannot be moved; use a model with rotary embeddings, ALiBi or "
                "no positions."
            )
    return found


def rotary_modules(model: nn.Module) -> list[nn.Module]:
    """The rotary embeddings of a model.

    Raises:
        UnbraidError: one of them changes its frequencies with the length of the text.
    """
    modules = [m for m in model.modules() if "rotary" in type(m).__name__.lower() and list(m.buffers())]
    for module in modules:
        kinds = vars(module).get("rope_type", "default")
        for kind in kinds.values() if isinstance(kinds, dict) else [kinds]:
            if kind not in FIXED:
                raise UnbraidError(
                    f"The rotary embedding of {type(model).__name__} is of the type {kind!r}, which changes its "
                    f"frequencies with the length of the text; load the model with one of {', '.join(sorted(FIXED))}."
                )
    return modules


def candidates(modules: list[nn.Module], kind: str | None) -> list[Rotation]:
    """Every recipe worth trying, the usual one first."""
    found = []
    for module in modules:
        typed = "layer_type" in inspect.signature(module.forward).parameters
        for last, angles, pairs in product((False, True), ("halves", "twice", "once"), ("halves", "neighbours")):
            found.append(Rotation(module, kind if typed else None, angles, pairs, last))
    return found


def explains(rotation: Rotation, a: Tensor, b: Tensor, here: Tensor) -> bool:
    """Whether a rotation turns keys of the first trial into those of the second."""
    try:
        cos, _ = rotation.table(here)
        if 2 * cos.shape[-1] > a.shape[-1]:
            return False
        turned = rotation.turn(a, here, here + SHIFT)
    except (TypeError, ValueError, RuntimeError):  # a module with other arguments, or angles of another shape
        return False
    return bool((turned - b).abs().amax() <= CLOSE * b.abs().amax())


def trial(model: Any, shift: int) -> list[Tensor]:
    """Keys [1, G, 3, D] of every layer for three tokens that stand at `shift` and after."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    device = next(model.parameters()).device
    ids = torch.arange(1, 4, device=device)[None]
    places = torch.arange(3, device=device)[None] + shift
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(input_ids=ids, position_ids=places, past_key_values=cache, use_cache=True)
    finally:
        model.train(training)
    empty = torch.zeros(1, 1, 3, 1, device=device)
    made = [vars(layer).get("keys") for layer in cache.layers]
    return [empty if keys is None else keys.float() for keys in made]
