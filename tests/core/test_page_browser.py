"""The result page in a real headless Chromium: it loads, nothing fails, sorting, hovering, keys and themes work."""

import pytest
from chromium import Chromium, needs_chromium
from sample_result import evil, sample

pytestmark = [pytest.mark.browser, needs_chromium]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name, result in {"good": sample(32, 32), "small": sample(), "evil": evil()}.items():
        result.to_html(folder / f"{name}.html")
    return folder


@pytest.fixture(scope="module")
def browser():
    with Chromium() as chromium:
        yield chromium


@pytest.fixture(autouse=True)
def clean(browser):
    browser.problems.clear()
    browser.requests.clear()


def only_itself(browser):
    return [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize("name", ["good", "small", "evil"])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_fails_and_nothing_is_fetched(browser, files, name, dark):
    browser.open(files / f"{name}.html", dark=dark)
    assert browser.problems == []
    assert only_itself(browser)
    assert browser.run("document.documentElement.classList.contains('live')"), "its script ran to the end"
    assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert browser.run("window.pwned === undefined")


def test_this_test_can_fail(browser, tmp_path):
    page = tmp_path / "broken.html"
    page.write_text("<script>nothing.at.all()</script><img src='missing.png'><img src='https://example.invalid/x.png'>")
    browser.open(page)
    assert len([p for p in browser.problems if p.startswith("script error")]) == 1
    assert len([p for p in browser.problems if p.startswith("failed to load")]) == 2
    assert not only_itself(browser)


def test_the_policy_stops_what_would_slip_through(browser, files, tmp_path):
    text = (files / "small.html").read_text(encoding="utf-8")
    page = tmp_path / "injected.html"
    page.write_text(
        text.replace("</main>", "<script>window.pwned=1</script><img src=x onerror='window.pwned=2'></main>")
    )
    browser.open(page)
    assert browser.run("window.pwned === undefined")
    assert any("Content Security Policy" in problem for problem in browser.problems)


def test_a_click_and_a_key_sort_a_table_by_number(browser, files):
    browser.open(files / "small.html")
    column = "[...document.querySelector('#tables .data').tBodies[0].rows].map(r => Number(r.cells[1].dataset.v))"
    button = "#tables .data th:nth-child(2) button"
    falling = browser.run(column)
    assert falling == sorted(falling, reverse=True)
    browser.click(button)  # numbers: greatest first, as they are already
    assert browser.run(f"document.querySelector('{button}').parentNode.ariaSort") == "descending"
    browser.run(f"document.querySelector('{button}').focus()")
    browser.press("Enter")
    assert browser.run(column) == falling[::-1]
    assert browser.run(f"document.querySelector('{button}').parentNode.ariaSort") == "ascending"
    browser.click("#tables .data th:nth-child(1) button")
    labels = browser.run(
        "[...document.querySelector('#tables .data').tBodies[0].rows].map(r => r.cells[0].textContent)"
    )
    assert labels == sorted(labels)
    assert browser.run("document.querySelector('#tables .data').querySelectorAll('th[aria-sort]').length") == 1
    assert browser.problems == []


def test_gaps_sort_last_both_ways(browser, files, tmp_path):
    from unbraid.core.result import Result, Table

    page = tmp_path / "gaps.html"
    Result("a", "t", tables={"t": Table(["v"], [[2], [None], [10], [1]])}).to_html(page)
    browser.open(page)
    column = "[...document.querySelector('#tables .data').tBodies[0].rows].map(r => r.cells[0].dataset.v)"
    browser.click("#tables .data th button")
    assert browser.run(column) == ["10", "2", "1", ""]
    browser.click("#tables .data th button")
    assert browser.run(column) == ["1", "2", "10", ""]


def test_hover_and_keys_tell_a_heads_name_and_value(browser, files):
    browser.open(files / "good.html")
    browser.hover(".map g:nth-of-type(3) rect:nth-child(2)")
    tip = "document.getElementById('tip').hidden ? null : document.getElementById('tip').textContent"
    assert browser.run(tip) == "L2H1 · model.layers.2.self_attn · 0.9 [0.85, 0.95]"
    browser.hover("h1")
    assert browser.run(tip) is None
    browser.run("document.querySelector('.map').focus()")
    for key, begins in (
        *(("ArrowRight", "L0H0 "), ("ArrowRight", "L0H1 "), ("ArrowDown", "L1H1 "), ("ArrowDown", "L2H1 ")),
        *(("ArrowUp", "L1H1 "), ("ArrowLeft", "L1H0 "), ("ArrowLeft", "L0H31 ")),
    ):
        browser.press(key)
        assert browser.run(tip).startswith(begins), key
    browser.run("document.activeElement.blur()")
    assert browser.run(tip) is None
    assert browser.problems == []


def test_charts_and_tokens_tell_their_values(browser, files):
    browser.open(files / "small.html")
    tip = "document.getElementById('tip').textContent"
    browser.hover(".bar[data-tip]")
    assert browser.run(tip) == "zero · 0.2"
    browser.hover(".tokens bdi:nth-of-type(2)")
    assert browser.run(tip) == "needle · 0.9"
    browser.hover("path.point.s0[data-tip*='masked 5']")
    assert browser.run(tip) == "top · heads masked 5 · found 0.5"


@pytest.mark.parametrize("name", ["good", "small", "evil"])
def test_it_fits_a_phone(browser, files, name):
    browser.open(files / f"{name}.html", width=360, height=740, mobile=True)
    assert browser.run("document.documentElement.scrollWidth") <= 360
    heights = "[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)"
    small = browser.run(f"Math.min(...{heights})")
    assert small >= 9, "text in pictures can be read"
    assert browser.problems == []


def test_themes(browser, files):
    browser.open(files / "small.html", dark=False)
    ground = "getComputedStyle(document.body).backgroundColor"
    cell = "getComputedStyle(document.querySelector('rect.q0')).fill"
    light = browser.run(ground), browser.run(cell)
    assert light[0] == "rgb(255, 255, 255)"
    for wanted in ("light", "dark"):
        browser.click("#theme")
        assert browser.run("document.documentElement.dataset.theme") == wanted
    chosen = browser.run(ground), browser.run(cell)
    browser.click("#theme")
    assert browser.run("document.getElementById('theme').textContent") == "Theme: auto"
    browser.open(files / "small.html", dark=True)
    system = browser.run(ground), browser.run(cell)
    assert chosen == system
    assert chosen != light


def test_in_a_notebooks_frame_it_works_without_storage(browser, tmp_path):
    page = tmp_path / "notebook.html"
    page.write_text(f"<!doctype html><meta charset=utf-8>{sample()._repr_html_()}", encoding="utf-8")
    browser.open(page)
    assert [p for p in browser.problems if "script error" in p] == []


def test_it_prints_light_and_without_controls(browser, files, tmp_path):
    browser.open(files / "small.html", dark=True)
    pdf = browser.pdf(tmp_path / "page.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    browser.call(
        "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("getComputedStyle(document.getElementById('theme')).display") == "none"
    browser.call("Emulation.setEmulatedMedia", media="")
