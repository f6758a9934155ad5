"""Diffusers pipelines for `load`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unbraid.core.errors import UnbraidError

INDEX = "model_index.json"


def is_pipeline(source: str | Path) -> bool:
    """Whether a folder or a hub id holds a pipeline; what cannot be reached is taken for a model, whose error says so.

    Args:
        source: a folder, or a hub id.
    """
    if isinstance(source, Path):
        return (source / INDEX).is_file()
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        hf_hub_download(source, INDEX)
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError, ValueError):
        return False
    return True


def load_pipeline(asked: str, source: str | Path, dtype: Any, options: dict[str, Any]) -> Any:
    """The pipeline, from safetensors, with no code of a repository run.

    Args:
        asked: what the user gave.
        source: a folder, or a hub id.
        dtype: a torch dtype; None: full precision, as diffusers does.
        options: for diffusers' `from_pretrained`.

    Raises:
        UnbraidError: diffusers is not installed, or the files are not as it wants them.
    """
    try:
        import diffusers
    except ImportError:
        raise UnbraidError(
            f'{asked} is a diffusers pipeline; install what it needs: pip install "unbraid[diffusion]".'
        ) from None
    from packaging.version import Version

    if dtype is not None:
        options = {**options, "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype": dtype}
    try:
        return diffusers.DiffusionPipeline.from_pretrained(
            str(source), use_safetensors=True, trust_remote_code=False, **options
        )
    except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        raise UnbraidError(f"{asked} cannot be opened as a diffusers pipeline: {said[:240]}") from error
