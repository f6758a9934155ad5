"""Path patching of all pairs of heads of SmolLM2 on 50 prompts: ours, a plain loop, and TransformerLens, in one run.

    python -m benchmarks.path_patching                       # a ninth of the senders, about half an hour on two cores
    python -m benchmarks.path_patching --per-layer 9         # every sender
    python -m benchmarks.path_patching --rounds 1 --plain 2 --lens 1 --layers 29 --out /tmp/try.json

Two questions, each with the peer that answers it:
(a) the paper's: the sender is patched at the last token and MLPs pass it on. Peer: a plain loop over pairs, one whole
    forward each, with the sender's own forward shared by all its pairs and logits of the last token only.
(b) TransformerLens' (`get_act_patch_direct_path`): patched at every token, straight into the queries of a later head,
    norms live, the corrupt prompt as the base. Its numbers are compared with ours.

A pair costs the peers one whole forward whichever it is, so they are timed on a few; ours are timed on all receivers of
`--per-layer` senders in every layer, which is the mixture of depths that all pairs have. Rounds meet all contestants in
turn. What a full run would take is that time per pair, times the number of pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
OUT = ROOT / "results" / "benchmarks" / "path_patching.json"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--per-layer", type=int, default=1, help="senders of each layer that ours are timed on (1)")
    parser.add_argument("--layers", type=int, nargs="+", help="sender layers that ours are timed on (all)")
    parser.add_argument("--plain", type=int, default=6, help="pairs per round of the plain loop (6)")
    parser.add_argument("--lens", type=int, default=1, help="senders per round of TransformerLens, nine pairs each (1)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def data(tokenizer: Any, count: int, seed: int) -> dict[str, Any]:
    """As many prompts of one length: indirect objects with their twins."""
    from unbraid.data.prompts import indirect_object

    made = indirect_object(tokenizer, 12 * count, seed)
    lengths = [len(p.clean) for p in made]
    length = max(set(lengths), key=lengths.count)
    some = [p for p in made if len(p.clean) == length][:count]
    if len(some) < count:
        raise SystemExit(f"Only {len(some)} prompts of one length were found; give fewer --prompts.")
    return {
        "clean": [list(p.clean) for p in some], "corrupt": [list(p.corrupt) for p in some],
        "answers": [p.answers[0] for p in some], "distractors": [p.distractors[0] for p in some],
    }  # fmt: skip


def lens(job: dict[str, Any]) -> dict[str, Any]:
    """TransformerLens, in its own environment: seconds per pair, and its numbers."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.patching import get_act_patch_direct_path
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(job["threads"])
    torch.set_grad_enabled(False)
    options = {
        "dtype": torch.float32,
        "attn_implementation": "eager",
        "local_files_only": True,
        "use_safetensors": True,
    }
    hf = AutoModelForCausalLM.from_pretrained(job["model"], **options).eval()
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    bridge = TransformerBridge.boot_transformers(job["model"], hf_model=hf, tokenizer=tokenizer, dtype=torch.float32)
    clean, corrupt = torch.tensor(job["clean"]), torch.tensor(job["corrupt"])
    right, wrong = torch.tensor(job["answers"]), torch.tensor(job["distractors"])
    only = {"names_filter": lambda name: name.endswith("hook_z")}
    _, clean_cache = bridge.run_with_cache(clean, **only)
    _, corrupt_cache = bridge.run_with_cache(corrupt, **only)

    def metric(logits: Any) -> Any:
        last = logits[:, -1]
        return (last.gather(1, right[:, None]) - last.gather(1, wrong[:, None])).mean()

    layer = bridge.cfg.n_layers - 2  # nine pairs: the last layer's heads; every pair costs one forward
    found, seconds = [], []
    for head in job["heads"]:
        start = time.perf_counter()
        table = get_act_patch_direct_path(
            bridge, corrupt, clean_cache, corrupt_cache, metric, layer, head, "q", verbose=False
        )
        seconds.append((time.perf_counter() - start) / bridge.cfg.n_heads)
        found.append(table[-1].tolist())
    return {"seconds": seconds, "found": found}


