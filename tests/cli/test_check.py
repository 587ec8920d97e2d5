"""`stablediag check`: the table, the JSON rows, the exit codes."""

from __future__ import annotations

import json

import pytest

from synthetic import checks
from synthetic.certify import equality, row
from tests.cli.command import command, refused

COLUMNS = {"claim", "setting", "measured", "error", "exact", "tight", "paper", "slack", "verdict", "seconds"}


def test_json_rows_hold_the_planted_violations(tmp_path):
    done = command("check", "nas", "--quick", "--json", "--jobs", 1, "--cache", tmp_path)
    assert done.code == 0, done
    rows = json.loads(done.out)
    planted = [one for one in rows if one["planted"]]
    assert planted
    assert all(one["caught"] is True for one in planted)
    assert all(one["caught"] is None for one in rows if not one["planted"])
    assert set(rows[0]) >= COLUMNS
    assert "family-wise" in done.err
    assert list(tmp_path.glob("*.npz"))


def test_the_table_says_what_was_planted_and_at_which_level(tmp_path):
    done = command("check", "nas", "--quick", "--no-cache", "--jobs", 1, "--cache", tmp_path)
    assert done.code == 0, done
    assert done.out.splitlines()[0].split() == [
        "claim",
        "setting",
        "measured",
        "exact",
        "tight",
        "paper",
        "slack",
        "verdict",
        "seconds",
    ]
    assert "planted, caught" in done.out
    assert "family-wise false-alarm level 0.0001" in done.out
    assert not list(tmp_path.iterdir())


def test_a_surprise_is_marked_and_ends_with_exit_code_1(monkeypatch):
    surprise = row("nas", "somewhere", [equality(1.0, 0.01, 2.0, df=99)], measured=1.0, error=0.01, exact=2.0)
    monkeypatch.setattr(checks, "run_checks", lambda *_, **__: checks.Report((surprise,)))
    done = command("check", "nas")
    assert done.code == 1
    assert "false (!)" in done.out
    assert "NOT as predicted: nas (somewhere): false" in done.out


def test_list_names_every_claim():
    done = command("check", "--list", "--json")
    listed = [one["claim"] for one in json.loads(done.out)]
    assert len(listed) == len(set(listed))
    assert {"theorem-3.5", "audit-1", "nas"} <= set(listed)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["theorem-9.9"], "no claim 'theorem-9.9': choose from"),
        (["nas", "--jobs", "0"], "jobs: must be at least 1, got 0"),
        (["nas", "--reps", "-3"], "reps: a standard error needs at least 8 replicates, got -3"),
    ],
)
def test_bad_input_is_one_line(arguments, says):
    refused("check", *arguments, says=(says,))


def test_an_interrupt_says_what_was_kept(monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checks, "run_checks", interrupted)
    done = command("check", "nas")
    assert done.code == 130
    assert done.err == "interrupted: start again, finished cells are kept\n"
