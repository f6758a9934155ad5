"""Write the table of systems into README.md, between its markers; with --check only say whether it is current.

python tools/readme_table.py [--check]
"""

from __future__ import annotations

import os
import re
import sys

from pages import ROOT, system_table

_MARKED = re.compile(r"(<!-- systems: [^\n]* -->\n).*?(<!-- /systems -->)", re.DOTALL)


def current(text: str) -> str:
    """README text with the table that discovery gives now."""
    table = system_table("src/unbraid/systems/{slug}/README.md")
    if not _MARKED.search(text):
        raise SystemExit("README.md has lost the markers of the table of systems")
    return _MARKED.sub(lambda found: found[1] + table + found[2], text)


def main() -> int:
    """Write or check."""
    os.environ.pop("UNBRAID_SYSTEMS_PATH", None)  # only what the package itself holds
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    if current(text) == text:
        return 0
    if "--check" in sys.argv[1:]:
        print("The table of systems in README.md is not current: run python tools/readme_table.py", file=sys.stderr)
        return 1
    path.write_text(current(text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
