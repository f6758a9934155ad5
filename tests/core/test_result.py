"""Claims, tables and results: what they accept, and that files give back what was saved."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from sample_result import EVIL, claims, evil, head_scores, sample

from unbraid.core.errors import UnbraidError
from unbraid.core.result import Bars, Claim, HeadMap, HtmlText, Image, Lines, Result, Series, Table

GOOD = {
    "name": "a",
    "statement": "b",
    "source": "c",
    "paper": 0.5,
    "measured": 0.4,
    "comparator": "d: 0.1",
    "holds": True,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"holds": "yes"}, "must be True, False or None"),
        ({"holds": 1}, "must be True, False or None"),
        ({"measured": None}, "give what was measured"),
        ({"measured": float("nan")}, "give what was measured"),
        ({"measured": float("inf"), "holds": False}, "give what was measured"),
        ({"comparator": ""}, "give what was compared with"),
        ({"comparator": None, "holds": False}, "give what was compared with"),
        ({"interval": (0.5, 0.4)}, "lower, upper"),
        ({"interval": (0.5,)}, "lower, upper"),
        ({"interval": (0.1, float("nan"))}, "lower, upper"),
        ({"interval": 0.3}, "must be a sequence"),
        ({"n": 0}, "positive whole number"),
        ({"n": 2.5}, "positive whole number"),
        ({"n": True}, "positive whole number"),
        ({"statement": " "}, "non-empty"),
        ({"source": None}, "non-empty"),
        ({"paper": [1, 2]}, "accepted are text, numbers"),
    ],
)
def test_a_claim_refuses(change, message):
    with pytest.raises(UnbraidError, match=message):
        Claim(**{**GOOD, **change})


def test_a_claim_that_was_not_tested_needs_no_figure():
    claim = Claim(**{**GOOD, "measured": math.nan, "comparator": "", "holds": None, "interval": (math.nan, math.nan)})
    assert (claim.measured, claim.interval, claim.verdict) == (None, None, "not tested")


@pytest.mark.parametrize("claim", claims(), ids=lambda c: c.name)
def test_a_claim_survives_json(claim):
    text = json.dumps(claim.to_dict(), allow_nan=False)
    assert Claim.from_dict(json.loads(text)) == claim


def test_numbers_of_numpy_become_plain():
    claim = Claim(**{**GOOD, "measured": np.float32(0.5), "holds": np.bool_(True), "n": np.int64(3)})
    assert (type(claim.measured), claim.holds, type(claim.n)) == (float, True, int)


def test_a_table_from_records_keeps_the_order_and_fills_gaps():
    table = Table.from_records([{"a": 1, "b": math.nan}, {"c": np.bool_(True), "a": "x"}])
    assert table.columns == ("a", "b", "c")
    assert table.rows == ((1, None, None), ("x", None, True))


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        (["a", "a"], [], "different names"),
        ([], [], "at least one column"),
        (["a"], [[1, 2]], "2 cells"),
        (["a"], [[object()]], "accepted are"),
    ],
)
def test_a_table_refuses(columns, rows, message):
    with pytest.raises(UnbraidError, match=message):
        Table(columns, rows)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Result("a/b", "t"), "slug"),
        (lambda: Result("a", " "), "non-empty"),
        (lambda: Result("a", "t", notes="one string"), "put it in brackets"),
        (lambda: Result("a", "t", claims=[{"name": "x"}]), "Claim objects"),
        (lambda: Result("a", "t", claims=[Claim(**GOOD), Claim(**GOOD)]), "two claims have the name 'a'"),
        (lambda: Result("a", "t", figures=["x"]), "Figure objects"),
        (lambda: Result("a", "t", params={"model": object()}), r"params\.model is a object"),
        (lambda: Result("a", "t", arrays={"x": ["a"]}), "dtype"),
        (lambda: Result("a", "t", arrays={"x": np.zeros(2, complex)}), "dtype"),
        (lambda: Result("a", "t", arrays={"x": [[1], [1, 2]]}), "cannot be read as numbers"),
        (lambda: Result("a", "t", tables={"x": []}), "at least one row"),
        (lambda: Series("s", [1, 2], [1]), "one length"),
        (lambda: Series("s", [1], [1], low=[0]), "only one bound"),
        (lambda: Series("s", [1], ["a"]), "must be a number"),
        (lambda: Lines("t", [Series("s", ["a"], [1])]), "needs numbers as x"),
        (lambda: Lines("t", []), "at least one Series"),
        (lambda: Lines("t", [Series("s", [1], [1])], x_scale="cubic"), "x_scale"),
        (lambda: Bars("t", [Series("s", ["a"], [1]), Series("r", ["b"], [1])]), "same labels"),
        (lambda: HeadMap("t", {}), "with a head"),
        (lambda: HeadMap("t", {"a": [1]}, limits=(1, 1)), "two rising numbers"),
        (lambda: HeadMap("t", {"a": [1]}, scale="rainbow"), "scale"),
        (lambda: HtmlText("t", ["word"]), "pairs"),
        (lambda: Image(b"GIF89a", "alt"), "PNG"),
        (lambda: Image.from_array(np.zeros((2, 2)), ""), "description"),
        (lambda: Image.from_array(np.zeros((2, 2, 2)), "alt"), "shape"),
    ],
)
def test_a_wrong_argument_is_one_sentence(make, message):
    with pytest.raises(UnbraidError, match=message):
        make()


def test_save_and_load_give_an_equal_result(tmp_path):
    result = sample()
    folder = result.save(tmp_path / "runs" / "one")
    again = Result.load(folder)
    assert again == result
    assert again.meta == result.meta
    assert Result.load(folder / "result.json") == result
    assert again.to_html() == result.to_html()
    assert {p.name for p in folder.iterdir()} == {"result.json", "index.html", "arrays.safetensors", "tables"}
    assert [p.name for p in folder.parent.iterdir()] == ["one"], "the draft is gone"


def test_equality_sees_every_part():
    for change in ("title", "params", "claims", "tables", "figures", "notes", "meta"):
        a, b = sample(), sample()
        b.meta = dict(a.meta)
        assert a == b
        setattr(b, change, "other" if change == "title" else type(getattr(b, change))())
        assert a != b, change
    a, b = sample(), sample()
    b.meta = dict(a.meta)
    b.arrays["scores"] = b.arrays["scores"] + np.float32(1e-6)
    assert a != b


def test_a_result_is_never_overwritten(tmp_path):
    folder = sample().save(tmp_path / "one")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(UnbraidError, match="never overwritten"):
        Result("other", "Another").save(folder)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_a_folder_with_other_files_is_filled(tmp_path):
    (tmp_path / "log.txt").write_text("kept")
    sample().save(tmp_path)
    assert (tmp_path / "log.txt").read_text() == "kept"
    assert Result.load(tmp_path).title == "Which heads copy"
    with pytest.raises(UnbraidError, match="never overwritten"):
        sample().save(tmp_path)
    with pytest.raises(UnbraidError, match="is a file"):
        sample().save(tmp_path / "log.txt")


def test_an_interrupted_save_leaves_nothing(tmp_path, monkeypatch):
    def broken(*_args, **_more):
        raise KeyboardInterrupt

    monkeypatch.setattr(Result, "to_html", broken)
    with pytest.raises(KeyboardInterrupt):
        sample().save(tmp_path / "one")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_finite_is_null_in_json(tmp_path):
    result = Result(
        "a",
        "t",
        params={"x": math.inf},
        tables={"t": [{"v": math.nan}, {"v": 1.5}]},
        figures=[HeadMap("m", {"s": [math.inf, 1.0]}), Lines("l", [Series("s", [1, 2], [math.nan, 1])])],
        claims=[Claim(**{**GOOD, "measured": math.nan, "holds": None})],
        meta={"loss": -math.inf},
    )
    text = (result.save(tmp_path / "r") / "result.json").read_text()
    data = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} in JSON"))
    assert data["params"]["x"] is None
    assert data["tables"]["t"]["rows"] == [[None], [1.5]]
    assert data["figures"][0]["scores"]["scores"]["s"] == [None, 1.0]
    assert data["claims"][0]["measured"] is None
    assert Result.load(tmp_path / "r") == result


def test_half_characters_of_a_tokenizer_survive(tmp_path):
    result = Result("a", "t", tables={"t": [{"token": "\ud83d"}]}, figures=[HtmlText("x", [("\udc00", 1.0)])])
    folder = result.save(tmp_path / "r")
    assert Result.load(folder) == result
    assert "�" not in json.loads((folder / "result.json").read_text())["tables"]["t"]["rows"][0][0]


def test_arrays_are_kept_exactly(tmp_path):
    arrays = {
        "turned": np.arange(6.0).reshape(2, 3).T,
        "half": np.array([0.1, np.nan], np.float16),
        "empty": np.zeros((0, 3)),
        "point": np.array(3, np.int8),
        "bytes": np.array([1, 2], ">i4"),
    }
    result = Result("a", "t", arrays=arrays)
    arrays["turned"][0, 0] = 99
    assert result.arrays["turned"][0, 0] == 0, "a result does not change with what it was made from"
    again = Result.load(result.save(tmp_path / "r"))
    assert again == result
    assert again.arrays["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert again.arrays["point"].shape == ()


def test_load_refuses_what_does_not_belong_together(tmp_path):
    with pytest.raises(UnbraidError, match=r"no result\.json"):
        Result.load(tmp_path)
    one = sample().save(tmp_path / "one")
    (one / "arrays.safetensors").write_bytes(b"x" + (one / "arrays.safetensors").read_bytes()[1:])
    with pytest.raises(UnbraidError, match="does not belong"):
        Result.load(one)
    (one / "arrays.safetensors").unlink()
    with pytest.raises(UnbraidError, match="copy the whole folder"):
        Result.load(one)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text[:-20], "not JSON"),
        (lambda text: text.replace("unbraid.result/1", "unbraid.result/9"), "update Unbraid"),
        (lambda text: text.replace('"kind": "bars"', '"kind": "pie"'), "cannot draw"),
        (lambda text: text.replace('"horizontal"', '"vertical"'), "cannot read"),
        (lambda text: "[]", "update Unbraid"),
        (lambda text: json.dumps({"format": "unbraid.result/1", "slug": "a"}), "no complete result"),
    ],
)
def test_load_refuses_what_is_no_result(tmp_path, spoil, message):
    path = Result("a", "t", figures=[Bars("b", {"x": 1})]).save(tmp_path / "one") / "result.json"
    path.write_text(spoil(path.read_text()))
    with pytest.raises(UnbraidError, match=message):
        Result.load(path)


def test_parquet_holds_the_tables(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    tables = {"a/../b": [{"x": 1, "mixed": "a"}, {"x": 2.5, "mixed": True}], "a b": [{"y": 10**30}], "A_b": [{"z": 1}]}
    folder = Result("a", "t", tables=tables).save(tmp_path / "r")
    names = sorted(p.name for p in (folder / "tables").iterdir())
    assert names == ["A_b_3.parquet", "a_b.parquet", "a_b_2.parquet"]
    assert parquet.read_table(folder / "tables" / "a_b.parquet").to_pylist() == [
        {"x": 1.0, "mixed": "a"},
        {"x": 2.5, "mixed": "True"},
    ]


def test_frames():
    pytest.importorskip("pandas")
    result = sample()
    assert list(result.frame().columns) == ["head", "score", "sink", "gap"]
    assert result.frame().equals(result.frame("Heads"))
    assert result.frame("claims")["holds"].tolist() == ["holds", "does not hold", "not tested"]
    assert Result("a", "t", claims=claims()).frame().shape[0] == 3
    with pytest.raises(UnbraidError, match="Heads, Lengths, claims"):
        result.frame("heads")


def test_every_figure_can_be_plotted(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    canvas = sample().plot()
    drawn = [ax for ax in canvas.axes if ax.get_title(loc="left")]
    assert [ax.get_title(loc="left") for ax in drawn] == [
        *("Score per head", "Effect", "Masked", "Agreement", "Modes", "Scores"),
    ]
    canvas.savefig(tmp_path / "all.png")
    with pytest.raises(UnbraidError, match="is text"):
        HtmlText("x", [("a", 1.0)]).plot()
    with pytest.raises(UnbraidError, match="no figure"):
        Result("a", "t").plot()


@pytest.mark.parametrize(("module", "call"), [("matplotlib", "r.plot()"), ("pandas", "r.frame()")])
def test_what_is_missing_is_named_with_its_install_line(module, call):
    code = f"import sys; sys.modules[{module!r}] = None\nfrom sample_result import sample\nr = sample()\n{call}"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert 'pip install "unbraid[' in done.stderr


def test_importing_and_rendering_need_no_torch():
    code = (
        "import sys; from sample_result import sample; sample().to_html()\n"
        "heavy = {'torch', 'pandas', 'matplotlib', 'scipy', 'transformers'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True)


def test_summary_shows_claims_and_rows_and_nothing_can_paint_the_terminal(capsys):
    console = Console(width=200, record=True, force_terminal=True, color_system="standard")
    result = sample(40, 4)
    result.tables["Bad"] = Table(["t"], [["[red]x[/red] \x1b[31mred\x1b[0m \u202e"]])
    result.summary(console, rows=3)
    text = console.export_text(styles=False)
    for wanted in ("✓ holds", "✗ does not hold", "○ not tested", "0.037 [0.03, 0.044], n = 5", "Heads: 3 of 160 rows"):
        assert wanted in text
    assert "[red]x[/red] �[31mred�[0m �" in text
    assert "\x1b[31mred" not in capsys.readouterr().out
    evil().summary()
    assert EVIL.split(">")[0] in capsys.readouterr().out


def test_paths_do_not_tell_where_a_result_was_made():
    result = Result("a", "t", params={"text": Path("/home/somebody/secret/book.txt"), "out": Path("runs/x")})
    assert result.params == {"text": "book.txt", "out": "runs/x"}


def test_provenance_names_versions_and_machine():
    meta = sample().meta
    assert meta["seed"] == 0
    assert meta["versions"]["numpy"] == np.__version__
    assert meta["machine"]["cores"] >= 1
    assert meta["created"].endswith("+00:00")


def test_pngs_are_read_back_by_another_library():
    image = pytest.importorskip("PIL.Image")
    import io

    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    read = np.asarray(image.open(io.BytesIO(Image.from_array(pixels, "noise").png)))
    assert (read == pixels).all()


def test_figures_are_equal_by_content():
    assert HeadMap("m", head_scores()) == HeadMap("m", head_scores())
    assert HeadMap("m", {"a": [1, 2]}) != HeadMap("m", {"a": [1, 3]})
    assert Lines("l", [Series("s", [1], [1])]) != Bars("l", {"a": 1})


def test_a_page_may_begin_with_its_figures():
    figure = Bars("How many", [Series("a", ["x"], [1.0])])
    claim = Claim(**GOOD)
    for lead in ("claims", "figures"):
        result = Result("demo", "A page", claims=[claim], figures=[figure], lead=lead)
        page = result.to_html()
        assert (page.index('id="figures"') < page.index('id="claims"')) == (lead == "figures")
        assert Result.from_dict(result.to_dict()) == result
    older = {k: v for k, v in result.to_dict().items() if k != "lead"}
    assert Result.from_dict(older).lead == "claims"
    with pytest.raises(UnbraidError, match="begins with"):
        Result("demo", "A page", lead="tables")
