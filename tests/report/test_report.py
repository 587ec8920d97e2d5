"""What a report holds of a run, what it says is missing, and that nothing of a run can act in it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from types import ModuleType

import numpy as np
import pytest

from stablediag.errors import SpecError, StoreError
from stablediag.report import COLUMNS, report_html, write_report
from stablediag.report import page as page_module
from stablediag.report.courses import COURSES
from stablediag.report.page import collect
from stablediag.report.runs import MOST_RUNS, read_runs
from stablediag.store.run import Run
from tests.report.reading import Page
from tests.report.stores import COLUMNS as STORED
from tests.report.stores import write_run

EVIL = "<script>evil=1</script><img src=x onerror=evil=1>\"'>&$\\bad{$"
FIGURES = {
    *(course.id for course in COURSES),
    *("quality-0", "quality-1", "success", "alarm", "hidden-drift"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A complete run with every table, and its page."""
    path = write_run(tmp_path_factory.mktemp("runs") / "whole", "whole", hidden=True, alarm_at=20, event="all is well")
    return path, report_html([path], with_scripts=False)


@pytest.fixture
def undrawn(monkeypatch):
    """Pages with empty figures: what is tested is said in words."""
    monkeypatch.setattr("stablediag.report.draw.svg", lambda drawing, looks: "<svg></svg>")


def drawings(path, **given):
    return {one.id: one for one in collect(read_runs([path], columns=COLUMNS))[0]}


