"""Makes .venv-peers, where TransformerLens and nnsight live: `python -m benchmarks.peers.build` (about 1.6 GB).

They are kept apart because they bring dozens of packages that Unbraid does not want. Run again to repair.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / ".venv-peers"


def main() -> None:
    python = PLACE / "bin" / "python"
    if not python.exists():
        print(f"Making {PLACE.name} ...", file=sys.stderr)
        venv.create(PLACE, with_pip=True, clear=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    wanted = Path(__file__).with_name("requirements.txt")
    torch = next(line for line in wanted.read_text(encoding="utf-8").splitlines() if line.startswith("torch=="))
    print("Installing the peers (minutes the first time) ...", file=sys.stderr)
    subprocess.run([*pip, torch], check=True)  # alone first: where a local CPU build is offered, it is taken
    subprocess.run([*pip, "--requirement", str(wanted)], check=True)
    subprocess.run([str(python), "-m", "benchmarks.peers.worker", "--check"], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
