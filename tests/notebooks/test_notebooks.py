"""Every notebook runs from top to bottom, in its quick mode, and is made of public names alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")
nbclient = pytest.importorskip("nbclient")

SOURCES = sorted((Path(__file__).parents[2] / "notebooks").glob("*.py"))
OURS = ("stablediag", "synthetic")


def private_names(tree: ast.AST) -> list[str]:
    """Names with a leading underscore that code takes from the package, or from what the package gave it."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS:
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names if alias.name.split(".")[0] in OURS for part in alias.name.split(".")]
        elif isinstance(node, ast.Attribute):
            names = [node.attr]
        else:
            continue
        found += [name for name in names if name.startswith("_") and not name.endswith("__")]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_notebook_runs(source, monkeypatch):
    monkeypatch.setenv("STABLEDIAG_QUICK", "1")
    notebook = jupytext.read(source)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": source.parent}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.get("outputs", [])]
    assert any(output.get("data", {}).get("image/png") for output in outputs)


def test_all_notebooks_are_there():
    assert [path.stem for path in SOURCES] == [
        "anatomy_of_one_edit",
        "diagnosing_a_collapsing_run",
        "first_steps",
        "paper_scale_how_to",
        "theory_against_simulation",
        "your_own_editor_and_recorder",
    ]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_only_public_names(source):
    assert private_names(ast.parse(source.read_text())) == []


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("from stablediag.maths import _threads", "_threads"),
        ("from stablediag.recorders._rows import Batch", "_rows"),
        ("import stablediag.store._db", "_db"),
        ("run._stats", "_stats"),
    ],
)
def test_private_names_are_found(code, name):
    assert private_names(ast.parse(code)) == [name]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_text_and_code_are_whole(source):
    """A title, a question or aim first, a quick mode, and no placeholder."""
    notebook = jupytext.read(source)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    text = source.read_text()
    assert "STABLEDIAG_QUICK" in text
    assert "CONCLUSION" not in text
    assert str(Path(__file__).parents[2]) not in text
