"""A package index on the loopback interface, with tiny wheels, that can be told to misbehave."""

import hashlib
import io
import os
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub client is imported: it reads this once

from unbraid.zoo.cards import Entry, Member, Wheel


@dataclass
class Index:
    """What the server serves and what it has seen."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cut_after: int | None = None
    ranges: bool = True
    json_pages: bool = False
    downloads: list[str] = field(default_factory=list)
    sent: int = 0


@pytest.fixture
def index(monkeypatch, tmp_path) -> Iterator[Index]:
    state = Index()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def log_message(self, *_):
            pass

        def do_GET(self):
            if self.path.startswith("/simple/"):
                self._page(self.path.split("/")[2])
            else:
                self._file(self.path.rsplit("/", 1)[1])

        def _page(self, project):
            names = [name for name in state.files if name.replace("_", "-").startswith(project + "-")]
            if not names:
                return self.send_error(404)
            body = "".join(f'<a href="/files/{name}">{name}</a>' for name in names).encode()
            kind = "text/html"
            if state.json_pages and "json" in self.headers.get("Accept", ""):
                files = ",".join(f'{{"filename":"{name}","url":"/files/{name}","hashes":{{}}}}' for name in names)
                body = f'{{"meta":{{"api-version":"1.0"}},"name":"{project}","files":[{files}]}}'.encode()
                kind = "application/vnd.pypi.simple.v1+json"
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _file(self, name):
            state.downloads.append(self.headers.get("Range") or "whole")
            data, start = state.files[name], 0
            if state.ranges and (asked := self.headers.get("Range")):
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            end = len(data) if state.cut_after is None else start + state.cut_after
            self.wfile.write(data[start:end])
            state.sent += len(data[start:end])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_port}/simple"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))] + ["http_proxy", "HTTP_PROXY"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", state.address)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("UNBRAID_CACHE", str(tmp_path / "cache"))
    yield state
    server.shutdown()
    server.server_close()


def make_wheel(files: dict[str, bytes], package: str = "tiny-model") -> tuple[Wheel, bytes]:
    """A wheel with these files, and its pin: every file wanted, under its own name."""
    module = package.replace("-", "_")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(f"{module}/{name}", data)
        archive.writestr(f"{module}/__init__.py", "raise SystemExit('package code ran')")
        archive.writestr(f"{module}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(f"{module}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{module}-1.0.dist-info/RECORD", "")
    data = buffer.getvalue()
    members = tuple(
        Member(f"{module}/{name}", name, len(content), hashlib.sha256(content).hexdigest())
        for name, content in files.items()
    )
    filename = f"{module}-1.0-py3-none-any.whl"
    return Wheel(package, "1.0", filename, len(data), hashlib.sha256(data).hexdigest(), members), data


def make_entry(*wheels: Wheel, recipe: str = "copy", name: str = "tiny") -> Entry:
    disk = sum(member.size for wheel in wheels for member in wheel.members)
    return Entry(name, "encoder", "nobody/tiny", "MIT", "as it is", recipe, 1, disk, wheels)


@pytest.fixture
def tiny(index) -> Entry:
    """An entry with one wheel of 300 kB that does not compress, served by `index`."""
    import random

    noise = random.Random(0).randbytes(300_000)
    wheel, data = make_wheel({"model.safetensors": noise, "sub/config.json": b'{"a": 1}'})
    index.files[wheel.filename] = data
    return make_entry(wheel)


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"
