"""Encoders of a code in blocks: two networks, one with a shared trunk, or a head on frozen features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError
from unbraid.layers.nets import mlp

Build = Callable[[int], nn.Module]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, what vision backbones expect
KEPT_SIDE = 4  # an autoencoder's latents are averaged to so many by so many before the head


class TwoEncoders(nn.Module):
    """One encoder for the residual S and one for the factors T; their outputs in the order of a `GaussianVAE`.

    Args:
        build: outputs -> encoder of that many outputs.
        rest: dimensions of S.
        factors: dimensions of T in all.
        shared: one network for both, as in half the work.
    """

    def __init__(self, build: Build, rest: int, factors: int, shared: bool = False) -> None:
        super().__init__()
        self.rest, self.factors = rest, factors
        sizes = [rest + factors] if shared else [rest, factors]
        self.parts = nn.ModuleList(build(2 * size) for size in sizes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 2 (rest + factors)]: means of S and T, then log variances of S and T."""
        if len(self.parts) == 1:
            return self.parts[0](x)
        halves = [part(x).chunk(2, dim=-1) for part in self.parts]
        return torch.cat([half[0] for half in halves] + [half[1] for half in halves], dim=-1)


class Frozen(nn.Module):
    """A trained head on the features of a backbone that stays as it is.

    The backbone is no submodule: it is not trained, not saved, and stays in evaluation mode.

    Args:
        backbone: a vision model of transformers, an `AutoencoderKL` of diffusers, or any module [B, C, H, W] -> [B, F].
        outputs: of the head.
        shape: (channels, height, width) of the images, from 0 to 1.
        hidden: features of the head's two hidden layers.
    """

    def __init__(self, backbone: nn.Module, outputs: int, shape: tuple[int, int, int], hidden: int = 256) -> None:
        super().__init__()
        self._held = [backbone.eval().requires_grad_(False)]
        with torch.no_grad():
            width = self.features(torch.zeros(1, *shape)).shape[1]
        self.head = mlp((width, hidden, hidden, outputs), "batch")

    def features(self, x: Tensor) -> Tensor:
        """[B, F] of images [B, C, H, W] from 0 to 1, without gradient.

        Raises:
            UnbraidError: the backbone gives no features that are understood.
        """
        backbone = self._held[0]
        where = next(backbone.parameters(), torch.zeros(0))
        with torch.no_grad():
            made = features_of(backbone, x.to(where.device, where.dtype if where.numel() else x.dtype))
        if made.dim() != 2:
            raise UnbraidError(
                f"{type(backbone).__name__} gives features of shape {tuple(made.shape)}; wrap it in a module that "
                "gives [B, F]."
            )
        return made.to(x)

    def forward(self, x: Tensor) -> Tensor:
        """[B, outputs]."""
        return self.head(self.features(x))


def features_of(backbone: nn.Module, x: Tensor) -> Tensor:
    """Features of images by what kind of model the backbone is; see `Frozen`."""
    name = type(backbone).__name__
    if name.startswith("AutoencoderKL"):
        model: Any = backbone
        given = channels_of(x, int(model.config.in_channels)) * 2 - 1
        latents = model.encode(given).latent_dist.mean
        return nn.functional.adaptive_avg_pool2d(latents, min(KEPT_SIDE, latents.shape[-1])).flatten(1)
    config: Any = vars(backbone).get("config")
    if config is None:
        out = backbone(x)
        return out if isinstance(out, Tensor) else torch.as_tensor(out)
    settings = config.to_dict()
    given = channels_of(x, int(settings.get("num_channels") or 3))
    side = settings.get("image_size")
    if isinstance(side, int) and given.shape[-1] != side:
        given = nn.functional.interpolate(given, (side, side), mode="bilinear", antialias=True)
    if given.shape[1] == 3:
        given = (given - given.new_tensor(MEAN)[:, None, None]) / given.new_tensor(STD)[:, None, None]
    out = backbone(pixel_values=given)
    pooled = out.get("pooler_output")
    if pooled is not None:
        return pooled.flatten(1)
    states = out["last_hidden_state"]
    return states.mean(1) if states.dim() == 3 else states.mean((2, 3))


def channels_of(x: Tensor, channels: int) -> Tensor:
    """Grey images as coloured ones and the other way round, where a backbone needs them."""
    if x.shape[1] == channels:
        return x
    grey = x.mean(1, keepdim=True)
    return grey.expand(-1, channels, -1, -1)
