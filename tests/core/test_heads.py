"""HeadSet and HeadScores: algebra, ranking, files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores, HeadSet

HEADS = st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(0, 5)))


@given(HEADS, HEADS)
def test_set_algebra_is_that_of_sets(x: list, y: list) -> None:
    a, b = HeadSet(x), HeadSet(y)
    assert set(a | b) == set(x) | set(y)
    assert set(a & b) == set(x) & set(y)
    assert set(a - b) == set(x) - set(y)
    union = len(set(x) | set(y))
    assert a.overlap(b) == (len(set(x) & set(y)) / union if union else 1.0)
    assert list(a) == list(dict.fromkeys(x))
    assert sum(len(v) for v in a.by_site().values()) == len(a)
    assert (a == b) == (set(x) == set(y))
    assert a != b or hash(a) == hash(b)


def test_files_come_back_as_they_were(tmp_path: Path) -> None:
    heads = HeadSet([("m.1", 3), ("m.0", 2)])
    assert list(HeadSet.load(heads.save(tmp_path / "deep" / "heads.json"))) == list(heads)
    scores = HeadScores({"m.0": [0.1, np.nan], "m.1": [0.5, 0.2, 0.9]}, "copying", {"m.0": [0, 0], "m.1": [0, 0, 0]},
                        {"m.0": [1, 1], "m.1": [1, 1, 1]})  # fmt: skip
    again = HeadScores.load(scores.save(tmp_path / "scores.json"))
    assert again.to_dict() == scores.to_dict()
    assert json.loads((tmp_path / "scores.json").read_text())["scores"]["m.0"][1] is None
    assert not list(tmp_path.glob(".*"))
    for text in ("{", "[]", '{"kind": "HeadSet", "heads": []}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(UnbraidError, match=r"bad\.json"):
            HeadScores.load(tmp_path / "bad.json")
    with pytest.raises(UnbraidError, match=r"missing\.json"):
        HeadSet.load(tmp_path / "missing.json")


def test_ranking_thresholds_and_labels() -> None:
    scores = HeadScores({"x": [0.1, np.nan, 0.3], "y": [0.3, 0.0]})
    assert [h for h, _ in scores.ranked()] == [("x", 2), ("y", 0), ("x", 0), ("y", 1), ("x", 1)]
    assert list(scores.top(2)) == [("x", 2), ("y", 0)]
    assert len(scores.top(99)) == 4
    assert list(scores.above(0.1)) == [("x", 2), ("y", 0), ("x", 0)]
    assert scores.label(("y", 1)) == "L1H1"
    assert scores.head("l1h1") == ("y", 1)
    assert scores["y", 0] == 0.3
    assert len(scores) == 5
    assert scores.array.shape == (2, 3)
    assert np.isnan(scores.array[1, 2])
    for wrong in ("L9H0", "head", "L1"):
        with pytest.raises(UnbraidError, match="L3H5"):
            scores.head(wrong)


def test_correlation_matches_by_name_or_by_order() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 3)), rng.random((2, 3))
    a = HeadScores({"p": x[0], "q": x[1]})
    b = HeadScores({"q": y[1], "p": y[0]})
    want = np.corrcoef(x.ravel(), y.ravel())[0, 1]
    assert a.correlate(b) == pytest.approx(want)
    assert a.correlate(HeadScores({"other.p": y[0], "other.q": y[1]})) == pytest.approx(want)
    assert np.isnan(a.correlate(HeadScores({"p": [1, 1, 1], "q": [1, 1, 1]})))
    with pytest.raises(UnbraidError, match="one shape"):
        a.correlate(HeadScores({"p": [1, 2]}))


def test_frame_and_plot() -> None:
    scores = HeadScores({"x": [0.1, 0.2]}, "s", {"x": [0, 0]}, {"x": [1, 1]})
    frame = scores.frame()
    assert list(frame.columns) == ["site", "head", "label", "s", "low", "high"]
    assert frame.iloc[0]["label"] == "L0H1"
    import matplotlib as mpl

    mpl.use("Agg")
    assert scores.plot().get_title() == "s"


@pytest.mark.parametrize("wrong", [[("a", -1)], ["a"], [(1, 2)], [("a", 1, 2)]])
def test_bad_heads(wrong: list) -> None:
    with pytest.raises(UnbraidError):
        HeadSet(wrong)


def test_interval_bounds_need_the_same_heads() -> None:
    with pytest.raises(UnbraidError, match="same sites"):
        HeadScores({"a": [1.0]}, low={"b": [1.0]}, high={"a": [1.0]})


def test_heads_need_no_torch() -> None:
    code = "import sys; import unbraid.core.heads; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
