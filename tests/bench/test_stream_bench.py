"""The benchmark of long streams: its records are of the official layouts, its numbers those of the file."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from reproduce.bench.stream import MAKERS, RECORDS, main, write
from stablediag.data.load import load_stream
from stablediag.spec import DataSpec


@pytest.mark.parametrize("layout", sorted(MAKERS))
def test_records_are_told_by_their_keys_and_differ(layout, tmp_path):
    write(tmp_path / "made.json", layout, 300)
    stream = load_stream(DataSpec(source=str(tmp_path / "made.json"), size=300))
    assert stream.report.layout == layout
    assert len({edit.id for edit in stream}) == len(stream) == 300
    assert all(edit.rephrases and edit.locality for edit in stream)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's count of resident memory")
def test_what_it_reports(tmp_path, capsys):
    main(["--layout", "wikibigedit", "--records", "250", "--out", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found == json.loads(capsys.readouterr().out)
    assert (found["records"], found["edits"], found["steps"]) == (250, 250, 3)
    peaks = [stage["peak_bytes"] for stage in found["stages"].values()]
    assert list(found["stages"]) == ["imported", "read", "planned", "walked"]
    assert peaks[0] > 0
    # The kernel counts pages in batches: to about a megabyte.
    assert all(later >= earlier - 2e6 for earlier, later in pairwise(peaks))


@pytest.mark.parametrize("layout", sorted(RECORDS))
def test_the_stored_measurement(layout):
    """Of files as long as the published ones: some 150 bytes an edit are kept, a file of 650 MB is never in memory."""
    stored = Path(__file__).parents[2] / "reproduce" / "bench" / "results" / f"stream_{layout}.json"
    found = json.loads(stored.read_text(encoding="utf-8"))
    assert found["edits"] == found["records"] == RECORDS[layout]
    grown = found["stages"]["walked"]["peak_bytes"] - found["stages"]["imported"]["peak_bytes"]
    assert grown < 200 * found["records"]
    assert grown < found["file_bytes"] / 2
    assert found["stages"]["walked"]["peak_bytes"] == found["stages"]["planned"]["peak_bytes"]
