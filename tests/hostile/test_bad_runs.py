"""Run directories that are in the way, finished, damaged, or not what a run wants to be compared with."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from stablediag.spec import load_many
from stablediag.store.run import Run
from tests.cli.command import command, refused, resolved, write_spec
from tests.engine.streams import write_stream


@pytest.fixture
def stream(tmp_path):
    return write_stream(tmp_path / "edits.jsonl", 80)


@pytest.fixture
def model(llama_dir, tmp_path):
    return shutil.copytree(llama_dir, tmp_path / "model")


@pytest.fixture
def spec(model, stream, tmp_path):
    return write_spec(tmp_path / "spec.yaml", model, stream)


@pytest.fixture
def interrupted(spec, tmp_path, monkeypatch):
    """A run that stopped before its last step."""
    from stablediag.engine.session import Session

    original = Session._step

    def step(self, batch):
        if batch.index == 2:
            raise KeyboardInterrupt
        original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "_step", step)
        assert command("run", spec, "--out", tmp_path / "run").code == 130
    return tmp_path / "run"


def make(spec, path, *overrides):
    done = command("run", spec, *overrides, "--out", path)
    assert done.code == 0, done
    return path


def content(folder):
    """Files of a run; a reader of the write-ahead log may leave its own two beside the database."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(("-shm", "-wal"))]
    return {path: path.read_bytes() for path in files}


def test_directories_that_are_not_empty(spec, tmp_path):
    run = make(spec, tmp_path / "one")
    before = content(run)
    refused("run", spec, "--out", run, says=(str(run), "holds another run", "choose another directory"))
    assert content(run) == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine", encoding="utf-8")
    refused("run", spec, "--out", other, says=(str(other), "not an empty directory"))
    assert [path.name for path in other.iterdir()] == ["notes.txt"]
    refused("run", spec, "--out", other / "notes.txt", says=("notes.txt",))
    refused("run", spec, "--out", other / "notes.txt" / "run", says=("notes.txt",))


def test_resume_of_what_cannot_be_resumed(spec, tmp_path):
    run = make(spec, tmp_path / "one")
    refused("resume", run, says=(str(run), "is complete", "nothing to resume"))
    refused("resume", tmp_path / "nothing", says=("nothing: not a run", "check the path"))
    refused("resume", tmp_path, says=("not a run",))
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "run.sqlite").write_bytes(b"nonsense" * 500)
    for verb in ("resume", "show", "export"):
        refused(verb, tmp_path / "fake", says=("fake",))
    for verb in ("show", "export"):
        refused(verb, tmp_path / "nothing", says=("nothing: not a run",))


def test_resume_with_another_model(interrupted, model):
    file = model / "model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor * 1.5 for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
    before = content(interrupted)
    refused("resume", interrupted, says=(str(interrupted), "model is not the one the run began with"))
    assert content(interrupted) == before
    assert Run.open(interrupted).state == "running"


def test_resume_with_another_dataset(interrupted, stream):
    write_stream(stream, 80, seed=5)
    refused("resume", interrupted, says=(str(interrupted), "dataset or matched run is not the one the run began with"))
    stream.unlink()
    refused("resume", interrupted, says=("edits.jsonl: no such file",))


def test_resume_with_a_damaged_checkpoint(interrupted):
    _, folder = Run.open(interrupted).checkpoint
    file = folder / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    refused("resume", interrupted, says=("tensors.safetensors", "differs from what was written"))
    assert Run.open(interrupted).state == "running"
    assert any("tensors.safetensors" in line for line in Run.open(interrupted).verify())


def matched(run, mode="first"):
    return f"editor={{preset: no_ln_matched, params: {{match: {{run: {run}, mode: {mode}}}}}}}"


def test_match_of_runs_that_do_not_serve(spec, interrupted, tmp_path):
    out = tmp_path / "matched"

    def attempt(run, *says):
        refused("run", spec, matched(run, "every"), "--out", out, says=("match.run", *says))
        assert not out.exists()

    attempt(tmp_path / "none", "no run at", "run it first")
    attempt(interrupted, "not complete", f"stablediag resume {interrupted}")
    attempt(make(spec, tmp_path / "bare", "recorders=none", "evaluation.schedule=never"), "did not record every update")
    sparse = make(spec, tmp_path / "sparse", "recorders=[{name: update_norm, schedule: {at: 0}}]")
    attempt(sparse, "no update norm at step 1 of model.layers.1")
    attempt(make(spec, tmp_path / "short", "data.size=10"), "no update norm at step 1 of model.layers.1")
    attempt(make(spec, tmp_path / "else", "model.modules=[layers.0.mlp.down_proj]"), "layers.1.mlp.down_proj")


def test_match_of_a_run_that_serves(spec, tmp_path):
    reference = make(spec, tmp_path / "reference")
    run = Run.open(make(spec, tmp_path / "matched", matched("reference")))
    assert torch.isfinite(torch.tensor(run.table("updates")["match_scale"].to_numpy())).all()
    first = [Run.open(path).table("updates").query("step == 0")["norm"].to_numpy() for path in (reference, run.path)]
    assert first[0] == pytest.approx(first[1], rel=1e-5)


def test_a_sweep_over_an_unfinished_run(spec, interrupted, model, stream, tmp_path):
    sweep = write_spec(tmp_path / "spec.yaml", model, stream, vary={"data.seed": [0, 1]})
    first, _ = load_many(sweep)
    path = tmp_path / "runs" / f"{first.name}-{resolved(first).digest()[:8]}"
    path.parent.mkdir()
    interrupted.rename(path)
    refused("run", sweep, "--root", tmp_path / "runs", says=(f"stablediag resume {path}",))
    assert command("resume", path).code == 0
    done = command("run", sweep, "--root", tmp_path / "runs")
    assert done.code == 0, done
    assert [line.rsplit(": ", 1)[1].split(",")[0] for line in done.out.splitlines()] == ["complete already", "complete"]
