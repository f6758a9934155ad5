"""`XFactors`: learn a code in blocks from images with labels, swap and sweep blocks, see what each carries."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError
from unbraid.core.result import Result
from unbraid.core.system import System
from unbraid.core.train import fit_loop
from unbraid.data.factors import FactorData
from unbraid.data.observations import Observations
from unbraid.layers.nets import Kind, Norm, image_decoder, image_encoder
from unbraid.layers.vae import GaussianVAE, encode_all, seeded
from unbraid.losses.contrastive import Form
from unbraid.systems.xfactors import CARD
from unbraid.systems.xfactors.encoders import Frozen, TwoEncoders
from unbraid.systems.xfactors.training import BlockLoss, Supervision, Weights

Size = Literal["tiny", "small", "medium", "paper"]
# network, width, steps, batch of each size; "paper" is the official code's at 64 x 64 (70 epochs of 32 on Shapes3D)
SIZES: dict[str, tuple[Kind, int, int, int]] = {
    "tiny": ("mlp", 64, 120, 64),
    "small": ("conv", 32, 3_000, 128),
    "medium": ("resnet", 24, 6_000, 64),
    "paper": ("resnet", 48, 670_000, 32),
}
MEAN_IMAGE = 0.9  # of the variance of the images: a reconstruction no better than their mean


class XFactors(System):
    """A VAE with a block of its code per labelled factor and one for the rest (arXiv 2601.21688).

    A supervised InfoNCE puts a factor into its block; rates keep the residual block S from carrying it too, which at
    the default strength they do not quite: see ``capacity``.

    Args:
        targets: names of the factors that get a block; None: all that are labelled.
        dim: dimensions of each block.
        rest: dimensions of the residual block S.
        tau: temperature of the contrast; the official script has 0.03, its class 0.07.
        form: "inside" the logarithm, as XFactors, or "outside", as SupCon.
        supervision: "contrast", "classifier" (a linear head per block instead, a baseline) or "none".
        weight: of the whole supervision, shared among factors; the images' squared error is a mean over pixels.
        kl: what a nat of divergence costs.
        beta_s: times that for S; where a capacity is given, only the start.
        beta_t: times that for the blocks of factors.
        capacity: nats that S may carry: beta_s is steered until it does. "auto": the entropy of the factors of the data
            that have no block. None: beta_s stays.
        leakage: weight of the debiased CKA between S and each label, the other control of leakage; 0: none.
        covariance: weight of the correlation between S and the blocks (the paper's option, off); 0: none.
        exchange: share of blocks that are decoded from another image with the same label, so that a block can carry
            nothing but its label; not in the paper. 0: none.
        ordinal: bandwidths, in classes, of factors whose neighbours count as partly alike: name -> bandwidth.
        cyclic: names of factors whose last class is a neighbour of the first; needs a bandwidth to matter.
        shared: one encoder for S and the blocks, half the work, in place of two.
        backbone: a frozen vision model of transformers or `AutoencoderKL` of diffusers whose features are encoded in
            place of pixels; None: pixels.
        size: network and length of training: "tiny" (seconds), "small" (a minute of one core at 16 x 16), "medium" or
            "paper".
        steps: of training; None: the size's.
        batch: images per step; None: the size's.
        lr: learning rate of AdamW, with weight decay 0.01 and gradients clipped at 3.
        seed: of weights, order and draws.
    """

    card = CARD
    blocks_: dict[str, list[int]]

    def __init__(
        self,
        targets: Sequence[str] | None = None,
        dim: int = 2,
        rest: int = 8,
        tau: float = 0.03,
        form: Form = "inside",
        supervision: Supervision = "contrast",
        weight: float = 0.1,
        kl: float = 1e-6,
        beta_s: float = 100.0,
        beta_t: float = 1.0,
        capacity: float | Literal["auto"] | None = None,
        leakage: float = 0.0,
        covariance: float = 0.0,
        exchange: float = 0.0,
        ordinal: Mapping[str, float] | None = None,
        cyclic: Sequence[str] = (),
        shared: bool = False,
        backbone: Any = None,
        size: Size = "small",
        steps: int | None = None,
        batch: int | None = None,
        lr: float = 1e-3,
        seed: int = 0,
    ) -> None:
        self.targets, self.dim, self.rest, self.tau, self.form = targets, dim, rest, tau, form
        self.supervision, self.weight, self.kl, self.beta_s, self.beta_t = supervision, weight, kl, beta_s, beta_t
        self.capacity, self.leakage, self.covariance, self.exchange = capacity, leakage, covariance, exchange
        self.ordinal, self.cyclic, self.shared, self.backbone = ordinal, cyclic, shared, backbone
        self.size, self.steps, self.batch, self.lr, self.seed = size, steps, batch, lr, seed

    def fit(
        self,
        data: FactorData,
        keep: str | Path | None = None,
        progress: bool | None = None,
        callbacks: Any = (),
    ) -> XFactors:
        """Train on images with labels.

        Args:
            data: images [n, C, side, side] from 0 to 1 and their factors; a label of -1 is unknown (see
                `FactorData.hide`).
            keep: folder for checkpoints, from which an interrupted training goes on.
            progress: show a bar; None: on a terminal.
            callbacks: as those of `fit_loop`.

        Returns:
            Itself, with `vae_` (a `GaussianVAE`), `blocks_` (name -> [first, last + 1], "S" the rest), `shape_`,
            `history_` (the last numbers of the training).

        Raises:
            UnbraidError: settings that do not fit, images that are none, a target without two known classes.
        """
        names = self._check(data)
        source = Observations(data, unit=True)
        if len(source.shape) != 3 or source.shape[1] != source.shape[2]:
            raise UnbraidError(f"XFactors takes square images [C, side, side], not observations of {source.shape}.")
        columns = [data.column(name) for name in names]
        labels = torch.from_numpy(np.ascontiguousarray(data.factors[:, columns]).astype(np.float32))
        self.shape_ = [int(s) for s in source.shape]
        self.blocks_ = {"S": [0, self.rest]}
        self.blocks_ |= {n: [self.rest + i * self.dim, self.rest + (i + 1) * self.dim] for i, n in enumerate(names)}
        _, _, steps, batch = SIZES[self.size]
        steps, batch = self.steps or steps, min(self.batch or batch, len(data))
        with seeded(self.seed):
            vae = self.build_module("vae_")
            loss = BlockLoss(vae, *self._per_factor(data, names, columns), self._weights(data, names))

        def draw(number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            at = torch.randint(len(source), (batch,), generator=generator)
            return torch.from_numpy(source.take(at.numpy())), labels[at]

        history = fit_loop(
            loss, lambda m, b: m(*b), draw, steps=steps, seed=self.seed, lr=self.lr, grad_clip=3.0,
            optimizer=lambda p: torch.optim.AdamW(p, lr=self.lr, weight_decay=0.01), checkpoint_dir=keep,
            progress=progress, callbacks=callbacks,
        )  # fmt: skip
        self.vae_: Any = vae.eval()
        self.history_ = {name: float(v[-1]) for name, v in history.extra.items() if v and v[-1] is not None}
        self._alarm(source)
        return self

    def _check(self, data: FactorData) -> list[str]:
        if not isinstance(data, FactorData):
            raise UnbraidError(f"fit takes FactorData (images with their factors), not {type(data).__name__}.")
        if self.size not in SIZES:
            raise UnbraidError(f"size is {self.size!r}; it must be one of {', '.join(SIZES)}.")
        names = list(data.names) if self.targets is None else [data.names[data.column(n)] for n in self.targets]
        if not names or len(set(names)) < len(names):
            raise UnbraidError(f"targets are {names}; give at least one factor, and each once.")
        for name in names:
            k = data.column(name)
            known = data.factors[:, k][data.factors[:, k] >= 0]
            if len(np.unique(known)) < 2:
                raise UnbraidError(
                    f"factor {name!r} has {len(np.unique(known))} known class(es) in these data: nothing to contrast. "
                    "Leave it out of targets (dSprites' first column is such a constant)."
                )
            if data.sizes[k] is None and name not in (self.ordinal or {}):
                raise UnbraidError(f"factor {name!r} is continuous; give it a bandwidth in ordinal.")
        for name in [*(self.ordinal or {}), *self.cyclic]:
            data.column(name)
        ranges = [
            ("dim", self.dim, self.dim >= 1), ("rest", self.rest, self.rest >= 1), ("tau", self.tau, self.tau > 0),
            ("lr", self.lr, self.lr > 0), ("steps", self.steps, self.steps is None or self.steps >= 1),
            ("batch", self.batch, self.batch is None or self.batch >= 4),
            ("form", self.form, self.form in ("inside", "outside")),
            ("supervision", self.supervision, self.supervision in ("contrast", "classifier", "none")),
            ("capacity", self.capacity, self.capacity in (None, "auto") or self.capacity > 0),  # type: ignore[operator]
            *((n, vars(self)[n], vars(self)[n] >= 0) for n in
              ("weight", "kl", "beta_s", "beta_t", "leakage", "covariance")),
            ("exchange", self.exchange, 0 <= self.exchange <= 1),
        ]  # fmt: skip
        for name, value, fine in ranges:
            if not fine:
                raise UnbraidError(f"{name}={value!r} is not accepted; see help(XFactors).")
        return names

    def _per_factor(self, data: FactorData, names: list[str], columns: list[int]) -> tuple[Any, Any, Any, Any]:
        ordinal = self.ordinal or {}
        spans = [tuple(self.blocks_[n]) for n in names]
        sizes = [data.sizes[c] for c in columns]
        periods = [float(s) if n in self.cyclic and s else None for n, s in zip(names, sizes, strict=True)]
        return spans, [s or 1 for s in sizes], [ordinal.get(n) for n in names], periods

    def _weights(self, data: FactorData, names: list[str]) -> Weights:
        capacity = self.capacity
        if capacity == "auto":
            free = [s for n, s in zip(data.names, data.sizes, strict=True) if n not in names]
            if not free or None in free:
                raise UnbraidError(
                    "capacity='auto' needs data whose other factors have a known number of values; give nats instead."
                )
            capacity = sum(math.log(s) for s in free if s)
        return Weights(
            self.kl, self.beta_s, self.beta_t, self.weight, self.tau, self.form, self.supervision, capacity,
            self.leakage, self.covariance, self.exchange,
        )  # fmt: skip

    def build_module(self, name: str) -> GaussianVAE:
        """The VAE without its weights."""
        if name != "vae_":
            return super().build_module(name)
        channels, side, _ = self.shape_
        kind, width, _, _ = SIZES[self.size]
        norm: Norm = "batch"  # without it small objects on black end on the mean image (method sheet)
        latents = max(last for _, last in self.blocks_.values())

        def build(outputs: int) -> nn.Module:
            if self.backbone is not None:
                hidden = width if kind == "mlp" else 8 * width  # as the last layers of `image_encoder`
                return Frozen(self.backbone, outputs, (channels, side, side), hidden)
            return image_encoder(channels, side, outputs, kind, width, norm)

        encoder = TwoEncoders(build, self.rest, latents - self.rest, self.shared)
        decoder = image_decoder(channels, side, latents, kind, width, norm)
        vae = GaussianVAE(encoder, decoder, latents, shape=self.shape_, likelihood="gaussian", activation="sigmoid")
        return vae.eval()

    @torch.no_grad()
    def _alarm(self, source: Observations) -> None:
        x = torch.from_numpy(source.take(np.arange(min(512, len(source)))))
        error, spread = float((self.vae_.reconstruct(x) - x).square().mean()), float((x - x.mean(0)).square().mean())
        if error > MEAN_IMAGE * spread:
            warnings.warn(
                f"The reconstruction (mean squared error {error:.4f}) is hardly better than the mean image "
                f"({spread:.4f}): train longer, or lower beta_s; swaps mean nothing yet.",
                stacklevel=3,
            )

    def transform(self, x: Any) -> np.ndarray:
        """[n, J] codes (means) of images or `FactorData`; columns as `blocks_` says."""
        return encode_all(self._fitted(), x)[0]

    def block(self, name: str) -> slice:
        """Where a factor, or "S", sits in the code.

        Raises:
            UnbraidError: there is no such block.
        """
        self._fitted()
        if name not in self.blocks_:
            raise UnbraidError(f"there is no block {name!r}; there are {', '.join(self.blocks_)}.")
        return slice(*self.blocks_[name])

    def swap(self, reference: Any, source: Any, factor: str | Sequence[str]) -> np.ndarray:
        """Images of the reference with one block (or several) from the source.

        Args:
            reference: [n, C, side, side] images, or one.
            source: as many, or one.
            factor: name of a factor, or "S" for all that has no block.

        Returns:
            [n, C, side, side] from 0 to 1.

        Raises:
            UnbraidError: no such block, or images that do not fit.
        """
        vae, ref, src = self._fitted(), self._images(reference), self._images(source)
        if len(ref) != len(src) and 1 not in (len(ref), len(src)):
            raise UnbraidError(f"{len(ref)} references and {len(src)} sources: give as many, or one of either.")
        names = [factor] if isinstance(factor, str) else list(factor)
        with torch.no_grad():
            a, b = vae.encode(ref)[0], vae.encode(src)[0]
            n = max(len(a), len(b))
            mixed = a.expand(n, -1).clone()
            for name in names:
                mixed[:, self.block(name)] = b.expand(n, -1)[:, self.block(name)]
            return np.asarray(vae.decode(mixed).cpu())

    def sweep(self, x: Any, factor: str, steps: int = 9, data: Any = None) -> np.ndarray:
        """One image with a factor's block led through the codes of its classes.

        Args:
            x: one image.
            factor: name of a block.
            steps: images made, where ``data`` is not given.
            data: `FactorData` with this factor: the block takes the mean code of each class in turn. None: it goes
                round the circle on which directions lie (of its first two dimensions), at its own length.

        Returns:
            [steps or classes, C, side, side].
        """
        vae, image, at = self._fitted(), self._images(x), self.block(factor)
        if len(image) != 1 or steps < 1:
            raise UnbraidError(f"sweep takes one image and at least one step, not {len(image)} and {steps}.")
        with torch.no_grad():
            code = vae.encode(image)[0]
            if data is not None:
                values = data.factors[:, data.column(factor)]
                mu = self.transform(data)[:, at]
                places = np.stack([mu[values == v].mean(0) for v in np.unique(values[values >= 0])])
            elif at.stop - at.start == 1:
                places = np.linspace(-2, 2, steps)[:, None]
            else:
                own = np.asarray(code[0, at].cpu())
                angles = np.arctan2(own[1], own[0]) + np.arange(steps) / steps * 2 * np.pi
                places = np.tile(own, (steps, 1))
                places[:, :2] = np.hypot(*own[:2]) * np.stack([np.cos(angles), np.sin(angles)], 1)
            mixed = code.repeat(len(places), 1)
            mixed[:, at] = torch.as_tensor(places).to(mixed)
            return np.asarray(vae.decode(mixed).cpu())

    def generate(self, data: FactorData, n: int, where: Mapping[str, int] | None = None, seed: int = 0) -> np.ndarray:
        """New images by recombining stored codes, block by block; conditioned on labels of the data.

        Args:
            data: whose codes are recombined.
            n: how many.
            where: factor -> class it must have.
            seed: of the draws.

        Returns:
            [n, C, side, side].

        Raises:
            UnbraidError: no image of the data has such a class, or n is below 1.
        """
        if n < 1:
            raise UnbraidError(f"n is {n}; ask for at least one image.")
        vae, mu, rng = self._fitted(), self.transform(data), np.random.default_rng(seed)
        made = np.empty((n, mu.shape[1]))
        for name, (a, b) in self.blocks_.items():
            rows = np.arange(len(data))
            if where and name in where:
                rows = np.flatnonzero(data.factors[:, data.column(name)] == where[name])
                if not len(rows):
                    raise UnbraidError(f"no image of the data has {name}={where[name]}.")
            made[:, a:b] = mu[rng.choice(rows, n), a:b]
        unknown = set(where or ()) - set(self.blocks_)
        if unknown:
            raise UnbraidError(f"{sorted(unknown)[0]!r} has no block to be set; there are {', '.join(self.blocks_)}.")
        with torch.no_grad():
            return np.asarray(vae.decode(torch.as_tensor(made, dtype=torch.float32)).cpu())

    def audit(self, data: FactorData, preset: Literal["fast", "standard", "full"] = "fast", **options: Any) -> Result:
        """All disentanglement metrics on blocks, with pictures: `unbraid.metrics.disentanglement.audit`.

        Args:
            data: images and factors.
            preset: of the metrics.
            options: further arguments of that audit.
        """
        from unbraid.metrics.disentanglement import audit

        vae = self._fitted()

        def decode(z: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return np.asarray(vae.decode(torch.as_tensor(z, dtype=torch.float32)).cpu())

        spans = [tuple(span) for span in self.blocks_.values()]
        return audit(
            self.transform(data), data.factors, data.names, spans, decode, preset=preset,
            **{"title": "XFactors: what each block carries", "seed": self.seed, **options},
        )  # fmt: skip

    def _fitted(self) -> Any:
        if "vae_" not in vars(self):
            raise UnbraidError("this XFactors has learned nothing yet; call fit(data) or from_pretrained(folder).")
        return self.vae_

    def _images(self, given: Any) -> Tensor:
        x = torch.as_tensor(np.asarray(given.x if isinstance(given, FactorData) else given), dtype=torch.float32)
        x = x[None] if x.dim() == 3 else x
        if x.dim() != 4 or list(x.shape[1:]) != self.shape_ or not bool(torch.isfinite(x).all()):
            raise UnbraidError(
                f"images must be finite numbers of shape [n, {', '.join(map(str, self.shape_))}], not {tuple(x.shape)}."
            )
        return x.to(next(self.vae_.parameters()).device)
