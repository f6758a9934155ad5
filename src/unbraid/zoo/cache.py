"""Where fetched weights live, and how several processes share the place without treading on each other."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unbraid.core.errors import UnbraidError
from unbraid.zoo.cards import Entry
from unbraid.zoo.progress import say

MANIFEST = "unbraid.json"


def cache_dir(folder: str | Path | None = None) -> Path:
    """The cache folder: the argument, else $UNBRAID_CACHE, else $XDG_CACHE_HOME/unbraid, else ~/.cache/unbraid.

    Args:
        folder: A folder to use instead; it need not exist.
    """
    if folder is not None:
        return Path(folder).expanduser()
    if own := os.environ.get("UNBRAID_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "unbraid"


def home_of(entry: Entry, cache: Path) -> Path:
    """The folder that holds the finished files of `entry`; its name changes with the pins and with the recipe."""
    pins = "".join(wheel.sha256 for wheel in entry.wheels)
    return cache / "models" / f"{entry.name}-r{entry.revision}-{hashlib.sha256(pins.encode()).hexdigest()[:12]}"


def is_ready(home: Path) -> bool:
    """True when every file of the manifest is there with its size. Reads one small file; no hashing."""
    try:
        manifest = json.loads((home / MANIFEST).read_text(encoding="utf-8"))
        return all((home / name).stat().st_size == facts["size"] for name, facts in manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def locked(entry: Entry, cache: Path, show: bool) -> Iterator[None]:
    """Hold the lock of one name; a second process waits (and says so) until the first is done."""
    from filelock import FileLock, Timeout

    path = cache / "locks" / f"{entry.name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=1)
        except Timeout:
            say(show, f"Another process is fetching {entry.name}; waiting for it to finish.")
            lock.acquire()
    except OSError as error:
        raise _unwritable(cache, error) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def workshop(home: Path) -> Iterator[Path]:
    """A folder beside `home` to build it in. On success the body calls `place`; whatever is left is removed.

    Folders that a killed process left behind are removed first: the caller holds the lock, so nobody is using them.
    """
    home.parent.mkdir(parents=True, exist_ok=True)
    stem = f".{home.name}.work-"
    for stale in home.parent.glob(stem + "*"):
        shutil.rmtree(stale, ignore_errors=True)
    folder = home.parent / (stem + uuid.uuid4().hex[:8])
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def place(built: Path, home: Path) -> None:
    """Move a finished folder into its place in one step; a damaged one that was there goes away first."""
    if home.exists():
        shutil.rmtree(home)
    os.replace(built, home)


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise unless `folder`'s disk has `needed` bytes free.

    Raises:
        UnbraidError: Not enough room; nothing was written.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise no_space(folder, needed, free, what)


def no_space(folder: Path, needed: int, free: int, what: str) -> UnbraidError:
    """The error for a full disk."""
    return UnbraidError(
        f"No space for {what}: it needs {needed / 1e6:,.0f} MB and {folder} has {free / 1e6:,.0f} MB free; "
        "free some, or set UNBRAID_CACHE to a folder on a larger disk."
    )


def _unwritable(cache: Path, error: OSError) -> UnbraidError:
    return UnbraidError(
        f"The cache folder {cache} cannot be written ({error.strerror or error}); set UNBRAID_CACHE to one that can."
    )
