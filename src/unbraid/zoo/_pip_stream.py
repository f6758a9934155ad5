"""Run by a child Python: asks pip's own finder and session for one file and streams it to standard output.

Going through pip means that its whole configuration counts: indexes, mirrors, credentials, proxies, certificates. What
`pip download` cannot do is go on where an interrupted download stopped, so this asks pip's session for the rest of the
file with a Range header. It uses parts of pip that are not public; `transport.py` falls back to `pip download` when
they have moved (exit code 3).

Standard output: one line of JSON {"offset", "total"}, then the bytes. Standard error: a last line of JSON on failure.
Exit codes: 0 all sent, 3 pip's inside is not as expected, 4 the index has no such file, 5 the network failed.
"""

import json
import os
import sys
from typing import Any

INSIDE_CHANGED, ABSENT, NETWORK = 3, 4, 5


class _Failed(Exception):
    def __init__(self, code: int, detail: str) -> None:
        super().__init__(detail)
        self.code = code


def main(job: dict[str, Any], out: Any) -> None:
    """Find the file that `job` describes and write it to `out`, from byte `job["offset"]` on."""
    if job["pip"]:
        sys.path.insert(0, job["pip"])
    from pip._internal.commands import create_command

    command: Any = create_command("download")
    retries = [] if "PIP_RETRIES" in os.environ else ["--retries", "2"]
    requirement = f"{job['package']}=={job['version']}"
    options, _ = command.parse_args([*retries, "--no-cache-dir", "--no-input", "--no-deps", requirement])
    with command.main_context():
        session = command.get_default_session(options)
        finder = command._build_package_finder(options=options, session=session)
        link = _find(finder, session, job)
        if link.is_file:
            _send_local(link.file_path, job["offset"], out)
        else:
            _send_remote(session, link.url_without_fragment, job["offset"], out)


def _find(finder: Any, session: Any, job: dict[str, Any]) -> Any:
    links = [c.link for c in finder.find_all_candidates(job["package"]) if c.link.filename == job["filename"]]
    # several indexes may offer the name: one that announces another content is not what was pinned
    right = [link for link in links if link.hash_name != "sha256" or link.hash == job["sha256"]]
    if right or links:
        return (right or links)[0]
    for index in finder.index_urls:  # an empty answer hides why; ask again, to tell "unreachable" from "not there"
        if index.startswith("file:"):
            continue
        try:
            session.get(f"{index.rstrip('/')}/{job['package']}/", headers={"Accept": "text/html"})
        except Exception as error:
            raise _Failed(NETWORK, type(error).__name__) from error
    raise _Failed(ABSENT, "")


def _send_local(path: str, offset: int, out: Any) -> None:
    total = os.path.getsize(path)
    with open(path, "rb") as file:
        file.seek(offset)
        _announce(out, offset, total)
        while chunk := file.read(1 << 16):
            out.write(chunk)


def _send_remote(session: Any, url: str, offset: int, out: Any) -> None:
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        response = session.get(url, headers=headers, stream=True)
        if response.status_code >= 400:
            raise _Failed(NETWORK, f"HTTP {response.status_code}")
        start = offset if response.status_code == 206 else 0
        _announce(out, start, start + int(response.headers.get("Content-Length") or -start))  # 0: not told
        for chunk in response.raw.stream(1 << 16, decode_content=False):
            out.write(chunk)
    except (BrokenPipeError, _Failed):
        raise
    except Exception as error:
        raise _Failed(NETWORK, type(error).__name__) from error


def _announce(out: Any, offset: int, total: int) -> None:
    out.write(json.dumps({"offset": offset, "total": total}).encode() + b"\n")
    out.flush()


if __name__ == "__main__":
    stream = sys.stdout.buffer
    sys.stdout = sys.stderr  # pip may print; only bytes of the file belong on standard output
    try:
        main(json.loads(sys.argv[1]), stream)
        stream.flush()
    except BrokenPipeError:
        os._exit(NETWORK)
    except _Failed as failure:
        print(json.dumps({"detail": str(failure)}), file=sys.stderr)
        sys.exit(failure.code)
    except (Exception, SystemExit) as failure:
        print(json.dumps({"detail": f"{type(failure).__name__}: {failure}"}), file=sys.stderr)
        sys.exit(INSIDE_CHANGED)