def run_lens(job: dict[str, Any]) -> dict[str, Any] | None:
    """The same in a process of the peers' environment; None where there is none."""
    if not PEERS.exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        done = subprocess.run(
            [str(PEERS), "-m", "benchmarks.path_patching", "--worker", str(path)], cwd=ROOT, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            print(f"TransformerLens failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}", file=sys.stderr)
            return None
        return json.loads((Path(folder) / "answer.json").read_text(encoding="utf-8"))


class Race:
    """All contestants on one model and one set of prompts."""

    def __init__(self, given: argparse.Namespace) -> None:
        import torch

        from unbraid import zoo
        from unbraid.core.patching import PathPatcher, PlainPatcher

        torch.set_num_threads(given.threads)
        torch.set_grad_enabled(False)
        self.given, self.loaded = given, zoo.load("smollm2")
        self.data = data(self.loaded.tokenizer, given.prompts, given.seed)
        model = self.loaded.model
        self.fast = PathPatcher(model, **self.data, rows=given.rows)
        self.plain = PlainPatcher(model, **self.data)
        swapped = {**self.data, "clean": self.data["corrupt"], "corrupt": self.data["clean"]}
        self.like_lens = PathPatcher(model, **swapped, rows=given.rows, freeze_norm="none", freeze_mlps=True)
        self.sites = self.fast.anatomy.sites
        self.every = list(range(len(self.data["clean"][0])))
        self.pairs = sum(n * m for i, n in enumerate(self.fast.anatomy.heads) for m in self.fast.anatomy.heads[i + 1 :])

    def ours(self, number: int) -> dict[str, Any]:
        """Question (a): some senders of every layer into the queries of all later heads."""
        layers = self.given.layers or range(len(self.sites) - 1)
        heads = self.fast.anatomy.heads[0]
        senders = [
            (self.sites[i], (number + k) % heads)
            for i in layers
            if i < len(self.sites) - 1
            for k in range(self.given.per_layer)
        ]
        start = time.perf_counter()
        edges = self.fast.edges(("q",), logits=False, senders=senders, on_step=progress("ours"))
        return {"seconds": (time.perf_counter() - start) / len(edges), "pairs": len(edges), "edges": edges}

    def loop(self, edges: Any, rng: Any) -> dict[str, Any]:
        """Question (a) by the plain loop, on a few of the same pairs; a sender's forward serves all its pairs."""
        import numpy as np

        sending, receiving, errors = [], [], []
        scale = float(np.abs(edges.change()).max())
        for i in rng.choice(len(edges), min(self.given.plain, len(edges)), replace=False):
            nodes = self.plain.anatomy.names.nodes(edges.senders[i])
            start = time.perf_counter()
            found = self.plain._sender_pass(nodes, -1)
            middle = time.perf_counter()
            metric = self.plain._receiver_pass((edges.receivers[i],), found, -1)
            sending.append(middle - start)
            receiving.append(time.perf_counter() - middle)
            errors.append(float(np.abs(metric - edges.patched[i]).max()))
        shared = self.pairs / sum(self.fast.anatomy.heads[:-1])
        per_pair = statistics.median(receiving) + statistics.median(sending) / shared
        return {"seconds": per_pair, "errors": max(errors), "scale": scale}

    def ours_like_lens(self, heads: list[int]) -> dict[str, Any]:
        """Question (b) on the senders that TransformerLens was timed on, and on one sender of every layer."""
        senders = [(self.sites[-2], h) for h in heads]
        edges = self.like_lens.edges(("q",), False, senders, [(self.sites[-1], h) for h in range(9)], self.every)
        layers = range(0, len(self.sites) - 1, 8)
        start = time.perf_counter()
        some = self.like_lens.edges(
            ("q",), False, [(self.sites[i], heads[0]) for i in layers],
            [(self.sites[i], heads[-1]) for i in range(0, len(self.sites), 5)], self.every,
            progress("ours, all tokens"),
        )  # fmt: skip
        seconds = (time.perf_counter() - start) / len(some)
        by_sender = edges.patched.mean(1)
        order = {(s[1], r.head): i for i, (s, r) in enumerate(zip(edges.senders, edges.receivers, strict=True))}
        return {"seconds": seconds, "found": [[float(by_sender[order[h, k]]) for k in range(9)] for h in heads]}


def progress(name: str) -> Any:
    last = [0.0]

    def step(done: int, all_: int) -> None:
        if time.monotonic() - last[0] > 20 or done == all_:
            last[0] = time.monotonic()
            print(f"{name}: {done} of {all_} pairs", file=sys.stderr, flush=True)

    return step


def measure(given: argparse.Namespace) -> dict[str, Any]:
    import numpy as np

    race, rng = Race(given), np.random.default_rng(given.seed)
    rounds = []
    for number in range(given.rounds):
        fast = race.ours(number)
        edges = fast.pop("edges")
        slow = race.loop(edges, rng)
        heads = [(number * given.lens + k) % 9 for k in range(given.lens)]
        job = {**race.data, "model": str(race.loaded.path), "threads": given.threads, "heads": heads}
        peer = run_lens(job) if given.lens else None
        like = race.ours_like_lens(heads) if peer is not None else None
        entry: dict[str, Any] = {"ours": fast, "plain": slow, "load": os.getloadavg()[0]}
        if peer is not None and like is not None:
            error = float(np.abs(np.array(peer["found"]) - np.array(like["found"])).max())
            scale = float(np.abs(np.array(peer["found"]) - np.mean(race.like_lens.effects().clean)).max())
            entry |= {
                "lens": {"seconds": statistics.median(peer["seconds"])}, "ours like lens": {"seconds": like["seconds"]},
                "largest difference from TransformerLens": error, "largest effect there": scale,
            }  # fmt: skip
        rounds.append(entry)
        print(json.dumps(entry), file=sys.stderr, flush=True)
    return {"pairs": race.pairs, "tokens": len(race.every), "rounds": rounds}


def summary(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Seconds per pair and for all pairs, and how many times faster ours are: medians over rounds, and their range."""
    rows = []
    for question, own, peer in (
        ("last token, MLPs pass on", "ours", "plain"), ("all tokens, direct", "ours like lens", "lens")
    ):  # fmt: skip
        rounds = [r for r in found["rounds"] if own in r and peer in r]
        if not rounds:
            continue
        mine, theirs = ([r[k]["seconds"] for r in rounds] for k in (own, peer))
        ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
        rows.append(
            {
                "question": question, "peer": {"plain": "plain loop", "lens": "TransformerLens 4.3"}[peer],
                "ours s/pair": statistics.median(mine), "peer s/pair": statistics.median(theirs),
                "ours all pairs h": statistics.median(mine) * found["pairs"] / 3600,
                "peer all pairs h": statistics.median(theirs) * found["pairs"] / 3600,
                "times faster": statistics.median(ratios), "least": min(ratios), "most": max(ratios),
            }
        )  # fmt: skip
    return rows


def main() -> None:
    given = arguments()
    if given.worker:
        path = Path(given.worker)
        answer = lens(json.loads(path.read_text(encoding="utf-8")))
        (path.parent / "answer.json").write_text(json.dumps(answer), encoding="utf-8")
        return
    if min(given.prompts, given.per_layer, given.plain, given.rounds, given.rows, given.threads) < 1:
        raise SystemExit("--prompts, --per-layer, --plain, --rounds, --rows and --threads must be at least 1.")
    from benchmarks.attention.report import markdown, provenance, show, write_json, write_text

    found = measure(given)
    rows = summary(found)
    show(
        f"All {found['pairs']:,} pairs of heads (into queries), {given.prompts} prompts of {found['tokens']} tokens",
        rows,
    )
    asked = {k: v for k, v in vars(given).items() if k not in ("out", "worker")}
    command = " ".join(["python -m benchmarks.path_patching", *sys.argv[1:]])
    write_json(given.out, {**provenance(), "arguments": {**asked, "command": command}, "summary": rows, **found})
    about = provenance()["machine"]
    text = (
        f"# Path patching, all {found['pairs']:,} pairs of heads of SmolLM2-135M\n\n{about['processor']}, threads "
        f"{given.threads}; {given.prompts} prompts of {found['tokens']} tokens; {given.rounds} rounds, medians. "
        f"Command: `{command}`.\n\n{markdown(rows)}"
    )
    write_text(given.out.with_suffix(".md"), text)


if __name__ == "__main__":
    main()
