"""The small networks of the oracle: dense layers as arrays, read from safetensors, run by numpy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from unbraid.core.errors import UnbraidError

WEIGHTS = Path(__file__).with_name("oracle.safetensors")


@dataclass(frozen=True, eq=False)
class Net:
    """Dense layers with ReLU between, and several answers at the end.

    Args:
        layers: pairs of weights [out, in] and biases [out].
        heads: name -> weights and biases of an answer's logits.
    """

    layers: list[tuple[np.ndarray, np.ndarray]]
    heads: dict[str, tuple[np.ndarray, np.ndarray]]

    def hidden(self, x: np.ndarray) -> np.ndarray:
        """[n, h] the last layer before the heads, of [n, in] inputs."""
        for weight, bias in self.layers:
            x = np.maximum(x @ weight.T + bias, 0)
        return x

    def __call__(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Logits [n, classes] of every head for [n, in] inputs."""
        x = self.hidden(x)
        return {name: x @ weight.T + bias for name, (weight, bias) in self.heads.items()}


@cache
def nets() -> dict[str, Net]:
    """The oracle's networks: ``whole`` for the image, ``pixel`` for colours of pixels, ``thing`` for one thing.

    Raises:
        UnbraidError: the file of weights is missing.
    """
    from safetensors.numpy import load_file

    if not WEIGHTS.exists():
        raise UnbraidError(
            f"the oracle's weights {WEIGHTS.name} are missing; `python -m unbraid.data.scenes.training` makes them."
        )
    return unpacked({key: value.astype(np.float32) for key, value in load_file(WEIGHTS).items()})


def unpacked(tensors: dict[str, np.ndarray]) -> dict[str, Net]:
    """Networks from tensors named ``net.layers.0.weight`` and ``net.heads.shape.bias``."""
    made: dict[str, Net] = {}
    for name in sorted({key.split(".")[0] for key in tensors}):
        heads = {}
        count = sum(key.startswith(f"{name}.layers.") for key in tensors) // 2
        layers = [(tensors[f"{name}.layers.{k}.weight"], tensors[f"{name}.layers.{k}.bias"]) for k in range(count)]
        for key in tensors:
            parts = key.split(".")
            if parts[:2] == [name, "heads"] and parts[3] == "weight":
                heads[parts[2]] = (tensors[key], tensors[key[: -len("weight")] + "bias"])
        made[name] = Net(layers, heads)
    return made


def packed(nets_: dict[str, Net]) -> dict[str, np.ndarray]:
    """Tensors of networks, as `unpacked` reads them."""
    made: dict[str, np.ndarray] = {}
    for name, net in nets_.items():
        for k, (weight, bias) in enumerate(net.layers):
            made |= {f"{name}.layers.{k}.weight": weight, f"{name}.layers.{k}.bias": bias}
        for head, (weight, bias) in net.heads.items():
            made |= {f"{name}.heads.{head}.weight": weight, f"{name}.heads.{head}.bias": bias}
    return made


def softmax(logits: np.ndarray, axis: int = -1) -> np.ndarray:
    """Probabilities along an axis."""
    made = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return np.asarray(made / made.sum(axis=axis, keepdims=True))
