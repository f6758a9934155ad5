"""How tiny-sd3 is trained: flow matching (arXiv 2403.03206) on the latents of tiny-sd.

A `StableDiffusion3Pipeline` without T5 appends 256 rows of zeros to the words (`max_sequence_length`). Nothing tells
these rows apart, so they stay equal through all layers, and attention to m of them is attention to one whose score has
log m added. Training therefore has one row and an m from 1 to 256, at a third of the cost, and the model works with
any `max_sequence_length`.

A layer half way up is asked which shape each patch belongs to (`hints`), and until the learning rate falls half of the
scenes are simple ones, whose outlines are most of what is left to learn.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.core.train import fit_loop
from unbraid.data.scenes import Scene
from unbraid.zoo.reference import SIDE, parts
from unbraid.zoo.reference.bank import Bank
from unbraid.zoo.reference.hints import Hints, belonging
from unbraid.zoo.reference.packing import BEGAN, finished
from unbraid.zoo.reference.training import FALL, Averaged, average, encode, schedule
from unbraid.zoo.reference.words import tokenizer
from unbraid.zoo.shipped import MANIFEST

GIVE = "give the folder of a packed tiny-sd3."
ROWS = 256  # of zeros, as the pipeline has them unless asked otherwise
PLAIN = 0.5  # share of scenes that are trained with just so many
HINTED, HINT = 2, 0.5  # the block that is asked for shapes, and the weight of its answer
OFTEN = 4.0  # times as often as others a simple scene is drawn: half of all, as one of five is simple


class Counted:
    """diffusers' processor of joint attention, with scores that something is added to."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attention of image and words to both.

        Args:
            attn: the layer.
            hidden_states: of the image, [B, N, d].
            encoder_hidden_states: of the words, [B, n, d].
            attention_mask: added to scores, [B, 1, 1, N + n].
        """
        count = hidden_states.shape[1]

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        image = [heads(to(hidden_states)) for to in (attn.to_q, attn.to_k, attn.to_v)]
        words = [heads(to(encoder_hidden_states)) for to in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)]
        for k, (norm, other) in enumerate(((attn.norm_q, attn.norm_added_q), (attn.norm_k, attn.norm_added_k))):
            image[k] = image[k] if norm is None else norm(image[k])
            words[k] = words[k] if other is None else other(words[k])
        q, k_, v = (torch.cat(pair, 2) for pair in zip(image, words, strict=True))
        made = attend(q, k_, v, attention_mask).transpose(1, 2).flatten(2)
        told = made[:, count:]
        return attn.to_out[1](attn.to_out[0](made[:, :count])), told if attn.context_pre_only else attn.to_add_out(told)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention [B, H, n, d] by its matrix: of a hundred tokens, torch's fused one takes three times as long.

    Measured on a CPU in bfloat16, forward and backward; a training step gets a third shorter.

    Args:
        q: queries [B, H, n, d].
        k: keys of the same shape.
        v: values of the same shape.
        mask: added to scores.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (scores if mask is None else scores + mask).softmax(-1).to(v.dtype) @ v


class Flow(nn.Module):
    """The first text encoder and the transformer together; the loss is that of flow matching, and of hints."""

    def __init__(self, text: nn.Module, joint: Any) -> None:
        super().__init__()
        joint.set_attn_processor(Counted())
        self.both = Averaged(nn.ModuleDict({"text": text, "joint": joint}))
        self.hints = Hints(parts.JOINT, joint.transformer_blocks[HINTED])

    def forward(
        self, clean: Tensor, ids: Tensor, second: Tensor, pooled: Tensor, rows: Tensor, kinds: Tensor, places: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss.

        Args:
            clean: scaled latents [B, C, h, w].
            ids: tokens of prompts [B, n].
            second: what the second text encoder says of them [B, n, d].
            pooled: the same in one vector [B, p].
            rows: how many rows of zeros there are [B].
            kinds: shape of each patch [B, N], as `hints.belonging` has it.
            places: of patches in their shapes [B, N, 3].
        """
        t = torch.randn(len(clean), device=clean.device).sigmoid()
        noise = torch.randn_like(clean)
        share = t.view(-1, 1, 1, 1)
        made = self.predict((1 - share) * clean + share * noise, t, ids, second, pooled, rows)
        error = (made - (noise - clean)).square().mean((1, 2, 3))
        hint, told = self.hints(kinds, places)
        return error.mean() + HINT * hint, {"error": error.mean(), "told": told}

    def predict(self, noisy: Tensor, t: Tensor, ids: Tensor, second: Tensor, pooled: Tensor, rows: Tensor) -> Tensor:
        """The velocity [B, C, h, w] at times from 0 to 1."""
        model: Any = self.both.module
        said = model["text"](ids, output_hidden_states=True)
        words = torch.cat([said.hidden_states[-2], second], -1)
        words = torch.cat([words, words.new_zeros(len(words), 1, words.shape[-1])], 1)
        patches = noisy.shape[-1] * noisy.shape[-2] // model["joint"].config.patch_size ** 2
        counted = words.new_zeros(len(words), 1, 1, patches + words.shape[1])
        counted[:, 0, 0, -1] = rows.log()
        found: Tensor = model["joint"](
            hidden_states=noisy,
            encoder_hidden_states=words,
            pooled_projections=torch.cat([said.text_embeds, pooled], -1),
            timestep=t * 1000,
            joint_attention_kwargs={"attention_mask": counted},
        ).sample
        return found


