"""Time and memory of one call, measured in a process of its own. Needs torch only."""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MIB = 2**20


def _status(name: str) -> int | None:
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


class Memory:
    """The most memory in use beyond what was in use when this was made.

    On a CPU the kernel's high-water mark of resident memory (the number behind ru_maxrss), set back first, because
    loading a model may have needed more than what is measured. On CUDA torch's own mark.
    """

    def __init__(self, device: torch.device) -> None:
        gc.collect()
        self.device = device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self.how, self.before = "max_memory_allocated", torch.cuda.memory_allocated(device)
            return
        self.how, self.before = "ru_maxrss", self._maxrss()
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            resident = _status("VmRSS:")
            if resident is not None:
                self.how, self.before = "VmHWM", resident
        except OSError:
            pass

    @staticmethod
    def _maxrss() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def peak(self) -> int:
        """Bytes beyond the start."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        now = _status("VmHWM:") if self.how == "VmHWM" else self._maxrss()
        return max(0, (now or 0) - self.before)


def seconds_of(f: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Wall time of one call, and what it returned."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    result = f()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, result


def measured(run: Callable[[Tensor], Any], ids: Tensor, job: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Runs a variant once for its memory, or for its time until `at_least` seconds or `most` runs have passed.

    Args:
        run: from token ids to a result, which the next run replaces.
        ids: [1, n].
        job: "memory" (bool), "at_least" (seconds in all: short texts are run several times), "most" (runs).

    Returns:
        What was measured, and the last result.
    """
    device = ids.device
    at_least, most = (0.0, 1) if job["memory"] else (job["at_least"], job["most"])
    run(ids[:, :192])  # everything is loaded, and every page of the weights touched
    memory = Memory(device)
    times: list[float] = []
    result = None
    while not times or (sum(times) < at_least and len(times) < most):
        result = None
        took, result = seconds_of(lambda: run(ids), device)
        times.append(took)
    found = {"seconds": times, "threads": torch.get_num_threads()}
    if job["memory"]:
        found |= {"extra_bytes": memory.peak(), "loaded_bytes": memory.before, "memory_by": memory.how}
    return found, result


def answer(path: str, data: dict[str, Any]) -> None:
    """Writes a worker's answer, whole or not at all."""
    temporary = f"{path}.tmp"
    Path(temporary).write_text(json.dumps(data), encoding="utf-8")
    os.replace(temporary, path)


def keep_statistics(path: str | None, logits: Tensor, statistics: dict[str, Tensor]) -> None:
    """Writes logits of the last token and statistics for the comparison of the variants."""
    if path is None:
        return
    from safetensors.torch import save_file

    plain = {
        k: (v.to(torch.int32) if v.dtype == torch.int64 else v.float()).contiguous() for k, v in statistics.items()
    }
    save_file({"logits": logits.reshape(-1, logits.shape[-1])[-1].float().cpu().contiguous(), **plain}, f"{path}.tmp")
    os.replace(f"{path}.tmp", path)
