"""Perturbations per second: batched runs against a plain loop, on the same model, utterance and masks, in one run.

    python -m benchmarks.spes                       # Whisper tiny.en; writes results/benchmarks/spes.json
    python -m benchmarks.spes --runs 8 --repeat 1   # a quick look

Variants: the loop runs encoder and decoder for one mask at a time (what a first script does), for input saliency and
for saliency of the encoder's output; ours batches, and reuses one encoder run for the encoder's output. Each is
measured with all thirty seconds of Whisper's context and with the context fitted to the clip. Rounds meet all variants
in turn; medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.attention.report import provenance, write_json
from unbraid import zoo
from unbraid.data.speech import spoken
from unbraid.systems.s2t_cross_attention.listener import Listener
from unbraid.systems.s2t_cross_attention.perturb import Plan, fill_values, perturb_encoder, perturb_input
from unbraid.systems.s2t_cross_attention.segments import Masks, segment, windows

OUT = Path(__file__).resolve().parents[1] / "results" / "benchmarks" / "spes.json"


def loop_input(listener: Listener, heard: Any, ids: list[int], masks: Masks, count: int) -> np.ndarray:
    """One mask at a time, distributions kept whole: log-softmax twice, KL by its definition."""
    inputs, rows, _ = listener.forced(ids)
    fill = fill_values(heard.grid, heard.valid, "auto")
    with torch.no_grad():
        states = listener.encode(heard.raw, heard.valid)
        before = listener.logits(states, inputs)[0, rows.start : rows.stop].log_softmax(-1)
        out = []
        for number in range(count):
            keep = masks.draw(number // masks.batch)[number % masks.batch]
            keep = keep[masks.labels[masks.granularity(number // masks.batch)]][None]
            states = listener.encode(listener.batch(heard, keep, fill), heard.valid)
            now = listener.logits(states, inputs)[0, rows.start : rows.stop].log_softmax(-1)
            out.append((before.exp() * (before - now)).sum(-1).numpy())
    return np.stack(out)


def loop_encoder(listener: Listener, heard: Any, ids: list[int], masks: Masks, valid: int, count: int) -> np.ndarray:
    """One mask at a time, the encoder run again each time."""
    inputs, rows, _ = listener.forced(ids)
    with torch.no_grad():
        states = listener.encode(heard.raw, heard.valid)
        before = listener.logits(states, inputs)[0, rows.start : rows.stop].log_softmax(-1)
        out = []
        for number in range(count):
            keep = masks.draw(number // masks.batch)[number % masks.batch]
            keep = torch.from_numpy(keep[masks.labels[masks.granularity(number // masks.batch)]])
            states = listener.encode(heard.raw, heard.valid).clone()
            states[:, :valid] *= keep[None, :, None]
            now = listener.logits(states, inputs)[0, rows.start : rows.stop].log_softmax(-1)
            out.append((before.exp() * (before - now)).sum(-1).numpy())
    return np.stack(out)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = call()
    return time.perf_counter() - start, found


def cells(listener: Listener, clip: Any, runs: int, batch: int) -> tuple[dict[str, Callable[[], np.ndarray]], dict]:
    """The four variants of one context, and what they run on."""
    heard = listener.hear(clip.audio, clip.rate)
    states = listener.encode(heard.raw, heard.valid)
    ids = listener.transcribe(states, 1)[0]
    valid = min(states.shape[1], -(-heard.valid // 2))
    segments = Masks([segment(heard.grid[: heard.valid], n, "grid") for n in (100, 200)], batch=batch)
    wide = Masks([windows(valid, w) for w in (1, 2)], batch=batch)
    plan = Plan(masks=runs)
    made = {
        "input, loop": lambda: loop_input(listener, heard, ids, segments, runs),
        "input, batched": lambda: perturb_input(listener, heard, ids, segments, plan).scores,
        "encoder output, loop": lambda: loop_encoder(listener, heard, ids, wide, valid, runs),
        "encoder output, batched": lambda: perturb_encoder(listener, states, valid, ids, wide, plan).scores,
    }
    return made, {"tokens": len(ids), "states": int(states.shape[1]), "seconds of audio": round(clip.seconds, 2)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="whisper-tiny.en", help="a name of the zoo, hub id or folder")
    parser.add_argument("--runs", type=int, default=32, help="perturbations per measurement (32)")
    parser.add_argument("--batch", type=int, default=16, help="perturbations at once (16)")
    parser.add_argument("--repeat", type=int, default=3, help="rounds, of which the median is taken (3)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    given.runs = -(-given.runs // given.batch) * given.batch  # whole batches, so that both make the same masks
    torch.set_num_threads(given.threads)
    loaded = zoo.load(given.model)
    clip = spoken(1)[0]
    rows: list[dict[str, Any]] = []
    for context in ("fit", "full"):
        listener = Listener(loaded.model, loaded.processor, context)
        made, facts = cells(listener, clip, given.runs, given.batch)
        seconds: dict[str, list[float]] = {name: [] for name in made}
        scores: dict[str, np.ndarray] = {}
        for number in range(given.repeat):
            for name, call in made.items():
                print(f"{context}: round {number + 1}, {name}", file=sys.stderr)
                taken, scores[name] = timed(call)
                seconds[name].append(taken)
        for what in ("input", "encoder output"):
            loop, ours = (statistics.median(seconds[f"{what}, {v}"]) for v in ("loop", "batched"))
            a, b = scores[f"{what}, loop"], scores[f"{what}, batched"]
            rows.append(
                {"context": context, "occluded": what, "loop, runs per second": given.runs / loop,
                 "batched, runs per second": given.runs / ours, "ratio": loop / ours,
                 "largest difference of scores": float(np.abs(a - b).max()),
                 "seconds": {k: v for k, v in seconds.items() if k.startswith(what)}, **facts}
            )  # fmt: skip
    options = {k: v for k, v in vars(given).items() if k != "out"}
    write_json(given.out, {"what": __doc__, "options": options, "rows": rows, **provenance()})
    for row in rows:
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items() if k != "seconds"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
