"""The same statistics by TransformerLens and nnsight, in their own environment (`python -m benchmarks.peers.build`).

    python -m benchmarks.peers.worker job.json      # one variant at one length, as benchmarks/attention/worker.py
    python -m benchmarks.peers.worker --check       # prints versions as JSON, or fails

Both peers are given the model that transformers loaded, with its eager attention, which they need to see a map.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.attention.maps import Kept
from benchmarks.attention.measure import answer, keep_statistics, measured
from benchmarks.attention.model import load, text

Run = Callable[[Tensor], tuple[Tensor, Kept]]
PATTERN = "attn.hook_pattern"


def bridge_of(model: Any, folder: str | None) -> Any:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    if folder is None:
        raise SystemExit("TransformerLens boots from a model folder; it does not run with --random-weights.")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return TransformerBridge.boot_transformers(folder, hf_model=model, tokenizer=tokenizer, dtype=model.dtype)


def hooks(model: Any, folder: str | None) -> Run:
    """TransformerLens, kindly: each pattern is reduced in a hook and let go."""
    bridge = bridge_of(model, folder)

    def run(ids: Tensor) -> tuple[Tensor, Kept]:
        kept = Kept()
        each = [(lambda name: name.endswith(PATTERN), lambda p, hook: kept.add(p))]
        return bridge.run_with_hooks(ids, fwd_hooks=each, logits_to_keep=1, use_cache=False), kept

    return run


def cache(model: Any, folder: str | None) -> Run:
    """TransformerLens, as its tutorials do: all patterns into a cache, then the statistics."""
    bridge = bridge_of(model, folder)

    def run(ids: Tensor) -> tuple[Tensor, Kept]:
        kept = Kept()
        only = {"names_filter": lambda name: name.endswith(PATTERN)}
        logits, found = bridge.run_with_cache(ids, **only, logits_to_keep=1, use_cache=False)
        for name in found:
            kept.add(found[name])
        return logits, kept

    return run


def trace(model: Any, folder: str | None) -> Run:
    """nnsight: each pattern is reduced inside the trace."""
    from nnsight import NNsight, save

    traced = NNsight(model)

    def run(ids: Tensor) -> tuple[Tensor, Kept]:
        kept = Kept()
        with traced.trace(input_ids=ids, logits_to_keep=1, use_cache=False):
            for layer in traced.model.layers:
                kept.add(layer.self_attn.output[1])
            logits = save(traced.output.logits)
        return logits, kept

    return run


VARIANTS: dict[str, Callable[[Any, str | None], Run]] = {
    "transformerlens-hooks": hooks,
    "transformerlens-cache": cache,
    "nnsight": trace,
}


def main() -> None:
    if sys.argv[1] == "--check":
        import nnsight  # noqa: F401
        import transformer_lens  # noqa: F401

        names = ("torch", "transformers", "transformer-lens", "nnsight")
        print(json.dumps({name: version(name) for name in names}))
        return
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    run = VARIANTS[job["variant"]](load(job, "eager"), job["model"])
    found, (logits, kept) = measured(run, text(job), job)
    if not kept.layers:
        raise SystemExit(f"{job['variant']} returned, but no pattern was seen.")
    keep_statistics(job.get("statistics"), logits, kept.stacked())
    answer(job["answer"], found)


if __name__ == "__main__":
    main()
