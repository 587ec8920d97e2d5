"""`stablediag compare`: two runs and two arms, table, JSON and figure, on planted stores and on tiny real runs."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from stablediag.cli.compare import _spread
from tests.cli.command import command, refused, write_spec
from tests.cli.planted import planted, provenance
from tests.engine.streams import write_stream
from tests.stats.test_run_diff import falling
from tests.stats.test_switches import run

RECORDERS = ["update_norm", "adjacent_cosine", "conditioning", {"name": "realised_update", "schedule": {"every": 1}}]


def store(folder: Path, seed: int, *, name: str = "planted", lr: float = 0.1, state: str = "complete", **plant) -> Path:
    spec = provenance().spec
    info = provenance(
        spec={**spec, "name": f"{name}-seed{seed}", "data": {**spec["data"], "seed": seed},
              "editor": {"name": "ln", "params": {"lr": lr}}},
        dataset={"target": {"source": "testbed", "count": 60, "sha256": f"{seed:064d}" if not plant.get("own_edits") else name}},
    )  # fmt: skip
    tables = dict(run(seed, **plant).held)
    tables["steps"] = tables["steps"].assign(edits=5, skipped=pd.Series([None] * len(tables["steps"]), dtype=object))
    return planted(folder / f"{name}{seed}", info, tables, state=state)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def arms(folder):
    """Four seeds of two settings, the second worse and with longer updates."""
    first = [store(folder, seed, name="calm") for seed in range(4)]
    return first, [store(folder, seed, name="wild", lr=0.2, harder=0.3, longer=2.0) for seed in reversed(range(4))]


def test_two_runs_as_text(arms):
    done = command("compare", arms[0][0], arms[1][-1])
    assert done.code == 0, done.err
    assert done.err == ""
    lines = done.out.splitlines()
    assert lines[0] == "A: calm-seed0"
    assert "paired: the same stream: paired over its edits" in lines
    assert any(line.split() == ["editor.params.lr", "0.1", "0.2"] for line in lines)
    assert "versions, model and data: no difference" in lines
    efficacy = next(line for line in lines if line.strip().startswith("efficacy (points)"))
    assert "** [-" in efficacy
    assert efficacy.endswith("60 edits")
    norm = next(line for line in lines if line.strip().startswith("update norm"))
    assert norm.split()[-3:] == ["2", "no", "interval"]
    assert "one seed: intervals are over its edits alone" in done.out
    assert "not compared, for want of records on either side: locality kl" in done.out


def test_two_arms_are_paired_by_seed(arms):
    done = command("compare", *arms[0], "--with", *arms[1], "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["pairing"]["kind"] == "paired"
    for both in found["pairing"]["pairs"]:
        assert Path(both["A"]).name.removeprefix("calm") == Path(both["B"]).name.removeprefix("wild")
    assert found["spec"] == [{"path": "editor.params.lr", "A": [0.1], "B": [0.2]}]
    rows = {row["metric"]: row for row in found["metrics"]}
    assert rows["update_norm"]["effect"] == pytest.approx(2.0)
    assert rows["efficacy"]["survives"] is True
    assert rows["efficacy"]["over"] == "seeds and edits"
    assert rows["efficacy"]["B"] < rows["efficacy"]["A"]
    assert {row["state"] for row in found["collapse"]} == {"unknown"}
    assert [row["name"] for row in found["runs"]["A"]] == [f"calm-seed{seed}" for seed in range(4)]
    text = command("compare", *arms[0], "--with", *arms[1]).out
    assert text.splitlines()[0] == "A: calm"
    assert "4 pairs of equal seeds" in text


def test_with_takes_one_or_several_runs_each_time():
    spread = ["a", "--with", "b", "--with", "c", "--json"]
    assert list(_spread(["a", "--with", "b", "c", "--json"])) == spread
    assert list(_spread(spread)) == spread
    assert list(_spread(["a", "--with=b", "c"])) == ["a", "--with=b", "--with", "c"]
    assert list(_spread(["a", "b", "--figure", "f.pdf"])) == ["a", "b", "--figure", "f.pdf"]


def test_streams_that_differ_are_said_to_be_independent(folder, arms):
    other = store(folder, 9, name="apart", own_edits=True)
    done = command("compare", arms[0][0], other)
    assert "independent: different streams: nothing is paired" in done.out
    assert "60 edits, independent" in done.out
    found = json.loads(command("compare", arms[0][0], other, "--json").out)
    assert found["pairing"] == {"kind": "independent", "reason": found["pairing"]["reason"], "pairs": []}
    assert "retention" in found["not_compared"]


def test_collapse_points_are_printed(folder):
    for place, at in enumerate((5, 9)):
        one = falling(at)
        tables = {name: frame for name, frame in one.held.items() if name in ("steps", "quality", "edits")}
        tables["steps"] = tables["steps"].assign(skipped=pd.Series([None] * len(tables["steps"]), dtype=object))
        planted(folder / f"falls{place}", provenance(), tables)
    done = command("compare", folder / "falls0", folder / "falls1")
    assert "A falls0: 40 edits (score 30 <= 60" in done.out
    assert "horizon of B over that of A: 2 times" in done.out


def test_an_unfinished_run_and_a_run_without_tables_are_compared(folder, arms):
    half = store(folder, 0, name="half", state="running")
    done = command("compare", arms[0][0], half)
    assert done.code == 0
    assert f"{half} is not complete: what it has is compared" in done.out
    bare = planted(folder / "bare", provenance())
    done = command("compare", bare, bare)
    assert done.code == 0
    assert "spec: no difference" in done.out
    assert "update norm" in done.out.split("not compared")[1]


def test_many_one_sided_paths_are_folded(folder, arms):
    spec = {**provenance().spec, "editor": {"name": "memit", "params": {f"p{i}": i for i in range(20)}}}
    other = planted(folder / "memit", provenance(spec=spec))
    done = command("compare", arms[0][0], other)
    assert "and 21 that only one of the two has, under editor.params" in done.out
    assert "editor.params.p7" not in done.out
    assert "editor.params.p7" in command("compare", arms[0][0], other, "--all").out


@pytest.mark.parametrize(("ending", "start"), [("pdf", b"%PDF"), ("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_figures(arms, tmp_path, ending, start):
    path = tmp_path / f"both.{ending}"
    done = command("compare", arms[0][0], arms[1][-1], "--figure", path)
    assert done.code == 0, done.err
    assert path.read_bytes().startswith(start)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    refused("compare", arms[0][0], arms[1][-1], "--figure", path, says=("is there already", "--force"))
    if ending == "svg":
        before = path.read_bytes()
        assert command("compare", arms[0][0], arms[1][-1], "--figure", path, "--force").code == 0
        assert path.read_bytes() == before  # nothing that changes from call to call


def test_a_figure_shows_names_as_they_are(folder, tmp_path):
    odd = store(folder, 0, name="_$x_{1}$ <script>")
    path = tmp_path / "odd.svg"
    done = command("compare", odd, odd, "--figure", path)
    assert done.code == 0, done.err
    assert "<script" not in path.read_text(encoding="utf-8")


def test_bad_input(arms, folder, tmp_path):
    one = arms[0][0]
    refused("compare", one, says=("1 run:", "give two"))
    refused("compare", one, one, one, says=("3 runs:", "--with"))
    refused("compare", one, tmp_path / "none", says=("not a run",))
    refused("compare", one, one, "--with", arms[1][0], says=("two runs of one side", "data.seed 0"))
    refused("compare", one, one, "--figure", tmp_path / "f.jpg", says=("pdf, png, svg",))
    refused("compare", one, one, "--figure", tmp_path / "no" / "f.pdf", says=("another folder",))
    bare = planted(tmp_path / "bare", provenance())
    refused("compare", bare, bare, "--figure", tmp_path / "f.pdf", says=("anything to draw", "recorders"))
    assert not list(tmp_path.glob("*.pdf"))
    assert command("compare").code == 2


def test_control_characters_do_not_reach_the_terminal(folder, arms):
    evil = {**provenance().spec, "name": "x\x1b[31m", "editor": {"name": "a\x1b]0;b\x07", "params": {}}}
    done = command("compare", arms[0][0], planted(folder / "evil", provenance(spec=evil)))
    assert "\x1b" not in done.out
    assert "\x07" not in done.out


def test_two_real_runs(folder, llama_dir):
    stream = write_stream(folder / "edits.jsonl", 40)
    spec = write_spec(
        folder / "tiny.yaml", llama_dir, stream, recorders=RECORDERS, evaluation={"schedule": {"every": 1}}
    )
    for name, lr in (("slow", 0.02), ("fast", 0.2)):
        assert command("run", spec, f"editor.params.lr={lr}", "--out", folder / name, "--quiet").code == 0
    found = json.loads(command("compare", folder / "slow", folder / "fast", "--json").out)
    assert [one["path"] for one in found["spec"]] == ["editor.params.lr"]
    assert found["provenance"] == []
    assert found["pairing"]["kind"] == "paired"
    rows = {row["metric"]: row for row in found["metrics"]}
    assert 5 < rows["update_norm"]["effect"] < 20
    assert {"immediate", "efficacy", "generalization", "specificity", "cosine", "weight_growth", "realised"} <= set(
        rows
    )
    assert {row["state"] for row in found["collapse"]} <= {"collapsed", "censored", "never"}
