"""Curves keep what a run did when they are thinned, and figures become SVG that is safe in a page."""

from __future__ import annotations

import re

import numpy as np
import pytest

from stablediag.report import COLUMNS, colours
from stablediag.report.courses import COURSES, MOST_POINTS, Drawing, Series
from stablediag.report.curves import MOST_MODULES, place, stretches, together
from stablediag.report.draw import page_svg, svg, swatch
from stablediag.report.page import collect, looks_of
from stablediag.report.runs import read_runs
from tests.report.stores import write_run


def drawn(path):
    reads = read_runs([path], columns=COLUMNS)
    return reads, {one.id: one for one in collect(reads)[0]}


def luminance(color):
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def contrast(one, other):
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


class TestThinning:
    @pytest.mark.parametrize(("steps", "most"), [(1, 10), (10, 10), (23, 10), (1000, 7)])
    def test_stretches(self, steps, most):
        given = np.repeat(np.arange(5, 5 + 2 * steps, 2), 3)
        number, last = stretches(given, most)
        assert len(last) == min(steps, most)
        assert last[-1] == given[-1]
        sizes = np.bincount(number)
        assert sizes.min() > 0
        assert sizes.max() - sizes.min() <= 3
        for i, end in enumerate(last):
            assert given[number == i].max() == end

    def test_a_spike_of_one_step_is_seen(self, tmp_path):
        path = write_run(tmp_path / "long", steps=1200, tables=("steps", "updates"), spikes={601: 50.0})
        one = drawn(path)[1]["update-norms"]
        for series in one.series:
            assert len(series.x) == MOST_POINTS
            assert series.high.max() > 30
            assert series.y.max() < 30
        assert one.notes[0] == "1200 steps are drawn as 400 means".replace("1200", "1,200")

    def test_means_are_means(self, tmp_path):
        reads, found = drawn(write_run(tmp_path / "run", steps=1200, tables=("steps", "updates")))
        frame = reads[0].tables.found("updates")
        raw = frame[frame["module"] == "layers.1.down"]["norm"].to_numpy()
        np.testing.assert_allclose(found["update-norms"].series[0].y, raw.reshape(400, 3).mean(axis=1))

    def test_the_tracking_error_is_a_ratio_of_means(self, tmp_path):
        one = drawn(write_run(tmp_path / "run", steps=60))[1]["tracking-error"]
        raw = 1 / np.arange(1, 61)
        np.testing.assert_allclose(one.series[0].y, raw.reshape(30, 2).mean(axis=1))

    def test_many_modules_become_a_mean_with_a_band(self, tmp_path):
        modules = [f"m{i}" for i in range(MOST_MODULES + 1)]
        one = drawn(write_run(tmp_path / "run", modules=modules, tables=("steps", "updates")))[1]["update-norms"]
        (series,) = one.series
        assert (series.low < series.y).all()
        assert (series.y < series.high).all()
        assert one.notes == (f"mean over {len(modules)} modules, with a band from the smallest to the largest",)

    def test_abscissa(self, tmp_path):
        (read,), found = drawn(write_run(tmp_path / "run"))
        assert place(read, [-1, 0, 23], edits=True).tolist() == [0, 10, 240]
        assert place(read, [-1, 0, 23], edits=False).tolist() == [0, 1, 24]
        assert found["update-norms"].warmup == 40
        assert found["quality-0"].series[0].x.tolist() == [0, 120, 240]

    def test_the_alarm_is_told(self, tmp_path):
        quiet = drawn(write_run(tmp_path / "quiet"))[1]["alarm"]
        loud = drawn(write_run(tmp_path / "loud", alarm_at=9))[1]["alarm"]
        assert quiet.notes == ("no warning, no alarm",)
        assert quiet.series[0].y.max() < 0.2
        assert loud.notes == ("alarm at step 9 (a detector)",)
        assert loud.series[0].y[9:].tolist() == [1.0] * 15

    def test_success_is_averaged_over_ten_edits_at_least(self, tmp_path):
        right, kept = drawn(write_run(tmp_path / "run", steps=64))[1]["success"].series
        assert right.x.tolist() == [10, 20, 30, 40, 50, 60]
        assert right.y.tolist() == [1.0] * 6
        raw = [float(step % 3 > 0) for step in range(4, 64)]
        np.testing.assert_allclose(kept.y, np.reshape(raw, (6, 10)).mean(axis=1))

    def test_notes_of_several_runs(self):
        class One:
            def __init__(self, letter):
                self.letter = letter

        reads = [One(letter) for letter in "ABC"]
        assert together(reads, [["x", "y"], ["x"], ["x", "z"]]) == ("x", "A: y", "C: z")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Every figure of a run as SVG, by its drawing."""
    reads, found = drawn(write_run(tmp_path_factory.mktemp("runs") / "run"))
    looks = looks_of(reads, list(found.values()))
    return [(one, svg(one, looks)) for one in found.values()]


class TestSvg:
    def test_no_styles_scripts_images_or_clocks(self, pictures):
        for one, text in pictures:
            assert not re.search(r"<(style|script|image|metadata|foreignObject)\b|style=|xlink|http|Date", text), one.id
            assert f'aria-label="{one.title}"' in text

    def test_ink_and_curves_follow_the_page(self, pictures):
        (text,) = [text for one, text in pictures if one.id == "update-norms"]
        assert "s-0072b2" in text
        assert "s-000000" in text
        for one, text in pictures:
            assert not re.search(r'(fill|stroke)="#', text), f"{one.id}: a colour that a dark page cannot change"

    def test_identifiers_are_the_figures_own(self, pictures):
        ids = [i for _, text in pictures for i in re.findall(r' id="([^"]+)"', text)]
        assert len(ids) == len(set(ids))

    def test_a_small_size(self, tmp_path):
        path = write_run(tmp_path / "long", steps=2000, tables=("steps", "updates"))
        reads, found = drawn(path)
        assert len(svg(found["update-norms"], looks_of(reads, list(found.values())))) < 100_000

    def test_names_of_rows_are_plain_text(self):
        rows = ("$\\bad{", "<b>&amp;")
        series = [Series(0, "", np.array([0.2, 0.4]), np.array([0.0, 1.0]), kind="rows")]
        text = svg(Drawing("d", "t", "x", "", "", series, rows=rows), {(0, ""): colours.looks(["a"])[0]})
        assert "$\\bad{" in text
        assert "&lt;b&gt;&amp;amp;" in text

    def test_style_declarations_become_attributes(self):
        source = b'<svg xmlns="http://www.w3.org/2000/svg" width="1pt"><text style="font: bold 8.5px \'X\'; fill: #123456">a</text></svg>'
        text = page_svg(source, name="n", label='a"b')
        assert '<text font-size="8.5" font-weight="bold" fill="#123456">a</text>' in text
        assert 'aria-label="a&quot;b"' in text

    def test_legends_have_every_look(self):
        looks = colours.looks([str(i) for i in range(12)])
        assert len({(look.color, look.marker, str(look.line)) for look in looks}) == 12
        assert all('class="swatch"' in swatch(look) for look in looks)


class TestColours:
    def test_curves_stand_out_on_both_pages(self):
        for light, dark in colours.DARK.items():
            if light != colours.GRID:
                assert contrast(light, "#ffffff") >= 3, light
                assert contrast(dark, "#141619") >= 3, dark

    def test_every_colour_has_both_rules(self):
        sheet = colours.style_sheet()
        for color in colours.DARK:
            assert sheet.count(f"--c-{color[1:]}:") == 3
            assert f".s-{color[1:]}{{" in sheet


def test_every_course_names_a_recorder_that_exists():
    from stablediag.recorders.registry import RECORDERS

    assert {course.recorder for course in COURSES} <= set(RECORDERS)
