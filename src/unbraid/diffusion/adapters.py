"""Low-rank adapters by peft on a denoiser, and the files of them that plain diffusers loads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError
from unbraid.diffusion.parts import Parts
from unbraid.diffusion.quiet import quiet

NAME = "unbraid"
_OWN = ("to_q", "to_k", "to_v", "to_out.0")
_TEXT = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")  # the text half of joint attention
GROUPS = ("attention", "cross_kv", "cross_qkv")


def targets(parts: Parts, which: str | Sequence[str] = "attention") -> str | list[str]:
    """Modules to adapt, as peft wants them said.

    Args:
        parts: of the pipeline.
        which: "attention" (queries, keys, values and outputs of every attention; with the text's own in joint ones),
            "cross_kv" or "cross_qkv" (of cross-attention only; in joint attention the text's projections), or names of
            modules.

    Raises:
        UnbraidError: a name that no module has.
    """
    joint = parts.kind == "joint"
    if which == "attention":
        return [*_OWN, *_TEXT] if joint else list(_OWN)
    if which in ("cross_kv", "cross_qkv"):
        letters = "qkv" if which == "cross_qkv" else "kv"
        return rf".*add_[{letters}]_proj" if joint else rf".*attn2\.to_[{letters}]"
    listed = [which] if isinstance(which, str) else list(which)
    names = [name for name, module in parts.denoiser.named_modules() if isinstance(module, nn.Linear)]
    for one in listed:
        if not any(name == one or name.endswith(f".{one}") for name in names):
            raise UnbraidError(
                f"no linear module of the denoiser is called {one!r}; give {', '.join(GROUPS)} or names."
            )
    return listed


@contextmanager
def lora(
    parts: Parts, rank: int = 4, which: str | Sequence[str] = "attention", *, seed: int = 0, name: str = NAME
) -> Iterator[list[nn.Parameter]]:
    """A fresh adapter on the denoiser, for as long as the block runs; the denoiser's own weights ask for no gradient.

    The second matrix begins at zero, the first with standard deviation 1 / rank. The scale is 1.

    Args:
        parts: of the pipeline.
        rank: of each pair of matrices.
        which: see `targets`.
        seed: of the first matrices.
        name: of the adapter.

    Yields:
        The adapter's weights.

    Raises:
        UnbraidError: a rank below 1, or a name that is taken.
    """
    from peft import LoraConfig

    if rank < 1:
        raise UnbraidError(f"rank is {rank}; it must be at least 1.")
    denoiser = parts.denoiser
    others = set(vars(denoiser).get("peft_config", {}))
    if name in others:
        raise UnbraidError(f"the denoiser has an adapter {name!r} already; give another name.")
    active = denoiser.active_adapters() if others else []
    asked = {p: p.requires_grad for p in denoiser.parameters()}
    denoiser.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets(parts, which))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser.add_adapter(config, adapter_name=name)
    if others:  # the user's own adapters go on working, frozen
        denoiser.set_adapters([*active, name])
        for key, weight in denoiser.named_parameters():
            weight.requires_grad_(f".{name}." in key)
    try:
        yield [p for p in denoiser.parameters() if p.requires_grad]
    finally:
        if others:
            denoiser.delete_adapters(name)
            denoiser.set_adapters(active)
        else:
            denoiser.unload_lora()
        for weight, before in asked.items():
            weight.requires_grad_(before)


def lora_weights(parts: Parts, name: str = NAME) -> dict[str, Tensor]:
    """The adapter's weights under peft's names, on the CPU in single precision."""
    from peft.utils import get_peft_model_state_dict

    found = get_peft_model_state_dict(parts.denoiser, adapter_name=name)
    return {key: value.detach().float().cpu().clone() for key, value in found.items()}


def save_lora(parts: Parts, weights: dict[str, Tensor], folder: str | Path) -> Path:
    """Write a folder that `pipe.load_lora_weights(folder)` of plain diffusers reads.

    Args:
        parts: of a pipeline of the family that the adapter is for.
        weights: see `lora_weights`.
        folder: to be made.

    Returns:
        The file.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    key = "unet_lora_layers" if parts.kind == "unet" else "transformer_lora_layers"
    name, part = "pytorch_lora_weights.safetensors", ".part.safetensors"
    type(parts.pipe).save_lora_weights(str(place), **{key: dict(weights)}, weight_name=part, safe_serialization=True)
    return (place / part).replace(place / name)


@contextmanager
def loaded_lora(pipe: Any, folder: str | Path, weight: float = 1.0, name: str = NAME) -> Iterator[None]:
    """A saved adapter in the pipeline, for as long as the block runs.

    Args:
        pipe: a pipeline.
        folder: with `pytorch_lora_weights.safetensors`, or that file.
        weight: of the adapter; 0 is the pipeline as it was.
        name: of the adapter.

    Raises:
        UnbraidError: no such file, or one for another model.
    """
    path = Path(folder).expanduser()
    file = path / "pytorch_lora_weights.safetensors" if path.is_dir() else path
    if not file.is_file() or file.suffix != ".safetensors":
        raise UnbraidError(f"{folder} holds no pytorch_lora_weights.safetensors; give what a tuning wrote.")
    parts = Parts.of(pipe)
    own = vars(parts.denoiser).get("_hf_peft_config_loaded", False)
    active = parts.denoiser.active_adapters() if own else []
    asked = {p: p.requires_grad for p in parts.denoiser.parameters()}
    try:
        with quiet():  # of adapters without weights for the text encoder, diffusers says that this may be a mistake
            pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name, local_files_only=True)
    except (RuntimeError, ValueError, KeyError) as error:
        said = re.sub(r"\s+", " ", str(error))[:200]
        raise UnbraidError(f"{file.name} of {folder} is not for this model: {said}") from error
    try:
        parts.denoiser.set_adapters([*active, name], [1.0] * len(active) + [weight])
        yield
    finally:
        if own:
            parts.denoiser.delete_adapters(name)
            parts.denoiser.set_adapters(active)
        else:
            pipe.unload_lora_weights()
        for one, before in asked.items():
            one.requires_grad_(before)


@contextmanager
def kept_lora(
    parts: Parts,
    weights: dict[str, Tensor],
    rank: int,
    which: str | Sequence[str] = "attention",
    *,
    weight: float = 1.0,
    name: str = NAME,
) -> Iterator[None]:
    """An adapter whose weights are at hand (see `lora_weights`) on the denoiser, for as long as the block runs.

    Args:
        parts: of the pipeline.
        weights: under peft's names.
        rank: of the adapter.
        which: see `targets`.
        weight: of the adapter; 0 is the denoiser as it was.
        name: of the adapter.

    Raises:
        UnbraidError: weights of another model.
    """
    from peft.utils import set_peft_model_state_dict

    with lora(parts, rank, which, name=name) as own:
        try:
            missing = set_peft_model_state_dict(parts.denoiser, weights, adapter_name=name)
        except RuntimeError as error:
            raise UnbraidError("the adapter is of another model than this pipeline's.") from error
        if missing is not None and missing.unexpected_keys:
            raise UnbraidError(
                f"the adapter is of another model: this one has no {missing.unexpected_keys[0].partition('.lora')[0]}."
            )
        for one in own:
            one.requires_grad_(False)
        parts.denoiser.set_adapters([*parts.denoiser.active_adapters()], [weight])
        yield
