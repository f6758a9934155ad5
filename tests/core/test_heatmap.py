import numpy as np
import pytest

from unbraid.core.errors import UnbraidError
from unbraid.core.result import HeatMap, Result


def test_a_heat_map_is_data_and_a_drawing(tmp_path):
    figure = HeatMap("m", [[0.1, np.nan], [-0.5, 0.2]], ["z<0>", "z1"], ["hue", "size"], "factors", "codes")
    assert figure.range == (-0.5, 0.5, True)
    result = Result("a", "t", figures=[figure])
    result.save(tmp_path / "r")
    assert Result.load(tmp_path / "r").figures[0] == figure
    page = result.to_html()
    assert "z&lt;0&gt; · hue · 0.1" in page
    assert "z1: hue (-0.5)" in page
    assert page.count("data-tip=") >= 4
    assert figure.plot() is not None


def test_large_ones_are_cut_and_say_so():
    big = HeatMap("m", np.random.default_rng(0).random((2_000, 20)), map(str, range(2_000)), map(str, range(20)))
    assert "of 2,000 rows" in Result("a", "t", figures=[big]).to_html(budget=400_000)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rows": ["a"]}, "with a name each"),
        ({"scale": "rainbow"}, "scale"),
        ({"limits": (1, 1)}, "rising"),
        ({"values": [["x", 1], [1, 2]]}, "number"),
    ],
)
def test_bad_input(change, told):
    given = {"title": "m", "values": [[1, 2], [3, 4]], "rows": ["a", "b"], "columns": ["c", "d"]}
    with pytest.raises(UnbraidError, match=told):
        HeatMap(**{**given, **change})


def test_names_of_rows_are_whole_where_columns_leave_room():
    name = "non_approximate, hybrid, 4 layers, skipped"
    few, many = (
        Result("a", "t", figures=[HeatMap("m", [[1.0] * n], [name], map(str, range(n)))]).to_html() for n in (3, 20)
    )
    assert f">{name}<" in few
    assert f">{name}<" not in many
    assert f"{name[:17]}…" in many
