"""Finished pieces of long work on disk."""

from pathlib import Path

import numpy as np
import pytest

from unbraid.core.errors import UnbraidError
from unbraid.core.pieces import Pieces


def test_pieces_come_back_under_their_context_kind_and_key(tmp_path: Path) -> None:
    store = Pieces(tmp_path / "new" / "folder", {"model": "a"})
    assert store.load("row", [1, "x"]) is None
    store.save("row", [1, "x"], {"loss": 0.5})
    store.save_arrays("row", [1, "x"], {"z": np.arange(6).reshape(2, 3).T, "ok": np.array([True, False])})
    assert store.load("row", [1, "x"]) == {"loss": 0.5}
    found = store.load_arrays("row", [1, "x"])
    assert found is not None
    np.testing.assert_array_equal(found["z"], np.arange(6).reshape(2, 3).T)
    assert found["ok"].dtype == bool
    assert store.read_back == 2
    for other in (Pieces(tmp_path / "new" / "folder", {"model": "b"}), store):
        kind = "line" if other is store else "row"
        assert other.load(kind, [1, "x"]) is None
        assert other.load_arrays(kind, [1, "x"]) is None
    assert not list((tmp_path / "new" / "folder").glob("*.tmp"))


def test_a_piece_is_made_once_and_a_broken_one_again(tmp_path: Path) -> None:
    store, made = Pieces(tmp_path), []

    def make() -> int:
        made.append(1)
        return len(made)

    assert [store.get("n", 0, make) for _ in range(3)] == [1, 1, 1]
    store.path("n", 0, ".json").write_text('{"half', encoding="utf-8")
    assert store.get("n", 0, make) == 2
    store.path("a", 0, ".safetensors").write_bytes(b"no arrays")
    assert store.load_arrays("a", 0) is None


def test_without_a_folder_nothing_is_kept_and_a_bad_one_is_named(tmp_path: Path) -> None:
    store = Pieces(None)
    store.save("n", 0, 1)
    store.save_arrays("n", 0, {"a": np.zeros(1)})
    assert store.load("n", 0) is None
    assert store.load_arrays("n", 0) is None
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UnbraidError, match=r"--keep .*file.* cannot be used"):
        Pieces(tmp_path / "file")


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Pieces(tmp_path)
    store.save("n", 0, "old")
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.save("n", 0, "new")
    monkeypatch.undo()
    assert store.load("n", 0) == "old"
