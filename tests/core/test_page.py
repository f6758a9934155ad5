"""The result page as text: complete, escaped, described, bounded. `test_page_browser.py` opens it."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sample_result import EVIL, evil, head_scores, sample

from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores
from unbraid.core.page import axes, colour
from unbraid.core.page.describe import describe
from unbraid.core.page.headmap import Scale
from unbraid.core.page.limits import Limits, keep_extremes
from unbraid.core.page.markup import el
from unbraid.core.result import Bars, HeadMap, HtmlText, Image, Lines, Result, Scatter, Series, Table
from unbraid.core.show import show

VOID = {"meta", "link", "img", "br", "rect", "line", "path", "circle"}


class Reader(HTMLParser):
    """Every element with its attributes; complains about a tag that is closed out of order."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.words = [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture(scope="module")
def page():
    return Reader(sample().to_html())


def test_the_page_asks_for_nothing_from_elsewhere(page):
    for tag, attrs in page.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
            value = attrs.get(name, "")
            harmless = value.startswith(("data:", "#")) or (tag == "a" and value.startswith("https://arxiv.org/abs/"))
            assert not value or harmless, (tag, name, value)
    text = sample().to_html()
    assert "@import" not in text
    assert not re.search(r"url\(", text)


def test_only_its_own_script_and_style_may_run(page):
    text = sample().to_html()
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    for tag in ("script", "style"):
        [body] = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert not [attrs for _, attrs in page.elements if "style" in attrs or any(k.startswith("on") for k in attrs)]


def test_every_picture_is_described(page):
    for attrs in page.all("img"):
        assert attrs["alt"].strip()
    drawings = page.all("svg")
    assert len(drawings) > 8
    for attrs in drawings:
        assert attrs.get("aria-hidden") == "true" or (attrs["role"] == "img" and attrs["aria-label"].strip())


def test_hostile_text_stays_text():
    clean, reader = Reader(sample().to_html()), Reader(evil().to_html())
    assert len(reader.all("script")) == 1
    assert {tag for tag, _ in reader.elements} - {tag for tag, _ in clean.elements} <= set()
    assert all(attrs["src"].startswith("data:image/png;base64,") for attrs in reader.all("img"))
    assert sum(EVIL in word for word in reader.words) >= 15, "the text itself is shown"
    assert {k for _, attrs in reader.elements for k in attrs} <= {k for _, attrs in clean.elements for k in attrs} | {
        "title"
    }


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_escaped(text):
    page = Reader(el("p", text, title=text, data_tip=text))
    assert [tag for tag, _ in page.elements] == ["p"]
    assert page.all("p")[0]["title"] == page.all("p")[0]["data-tip"]
    assert "<" not in str(el("p", text))[3:-4]
    el("p", text).encode("utf-8")


def test_claims_come_first_and_say_their_verdict_in_words(page):
    text = sample().to_html()
    assert (
        text.index('id="claims"') < text.index('id="figures"') < text.index('id="tables"') < text.index('id="details"')
    )
    words = " ".join(page.words)
    for wanted in ("holds", "does not hold", "not tested", "not measured", "[0.03, 0.044]", "n = 5", "chance: 0.002"):
        assert wanted in words
    for wanted in ("mask.mode", "1 min 58 s", "versions.numpy", "machine.cores", "unbraid run retrieval_heads"):
        assert wanted in words


@pytest.mark.parametrize("shape", [(1, 1), (30, 9), (32, 32), (126, 128)])
def test_a_head_map_has_a_cell_with_its_value_for_every_head(shape):
    scores = head_scores(*shape) if shape[0] > 2 else HeadScores({"a": [0.5]})
    text = Result("a", "t", figures=[HeadMap("m", scores)]).to_html()
    assert len(re.findall(r"<rect [^>]*data-v=", text)) == shape[0] * shape[1]
    sites = re.findall(r'data-row="(L\d+)" data-site="([^"]+)"', text)
    assert sites == [(f"L{i}", site) for i, site in enumerate(scores.sites)]
    assert f'data-v="{show(scores[scores.sites[-1], 0])}"' in text
    assert len(text) < 4_000_000


def test_ragged_sites_and_gaps():
    text = Result("a", "t", figures=[HeadMap("m", {"a": [1, None, 2], "b": [0.5]})]).to_html()
    assert len(re.findall(r"data-v=", text)) == 4
    assert '<rect class="none"' in text
    Result("a", "t", figures=[HeadMap("m", {"a": [None]})]).to_html()


