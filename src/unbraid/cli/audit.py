"""``unbraid audit``: all disentanglement metrics for codes and factors that lie in files; no model is needed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from unbraid.core.errors import UnbraidError

if TYPE_CHECKING:
    import numpy as np

EXAMPLES = (
    "Examples:  unbraid audit codes.npz --out audit  ·  "
    "unbraid audit codes.csv --factors labels.csv --names shape,size,hue --preset fast  ·  "
    "unbraid audit run.safetensors --codes mu --factors labels --json"
)
KINDS = ".npz, .npy, .safetensors, .csv, .parquet"
CODES, FACTORS = ("z", "codes", "mu", "mean", "latents"), ("factors", "labels", "v", "y", "latents_classes")


def audit_command(
    ctx: typer.Context,
    codes: Annotated[Path, typer.Argument(help=f"File with the codes [rows, codes]: {KINDS}.")],
    factors: Annotated[
        str | None,
        typer.Option(
            help="File with the true factors [rows, factors]; or the array's name in an .npz or .safetensors file; or "
            "the columns of a table, with commas. Without it: 'factors' or 'labels' of the same file.",
            show_default=False,
        ),
    ] = None,
    array: Annotated[
        str | None, typer.Option("--codes", help="Name of the array of codes in the file.", show_default=False)
    ] = None,
    names: Annotated[str | None, typer.Option(help="Names of the factors, with commas.", show_default=False)] = None,
    blocks: Annotated[
        str | None, typer.Option(help="Codes that belong together, as in 0:2,2:4,4:5.", show_default=False)
    ] = None,
    cycles: Annotated[
        str | None, typer.Option(help="Factors that come back, as in hue:10,angle:360.", show_default=False)
    ] = None,
    continuous: Annotated[
        str | None, typer.Option(help="Continuous factors, names with commas.", show_default=False)
    ] = None,
    logvar: Annotated[
        str | None, typer.Option(help="Name of the array of log-variances, or a file.", show_default=False)
    ] = None,
    preset: Annotated[
        Literal["fast", "standard", "full"], typer.Option(help="How much work: seconds, minutes, the literature's.")
    ] = "standard",
    learner: Annotated[
        Literal["gbt", "rf", "rf_regression", "lasso", "logistic", "hist", "lightgbm", "xgboost"],
        typer.Option(help="Learner of DCI."),
    ] = "gbt",
    representation: Annotated[Literal["mean", "sampled"], typer.Option(help="What the codes are; recorded.")] = "mean",
    prune: Annotated[float, typer.Option(min=0, help="Leave out codes with a smaller standard deviation.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to, new or empty. Without it: runs/audit/TIME.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, for programs.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Audit a representation: every disentanglement metric with intervals, maps of codes by factors, warnings."""
    began = time.monotonic()
    from unbraid.cli import folders, study
    from unbraid.metrics import disentanglement

    z, v, called = _both(codes, factors, array)
    given: dict[str, Any] = {"preset": preset, "learner": learner, "representation": representation, "seed": seed}
    given |= {"names": _words(names) or called, "blocks": _blocks(blocks), "cycles": _cycles(cycles)}
    given |= {"continuous": _words(continuous), "progress": False if quiet else None}
    given["logvar"] = None if logvar is None else _other(codes, logvar)
    given["active_mask"] = disentanglement.active_codes(z, prune) if prune > 0 else None
    with folders.guarded(folders.claim_folder("audit", out)) as folder:
        result = disentanglement.audit(z, v, title=f"Disentanglement audit of {codes.name}", **given)
        result.params |= {"file": str(codes), "factors": factors}
        study.record(result, study.words_of(ctx), began)
        result.save(folder)
        study.show(result, folder, as_json=as_json, rows=40)


