"""From checkpoints to folders as `from_pretrained` reads them: half precision, a model card, a manifest."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unbraid.core.errors import UnbraidError
from unbraid.zoo.reference import NAMES, SIDE, parts
from unbraid.zoo.reference.card import card
from unbraid.zoo.reference.words import t5_tokenizer, tokenizer
from unbraid.zoo.shipped import HOME, LICENCE, MANIFEST

KINDS = {"tiny-sd": "text-to-image", "tiny-sd3": "text-to-image", "tiny-clip": "image-text"}
STAGES = {"tiny-sd": "sd", "tiny-clip": "clip", "tiny-sd3": "sd3"}  # names of folders of checkpoints
WEIGHTS = "weights.safetensors"
BEGAN = "sd3_began.json"  # manifest of the weights that a training went on with


def pack(
    name: str, keep: Path, source: Path | None = None, out: Path | None = None, scores: Path | None = None
) -> Path:
    """Assembles a model or pipeline in half precision.

    Args:
        name: one of `NAMES`.
        keep: folder with the trained parts.
        source: a checkpoint of the training, or the folder of them, of which the newest is taken: its running means are
            packed. None: the finished parts in ``keep``.
        out: the folder to write; None: finished ones go into the package, others to ``keep``/preview.
        scores: file that `unbraid.zoo.reference.scoring` wrote; the card shows what in it is of these weights.

    Returns:
        The folder.

    Raises:
        UnbraidError: no such name; a part is missing, or does not fit.
    """
    if name not in NAMES:
        raise UnbraidError(f"there is no reference model {name!r}; give one of {', '.join(NAMES)}.")
    home = out or (HOME / name if source is None else keep / "preview" / name)
    folder = None if source is None else _checkpoint(source)
    steps = None if folder is None else int(folder.name.rpartition("-")[2])
    part = home.with_name(f".{home.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        _ASSEMBLE[name](keep, folder, part)
        done = steps or _trained(keep / STAGES[name])
        began = _began(keep / BEGAN) if name == "tiny-sd3" else None
        finish(name, part, done, preview=folder is not None, scores=scores, began=began)
        if home.exists():
            shutil.rmtree(home)
        part.replace(home)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return home


def finish(
    name: str, folder: Path, steps: int | None, preview: bool, scores: Path | None, began: str | None = None
) -> None:
    """Writes card and manifest over whatever weights are there."""
    weights = fingerprint(folder)
    text = card(name, folder, steps, preview, _scores(scores, name, weights), began)
    (folder / "README.md").write_text(text, encoding="utf-8")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    facts = {
        "name": name,
        "kind": KINDS[name],
        "licence": LICENCE,
        "precision": "fp16, as trained in fp32 by the project",
        "steps": steps,
        **({"began": began} if began else {}),
        "weights": weights,
        "files": {
            path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _sha(path)} for path in files
        },
    }
    (folder / MANIFEST).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def fingerprint(folder: Path) -> str:
    """SHA-256 over all files of weights, by which scores know what they are of."""
    sums = [_sha(path) for path in sorted(folder.rglob("*.safetensors"))]
    return hashlib.sha256("".join(sums).encode()).hexdigest()


def _scores(path: Path | None, name: str, weights: str) -> dict[str, Any] | None:
    """What was measured of exactly these weights."""
    if path is None or not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8")).get("models", {}).get(name)
    return found if found and found.get("weights") == weights else None


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _checkpoint(source: Path) -> Path:
    """The folder of one checkpoint."""
    if (source / WEIGHTS).is_file():
        return source
    found = sorted(path for path in source.glob("step-*") if (path / WEIGHTS).is_file()) if source.is_dir() else []
    if not found:
        raise UnbraidError(f"{source} holds no checkpoint; give a folder that `fit_loop` wrote, such as runs/.../sd.")
    return found[-1]


def _began(path: Path) -> str | None:
    """In words, what a training went on with."""
    if not path.is_file():
        return None
    facts = json.loads(path.read_text(encoding="utf-8"))
    before = f"{facts['began']}, then " if facts.get("began") else ""
    return f"{before}{facts['steps']:,} (weights {facts['weights'][:12]})"


def _trained(folder: Path) -> int | None:
    """Steps of the newest checkpoint, as the parts in `keep` have no number."""
    found = sorted(folder.glob("step-*"))
    return int(found[-1].name.rpartition("-")[2]) if found else None


def mean_of(folder: Path, start: str, module: nn.Module) -> nn.Module:
    """A module with the running mean of its weights out of a checkpoint.

    Args:
        folder: the checkpoint.
        start: of the names of its weights there.
        module: of the same structure.

    Raises:
        UnbraidError: other weights are there.
    """
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, "pt") as file:
        named = {key[len(start) :]: file.get_tensor(key) for key in file.keys() if key.startswith(start)}  # noqa: SIM118
    missing, unexpected = module.load_state_dict(named, strict=False)
    buffers = {key for key, _ in module.named_buffers()}
    wrong = [key for key in (*missing, *unexpected) if key not in buffers]
    if wrong or not named:
        raise UnbraidError(f"{folder} is a checkpoint of another model: {(wrong or [start])[0]} does not fit.")
    return module.eval()


def finished(keep: Path, name: str, kind: Any, advice: str) -> Any:
    """A trained part of `keep`, in full precision.

    Raises:
        UnbraidError: it is not there.
    """
    if not (keep / name / "config.json").is_file():
        raise UnbraidError(f"{keep / name} is not there yet; {advice}")
    return kind.from_pretrained(keep / name, local_files_only=True).eval()


def _advice(stage: str) -> str:
    return f"run `python -m unbraid.zoo.reference {stage}` to its end, or give --from one of its checkpoints."


def _sd(keep: Path, folder: Path | None, out: Path) -> None:
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    words = tokenizer()
    vae = finished(keep, "vae_final", AutoencoderKL, "run the stage vae first.")
    if folder is None:
        text = finished(keep, "text_final", CLIPTextModel, _advice("sd"))
        unet = finished(keep, "unet_final", UNet2DConditionModel, _advice("sd"))
    else:
        text = mean_of(folder, "both.mean.text.", parts.text_encoder(len(words), words.eos_token_id))
        unet = mean_of(folder, "both.mean.unet.", parts.unet())
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=words, unet=unet, scheduler=parts.scheduler(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    _save(pipe, out)


def _sd3(keep: Path, folder: Path | None, out: Path) -> None:
    from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPModel, CLIPTextModelWithProjection

    words = tokenizer()
    vae = finished(keep, "vae_final", AutoencoderKL, "run the stage vae first.")
    if folder is None:
        text = finished(keep, "sd3_text_final", CLIPTextModelWithProjection, _advice("sd3"))
        joint = finished(keep, "sd3_final", SD3Transformer2DModel, _advice("sd3"))
    else:
        text = mean_of(folder, "both.mean.text.", parts.projected_text(len(words), words.eos_token_id))
        joint = mean_of(folder, "both.mean.joint.", parts.joint())
    clip = finished(keep, "clip_final", CLIPModel, "run the stage clip first.")
    third = t5_tokenizer()
    vae.register_to_config(shift_factor=0.0)  # its pipeline adds one without asking whether there is any
    pipe = StableDiffusion3Pipeline(
        vae=vae, text_encoder=text, tokenizer=words, text_encoder_2=parts.text_of(clip), tokenizer_2=words,
        text_encoder_3=parts.silent(len(third)), tokenizer_3=third, transformer=joint, scheduler=parts.flow(),
    )  # fmt: skip
    _save(pipe, out)


def _clip(keep: Path, folder: Path | None, out: Path) -> None:
    from transformers import CLIPModel

    words = tokenizer()
    if folder is None:
        clip = finished(keep, "clip_final", CLIPModel, _advice("clip"))
    else:
        clip = mean_of(folder, "clip.mean.", parts.clip(len(words), words.eos_token_id))
    clip.half().save_pretrained(out)
    words.save_pretrained(out)
    side = {"height": SIDE, "width": SIDE}
    facts = {
        "image_processor_type": "CLIPImageProcessorPil",  # the other one needs torchvision
        "do_convert_rgb": True, "do_resize": True, "size": {"shortest_edge": SIDE}, "resample": 3,
        "do_center_crop": True, "crop_size": side, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    (out / "preprocessor_config.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    _full_by_default(out)


def _save(pipe: Any, out: Path) -> None:
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            nn.Module.to(part, torch.float16)  # diffusers' own warns of layers that none of these have
    pipe.save_pretrained(out, safe_serialization=True)
    _full_by_default(out)


def _full_by_default(out: Path) -> None:
    """The files are in half precision; who asks for no other is given full: CPUs are slow and coarse in half."""
    for path in out.rglob("*.safetensors"):
        path.chmod(0o644)
    for path in out.rglob("config.json"):
        facts = json.loads(path.read_text(encoding="utf-8"))
        for told in (facts, facts.get("text_config", {}), facts.get("vision_config", {})):
            told.pop("_name_or_path", None)  # a folder on the machine that packed it
            if "dtype" in told:
                told["dtype"] = "float32"
        path.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")


_ASSEMBLE: dict[str, Callable[[Path, Path | None, Path], None]] = {"tiny-sd": _sd, "tiny-clip": _clip, "tiny-sd3": _sd3}