def test_colour_scales():
    assert Scale(HeadMap("m", {"a": [0.0, 1.0]})).level(1.0) == "q63"
    both = Scale(HeadMap("m", {"a": [-0.5, 1.0]}))
    assert (both.level(0.0), both.level(1.0), both.level(-1.0)) == ("d32", "d64", "d0")
    fixed = Scale(HeadMap("m", {"a": [0.2, 5.0]}, limits=(0, 1)))
    assert (fixed.level(0.0), fixed.level(9.0)) == ("q0", "q63")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("scale", [colour.sequential, colour.diverging, colour.behind_text])
def test_colours_are_perceptually_even_and_ordered(scale, dark):
    points = np.array([colour.to_oklab(c) for c in scale(dark)])
    every = points[:: len(points) // 8]  # single steps are so small that rounding to 8 bits dominates them
    steps = np.linalg.norm(np.diff(every, axis=0), axis=1)
    assert steps.max() / steps.min() < 1.25
    lightness = np.diff(points[:, 0])
    if scale is not colour.diverging:
        assert (lightness < 0).all() or (lightness > 0).all()
        assert (lightness[0] > 0) == (dark), "the low end is near the background"
    assert len(set(scale(dark))) == len(points)


def test_coloured_text_stays_readable():
    css = sample().to_html()
    light, dark = re.search(r"--ink: light-dark\((#\w+), (#\w+)\)", css).groups()
    assert min(colour.contrast(c, light) for c in colour.behind_text(False)) > 4.5
    assert min(colour.contrast(c, dark) for c in colour.behind_text(True)) > 4.5
    for name in ("muted", "accent"):
        pair = re.search(rf"--{name}: light-dark\((#\w+), (#\w+)\)", css).groups()
        grounds = re.search(r"--bg: light-dark\((#\w{3,6}), (#\w+)\)", css).groups()
        for ink, ground in zip(pair, ("#ffffff" if grounds[0] == "#fff" else grounds[0], grounds[1]), strict=True):
            assert colour.contrast(ink, ground) > 4.5, name


def big(points=60_000, rows=8_000, tokens=25_000):
    rng = np.random.default_rng(0)
    y = rng.normal(size=points)
    y[1234] = 50.0
    noise = rng.integers(0, 256, (900, 900, 3), dtype=np.uint8)
    return Result(
        "big",
        "Much",
        tables={"rows": Table(["i", "text"], [[i, f"text {i} " * 4] for i in range(rows)])},
        figures=[
            Lines("line", [Series("a", range(points), y)]),
            Scatter("cloud", [Series("a", rng.normal(size=points), y)]),
            HtmlText("text", [(f"t{i} ", i / tokens) for i in range(tokens)]),
            HeadMap("map", {f"s{i}": rng.random(200) for i in range(300)}),
            Bars("bars", {str(i): float(i) for i in range(5_000)}),
            Image.from_array(noise, "noise"),
        ],
        params={"list": list(range(30_000))},
        notes=["x" * 100_000],
    )


@pytest.fixture(scope="module")
def much():
    return big()


@pytest.mark.parametrize("budget", [4_000_000, 600_000, 150_000])
def test_the_page_keeps_to_its_budget_and_says_what_it_left_out(much, budget):
    text = much.to_html(budget=budget)
    assert len(text.encode()) <= budget
    page = Reader(text)
    assert len(re.findall('class="cut"', text)) >= (6 if budget > 500_000 else 1)
    words = " ".join(page.words)
    if budget > 500_000:
        assert "of 60,000 points" in words
        assert "of 8,000 rows; all are in result.json" in words
        assert "is too large for this page" in words
        assert "50" in describe(much.figures[0]), "a peak of one point is not lost"


def test_thousands_of_figures_end_with_a_sentence():
    result = Result("a", "t", figures=[Bars(f"figure {i}", {"a": 1, "b": 2}) for i in range(800)], notes=["end"])
    text = result.to_html(budget=150_000)
    assert len(text.encode()) <= 150_000
    assert re.search(r"[\d,]+ more are in result\.json", text)
    Reader(text)


@pytest.mark.parametrize("budget", [0, 99_999, 1e6, True, "1"])
def test_a_budget_that_is_none_is_refused(budget):
    with pytest.raises(UnbraidError, match="at least 100,000"):
        sample().to_html(budget=budget)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), min_size=1, max_size=300), st.integers(4, 40))
