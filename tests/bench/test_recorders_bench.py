"""What recorders cost, in a run and at true sizes: the script runs and says so for each. No timings."""

from __future__ import annotations

import json

import pytest

from reproduce.bench.recorders import MEASURED, NAMES, main, measure_run, report
from stablediag.recorders.registry import PRESETS, RECORDERS


def test_every_recorder_is_timed_at_a_given_width(tmp_path, capsys):
    assert main(["--size", "tiny", "--repeats", "1", "--out", str(tmp_path / "made" / "out.json")]) == 0
    found = json.loads((tmp_path / "made" / "out.json").read_text())
    assert set(found["cpu_seconds"]) == set(NAMES) <= set(RECORDERS)
    assert all(seconds > 0 for seconds in found["cpu_seconds"].values())
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(NAMES)


def test_every_preset_is_timed_in_a_run():
    found = measure_run(repeats=1, edits=120, warmup=60, per_step=20)
    assert found["size"] == {"edits": 20, "steps": 9, "modules": 3}
    for preset in MEASURED:
        cost = found["cpu_seconds"][preset]
        assert tuple(cost) == PRESETS[preset]
        assert sum(cost.values()) > 0
        assert found["share"][preset] == pytest.approx(sum(cost.values()) / found["step_cpu_seconds"])
    text = report(found).splitlines()
    assert text[0].startswith("step without recorders")
    assert sum(line.startswith("  prequential") for line in text) == 2


def test_no_repeats_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--repeats", "0"])
    assert "at least 1" in capsys.readouterr().err
