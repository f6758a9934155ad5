"""What each variant of attention costs: tokens a second and memory next to the standard layer, 256 to 4,096 tokens.

    python -m benchmarks.deconstructing_attention      # writes results/benchmarks/deconstructing_attention.json

One decoder layer of the paper's 70M shape (512 wide, 8 heads) with a feed-forward block of 64, random weights, float32,
one thread. *forward* is evaluation without gradients, *training* forward and backward, *decode* one token more for each
text after so many, with `memory(model)` (the standard layers with transformers' DynamicCache). Variants run in turn;
times are the processor's, *x standard* is the standard layer's time over the variant's within rounds (above 1:
quicker), low and high its quartiles. *standard* is torch's fused kernel, *eager* the same layer with its maps made, for
comparison. `random` and `sequence` have one row more than the batch has texts, except in *decode*: twice the work for
one text, an eighth more for 8.

*MiB* is the high-water mark of resident memory beyond what was there before the pass, *growth* its ratio to that at
half the tokens: 2 is linear, 4 quadratic; below some 20 MiB it says little, as freed blocks are used again. In *decode*
it is what is kept of the tokens, fixed maps apart, and counted, not measured. *n x n* is whether any operation of a
pass over 1,000 tokens, backward included, makes a tensor with two dimensions of at least 1,000 (the layer has none of
that size).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from benchmarks.attention.report import markdown, provenance, show, write_json, write_text
from benchmarks.deberta import peak
from benchmarks.headhunter import ratio, rounds, timed
from unbraid.systems.deconstructing_attention.placement import VARIANTS
from unbraid.systems.deconstructing_attention.swapping import deconstruct
from unbraid.systems.deconstructing_attention.swapping import memory as remembering

OUT = Path(__file__).resolve().parents[1] / "results" / "benchmarks" / "deconstructing_attention.json"
PEER, MADE = "standard", "eager"
NAMES = (PEER, MADE, *VARIANTS[1:])
CELLS = [(1, 256), (8, 256), (1, 512), (1, 1024), (1, 2048), (1, 4096)]
LONGEST = {"forward": 4096, "training": 2048, "decode": 4096}
SQUARE = 1000


def built(name: str, length: int) -> Any:
    """A model of one layer of a variant."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config: Any = LlamaConfig
    model: Any = LlamaForCausalLM(
        config(
            vocab_size=64, hidden_size=512, intermediate_size=64, num_hidden_layers=1, num_attention_heads=8,
            num_key_value_heads=8, max_position_embeddings=length, use_cache=False,
            attn_implementation="eager" if name == MADE else "sdpa",
        )
    )  # fmt: skip
    if name not in (PEER, MADE):
        deconstruct(model, [name], tokens=torch.randint(0, 64, (length,)), longest=length)
    return model


def call(name: str, batch: int, length: int, kind: str) -> Callable[[], Any]:
    """One pass of a variant's layer."""
    if kind == "decode":
        return decoding(name, batch, length)[0]
    model = built(name, length)
    hidden = torch.randn(batch, length, 512, requires_grad=kind == "training")

    def forward() -> Any:
        with torch.no_grad():
            return model.model(inputs_embeds=hidden, use_cache=False)

    def both() -> Any:
        out = model.model(inputs_embeds=hidden, use_cache=False).last_hidden_state
        out.backward(torch.ones_like(out))
        model.zero_grad(set_to_none=True)
        hidden.grad = None

    return forward if kind == "forward" else both


def decoding(name: str, batch: int, length: int) -> tuple[Callable[[], Any], float]:
    """One more token after so many, and MiB that are kept of these; what the token adds is taken back again."""
    model = built(name, length + 1).eval()
    texts = torch.randn(batch, length + 1, 512)
    kept: Any = DynamicCache() if name in (PEER, MADE) else remembering(model)

    @torch.no_grad()
    def read(part: slice) -> None:
        model.model(inputs_embeds=texts[:, part], past_key_values=kept, use_cache=True)

    def step() -> None:
        read(slice(length, None))
        for layer in kept.layers:
            if layer.is_croppable:  # sums stay, which costs the same
                layer.crop(-1)

    read(slice(0, length))
    numbers = (
        sum(x.numel() for x in (kept.layers[0].keys, kept.layers[0].values)) if name in (PEER, MADE) else kept.numel()
    )
    return step, numbers * 4 / 2**20