def _both(codes: Path, factors: str | None, array: str | None) -> tuple[np.ndarray, np.ndarray, list[str] | None]:
    """Codes, factors, and names where the file has them."""
    kind = codes.suffix.lower()
    other = None if factors is None else Path(factors)
    if other is not None and (other.is_file() or other.suffix.lower() in KINDS.split(", ")):
        if other.suffix.lower() in (".csv", ".parquet"):
            v, called = _table(other)
            return _read(codes, CODES, array), v, called
        return _read(codes, CODES, array), _read(other, FACTORS), None
    if kind in (".csv", ".parquet"):
        columns = _words(factors)
        if not columns:
            raise UnbraidError(f"{codes} is one table: name its columns of factors, --factors shape,size, or a file.")
        table, header = _table(codes)
        missing = [name for name in columns if name not in (header or [])]
        if missing:
            raise UnbraidError(f"{codes} has no column {missing[0]!r}; it has {', '.join(header or [])}.")
        at = [header.index(name) for name in columns] if header else []
        rest = [i for i in range(table.shape[1]) if i not in at]
        if not rest:
            raise UnbraidError(f"all columns of {codes} are factors; the others are the codes.")
        return table[:, rest], table[:, at], columns
    if kind == ".npy":
        raise UnbraidError(f"{codes} holds one array; give the factors in a second file: --factors labels.npy.")
    names = FACTORS if factors is None else (factors,)
    return _read(codes, CODES, array), _read(codes, names), None


def _other(path: Path, name: str) -> np.ndarray:
    """An array by its name in the file of the codes, or a file of its own."""
    return _read(Path(name)) if Path(name).suffix else _read(path, (name,))


def _read(path: Path, wanted: tuple[str, ...] = (), name: str | None = None) -> np.ndarray:
    """An array of a file: the one called ``name``, else the first of ``wanted`` that is there."""
    kind = path.suffix.lower()
    if kind not in KINDS.split(", "):
        raise UnbraidError(f"{path} is no file of codes that can be read; accepted are {KINDS}.")
    if not path.is_file():
        raise UnbraidError(f"{path} is not there; give a file: {KINDS}.")
    if kind in (".csv", ".parquet"):
        return _table(path)[0]
    arrays = _arrays(path)
    if "" in arrays:
        return arrays[""]
    for candidate in (name,) if name else wanted:
        if candidate in arrays:
            return arrays[candidate]
    looked = name or " or ".join(wanted)
    raise UnbraidError(f"{path} holds no array {looked}; it holds {', '.join(sorted(arrays))}: name it (--codes NAME).")


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a binary file; one without a name is ""."""
    import numpy as np

    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.numpy import load_file

            return load_file(path)
        loaded = np.load(path, allow_pickle=False)
        return {"": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except Exception as error:  # each format has its own
        raise UnbraidError(f"{path} cannot be read ({type(error).__name__}: {error}); give {KINDS}.") from None


def _table(path: Path) -> tuple[np.ndarray, list[str] | None]:
    """Numbers of a CSV or Parquet file, and its header."""
    import numpy as np

    if not path.is_file():
        raise UnbraidError(f"{path} is not there; give a file: {KINDS}.")
    if path.suffix.lower() == ".parquet":
        try:
            from pyarrow import parquet
        except ImportError:
            raise UnbraidError('Parquet needs pyarrow: pip install "unbraid[frames]".') from None
        try:
            table = parquet.read_table(path)
            numbers = [np.asarray(column.to_numpy(), dtype=np.float64) for column in table.columns]
        except Exception as error:
            raise UnbraidError(f"{path} cannot be read as a table of numbers ({error}).") from None
        return np.stack(numbers, axis=1), list(table.column_names)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    first = [cell.strip() for cell in lines[0].split(",")] if lines else []
    header = None if all(_is_number(cell) for cell in first) else first
    try:
        body = np.loadtxt(lines[1:] if header else lines, delimiter=",", ndmin=2)
    except ValueError as error:
        raise UnbraidError(f"{path} is no table of numbers with commas ({error}); turn text into numbers.") from None
    return body, header


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _words(given: str | None) -> list[str] | None:
    return None if given is None else [word.strip() for word in given.split(",") if word.strip()]


def _blocks(given: str | None) -> list[tuple[int, int]] | None:
    if given is None:
        return None
    try:
        pairs = [tuple(map(int, word.split(":"))) for word in _words(given) or []]
    except ValueError:
        pairs = []
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise UnbraidError(f"--blocks is {given!r}; give start:stop with commas, stop excluded, as in 0:2,2:4.")
    return [(pair[0], pair[1]) for pair in pairs]


def _cycles(given: str | None) -> dict[str, float] | None:
    if given is None:
        return None
    parts = [word.rpartition(":") for word in _words(given) or []]
    if not parts or any(not name or not _is_number(value) for name, _, value in parts):
        raise UnbraidError(f"--cycles is {given!r}; give name:cycle with commas, as in hue:10,angle:360.")
    return {name: float(value) for name, _, value in parts}
