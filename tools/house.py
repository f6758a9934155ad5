"""Rules of the house that no linter has: lengths of files and functions, nothing unpickled, no device spelled out.

python tools/house.py        # prints each breach; leaves with 1 if there is one
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILE_LIMIT, FUNCTION_LIMIT = 400, 60
FORBIDDEN = {
    r"^\s*(import|from) (pickle|dill|cloudpickle)\b": "nothing is pickled or unpickled; use safetensors and JSON",
    r"\btorch\.load\(": "nothing is unpickled; use safetensors",
    r"\.cuda\(\)": "device and dtype follow the input or the argument",
    r"allow_pickle\s*=\s*True": "nothing is unpickled",
    r"""\b(getattr|hasattr)\(\s*(model|module|self\.model)\s*,\s*["']""": "no attribute of a model by a literal name",
}


def breaches(path: Path, name: str) -> Iterator[str]:
    """One line for each rule that a file of the package breaks.

    Args:
        path: the file.
        name: how messages call it.
    """
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    if len(lines) > FILE_LIMIT:
        yield f"{name}: {len(lines)} lines; at most {FILE_LIMIT} (two things live in one place)"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1 - _docstring_lines(node)
            if length > FUNCTION_LIMIT:
                yield f"{name}:{node.lineno}: {node.name} has {length} lines of code; at most {FUNCTION_LIMIT}"
    for number, line in enumerate(lines, 1):
        for pattern, reason in FORBIDDEN.items():
            if re.search(pattern, line) and "house: allowed" not in line:
                yield f"{name}:{number}: {reason}"


def _docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return (first.end_lineno or first.lineno) - first.lineno + 1
    return 0


def main() -> int:
    """Check every file of the package."""
    found = [
        line for path in sorted((ROOT / "src").rglob("*.py")) for line in breaches(path, str(path.relative_to(ROOT)))
    ]
    print("\n".join(found) if found else "The rules of the house are kept.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
