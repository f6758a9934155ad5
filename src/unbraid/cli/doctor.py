"""``unbraid doctor``: what is installed here, what is missing, and what is known to break."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from unbraid.core import registry
from unbraid.zoo.cache import cache_dir

EXAMPLES = "Examples:  unbraid doctor  ·  unbraid doctor --json"
_PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "huggingface_hub",
    "safetensors",
    "numpy",
    "scikit-learn",
    "diffusers",
)
_LOW_DISK_GB = 2.0


def doctor_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Check this machine; leaves with 1 when something is wrong, with 0 otherwise."""
    facts, problems = examine()
    from unbraid.cli.console import out, print_json, table

    if as_json:
        print_json({"facts": facts, "problems": problems})
    else:
        shown = table("", "what", "found")
        for name, value in facts.items():
            shown.add_row(name, _text(value))
        console = out()
        console.print(shown)
        console.print("\nNo known problem." if not problems else "\nProblems:")
        for problem in problems:
            console.print(f"- {problem}")
    if problems:
        raise typer.Exit(1)


def examine() -> tuple[dict[str, Any], list[str]]:
    """Look at this machine.

    Returns:
        What was found by name, and one sentence for each problem: what is wrong and what to do.
    """
    facts: dict[str, Any] = {"unbraid": _version("unbraid"), "python": platform.python_version()}
    facts |= {"platform": platform.platform(terse=True)}
    facts |= {name: _version(name) or "not installed" for name in _PACKAGES}
    problems = [*_torch(facts), *_trap(), *_space(facts), *_extras(facts)]
    problems += [f"system {slug}: {reason}" for slug, reason in registry.problems().items()]
    facts["systems"] = len(registry.list_systems())
    return facts, problems


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _torch(facts: dict[str, Any]) -> list[str]:
    try:
        import torch
    except Exception as error:
        return [f"torch cannot be imported ({error}); install it again: pip install --force-reinstall torch"]
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        facts["device"] = ", ".join(devices)
    elif torch.backends.mps.is_available():
        facts["device"] = "mps (Apple)"
    else:
        facts["device"] = f"cpu, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return []


def _trap() -> list[str]:
    """torchvision and torchaudio hold compiled code for one build of torch; transformers imports them when present."""
    found = [name for name in ("torchvision", "torchaudio") if find_spec(name) is not None]
    broken = []
    for name in found:
        try:
            __import__(name)
        except Exception as error:
            reason = " ".join(str(error).split())[:120]
            broken.append(
                f"{name} {_version(name)} does not fit torch {_version('torch')} ({reason}); transformers imports it "
                f"when it is installed, so models fail to load. Unbraid does without it: pip uninstall {name}"
            )
    return broken


def _space(facts: dict[str, Any]) -> list[str]:
    cache = cache_dir()
    place = next(parent for parent in (cache, *cache.parents) if parent.exists())
    free = shutil.disk_usage(place).free / 1e9
    facts |= {"cache": str(cache), "free disk": f"{free:.1f} GB"}
    problems = []
    if free < _LOW_DISK_GB:
        problems.append(
            f"only {free:.1f} GB are free at {place}; the reference models need up to {_LOW_DISK_GB:.0f} GB."
        )
    if not os.access(place, os.W_OK):
        problems.append(f"{place} cannot be written to; set UNBRAID_CACHE to a folder that can.")
    return problems


def _extras(facts: dict[str, Any]) -> list[str]:
    try:
        extras = metadata.metadata("unbraid").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return ["unbraid is not installed, only found on the path; run: pip install -e ."]
    wanted = [extra for extra in extras if extra not in ("all", "dev", "docs")]
    facts["extras installed"] = [extra for extra in wanted if not registry.missing_packages(extra)]
    facts["extras missing"] = [
        f"{extra} ({', '.join(missing)})" for extra in wanted if (missing := registry.missing_packages(extra))
    ]
    return []


def _text(value: Any) -> str:
    return ", ".join(value) or "-" if isinstance(value, list) else str(value)
