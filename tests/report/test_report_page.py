"""Reports in a browser: nothing complains, nothing is fetched, nothing overflows, light and dark can both be read."""

from __future__ import annotations

import json

import pytest

from stablediag.report import interactive, report_html
from tests.report.chromium import BINARY, Browser
from tests.report.stores import write_run

pytestmark = pytest.mark.skipif(BINARY is None, reason="chromium is not installed")
WIDTHS = (1280, 400)
EVIL = "<script>window.evil=1</script><img src=http://example.org/x onerror=evil=1>" + "long_name_" * 30


@pytest.fixture(scope="module")
def browser():
    with Browser() as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A report on one hostile run, and one on three runs."""
    folder = tmp_path_factory.mktemp("pages")
    one = write_run(
        folder / "one", EVIL, modules=(EVIL, "b"), edit_id=EVIL, event=EVIL, hidden=True, steps=40, norm=20.0,
        metrics=("efficacy", EVIL), spec={"note": EVIL},
    )  # fmt: skip
    others = [write_run(folder / "two", "two", state=None), write_run(folder / "three", "three", tables=("steps",))]
    found = {"runs": [one]}
    for name, runs in (("one", [one]), ("several", [one, *others])):
        found[name] = folder / f"{name}.html"
        found[name].write_text(report_html(runs, with_scripts=False), encoding="utf-8")
    return found


def widest(browser):
    return browser.value("document.documentElement.scrollWidth")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["one", "several"])
def test_loads_quietly_and_fits(browser, pages, name, width):
    browser.open(pages[name], width=width)
    assert browser.complaints == []
    assert browser.requests == []
    assert widest(browser) <= width
    assert browser.value("typeof window.evil") == "undefined"
    assert browser.value("document.images.length + document.scripts.length") == 0
    assert browser.value(
        "[...document.querySelectorAll('svg.chart')].every(e => e.getBoundingClientRect().height > 80)"
    )
    assert browser.value("document.querySelectorAll('svg.chart').length") >= 10
    # Open everything: what is folded must fit, too.
    browser.value("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert widest(browser) <= width


def test_light_and_dark(browser, pages, tmp_path):
    shades = []
    for dark in (False, True):
        browser.open(pages["one"], dark=dark)
        colour = "getComputedStyle(document.querySelector('{}')).{}.match(/\\d+/g).slice(0, 3).map(Number)"
        page = browser.value(colour.format("body", "backgroundColor"))
        for part in ("body", ".quiet", "figcaption", "svg.chart text"):
            ink = browser.value(colour.format(part, "fill" if "text" in part else "color"))
            assert abs(sum(ink) - sum(page)) > 300, (part, dark)
        line = browser.value(colour.format("#update-norms path.s-0072b2", "stroke"))
        browser.photograph(tmp_path / f"{dark}.png", height=900)
        shades.append((sum(page), tuple(line), (tmp_path / f"{dark}.png").read_bytes()))
    assert shades[0][0] > 700
    assert shades[1][0] < 100
    assert shades[0][1] != shades[1][1]
    assert shades[0][2] != shades[1][2]


def test_interactive_figures_run_under_their_policy(browser, pages, tmp_path, monkeypatch):
    """With a stand-in for plotly.js that writes down what it is asked to draw."""
    library = "window.Plotly = {newPlot: (place, traces, layout) => { place.textContent = JSON.stringify([traces, layout]); }};"
    monkeypatch.setattr("stablediag.report.interactive.available", lambda: True)
    starter = interactive._STARTER.read_text(encoding="utf-8")
    monkeypatch.setattr("stablediag.report.interactive.scripts", lambda: (library, starter))
    page = tmp_path / "interactive.html"
    page.write_text(report_html([pages["runs"][0]], with_scripts=True), encoding="utf-8")
    browser.open(page)
    browser.value("document.querySelectorAll('details.interactive').forEach(e => e.open = true)")
    browser.value("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")
    shown = browser.value(
        "[...document.querySelectorAll('details.interactive div')].map(e => [e.dataset.figure, e.textContent])"
    )
    assert browser.complaints == []
    assert browser.requests == []
    drawn = {name: json.loads(text) for name, text in shown}
    assert set(drawn) == set(browser.value("[...document.querySelectorAll('figure')].map(e => e.id)"))
    traces, layout = drawn["update-norms"]
    assert len(traces[0]["x"]) == len(traces[0]["y"]) == 40
    assert "<" not in traces[0]["name"]
    assert "&lt;script&gt;" in traces[0]["name"]
    assert layout["shapes"][0]["x1"] == 40
    assert browser.value("typeof window.evil") == "undefined"


class TestWhatTheseTestsCanSee:
    """Planted faults: a page that is not as it should be is noticed."""

    def planted(self, pages, tmp_path, what):
        path = tmp_path / "planted.html"
        path.write_text(pages["one"].read_text(encoding="utf-8").replace("</main>", f"{what}</main>"), encoding="utf-8")
        return path

    def test_a_script_is_stopped_by_the_policy(self, browser, pages, tmp_path):
        browser.open(self.planted(pages, tmp_path, "<script>window.evil=1</script>"))
        assert any("Content Security Policy" in text for text in browser.complaints)
        assert browser.value("typeof window.evil") == "undefined"

    def test_an_image_is_stopped_by_the_policy(self, browser, pages, tmp_path):
        browser.open(self.planted(pages, tmp_path, '<img src="http://localhost:9/x.png">'))
        assert any("Content Security Policy" in text for text in browser.complaints)

    def test_without_the_policy_the_request_is_seen(self, browser, pages, tmp_path):
        path = self.planted(pages, tmp_path, '<img src="http://localhost:9/x.png">')
        path.write_text(
            path.read_text(encoding="utf-8").replace("Content-Security-Policy", "nothing"), encoding="utf-8"
        )
        browser.open(path)
        assert browser.requests == ["http://localhost:9/x.png"]

    def test_a_wide_row_is_seen(self, browser, pages, tmp_path):
        browser.open(self.planted(pages, tmp_path, f"<table><tr><td>{'w' * 300}</td></tr></table>"), width=400)
        assert widest(browser) > 400
