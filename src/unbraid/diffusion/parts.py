"""A text-to-image pipeline of any supported family, taken apart: `Parts.of(pipe)`.

Symbols: B batch, n tokens of a prompt, d their width, p width of the pooled text, C channels and h x w size of latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from unbraid.core.errors import UnbraidError

Kind = Literal["unet", "joint"]
Family = Literal["sd", "sdxl", "sd3", "flux"]
Objective = Literal["epsilon", "v_prediction", "sample", "flow"]
SUPPORTED = "Stable Diffusion 1.x, 2.x, XL, 3 and 3.5, and FLUX.1"
FAMILIES: dict[str, Family] = {
    "UNet2DConditionModel": "sd",
    "SD3Transformer2DModel": "sd3",
    "FluxTransformer2DModel": "flux",
}


@dataclass(frozen=True)
class Context:
    """What a denoiser is told by words.

    Attributes:
        embeds: [B, n, d].
        pooled: [B, p], for the families that have it.
    """

    embeds: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.embeds)

    def plus(self, vector: Tensor, weight: float = 1.0) -> Context:
        """Adds [B|1, d] or [B|1, n, d] to all tokens; the pooled text stays."""
        added = vector if vector.dim() == 3 else vector[:, None]
        return replace(self, embeds=self.embeds + weight * added.to(self.embeds))

    def times(self, weight: float) -> Context:
        """Scales the tokens; the pooled text stays."""
        return replace(self, embeds=self.embeds * weight)

    def at(self, rows: Any) -> Context:
        """Some of the batch."""
        return Context(self.embeds[rows], None if self.pooled is None else self.pooled[rows])

    def repeat(self, times: int) -> Context:
        """One prompt for a whole batch."""
        pooled = None if self.pooled is None else self.pooled.repeat(times, 1)
        return Context(self.embeds.repeat(times, 1, 1), pooled)

    @staticmethod
    def cat(many: Sequence[Context]) -> Context:
        """Batches joined; all of one length."""
        pooled = [c.pooled for c in many if c.pooled is not None]
        return Context(torch.cat([c.embeds for c in many]), torch.cat(pooled) if pooled else None)

    def words(self, negative: bool = False) -> dict[str, Tensor]:
        """Keyword arguments of the pipeline's call."""
        start = "negative_" if negative else ""
        found = {f"{start}prompt_embeds": self.embeds}
        if self.pooled is not None:
            found[f"{start}pooled_prompt_embeds"] = self.pooled
        return found


