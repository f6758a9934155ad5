"""Bring one pinned wheel into the cache: through pip where there is one, else from the configured index, resumable."""

import errno
import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import IO, Any

from unbraid.core.errors import UnbraidError
from unbraid.zoo import _pip_stream, index
from unbraid.zoo.cards import Wheel
from unbraid.zoo.progress import Advance, bar, say
from unbraid.zoo.unpack import sha256_of

CHUNK = 1 << 16
TRIES = 5
"""How often a broken connection is taken up again, as long as each time brought some bytes."""


class _Broken(Exception):
    """The connection ended early or never stood; what came before is kept."""


class _NotListed(Exception):
    """The index answered and does not have the file."""


class _Altered(Exception):
    """The file offered has another size than the pinned one."""


class _PipChanged(Exception):
    """pip's inside is not as expected: use its command line."""


@dataclass(frozen=True)
class _Pip:
    """A pip to run: the one installed here, or the wheel that Python's `ensurepip` carries."""

    wheel: str | None

    def run(self, *arguments: str) -> list[str]:
        """The command line that runs this pip."""
        return [sys.executable, *([self.wheel + "/pip"] if self.wheel else ["-m", "pip"]), *arguments]


def find_pip() -> _Pip | None:
    """The pip of this Python, else the one that `ensurepip` bundles, else None."""
    # the path alone: `importlib.util.find_spec` also asks setuptools' hook, which takes the question for an import of
    # pip and from then on gives Python 3.11 its old distutils: the next torch.compile fails
    if PathFinder.find_spec("pip"):
        return _Pip(None)
    places = [sysconfig.get_config_var("WHEEL_PKG_DIR")]
    if spec := importlib.util.find_spec("ensurepip"):
        places += [str(Path(str(spec.origin)).parent / "_bundled")]
    wheels = [wheel for place in places if place for wheel in sorted(Path(place).glob("pip-*.whl"))]
    return _Pip(str(wheels[-1])) if wheels else None


def download(wheel: Wheel, folder: Path, show: bool) -> Path:
    """Fetch one wheel into `folder` and check it; take up a partial file that an earlier try left there.

    Args:
        wheel: What to fetch.
        folder: Where it goes; `<filename>.part` there is a download under way.
        show: Draw a progress bar on standard error.

    Returns:
        The path of the verified file.

    Raises:
        UnbraidError: The index cannot be reached (the partial file is kept), does not have the file, or gave a file of
            another SHA-256 (nothing is kept).
    """
    done = folder / wheel.filename
    if done.exists():
        if done.stat().st_size == wheel.size and sha256_of(done) == wheel.sha256:
            return done
        done.unlink()
    part = folder / f"{wheel.filename}.part"
    resumed = part.exists()
    right = _fill(wheel, part, show)
    if not right and resumed:  # the earlier piece may be the bad one: once more from the start
        say(show, f"{wheel.filename}: the resumed file does not match; starting over.")
        part.unlink(missing_ok=True)
        right = _fill(wheel, part, show)
    if not right:
        part.unlink(missing_ok=True)
        raise UnbraidError(
            f"The index gave {wheel.filename} with another SHA-256 than the pinned one ({wheel.sha256[:12]}...); it "
            "was deleted. Try again, or try another index (PIP_INDEX_URL): this one may be altered."
        )
    os.replace(part, done)
    return done


def _fill(wheel: Wheel, part: Path, show: bool) -> bool:
    """Bring `part` to the pinned size, by whichever way works; True when its content is the pinned one."""
    pip = find_pip()
    try:
        try:
            _stream(wheel, part, show, pip)
        except _PipChanged:
            assert pip is not None
            _pip_download(wheel, part, show, pip)
        return part.stat().st_size == wheel.size and sha256_of(part) == wheel.sha256
    except _Altered:
        return False
    except _NotListed as error:
        raise UnbraidError(
            f"The configured package index does not have {wheel.filename} ({wheel.source}); point PIP_INDEX_URL to one "
            "that mirrors the public registry."
        ) from error
    except _Broken as error:
        kept = part.stat().st_size if part.exists() else 0
        raise UnbraidError(
            f"No network: {wheel.source} could not be fetched ({error}). Connect, or set PIP_INDEX_URL to an index "
            f"that can be reached, and run it again; {kept / 1e6:,.1f} of {wheel.size / 1e6:,.1f} MB are kept."
        ) from error


def _stream(wheel: Wheel, part: Path, show: bool, pip: _Pip | None) -> None:
    """Append to `part` until it is complete; a connection that breaks is taken up again where it broke."""
    have = part.stat().st_size if part.exists() else 0
    verb = "Resuming" if have else "Downloading"
    with bar(
        show and have < wheel.size, f"{verb} {wheel.source}", wheel.size, label=wheel.package, done=have
    ) as advance:
        for attempt in range(TRIES):
            have = part.stat().st_size if part.exists() else 0
            if have >= wheel.size:
                return
            try:
                with (
                    _pip_source(pip, wheel, have) if pip else _index_source(wheel, have) as (
                        source,
                        start,
                        total,
                    )
                ):
                    if total and total != wheel.size:
                        raise _Altered
                    _append(source, part, start, wheel, advance)
                if part.stat().st_size >= wheel.size:
                    return
                raise _Broken("the connection ended early")
            except _Broken:
                gained = (part.stat().st_size if part.exists() else 0) > have
                if not gained or attempt == TRIES - 1:
                    raise


