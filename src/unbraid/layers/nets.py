"""Encoders and decoders of the disentanglement literature, for any image of side 16 or more that 4 divides.

Each encoder maps [B, channels, side, side] (or, the MLP, anything of one shape) to [B, outputs]; each decoder maps
[B, inputs] to numbers before the output's activation.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Literal

from torch import Tensor, nn

from unbraid.core.errors import UnbraidError

Kind = Literal["mlp", "conv", "resnet"]
Norm = Literal["none", "batch"]
KINDS: tuple[Kind, ...] = ("mlp", "conv", "resnet")
SLOPE = 0.01  # of LeakyReLU, torch's default
DEFAULT_WIDTH: dict[Kind, int] = {"mlp": 256, "conv": 32, "resnet": 48}
DEFAULT_NORM: dict[Kind, Norm] = {"mlp": "none", "conv": "none", "resnet": "batch"}


def mlp(sizes: Sequence[int], norm: Norm = "none", activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers with an activation (and BatchNorm before it) between them; none after the last.

    Args:
        sizes: features of the input, of each hidden layer and of the output.
        norm: "batch" puts BatchNorm1d before each activation.
        activation: the module between layers.

    Raises:
        UnbraidError: fewer than two sizes, or one that is not positive.
    """
    listed = [int(s) for s in sizes]
    if len(listed) < 2 or min(listed) < 1:
        raise UnbraidError(f"an MLP needs at least two positive sizes (input, ..., output), not {list(sizes)}.")
    parts: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(listed)):
        parts.append(nn.Linear(a, b))
        if i < len(listed) - 2:
            parts += [nn.BatchNorm1d(b)] if norm == "batch" else []
            parts.append(activation())
    return nn.Sequential(*parts)