def test_downsampling_keeps_ends_and_extremes(values, count):
    kept = keep_extremes(values, count)
    assert len(kept) <= max(count, 4)
    assert kept == sorted(set(kept))
    assert {0, len(values) - 1} <= set(kept)
    there = [v for v in values if v is not None]
    if there:
        assert min(there) in [values[i] for i in kept]
        assert max(there) in [values[i] for i in kept]


@settings(max_examples=80, deadline=None)
@given(st.floats(-1e9, 1e9), st.floats(1e-9, 1e9), st.booleans())
@example(80578376.0, 1.192092896e-07, True)  # logarithms of both ends are one number
@example(450359963.0, 1.192092896e-07, False)  # two steps of floating point
@example(1e9, 1.0, False)
@example(1000.75, 0.5, True)  # no round decade between the ends
def test_axes_hold_their_values_and_have_ticks(low, width, log):
    low = abs(low) + 1e-6 if log else low
    axis = axes.make_axis([low, low + width], 400.0, 0.0, log=log)
    slack = 1e-6 * (axis.high - axis.low)
    assert axis.low <= low + slack
    assert axis.high >= low + width - slack
    assert -0.01 <= axis(low) <= 400.01
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 14
    assert len({text for _, text in ticks}) == len(ticks) or width < abs(low) * 1e-4, "ticks can be told apart"


def test_long_numbers_at_the_end_stay_inside_the_drawing():
    page = Result("a", "t", figures=[Lines("m", [Series("", [0, 500_000], [1, 2])], "step", "loss")]).to_html()
    found = re.search(r"<text([^>]*)>500,000</text>", page)
    assert found
    at = float(re.search(r' x="([\d.]+)"', found[1])[1])
    assert at + 3.5 * len("500,000") <= 480


def test_lines_have_gaps_where_values_are_missing():
    text = Result("a", "t", figures=[Lines("l", [Series("s", [1, 2, 3, 4, 5], [1, 2, None, 3, 4])])]).to_html()
    [path] = re.findall(r'<path d="([^"]+)" class="line', text)
    assert path.count("M") == 2


def test_log_axes_leave_out_what_they_cannot_show():
    figure = Lines("l", [Series("s", [1, 10, 100], [0, 1, 10], [-1, 0.5, 5], [1, 2, 20])], x_scale="log", y_scale="log")
    Reader(Result("a", "t", figures=[figure]).to_html())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *(
            (None, "–"),
            (True, "yes"),
            (12, "12"),
            (12345, "12,345"),
            (0.123456, "0.1235"),
            (0.5, "0.5"),
            (-0.25, "-0.25"),
        ),
        *((1234.5678, "1,235"), (99.996, "100"), (1e-7, "1.000e-07"), (1e9, "1,000,000,000"), (0.0, "0"), (3.0, "3")),
        *((10**400, f"{10**400:,}"), (-123456.7, "-123,457"), ("x", "x")),
    ],
)
def test_how_numbers_read(value, text):
    assert show(value) == text


def test_descriptions_are_written_from_the_data():
    figures = sample().figures
    assert "6 sites by 4 heads" in describe(figures[0])
    assert "L2H1 (0.9)" in describe(figures[0])
    assert "top: 3 points, 1 at 0 to 0.2 at 10" in describe(figures[2])
    assert "zero 0.2, mean 0.3" in describe(figures[4])
    assert "the heaviest are “needle” (0.9)" in describe(figures[6])
    assert describe(HeadMap("m", {"a": [1]}, alt="mine")) == "mine"


def test_limits_never_vanish():
    assert min(vars(Limits().scaled(1e-9)).values()) == 4


def test_a_notebook_gets_a_frame_of_its_own():
    result = sample()
    frame = result._repr_html_()
    assert frame.startswith("<iframe srcdoc=")
    assert 'sandbox="allow-scripts"' in frame
    assert Reader(frame).all("iframe")[0]["srcdoc"] == result.to_html()


def test_to_html_writes_the_file_too(tmp_path):
    target = tmp_path / "new" / "page.html"
    assert target.parent.exists() is False
    text = sample().to_html(target)
    assert target.read_text(encoding="utf-8") == text