def _append(source: IO[bytes], part: Path, start: int, wheel: Wheel, advance: Advance) -> None:
    with part.open("r+b" if part.exists() else "wb") as sink:
        sink.truncate(start)
        sink.seek(start)
        # one byte more than pinned is enough to know that it is the wrong file
        while chunk := source.read(min(CHUNK, wheel.size - start + 1)):
            sink.write(chunk)
            start += len(chunk)
            advance(start)


@contextmanager
def _pip_source(pip: _Pip, wheel: Wheel, offset: int) -> Iterator[tuple[IO[bytes], int, int]]:
    """The bytes of the file from `offset` on, out of a child process that runs pip's own session."""
    job = {
        "pip": pip.wheel,
        "package": wheel.package,
        "version": wheel.version,
        "filename": wheel.filename,
        "sha256": wheel.sha256,
        "offset": offset,
    }
    command = [sys.executable, "-P", _pip_stream.__file__, json.dumps(job)]
    environment = dict(os.environ)
    if pip.wheel and (configured := index.configured_indexes()):
        environment.setdefault("PIP_INDEX_URL", configured[0])  # an environment of uv: pip does not know uv's settings
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, env=environment)
        assert child.stdout is not None
        try:
            head = child.stdout.readline()
            if head:
                facts = json.loads(head)
                yield child.stdout, facts["offset"], facts["total"]
        finally:
            child.stdout.close()
            code = _end(child)
            log.seek(0)
            detail = _last_detail(log.read().decode("utf-8", "replace"))
    if code == _pip_stream.INSIDE_CHANGED and not head:
        raise _PipChanged(detail)
    if code == _pip_stream.ABSENT:
        raise _NotListed
    if code != 0 or not head:
        raise _Broken(detail or "the connection broke")


def _end(child: subprocess.Popen) -> int:
    try:
        return child.wait(timeout=5)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def _last_detail(log: str) -> str:
    for line in reversed(log.splitlines()):
        try:
            return str(json.loads(line)["detail"])
        except (ValueError, KeyError, TypeError):
            continue
    return ""


@contextmanager
def _index_source(wheel: Wheel, offset: int) -> Iterator[tuple[IO[bytes], int, int]]:
    """The same from the configured index over plain HTTPS, for a Python without any pip."""
    indexes = index.configured_indexes()
    if not indexes:
        raise UnbraidError(
            f"{wheel.source} cannot be fetched: this Python has no pip and no package index is configured. Run "
            "`python -m ensurepip`, or set PIP_INDEX_URL (or UV_DEFAULT_INDEX) to your index."
        )
    try:
        urls = (index.find_file(one, wheel.package, wheel.filename) for one in indexes)
        url = next((url for url in urls if url), None)
        if url is None:
            raise _NotListed
        with index.open_url(url, offset=offset) as response:
            start = offset if url.startswith("http") and response.status == 206 else 0
            yield response, start, start + int(response.headers.get("Content-Length") or -start)
    except urllib.error.HTTPError as error:
        raise _Broken(f"HTTP {error.code}") from error
    except urllib.error.URLError as error:
        raise _Broken(
            type(error.reason).__name__ if isinstance(error.reason, OSError) else str(error.reason)
        ) from error
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, UnbraidError) or _is_local(error):
            raise
        raise _Broken(type(error).__name__) from error


def _is_local(error: Exception) -> bool:
    """A full or read-only disk is not the network's fault."""
    return isinstance(error, OSError) and error.filename is None and error.errno in _DISK_ERRORS


_DISK_ERRORS = {errno.ENOSPC, errno.EROFS, errno.EDQUOT}


_UNREACHABLE = "Could not fetch URL"  # pip tells a closed network from a missing file only in its log


def _pip_download(wheel: Wheel, part: Path, show: bool, pip: _Pip) -> None:
    """Plain `pip download`, where the resumable way is not possible with this pip: the file comes whole or not."""
    say(show, f"Downloading {wheel.source} with pip ({wheel.size / 1e6:,.1f} MB)")
    with tempfile.TemporaryDirectory(dir=part.parent) as folder:
        options = ["-vv", "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--no-input", "--dest", folder]
        ran: Any = subprocess.run(
            pip.run("download", *options, wheel.source), capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        came = Path(folder) / wheel.filename
        if ran.returncode != 0 or not came.exists():
            unreachable = any(_UNREACHABLE in line and " 404 " not in line for line in ran.stdout.splitlines())
            if unreachable or ran.returncode == 0:
                raise _Broken("pip could not reach the index")
            raise _NotListed
        os.replace(came, part)
