"""Variational auto-encoders with a diagonal Gaussian posterior (Kingma & Welling, arXiv 1312.6114)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError
from unbraid.layers.nets import Kind, Norm, image_decoder, image_encoder, vector_decoder, vector_encoder

Likelihood = Literal["bernoulli", "gaussian"]
Activation = Literal["sigmoid", "identity"]
Size = Literal["tiny", "small", "medium", "paper"]
LOGVAR_LIMIT = 20.0  # |logvar| beyond it overflows in float32 without meaning anything
CONFIG, WEIGHTS = "config.json", "model.safetensors"
# What each size means for the network; `unbraid.losses.training.SCHEDULES` says what it means for the training.
SIZES: dict[Size, dict[str, Any]] = {
    "tiny": {"kind": "mlp", "width": 32},
    "small": {"kind": "mlp", "width": 256},
    "medium": {"kind": "conv", "width": 32},
    "paper": {"kind": "conv", "width": 32},
}


class Codes(NamedTuple):
    """What one pass of a VAE gives: posterior means and log variances [B, J], a draw z [B, J], and logits of x."""

    mu: Tensor
    logvar: Tensor
    z: Tensor
    logits: Tensor


class GaussianVAE(nn.Module):
    """q(z|x) = N(mu(x), diag exp(logvar(x))), prior N(0, 1), any encoder and decoder.

    Args:
        encoder: [B, *shape] -> [B, 2 J], means first.
        decoder: [B, J] -> [B, *shape], before the activation.
        latents: J.
        shape: of one observation; None: any.
        likelihood: "bernoulli" (values from 0 to 1) or "gaussian".
        activation: of the decoder's output, "sigmoid" or "identity"; a Bernoulli needs the sigmoid.
        scale: standard deviation of the Gaussian likelihood.
        config: how the builders made it, so that `save` can say so; None: it cannot be saved as a whole.

    Raises:
        UnbraidError: a likelihood, activation or size that is not accepted.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latents: int,
        *,
        shape: Sequence[int] | None = None,
        likelihood: Likelihood = "bernoulli",
        activation: Activation = "sigmoid",
        scale: float = 1.0,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if likelihood not in ("bernoulli", "gaussian") or activation not in ("sigmoid", "identity"):
            raise UnbraidError(
                f"likelihood={likelihood!r} must be 'bernoulli' or 'gaussian', activation={activation!r} 'sigmoid' or "
                "'identity'."
            )
        if likelihood == "bernoulli" and activation != "sigmoid":
            raise UnbraidError("a Bernoulli likelihood needs activation='sigmoid'; or take likelihood='gaussian'.")
        _check_latents(latents)
        if not scale > 0:
            raise UnbraidError(f"scale is {scale!r}; it must be positive.")
        self.encoder, self.decoder, self.latents = encoder, decoder, latents
        self.shape = None if shape is None else tuple(int(s) for s in shape)
        self.likelihood, self.activation, self.scale = likelihood, activation, scale
        self.config = config

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log variances, each [B, J], of observations [B, *shape].

        Raises:
            UnbraidError: the observations have another shape than the model was built for.
        """
        if not isinstance(x, Tensor):
            raise UnbraidError(f"encode takes a tensor, not a {type(x).__name__}; see encode_all for other data.")
        if self.shape is not None and tuple(x.shape[1:]) != self.shape:
            raise UnbraidError(f"this VAE was built for [B, {_list(self.shape)}]; given is [{_list(x.shape)}].")
        mu, logvar = self.encoder(x).chunk(2, dim=-1)
        return mu, logvar.clamp(-LOGVAR_LIMIT, LOGVAR_LIMIT)

    def sample(self, mu: Tensor, logvar: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """z = mu + exp(logvar / 2) eps, with eps ~ N(0, 1) from torch's state or a generator."""
        eps = torch.randn(mu.shape, generator=generator, device=mu.device, dtype=mu.dtype)
        return mu + (0.5 * logvar).exp() * eps

    def logits(self, z: Tensor) -> Tensor:
        """The decoder's output before its activation, [B, *shape]."""
        return self.decoder(z)

    def activate(self, logits: Tensor) -> Tensor:
        """The decoder's activation."""
        return logits.sigmoid() if self.activation == "sigmoid" else logits

    def decode(self, z: Tensor) -> Tensor:
        """Expected observations [B, *shape] for codes [B, J]."""
        return self.activate(self.logits(z))

    def reconstruct(self, x: Tensor) -> Tensor:
        """Observations decoded from the means of their codes."""
        return self.decode(self.encode(x)[0])

    def forward(self, x: Tensor) -> Codes:
        """One draw of everything; see `Codes`."""
        mu, logvar = self.encode(x)
        z = self.sample(mu, logvar)
        return Codes(mu, logvar, z, self.logits(z))

    def save(self, folder: str | Path) -> Path:
        """Write ``config.json`` and ``model.safetensors``; nothing is pickled.

        Returns:
            The folder.

        Raises:
            UnbraidError: the model was not made by a builder of this module.
        """
        from unbraid.core.encoding import write_arrays, write_json

        if self.config is None:
            raise UnbraidError("only VAEs made by image_vae, signal_vae or vae_for can be saved; keep its state_dict.")
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        digest = write_arrays(self.state_dict(), target / WEIGHTS)
        write_json(target / CONFIG, {"format": "unbraid.vae/1", **self.config, "sha256": digest})
        return target