class Squares(TorchDispatchMode):
    """Whether an operation makes a tensor with two long dimensions."""

    found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor) and sum(s >= SQUARE for s in x.shape) > 1:
                self.found = True
        return out


def squares(name: str, kind: str) -> bool:
    """Whether a pass makes a matrix of pairs."""
    run = call(name, 1, SQUARE, kind)
    with Squares() as seen:
        run()
    return seen.found


def memory(kinds: list[str], cells: list[tuple[int, int]]) -> dict[str, float]:
    """MiB of every cell, beyond what was there before the pass; in this process, which gives freed blocks back."""
    torch.set_num_threads(1)
    found = {}
    for kind in kinds:
        for name in NAMES:
            call(name, 1, 16, kind)()
            for batch, length in cells:
                if length > LONGEST[kind]:
                    continue
                run = call(name, batch, length, kind)
                gc.collect()
                Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
                before = peak()
                run()
                found[f"{kind} {name} {batch} {length}"] = (peak() - before) / 1024
    return found


def apart(kinds: list[str], cells: list[tuple[int, int]]) -> dict[str, float]:
    """The same in a process of its own."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "benchmarks.deconstructing_attention", "--cell", json.dumps([kinds, cells])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(batch: int, length: int, kind: str, seconds: float) -> list[dict[str, Any]]:
    """A row for each variant, measured in turn."""
    runs = {name: call(name, batch, length, kind) for name in NAMES}
    once = sum(timed(run) for run in runs.values())
    count = max(3, min(20, int(seconds / max(once, 1e-6))))
    found = rounds({name: (lambda run=run: timed(run)) for name, run in runs.items()}, count)
    rows = []
    for name in NAMES:
        got = ratio(found, PEER, name)
        rows.append(
            {"pass": kind, "batch": batch, "tokens": length, "variant": name, "rounds": count,
             "tokens per second": batch * (1 if kind == "decode" else length) / statistics.median(found[name]),
             "x standard": got["ratio"],
             "low": got["low"], "high": got["high"]}
        )  # fmt: skip
    return rows


def main() -> int:
    """Runs all cells and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=list(LONGEST), choices=list(LONGEST))
    parser.add_argument("--longest", type=int, default=4096, help="leave out longer ones (4096; training: 2048)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of rounds for each cell, at least 3 rounds (5)")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cell:
        print(json.dumps(memory(*json.loads(given.cell))))
        return 0
    torch.set_num_threads(1)
    cells = [(batch, length) for batch, length in CELLS if length <= given.longest]
    passes = [kind for kind in given.kinds if kind != "decode"]
    used = apart(passes, cells) if passes else {}
    if "decode" in given.kinds:
        used |= {f"decode {n} {b} {t}": decoding(n, b, t)[1] for n in NAMES for b, t in cells}
    rows: list[dict[str, Any]] = []
    command = (
        f"python -m benchmarks.deconstructing_attention --kinds {' '.join(given.kinds)} --longest {given.longest} "
        f"--seconds {given.seconds:g}"
    )
    for kind in given.kinds:
        made = {name: None if kind == "decode" else squares(name, kind) for name in NAMES}
        for batch, length in cells:
            for row in measure(batch, length, kind, given.seconds) if length <= LONGEST[kind] else []:
                name = row["variant"]
                now, half = (used.get(f"{kind} {name} {batch} {n}") for n in (length, length // 2))
                known = used[f"{kind} {PEER} {batch} {length}"]
                row |= {"MiB": now, "memory x standard": now / known if now and known else None}
                row |= {"growth": now / half if now and half else None, "n x n": made[name]}
                rows.append(row)
            print(f"{kind}, {batch} x {length}", file=sys.stderr, flush=True)
            write_json(given.out, {"command": command, "rows": rows, "provenance": provenance()})
    show("Attention taken apart", rows)
    write_text(given.out.with_suffix(".md"), f"`{command}`\n\n{markdown(rows)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
