"""The golden runs on CUDA, and CUDA against the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stablediag.engine.capture import CaptureNeeds
from stablediag.engine.view import ModelView
from stablediag.engine.weights import WeightWriter
from stablediag.models import load_model
from stablediag.tokens import encode
from tests.golden.test_ln_golden import MODULES, RUNS, batches, expected_branches, relative, replay

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(autouse=True)
def _full_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.mark.parametrize("run", list(RUNS))
def test_golden_run_is_reproduced_on_cuda(golden_dir, run):
    got = replay(golden_dir, run, device="cuda")
    assert got["counts_agree"]
    assert got["branches"] == expected_branches(golden_dir, run)
    assert got["statistics"] < 1e-5
    assert got["shift"] < 1e-3
    assert got["weights"] < 1e-5


@pytest.mark.parametrize("loss", ["paper", "released"])
def test_capture_agrees_between_cpu_and_cuda(golden_dir, loss):
    batch = batches(golden_dir, "stable_cold")[0]
    captured = {}
    for device in ("cpu", "cuda"):
        loaded = load_model(golden_dir / "world", modules=MODULES, device=device)
        view = ModelView(loaded, WeightWriter(loaded.modules))
        tokens = encode(batch.edits, loaded.tokenizer, minibatch=10, sort=True)
        captured[device] = view.capture(tokens, replace(CaptureNeeds(), loss=loss))
    for name, cpu in captured["cpu"].items():
        assert captured["cuda"][name].keys.device.type == "cuda"
        assert relative(captured["cuda"][name].keys, cpu.keys) < 1e-5
        assert relative(captured["cuda"][name].grads, cpu.grads) < 1e-5
