"""What DeBERTa's attention costs: transformers' module next to the same weights with each back-end of `accelerate`.

    python -m benchmarks.deberta                       # writes results/benchmarks/deberta.json

One attention module of v3-base's shape (768 wide, 12 heads, 256 buckets, shared projections), random weights, the last
text of a batch half padding, a single text whole. transformers gets its index of pairs and its mask ready made, as
layers after the first do. *forward* is evaluation without gradients (positions cached), *training* is forward and
backward with dropout of .1, *no dropout* the same without. Variants run in turn on one thread; times are the
processor's, ratios are transformers' over ours within rounds, low and high their quartiles. *at most* is the ratio for
the same module without positions (its projections and torch's fused kernel): hardly any exact attention can be quicker.
Memory is the high-water mark of a fresh process beyond what it had before the pass.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.attention.report import markdown, provenance, show, write_json, write_text
from benchmarks.headhunter import ratio, rounds, timed
from unbraid.systems.deberta.attention import choose
from unbraid.systems.deberta.swapping import accelerate

OUT = Path(__file__).resolve().parents[1] / "results" / "benchmarks" / "deberta.json"
BAR = 2.0
CELLS = [
    (1, 64), (8, 64), (32, 64), (1, 128), (8, 128), (32, 128), (1, 256), (8, 256), (32, 256), (1, 512), (8, 512),
    (1, 1024), (4, 1024), (1, 2048), (1, 4096),
]  # fmt: skip
KINDS = ("forward", "training", "no dropout")
BACKENDS = ("crop", "skew", "blocks")
PEER, FLOOR = "transformers", "at most"


def call(variant: str, batch: int, length: int, kind: str) -> Callable[[], Any]:
    """One pass of a variant."""
    from transformers import DebertaV2Config, DebertaV2Model

    drop = 0.1 if kind == "training" else 0.0
    torch.manual_seed(0)
    config: Any = DebertaV2Config
    model = DebertaV2Model(
        config(
            vocab_size=8, hidden_size=768, num_attention_heads=12, num_hidden_layers=1, intermediate_size=64,
            relative_attention=True, position_buckets=256, share_att_key=True, norm_rel_ebd="layer_norm",
            pos_att_type=[] if variant == FLOOR else ["c2p", "p2c"], position_biased_input=False,
            type_vocab_size=0, hidden_dropout_prob=drop, attention_probs_dropout_prob=drop,
        )
    ).train(kind != "forward")  # fmt: skip
    encoder, hidden = model.encoder, torch.randn(batch, length, 768)
    mask = torch.ones(batch, length)
    if batch > 1:
        mask[-1, length // 2 :] = 0
    with torch.no_grad():
        table = encoder.get_rel_embedding()
    where, pairs = encoder.get_rel_pos(hidden), encoder.get_attention_mask(mask)
    if variant != PEER:
        accelerate(model, backend="skew" if variant == FLOOR else variant)
        where, pairs = None, mask
    attention = encoder.layer[0].attention.self
    if kind == "forward":

        def forward() -> Any:
            with torch.no_grad():
                return attention(hidden, pairs, relative_pos=where, rel_embeddings=table)

        return forward
    table.requires_grad_(True)
    hidden.requires_grad_(True)

    def both() -> Any:
        out, _ = attention(hidden, pairs, relative_pos=where, rel_embeddings=table)
        out.backward(torch.ones_like(out))
        model.zero_grad(set_to_none=True)
        hidden.grad = table.grad = None

    return both


def peak() -> int:
    """High-water mark of resident memory, kB; set back by writing to clear_refs."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def memory(variant: str, batch: int, length: int, kind: str) -> float:
    """MiB beyond what was there before the pass, in a fresh process."""
    given = json.dumps([variant, batch, length, kind])
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "benchmarks.deberta", "--cell", given]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout.splitlines()[-1])


def cell(given: str) -> None:
    """Prints a cell's memory."""
    torch.set_num_threads(1)
    variant, batch, length, kind = json.loads(given)
    call(variant, 1, 16, kind)()
    run = call(variant, batch, length, kind)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = peak()
    run()
    print((peak() - before) / 1024)


def measure(batch: int, length: int, kind: str, seconds: float) -> dict[str, Any]:
    """All variants of one cell."""
    runs = {name: call(name, batch, length, kind) for name in (PEER, FLOOR, *BACKENDS)}
    once = sum(timed(run) for run in runs.values())
    count = max(5, min(40, int(seconds / max(once, 1e-6))))
    found = rounds({name: (lambda run=run: timed(run)) for name, run in runs.items()}, count)
    row: dict[str, Any] = {"pass": kind, "batch": batch, "tokens": length, "rounds": count}
    row["ms transformers"] = 1000 * statistics.median(found[PEER])
    for name in (*BACKENDS, FLOOR):
        row[name] = ratio(found, PEER, name)["ratio"]
    auto = choose(batch, length, length, "cpu")
    got = ratio(found, PEER, auto)
    row |= {"chosen": auto, "ratio": got["ratio"], "low": got["low"], "high": got["high"], "bar": BAR}
    row["met"] = got["ratio"] >= BAR if length >= 128 else None
    row |= {f"MiB {name}": memory(name, batch, length, kind) for name in (PEER, auto)}
    row["MiB"] = row.pop(f"MiB {auto}")
    return row


def main() -> int:
    """Runs all cells and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--longest", type=int, default=4096, help="leave out longer ones (4096)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of rounds for each cell (20)")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cell:
        cell(given.cell)
        return 0
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for kind in given.kinds:
        for batch, length in CELLS:
            if length <= given.longest:
                rows.append(measure(batch, length, kind, given.seconds))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
                write_json(given.out, {**provenance(), "rows": rows})
    show("DeBERTa's attention", rows)
    write_text(given.out.with_suffix(".md"), f"`python -m benchmarks.deberta`\n\n{markdown(rows)}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
