"""Where a result comes from: versions, machine and time, without names of people, hosts or folders."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "unbraid",
    "torch",
    "transformers",
    "diffusers",
    "accelerate",
    "numpy",
    "scipy",
    "scikit-learn",
    "safetensors",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that decide numbers; imports none of them."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """System, processor, cores this process may use, memory in GiB, and the accelerator where torch is in use."""
    found: dict[str, Any] = {"system": f"{platform.system()} {platform.machine()}", "processor": _processor()}
    found["cores"] = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    if sys.platform != "win32":
        found["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    torch = sys.modules.get("torch")  # only asked where a study has imported it: importing it here would cost seconds
    if torch is not None:
        found["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            found["accelerator"] = torch.cuda.get_device_name()
        elif torch.backends.mps.is_available():
            found["accelerator"] = "Apple GPU (mps)"
    return found


def provenance(**known: Any) -> dict[str, Any]:
    """What a result's ``meta`` holds: time, versions and machine, and what the caller knows (seed, seconds, ...)."""
    now = datetime.now(UTC).replace(microsecond=0).isoformat()
    return {"created": now, "versions": versions(), "machine": machine(), **known}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
