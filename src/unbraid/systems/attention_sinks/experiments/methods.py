"""What each method buys and costs: perplexity, attention on the first key, memory and speed, on the same texts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor
from transformers import DynamicCache

from unbraid import taps
from unbraid.core.attach import attach
from unbraid.core.calls import Tap
from unbraid.core.errors import UnbraidError
from unbraid.core.pieces import Pieces
from unbraid.data import text
from unbraid.systems.attention_sinks.caches.duo import DuoCache
from unbraid.systems.attention_sinks.caches.exact import cache_losses
from unbraid.systems.attention_sinks.caches.kept import WatchingCache, cache_bytes
from unbraid.systems.attention_sinks.caches.quantised import ProtectedQuantizedCache
from unbraid.systems.attention_sinks.caches.scored import A2SFCache, H2OCache, KeyDiffCache, SnapKVCache
from unbraid.systems.attention_sinks.caches.streaming import StreamingCache
from unbraid.systems.attention_sinks.detection.findings import SinkReport
from unbraid.systems.attention_sinks.steering.mass_edits import calibrate_sinks, redistribute, scale_sinks
from unbraid.systems.attention_sinks.steering.tuning import head_groups, zero_tune

LIMIT = 0.3  # a head has a sink when it gives more than this to the first key that it has
OBSERVED = 2  # texts on which that is measured, each in a pass of its own


@dataclass
class Method:
    """One condition of the comparison.

    Attributes:
        branch: of the survey.
        name: shown.
        cache: makes a fresh cache.
        edits: taps for the run.
        share: what the share of the first key is multiplied by, for edits in closed form that observers cannot see.
        seen: whether that share is the edited one at all.
    """

    branch: str
    name: str
    cache: Callable[[], Any]
    edits: Callable[[], list[Tap]] = field(default=list)
    share: float = 1.0
    seen: bool = True


def methods(model: Any, budget: int, found: SinkReport, tuned: list[Tap]) -> list[Method]:
    """All conditions; caches of one budget, so that memory is the same where it is saved."""
    half = budget // 2

    def full() -> Any:
        return DynamicCache(config=model.config)

    importance = 1 - found.alpha.array[:, : len(next(iter(found.alpha.scores.values())))]
    observe = min(32, half)
    return [
        Method("baseline", "full cache", full),
        Method("3.1", "plain sliding window", lambda: StreamingCache(model, 0, budget)),
        Method("3.1", "StreamingLLM, 1 sink", lambda: StreamingCache(model, 1, budget - 1)),
        Method("3.1", "StreamingLLM, 4 sinks", lambda: StreamingCache(model, 4, budget - 4)),
        Method("3.1", "H2O", lambda: H2OCache(model, budget - half, half)),
        Method("3.1", "A2SF, decay .99", lambda: A2SFCache(model, budget - half, half, 0.99)),
        Method("3.1", "SnapKV", lambda: SnapKVCache(model, budget, observe)),
        Method("3.1", "DuoAttention, half of the heads", lambda: DuoCache(model, importance, 0.5, 4, budget - 4)),
        Method("3.4", "KeyDiff", lambda: KeyDiffCache(model, budget, half)),
        *[
            Method(
                "3.1", f"{bits} bits{', 4 sinks exact' if protect else ''}",
                lambda bits=bits, protect=protect: ProtectedQuantizedCache(  # type: ignore[misc]
                    model, protect, bits, q_group_size=32, residual_length=32
                ),
            )
            for bits in (4, 2)
            for protect in ((), (0, 1, 2, 3))
        ],
        Method("3.2", "half of the sink's mass to the others", full, lambda: [redistribute(0.5)], 0.5),
        Method("3.2", "the same, uniformly", full, lambda: [redistribute(0.5, how="uniform")], 0.5),
        Method("3.2", "sink removed", full, lambda: [scale_sinks(0.0)], 0.0),
        Method("3.2", "sink removed after 64 tokens", full, lambda: [scale_sinks(0.0, start=64)], 0.0),
        Method("3.2", "sink's weight halved", full, lambda: [taps.bias([0], float(np.log(0.5)))]),
        Method("3.2", "sink's weight doubled", full, lambda: [taps.bias([0], float(np.log(2.0)))]),
        Method("3.2", "ZeroTuning, 3 groups of heads", full, lambda: tuned, seen=False),
        Method("3.2", "ACT", full, lambda: [calibrate_sinks()], seen=False),
    ]  # fmt: skip


def tune(model: Any, tokenizer: Any, length: int, count: int, seed: int, found: SinkReport) -> Any:
    """ZeroTuning on texts of its own."""
    ids = text.windows(tokenizer, length, count, seed).to(next(model.parameters()).device)

    def loss() -> float:
        return float(cache_losses(model, ids, DynamicCache(config=model.config), length).mean())

    return zero_tune(model, loss, head_groups(found.alpha, 3), (0.6, 0.8, 1.25, 1.6))


@contextmanager
def running(model: Any, method: Method, cache: Any, watch: Tap | None) -> Iterator[None]:
    """The model with a method's edits, a cache that may watch, and an observer behind them."""
    edits = method.edits()
    with ExitStack() as stack:
        if isinstance(cache, (WatchingCache, DuoCache)):
            stack.enter_context(cache.watching(model))
        if edits or watch is not None:
            stack.enter_context(attach(model, *edits, *([watch] if watch is not None else [])))
        yield