class TestPage:
    def test_the_doctor_comes_first_and_everything_follows(self, whole):
        page = Page.of(whole[1])
        sections = [a["id"] for a in page.tags("section") if "id" in a]
        assert sections == ["doctor", "runs", "figures", "quality", "edits", "spec", "provenance", "citations"]
        assert {a["id"] for a in page.tags("figure")} == FIGURES
        assert len(page.tags("svg")) >= len(FIGURES)
        for text in ("whole", "0.85 to 0.95", "preset: paper", "c0ffee", "abababab", "all is well", "@"):
            assert text in page.text, text

    def test_it_loads_nothing_and_acts_not(self, whole):
        page = Page.of(whole[1])
        assert page.tags("script") == page.tags("img") == page.tags("link") == page.tags("iframe") == []
        for tag, attributes in page.elements:
            assert "style" not in attributes, tag
            assert not any(key.startswith("on") for key in attributes), tag
            for key in ("src", "href", "xlink:href"):
                assert attributes.get(key, "#").startswith("#"), (tag, attributes)
        assert len(page.ids()) == len(set(page.ids()))
        assert {a["href"][1:] for _, a in page.elements if "href" in a} <= set(page.ids())

    def test_the_policy_allows_this_style_alone(self, whole):
        policy, (style,) = Page.of(whole[1]).policy, re.findall(r"<style>(.*?)</style>", whole[1], re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"

    def test_the_same_run_gives_the_same_bytes(self, whole):
        assert report_html([whole[0]], with_scripts=False) == whole[1]

    def test_first_cause_on_top(self, tmp_path, undrawn):
        path = write_run(tmp_path / "big", norm=20.0, steps=40, evaluated=(-1, 39))
        text = Page.of(report_html([path], with_scripts=False)).text
        assert text.index("First cause: step_size") < text.index("rules that are ok")

    def test_text_of_a_run_is_text(self, tmp_path):
        path = write_run(
            tmp_path / "evil", EVIL, modules=(EVIL, "b"), edit_id=EVIL, event=EVIL,
            metrics=("efficacy", EVIL), evaluated=(-1, 23), spec={"note": {EVIL: EVIL}}, versions={EVIL: EVIL},
        )  # fmt: skip
        page = Page.of(report_html([path], title=None, with_scripts=False))
        assert page.tags("script") == page.tags("img") == []
        assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
        # Name, module, metric, edit, event and version: each is there as it was written.
        assert page.text.count(EVIL) >= 6
        assert "not a spec of this version" in page.text

    def test_escaping_is_what_keeps_it_text(self, tmp_path, monkeypatch, undrawn):
        """The test above can fail: without the escaping the script is in the page."""
        environment = page_module._environment()
        environment.autoescape = False
        monkeypatch.setattr(page_module, "_environment", lambda: environment)
        source = report_html([write_run(tmp_path / "evil", EVIL)], with_scripts=False)
        assert "<script>evil=1</script>" in source

    def test_half_a_surrogate_pair_is_written(self, tmp_path, whole, monkeypatch, undrawn):
        monkeypatch.setattr(page_module.tables, "spec_text", lambda read: ("half \ud800", ""))
        path = write_report([whole[0]], tmp_path / "r.html", with_scripts=False)
        assert b"half \\ud800" in path.read_bytes()


@pytest.mark.usefixtures("undrawn")
class TestMissing:
    def test_a_bare_run_says_what_it_lacks_and_draws_nothing(self, tmp_path):
        path = write_run(tmp_path / "bare", tables=("steps",))
        source = report_html([path], with_scripts=False)
        page = Page.of(source)
        assert page.tags("figure") == []
        for course in COURSES:
            assert f"{course.title}: not recorded (the recorder {course.recorder})" in page.text
        for what in ("Quality", "Success of single edits", "Alarm state", "Hidden drift"):
            assert f"{what}: not recorded" in page.text
        assert "No answer" in page.text
        assert "Nothing is bad" not in page.text

    @pytest.mark.parametrize("table", [name for name in STORED if name != "steps"])
    def test_one_missing_table_takes_its_own_figures_only(self, tmp_path, whole, table):
        left = tuple(name for name in STORED if name != table)
        found = set(drawings(write_run(tmp_path / "less", tables=left)))
        lost = {
            "updates": {"update-norms", "adjacent-cosines", "weight-growth"},
            "tracking": {"tracking-error", "condition-number"},
            "interference": {"interference"},
            "alarms": {"alarm"},
            "quality": {"quality-0", "quality-1"},
            "edits": {"success"},
        }[table]
        assert FIGURES - found == lost | {"hidden-drift"}

    def test_without_steps_the_axis_counts_steps(self, tmp_path):
        one = drawings(write_run(tmp_path / "run", tables=("updates",)))["update-norms"]
        assert one.xlabel == "steps"
        assert one.series[0].x[[0, -1]].tolist() == [1, 24]
        assert one.warmup is None

    @pytest.mark.parametrize(
        ("state", "says"),
        [(None, "not finished, 24 steps recorded: killed or interrupted; go on with `stablediag resume"),
         ("broken", "given up (broken), 24 steps recorded")],
    )  # fmt: skip
    def test_unfinished(self, tmp_path, state, says):
        page = Page.of(report_html([write_run(tmp_path / "run", state=state)], with_scripts=False))
        assert says in page.text
        assert len(page.tags("figure")) == len(FIGURES) - 1

    def test_being_written(self, tmp_path, monkeypatch):
        path = write_run(tmp_path / "run", state=None)
        monkeypatch.setattr(Run, "live", property(lambda run: True))
        assert "being written, 24 steps recorded" in report_html([path], with_scripts=False)

    def test_other_recorder_versions(self, tmp_path):
        path = write_run(tmp_path / "old", versions={"recorder:update_norm": "0", "engine": "0"})
        text = Page.of(report_html([path], with_scripts=False)).text
        assert "recorded by other versions: engine 0 (now 1), update_norm 0 (now 1)" in text
        fresh = report_html([write_run(tmp_path / "new", versions={"recorder:update_norm": "1"})], with_scripts=False)
        assert "recorded by other versions" not in fresh

    def test_a_table_that_cannot_be_read(self, tmp_path, monkeypatch):
        path, select = write_run(tmp_path / "run"), Run.select

        def broken(run, name, columns):
            if name == "tracking":
                raise StoreError("database disk image is malformed")
            return select(run, name, columns)

        monkeypatch.setattr(Run, "select", broken)
        page = Page.of(report_html([path], with_scripts=False))
        assert page.text.count("table tracking: cannot be read, and is left out") == 1
        assert "update-norms" in page.ids()
        assert "condition-number" not in page.ids()

    def test_values_that_are_not_finite(self, tmp_path):
        one = drawings(write_run(tmp_path / "run", spikes={20: np.inf}))["update-norms"]
        assert one.notes == ("2 values that are not finite are not drawn",)
        assert all(np.isfinite(series.y).all() for series in one.series)

    def test_recorded_without_values(self, tmp_path, monkeypatch):
        path = write_run(tmp_path / "run", norm=np.nan)
        assert "Update norms: recorded, but without values" in Page.of(report_html([path], with_scripts=False)).text


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("both")
    calm = write_run(folder / "a", "calm", steps=40, evaluated=(-1, 39))
    editor = {"name": "ln", "preset": "paper", "params": {"lr": 9.0}}
    wild = write_run(
        folder / "b", "wild", steps=40, evaluated=(-1, 39), norm=20.0, tables=("steps", "updates", "quality"),
        spec={"editor": editor},
    )  # fmt: skip
    return calm, wild


@pytest.mark.usefixtures("undrawn")
class TestSeveral:
    def test_side_by_side(self, both):
        source = report_html(both, with_scripts=False)
        page = Page.of(source)
        for text in ("A: calm", "B: wild", "B: wild. First cause: step_size", "spec.editor.params.lr"):
            assert text in page.text, text
        assert "spec.edits_per_step" not in page.text
        assert "Condition number of B: not recorded" in page.text
        differences = source[source.index('id="differences"') :]
        assert re.search(
            r"editor\.params\.lr</th><td class=\"long\">0\.01</td><td class=\"long\">9\.0</td>", differences
        )

    def test_curves_lie_over_each_other(self, both):
        found = {one.id: one for one in collect(read_runs(both, columns=COLUMNS))[0]}
        norms = found["update-norms"].series
        assert [one.run for one in norms] == [0, 1]
        assert norms[1].y.mean() == pytest.approx(20 * norms[0].y.mean(), rel=0.05)
        assert "quality-end" in found
        assert found["quality-end"].rows == ("Efficacy", "Specificity")

    def test_equal_runs_differ_in_nothing(self, tmp_path):
        paths = [write_run(tmp_path / name, name) for name in ("a", "b")]
        assert "The runs differ in nothing but their names" in report_html(paths, with_scripts=False)

    def test_refused(self, both, tmp_path):
        with pytest.raises(SpecError, match="no run"):
            report_html([])
        with pytest.raises(SpecError, match="given twice"):
            report_html([both[0], both[0] / ".." / "a"])
        with pytest.raises(SpecError, match=f"at most {MOST_RUNS}"):
            report_html([both[0]] * (MOST_RUNS + 1))
        with pytest.raises(StoreError, match="not a run"):
            report_html([tmp_path])


class TestFile:
    def test_an_existing_file_stays_without_force(self, tmp_path, whole):
        out = tmp_path / "r.html"
        out.write_text("mine")
        with pytest.raises(StoreError, match="--force"):
            write_report([whole[0]], out)
        assert out.read_text() == "mine"
        assert write_report([whole[0]], out, force=True, with_scripts=False) == out
        assert out.read_text() == whole[1]

    def test_nothing_half_written(self, tmp_path, whole, monkeypatch, undrawn):
        out = tmp_path / "r.html"
        out.write_text("mine")

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.replace", full)
        with pytest.raises(StoreError, match="No space left"):
            write_report([whole[0]], out, force=True, with_scripts=False)
        assert [path.name for path in tmp_path.iterdir()] == ["r.html"]
        assert out.read_text() == "mine"

    def test_places_that_cannot_hold_it(self, tmp_path, whole):
        with pytest.raises(StoreError, match="is a folder"):
            write_report([whole[0]], tmp_path)
        with pytest.raises(StoreError, match="no such folder"):
            write_report([whole[0]], tmp_path / "no" / "r.html")


@pytest.mark.usefixtures("undrawn")
class TestInteractive:
    @pytest.fixture
    def plotly(self, monkeypatch):
        """A stand-in that has what is needed of plotly."""
        package, offline = ModuleType("plotly"), ModuleType("plotly.offline")
        package.__spec__ = ModuleType.__new__(ModuleType)
        offline.get_plotlyjs = lambda: 'window.Plotly = {newPlot: () => "</script>"};'
        monkeypatch.setitem(sys.modules, "plotly", package)
        monkeypatch.setitem(sys.modules, "plotly.offline", offline)
        monkeypatch.setattr("stablediag.report.interactive.available", lambda: True)

    def test_scripts_run_by_their_hashes_alone(self, tmp_path, plotly):
        path = write_run(tmp_path / "run", "</script><script>evil=1</script>")
        source = report_html([path, write_run(tmp_path / "other")])
        page = Page.of(source)
        scripts = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
        assert len(scripts) == 2
        for script in scripts:
            assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in page.policy
        assert page.policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")
        (data,) = re.findall(r'<script type="application/json" id="curves">(.*?)</script>', source, re.DOTALL)
        curves = json.loads(data)
        assert set(curves) == {a["data-figure"] for a in page.tags("div") if "data-figure" in a}
        assert curves["update-norms"]["curves"][0]["name"] == "A: </script><script>evil=1</script>"

    def test_not_without_plotly(self, whole, monkeypatch):
        monkeypatch.setattr("stablediag.report.interactive.available", lambda: False)
        with pytest.raises(SpecError, match=r"stablediag\[report\]"):
            report_html([whole[0]], with_scripts=True)
        assert "script-src" not in report_html([whole[0]])
