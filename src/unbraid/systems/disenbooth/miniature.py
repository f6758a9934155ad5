"""A world of vectors in which every error is known: subjects and backgrounds are eight numbers each.

A point is [subject ; background]. A small network learns to denoise points under prompts of three words (rare word,
class, place), as a text-to-image model would; then five "photos" of a new subject in two places are tuned on with the
losses of the method itself, and the subject is asked for in the six places that the photos do not show.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from unbraid.systems.disenbooth.branch import Form, ImageBranch, terms

SIDE, WIDTH, HIDDEN = 8, 16, 192
CLASSES, PLACES, SEEN = 6, 8, 2
LEVELS = 200
SPREAD = {"subject": 0.25, "background": 0.1}  # of a class round its centre, of one place from picture to picture
PHOTOS = 5


def signal() -> Tensor:
    """Kept variance per level, a cosine from 1 to 0."""
    return torch.cos(torch.linspace(0.02, 0.98, LEVELS) * math.pi / 2).square()


class Words(nn.Module):
    """Prompts [B, 3] of (rare word, class, place), 0 for none, as tokens [B, 3, WIDTH]; never tuned."""

    def __init__(self) -> None:
        super().__init__()
        self.rare, self.noun = nn.Embedding(4, WIDTH), nn.Embedding(CLASSES + 1, WIDTH)
        self.place = nn.Embedding(PLACES + 1, WIDTH)

    def forward(self, prompts: Tensor) -> Tensor:
        """[B, 3, WIDTH]."""
        tables = (self.rare, self.noun, self.place)
        return torch.stack([table(prompts[:, i]) for i, table in enumerate(tables)], 1)


class Denoiser(nn.Module):
    """Noise in points [B, 16] at levels [B] under tokens [B, 3, WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        size = 2 * SIDE + 16 + WIDTH
        self.enter, self.middle = nn.Linear(size, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.inner, self.leave = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 2 * SIDE)

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """[B, 16]."""
        angle = (t.float() / LEVELS)[:, None] * 2.0 ** torch.arange(8)
        h = functional.silu(self.enter(torch.cat([x, angle.sin(), angle.cos(), tokens.mean(1)], 1)))
        h = h + functional.silu(self.middle(h))
        h = h + functional.silu(self.inner(h))
        found: Tensor = self.leave(h)
        return found


@dataclass(eq=False)
class World:
    """A trained model and the truth.

    Attributes:
        words: frozen.
        model: a denoiser of all classes and places.
        classes: [6, 8] centres.
        places: [8, 8].
        eye: frozen random network that stands for the image encoder: [B, 16] -> [B, WIDTH].
    """

    words: Words
    model: Denoiser
    classes: Tensor
    places: Tensor
    eye: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Settings:
    """Of one tuning.

    Attributes:
        weak: weight of weak denoising; None trains the text alone, as DreamBooth with LoRA does.
        contrast: weight of the contrast.
        form: of the contrast.
        mask: whether the branch has its mask.
        steps: of training.
        lr: learning rate.
        shared: photos all in one place.
    """

    weak: float | None = 0.01
    contrast: float = 0.001
    form: Form = "cosine"
    mask: bool = True
    steps: int = 600
    lr: float = 2e-3
    shared: bool = False


def make_world(seed: int, steps: int = 3000) -> World:
    """Draw centres and train the denoiser on all pairs of class and place, with words left out now and then."""
    torch.manual_seed(seed)
    words, model = Words().requires_grad_(False), Denoiser()
    classes, places = torch.randn(CLASSES, SIDE), torch.randn(PLACES, SIDE)
    first, second = torch.randn(2 * SIDE, 4 * WIDTH) / 4, torch.randn(4 * WIDTH, WIDTH) / 8

    def eye(x: Tensor) -> Tensor:
        return functional.gelu(x @ first) @ second * 2

    kept, optimizer = signal(), torch.optim.AdamW(model.parameters(), 2e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        noun, place = torch.randint(CLASSES, (256,)), torch.randint(PLACES, (256,))
        subject = classes[noun] + SPREAD["subject"] * torch.randn(256, SIDE)
        x = torch.cat([subject, places[place] + SPREAD["background"] * torch.randn(256, SIDE)], 1)
        prompts = torch.stack([torch.randint(4, (256,)), noun + 1, place + 1], 1) * (torch.rand(256, 3) > 0.15)
        loss = _error(model, x, words(prompts), kept).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    return World(words, model.requires_grad_(False), classes, places, eye)


def _noised(x: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    t = torch.randint(LEVELS, (len(x),))
    noise, a = torch.randn_like(x), kept[t][:, None]
    return a.sqrt() * x + (1 - a).sqrt() * noise, t, noise


def _error(model: Any, x: Tensor, tokens: Tensor, kept: Tensor) -> Tensor:
    noisy, t, noise = _noised(x, kept)
    found: Tensor = (model(noisy, t, tokens) - noise).square().mean(1)
    return found


def measure(world: World, settings: Settings, seed: int, at: list[int]) -> list[dict[str, float]]:
    """Tune on five photos of a new subject and ask for it in the six other places.

    Args:
        world: see `make_world`.
        settings: of the tuning.
        seed: of subject, photos and tuning.
        at: steps at which to measure.

    Returns:
        Per step of `at`: squared distances of the subject (identity) and of the background from what was asked for,
        each a mean over coordinates, places and draws; of the background from the nearest one of the photos (leak).
    """
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(10_000 + seed)
    noun = int(torch.randint(CLASSES, ()))
    star = world.classes[noun] + 0.8 * torch.randn(SIDE)
    seen = torch.randperm(PLACES)[:SEEN]
    where = seen[torch.zeros(PHOTOS, dtype=torch.long) if settings.shared else torch.arange(PHOTOS) % SEEN]
    photos = torch.cat([star.expand(PHOTOS, SIDE) + 0.05 * torch.randn(PHOTOS, SIDE),
                        world.places[where] + SPREAD["background"] * torch.randn(PHOTOS, SIDE)], 1)  # fmt: skip
    config = LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=["enter", "middle", "inner"])
    model: Any = inject_adapter_in_model(config, copy.deepcopy(world.model))
    branch = ImageBranch(WIDTH, WIDTH, settings.mask)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([*weights, *branch.parameters()], settings.lr)
    text, kept, found = world.words(torch.tensor([[1, noun + 1, 0]])), signal(), []
    for step in range(1, settings.steps + 1):
        x = photos[torch.randint(PHOTOS, (4,))]
        noisy, t, noise = _noised(x, kept)
        if settings.weak is None:
            loss = (model(noisy, t, text.expand(4, -1, -1)) - noise).square().mean()
        else:
            image = branch(world.eye(x))
            made = model(noisy.repeat(2, 1), t.repeat(2), torch.cat([text + image, text.expand(4, -1, -1)]))
            errors = (made - noise.repeat(2, 1)).square().mean(1)
            part = terms(errors[:4], errors[4:], text.expand(4, -1, -1), image, settings.form)
            loss = part["full"] + settings.weak * part["weak"] + settings.contrast * part["contrast"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in at:
            asked = torch.tensor([i for i in range(PLACES) if i not in seen.tolist()])
            found.append({"step": step, **_judged(world, model, noun, star, asked, seen, seed)})
    return found


@torch.no_grad()
def _judged(
    world: World, model: Any, noun: int, star: Tensor, asked: Tensor, seen: Tensor, seed: int, draws: int = 32
) -> dict[str, float]:
    """Draws for the other places, by DDIM in 40 steps without guidance."""
    places = asked.repeat_interleave(draws)
    tokens = world.words(torch.stack([torch.full_like(places, 1), torch.full_like(places, noun + 1), places + 1], 1))
    kept = signal()
    x = torch.randn(len(places), 2 * SIDE, generator=torch.Generator().manual_seed(seed))
    levels = torch.linspace(LEVELS - 1, 0, 40).long()
    for i, level in enumerate(levels):
        a = kept[level]
        noise = model(x, level.expand(len(x)), tokens)
        clean = (x - (1 - a).sqrt() * noise) / a.sqrt()
        after = kept[levels[i + 1]] if i + 1 < len(levels) else torch.ones(())
        x = after.sqrt() * clean + (1 - after).sqrt() * noise
    subject, background = x[:, :SIDE], x[:, SIDE:]
    leak = torch.stack([(background - world.places[k]).square().mean(1) for k in seen]).amin(0)
    return {
        "identity": float((subject - star).square().mean()),
        "background": float((background - world.places[places]).square().mean()),
        "leak": float(leak.mean()),
    }