@dataclass(frozen=True, eq=False)
class Parts:
    """A pipeline's parts under names that hold for every family.

    Attributes:
        pipe: the pipeline itself.
        family: "sd" (1.x, 2.x), "sdxl", "sd3" or "flux".
        denoiser: the UNet or the transformer.
        encoders: (tokenizer, text encoder), in the pipeline's order, absent ones left out.
        vae: the autoencoder.
        scheduler: the pipeline's own.
    """

    pipe: Any
    family: Family
    denoiser: Any
    encoders: list[tuple[Any, Any]]
    vae: Any
    scheduler: Any

    @classmethod
    def of(cls, pipe: Any) -> Parts:
        """Take a pipeline apart.

        Raises:
            UnbraidError: a pipeline of an unsupported kind.
        """
        parts: dict[str, Any] = dict(pipe.components) if isinstance(getattr(pipe, "components", None), dict) else {}
        denoiser = parts.get("unet") or parts.get("transformer")
        family = FAMILIES.get(type(denoiser).__name__)
        if family is None or parts.get("vae") is None or parts.get("text_encoder") is None:
            raise UnbraidError(
                f"{type(pipe).__name__} is not a text-to-image pipeline that Unbraid knows; give one of {SUPPORTED}."
            )
        if family == "sd" and parts.get("text_encoder_2") is not None:
            family = "sdxl"
        pairs = [(parts.get(f"tokenizer{end}"), parts.get(f"text_encoder{end}")) for end in ("", "_2", "_3")]
        encoders = [(words, model) for words, model in pairs if words is not None and model is not None]
        return cls(pipe, family, denoiser, encoders, parts["vae"], parts["scheduler"])

    @property
    def kind(self) -> Kind:
        """ "unet" (cross-attention) or "joint" (text and image in one sequence)."""
        return "unet" if self.family in ("sd", "sdxl") else "joint"

    @property
    def objective(self) -> Objective:
        """What the denoiser predicts."""
        if self.kind == "joint":
            return "flow"
        found: Objective = self.scheduler.config.get("prediction_type", "epsilon")
        return found

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        found: torch.device = self.denoiser.device
        return found

    @property
    def dtype(self) -> torch.dtype:
        """Of the denoiser's weights."""
        found: torch.dtype = self.denoiser.dtype
        return found

    @property
    def patch(self) -> int:
        """Pixels of an image per latent along an axis."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def multiple(self) -> int:
        """What a picture's height and width must be multiples of."""
        if self.family == "flux":
            return 2 * self.patch
        if self.family == "sd3":
            return int(self.patch * self.denoiser.config.patch_size)
        return int(self.patch * 2 ** (len(self.denoiser.config.block_out_channels) - 1))

    @property
    def size(self) -> int:
        """Side of the pictures that the model was made for, in pixels."""
        if self.family == "flux":
            return int(self.pipe.default_sample_size * self.patch)
        return int(self.denoiser.config.sample_size * self.patch)

    @property
    def width(self) -> int:
        """Width d of the tokens that the denoiser is told."""
        config = self.denoiser.config
        return int(config.cross_attention_dim if self.kind == "unet" else config.joint_attention_dim)

    def encode(self, prompts: Sequence[str]) -> Context:
        """What the denoiser is told by prompts, [B, n, d]; gradients reach the text encoders where they are asked for.

        Raises:
            UnbraidError: no prompts, or one that is not a text.
        """
        said = list(prompts)
        if not said or not all(isinstance(one, str) for one in said):
            raise UnbraidError(f"prompts are {said!r}; give at least one text.")
        if self.family == "sd":
            return Context(self.pipe.encode_prompt(said, self.device, 1, False)[0])
        if self.family == "flux":
            embeds, pooled, _ = self.pipe.encode_prompt(said, None, device=self.device)
            return Context(embeds, pooled)
        names = ("prompt_2",) if self.family == "sdxl" else ("prompt_2", "prompt_3")
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            said, **dict.fromkeys(names), device=self.device, do_classifier_free_guidance=False
        )
        return Context(embeds, pooled)

    def without(self, negative: str = "") -> Context:
        """What guidance leads away from, of one prompt: as the pipelines do, nothing at all for SD XL's empty one."""
        told = self.encode([negative])
        zeros = self.family == "sdxl" and not negative and self.pipe.config.force_zeros_for_empty_prompt
        if not zeros:
            return told
        return Context(torch.zeros_like(told.embeds), None if told.pooled is None else torch.zeros_like(told.pooled))

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and spread [B, C, h, w] of the scaled latents of images [B, 3, H, W] from 0 to 1.

        Raises:
            UnbraidError: a height or width that the model cannot take.
        """
        height, width = images.shape[-2:]
        if height % self.multiple or width % self.multiple:
            raise UnbraidError(f"images are {height} x {width} pixels; this model takes multiples of {self.multiple}.")
        home = self.vae.dtype
        wide = home == torch.float16 and bool(self.vae.config.get("force_upcast", True))
        if wide:  # the autoencoders of SD XL overflow in half precision
            self.vae.to(torch.float32)
        try:
            found = self.vae.encode((images * 2 - 1).to(self.vae.device, self.vae.dtype)).latent_dist
        finally:
            if wide:
                self.vae.to(home)
        shift, scale = self.vae.config.get("shift_factor") or 0.0, float(self.vae.config.scaling_factor)
        return ((found.mean - shift) * scale).to(self.dtype), (found.std * scale).to(self.dtype)

    def latents(self, images: Tensor, generator: torch.Generator | None = None, mean: bool = False) -> Tensor:
        """Scaled latents [B, C, h, w] of images [B, 3, H, W] from 0 to 1; a sample of the posterior, or its mean."""
        centre, spread = self.posterior(images)
        if mean:
            return centre
        return centre + spread * torch.randn(centre.shape, generator=generator).to(centre)

    def images(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] from 0 to 1 of scaled latents; gradients pass."""
        shift = self.vae.config.get("shift_factor") or 0.0
        code = latents / self.vae.config.scaling_factor + shift
        made = self.vae.decode(code.to(self.vae.dtype)).sample
        return (made.float() / 2 + 0.5).clamp(0, 1)

    def predict(self, noisy: Tensor, t: Tensor, context: Context, guidance: float = 1.0) -> Tensor:
        """One forward pass of the denoiser.

        Args:
            noisy: latents with noise, [B, C, h, w].
            t: timesteps [B], from 0 to 1000 (for flows a thousand times the share of noise).
            context: of B prompts.
            guidance: told to guidance-distilled models (FLUX.1-dev), ignored by all others.

        Returns:
            [B, C, h, w], what `objective` says.
        """
        noisy, words = noisy.to(self.dtype), context.embeds.to(self.dtype)
        if self.family == "flux":
            return self._flux(noisy, t, context, guidance)
        if self.family == "sd3":
            pooled = None if context.pooled is None else context.pooled.to(self.dtype)
            made: Tensor = self.denoiser(
                hidden_states=noisy, timestep=t, encoder_hidden_states=words, pooled_projections=pooled
            ).sample
            return made
        more: dict[str, Any] = {}
        if self.family == "sdxl":
            assert context.pooled is not None
            height, width = (int(side) * self.patch for side in noisy.shape[-2:])
            times = torch.tensor([[height, width, 0, 0, height, width]] * len(noisy), device=noisy.device)
            more = {"added_cond_kwargs": {"text_embeds": context.pooled.to(self.dtype), "time_ids": times}}
        made = self.denoiser(noisy, t, encoder_hidden_states=words, **more).sample
        return made

    def _flux(self, noisy: Tensor, t: Tensor, context: Context, guidance: float) -> Tensor:
        batch, channels, height, width = noisy.shape
        pipe = type(self.pipe)
        places = pipe._prepare_latent_image_ids(batch, height // 2, width // 2, noisy.device, self.dtype)
        embedded = bool(self.denoiser.config.guidance_embeds)
        assert context.pooled is not None
        made = self.denoiser(
            hidden_states=pipe._pack_latents(noisy, batch, channels, height, width),
            timestep=t.to(noisy) / 1000,
            guidance=torch.full((batch,), guidance, device=noisy.device) if embedded else None,
            pooled_projections=context.pooled.to(self.dtype),
            encoder_hidden_states=context.embeds.to(self.dtype),
            txt_ids=torch.zeros(context.embeds.shape[1], 3, device=noisy.device, dtype=self.dtype),
            img_ids=places,
        ).sample
        found: Tensor = pipe._unpack_latents(made, height * self.patch, width * self.patch, self.patch)
        return found
