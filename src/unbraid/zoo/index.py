"""The package index this machine is configured for, read without pip: for environments made by uv, which have no pip.

No host is written here. Where neither an environment variable nor a configuration file names an index, there is none.
"""

import base64
import configparser
import html.parser
import json
import os
import ssl
import sys
import tomllib
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

_MAIN = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL")
_EXTRA = ("PIP_EXTRA_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL")
_JSON = "application/vnd.pypi.simple.v1+json"


def configured_indexes() -> list[str]:
    """Addresses of the simple indexes this machine names, in the order they are asked; empty when it names none."""
    found: list[str] = []
    for name in (*_MAIN, *_EXTRA):
        found += [word.split("=", 1)[1] if _named(word) else word for word in os.environ.get(name, "").split()]
    found += _from_pip_files() + _from_uv_file()
    return list(dict.fromkeys(url.rstrip("/") for url in found if url))


def find_file(index: str, package: str, filename: str) -> str | None:
    """The address of one file on a simple index (PEP 503 HTML or PEP 691 JSON), or None when it is not there.

    Raises:
        OSError: The index cannot be reached.
    """
    page = f"{index}/{package}/"
    if page.startswith("file:"):
        page += "index.html"
    try:
        with open_url(page, accept=f"{_JSON}, text/html;q=0.2") as response:
            body, address = response.read(), response.geturl()
            kind = response.headers.get("Content-Type") or ""
    except (urllib.error.HTTPError, FileNotFoundError) as error:
        if isinstance(error, FileNotFoundError) or error.code in (404, 410):
            return None
        raise
    except urllib.error.URLError as error:
        if isinstance(error.reason, FileNotFoundError) or page.startswith("file:"):
            return None
        raise
    if "json" in kind:
        links = {entry["filename"]: entry["url"] for entry in json.loads(body)["files"]}
    else:
        links = _Links.of(body.decode("utf-8", "replace"))
    href = links.get(filename)
    return urllib.parse.urljoin(_with_login(address, index), href) if href else None


def open_url(url: str, accept: str = "*/*", offset: int = 0) -> Any:
    """Open an address with this machine's proxies and certificates; `offset` asks for the rest of the file only."""
    request = urllib.request.Request(url, headers={"Accept": accept, "User-Agent": "unbraid"})
    parts = urllib.parse.urlsplit(url)
    if parts.username:
        login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        bare = parts._replace(netloc=parts.netloc.rsplit("@", 1)[1])
        request = urllib.request.Request(urllib.parse.urlunsplit(bare), headers=dict(request.headers))
        request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    cafile = next((os.environ[name] for name in ("PIP_CERT", "SSL_CERT_FILE") if os.environ.get(name)), None)
    context = ssl.create_default_context(cafile=cafile)
    return urllib.request.urlopen(request, timeout=60, context=context)


def _named(word: str) -> bool:
    """uv allows `name=https://...`; an equals sign further on belongs to the address."""
    return "=" in word and "/" not in word.split("=", 1)[0]


def _with_login(address: str, index: str) -> str:
    login = urllib.parse.urlsplit(index).netloc.rpartition("@")[0]
    parts = urllib.parse.urlsplit(address)
    same = parts.hostname == urllib.parse.urlsplit(index).hostname
    if not login or "@" in parts.netloc or not same:
        return address
    return urllib.parse.urlunsplit(parts._replace(netloc=f"{login}@{parts.netloc}"))


def _from_pip_files() -> list[str]:
    config_home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    places = [Path("/etc/pip.conf"), Path.home() / ".pip/pip.conf", config_home / "pip/pip.conf"]
    places += [Path(sys.prefix) / "pip.conf", Path(sys.prefix) / "pip.ini"]
    if named := os.environ.get("PIP_CONFIG_FILE"):
        places = [] if named == os.devnull else [*places, Path(named)]
    parser = configparser.RawConfigParser()
    try:
        parser.read(places, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return []
    keys = ("index-url", "extra-index-url")
    sections = [section for section in ("download", "global") if parser.has_section(section)]
    return [url for key in keys for section in sections for url in parser.get(section, key, fallback="").split()]


def _from_uv_file() -> list[str]:
    config_home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    named = os.environ.get("UV_CONFIG_FILE")
    for place in [Path(named)] if named else [config_home / "uv/uv.toml", Path("/etc/uv/uv.toml")]:
        try:
            config = tomllib.loads(place.read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
            continue
        tables = config.get("index", [])
        ordered = sorted(tables, key=lambda one: not one.get("default", False))
        return [config.get("index-url", ""), *(one["url"] for one in ordered if "url" in one)]
    return []


class _Links(html.parser.HTMLParser):
    """The links of a PEP 503 page, by the text that they show."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self._href: str | None = None

    @classmethod
    def of(cls, page: str) -> dict[str, str]:
        parser = cls()
        parser.feed(page)
        return parser.found

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember where the link goes."""
        if tag == "a":
            self._href = dict(attrs).get("href")

    def handle_data(self, data: str) -> None:
        """The text of a link is its file name."""
        if self._href and data.strip():
            self.found[data.strip()] = self._href.split("#", 1)[0]
            self._href = None