def load_vae(folder: str | Path) -> GaussianVAE:
    """The VAE that `GaussianVAE.save` wrote, in evaluation mode.

    Raises:
        UnbraidError: there is none, or its files do not belong together.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    place = Path(folder)
    try:
        config = json.loads((place / CONFIG).read_text(encoding="utf-8"))
        data = (place / WEIGHTS).read_bytes()
    except (OSError, ValueError) as error:
        raise UnbraidError(
            f"no VAE can be read from {place} ({type(error).__name__}); give a folder of save()."
        ) from None
    if not isinstance(config, dict) or config.get("format") != "unbraid.vae/1" or config.get("builder") not in BUILDERS:
        raise UnbraidError(f"{place / CONFIG} does not describe a VAE of this version of Unbraid.")
    if hashlib.sha256(data).hexdigest() != config.get("sha256"):
        raise UnbraidError(f"{WEIGHTS} in {place} does not belong to the {CONFIG} beside it; copy both again.")
    try:
        vae = BUILDERS[config["builder"]](**config["options"])
        vae.load_state_dict(load(data))
    except (SafetensorError, TypeError, RuntimeError, KeyError) as error:
        raise UnbraidError(f"the VAE in {place} cannot be rebuilt ({str(error).splitlines()[0]}).") from None
    return vae.eval()


def image_vae(
    channels: int,
    size: int,
    latents: int = 10,
    *,
    kind: Kind = "mlp",
    width: int | None = None,
    likelihood: Likelihood = "bernoulli",
    activation: Activation = "sigmoid",
    norm: Norm | None = None,
    scale: float = 1.0,
    seed: int | None = None,
) -> GaussianVAE:
    """A VAE of images [B, channels, size, size] with values from 0 to 1.

    Args:
        channels: of an image.
        size: side, at least 16 and divisible by 4.
        latents: J.
        kind: "mlp", "conv" (disentanglement_lib) or "resnet" (XFactors); see `unbraid.layers.nets`.
        width: of the first hidden layer; None: 256 (mlp), 32 (conv), 48 (resnet), as in the papers.
        likelihood: "bernoulli" or "gaussian".
        activation: of the output; both likelihoods have a sigmoid in the literature.
        norm: "batch" or "none"; None: batch for "resnet" only.
        scale: standard deviation of the Gaussian likelihood.
        seed: of the initial weights; None: torch's state decides.

    Raises:
        UnbraidError: an argument that is not accepted.

    Example:
        >>> vae = image_vae(1, 16, latents=4, width=32, seed=0)
        >>> vae(torch.zeros(2, 1, 16, 16)).z.shape
        torch.Size([2, 4])
    """
    options = {k: v for k, v in locals().items() if k != "seed"}
    _check_latents(latents)
    with seeded(seed):
        encoder = image_encoder(channels, size, 2 * latents, kind, width, norm)
        decoder = image_decoder(channels, size, latents, kind, width, norm)
    return GaussianVAE(
        encoder, decoder, latents, shape=(channels, size, size), likelihood=likelihood, activation=activation,
        scale=scale, config={"builder": "image_vae", "options": options},
    )  # fmt: skip


def signal_vae(
    shape: Sequence[int],
    latents: int = 10,
    *,
    hidden: Sequence[int] = (128, 128),
    likelihood: Likelihood = "gaussian",
    activation: Activation = "identity",
    norm: Norm = "none",
    scale: float = 1.0,
    seed: int | None = None,
) -> GaussianVAE:
    """A VAE of observations of any shape, such as signals [B, channels, samples], with an MLP on either side.

    Args:
        shape: of one observation.
        latents: J.
        hidden: features of the encoder's hidden layers; the decoder has them in reverse.
        likelihood: "gaussian" or "bernoulli".
        activation: of the output.
        norm: "batch" or "none".
        scale: standard deviation of the Gaussian likelihood.
        seed: of the initial weights; None: torch's state decides.

    Raises:
        UnbraidError: an argument that is not accepted.
    """
    options = {k: list(v) if isinstance(v, Sequence) and not isinstance(v, str) else v for k, v in locals().items()}
    options.pop("seed")
    _check_latents(latents)
    if isinstance(shape, int) or not shape or any(not isinstance(s, int) or s < 1 for s in shape):
        raise UnbraidError(f"shape is {shape!r}; it must be the sizes of one observation, such as (3, 64).")
    with seeded(seed):
        encoder = vector_encoder(shape, 2 * latents, hidden, norm)
        decoder = vector_decoder(shape, latents, list(hidden)[::-1], norm)
    return GaussianVAE(
        encoder, decoder, latents, shape=shape, likelihood=likelihood, activation=activation, scale=scale,
        config={"builder": "signal_vae", "options": options},
    )  # fmt: skip


BUILDERS: dict[str, Callable[..., GaussianVAE]] = {"image_vae": image_vae, "signal_vae": signal_vae}


def vae_for(data: Any, latents: int = 10, size: Size = "small", seed: int | None = None, **options: Any) -> GaussianVAE:
    """An untrained VAE that fits the data: of images where one observation is [C, side, side], else an MLP.

    Args:
        data: `FactorData`, or an array or tensor [n, C, side, side], [n, side, side] or [n, ...].
        latents: J.
        size: "tiny" (MLP of 32), "small" (MLP of 256), "medium" or "paper" (both the literature's conv net).
        seed: of the initial weights.
        options: further arguments of `image_vae` or `signal_vae`.

    Raises:
        UnbraidError: an unknown size, or data that are no observations.
    """
    from unbraid.data.observations import Observations

    if size not in SIZES:
        raise UnbraidError(f"size is {size!r}; it must be one of {', '.join(SIZES)}.")
    shape = Observations(data, held=0).shape
    shape = (1, *shape) if len(shape) == 2 and shape[0] == shape[1] else shape
    if len(shape) == 3 and shape[1] == shape[2]:
        return image_vae(shape[0], shape[1], latents, **{**SIZES[size], **options}, seed=seed)
    width = 32 if size == "tiny" else 128
    return signal_vae(shape, latents, **{"hidden": (width, width), **options}, seed=seed)


@torch.no_grad()
def encode_all(vae: GaussianVAE, data: Any, batch: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """Means and log variances [n, J], float64, of all observations, in evaluation mode (the mode is put back).

    Args:
        vae: the model.
        data: `FactorData`, array or tensor of observations.
        batch: observations at a time.

    Raises:
        UnbraidError: the data do not fit the model.
    """
    from unbraid.data.observations import Observations

    source = Observations(data, vae.shape, unit=vae.likelihood == "bernoulli")
    weight = next(vae.parameters())
    was, found = vae.training, []
    vae.eval()
    try:
        for x in source.batches(batch):
            mu, logvar = vae.encode(torch.as_tensor(x).to(weight))
            found.append(torch.stack([mu, logvar]).double().cpu().numpy())
    finally:
        vae.train(was)
    both = np.concatenate(found, axis=1)
    return both[0], both[1]


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """A block in which torch's random state begins at a seed, and after which it is as before; None changes nothing."""
    if seed is None:
        yield
        return
    kept = torch.random.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.random.set_rng_state(kept)


def _check_latents(latents: int) -> None:
    if isinstance(latents, bool) or not isinstance(latents, int) or latents < 1:
        raise UnbraidError(f"latents is {latents!r}; it must be a whole number of at least 1.")


def _list(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))
