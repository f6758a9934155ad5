"""One variant at one length in a process of its own: `python -m benchmarks.attention.worker job.json`."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.attention.maps import GROUPS, Kept
from benchmarks.attention.measure import answer, keep_statistics, measured, seconds_of
from benchmarks.attention.model import SHAPE, load, plain, text

Result = tuple[Tensor, Callable[[], dict[str, Tensor]], dict[str, Any]]  # logits, statistics, what else to report
Variant = Callable[[Any], Callable[[Tensor], Result]]


def nothing() -> dict[str, Tensor]:
    return {}


def plain_forward(model: Any) -> Callable[[Tensor], Result]:
    return lambda ids: (plain(model, ids).logits, nothing, {})


def empty(model: Any) -> Callable[[Tensor], Result]:
    from unbraid.core.attach import attach

    def run(ids: Tensor) -> Result:
        with attach(model):
            return plain(model, ids).logits, nothing, {}

    return run


def attached(mass: bool, bitwise: bool) -> Variant:
    """Everything that is asked, by taps with their defaults."""

    def make(model: Any) -> Callable[[Tensor], Result]:
        from unbraid import taps
        from unbraid.core.attach import attach

        def run(ids: Tensor) -> Result:
            seen = {"entropy": taps.Entropy(), "received": taps.Received(), "argmax": taps.ArgMax()}
            if mass:
                seen["mass"] = taps.Mass(GROUPS)
            with attach(model, *seen.values(), bitwise=bitwise) as session:
                logits = plain(model, ids).logits

            def kept() -> dict[str, Tensor]:
                found = {n: torch.cat([v[0] for v in tap.values.values()]).cpu() for n, tap in seen.items()}
                found["argmax"] = found["argmax"].squeeze(-1)
                return found

            log = session.log
            return logits, kept, {
                "fused_calls": log.fused_calls, "sweeps": log.sweeps, "blocks": log.blocks,
                "predicted_bytes": log.predicted_bytes, "predicted_seconds": log.predicted_seconds,
            }  # fmt: skip

        return run

    return make


def eager_maps(model: Any) -> Callable[[Tensor], Result]:
    """The maps of all layers from `output_attentions=True`, then the statistics."""

    def run(ids: Tensor) -> Result:
        out = plain(model, ids, output_attentions=True)
        kept = Kept()
        for p in out.attentions:
            kept.add(p)
        return out.logits, kept.stacked, {}

    return run


def eager_layers(model: Any) -> Callable[[Tensor], Result]:
    """Kinder: each layer's map is reduced by a forward hook as soon as it is there, and let go."""

    def run(ids: Tensor) -> Result:
        kept = Kept()
        layers = [m for name, m in model.named_modules() if name.endswith("self_attn")]
        hooks = [m.register_forward_hook(lambda module, args, output: kept.add(output[1])) for m in layers]
        try:
            logits = plain(model, ids).logits
        finally:
            for hook in hooks:
                hook.remove()
        return logits, kept.stacked, {}

    return run


VARIANTS: dict[str, tuple[str, Variant]] = {
    "plain": ("sdpa", plain_forward),
    "empty": ("sdpa", empty),
    "attach": ("sdpa", attached(mass=True, bitwise=True)),
    "attach-free": ("sdpa", attached(mass=True, bitwise=False)),
    "attach-three": ("sdpa", attached(mass=False, bitwise=True)),
    "attach-three-free": ("sdpa", attached(mass=False, bitwise=False)),
    "eager-maps": ("eager", eager_maps),
    "eager-layers": ("eager", eager_layers),
}


def arithmetic(job: dict[str, Any]) -> dict[str, Any]:
    """What the machine can do: a large matrix product, a pass of softmax over row blocks, the engine's own rates."""
    from unbraid.core.engine.cost import rates

    torch.set_num_threads(job["threads"])
    torch.set_grad_enabled(False)
    device = torch.device(job["device"])
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[job["dtype"]]
    n = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    c = torch.empty_like(a)
    s = torch.randn(256, 4096, device=device)
    p = torch.empty_like(s)

    def rate(f: Callable[[], Any], times: int) -> float:
        f()
        return statistics.median(seconds_of(f, device)[0] for _ in range(times))

    product = rate(lambda: torch.mm(a, b, out=c), 7)
    softmax = rate(lambda: torch.softmax(s, -1, out=p), 31)
    return {
        "product_gflops": 2 * n**3 / product / 1e9,
        "softmax_ns_per_logit": softmax / s.numel() * 1e9,
        "engine_rates": asdict(rates(device)),
        "threads": torch.get_num_threads(),
    }


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """Fetches the model where it is not yet there, and writes the tokens of the text."""
    if job["random"]:
        tokens = torch.randint(3, SHAPE["vocab_size"], (8192,), generator=torch.Generator().manual_seed(job["seed"]))
        folder, listed = None, tokens.tolist()
    else:
        from unbraid import zoo

        loaded = zoo.load("smollm2")
        listed = loaded.tokenizer(Path(job["text"]).read_text(encoding="utf-8")).input_ids
        folder = str(loaded.path)
    answer(job["tokens"], listed)  # type: ignore[arg-type]
    return {"model": folder, "tokens_in_text": len(listed)}


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if job["variant"] in ("prepare", "arithmetic"):
        return answer(job["answer"], (prepare if job["variant"] == "prepare" else arithmetic)(job))
    implementation, make = VARIANTS[job["variant"]]
    run = make(load(job, implementation))
    found, (logits, kept, more) = measured(run, text(job), job)
    keep_statistics(job.get("statistics"), logits, kept())
    answer(job["answer"], {**found, **more})


if __name__ == "__main__":
    main()
