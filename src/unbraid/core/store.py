"""A result on disk: JSON and a page for people, safetensors and Parquet for programs; nothing is pickled."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unbraid.core.errors import UnbraidError

if TYPE_CHECKING:
    from unbraid.core.claim import Table
    from unbraid.core.result import Result

JSON_FILE = "result.json"
PAGE_FILE = "index.html"
ARRAYS_FILE = "arrays.safetensors"
TABLES_FOLDER = "tables"


def save(result: Result, folder: Path) -> Path:
    """Write ``result`` to ``folder``; see `Result.save`."""
    _refuse(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    draft.mkdir()
    try:
        _write(result, draft)
        try:
            os.rename(
                draft, folder
            )  # onto nothing, or onto an empty folder: one step, and it fails if another came first
        except OSError:
            _refuse(folder)
            _merge(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _refuse(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UnbraidError(f"{folder} is a file; give a folder to save the result in.")
    taken = [name for name in (JSON_FILE, PAGE_FILE, ARRAYS_FILE, TABLES_FOLDER) if (folder / name).exists()]
    if taken:
        raise UnbraidError(
            f"{folder} holds {taken[0]} already, and a result is never overwritten; give another folder."
        )


def _merge(draft: Path, folder: Path) -> None:
    """Move file by file into a folder that holds other things; ``result.json`` last, as it says that all is there."""
    for name in sorted((p.name for p in draft.iterdir()), key=lambda name: name == JSON_FILE):
        os.rename(draft / name, folder / name)


def _write(result: Result, folder: Path) -> None:
    data = result.to_dict()
    if result.arrays:
        from safetensors.numpy import save as save_arrays

        content = save_arrays(result.arrays)
        (folder / ARRAYS_FILE).write_bytes(content)
        data["arrays_sha256"] = hashlib.sha256(content).hexdigest()
    names = file_names(list(result.tables))
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        names = {}
    for table, name in names.items():
        (folder / TABLES_FOLDER).mkdir(exist_ok=True)
        columns = _columns(result.tables[table])
        pq.write_table(pa.table(columns), folder / TABLES_FOLDER / f"{name}.parquet")
    (folder / PAGE_FILE).write_text(result.to_html(), encoding="utf-8")
    # ASCII only: a tokenizer's half characters (lone surrogates) have no UTF-8 form, but a JSON escape
    (folder / JSON_FILE).write_text(
        json.dumps(data, indent=1, ensure_ascii=True, allow_nan=False) + "\n", encoding="ascii"
    )


def file_names(tables: list[str]) -> dict[str, str]:
    """A file name per table: letters, digits, '-' and '_' of its name, made unique."""
    names: dict[str, str] = {}
    for table in tables:
        base = re.sub(r"[^A-Za-z0-9_-]+", "_", table).strip("_")[:80] or "table"
        name, count = base, 2
        while name.lower() in {other.lower() for other in names.values()}:
            name, count = f"{base}_{count}", count + 1
        names[table] = name
    return names


def _columns(table: Table) -> dict[str, list[Any]]:
    """Columns for Parquet, which wants one type in each: mixed ones become text."""
    columns: dict[str, list[Any]] = {}
    for j, name in enumerate(table.columns):
        cells = [row[j] for row in table.rows]
        kinds = {type(cell) for cell in cells if cell is not None}
        if kinds == {int, float}:
            cells = [None if cell is None else float(cell) for cell in cells]
        elif len(kinds) > 1 or any(isinstance(cell, int) and not -(2**63) <= cell < 2**63 for cell in cells):
            cells = [None if cell is None else str(cell) for cell in cells]
        key = _encodable(name)
        while key in columns:
            key += "_"
        columns[key] = [_encodable(cell) if isinstance(cell, str) else cell for cell in cells]
    return columns


def _encodable(value: str) -> str:
    return value.encode("utf-8", "replace").decode("utf-8")


def load(path: Path) -> Result:
    """Read the result in the folder ``path`` (or the JSON file itself); see `Result.load`."""
    from unbraid.core.result import Result

    file = path / JSON_FILE if path.is_dir() else path
    if not file.is_file():
        raise UnbraidError(f"there is no {JSON_FILE} in {path}; give a folder that Result.save wrote.")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnbraidError(f"{file} is not JSON ({error}); it may have been cut off: save the result again.") from None
    arrays = {}
    if isinstance(data, dict) and data.get("arrays"):
        arrays = _read_arrays(file.with_name(ARRAYS_FILE), data)
    return Result.from_dict(data, arrays)


def _read_arrays(file: Path, data: dict[str, Any]) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.numpy import load as load_arrays

    if not file.is_file():
        raise UnbraidError(
            f"{file.parent} has no {ARRAYS_FILE}, which its {JSON_FILE} asks for; copy the whole folder."
        )
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != data.get("arrays_sha256"):
        raise UnbraidError(f"{file} does not belong to the {JSON_FILE} beside it; copy or save the whole folder again.")
    try:
        return load_arrays(content)
    except SafetensorError as error:
        raise UnbraidError(f"{file} cannot be read ({error}); save the result again.") from None
