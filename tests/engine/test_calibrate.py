"""The search for a learning rate: the smallest that reaches its goal, found without leaving a trace."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from stablediag.data.load import load_stream
from stablediag.editors.ln import LNEditor
from stablediag.editors.ln_params import Calibration, LNParams
from stablediag.engine.calibrate import _smallest, calibrate, mean_match
from stablediag.engine.session import Session, resume, run
from stablediag.engine.view import ModelView
from stablediag.engine.weights import WeightWriter
from stablediag.errors import NumericalError
from stablediag.models import load_model
from stablediag.spec import DataSpec, Spec
from stablediag.store.run import Run
from tests.engine.streams import write_stream

GOAL = Calibration(efficacy=0.9, tolerance=0.05)
GRID = [2.0**k for k in range(-9, 2)]


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    return write_stream(tmp_path_factory.mktemp("stream") / "edits.jsonl", 120)


@pytest.fixture
def setting(llama_dir, stream):
    """A view of a tiny model, and an editor that has learnt from one step."""
    torch.set_num_threads(1)
    loaded = load_model(llama_dir, modules=["layers.[1-2].mlp.down_proj"], device="cpu")
    view = ModelView(loaded, WeightWriter(loaded.modules))
    editor = LNEditor(LNParams(lr=0.01), loaded.modules)
    return view, editor, load_stream(DataSpec(source=str(stream), size=60))


def goal(efficacy):
    return Calibration(efficacy=efficacy, tolerance=0.05)


def logistic(threshold):
    """An efficacy that rises from 0.1 with the learning rate and crosses 0.9 at `threshold`."""
    return lambda lr: 0.1 + 0.8 * min(1.0, lr / threshold) ** 2


@pytest.mark.parametrize("threshold", [2.0**-8.3, 0.011, 0.25, 1.7, 2.0])
def test_smallest_rate_inside_the_grid(threshold):
    found = _smallest(logistic(threshold), GRID, GOAL)
    assert found.reached
    assert threshold <= found.lr <= threshold * 1.05 * (1 + 1e-12)
    assert found.efficacy == logistic(threshold)(found.lr) >= 0.9


@pytest.mark.parametrize("threshold", [2.0**-9, 2.0**-9.5, 2.0**-14.2, 2.0**-30])
def test_smallest_rate_below_the_grid(threshold):
    """A grid whose first rate reaches the goal is not the whole of what must be searched."""
    found = _smallest(logistic(threshold), GRID, GOAL)
    assert found.reached
    assert threshold <= found.lr <= threshold * 1.05 * (1 + 1e-12)


def test_goal_out_of_reach_gives_the_best_rate_visited():
    peak = 2.0**-4
    found = _smallest(lambda lr: 0.6 * math.exp(-(math.log(lr / peak) ** 2)), GRID, GOAL)
    assert not found.reached
    assert (found.lr, found.efficacy) == (peak, 0.6)


def test_first_crossing_is_taken_when_larger_rates_fail_again():
    found = _smallest(lambda lr: 0.95 if 0.1 <= lr <= 0.3 else 0.2, GRID, GOAL)
    assert found.reached
    assert 0.1 <= found.lr <= 0.105


def test_model_that_answers_already_is_refused():
    with pytest.raises(NumericalError, match=r"unedited model has an efficacy of 0.950 .* 0.9 is wanted"):
        _smallest(lambda lr: 0.95, GRID, GOAL)


def test_tolerance_bounds_the_bracket_and_the_work():
    for tolerance in (0.5, 0.01):
        calls = []

        def efficacy(lr, calls=calls):
            calls.append(lr)
            return logistic(0.3)(lr)

        found = _smallest(efficacy, GRID, Calibration(efficacy=0.9, tolerance=tolerance))
        assert found.lr <= 0.3 * (1 + tolerance) * (1 + 1e-12)
        assert len(calls) <= len(GRID) + 8
        assert len(calls) == len(set(calls))


@pytest.mark.parametrize("phase", ["warmup", "target"])
def test_neither_weights_nor_editor_are_changed(phase, setting):
    view, editor, edits = setting
    before = {name: view.weight(name).clone() for name in view.modules}
    tensors, meta = editor.state_dict()
    tensors = {key: value.clone() for key, value in tensors.items()}
    found = calibrate(editor, view, edits[:20], phase=phase, group=10)
    assert math.isfinite(found.lr)
    assert found.lr > 0
    assert all(torch.equal(before[name], view.weight(name)) for name in before)
    after, after_meta = editor.state_dict()
    assert after_meta == meta
    assert editor.lr == 0.01
    assert after.keys() == tensors.keys()
    assert all(torch.equal(tensors[key], after[key]) for key in tensors)


def test_weights_and_rate_come_back_after_an_error(setting, monkeypatch):
    from stablediag.engine import calibrate as module

    view, editor, edits = setting
    before = {name: view.weight(name).clone() for name in view.modules}

    def broken(*_, **__):
        raise NumericalError("planted")

    monkeypatch.setattr(module, "score_cached", broken)
    with pytest.raises(NumericalError, match="planted"):
        calibrate(editor, view, edits[:10], phase="target", group=10)
    assert all(torch.equal(before[name], view.weight(name)) for name in before)
    assert editor.lr == 0.01


def test_efficacy_is_that_of_the_edits_taught_in_groups(setting):
    """Slow twin: each group is taught by a fresh editor with that rate, from the same weights, and asked."""
    from stablediag.evaluation.metrics import score_pairs
    from stablediag.types import EditBatch

    view, _, edits = setting
    edits = edits[:25]
    params = LNParams(lr="calibrate", calibration=Calibration(efficacy=0.2, edits=25))
    editor = LNEditor(params, view.modules)
    found = calibrate(editor, view, edits, phase="target", group=10)
    editor.lr = found.lr
    hits = []
    for i in range(0, 25, 10):
        group = tuple(edits[i : i + 10])
        captures = view.capture_edits(group, editor.needs, minibatch=None)
        proposals = editor.step(view, EditBatch(0, "target", group), captures)
        with view.patched({p.module: p.update for p in proposals}):
            hits += score_pairs(view.model, view.tokenizer, [(e.prompt, e.target) for e in group]).token_match.tolist()
    assert len(hits) == 25
    assert found.efficacy == pytest.approx(sum(hits) / 25, abs=1e-6)


def test_phases_use_their_own_normaliser(setting):
    view, _, edits = setting
    rates = {}
    for warmup_norm in ("same", "diagonal"):
        params = LNParams(warmup_norm=warmup_norm, pre_threshold="diagonal", calibration=Calibration(efficacy=0.1))
        editor = LNEditor(params, view.modules)
        rates[warmup_norm] = [calibrate(editor, view, edits[:40], phase=p, group=40).lr for p in ("warmup", "target")]
    assert rates["same"][0] == rates["same"][1] == rates["diagonal"][1]
    assert rates["diagonal"][0] != rates["diagonal"][1]


def test_gradients_that_vanish_are_refused(setting):
    view, editor, edits = setting
    with torch.no_grad():
        view.model.get_parameter("model.norm.weight").zero_()
    with pytest.raises(NumericalError, match="zero or not finite"):
        calibrate(editor, view, edits[:10], phase="target", group=10)


@pytest.fixture
def calibrated_spec(llama_dir, stream):
    return Spec.from_mapping(
        {
            "model": {"path": str(llama_dir), "modules": ["layers.[1-2].mlp.down_proj"], "device": "cpu"},
            "data": {"source": str(stream), "size": 40},
            "warmup": {"size": 20},
            "edits_per_step": 10,
            "editor": {"params": {"lr": "calibrate", "calibration": {"efficacy": 0.05, "edits": 30}}},
            "evaluation": {"schedule": "never"},
            "checkpoint": {"every": 2},
            "threads": 1,
        }
    )


def stop_at(step, monkeypatch):
    original = Session._step

    def stopping(self, batch):
        if batch.index == step:
            raise KeyboardInterrupt
        original(self, batch)

    monkeypatch.setattr(Session, "_step", stopping)


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_resumed_run_keeps_its_rates(stop, calibrated_spec, tmp_path, monkeypatch):
    """Stops before the warm-up's rate is in a checkpoint, after the target's was found and lost, and after it was kept."""
    whole = run(calibrated_spec, tmp_path / "whole", progress=False)
    events = whole.table("events").query("kind == 'calibrated'")
    assert events["step"].tolist() == [0, 2]
    assert [text.split(":")[0] for text in events["text"]] == ["warmup", "target"]
    assert all("on 30 held-out edits" in text for text in events["text"])
    with monkeypatch.context() as patch:
        stop_at(stop, patch)
        with pytest.raises(KeyboardInterrupt):
            run(calibrated_spec, tmp_path / "cut", progress=False)
    resume(tmp_path / "cut", progress=False)
    for table in ("events", "updates", "steps"):
        pd.testing.assert_frame_equal(whole.table(table), Run.open(tmp_path / "cut").table(table), check_exact=True)


def test_mean_match_finds_factors_and_gives_up_on_a_collapse():
    factors = {}
    target = {"a": 3.0, "b": 0.5}

    def linear():
        return {name: 2.0 * factor**0.8 for name, factor in factors.items()}

    found = mean_match(linear, target, {"a": 1.0, "b": 1.0}, lambda new: factors.update(new))
    assert all(2.0 * found[name] ** 0.8 == pytest.approx(target[name], rel=0.02) for name in target)
    with pytest.raises(NumericalError, match=r"still .* off after 6 pilots"):
        mean_match(lambda: {"a": 1.0}, {"a": 2.0}, {"a": 1.0}, lambda new: None)
    for useless in (0.0, math.nan, math.inf):
        with pytest.raises(NumericalError, match="of a in the pilot is"):
            mean_match(lambda norm=useless: {"a": norm}, {"a": 2.0}, {"a": 1.0}, lambda new: None)
        with pytest.raises(NumericalError, match="of a in the reference run is"):
            mean_match(lambda: {"a": 1.0}, {"a": useless}, {"a": 1.0}, lambda new: None)