def measure(model: Any, method: Method, ids: Tensor, chunk: int, observed: bool) -> dict[str, Any]:
    """One method on one text [1, n]: losses and time without an observer; where asked for, the first key's share."""
    cache = method.cache()
    start = time.perf_counter()
    losses = cache_losses(model, ids, cache, chunk, running(model, method, cache, None))
    seconds = time.perf_counter() - start
    size = cache_bytes(cache)
    found = {
        "loss": float(losses.mean()), "late": float(losses[:, losses.shape[1] // 2 :].mean()), "bytes": size,
        "tokens per second": ids.shape[1] / seconds,
    }  # fmt: skip
    if not observed:
        return found
    watch = taps.Mass({"first": [0]}, keep="none")
    cache = method.cache()
    cache_losses(model, ids, cache, chunk, running(model, method, cache, watch))
    share = np.concatenate(list(watch.scores().scores.values())) * method.share
    return found | {"first": float(share.mean()), "rate": float((share > LIMIT).mean())}


def compare(
    model: Any,
    tokenizer: Any,
    found: SinkReport,
    *,
    tokens: int,
    texts: int,
    budget: int,
    chunk: int,
    seed: int,
    store: Pieces,
    step: Callable[[int], None],
) -> dict[str, Any]:
    """Every method on the same texts.

    Returns:
        "rows": method -> one dict per text; "tuned": what ZeroTuning chose.
    """
    key = {"tokens": tokens, "budget": budget, "chunk": chunk, "seed": seed}
    tuned_taps: list[Tap] = []

    def tuning() -> dict[str, Any]:
        made = tune(model, tokenizer, min(tokens, 256), 4, seed + 1_000, found)
        return {"gammas": made.gammas, "before": made.before, "after": made.loss, "trials": made.trials}

    tuned = store.get("tuning", key, tuning)
    groups = head_groups(found.alpha, 3)
    tuned_taps += [scale_sinks(g, (0,), groups[n]) for n, g in tuned["gammas"].items() if g != 1]
    ids = text.windows(tokenizer, tokens, texts, seed).to(next(model.parameters()).device)
    every = methods(model, budget, found, tuned_taps)
    rows: dict[str, list[dict[str, Any]]] = {}
    left_out: dict[str, str] = {}
    for number in range(texts):
        for method in every:

            def one(method: Method = method, number: int = number) -> dict[str, Any]:
                try:
                    return measure(model, method, ids[number : number + 1], chunk, number < OBSERVED)
                except UnbraidError as error:
                    return {"why": str(error)}

            found_here = store.get("method", {**key, "text": number, "of": method.name}, one)
            if "why" in found_here:
                left_out[method.name] = found_here["why"]
            else:
                rows.setdefault(method.name, []).append(found_here)
            step(1)
    return {
        "rows": rows, "tuned": tuned, "left out": left_out, "branches": {m.name: m.branch for m in every},
        "seen": {m.name: m.seen for m in every},
    }  # fmt: skip


def mean_of(runs: list[dict[str, Any]], name: str) -> float:
    """Mean over the texts on which it was measured."""
    return float(np.mean([r[name] for r in runs if name in r]))


def table(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The comparison as rows: means over texts, the difference to the full cache with its interval."""
    from unbraid.systems.attention_sinks.experiments.streams import bootstrap

    base = [r["late"] for r in data["rows"]["full cache"]]
    whole = np.mean([r["bytes"] for r in data["rows"]["full cache"]])
    out = []
    for name, runs in data["rows"].items():
        late = [r["late"] for r in runs]
        more = [a - b for a, b in zip(late, base, strict=True)]
        low, high = bootstrap(more) or (None, None)
        visible = data["seen"][name]
        out.append({
            "branch": data["branches"][name], "method": name, "perplexity": float(np.exp(np.mean(late))),
            "loss more than full cache": float(np.mean(more)), "low": low, "high": high,
            "sink rate": mean_of(runs, "rate") if visible else None,
            "share of the first key": mean_of(runs, "first") if visible else None,
            "cache MB": float(np.mean([r["bytes"] for r in runs])) / 1e6,
            "of the full cache": float(np.mean([r["bytes"] for r in runs]) / whole),
            "tokens per second": float(np.median([r["tokens per second"] for r in runs])),
        })  # fmt: skip
    return out
