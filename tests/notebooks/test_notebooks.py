"""Every notebook runs from top to bottom, in its quick mode."""

from __future__ import annotations

from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")
nbclient = pytest.importorskip("nbclient")

SOURCES = sorted((Path(__file__).parents[2] / "notebooks").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_notebook_runs(source, monkeypatch):
    monkeypatch.setenv("STABLEDIAG_QUICK", "1")
    notebook = jupytext.read(source)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": source.parent}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.get("outputs", [])]
    assert any(output.get("data", {}).get("image/png") for output in outputs)


def test_there_is_a_notebook():
    assert [path.stem for path in SOURCES] == ["first_steps", "theory_against_simulation"]
