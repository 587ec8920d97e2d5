"""Numbers that are not finite: met before they reach statistics or weights, and written down."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from stablediag.store.run import Run
from stablediag.store.state import load_state
from tests.cli.command import command, write_spec
from tests.engine.streams import write_stream


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    return write_stream(tmp_path_factory.mktemp("stream") / "edits.jsonl", 140)


def damaged(llama_dir, folder, change):
    shutil.copytree(llama_dir, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def all_bad(llama_dir, tmp_path_factory):
    """A model whose every hidden state is NaN."""

    def change(tensors):
        tensors["model.layers.0.mlp.up_proj.weight"].fill_(float("nan"))

    return damaged(llama_dir, tmp_path_factory.mktemp("nan") / "model", change)


@pytest.fixture(scope="module")
def some_bad(llama_dir, tmp_path_factory):
    """A model with NaN embeddings of some words: only the edits that use them are concerned."""

    def change(tensors):
        tensors["model.embed_tokens.weight"][10:14] = float("nan")

    return damaged(llama_dir, tmp_path_factory.mktemp("nan") / "model", change)


def failed(done, path, *says):
    """One line, exit code 1, and a readable run whose journal has the same reason."""
    assert done.code == 1, done
    assert done.err.count("\n") == 1, done.err
    run = Run.open(path)
    assert run.verify() == []
    assert not run.live
    last = run.table("journal").iloc[-1]
    assert last["kind"] == "failed"
    for text in says:
        assert text in done.err, done.err
        assert text in last["text"]
    return run


def test_guard_raise(all_bad, stream, tmp_path):
    spec = write_spec(tmp_path / "s.yaml", all_bad, stream, evaluation={"schedule": "never"})
    done = command("run", spec, "--out", tmp_path / "run")
    run = failed(done, tmp_path / "run", "step 0", "layers.1.mlp.down_proj", "'r0'", "guard")
    assert len(run.table("steps")) == 0
    assert "failed" in command("show", tmp_path / "run").out


@pytest.mark.parametrize("policy", ["drop", "skip"])
def test_guard_without_a_finite_row_skips_every_step(policy, all_bad, stream, tmp_path):
    spec = write_spec(tmp_path / "s.yaml", all_bad, stream, guard=policy)
    done = command("run", spec, "--out", tmp_path / "run")
    assert done.code == 0, done
    steps = Run.open(tmp_path / "run").table("steps")
    assert steps["skipped"].notna().all()
    assert steps["written"].eq(0).all()
    assert len(Run.open(tmp_path / "run").table("updates")) == 0


@pytest.mark.parametrize("policy", ["drop", "skip"])
def test_guard_with_some_finite_rows(policy, some_bad, stream, tmp_path):
    spec = write_spec(tmp_path / "s.yaml", some_bad, stream, guard=policy, edits_per_step=2)
    done = command("run", spec, "--out", tmp_path / "run")
    assert done.code == 0, done
    run = Run.open(tmp_path / "run")
    steps = run.table("steps")
    skipped = steps["skipped"].notna()
    assert 0 < skipped.sum() < len(steps)
    if policy == "drop":
        assert steps.loc[~skipped, "dropped_rows"].gt(0).any()
    else:
        assert steps["dropped_rows"].eq(0).all()
    assert run.table("updates")["norm"].notna().all()
    events = run.table("events")
    assert sorted(events.loc[events["kind"] == "skipped", "step"]) == steps.loc[skipped, "step"].tolist()
    tensors, _ = load_state(run.checkpoint[1])
    written = {name: tensor for name, tensor in tensors.items() if name.startswith(("weights/", "editor/"))}
    assert all(torch.isfinite(tensor).all() for tensor in written.values() if tensor.is_floating_point())


def test_calibration_on_gradients_that_are_not_finite(all_bad, stream, tmp_path):
    for policy in ("raise", "drop"):
        spec = write_spec(tmp_path / "s.yaml", all_bad, stream, editor={"name": "ln"}, guard=policy)
        path = tmp_path / policy
        failed(command("run", spec, "--out", path), path, "finite")


@pytest.mark.parametrize("lr", ["1e39", "1e300"])
def test_update_that_overflows(lr, llama_dir, stream, tmp_path):
    spec = write_spec(tmp_path / "s.yaml", llama_dir, stream, evaluation={"schedule": "never"})
    done = command("run", spec, f"editor.params.lr={lr}", "--out", tmp_path / "run")
    run = failed(done, tmp_path / "run", "step 0", "not finite", "lower the learning rate")
    assert len(run.table("steps")) == 0


@pytest.mark.parametrize("lr", ["1e15", "1e30"])
def test_model_that_collapses_after_a_step(lr, llama_dir, stream, tmp_path):
    """Finite updates, but so large that the next gradients are zero or not finite: finished or refused, never a crash."""
    spec = write_spec(tmp_path / "s.yaml", llama_dir, stream)
    done = command("run", spec, f"editor.params.lr={lr}", "--out", tmp_path / "run")
    assert done.code in (0, 1)
    if done.code:
        failed(done, tmp_path / "run", "step")
    assert Run.open(tmp_path / "run").verify() == []
