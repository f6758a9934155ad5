"""The measured cost model: what each recipe costs on this device, so that the engine can choose and predict.

Rates are nanoseconds per logit that a query may see (milliseconds per million), for a head width of 64, measured once
per device and torch version in about a tenth of a second and kept in the cache folder.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F

from unbraid.core.engine.fused import SDPA


@dataclass(frozen=True)
class Rates:
    """Nanoseconds per visible logit (head width 64), and microseconds per block.

    fused: a fused attention call; fused_back: its backward with respect to values; base: product and softmax of a row
    block; maximum, entropy, weight, moment: what one more statistic (or column) adds to a row block; product: one
    64-wide product with the probabilities; block: fixed cost of a block.
    """

    fused: float = 1.7
    fused_back: float = 5.0
    base: float = 0.9
    maximum: float = 0.1
    entropy: float = 0.12
    weight: float = 0.06
    moment: float = 0.08
    product: float = 0.67
    block: float = 150.0


_known: dict[str, Rates] = {}


def rates(device: torch.device) -> Rates:
    """The rates of a device: from memory, from the cache folder, or measured now (else the defaults)."""
    key = f"{device.type}:{_name(device)}:{torch.__version__}:{torch.get_num_threads()}"
    if key not in _known:
        path = _cache_path()
        saved = _read(path)
        if key in saved:
            _known[key] = Rates(**saved[key])
        else:
            _known[key] = measure(device)
            _write(path, {**saved, key: asdict(_known[key])})
    return _known[key]


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def _cache_path() -> Path:
    base = os.environ.get("UNBRAID_CACHE")
    if base is None:
        base = str(Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "unbraid")
    return Path(base) / "cost-model.json"


def _read(path: Path) -> dict[str, dict[str, float]]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        names = {f.name for f in fields(Rates)}
        return {k: v for k, v in data.items() if set(v) == names}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _write(path: Path, data: dict[str, dict[str, float]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(data, indent=1), encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        pass  # a read-only home costs a tenth of a second per process, nothing else


def measure(device: torch.device, repeat: int = 3) -> Rates:
    """Measures the rates on a device with inputs of one block and one small attention call."""
    if device.type not in ("cpu", "cuda"):
        return Rates()
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        n, r = (1024, 64) if device.type == "cpu" else (4096, 1024)
        q, k, v = (torch.randn(1, 4, n, 64, device=device) for _ in range(3))
        seen = 4 * n * n / 2 / 1e9  # in units that turn seconds into nanoseconds per logit
        fused = _time(lambda: SDPA(q, k, v, is_causal=True), device, repeat) / seen
        with torch.enable_grad():
            free = v.clone().requires_grad_(True)

            def back() -> None:
                torch.autograd.grad(SDPA(q, k, free, is_causal=True).sum(), free)

            fused_back = _time(back, device, repeat) / seen
        width = 4 * n
        a, b = torch.randn(4, r, 64, device=device), torch.randn(4, 64, width, device=device)
        s, p = torch.empty(4, r, width, device=device), torch.empty(4, r, width, device=device)
        e, w = torch.randn(width, 64, device=device), torch.randn(4, 1, r, device=device)
        logits = s.numel() / 1e9

        def base() -> None:
            torch.bmm(a, b, out=s)
            torch.softmax(s, -1, out=p)

        def timed(f: Callable[[], object]) -> float:
            return _time(f, device, repeat) / logits

        column = e.t()[:1].contiguous()
        return Rates(
            fused=fused,
            fused_back=fused_back,
            base=timed(base),
            maximum=timed(lambda: s.unflatten(-1, (-1, 64)).amax(-1)),
            entropy=timed(lambda: s.mul_(p).sum(-1)) + timed(lambda: p.amax(-1)),
            weight=timed(lambda: torch.bmm(w, p)),
            moment=timed(lambda: F.linear(p, column)),
            product=timed(lambda: p @ e),
        )


def _time(f: Callable[[], object], device: torch.device, repeat: int) -> float:
    f()
    best = float("inf")
    for _ in range(repeat):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        f()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
