"""Posterior means and variances of anything that encodes: our VAEs, diffusers', pythae's, a function of yours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError
from unbraid.layers.vae import GaussianVAE

Output = Literal["logvar", "var", "std", "none"]
Spatial = Literal["channel", "position"]
Posterior = Callable[[Tensor], tuple[np.ndarray, np.ndarray | None]]


def posterior(model: Any, output: Output = "logvar", spatial: Spatial = "channel") -> Posterior:
    """A function x -> (means, variances), float64, [n, J] or, where latents have positions, [n, points, J].

    Args:
        model: a `GaussianVAE`; a `diffusers.AutoencoderKL` or anything whose ``encode`` gives a ``latent_dist``; a
            pythae model or its encoder (``embedding``, ``log_covariance``); or a function x -> (mu, second).
        output: what ``second`` is: "logvar", "var", "std", or "none" where the encoder returns means only. The
            labels are about variances, so saying the wrong one mislabels everything.
        spatial: latents [B, C, H, W] are read as C latents with H W points each ("channel"), or as C H W latents
            ("position").

    Raises:
        UnbraidError: it cannot be called, or an option is unknown.
    """
    if output not in ("logvar", "var", "std", "none") or spatial not in ("channel", "position"):
        raise UnbraidError(
            f"output={output!r} must be logvar, var, std or none, and spatial={spatial!r} channel or position."
        )
    call = _caller(model)
    if call is None:
        raise UnbraidError(
            f"a {type(model).__name__} cannot be asked for posteriors; give a VAE, or a function x -> (mu, logvar)."
        )

    def read(x: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        with torch.no_grad():
            mu, second, kind = _read(call(x), output)
        mean = _shaped(mu, spatial)
        if second is None:
            return mean, None
        spread = _shaped(second, spatial)
        if spread.shape != mean.shape:
            raise UnbraidError(f"the model returned means {tuple(mu.shape)} but {kind} {tuple(second.shape)}.")
        return mean, _variance(spread, kind)

    return read


def _caller(model: Any) -> Callable[[Tensor], Any] | None:
    if isinstance(model, GaussianVAE) or _encodes(model):
        return model.encode
    if isinstance(model, nn.Module):
        children = dict(model.named_children())
        if any(kind.__module__.split(".")[0] == "pythae" for kind in type(model).__mro__) and "encoder" in children:
            return children["encoder"]
    return model if callable(model) else None


def _encodes(model: Any) -> bool:
    """Whether it is one of diffusers' auto-encoders, told without importing diffusers."""
    names = [kind.__name__ for kind in type(model).__mro__ if kind.__module__.split(".")[0] == "diffusers"]
    return any(name.startswith(("Autoencoder", "AsymmetricAutoencoder", "ConsistencyDecoderVAE")) for name in names)


def _read(made: Any, output: Output) -> tuple[Tensor, Tensor | None, str]:
    """Means, and what stands beside them with its kind."""
    fields = _fields(made)
    if "latent_dist" in fields:
        made, fields = fields["latent_dist"], _fields(fields["latent_dist"])
    if "mean" in fields and "logvar" in fields:
        return fields["mean"], fields["logvar"], "logvar"
    if "embedding" in fields:
        return fields["embedding"], fields.get("log_covariance"), "logvar"
    if output == "none":
        mu = made[0] if isinstance(made, tuple | list) else made
        if isinstance(mu, Tensor):
            return mu, None, "none"
    if isinstance(made, tuple | list) and len(made) >= 2 and all(isinstance(part, Tensor) for part in made[:2]):
        return made[0], made[1], output
    raise UnbraidError(
        f"the model returned {type(made).__name__}, which holds no (mu, {output}); give a function x -> (mu, logvar), "
        "or say output='none' for an encoder without variances."
    )


def _fields(made: Any) -> dict[str, Any]:
    if isinstance(made, Tensor | tuple) and not hasattr(made, "_fields"):
        return {}
    if isinstance(made, dict):  # transformers' and pythae's outputs are ordered dicts
        return dict(made)
    return dict(vars(made)) if hasattr(made, "__dict__") else {}


def _shaped(values: Tensor, spatial: Spatial) -> np.ndarray:
    array = values.detach().double().cpu().numpy()
    if array.ndim < 2:
        raise UnbraidError(f"latents must be [B, J] or [B, C, ...]; the model returned {array.shape}.")
    if array.ndim == 2 or spatial == "position":
        return array.reshape(len(array), -1)
    return np.moveaxis(array, 1, -1).reshape(len(array), -1, array.shape[1])


def _variance(second: np.ndarray, kind: str) -> np.ndarray:
    if kind == "logvar":
        return np.exp(np.clip(second, -60, 60))
    low = second.min() if second.size else 1.0
    if low < 0:
        raise UnbraidError(f"a posterior {kind} is {low:g}; it cannot be negative: is it logvar? Say output='logvar'.")
    square = second**2 if kind == "std" else second
    return np.maximum(square, np.exp(-60.0))


def suspicious(kind: Output, var_mean: np.ndarray) -> str:
    """A sentence where the numbers look as if the wrong ``output`` had been said, else ""."""
    if kind == "logvar" and (var_mean > 1.5).all():
        return (
            "Every latent's mean variance exceeds 1.5, the prior's being 1: if the model returns variances or standard "
            "deviations, say output='var' or 'std'."
        )
    return ""


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode for the block (BatchNorm and dropout would change posteriors), and each part's own mode after."""
    modes = {part: part.training for part in model.modules()} if isinstance(model, nn.Module) else {}
    for part in modes:
        part.training = False
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def home(model: Any) -> Tensor:
    """A tensor whose device and dtype observations should have: the model's first weight, or float32 on the CPU."""
    weights = iter(model.parameters()) if isinstance(model, nn.Module) else iter(())
    found = next((w for w in weights if w.is_floating_point()), None)
    return torch.zeros(()) if found is None else found.detach()
