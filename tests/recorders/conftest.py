"""A tiny model, and step views made by hand."""

from __future__ import annotations

import pytest
import torch

from stablediag.engine.view import ModelView
from stablediag.engine.weights import WeightWriter
from stablediag.models import load_model
from stablediag.recorders.base import StepView
from stablediag.types import Capture, EditBatch


@pytest.fixture(scope="session")
def loaded(llama_dir):
    return load_model(llama_dir, modules=["layers.[1-2].mlp.down_proj"], device="cpu")


@pytest.fixture
def view(loaded):
    """A view whose weights are restored after the test."""
    writer = WeightWriter(loaded.modules)
    before = writer.snapshot()
    yield ModelView(loaded, writer)
    writer.restore(before)


@pytest.fixture
def step_view(view):
    """Build a step from what was applied."""

    def build(step, applied, *, phase="target", total=100, written=True, captures=None, edits=(), target_step=None):
        return StepView(
            step=step,
            total=total,
            phase=phase,
            target_step=(step if target_step is None else target_step) if phase == "target" else None,
            batch=EditBatch(step, phase, tuple(edits)),
            captures=captures or {},
            applied=tuple(applied),
            written=written,
            view=view,
        )

    return build


@pytest.fixture
def capture_of():
    """A capture with these value gradients and nothing else of interest."""

    def build(name, grads):
        n = grads.shape[0]
        ids = torch.zeros(n, dtype=torch.int64)
        return Capture(name, torch.zeros(n, 1), grads, ids, ids, ids, torch.ones(n), None, 0.0)

    return build
