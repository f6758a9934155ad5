"""`open_pipeline`: a diffusers pipeline by the zoo's name, a folder or a hub id."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from unbraid import zoo
from unbraid.core.errors import UnbraidError
from unbraid.diffusion.parts import SUPPORTED, Parts
from unbraid.diffusion.quiet import quiet

INDEX = "model_index.json"


def open_pipeline(
    model: Any, device: str = "cpu", dtype: str = "float32", progress: bool = False, **options: Any
) -> Any:
    """A text-to-image pipeline, from safetensors only, with no code of a repository run.

    Args:
        model: a name of the zoo ("tiny-sd"), a folder that `save_pretrained` wrote, a hub id, or a pipeline, which
            comes back as it is.
        device: where it goes.
        dtype: of the weights: float32, bfloat16 or float16.
        progress: show the libraries' bars while weights are read.
        options: handed to diffusers' `from_pretrained` (`variant="fp16"`, `revision=...`).

    Raises:
        UnbraidError: no such model; weights in pickle format only; a pipeline of an unsupported kind.
    """
    if not isinstance(model, str | Path):
        Parts.of(model)
        return model
    import torch
    from packaging.version import Version

    with quiet():  # transformers complains about torchvision when diffusers is first imported
        import diffusers
        from diffusers import DiffusionPipeline

    kind = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}.get(str(dtype))
    if kind is None:
        raise UnbraidError(f"dtype is {dtype!r}; give float32, bfloat16 or float16.")
    source = _source(str(model))
    if isinstance(source, Path):
        options.setdefault("local_files_only", True)
    word = "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype"
    options[word] = kind
    try:
        with quiet(progress):
            pipe = DiffusionPipeline.from_pretrained(
                str(source), use_safetensors=True, trust_remote_code=False, **options
            )
    except (OSError, ValueError, ImportError) as error:
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        raise UnbraidError(f"{str(model)!r} cannot be opened as a diffusers pipeline: {said[:240]}") from error
    Parts.of(pipe)
    try:
        pipe.to(device)
    except (RuntimeError, AssertionError) as error:
        said = str(error).strip().splitlines()[0]
        raise UnbraidError(f"device {device!r} cannot be used here ({said}); give 'cpu', 'cuda' or 'mps'.") from None
    return pipe


def _source(model: str) -> str | Path:
    """A folder with a pipeline, or something to ask the hub for."""
    if model in {card.name for card in zoo.models()}:
        folder = zoo.fetch(model)
        if not (folder / INDEX).is_file():
            raise UnbraidError(f"{model!r} of the zoo is no text-to-image pipeline; give one of {SUPPORTED}.")
        return folder
    folder = Path(model).expanduser()
    if model.strip() and folder.is_dir():
        if not (folder / INDEX).is_file():
            raise UnbraidError(f"{model} has no {INDEX}, so it is no folder of a pipeline; give one of {SUPPORTED}.")
        return folder
    names = [card.name for card in zoo.models() if card.kind == "text-to-image"]
    close = difflib.get_close_matches(model.lower(), names, n=1, cutoff=0.6)
    if close and "/" not in model:
        raise UnbraidError(f"the zoo has no pipeline {model!r}; did you mean {close[0]!r}?")
    if not model.strip() or folder.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise UnbraidError(f"{model!r} is not a folder; give one with a pipeline, a name of the zoo, or a hub id.")
    return model
