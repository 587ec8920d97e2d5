"""`stablediag report`, called as a user calls it."""

from __future__ import annotations

import pytest

from tests.cli.command import command, refused
from tests.report.stores import write_run


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    monkeypatch.setattr("stablediag.report.draw.svg", lambda drawing, looks: "<svg></svg>")


def test_one_run_and_its_default_place(tmp_path):
    run = write_run(tmp_path / "run", "mine")
    done = command("report", run, "--static")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"{run / 'report.html'}: ")
    assert "<h1>mine</h1>" in (run / "report.html").read_text(encoding="utf-8")
    refused("report", run, "--static", says=("report.html is there already", "--force"))
    assert command("report", run, "--static", "--force", "--title", "another").code == 0
    assert "<h1>another</h1>" in (run / "report.html").read_text(encoding="utf-8")


def test_several_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [write_run(tmp_path / name, name) for name in ("a", "b")]
    assert command("report", *runs, "--static").code == 0
    assert "A: a" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert command("report", *runs, "--static", "--out", tmp_path / "x.html").code == 0


def test_refused_in_one_line(tmp_path):
    run = write_run(tmp_path / "run")
    refused("report", tmp_path / "none", says=("none", "not a run"))
    refused("report", run, run, "--out", tmp_path / "r.html", says=("given twice",))
    refused("report", run, "--out", tmp_path, says=("is a folder",))
    refused("report", run, "--out", tmp_path / "no" / "r.html", says=("no such folder",))
    assert command("report").code == 2
