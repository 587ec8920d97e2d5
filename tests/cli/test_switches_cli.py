"""`stablediag switches` and `stablediag controls` on a tiny model: what is run, kept, resumed, compared, written and refused."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from stablediag.cli.switches import _table
from stablediag.engine import compare
from stablediag.engine.session import Session
from stablediag.errors import NumericalError
from stablediag.spec import load
from stablediag.stats.switches import MEASURES
from stablediag.store.run import Run
from tests.cli.command import command, refused, write_spec
from tests.engine.streams import write_stream

RECORDERS = ["update_norm", "adjacent_cosine", "conditioning", "drift_surrogates"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("switches")


@pytest.fixture(scope="module")
def spec(folder, llama_dir):
    stream = write_stream(folder / "edits.jsonl", 90)
    return write_spec(
        folder / "tiny.yaml", llama_dir, stream, recorders=RECORDERS, evaluation={"schedule": "end"},
        data={"source": str(stream), "size": 40, "shuffle": True}, warmup={"size": 20},
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(folder, spec):
    """Two switches at two seeds."""
    wanted = ("--only", "ridge", "--only", "key_norm")
    return command("switches", spec, "--seeds", 2, *wanted, "--root", folder / "runs", "--json")


@pytest.fixture(scope="module")
def controlled(folder, spec):
    wanted = ("--only", "no_ln", "--only", "late_both", "--only", "iid_frozen_weights", "--only", "bf16_in_place")
    return command("controls", spec, "--seeds", 1, *wanted, "--root", folder / "runs", "--json")


def digests(folder: Path) -> dict[str, str]:
    return {path.name: Run.open(path).info.digest for path in sorted(folder.iterdir())}


def test_the_effects_of_switches(done, folder, spec):
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert {row["variation"] for row in found["effects"]} == {"ridge", "key_norm"}
    ridge = {row["metric"]: row for row in found["effects"] if row["variation"] == "ridge"}
    assert {m.name for m in MEASURES} - set(ridge) <= {"locality_kl", "realised", "rounding", "retention"}
    assert ridge["update_norm"]["effect"] > 1  # a weaker ridge, longer updates
    assert ridge["update_norm"]["seeds"] == 2
    assert ridge["immediate"]["over"] == "seeds and edits"
    # The key norm's own factor makes the first update as long as the base's.
    key = {row["metric"]: row for row in found["effects"] if row["variation"] == "key_norm"}
    assert key["update_norm"]["effect"] == pytest.approx(1, abs=0.3)
    assert any("2 seeds" in note for note in found["notes"])
    runs = {(row["variation"], row["seed"]): row for row in found["runs"]}
    assert set(runs) == {(name, seed) for name in ("base", "ridge", "key_norm") for seed in (0, 1)}
    one = Run.open(Path(runs["ridge", 1]["run"]))
    assert one.info.spec["editor"]["params"]["ridge"] == 1
    assert one.info.spec["data"]["seed"] == 1
    assert found["left_out"] == []


def test_complete_runs_are_kept_and_the_table_says_the_same(done, folder, spec, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("run again")

    monkeypatch.setattr(Session, "create", refuse)
    monkeypatch.setattr(Session, "resume", refuse)
    wanted = ("--only", "ridge", "--only", "key_norm")
    again = command("switches", spec, "--seeds", 2, *wanted, "--root", folder / "runs")
    assert again.code == 0, again.err
    assert again.err.count("0.0 s") == 6
    lines = again.out.splitlines()
    assert lines[0].startswith("quality: immediate (points); efficacy (points)")
    assert [line.split()[0] for line in lines[2:6]] == ["variation", "base", "key_norm", "ridge"]
    assert "geometry: update norm (factor)" in again.out
    assert "the length of the steps included; --matched" in again.out
    effect = next(
        r for r in json.loads(done.out)["effects"] if (r["variation"], r["metric"]) == ("ridge", "update_norm")
    )
    assert f"x{effect['effect']:.3g}" in again.out


def test_an_unfinished_run_is_resumed(folder, spec, monkeypatch, tmp_path):
    whole = command("switches", spec, "--seeds", 1, "--only", "ridge", "--root", tmp_path / "whole", "--json")

    def killed(self, *_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Session, "_checkpoint", killed)
        stopped = command("switches", spec, "--seeds", 1, "--only", "ridge", "--root", tmp_path / "cut")
    assert (stopped.code, stopped.out) == (130, "")
    assert "the same command goes on from here" in stopped.err
    (left,) = (tmp_path / "cut").iterdir()
    assert Run.open(left).state != "complete"
    went_on = command("switches", spec, "--seeds", 1, "--only", "ridge", "--root", tmp_path / "cut", "--json")
    assert went_on.code == 0, went_on.err
    assert json.loads(went_on.out)["effects"] == json.loads(whole.out)["effects"]


def test_the_effects_of_controls(controlled):
    assert controlled.code == 0, controlled.err
    found = json.loads(controlled.out)
    groups: dict[tuple[str, str], set[str]] = {}
    for row in found["effects"]:
        groups.setdefault((row["variation"], row["against"]), set()).add(row["group"])
    assert groups == {
        ("no_ln", "base"): {"quality", "geometry"},
        ("iid_frozen_weights", "base"): {"geometry"},
        ("bf16_in_place", "bf16_master"): {"quality", "geometry"},
        ("bf16_master", "base"): {"quality", "geometry"},
        ("late_both", "late"): {"quality", "geometry"},
    }
    frozen = {row["metric"] for row in found["effects"] if row["variation"] == "iid_frozen_weights"}
    assert "mean_shift_fall" in frozen
    assert "update_norm" not in frozen  # nothing is written
    assert any("One seed" in note for note in found["notes"])
    assert {row["over"] for row in found["effects"] if row["group"] == "geometry"} == {"nothing"}
    assert [row["variation"] for row in found["references"]] == ["base", "early", "late"]
    late = next(Run.open(Path(row["run"])) for row in found["runs"] if row["variation"] == "late_both")
    early = next(row["run"] for row in found["runs"] if row["variation"] == "early")
    assert late.info.spec["init"] == {"weights_from": Path(early).name, "stats_from": Path(early).name}
    assert late.info.spec["data"]["offset"] == 20


def test_matched_runs_have_the_norms_of_their_reference(folder, spec):
    found = command("switches", spec, "--seeds", 1, "--only", "ridge", "--matched", "--root", folder / "runs", "--json")
    assert found.code == 0, found.err
    told = json.loads(found.out)
    norm = next(row for row in told["effects"] if row["metric"] == "update_norm")
    assert norm["effect"] == pytest.approx(1, rel=1e-4)
    assert "Update norms are those of what is compared with" in told["notes"][0]
    # The base is the one that is there already.
    base = next(row["run"] for row in told["runs"] if row["variation"] == "base")
    assert Path(base).name in digests(folder / "runs")


def test_a_run_that_fails_fails_alone(spec, tmp_path, monkeypatch):
    real = Session.create

    def broken(one, path, **options):
        if "-early-" in path.name or "-no_ln-" in path.name:
            raise NumericalError("not finite")
        return real(one, path, **options)

    monkeypatch.setattr(compare.Session, "create", broken)
    wanted = ("--only", "no_ln", "--only", "permuted", "--only", "late_both")
    done = command("controls", spec, "--seeds", 1, *wanted, "--root", tmp_path)
    assert done.code == 1
    assert "no_ln, seed 0: not finite" in done.out
    assert "late_both, seed 0: the run of early failed" in done.out
    assert any(line.startswith("permuted ") for line in done.out.splitlines())
    assert not any(line.startswith("late_both (to") for line in done.out.splitlines())


def test_a_dry_run_writes_nothing_and_says_why(spec, tmp_path):
    done = command("controls", spec, "--dry-run", "--root", tmp_path / "runs", "editor.params.normaliser=diagonal")
    assert done.code == 0, done.err
    assert not (tmp_path / "runs").exists()
    assert done.out.count(" new") >= 3 * 15  # three seeds
    assert "diagonal (centring and a scale per coordinate" in done.out.split("left out:")[1]
    told = json.loads(
        command("switches", spec, "warmup.size=0", "--dry-run", "--json", "--root", tmp_path / "runs").out
    )
    assert {"warmup_norm", "warmup_apply"} <= {row["name"] for row in told["left_out"]}
    assert all(row["reason"] for row in told["left_out"])


def test_specs_are_written_instead(spec, tmp_path):
    done = command(
        "controls", spec, "--seeds", 1, "--only", "late_both", "--write", tmp_path / "specs", "--root", "elsewhere"
    )
    files = [Path(line) for line in done.out.split()]
    assert [file.name for file in files] == [
        "1-base-seed0.yaml", "2-early-seed0.yaml", "3-late-seed0.yaml", "4-late_both-seed0.yaml",
    ]  # fmt: skip
    assert "stablediag run FILE --root elsewhere" in done.err
    both, early = load(files[3]), load(files[1])
    # The name under which `run --root` makes the early half is the one that the late half asks for.
    assert both.init is not None
    assert both.init.stats_from == f"{early.name}-{early.digest()[:8]}"
    assert (
        files[3]
        .read_text()
        .startswith("# the late half after the early one: do earlier edits help later ones?\n# source: ")
    )
    refused("controls", spec, "--seeds", 1, "--write", tmp_path / "specs", says=("not an empty folder",))


def test_what_is_refused(spec, folder, tmp_path):
    root = ("--root", tmp_path / "runs")
    refused(
        "switches",
        spec,
        "data.shuffle=false",
        "--seeds",
        2,
        *root,
        says=("draws nothing", "data.shuffle=true", "--seeds 1"),
    )
    refused("switches", spec, "recorders=none", "--matched", *root, says=("--matched needs the norm",))
    refused("switches", spec, "--seeds", 0, *root, says=("at least 1",))
    refused("switches", spec, "editor.params.lr=calibrate", *root, says=("calibrate", "give a number"))
    refused("switches", spec, "--only", "rigde", *root, says=('nearest is "ridge"',))
    refused("controls", spec, "--only", "full", *root, says=("full cannot be had", "already"))
    other = tmp_path / "ft.yaml"
    tree = yaml.safe_load(spec.read_text())
    other.write_text(yaml.safe_dump({**tree, "editor": {"name": "ft"}}))
    refused("controls", other, *root, says=("Lifelong Normalization", "ft"))
    several = tmp_path / "vary.yaml"
    several.write_text(yaml.safe_dump({**tree, "vary": {"edits_per_step": [5, 10]}}))
    refused("switches", several, *root, says=("vary may list data.seed alone",))
    assert not (tmp_path / "runs").exists()
    (tmp_path / "taken").mkdir()
    planned = json.loads(
        command("switches", spec, "--seeds", 1, "--dry-run", "--json", "--root", tmp_path / "taken").out
    )
    base = Path(planned["runs"][0]["run"])
    base.mkdir()
    (base / "note").write_text("mine")
    refused("switches", spec, "--seeds", 1, "--root", tmp_path / "taken", says=("not empty", "--root"))


def test_seeds_come_from_vary(spec, tmp_path):
    tree = yaml.safe_load(spec.read_text())
    several = tmp_path / "several.yaml"
    several.write_text(yaml.safe_dump({**tree, "vary": {"data.seed": [3, 7]}}))
    for given, seeds in (((), [3, 7]), (("--seeds", 1), [3]), (("--seeds", 3), [3, 7, 8])):
        told = command("switches", several, *given, "--only", "ridge", "--dry-run", "--json", "--root", tmp_path)
        found = list(dict.fromkeys(row["seed"] for row in json.loads(told.out)["runs"]))
        assert found == seeds


def test_halves_that_share_edits_are_not_compared(tmp_path):
    """How many facts the testbed draws has a part in which: of 1,400, the first 700 are not the 700 that it draws alone."""
    small = tmp_path / "testbed.yaml"
    small.write_text(yaml.safe_dump({"data": {"source": "testbed", "size": 200}, "editor": {"params": {"lr": 0.01}}}))
    found = {}
    for size in (200, 1400):
        asked = ("--seeds", 1, "--dry-run", "--json", "--root", tmp_path / "runs")
        found[size] = json.loads(command("controls", small, f"data.size={size}", *asked).out)
    names = {size: {row["variation"] for row in told["runs"]} for size, told in found.items()}
    halves = {"early", "late", "late_both", "late_statistics", "late_weights"}
    assert halves <= names[200]
    assert not halves & names[1400]
    reasons = {row["name"]: row["reason"] for row in found[1400]["left_out"]}
    assert set(reasons) >= halves
    assert "change data.size" in reasons["late_both"]


def test_in_a_terminal_intervals_have_a_line_of_their_own(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    shown = Terminal()
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setenv("COLUMNS", "80")
    _table(
        [{"variation": "base itself", "efficacy": "76.2"}, {"variation": "ridge", "efficacy": "+1.0** [+0.4, +1.6]"}]
    )
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown.getvalue())
    assert [line.split() for line in plain.splitlines()] == [
        ["variation", "efficacy"],
        ["base", "itself", "76.2"],
        ["ridge", "+1.0**"],
        ["[+0.4,", "+1.6]"],
    ]
    assert "\x1b[1m" in shown.getvalue()  # what survives is bold
