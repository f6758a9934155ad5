"""`fetch`: from a name to a folder that `from_pretrained` reads: verified, converted, placed in one step."""

import difflib
import errno
import importlib.metadata
import json
import shutil
from pathlib import Path

from unbraid.core.errors import UnbraidError
from unbraid.zoo import cache as caching
from unbraid.zoo.cards import Entry, ModelCard, table
from unbraid.zoo.progress import bar, say
from unbraid.zoo.recipes import RECIPES
from unbraid.zoo.shipped import Shipped, shipped
from unbraid.zoo.transport import download
from unbraid.zoo.unpack import sha256_of, unpack

MARGIN = 80_000_000
"""Bytes asked for beyond the sum: joining chunks holds one of them twice, and a full disk is nobody's friend."""


def models(cache_dir: str | Path | None = None) -> list[ModelCard]:
    """Every model of the zoo, with where it comes from and whether it is here. Imports no torch, reads no net.

    Args:
        cache_dir: The cache folder to look in.
    """
    root = caching.cache_dir(cache_dir)
    fetched = [_card(entry, root) for entry in table().values() if entry.kind != "recording"]
    return fetched + [_own_card(found) for found in shipped().values()]


def fetch(name: str, progress: bool | None = None, cache_dir: str | Path | None = None) -> Path:
    """Bring a model (or a recording) of the zoo into the cache and return its folder. Needs no torch.

    When it is there already, nothing is read from the network. Otherwise its wheels are downloaded from the package
    index that pip is configured for, checked against their pinned SHA-256, the wanted files are taken out and
    converted, and the finished folder is moved into place in one step. An interruption leaves what was downloaded, and
    the next call goes on from there. Two processes may ask at once: one works, the other waits.

    Models that lie in the package itself ("tiny-sd" and the like) are there already.

    Args:
        name: A name that `models()` lists, or "beckett", a ten-second recording of speech.
        progress: Bars and lines on standard error; None means True.
        cache_dir: The cache folder; by default $UNBRAID_CACHE, $XDG_CACHE_HOME/unbraid or ~/.cache/unbraid.

    Returns:
        The folder: `config.json`, `model.safetensors`, tokenizer or processor files, licence, `unbraid.json`; of a
        pipeline `model_index.json` and a folder for each part.

    Raises:
        UnbraidError: Unknown name, no network, wrong hash, no space, or a cache folder that cannot be written.
    """
    if name in shipped():
        return in_package(shipped()[name])
    return fetch_entry(find(name), progress is not False, caching.cache_dir(cache_dir))


def in_package(found: Shipped) -> Path:
    """The folder of a model that lies in the package.

    Raises:
        UnbraidError: A file of it is missing or cut short.
    """
    if not caching.is_ready(found.path):
        raise UnbraidError(f"The files of {found.name} in {found.path} are not whole; install unbraid anew.")
    return found.path


def find(name: str) -> Entry:
    """The pinned entry of a name.

    Raises:
        UnbraidError: No such name; close ones are named.
    """
    if name in table():
        return table()[name]
    known = [*table(), *shipped()]
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(one) for one in close)}?" if close else ""
    raise UnbraidError(f"The zoo has no {name!r}; it has {', '.join(known)}.{hint}")


def fetch_entry(entry: Entry, show: bool, root: Path) -> Path:
    """Like `fetch`, for an entry that need not stand in the table."""
    home = caching.home_of(entry, root)
    if caching.is_ready(home):
        return home
    with caching.locked(entry, root, show):
        if caching.is_ready(home):  # another process finished it while this one waited
            return home
        downloads = root / "downloads"
        downloads.mkdir(parents=True, exist_ok=True)
        caching.require_space(root, _needed(entry, downloads), entry.name)
        try:
            _build(entry, home, downloads, show)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            free = shutil.disk_usage(root).free
            raise caching.no_space(root, _needed(entry, downloads), free, entry.name) from error
    return home


def _build(entry: Entry, home: Path, downloads: Path, show: bool) -> None:
    wheels = [(wheel, download(wheel, downloads, show)) for wheel in entry.wheels]
    with caching.workshop(home) as work:
        files, built = work / "files", work / "built"
        files.mkdir()
        built.mkdir()
        for wheel, archive in wheels:
            unpack(archive, wheel, files)
        what = f"Converting {entry.name}" if entry.recipe != "copy" else f"Placing {entry.name}"
        with bar(show, what, 100, bytes_=False) as advance:
            RECIPES[entry.recipe](files, built, lambda done, total: advance(60 * done // total))
            advance(85)
            _write_manifest(entry, built)
            advance(100)
        caching.place(built, home)
    for _, archive in wheels:
        archive.unlink(missing_ok=True)
    say(show, f"{entry.name} is ready: {home} (licence: {entry.licence})")


def _needed(entry: Entry, downloads: Path) -> int:
    """Bytes still to write at the worst moment: the rest of the wheels, their files, the finished folder."""
    there = sum(
        path.stat().st_size
        for wheel in entry.wheels
        for path in (downloads / wheel.filename, downloads / f"{wheel.filename}.part")
        if path.exists()
    )
    finished = 0 if entry.recipe == "copy" else entry.disk
    return max(entry.size - there, 0) + entry.unpacked + finished + MARGIN


def _write_manifest(entry: Entry, built: Path) -> None:
    """What is here and where it came from; `is_ready` reads it, and so may a person."""
    files = sorted(path for path in built.rglob("*") if path.is_file())
    facts = {
        "name": entry.name,
        "kind": entry.kind,
        "original": entry.hub,
        "licence": entry.licence,
        "precision": entry.precision,
        "source": [{"requirement": wheel.source, "sha256": wheel.sha256} for wheel in entry.wheels],
        "recipe": f"{entry.recipe} r{entry.revision}",
        "made_by": f"unbraid {importlib.metadata.version('unbraid')}",
        "files": {
            path.relative_to(built).as_posix(): {"size": path.stat().st_size, "sha256": sha256_of(path)}
            for path in files
        },
    }
    (built / caching.MANIFEST).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _card(entry: Entry, root: Path) -> ModelCard:
    home = caching.home_of(entry, root)
    cached = caching.is_ready(home)
    return ModelCard(
        name=entry.name,
        kind=entry.kind,
        size=entry.size,
        disk=entry.disk,
        source=entry.source,
        licence=entry.licence,
        hub=entry.hub,
        precision=entry.precision,
        cached=cached,
        path=home if cached else None,
    )


def _own_card(found: Shipped) -> ModelCard:
    there = caching.is_ready(found.path)
    return ModelCard(
        name=found.name,
        kind=found.kind,
        size=0,
        disk=found.disk,
        source="unbraid",
        licence=found.licence,
        hub="",
        precision=found.precision,
        cached=there,
        path=found.path if there else None,
    )