class Residual(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm beside a skip, which is a 1 x 1 convolution where widths differ.

    Args:
        inputs: channels in.
        outputs: channels out; None: as many.
        norm: "none" leaves BatchNorm out.
    """

    def __init__(self, inputs: int, outputs: int | None = None, norm: Norm = "batch") -> None:
        super().__init__()
        outputs = inputs if outputs is None else outputs
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            *_norm2d(outputs, norm),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            *_norm2d(outputs, norm),
        )
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H, W]."""
        return self.act(self.body(x) + self.skip(x))


def image_encoder(
    channels: int, size: int, outputs: int, kind: Kind = "conv", width: int | None = None, norm: Norm | None = None
) -> nn.Sequential:
    """An encoder from images to vectors.

    Args:
        channels: of an image.
        size: side of an image, at least 16 and divisible by 4.
        outputs: numbers out; twice the latents for a Gaussian posterior.
        kind: "mlp" (two hidden layers), "conv" (4 x 4 convolutions of stride 2 and one hidden layer, as in
            disentanglement_lib, arXiv 1811.12359) or "resnet" (that of XFactors, arXiv 2601.21688).
        width: hidden features of the MLP (256), or channels of the first layer (32, 48).
        norm: "batch" or "none"; None: batch for "resnet" only.

    Raises:
        UnbraidError: a size or kind that is not accepted.
    """
    width, norm = _checked(channels, size, kind, width, norm)
    if kind == "mlp":
        return nn.Sequential(nn.Flatten(), mlp([channels * size * size, width, width, outputs], norm))
    parts: list[nn.Module] = []
    inputs = channels
    if kind == "conv":
        widths, side = conv_plan(size, width)
        for w in widths:
            parts += [nn.Conv2d(inputs, w, 4, 2, 1), *_norm2d(w, norm), nn.ReLU()]
            inputs = w
        head = mlp([inputs * side * side, 8 * width, outputs])
        return nn.Sequential(*parts, nn.Flatten(), head)
    widths, side = resnet_plan(size, width)
    for i, w in enumerate(widths):
        parts += [nn.Conv2d(inputs, w, 3, 2, 1), *_norm2d(w, norm), nn.LeakyReLU(SLOPE)]
        parts += [Residual(w, norm=norm)] if i < len(widths) - 1 else []
        inputs = w
    parts += [nn.Conv2d(inputs, inputs, 3, 1, 1), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(inputs * side * side, outputs))


def image_decoder(
    channels: int, size: int, inputs: int, kind: Kind = "conv", width: int | None = None, norm: Norm | None = None
) -> nn.Sequential:
    """A decoder from vectors to images, before the activation of the output; the mirror of `image_encoder`.

    Args:
        channels: of an image.
        size: side of an image, at least 16 and divisible by 4.
        inputs: numbers in.
        kind: as in `image_encoder`. The official code of "resnet" has a LeakyReLU with slope ``channels`` before its
            last convolution, which looks like a slip; it is left out here.
        width: as in `image_encoder`.
        norm: as in `image_encoder`.

    Raises:
        UnbraidError: a size or kind that is not accepted.
    """
    width, norm = _checked(channels, size, kind, width, norm)
    if kind == "mlp":
        return nn.Sequential(
            mlp([inputs, width, width, channels * size * size], norm), nn.Unflatten(1, (channels, size, size))
        )
    if kind == "conv":
        widths, side = conv_plan(size, width)
        back = [*widths[-2::-1], channels]
        parts: list[nn.Module] = [mlp([inputs, 8 * width, widths[-1] * side * side]), nn.ReLU()]
        parts.append(nn.Unflatten(1, (widths[-1], side, side)))
        for i, (a, b) in enumerate(zip(widths[::-1], back, strict=True)):
            parts.append(nn.ConvTranspose2d(a, b, 4, 2, 1))
            parts += [] if i == len(back) - 1 else [*_norm2d(b, norm), nn.ReLU()]
        return nn.Sequential(*parts)
    widths, side = resnet_plan(size, width)
    top = widths[-1]
    parts = [nn.Linear(inputs, top * side * side), nn.Unflatten(1, (top, side, side))]
    parts += [nn.Conv2d(top, top, 3, 1, 1), *_norm2d(top, norm), nn.LeakyReLU(SLOPE)]
    for a, b in zip(widths[::-1], widths[-2::-1], strict=False):
        parts += [nn.ConvTranspose2d(a, b, 4, 2, 1), *_norm2d(b, norm), nn.LeakyReLU(SLOPE), Residual(b, norm=norm)]
    parts += [nn.ConvTranspose2d(widths[0], channels, 4, 2, 1), nn.Conv2d(channels, channels, 3, 1, 1)]
    return nn.Sequential(*parts)


def vector_encoder(
    shape: Sequence[int], outputs: int, hidden: Sequence[int] = (256, 256), norm: Norm = "none"
) -> nn.Sequential:
    """An MLP from observations of any shape to vectors: ``[B, *shape] -> [B, outputs]``."""
    return nn.Sequential(nn.Flatten(), mlp([prod(shape), *hidden, outputs], norm))


def vector_decoder(
    shape: Sequence[int], inputs: int, hidden: Sequence[int] = (256, 256), norm: Norm = "none"
) -> nn.Sequential:
    """An MLP from vectors to observations of any shape: ``[B, inputs] -> [B, *shape]``."""
    return nn.Sequential(mlp([inputs, *hidden, prod(shape)], norm), nn.Unflatten(1, tuple(shape)))


def conv_plan(size: int, width: int) -> tuple[list[int], int]:
    """Channels of each stride-2 layer of the conv net, and the side that is left: 64 gives 32, 32, 64, 64 and 4."""
    widths: list[int] = []
    while size % 2 == 0 and size // 2 >= 4:
        widths.append(width if len(widths) < 2 else 2 * width)
        size //= 2
    return widths, size


def resnet_plan(size: int, width: int) -> tuple[list[int], int]:
    """Channels of each stride-2 layer of the residual net (at most three), and the side left: 64 gives 48, 96, 192."""
    widths: list[int] = []
    while size % 2 == 0 and size // 2 >= 4 and len(widths) < 3:
        widths.append(width * 2 ** len(widths))
        size //= 2
    return widths, size


def _norm2d(width: int, norm: Norm) -> list[nn.Module]:
    return [nn.BatchNorm2d(width)] if norm == "batch" else []


def _checked(channels: int, size: int, kind: Kind, width: int | None, norm: Norm | None) -> tuple[int, Norm]:
    if kind not in KINDS:
        raise UnbraidError(f"there is no network {kind!r}; choose from {', '.join(KINDS)}.")
    if isinstance(size, bool) or not isinstance(size, int) or size < 16 or size % 4:
        raise UnbraidError(f"images of side {size!r} do not fit; the side must be at least 16 and divisible by 4.")
    if norm not in (None, "none", "batch"):
        raise UnbraidError(f"norm is {norm!r}; it must be 'batch' or 'none'.")
    for name, value in (("channels", channels), ("width", 1 if width is None else width)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UnbraidError(f"{name} is {value!r}; it must be a whole number of at least 1.")
    return width or DEFAULT_WIDTH[kind], norm or DEFAULT_NORM[kind]
