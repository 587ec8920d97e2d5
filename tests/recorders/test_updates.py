from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from stablediag.editors.base import Applied, Proposal
from stablediag.engine.view import ModelView
from stablediag.engine.weights import Realised, WeightWriter
from stablediag.maths.update import Dense, LowRank
from stablediag.models import load_model
from stablediag.recorders.base import Recorder, every
from stablediag.recorders.conformance import check_recorder
from stablediag.recorders.updates import AdjacentCosine, RealisedUpdate, UpdateNorm, module_updates, number
from tests.recorders import recorder_twins as twins

MODULES = ("model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj")


def updates(count, *, seed=0, p=40, d=24, n=3, dtype=torch.float32, kind="low rank"):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    drawn = [LowRank(draw(n, p).T, draw(n, d)) for _ in range(count)]
    return drawn if kind == "low rank" else [Dense(update.dense()) for update in drawn]


def applied(update, module=MODULES[0], realised=None):
    return Applied(Proposal(module, update), realised)


def values(items, column):
    return [item.values[column] for item in items]


@pytest.mark.parametrize("make", [UpdateNorm, AdjacentCosine, RealisedUpdate])
def test_conformance(make, loaded):
    recorder = make()
    assert isinstance(recorder, Recorder)
    assert check_recorder(recorder, loaded=loaded)


def test_number_knows_no_nan():
    assert number(torch.tensor(float("nan"))) is None
    assert number(torch.tensor(2.0)) == 2.0