def counts(batch: int, generator: torch.Generator) -> Tensor:
    """[batch] numbers of rows of zeros: 256 for half of the scenes, else from 1 to 256."""
    some = (torch.rand(batch, generator=generator) * math.log(ROWS)).exp().round()
    return torch.where(torch.rand(batch, generator=generator) < PLAIN, torch.full_like(some, ROWS), some)


def chances(scenes: Sequence[Scene]) -> Tensor:
    """How often each scene is drawn until the learning rate falls: flat single things that are not small more often.

    Args:
        scenes: n of them.

    Returns:
        [n], in sum 1.
    """
    simple = [len(s.things) == 1 and s.style == "flat" and s.things[0].size != "small" for s in scenes]
    found = torch.tensor([OFTEN if yes else 1.0 for yes in simple], dtype=torch.float64)
    return found / found.sum()


def train_sd3(
    keep: Path,
    steps: int = 16_000,
    size: int = 60_000,
    batch: int = 32,
    lr: float = 6e-4,
    precision: str = "bf16",
    start: Path | None = None,
    compiled: bool = False,
    progress: bool | None = None,
) -> None:
    """First text encoder and transformer, on latents of the trained autoencoder and with the words of tiny-clip.

    Args:
        keep: folder with the autoencoder and tiny-clip; checkpoints go there too.
        steps: of training.
        size: scenes; captions are worded anew at each step.
        batch: scenes per step.
        lr: highest learning rate.
        precision: of products, as `fit_loop`'s `mixed_precision`; a third faster than "no" where a CPU knows bfloat16.
        start: folder of a packed tiny-sd3 whose weights are gone on with; what it was is noted for the card.
        compiled: compile the transformer's blocks: a minute at the start, then steps in two thirds of the time.
        progress: show bars.

    Raises:
        UnbraidError: the autoencoder or tiny-clip is not there.
    """
    from diffusers import AutoencoderKL
    from transformers import CLIPModel

    vae = finished(keep, "vae_final", AutoencoderKL, "run the stage vae first.")
    second = parts.text_of(finished(keep, "clip_final", CLIPModel, "run the stage clip first."))
    words = tokenizer()
    torch.manual_seed(0)
    text, joint = parts.projected_text(len(words), words.eos_token_id), parts.joint()
    if start is not None:
        text.load_state_dict(finished(start, "text_encoder", type(text), GIVE).state_dict())
        joint.load_state_dict(finished(start, "transformer", type(joint), GIVE).state_dict())
        shutil.copy(start / MANIFEST, keep / BEGAN)
    model = Flow(text, joint)
    bank = Bank(size)
    latents = bank.latents(vae, keep, progress)
    if compiled:
        for block in joint.transformer_blocks:
            block.compile(dynamic=False)
    scale, often = float(vae.config.scaling_factor), chances(bank.scenes)

    def draw(number: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        if number < steps * (1 - FALL):
            at = torch.multinomial(often, batch, replacement=True, generator=generator)
        else:
            at = torch.randint(size, (batch,), generator=generator)
        mean, logvar = latents[at].float().unbind(1)
        noise = torch.randn(mean.shape, generator=generator)
        ids = encode(words, bank.captions(at.tolist(), number))
        with torch.no_grad():
            said = second(ids, output_hidden_states=True)
        clean = (mean + (0.5 * logvar).exp() * noise) * scale
        known = belonging([bank.scenes[i] for i in at.tolist()], SIDE // 8)
        return clean, ids, said.hidden_states[-2], said.text_embeds, counts(batch, generator), *known

    fit_loop(
        model, lambda m, b: m(*b), draw, steps=steps, lr=lr, scheduler=schedule(steps), grad_clip=1.0,
        checkpoint_dir=keep / "sd3", checkpoint_every=250, progress=progress, callbacks=average,
        mixed_precision=precision,
    )  # fmt: skip
    final: Any = model.both.mean
    final["text"].save_pretrained(keep / "sd3_text_final")
    final["joint"].save_pretrained(keep / "sd3_final")
