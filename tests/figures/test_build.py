"""Staleness, repeatability, failures that stay alone, and one small end-to-end build on a real model."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from figures import build, control, geometry, output, registry, runs, table_3, table_4
from figures.figure_8 import NEEDS
from figures.frames import ArmRun
from figures.needs import Need, Scale, resolve
from stablediag.engine.prepare import named_files
from stablediag.recorders.tracking import Conditioning
from stablediag.stats import spectra
from stablediag.store.run import Run
from tests.figures.fake import Plant, write_run


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def test_redrawn_bit_for_bit_and_left_alone_when_nothing_changed(
    fill: Callable[[str], Path],
    scale: Scale,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    root, out = fill("figure-8"), tmp_path / "out"
    assert build.build(["figure-8"], scale, root, out, jobs=1) == 0
    first = files(out)
    for path in out.iterdir():
        path.unlink()
    assert build.build(["figure-8"], scale, root, out, jobs=1) == 0
    assert files(out) == first

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(spectra, "noise_curves", refuse)
    assert build.build(["figure-8"], scale, root, out, jobs=1) == 0
    assert "figure-8: unchanged" in capsys.readouterr().out


def test_a_figure_is_drawn_again_when_data_or_files_change(
    fill: Callable[[str], Path], scale: Scale, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root, out = fill("figure-8"), tmp_path / "out"
    build.build(["figure-8"], scale, root, out, jobs=1)
    assert build.listing(["figure-8"], scale, root, out)[0]["state"] == "drawn"
    (out / "figure-8.png").write_bytes(b"")
    assert build.listing(["figure-8"], scale, root, out)[0]["state"] == "missing"
    build.build(["figure-8"], scale, root, out, jobs=1)
    need = NEEDS.resolve(scale)[0]
    runs._put_aside(root / need.directory)
    assert build.listing(["figure-8"], scale, root, out)[0] == {
        "id": "figure-8", "title": registry.module("figure-8").TITLE, "runs": 6, "ready": 5, "state": "stale",
    }  # fmt: skip
    write_run(need, root, Plant(extra_fall=3.0))
    capsys.readouterr()
    build.build(["figure-8"], scale, root, out, jobs=1)
    assert "figure-8: drawn" in capsys.readouterr().out


def test_what_makes_a_run_stale(scale: Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need = resolve("stableedit", "healthy", 0, scale)
    assert runs.status(need, tmp_path).state == "missing"
    path = write_run(need, tmp_path, Plant())
    assert runs.status(need, tmp_path).state == "ok"
    with monkeypatch.context() as patch:
        patch.setattr(runs, "ENGINE_VERSION", -1)
        assert runs.status(need, tmp_path).reason.startswith("engine version")
    with monkeypatch.context() as patch:
        patch.setattr(Conditioning, "version", -1)
        assert runs.status(need, tmp_path).reason.startswith("recorder conditioning")
    with monkeypatch.context() as patch:
        patch.setattr(runs, "_weights", lambda _: {"model.safetensors": "another"})
        assert runs.status(need, tmp_path).reason == "model weights"
    with monkeypatch.context() as patch:
        patch.setattr(runs, "_stream_hash", lambda data, split: "another")
        assert runs.status(need, tmp_path).reason == "target stream"
    other = Need(need.arm, need.setting, need.seed, need.spec.model_copy(update={"seed": 9}))
    path.rename(tmp_path / other.directory)
    assert runs.status(other, tmp_path).reason == "spec digest"
    (tmp_path / other.directory / "run.sqlite").write_bytes(b"not a database")
    assert runs.status(other, tmp_path).state == "broken"


@pytest.mark.parametrize("kind", ["moments", "network"])
def test_an_input_that_has_changed_makes_a_run_stale(kind: str, scale: Scale, tmp_path: Path) -> None:
    """Another file under the name that a run read; one that is gone says nothing, since it can be made again."""
    file = tmp_path / "inputs" / "network" / "tensors.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"one")
    named = {"moments": str(file), "network": str(tmp_path / "inputs")}[kind]
    need = resolve("stableedit", "healthy", 0, scale)
    path = write_run(need, tmp_path / "runs", Plant())
    with sqlite3.connect(path / "run.sqlite") as connection:
        info = json.loads(connection.execute("SELECT value FROM meta WHERE key = 'info'").fetchone()[0])
        info["dataset"] |= named_files(SimpleNamespace(**{kind: named}), False)
        connection.execute("UPDATE meta SET value = ? WHERE key = 'info'", (json.dumps(info),))
    assert runs.status(need, tmp_path / "runs").state == "ok"
    file.write_bytes(b"two")
    assert runs.status(need, tmp_path / "runs") == runs.Status("stale", f"{kind} file {named}")
    file.unlink()
    assert runs.status(need, tmp_path / "runs").state == "ok"


def test_an_unfinished_run_is_seen_as_such(scale: Scale, tmp_path: Path) -> None:
    need = resolve("no_warmup", "healthy", 1, scale)
    write_run(need, tmp_path, Plant(), state="interrupted")
    assert runs.status(need, tmp_path).state == "unfinished"


def test_a_matched_run_is_made_after_its_reference(scale: Scale) -> None:
    matched, plain = resolve("no_ln_first", "healthy", 0, scale), resolve("stableedit", "healthy", 0, scale)
    assert matched.after == (plain.directory,)
    assert [[n.arm for n in level] for level in runs._levels([matched, plain])] == [["stableedit"], ["no_ln_first"]]
    assert resolve("no_ln_first", "stress", 0, scale).after != (plain.directory,)


def test_a_preset_is_part_of_the_digest_and_a_warm_up_is_not_forced_on_an_arm_without(scale: Scale) -> None:
    full, plain = resolve("stableedit", "healthy", 0, scale), resolve("no_whitening", "healthy", 0, scale)
    assert full.spec.editor.params["normaliser"] == "full"
    assert full.digest != plain.digest
    assert resolve("ultraedit", "healthy", 0, scale).spec.warmup.size == 0
    assert full.spec.warmup.size == 30


def test_a_failing_figure_does_not_stop_the_others(
    fill: Callable[[str], Path],
    scale: Scale,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    root, out = fill("figure-8"), tmp_path / "out"
    fill("table-3")

    def fails(frame: object) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr(registry.module("figure-8"), "draw", fails)
    assert build.build(["figure-8", "table-3"], scale, root, out, jobs=1) == 1
    assert (out / "table-3.png").exists()
    assert not (out / "figure-8.json").exists()
    error = capsys.readouterr().err
    assert error.startswith("failed: figure-8: ValueError: no ink")
    assert error.count("\n") == 1


def test_a_failing_run_fails_its_figures_only(scale: Scale, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The model does not exist here, so that runs that have to be made cannot be."""
    root, out = tmp_path / "runs", tmp_path / "out"
    for need in registry.module("table-3").NEEDS.resolve(scale):
        write_run(need, root, Plant())
    small = Scale("small", (0,), (0,), {"stress": scale.settings["stress"]}, scale.common)
    broken = resolve("stableedit", "stress", 0, small)
    runs._put_aside(root / broken.directory)
    assert build.build(["table-3", "figure-8"], small, root, out, jobs=1) == 1
    captured = capsys.readouterr()
    assert "[1/1] stableedit, stress, seed 0: failed: ModelError" in captured.out
    assert "1 of 4 runs failed" in captured.err


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of 16 dimensions over the testbed's vocabulary."""
    from stablediag.testbed.recipe import Recipe, build_model
    from stablediag.testbed.tokenizer import build_tokenizer
    from stablediag.testbed.world import build_world

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = build_tokenizer(build_world())
    build_model(Recipe(hidden=16, layers=3, heads=2, intermediate=24), tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_runs_are_made_resumed_and_matched_and_the_figures_can_read_them(tiny_model: Path, tmp_path: Path) -> None:
    """End to end on a real model: what a session writes is what status, prepare and draw expect."""
    changes = (
        f"model.path={tiny_model}", "model.modules=[layers.1.mlp.down_proj]", "data.size=45", "edits_per_step=15",
        "warmup.size=30", "evaluation.subsample=5", "evaluation.capability=false", "snapshots.prompts=20",
    )  # fmt: skip
    scale = Scale("tiny", (0,), (0,), {"stress": changes, "healthy": (*changes, "data.size=30")})
    first, plain = (resolve(arm, "stress", 0, scale) for arm in ("no_ln_first", "stableedit"))
    lines: list[str] = []
    outcomes = runs.make([first, plain], tmp_path, jobs=1, report=lines.append)
    assert [outcome.error for outcome in outcomes.values()] == [None, None]
    assert lines[0].startswith("[1/2] stableedit")
    norms = {
        need.arm: geometry.prepare([ArmRun(need.arm, "stress", 0, Run.open(tmp_path / need.directory))])["norm"]
        for need in (first, plain)
    }
    assert norms["no_ln_first"][0] == pytest.approx(norms["stableedit"][0], rel=1e-5)
    stale_path = tmp_path / plain.directory
    complete = runs.fingerprint(plain, tmp_path)
    with sqlite3.connect(stale_path / "run.sqlite") as connection:
        connection.execute("UPDATE meta SET value = 'running' WHERE key = 'state'")
    assert runs.status(plain, tmp_path).state == "unfinished"
    assert runs.make([plain], tmp_path, jobs=1, report=lines.append)[plain.directory].error is None
    assert runs.status(plain, tmp_path).state == "ok"
    assert runs.fingerprint(plain, tmp_path) != complete
    needs = [resolve(arm, "stress", 0, scale) for arm in ("stableedit", "no_warmup")]
    runs.make([needs[1]], tmp_path, jobs=1, report=lines.append)
    opened = [ArmRun(need.arm, "stress", 0, Run.open(tmp_path / need.directory)) for need in needs]
    table = control.prepare(opened, "condition")
    assert table.groupby("series")["value"].count().min() > 0
    assert len(table_3.prepare([*opened, ArmRun("ultraedit", "stress", 0, opened[1].run)])) == 12
    assert set(table_4.prepare(opened)["metric"]) >= {"efficacy", "immediate", "norm_first", "specificity_agreement"}


def test_sidecar_says_what_a_figure_is_made_of(fill: Callable[[str], Path], scale: Scale, tmp_path: Path) -> None:
    root, out = fill("figure-8"), tmp_path / "out"
    build.build(["figure-8"], scale, root, out, jobs=1)
    found = json.loads((out / "figure-8.json").read_text())
    digests = {need.digest for need in NEEDS.resolve(scale)}
    assert {run["digest"] for run in found["runs"]} == digests
    assert "matplotlib" in found["versions"]
    pdf = (out / "figure-8.pdf").read_bytes()
    assert b"CreationDate" not in pdf
    assert b"/FontType 42" in pdf or b"/CIDFontType2" in pdf or b"/TrueType" in pdf or b"FlateDecode" in pdf
    assert sorted(digests)[0][:16].encode() in (out / "figure-8.png").read_bytes()
    assert output.headline(found).endswith("(1 more in SUMMARY.md)")


def test_command_line(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert build.main(["figure-99"]) == 2
    assert "figure-99" in capsys.readouterr().err
    arguments = ["table-3", "--quick", "--list", "--json", "--runs", str(tmp_path), "--out", str(tmp_path)]
    assert build.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)[0]["state"] == "missing"
    assert build.main(arguments[:3] + arguments[4:]) == 0
    assert "runs   0/8" in capsys.readouterr().out