@pytest.mark.parametrize("kind", ["low rank", "dense"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_norms_equal_the_dense_twin(view, loaded, step_view, kind, dtype, tolerance):
    writer = WeightWriter(loaded.modules)
    initial = twins.norm(Dense(view.weight(MODULES[0])))
    update = updates(1, dtype=dtype, kind=kind)[0].scaled(0.05)
    writer.apply(MODULES[0], update)
    (row,) = UpdateNorm().on_step(step_view(3, [applied(update)]))
    assert (row.table, dict(row.key)) == ("updates", {"step": 3, "module": MODULES[0]})
    assert row.values["norm"] == pytest.approx(twins.norm(update), rel=tolerance)
    weight = twins.norm(Dense(view.weight(MODULES[0])))
    assert row.values["weight_norm"] == pytest.approx(weight, rel=1e-12)
    assert row.values["weight_ratio"] == pytest.approx(weight / initial, rel=1e-12)
    assert row.values["weight_ratio"] != pytest.approx(1.0, rel=1e-3)


def test_an_update_that_was_not_written_has_no_row(step_view):
    step = step_view(0, [applied(updates(1)[0])], phase="warmup", written=False)
    assert list(UpdateNorm().on_step(step)) == []
    assert list(RealisedUpdate().on_step(step)) == []


def test_two_writes_of_one_module_count_as_their_sum(step_view):
    a, b = updates(2)
    (c,) = updates(1, seed=5, kind="dense")
    step = step_view(0, [applied(a), applied(b), applied(c, MODULES[1]), applied(a, MODULES[1])])
    found = module_updates(step)
    assert twins.dense(found[MODULES[0]]) == pytest.approx(twins.dense(a) + twins.dense(b), rel=1e-5, abs=1e-5)
    assert twins.dense(found[MODULES[1]]) == pytest.approx(twins.dense(a) + twins.dense(c), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("kinds", [("low rank", "low rank"), ("dense", "dense"), ("low rank", "dense")])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_cosines_equal_the_dense_twin(step_view, kinds, dtype, tolerance):
    first, second = updates(1, seed=1, dtype=dtype, kind=kinds[0])[0], updates(1, seed=2, dtype=dtype, kind=kinds[1])[0]
    recorder = AdjacentCosine()
    (row,) = recorder.on_step(step_view(0, [applied(first)]))
    assert dict(row.values) == {"inner": None, "cosine": None}
    (row,) = recorder.on_step(step_view(1, [applied(second)]))
    scale = twins.norm(first) * twins.norm(second)
    assert row.values["inner"] == pytest.approx(twins.inner(first, second), abs=tolerance * scale)
    assert row.values["cosine"] == pytest.approx(twins.cosine(first, second), abs=tolerance)


def run_phases(recorder, step_view, phases, written=True):
    ups = updates(len(phases), seed=3)
    rows = []
    for i, (up, phase) in enumerate(zip(ups, phases, strict=True)):
        place = phases[:i].count("target")
        view = step_view(i, [applied(up)], phase=phase, written=written or phase == "target", target_step=place)
        rows.append(list(recorder.on_step(view)))
    return ups, [row[0].values["cosine"] if row else "no row" for row in rows]


@pytest.mark.parametrize("reset", [True, False])
def test_no_cosine_reaches_over_a_skipped_step(step_view, reset):
    recorder = AdjacentCosine(reset_after_warmup=reset)
    found = []
    for step in (0, 1, 3, 4):
        rows = list(recorder.on_step(step_view(step, [applied(updates(1, seed=step)[0])])))
        found.append(rows[0].values["cosine"])
    assert [cosine is None for cosine in found] == [True, False, True, False]


PHASES = ("warmup", "warmup", "target", "target", "warmup", "target", "target")


@pytest.mark.parametrize("written", [True, False])
def test_the_first_cosine_after_a_warmup_is_null(step_view, written):
    ups, found = run_phases(AdjacentCosine(), step_view, PHASES, written)
    assert found[:3] == ["no row", "no row", None]
    assert found[3] == pytest.approx(twins.cosine(ups[2], ups[3]), abs=1e-6)
    assert found[4:6] == ["no row", None]
    assert found[6] == pytest.approx(twins.cosine(ups[5], ups[6]), abs=1e-6)


def test_without_reset_the_cosine_reaches_over_a_warmup(step_view):
    ups, found = run_phases(AdjacentCosine(reset_after_warmup=False), step_view, PHASES)
    assert found[2] is None
    assert found[5] == pytest.approx(twins.cosine(ups[3], ups[5]), abs=1e-6)


def test_a_thin_report_still_compares_neighbours(step_view):
    ups, found = run_phases(AdjacentCosine(report=every(3)), step_view, ("target",) * 6)
    assert found[:2] == ["no row", "no row"]
    assert found[2] == pytest.approx(twins.cosine(ups[1], ups[2]), abs=1e-6)
    assert found[5] == pytest.approx(twins.cosine(ups[4], ups[5]), abs=1e-6)


def test_modules_are_compared_with_themselves(step_view):
    a, b, c, d = updates(4)
    recorder = AdjacentCosine()
    list(recorder.on_step(step_view(0, [applied(a), applied(b, MODULES[1])])))
    rows = list(recorder.on_step(step_view(1, [applied(c), applied(d, MODULES[1])])))
    assert values(rows, "cosine") == pytest.approx([twins.cosine(a, c), twins.cosine(b, d)], abs=1e-6)


def test_a_zero_update_has_no_cosine(step_view):
    (a,) = updates(1)
    recorder = AdjacentCosine()
    list(recorder.on_step(step_view(0, [applied(a)])))
    (row,) = recorder.on_step(step_view(1, [applied(a.scaled(0.0))]))
    assert dict(row.values) == {"inner": 0.0, "cosine": None}


@pytest.mark.parametrize("kind", ["low rank", "dense"])
def test_a_resumed_cosine_has_the_same_bits(step_view, kind):
    first, second = updates(2, p=301, d=67, n=9, kind=kind)
    through, saved = AdjacentCosine(), AdjacentCosine()
    list(through.on_step(step_view(0, [applied(first)])))
    list(saved.on_step(step_view(0, [applied(first)])))
    tensors, meta = saved.state_dict()
    resumed = AdjacentCosine()
    resumed.load_state_dict({k: t.contiguous().clone() for k, t in tensors.items()}, json.loads(json.dumps(meta)))
    (a,), (b,) = through.on_step(step_view(1, [applied(second)])), resumed.on_step(step_view(1, [applied(second)]))
    assert dict(a.values) == dict(b.values)
    assert np.isfinite(a.values["cosine"])


def test_the_previous_update_is_kept_thin_and_as_a_copy(step_view):
    (update,) = updates(1)
    recorder = AdjacentCosine()
    list(recorder.on_step(step_view(0, [applied(update)])))
    tensors, _ = recorder.state_dict()
    assert sum(tensor.numel() for tensor in tensors.values()) == 3 * (40 + 24)
    kept = tensors[f"{MODULES[0]}/right"].clone()
    update.right.zero_()
    assert torch.equal(tensors[f"{MODULES[0]}/right"], kept)


def test_realised_numbers_are_passed_on_and_nan_is_null(step_view):
    rows = list(
        RealisedUpdate().on_step(
            step_view(
                0,
                [
                    applied(updates(1)[0], MODULES[0], Realised(0.9, float("nan"), 0.25)),
                    applied(updates(1)[0], MODULES[1], None),
                ],
            )
        )
    )
    (row,) = rows
    assert row.key["module"] == MODULES[0]
    assert dict(row.values) == {"realised_ratio": 0.9, "realised_cosine": None, "unchanged_fraction": 0.25}


@pytest.mark.parametrize("scale", [1e-4, 1e-3, 1e-1])
def test_ratio_and_cosine_say_how_much_a_bfloat16_weight_kept(llama_dir, scale):
    narrow = load_model(llama_dir, modules=["layers.[1-2].mlp.down_proj"], device="cpu", dtype="bfloat16")
    writer = WeightWriter(narrow.modules, master="model")
    weight = ModelView(narrow, writer).weight(MODULES[0])
    before = weight.double().clone()
    update = updates(1, kind="dense")[0].scaled(scale * float(weight.double().std()))
    realised = writer.apply(MODULES[0], update, measure=True)
    asked, written = update.matrix.double(), weight.double() - before
    kept = float((asked * written).sum() / asked.square().sum())
    assert realised.norm_ratio * realised.cosine == pytest.approx(kept, rel=1e-5)
    if scale < 1e-2:
        assert realised.norm_ratio > 1.1 * kept
        assert kept < 1 - 1e-3
    else:
        assert kept == pytest.approx(1.0, abs=0.02)


def test_an_update_below_the_rounding_is_lost_as_a_whole(llama_dir):
    narrow = load_model(llama_dir, modules=["layers.[1-2].mlp.down_proj"], device="cpu", dtype="bfloat16")
    weight = ModelView(narrow, WeightWriter(narrow.modules)).weight(MODULES[0])
    tiny = Dense(weight.float() * 1e-4)
    lost = WeightWriter(narrow.modules, master="model").apply(MODULES[0], tiny, measure=True)
    assert lost.norm_ratio == 0.0
    assert lost.unchanged_fraction == 1.0
    assert np.isnan(lost.cosine)
