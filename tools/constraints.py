"""Write constraints.txt anew: the versions that pip chooses today for core, every extra, dev and docs.

    python3 tools/constraints.py

A fresh virtual environment in a temporary folder is asked what it would install; nothing large is kept.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH = "torch==2.13.0"  # fixed by hand: its builds are what everything else is tried against
HEADER = """\
# The versions that Unbraid was tested with, for `pip install -c constraints.txt .` (core, every extra, dev, docs).
# Written by `make constraints`; torchvision and torchaudio must never appear here (see docs/gotchas.md).
"""


def resolve() -> dict[str, str]:
    """Name -> version of everything that would be installed."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = next(
            path for path in (Path(folder) / "bin/python", Path(folder) / "Scripts/python.exe") if path.exists()
        )
        report = Path(folder) / "report.json"
        wanted = [TORCH, "setuptools", f"{ROOT}[all,dev,docs]"]
        line = [str(python), "-m", "pip", "install", "--quiet", "--dry-run", "--report", str(report), *wanted]
        subprocess.run(line, check=True)
        items = json.loads(report.read_text(encoding="utf-8"))["install"]
    found = {item["metadata"]["name"]: item["metadata"]["version"].partition("+")[0] for item in items}
    del found["unbraid"]
    return found


def main() -> int:
    """Write the file, or refuse when the closure holds what it must not."""
    found = resolve()
    trap = [name for name in found if re.fullmatch(r"torch(vision|audio)", name, re.IGNORECASE)]
    if trap:
        print(f"{trap[0]} came along; find out which package wants it and leave that out.", file=sys.stderr)
        return 1
    lines = [f"{name}=={version}\n" for name, version in sorted(found.items(), key=lambda item: item[0].lower())]
    (ROOT / "constraints.txt").write_text(HEADER + "".join(lines), encoding="utf-8")
    print(f"constraints.txt: {len(lines)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
