"""The conformance suite itself: every planted fault must be caught, by name."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from stablediag.recorders.base import Array, BaseRecorder, Row
from stablediag.recorders.conformance import check_recorder


def row(step, module, **values):
    return Row("updates", {"step": step.step, "module": module}, values)


@dataclass
class Sound(BaseRecorder):
    """Counts the steps it has seen, and keeps the count in its state."""

    name = "sound"
    columns: dict = field(default_factory=lambda: {"updates": {"norm": "REAL"}}, init=False)
    seen: int = 0

    def on_step(self, step):
        self.seen += 1
        return [row(step, "m", norm=float(self.seen))]

    def state_dict(self):
        return {}, {"seen": self.seen}

    def load_state_dict(self, tensors, meta):
        self.seen = meta["seen"]


class Undeclared(Sound):
    def on_step(self, step):
        return [row(step, "m", nrom=1.0)]


class OtherTable(Sound):
    def on_step(self, step):
        return [Row("tracking", {"step": step.step, "module": "m"}, {"norm": 1.0})]


class WrongKey(Sound):
    def on_step(self, step):
        return [Row("updates", {"step": step.step}, {"norm": 1.0})]


class NotPlain(Sound):
    def on_step(self, step):
        return [row(step, "m", norm=torch.tensor(1.0))]


class Contradicts(Sound):
    def on_step(self, step):
        return [row(step, "m", norm=1.0), row(step, "m", norm=2.0)]


class TouchesWeights(Sound):
    def on_step(self, step):
        step.view.weight(next(iter(step.view.modules))).mul_(1.0001)
        return []


class TouchesCaptures(Sound):
    def on_step(self, step):
        next(iter(step.captures.values())).grads[0] += 1
        return []


class TouchesStatistics(Sound):
    def on_step(self, step):
        next(iter(step.applied[0].proposal.tracked.values())).after.scale.add_(1)
        return []


class TouchesWeightsAtSnapshots(Sound):
    def on_snapshot(self, snapshot):
        next(snapshot.view.model.parameters()).data.add_(1e-6)
        return []


class LeavesTrainingMode(Sound):
    def on_snapshot(self, snapshot):
        snapshot.view.model.train()
        return []


class DrawsTorch(Sound):
    def on_step(self, step):
        torch.randn(1)
        return []


class DrawsNumpy(Sound):
    def on_step(self, step):
        np.random.rand()  # noqa: NPY002
        return []


class DrawsPython(Sound):
    def on_step(self, step):
        random.random()
        return []


class Unrepeatable(Sound):
    def on_step(self, step):
        return [row(step, "m", norm=float(np.random.default_rng().random()))]


class ForgetsState(Sound):
    def state_dict(self):
        return {}, {}

    def load_state_dict(self, tensors, meta):
        pass


class NotJson(Sound):
    def state_dict(self):
        return {}, {"seen": self.seen, "tensor": torch.zeros(1)}


class NaNState(Sound):
    def state_dict(self):
        return {}, {"seen": self.seen, "nan": float("nan")}


class ObjectArray(Sound):
    def on_step(self, step):
        return [Array("names", step.step, np.array(["a", None], dtype=object))]


class ImpossibleStep(Sound):
    def on_run_end(self, run):
        return [Array("late", run.step + 1, np.zeros(2))]


class ReturnsDict(Sound):
    def on_step(self, step):
        return [{"norm": 1.0}]


@dataclass
class DeclaresKey(BaseRecorder):
    name = "declares_key"
    columns: dict = field(default_factory=lambda: {"updates": {"module": "TEXT"}}, init=False)


@dataclass
class DeclaresType(BaseRecorder):
    name = "declares_type"
    columns: dict = field(default_factory=lambda: {"updates": {"norm": "FLOAT"}}, init=False)


class NoRecorder:
    name = "nothing"


FAULTS = [
    (Undeclared, "undeclared column updates.nrom"),
    (OtherTable, "undeclared table 'tracking'"),
    (WrongKey, r"has the key \['step'\]"),
    (NotPlain, "updates.norm is a Tensor"),
    (Contradicts, "updates.norm is given two values"),
    (TouchesWeights, r"changed weight model\.layers\.1\.mlp\.down_proj"),
    (TouchesCaptures, "changed the gradients of"),
    (TouchesStatistics, "changed the statistic"),
    (TouchesWeightsAtSnapshots, "changed weight"),
    (LeavesTrainingMode, "changed the model's mode"),
    (DrawsTorch, "global random generator"),
    (DrawsNumpy, "global random generator"),
    (DrawsPython, "global random generator"),
    (Unrepeatable, "two identical runs"),
    (ForgetsState, "after the state of step 0 is loaded"),
    (NotJson, "not JSON"),
    (NaNState, "not JSON"),
    (ObjectArray, "not a numeric numpy array"),
    (ImpossibleStep, "impossible step 6"),
    (ReturnsDict, "returned a dict"),
    (DeclaresKey, "updates.module is a key"),
    (DeclaresType, "unknown type 'FLOAT'"),
    (NoRecorder, "lacks a member of the Recorder protocol"),
]


def test_a_sound_recorder_passes_and_is_left_alone(loaded):
    recorder = Sound()
    before = {name: p.clone() for name, p in loaded.model.named_parameters()}
    items = check_recorder(recorder, loaded=loaded)
    assert [item.values["norm"] for item in items] == [1, 2, 3, 4, 5, 6]
    assert recorder.seen == 0
    assert all(torch.equal(p, before[name]) for name, p in loaded.model.named_parameters())


@pytest.mark.parametrize(("make", "message"), FAULTS, ids=[make.__name__ for make, _ in FAULTS])
def test_every_fault_is_caught(loaded, make, message):
    parameters = {name: p.clone() for name, p in loaded.model.named_parameters()}
    try:
        with pytest.raises(AssertionError, match=message) as caught:
            check_recorder(make(), loaded=loaded)
        assert "\n" not in str(caught.value)
    finally:
        loaded.model.eval()
        with torch.no_grad():
            for name, p in loaded.model.named_parameters():
                p.copy_(parameters[name])


def test_it_works_on_a_conv1d_model(gpt2_dir):
    from stablediag.models import load_model
    from stablediag.recorders.updates import UpdateNorm

    other = load_model(gpt2_dir, modules=["h.[0-1].mlp.c_proj"], device="cpu")
    assert len(check_recorder(UpdateNorm(), loaded=other)) == 10
