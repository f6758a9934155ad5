"""One cell = one variant at one length, once, in a fresh process; finished cells are kept, so a run can be resumed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.attention.report import write_json

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
LAYERS, HEADS, WEIGHTS = 30, 9, 540_000_000  # SmolLM2; bytes of its fp32 weights
WORKING_MAPS = 4  # scores, softmax and what the statistics hold for a moment, per layer at work
GIB = 2**30


@dataclass(frozen=True)
class Variant:
    """One way to get the statistics.

    Attributes:
        name: its key in the results.
        label: its line in the table.
        statistics: what it makes; "" for nothing.
        maps: attention maps alive at once: "all" layers, "one", or "" for none.
        peer: runs in the peers' environment.
    """

    name: str
    label: str
    statistics: str = "all"
    maps: str = ""
    peer: bool = False


VARIANTS = (
    Variant("plain", "(a) plain forward", statistics=""),
    Variant("empty", "(b0) attach without taps", statistics=""),
    Variant("attach", "(b) attach, default (bitwise)"),
    Variant("attach-free", "(b) attach, bitwise=False"),
    Variant("attach-three", "(b') without Mass, default", statistics="three"),
    Variant("attach-three-free", "(b') without Mass, bitwise=False", statistics="three"),
    Variant("eager-maps", "(c) eager, output_attentions", maps="all"),
    Variant("eager-layers", "(c) eager, layer by layer", maps="one"),
    Variant("transformerlens-cache", "(d) TransformerLens, run_with_cache", maps="all", peer=True),
    Variant("transformerlens-hooks", "(d) TransformerLens, run_with_hooks", maps="one", peer=True),
    Variant("nnsight", "(d) nnsight, trace", maps="one", peer=True),
)


def predicted_bytes(variant: Variant, length: int, dtype_bytes: int) -> int:
    """What a variant that makes maps will need beyond the interpreter: weights and maps alive at once."""
    alive = {"all": LAYERS + WORKING_MAPS, "one": WORKING_MAPS + 1, "": 0}[variant.maps]
    return alive * HEADS * length * length * dtype_bytes + WEIGHTS * dtype_bytes // 4


def free_bytes() -> int | None:
    """Memory that the system says is available."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def code_digest() -> str:
    """A digest of the code that is measured, and of the code that measures."""
    folders = ("src/unbraid/core", "src/unbraid/taps", "benchmarks/attention", "benchmarks/peers")
    files = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@dataclass
class Bench:
    """The cells of one set of circumstances (`identity`), and the folder where they are kept.

    Attributes:
        folder: jobs, answers, statistics, and `cells.json`.
        identity: machine, versions, code, threads, device, dtype, seed, model: cells of others are put aside.
        common: what every job is told.
        cells: key -> what was measured.
    """

    folder: Path
    identity: dict[str, Any]
    common: dict[str, Any]
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def kept(self) -> Path:
        """The file of finished cells."""
        return self.folder / "cells.json"

    def open(self, fresh: bool) -> str:
        """Reads finished cells; says what became of them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            old = json.loads(self.kept.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return ""
        changed = [k for k in self.identity if old.get("identity", {}).get(k) != self.identity[k]]
        if fresh or changed:
            os.replace(self.kept, self.kept.with_suffix(".old.json"))
            for path in self.folder.glob("*.safetensors"):
                path.unlink()
            why = "--fresh" if fresh else f"{', '.join(changed)} changed since"
            return f"{len(old['cells'])} finished cells put aside ({why})"
        self.cells = old["cells"]
        return f"{len(self.cells)} finished cells are there already" if self.cells else ""

    def statistics_at(self, variant: str, length: int) -> Path:
        """Where a variant leaves its statistics for the comparison."""
        return self.folder / f"{variant}-{length}.safetensors"

    def run(self, key: str, job: dict[str, Any], peer: bool = False) -> dict[str, Any]:
        """Runs a cell unless it is there; what fails is reported and tried again by the next run."""
        if key in self.cells:
            return self.cells[key]
        python = str(PEERS) if peer else sys.executable
        module = "benchmarks.peers.worker" if peer else "benchmarks.attention.worker"
        threads = str(self.common["threads"])
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "0"}
        if job.get("memory"):  # resident memory then falls when a block is freed, as torch sees it, not as malloc likes
            environment["MALLOC_MMAP_THRESHOLD_"] = str(2**20)
        if job["variant"] != "prepare":  # the engine measures its rates anew here, not in a busy hour of last week
            environment["UNBRAID_CACHE"] = str(self.folder)
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            answer, written = Path(place) / "answer.json", Path(place) / "job.json"
            written.write_text(json.dumps({**self.common, **job, "answer": str(answer)}), encoding="utf-8")
            command = [python, "-m", module, str(written)]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
            if not answer.exists():
                last = (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1]
                killed = " (killed: out of memory?)" if done.returncode == -9 else ""
                return {"failed": f"{last[:300]}{killed}"}
            found = json.loads(answer.read_text(encoding="utf-8"))
        self.cells[key] = found
        write_json(self.kept, {"identity": self.identity, "cells": self.cells})
        return found
